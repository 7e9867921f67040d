//! The split virtqueue, on raw pointers.
//!
//! Spec: virtio 1.3, 2.7. The rings are the guest's: every field is read once, into a local, and judged there.
//! Nothing here allocates once a chain's vector has grown, and nothing here knows what a request means.

use std::sync::atomic::{fence, AtomicU16, AtomicU32, AtomicU64, Ordering::*};

use crate::memory::{IoVec, MemoryMap};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NO_NOTIFY: u16 = 1;
const NO_INTERRUPT: u16 = 1;
/// Descriptors of one indirect table at most.
pub const MAX_INDIRECT: usize = 1024;

/// Bytes of one chain at most. Drivers stay far below (QEMU's limit for SCSI is 32 MiB); a thousand descriptors over
/// the same gigabyte would keep a worker copying for minutes.
pub const MAX_CHAIN_BYTES: usize = 64 << 20;

/// Why a ring cannot be served any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The available index ran ahead by more than the ring holds.
    #[error("available index jumped by {0}")]
    IndexJump(u16),
    /// A head or next index outside of the table.
    #[error("descriptor index {0} is outside of the table")]
    BadIndex(u16),
    /// A chain longer than its table: it loops.
    #[error("the chain at head {0} loops")]
    Loop(u16),
    /// Bytes outside of guest memory.
    #[error("{1} bytes at guest address {0:#x} are outside of guest memory")]
    Unmapped(u64, u32),
    /// A readable descriptor behind a writable one.
    #[error("a readable descriptor follows a writable one at head {0}")]
    Order(u16),
    /// An indirect table of bad size, nested, or chained.
    #[error("malformed indirect table at head {0}")]
    Indirect(u16),
    /// More than [`MAX_CHAIN_BYTES`].
    #[error("the chain at head {0} is larger than 64 MiB")]
    TooLarge(u16),
    /// A head that is still in flight.
    #[error("head {0} was made available twice")]
    Duplicate(u16),
}

/// Where a ring lies: host pointers, translated once.
#[derive(Clone, Copy, Debug)]
pub struct RingAddresses {
    /// Descriptor table, 16 bytes an entry, 16-aligned.
    pub descriptors: *mut u8,
    /// Available ring, 2-aligned.
    pub available: *mut u8,
    /// Used ring, 4-aligned.
    pub used: *mut u8,
}

/// A popped chain: host spans, the readable ones first.
#[derive(Debug, Default)]
pub struct Chain {
    /// Host spans.
    pub spans: Vec<IoVec>,
    /// How many of them the device may only read.
    pub readable: usize,
    /// Bytes in the readable ones.
    pub readable_bytes: usize,
    /// Bytes in the writable ones.
    pub writable_bytes: usize,
}

// SAFETY: the spans are host pointers into a memory map that its users keep alive beside the chain.
unsafe impl Send for Chain {}

impl Chain {
    /// Spans that the guest filled.
    #[inline(always)]
    pub fn readable(&self) -> &[IoVec] {
        &self.spans[..self.readable]
    }

    /// Spans for the device to fill.
    #[inline(always)]
    pub fn writable(&self) -> &[IoVec] {
        &self.spans[self.readable..]
    }

    fn clear(&mut self) {
        self.spans.clear();
        self.readable = 0;
        self.readable_bytes = 0;
        self.writable_bytes = 0;
    }
}

#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// One copy of a guest's descriptor.
    ///
    /// # Safety
    /// `at` is 8-aligned and 16 bytes of mapped memory.
    #[inline(always)]
    unsafe fn read(at: *mut u8) -> Self {
        // SAFETY: the caller's promise; atomics because the guest may write at any time.
        let (address, rest) = unsafe {
            let at = at.cast::<u64>();
            (AtomicU64::from_ptr(at).load(Relaxed), AtomicU64::from_ptr(at.add(1)).load(Relaxed))
        };
        let rest = u64::from_le(rest);
        Descriptor {
            address: u64::from_le(address),
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }
}

/// A split virtqueue, device side.
#[derive(Debug)]
pub struct Vring {
    at: RingAddresses,
    size: u16,
    event_idx: bool,
    next_available: u16,
    next_used: u16,
    published: u16,
    /// `used.idx` at the last interrupt decision; none after a start, when the guest must be signalled.
    signalled: Option<u16>,
    hint: usize,
}

// SAFETY: the pointers lead into guest memory that the queue keeps mapped while it holds the ring.
unsafe impl Send for Vring {}

impl Vring {
    /// A ring of `size` (a power of two up to 32768) that goes on at `next_available`.
    ///
    /// # Safety
    /// The addresses are mapped and aligned as [`RingAddresses`] says, for `size` entries with their event fields,
    /// and stay so for the life of the ring (or until [`Vring::relocate`]).
    pub unsafe fn new(at: RingAddresses, size: u16, next_available: u16, event_idx: bool) -> Self {
        assert!(size.is_power_of_two() && size <= 32768);
        let mut ring = Vring {
            at,
            size,
            event_idx,
            next_available,
            next_used: 0,
            published: 0,
            signalled: None,
            hint: 0,
        };
        ring.next_used = ring.used_index();
        ring.published = ring.next_used;
        ring
    }

    /// Memory moved: same ring, other pointers.
    ///
    /// # Safety
    /// As for [`Vring::new`].
    pub unsafe fn relocate(&mut self, at: RingAddresses) {
        self.at = at;
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The index of the next chain to pop.
    pub fn next_available(&self) -> u16 {
        self.next_available
    }

    /// Go on from another index (recovery).
    pub fn set_next_available(&mut self, index: u16) {
        self.next_available = index;
    }

    /// The next used index, published or not.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    #[inline(always)]
    fn available_u16(&self, index: usize) -> &AtomicU16 {
        // SAFETY: index ≤ 2 + size: flags, idx, ring[size], used_event; see `new`.
        unsafe { AtomicU16::from_ptr(self.at.available.cast::<u16>().add(index)) }
    }

    #[inline(always)]
    fn used_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: offset ≤ 4 + 8 × size: flags, idx, ring[size], avail_event; see `new`.
        unsafe { AtomicU16::from_ptr(self.at.used.add(offset).cast::<u16>()) }
    }

    fn used_index(&self) -> u16 {
        u16::from_le(self.used_u16(2).load(Acquire))
    }

    /// How many chains wait.
    #[inline(always)]
    pub fn available(&self) -> Result<u16, RingError> {
        let index = u16::from_le(self.available_u16(1).load(Acquire));
        let count = index.wrapping_sub(self.next_available);
        if count > self.size {
            return Err(RingError::IndexJump(count));
        }
        Ok(count)
    }

    /// Pop the next chain; only after [`Vring::available`] said that there is one.
    ///
    /// :returns: its head; the chain's spans are in `chain`.
    #[inline(always)]
    pub fn pop(&mut self, memory: &MemoryMap, chain: &mut Chain) -> Result<u16, RingError> {
        let slot = self.next_available & (self.size - 1);
        let head = u16::from_le(self.available_u16(2 + slot as usize).load(Relaxed));
        self.read_chain(head, memory, chain)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(head)
    }

    /// Read the chain at a head that was popped before (recovery).
    #[inline(always)]
    pub fn read_chain(&mut self, head: u16, memory: &MemoryMap, chain: &mut Chain) -> Result<(), RingError> {
        chain.clear();
        self.read_descriptors(head, memory, chain)?;
        match chain.readable_bytes + chain.writable_bytes > MAX_CHAIN_BYTES {
            true => Err(RingError::TooLarge(head)),
            false => Ok(()),
        }
    }

    #[inline(always)]
    fn read_descriptors(
        &mut self,
        head: u16,
        memory: &MemoryMap,
        chain: &mut Chain,
    ) -> Result<(), RingError> {
        let mut index = head;
        for _ in 0..self.size {
            if index >= self.size {
                return Err(RingError::BadIndex(index));
            }
            // SAFETY: index < size, and the table is 16-aligned.
            let descriptor = unsafe { Descriptor::read(self.at.descriptors.add(16 * index as usize)) };
            if descriptor.flags & INDIRECT != 0 {
                return self.read_indirect(head, descriptor, memory, chain);
            }
            self.add(head, descriptor, memory, chain)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(RingError::Loop(head))
    }

    #[inline(always)]
    fn read_indirect(
        &mut self,
        head: u16,
        table: Descriptor,
        memory: &MemoryMap,
        chain: &mut Chain,
    ) -> Result<(), RingError> {
        let count = table.len as usize / 16;
        if table.flags & NEXT != 0 || !table.len.is_multiple_of(16) || !(1..=MAX_INDIRECT).contains(&count) {
            return Err(RingError::Indirect(head));
        }
        let found = memory.translate(table.address, &mut self.hint);
        let (base, room) = found.ok_or(RingError::Unmapped(table.address, table.len))?;
        if room < u64::from(table.len) || !(base as usize).is_multiple_of(8) {
            return Err(RingError::Indirect(head));
        }
        let mut index = 0;
        for _ in 0..count {
            // SAFETY: index < count, the table lies in one region, 8-aligned.
            let descriptor = unsafe { Descriptor::read(base.add(16 * index)) };
            if descriptor.flags & INDIRECT != 0 {
                return Err(RingError::Indirect(head));
            }
            self.add(head, descriptor, memory, chain)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next as usize;
            if index >= count {
                return Err(RingError::BadIndex(descriptor.next));
            }
        }
        Err(RingError::Loop(head))
    }

    #[inline(always)]
    fn add(
        &mut self,
        head: u16,
        descriptor: Descriptor,
        memory: &MemoryMap,
        chain: &mut Chain,
    ) -> Result<(), RingError> {
        if !memory.append(descriptor.address, descriptor.len, &mut self.hint, &mut chain.spans) {
            return Err(RingError::Unmapped(descriptor.address, descriptor.len));
        }
        if descriptor.flags & WRITE != 0 {
            chain.writable_bytes += descriptor.len as usize;
        } else if chain.writable_bytes > 0 {
            return Err(RingError::Order(head));
        } else {
            chain.readable = chain.spans.len();
            chain.readable_bytes += descriptor.len as usize;
        }
        Ok(())
    }

    /// Put a finished chain on the used ring; the guest sees it after [`Vring::publish`].
    #[inline(always)]
    pub fn push_used(&mut self, head: u16, len: u32) {
        let slot = (self.next_used & (self.size - 1)) as usize;
        // SAFETY: slot < size; an element is 4-aligned (the used ring is).
        unsafe {
            let element = self.at.used.add(4 + 8 * slot).cast::<u32>();
            AtomicU32::from_ptr(element).store(u32::from(head).to_le(), Relaxed);
            AtomicU32::from_ptr(element.add(1)).store(len.to_le(), Relaxed);
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Whether something was pushed and not published.
    #[inline(always)]
    pub fn has_unpublished(&self) -> bool {
        self.next_used != self.published
    }

    /// Show the guest all that was pushed: one store of `used.idx`.
    ///
    /// :returns: offset and length in bytes of what was written of the used ring's elements (they may wrap: then all),
    /// for the dirty log.
    #[inline(always)]
    pub fn publish(&mut self) -> (u64, u64) {
        let first = u64::from(self.published & (self.size - 1));
        let count = u64::from(self.next_used.wrapping_sub(self.published));
        self.used_u16(2).store(self.next_used.to_le(), Release);
        self.published = self.next_used;
        match first + count <= u64::from(self.size) {
            true => (4 + 8 * first, 8 * count),
            false => (4, 8 * u64::from(self.size)),
        }
    }

    /// Bytes of the used ring with its event field.
    pub fn used_bytes(size: u16) -> u64 {
        6 + 8 * u64::from(size)
    }

    /// Bytes of the available ring with its event field.
    pub fn available_bytes(size: u16) -> u64 {
        6 + 2 * u64::from(size)
    }

    /// Whether the guest wants an interrupt for what was published since it was asked last.
    ///
    /// Spec: virtio 1.3, 2.7.7.
    #[inline(always)]
    pub fn wants_signal(&mut self) -> bool {
        fence(SeqCst);
        let (old, new) = (self.signalled.replace(self.published), self.published);
        if !self.event_idx {
            return u16::from_le(self.available_u16(0).load(Relaxed)) & NO_INTERRUPT == 0;
        }
        let event = u16::from_le(self.available_u16(2 + self.size as usize).load(Relaxed));
        old.is_none_or(|old| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    /// Tell the guest not to kick. With EVENT_IDX a stale event index says it already.
    ///
    /// :returns: whether the used ring's flags were written.
    #[inline(always)]
    pub fn suppress_kicks(&mut self) -> bool {
        if !self.event_idx {
            self.used_u16(0).store(NO_NOTIFY.to_le(), Relaxed);
        }
        !self.event_idx
    }

    /// Ask for a kick at the next chain, then look once more.
    ///
    /// :returns: whether a chain slipped in before the guest could know.
    #[inline(always)]
    pub fn ask_for_kick(&mut self) -> Result<bool, RingError> {
        if self.event_idx {
            let event = self.used_u16(4 + 8 * self.size as usize);
            event.store(self.next_available.to_le(), Relaxed);
        } else {
            self.used_u16(0).store(0, Relaxed);
        }
        fence(SeqCst);
        self.available().map(|count| count > 0)
    }

    /// EVENT_IDX was negotiated or not.
    pub fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }
}
