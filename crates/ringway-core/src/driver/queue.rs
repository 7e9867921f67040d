//! One queue with its slots: chains that are built once, filled, published, and reaped.
//!
//! A slot is a request that can be in flight: a record (header, response, indirect table) and a data buffer. Its
//! descriptors stay as they are until it changes direction, so a steady load dirties few cache lines. The head of
//! slot *i*'s chain is descriptor *i*, direct or indirect: an id that the device returns names the slot.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::memory::Memory;
use super::request::{Format, Kind, Operation, Place, Request, Segment, RECORD_BYTES};
use super::ring::{Descriptor, Ring, DESCRIPTOR_BYTES, INDIRECT, NEXT, WRITE};
use super::{corrupt, invalid};

/// Buffers start at a page, as those of a guest do.
pub(crate) const DATA_ALIGN: usize = 4096;

/// How the slots of a run are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slots {
    pub format: Format,
    /// Requests in flight for each queue.
    pub depth: u16,
    /// Make responses fail, and buffers differ, until the device writes them.
    pub poison: bool,
}

impl Slots {
    /// Bytes from one data buffer to the next.
    pub(crate) fn data_stride(&self) -> usize {
        (self.format.data_bytes as usize).next_multiple_of(DATA_ALIGN)
    }

    /// Bytes of the records of one queue.
    pub(crate) fn record_bytes(&self) -> usize {
        usize::from(self.depth) * RECORD_BYTES
    }

    /// Bytes of the data buffers of one queue.
    pub(crate) fn data_bytes(&self) -> usize {
        usize::from(self.depth) * self.data_stride()
    }
}

/// How chains are put into the descriptor table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chains {
    /// One descriptor to a table of the slot's own, instead of three in the ring.
    pub indirect: bool,
    /// Guest physical address of the memory's first byte.
    pub guest_base: u64,
}

/// A data buffer in the shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer<'a> {
    memory: &'a Memory,
    offset: usize,
    length: usize,
}

impl Buffer<'_> {
    /// Copy in a whole buffer. Panics when the length is another.
    pub(crate) fn write(&self, words: &[u64]) {
        assert_eq!(size_of_val(words), self.length);
        self.memory.copy_in(self.offset, words);
    }

    /// Copy out a whole buffer. Panics when the length is another.
    pub(crate) fn read(&self, words: &mut [u64]) {
        assert_eq!(size_of_val(words), self.length);
        self.memory.copy_out(self.offset, words);
    }

    /// Set all bytes to one value.
    pub(crate) fn fill(&self, value: u8) {
        self.memory.fill(self.offset, self.length, value);
    }
}

/// What a slot does now.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// When its request was submitted or was due, in ticks.
    started: u64,
    /// For which operation its chain is built.
    chain: Option<Operation>,
    /// Whether the device has it.
    busy: bool,
    /// Whether `started` is the time at which it was due.
    scheduled: bool,
}

/// A request that the device finished.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub slot: u16,
    pub operation: Operation,
    /// When it was submitted, or was due.
    pub started: u64,
    /// The device says that all of it was done.
    pub good: bool,
}

/// One queue.
#[derive(Debug)]
pub(crate) struct Queue {
    number: usize,
    ring: Ring,
    kick: OwnedFd,
    chains: Chains,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Filled, not yet published.
    batch: Vec<u16>,
    layout: Layout,
    /// When the device last answered, or had nothing to answer.
    heard: u64,
}

/// Slots and where they lie.
#[derive(Clone, Copy, Debug)]
struct Layout {
    slots: Slots,
    first: Place,
    stride: usize,
}

impl Layout {
    #[inline(always)]
    fn place(&self, slot: u16) -> Place {
        let slot = usize::from(slot);
        Place { record: self.first.record + slot * RECORD_BYTES, data: self.first.data + slot * self.stride }
    }
}

impl Queue {
    /// A queue without slots.
    pub(crate) fn new(number: usize, ring: Ring, kick: OwnedFd, chains: Chains, kind: Kind) -> Self {
        let format = Format { kind, sector_bytes: 512, data_bytes: 0 };
        let slots = Slots { format, depth: 0, poison: false };
        let layout = Layout { slots, first: Place { record: 0, data: 0 }, stride: 0 };
        let (slots, free, batch) = (Vec::new(), Vec::new(), Vec::new());
        Self { number, ring, kick, chains, slots, free, batch, layout, heard: 0 }
    }

    /// Its place among the driver's queues.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// How many requests fit into the ring at once.
    pub(crate) fn capacity(&self) -> u16 {
        if self.chains.indirect {
            self.ring.size()
        } else {
            self.ring.size() / 3
        }
    }

    /// Make slots at these places; what they lie on must be in the memory. Nothing may be in flight.
    ///
    /// Errors: `InvalidInput` when the ring is too small for them.
    pub(crate) fn lay_out(&mut self, memory: &Memory, slots: Slots, first: Place) -> io::Result<()> {
        let (depth, capacity) = (slots.depth, self.capacity());
        if depth == 0 || depth > capacity {
            return Err(invalid(format!("a depth of {depth}: this ring takes 1 to {capacity} requests")));
        }
        let layout = Layout { slots, first, stride: slots.data_stride() };
        let idle = Slot { started: 0, chain: None, busy: false, scheduled: false };
        self.slots = vec![idle; usize::from(depth)];
        self.free = (0..depth).rev().collect();
        self.batch = Vec::with_capacity(usize::from(depth));
        self.layout = layout;
        for slot in 0..depth {
            let id = (self.number as u64) << 16 | u64::from(slot);
            slots.format.prepare(memory, layout.place(slot), id);
        }
        Ok(())
    }

    /// Slots that can take a request.
    #[inline(always)]
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// Requests that the device has.
    #[inline(always)]
    pub(crate) fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Requests that it can have in flight.
    #[inline(always)]
    pub(crate) fn depth(&self) -> u16 {
        self.layout.slots.depth
    }

    /// Whether the device has something, and has not answered for that many ticks.
    #[inline(always)]
    pub(crate) fn is_silent(&self, now: u64, ticks: u64) -> bool {
        self.outstanding() > 0 && now.saturating_sub(self.heard) > ticks
    }

    /// The slot that [`Queue::fill`] would take.
    #[inline(always)]
    pub(crate) fn next_slot(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// The data buffer of a slot.
    #[inline(always)]
    pub(crate) fn buffer<'a>(&self, memory: &'a Memory, slot: u16) -> Buffer<'a> {
        let length = self.layout.slots.format.data_bytes as usize;
        Buffer { memory, offset: self.layout.place(slot).data, length }
    }

    /// Fill the data buffers of all slots. Nothing may be in flight.
    pub(crate) fn fill_buffers(&self, memory: &Memory, mut word: impl FnMut() -> u64) {
        for slot in 0..self.layout.slots.depth {
            let words: Vec<u64> = (0..self.layout.slots.format.data_bytes / 8).map(|_| word()).collect();
            self.buffer(memory, slot).write(&words);
        }
    }

    /// Forget how long the device has been silent.
    pub(crate) fn start_listening(&mut self, now: u64) {
        self.heard = now;
    }

    /// Put a request into the next free slot. The device sees it after [`Queue::publish`].
    #[inline(always)]
    pub(crate) fn fill(&mut self, memory: &Memory, request: &Request) {
        let Some(number) = self.free.pop() else { return };
        let place = self.layout.place(number);
        let Slots { format, poison, .. } = &self.layout.slots;
        format.encode(memory, place, request);
        if *poison {
            format.poison(memory, place);
        }
        if self.slots[usize::from(number)].chain != Some(request.operation) {
            self.build_chain(memory, number, request.operation);
        }
        let slot = &mut self.slots[usize::from(number)];
        (slot.started, slot.scheduled) = (request.due.unwrap_or(0), request.due.is_some());
        slot.busy = true;
        self.ring.push(memory, number);
        self.batch.push(number);
    }

    /// Show the device what was filled, and kick it if it asks for that.
    ///
    /// Returns whether it was kicked. Errors: the kick's.
    #[inline(always)]
    pub(crate) fn publish(&mut self, memory: &Memory, now: u64) -> io::Result<bool> {
        if self.outstanding() == self.batch.len() {
            self.heard = now;
        }
        for number in self.batch.drain(..) {
            let slot = &mut self.slots[usize::from(number)];
            if !slot.scheduled {
                slot.started = now;
            }
        }
        if !self.ring.publish(memory) {
            return Ok(false);
        }
        self.kick().map(|()| true)
    }

    /// How many completions there are.
    ///
    /// Errors: `InvalidData` when the device claims more than it had.
    #[inline(always)]
    pub(crate) fn arrived(&self, memory: &Memory) -> io::Result<u16> {
        let arrived = self.ring.arrived(memory);
        if usize::from(arrived) > self.outstanding() {
            return Err(self.excess(arrived));
        }
        Ok(arrived)
    }

    /// The `ahead`-th of the completions that arrived; each is to be asked for once, then they are
    /// [`accepted`](Queue::accept).
    ///
    /// Errors: `InvalidData` when the device returns an id that it does not have, or claims to have written more
    /// than it may.
    #[inline(always)]
    pub(crate) fn complete(&mut self, memory: &Memory, ahead: u16) -> io::Result<Completion> {
        let (id, written) = self.ring.peek(memory, ahead);
        let slot = match self.slots.get_mut(id as usize) {
            Some(slot) if slot.busy => slot,
            _ => return Err(self.stranger(id)),
        };
        let Some(operation) = slot.chain else { return Err(self.stranger(id)) };
        let format = &self.layout.slots.format;
        if written > format.writable_bytes(operation) {
            return Err(self.excessive_length(id, written, format.writable_bytes(operation)));
        }
        slot.busy = false;
        let (number, started) = (id as u16, slot.started);
        let good = format.succeeded(memory, self.layout.place(number));
        self.free.push(number);
        Ok(Completion { slot: number, operation, started, good })
    }

    /// Count that many completions as handled.
    #[inline(always)]
    pub(crate) fn accept(&mut self, memory: &Memory, count: u16, now: u64) {
        self.ring.advance(memory, count);
        self.heard = now;
    }

    #[cold]
    fn build_chain(&mut self, memory: &Memory, number: u16, operation: Operation) {
        let place = self.layout.place(number);
        let (segments, count) = self.layout.slots.format.segments(operation, place);
        let segments = &segments[..count];
        if self.chains.indirect {
            self.build_indirect(memory, number, place, segments);
        } else {
            self.build_direct(memory, number, segments);
        }
        self.slots[usize::from(number)].chain = Some(operation);
    }

    fn build_indirect(&self, memory: &Memory, number: u16, place: Place, segments: &[Segment]) {
        for (index, segment) in (0u16..).zip(segments) {
            let last = usize::from(index) + 1 == segments.len();
            let at = place.table() + usize::from(index) * DESCRIPTOR_BYTES;
            self.descriptor(segment, (!last).then_some(index + 1)).store(memory, at);
        }
        let address = self.chains.guest_base + place.table() as u64;
        let length = (segments.len() * DESCRIPTOR_BYTES) as u32;
        let head = Descriptor { address, length, flags: INDIRECT, next: 0 };
        head.store(memory, self.ring.descriptor(usize::from(number)));
    }

    /// The head is descriptor `number`, the others lie behind all heads.
    fn build_direct(&self, memory: &Memory, number: u16, segments: &[Segment]) {
        let depth = self.layout.slots.depth;
        let places = [number, depth + 2 * number, depth + 2 * number + 1];
        for (index, segment) in segments.iter().enumerate() {
            let next = places.get(index + 1).copied().filter(|_| index + 1 < segments.len());
            self.descriptor(segment, next).store(memory, self.ring.descriptor(usize::from(places[index])));
        }
    }

    fn descriptor(&self, segment: &Segment, next: Option<u16>) -> Descriptor {
        let write = if segment.writable { WRITE } else { 0 };
        let flags = write | next.map_or(0, |_| NEXT);
        let address = self.chains.guest_base + segment.offset as u64;
        Descriptor { address, length: segment.length, flags, next: next.unwrap_or(0) }
    }

    #[cold]
    fn kick(&self) -> io::Result<()> {
        let one = 1u64.to_ne_bytes();
        loop {
            // SAFETY: the fd is open as long as self, and the bytes are readable.
            let written = unsafe { libc::write(self.kick.as_raw_fd(), one.as_ptr().cast(), one.len()) };
            let error = match written {
                0.. => return Ok(()),
                _ => io::Error::last_os_error(),
            };
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                // A counter that is full has a kick in it that nobody took yet.
                io::ErrorKind::WouldBlock => return Ok(()),
                _ => return Err(error),
            }
        }
    }

    #[cold]
    fn excess(&self, arrived: u16) -> io::Error {
        let held = self.outstanding();
        corrupt(format!(
            "queue {}: the used index went ahead by {arrived} with {held} requests outstanding",
            self.number
        ))
    }

    #[cold]
    fn stranger(&self, id: u32) -> io::Error {
        corrupt(format!("queue {}: the device returned id {id}, which is not outstanding", self.number))
    }

    #[cold]
    fn excessive_length(&self, id: u32, written: u32, writable: u32) -> io::Error {
        corrupt(format!(
            "queue {}: the device says it wrote {written} bytes to request {id}, which has room for {writable}",
            self.number
        ))
    }
}
