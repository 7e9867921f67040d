//! The driver's half of a split virtqueue.
//!
//! Spec: virtio 1.3, 2.7 "Split Virtqueues". The device is believed in nothing: indices and ids that it writes
//! are checked by the caller ([`super::queue`]) before they select anything.

use std::io;
use std::sync::atomic::{fence, Ordering};

use super::invalid;
use super::memory::Memory;

/// The buffer goes on in the descriptor `next`.
pub(crate) const NEXT: u16 = 1;
/// The device writes to the buffer.
pub(crate) const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(crate) const INDIRECT: u16 = 4;
/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR_BYTES: usize = 16;

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;
/// After how many completions `used_event` is moved along. It must not come within 2^16 of the used index.
const EVENT_REFRESH: u16 = 1 << 14;

/// Where the three parts of a ring lie, as offsets in the memory.
#[derive(Clone, Copy, Debug)]
pub struct RingOffsets {
    /// The descriptor table: 16 bytes an entry, 16-byte aligned.
    pub descriptors: usize,
    /// The available ring: 6 + 2 bytes an entry, 2-byte aligned.
    pub available: usize,
    /// The used ring: 6 + 8 bytes an entry, 4-byte aligned.
    pub used: usize,
}

/// One buffer as the device is told of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    /// Write it into a table at `offset`.
    pub(crate) fn store(self, memory: &Memory, offset: usize) {
        memory.store(offset, self.address);
        memory.store(offset + 8, self.length);
        memory.store(offset + 12, self.flags);
        memory.store(offset + 14, self.next);
    }
}

/// One ring, with the driver's private copies of its indices.
#[derive(Debug)]
pub(crate) struct Ring {
    at: RingOffsets,
    size: u16,
    event_idx: bool,
    /// Next available index to fill; ahead of `published` within a batch.
    available: u16,
    /// The available index that the device sees.
    published: u16,
    /// Next used index to look at.
    used: u16,
    /// The used index at which `used_event` was last moved.
    quiet_since: u16,
}

impl Ring {
    /// Take over a ring that rests, with its indices as they are in memory, and ask for no interrupts.
    ///
    /// Errors: `InvalidInput` when a part lies outside of the memory or is not aligned, when the size is no power
    /// of two up to 32768, or when the device still holds requests.
    pub(crate) fn new(memory: &Memory, at: RingOffsets, size: u16, event_idx: bool) -> io::Result<Self> {
        check_place(memory, at, size)?;
        let index = |offset| u16::from_le(memory.index(offset).load(Ordering::Acquire));
        let (available, used) = (index(at.available + 2), index(at.used + 2));
        if available != used {
            let held = available.wrapping_sub(used);
            return Err(invalid(format!("the ring is in use: {held} requests outstanding")));
        }
        let (published, quiet_since) = (available, used);
        let mut ring = Self { at, size, event_idx, available, published, used, quiet_since };
        memory.store(at.available, if event_idx { 0 } else { NO_INTERRUPT });
        ring.stay_quiet(memory);
        Ok(ring)
    }

    /// Entries of the ring.
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Offset of an entry of the descriptor table.
    pub(crate) fn descriptor(&self, index: usize) -> usize {
        self.at.descriptors + index * DESCRIPTOR_BYTES
    }

    /// Put a chain into the available ring; the device sees it after [`Ring::publish`].
    #[inline(always)]
    pub(crate) fn push(&mut self, memory: &Memory, head: u16) {
        let entry = usize::from(self.available & (self.size - 1));
        memory.store(self.at.available + 4 + 2 * entry, head);
        self.available = self.available.wrapping_add(1);
    }

    /// Show the device what was pushed.
    ///
    /// Returns whether it wants a kick. Spec: virtio 1.3, 2.7.10 "Available Buffer Notification Suppression".
    #[inline(always)]
    pub(crate) fn publish(&mut self, memory: &Memory) -> bool {
        let before = std::mem::replace(&mut self.published, self.available);
        memory.index(self.at.available + 2).store(self.available.to_le(), Ordering::Release);
        // The device arms its event and then looks at our index; we do it the other way round. Without the full
        // barrier both could miss each other.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = memory.load::<u16>(self.at.used + 4 + 8 * usize::from(self.size));
            event_passed(event, self.available, before)
        } else {
            memory.load::<u16>(self.at.used) & NO_NOTIFY == 0
        }
    }

    /// How many completions the device claims to have added.
    #[inline(always)]
    pub(crate) fn arrived(&self, memory: &Memory) -> u16 {
        let index = memory.index(self.at.used + 2).load(Ordering::Acquire);
        u16::from_le(index).wrapping_sub(self.used)
    }

    /// The `ahead`-th of the completions that arrived: chain id and bytes written, both as the device claims.
    #[inline(always)]
    pub(crate) fn peek(&self, memory: &Memory, ahead: u16) -> (u32, u32) {
        let entry = usize::from(self.used.wrapping_add(ahead) & (self.size - 1));
        let element = self.at.used + 4 + 8 * entry;
        (memory.load(element), memory.load(element + 4))
    }

    /// Count completions as seen.
    #[inline(always)]
    pub(crate) fn advance(&mut self, memory: &Memory, count: u16) {
        self.used = self.used.wrapping_add(count);
        if self.event_idx && self.used.wrapping_sub(self.quiet_since) >= EVENT_REFRESH {
            self.stay_quiet(memory);
        }
    }

    /// Put `used_event` just behind: the used index passes it again only after a whole round of 2^16.
    fn stay_quiet(&mut self, memory: &Memory) {
        if self.event_idx {
            let event = self.used.wrapping_sub(1);
            memory.store(self.at.available + 4 + 2 * usize::from(self.size), event);
            self.quiet_since = self.used;
        }
    }
}

/// Whether an index that went from `before` to `now` passed `event`, in either direction of notification.
///
/// Spec: virtio 1.3, 2.7.7 and 2.7.10.
#[inline(always)]
fn event_passed(event: u16, now: u16, before: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

fn check_place(memory: &Memory, at: RingOffsets, size: u16) -> io::Result<()> {
    if !size.is_power_of_two() || size > 1 << 15 {
        return Err(invalid(format!("a queue of {size} entries: not a power of two up to 32768")));
    }
    let entries = usize::from(size);
    let parts = [
        ("descriptor table", at.descriptors, 16, 16 * entries),
        ("available ring", at.available, 2, 6 + 2 * entries),
        ("used ring", at.used, 4, 6 + 8 * entries),
    ];
    for (name, offset, align, length) in parts {
        if !offset.is_multiple_of(align) || !memory.contains(offset, length) {
            return Err(invalid(format!(
                "{name} at offset {offset:#x}: misaligned or outside of the memory"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::tests::setup::memfd;
    use std::os::fd::AsFd;

    const AT: RingOffsets = RingOffsets { descriptors: 0, available: 1024, used: 2048 };

    fn memory() -> Memory {
        Memory::map(memfd(8192).as_fd()).unwrap()
    }

    #[test]
    fn an_event_is_passed_once_and_across_the_wrap() {
        assert!(event_passed(4, 5, 4));
        assert!(!event_passed(4, 6, 5));
        assert!(!event_passed(5, 5, 4));
        assert!(event_passed(0xffff, 1, 0xfffe));
        assert!(!event_passed(3, 3, 3));
    }

    #[test]
    fn the_used_event_stays_out_of_reach_for_ever() {
        let memory = memory();
        let mut ring = Ring::new(&memory, AT, 64, true).unwrap();
        for count in (1..64).cycle().take(20_000) {
            let event = memory.load(AT.available + 4 + 2 * 64);
            let after = ring.used.wrapping_add(count);
            assert!(!event_passed(event, after, ring.used), "{} {count}", ring.used);
            ring.advance(&memory, count);
        }
    }

    #[test]
    fn without_event_idx_a_flag_asks_for_no_interrupts_and_a_flag_suppresses_kicks() {
        let memory = memory();
        let mut ring = Ring::new(&memory, AT, 64, false).unwrap();
        assert_eq!(memory.load::<u16>(AT.available), NO_INTERRUPT);
        ring.push(&memory, 0);
        assert!(ring.publish(&memory));
        memory.store(AT.used, NO_NOTIFY);
        ring.push(&memory, 1);
        assert!(!ring.publish(&memory));
    }

    #[test]
    fn with_event_idx_a_kick_is_due_when_the_batch_passes_the_event() {
        let memory = memory();
        let mut ring = Ring::new(&memory, AT, 64, true).unwrap();
        let mut publish = |event: u16, count| {
            memory.store(AT.used + 4 + 8 * 64, event);
            (0..count).for_each(|head| ring.push(&memory, head));
            ring.publish(&memory)
        };
        assert!(publish(0, 1));
        assert!(!publish(0, 5));
        assert!(publish(8, 3));
        assert!(!publish(100, 2));
    }

    #[test]
    fn a_ring_that_is_not_where_it_may_be_is_refused() {
        let memory = memory();
        let refused = |at, size| Ring::new(&memory, at, size, true).unwrap_err().kind();
        let wrong = [
            (RingOffsets { descriptors: 8, ..AT }, 64),
            (RingOffsets { available: 1025, ..AT }, 64),
            (RingOffsets { used: 2050, ..AT }, 64),
            (RingOffsets { used: 8192 - 4, ..AT }, 64),
            (RingOffsets { descriptors: usize::MAX - 15, ..AT }, 64),
            (AT, 0),
            (AT, 48),
            (AT, 1 << 15),
        ];
        for (at, size) in wrong {
            assert_eq!(refused(at, size), io::ErrorKind::InvalidInput, "{at:?} {size}");
        }
    }

    #[test]
    fn a_ring_in_use_is_refused() {
        let memory = memory();
        memory.store(AT.available + 2, 3u16);
        let error = Ring::new(&memory, AT, 64, true).unwrap_err();
        assert!(error.to_string().contains("3 requests outstanding"), "{error}");
    }
}
