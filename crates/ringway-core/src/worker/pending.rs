//! Requests that a worker holds: in the kernel, in Python, or parked.

use std::sync::Arc;

use crate::engine::Job;
use crate::memory::MemoryMap;
use crate::view::Lun;
use crate::vring::Chain;

/// Where a held request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its I/O is in the kernel.
    Running,
    /// Python has it.
    Slow,
    /// It waits for a range lock or for room in the slow ring.
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
    pub sequence: u64,
    pub serial: u32,
    pub generation: u64,
    pub past_gate: bool,
    /// Parked because the slow ring was full.
    pub wants_python: bool,
    /// The response to give instead of success when the kernel cancelled it.
    pub cancelled: Option<u8>,
    pub lun: Option<Arc<Lun>>,
    /// Keeps the spans mapped.
    pub memory: Arc<MemoryMap>,
    pub job: Job,
    pub class: Class,
    pub range: (u64, u64),
    pub bytes: usize,
    pub failure: crate::scsi::Failure,
}

/// All held requests of a worker. Boxes: the kernel keeps pointers into them.
#[derive(Default)]
pub struct Slab {
    entries: Vec<Option<Box<Pending>>>,
    free: Vec<u32>,
    sequence: u64,
    serial: u32,
}

impl Slab {
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
                (self.entries.len() - 1) as u32
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

    /// Let go.
    pub fn remove(&mut self, key: u32) -> Box<Pending> {
        self.free.push(key);
        self.entries[key as usize].take().expect("a live key")
    }

    /// Let go and forget.
    pub fn free(&mut self, key: u32) {
        drop(self.remove(key));
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

    /// The sequence number of the next request.
    pub fn next_sequence(&self) -> u64 {
        self.sequence + 1
    }
}
