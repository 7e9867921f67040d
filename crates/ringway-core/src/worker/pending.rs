//! Requests that a worker holds: in the kernel, in Python, or parked.

use std::rc::Rc;
use std::sync::Arc;

use crate::engine::Job;
use crate::limit::Permit;
use crate::scsi::Failure;
use crate::trace::Slot;
use crate::view::{Lun, LunId, View};
use crate::vring::Chain;

/// Recycled entries that are kept at most.
const SPARES: usize = 1024;

/// Where a held request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its I/O is in the kernel.
    Running,
    /// Python has it.
    Slow,
    /// It waits for a range lock, for room in the slow ring, or for its time.
    Parked,
}

/// What the guest's header said, kept as one copy.
#[derive(Clone, Copy, Debug)]
pub struct Header(pub [u8; 64]);

/// How a request is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Reads the medium.
    Read,
    /// Writes data.
    Write,
    /// Flush.
    Flush,
    /// Unmap, zero, fill.
    Unmap,
    /// Anything else.
    Other,
}

/// A held request. `queue` is none once the request was given up: only the kernel's answer is awaited.
pub struct Pending {
    pub queue: Option<u16>,
    pub head: u16,
    pub phase: Phase,
    pub chain: Chain,
    pub header: Header,
    pub popped_ns: u64,
    /// Order of popping; keeps its value however often the request is held.
    pub sequence: u64,
    pub serial: u32,
    pub past_gate: bool,
    /// When it may go, if its LUN is limited.
    pub permit: Permit,
    /// Parked because the slow ring was full.
    pub wants_python: bool,
    /// The response to give when the kernel cancelled it.
    pub cancelled: Option<u8>,
    /// The view that it was popped under: the chain's spans point into its memory.
    pub origin: Rc<View>,
    /// The view that it was last dispatched under: its LUN and store are that one's.
    pub current: Rc<View>,
    /// The LUN that it is for, also when that is gone.
    pub whose: Option<LunId>,
    pub job: Job,
    pub class: Class,
    pub range: (u64, u64),
    pub bytes: usize,
    pub failure: Failure,
    /// Where a trace follows it.
    pub slot: Option<Slot>,
}

impl Pending {
    fn blank(nothing: &Rc<View>) -> Self {
        Pending {
            queue: None,
            head: 0,
            phase: Phase::Parked,
            chain: Chain::default(),
            header: Header([0; 64]),
            popped_ns: 0,
            sequence: 0,
            serial: 0,
            past_gate: false,
            permit: Permit::default(),
            wants_python: false,
            cancelled: None,
            origin: nothing.clone(),
            current: nothing.clone(),
            whose: None,
            job: Job::default(),
            class: Class::Other,
            range: (0, 0),
            bytes: 0,
            failure: Failure::None,
            slot: None,
        }
    }

    /// The LUN that it is for, if that was there when it was last dispatched.
    pub fn lun(&self) -> Option<&Arc<Lun>> {
        self.current.luns.find(self.whose?)
    }
}

/// All held requests of a worker. Boxes: the kernel keeps pointers into them. Freed ones are used again, with the
/// vectors that have grown in them.
#[derive(Default)]
pub struct Slab {
    entries: Vec<Option<Box<Pending>>>,
    free: Vec<u32>,
    // Boxes: what is taken from here moves into `entries` without being copied, and must not move after
    #[allow(clippy::vec_box)]
    spares: Vec<Box<Pending>>,
    nothing: Rc<View>,
    sequence: u64,
    serial: u32,
}

impl Slab {
    /// An entry to fill and [`Slab::insert`].
    pub fn spare(&mut self) -> Box<Pending> {
        self.spares.pop().unwrap_or_else(|| Box::new(Pending::blank(&self.nothing)))
    }

    /// Hold a request; gives it a serial number, and a sequence number unless it has one from before.
    pub fn insert(&mut self, mut pending: Box<Pending>) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        pending.serial = self.serial;
        if pending.sequence == 0 {
            self.sequence += 1;
            pending.sequence = self.sequence;
        }
        match self.free.pop() {
            Some(key) => {
                self.entries[key as usize] = Some(pending);
                key
            }
            None => {
                self.entries.push(Some(pending));
                u32::try_from(self.entries.len() - 1).expect("fewer requests than ring entries")
            }
        }
    }

    /// A held request.
    pub fn get(&self, key: u32) -> &Pending {
        self.entries[key as usize].as_ref().expect("a live key")
    }

    /// A held request.
    pub fn get_mut(&mut self, key: u32) -> &mut Pending {
        self.entries[key as usize].as_mut().expect("a live key")
    }

    /// Let go of a request, to finish it.
    pub fn remove(&mut self, key: u32) -> Box<Pending> {
        self.free.push(key);
        self.entries[key as usize].take().expect("a live key")
    }

    /// A removed request is finished: keep its memory, and nothing that it referred to.
    pub fn recycle(&mut self, mut pending: Box<Pending>) {
        if self.spares.len() < SPARES {
            pending.origin = self.nothing.clone();
            pending.current = self.nothing.clone();
            pending.job.reset();
            self.spares.push(pending);
        }
    }

    /// Let go and forget.
    pub fn free(&mut self, key: u32) {
        let pending = self.remove(key);
        self.recycle(pending);
    }

    /// Free what no queue owns any more, except what the kernel still works on.
    pub fn free_disowned(&mut self) {
        let gone =
            |(_, pending): &(u32, &Pending)| pending.queue.is_none() && pending.phase != Phase::Running;
        let keys: Vec<u32> = self.iter().filter(gone).map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| self.free(key));
    }

    /// Handle for Python: dead once the request is gone.
    pub fn tag(&self, key: u32, queue: u16) -> u64 {
        u64::from(queue) << 56 | u64::from(key & 0xff_ffff) << 32 | u64::from(self.get(key).serial)
    }

    /// The request of a tag, if it still waits for Python.
    pub fn find(&self, tag: u64) -> Option<(u32, u16)> {
        let key = (tag >> 32) as u32 & 0xff_ffff;
        let pending = self.entries.get(key as usize)?.as_ref()?;
        let live = pending.serial == tag as u32 && pending.phase == Phase::Slow;
        live.then_some((key, pending.queue?))
    }

    /// All held requests.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Pending)> {
        self.entries.iter().enumerate().filter_map(|(key, entry)| Some((key as u32, entry.as_deref()?)))
    }

    /// A trace ended or another began: what it followed is followed no more.
    pub fn forget_slots(&mut self) {
        self.entries.iter_mut().flatten().for_each(|pending| pending.slot = None);
    }

    /// The sequence number of the next request.
    pub fn next_sequence(&self) -> u64 {
        self.sequence + 1
    }
}
