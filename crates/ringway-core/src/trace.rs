//! What a sampled request met on its way, and the bounded ring that carries it to who asked.
//!
//! Times are nanoseconds of [`clock::now_ns`](crate::clock::now_ns), all taken by the request's own worker; zero means
//! that the step was not there, or cannot be known from the host.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

/// What a request asked for, as far as the worker understood it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Operation {
    /// Reads the medium.
    Read,
    /// Writes data.
    Write,
    /// Flush.
    Flush,
    /// Unmap, zero, fill.
    Unmap,
    /// Anything else, and whatever Python decided.
    #[default]
    Other,
    /// A request of the control queue.
    Control,
}

/// How the worker came to look at the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wake {
    /// It was awake and looked by itself: the guest had no need to kick.
    #[default]
    Polling,
    /// It slept, and this queue's kick was among what woke it.
    Kick,
    /// It slept, and something else woke it.
    Other,
}

/// Who carried a request out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// The worker itself, on the spot.
    #[default]
    Worker,
    /// The kernel, through io_uring.
    Kernel,
    /// Python, on the slow path (the last word; it may have gone to the store after that).
    Python,
}

/// How the guest heard of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Notice {
    /// The driver wants no interrupt for this one.
    #[default]
    Suppressed,
    /// The call eventfd was written.
    Signalled,
    /// There is no call eventfd.
    NoCall,
}

/// One request's way. Its times never run backwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Virtqueue.
    pub queue: u16,
    /// Descriptor head.
    pub head: u16,
    /// Target and LUN, if it names any that exist.
    pub address: Option<(u8, u16)>,
    /// What it asked for.
    pub operation: Operation,
    /// First byte of the CDB; of a blk request, its type.
    pub opcode: u8,
    /// Data bytes that it moves from or to the store.
    pub bytes: usize,
    /// How the worker came to see it.
    pub wake: Wake,
    /// Who carried it out.
    pub carrier: Carrier,
    /// It waited for a range lock, or for room on the way to Python.
    pub parked: bool,
    /// How the guest heard of its end.
    pub notice: Notice,
    /// The last look at the ring at which it was not there yet.
    pub absent_ns: u64,
    /// The worker returned from the sleep that its arrival (or something else) ended.
    pub woken_ns: u64,
    /// The first look at which it was there.
    pub seen_ns: u64,
    /// Its chain was taken.
    pub dequeued_ns: u64,
    /// It was first handed to its carrier.
    pub dispatched_ns: u64,
    /// Its carrier was done with it.
    pub completed_ns: u64,
    /// The guest could see it on the used ring.
    pub enqueued_ns: u64,
    /// The call eventfd was written.
    pub notified_ns: u64,
}

/// Samples on their way from one worker to who reads them. When it is full, samples are dropped and counted.
#[derive(Debug)]
pub struct TraceRing {
    samples: ArrayQueue<Sample>,
    dropped: AtomicU64,
}

impl TraceRing {
    /// Room for so many samples, taken now.
    pub fn new(capacity: usize) -> Self {
        TraceRing { samples: ArrayQueue::new(capacity.max(1)), dropped: AtomicU64::new(0) }
    }

    /// Add one, or count that it had no room.
    pub fn push(&self, sample: Sample) {
        if self.samples.push(sample).is_err() {
            self.drop_one();
        }
    }

    /// Take the oldest.
    pub fn pop(&self) -> Option<Sample> {
        self.samples.pop()
    }

    /// How many had no room so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn drop_one(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }
}

/// What to trace.
#[derive(Clone, Copy, Debug)]
pub struct TraceOptions {
    /// One of so many requests of a queue; one: all.
    pub interval: u32,
    /// Samples that wait to be read, for each worker.
    pub capacity: usize,
    /// This queue alone.
    pub queue: Option<u16>,
    /// This LUN alone.
    pub lun: Option<(u8, u16)>,
}

/// A sampled request's place while it is under way.
pub type Slot = NonZeroU32;

/// Sampled requests of one worker at a time; more are dropped and counted.
const OPEN: u32 = 1024;

/// A worker's side of a trace.
#[derive(Debug)]
pub struct Tracer {
    ring: Arc<TraceRing>,
    lun: Option<(u8, u16)>,
    open: Vec<Sample>,
    free: Vec<Slot>,
    /// The last moment before a look at all rings that found nothing new; zero: there was none yet.
    pub looked_ns: u64,
    /// When the turn began.
    pub turned_ns: u64,
    /// When a sleep ended, until the next turn begins.
    pub slept_until_ns: u64,
    /// When the sleep right before this turn ended; zero: there was none.
    pub woken_ns: u64,
}

impl Tracer {
    /// Everything that tracing needs is allocated here.
    pub fn new(ring: Arc<TraceRing>, lun: Option<(u8, u16)>) -> Self {
        let open = vec![Sample::default(); OPEN as usize];
        let free = (1..=OPEN).rev().filter_map(Slot::new).collect();
        Tracer { ring, lun, open, free, looked_ns: 0, turned_ns: 0, slept_until_ns: 0, woken_ns: 0 }
    }

    /// A turn of the loop begins, in which every ring is looked at.
    pub fn begin_turn(&mut self, now: u64) {
        self.looked_ns = self.looked_ns.max(self.turned_ns);
        self.turned_ns = now;
        self.woken_ns = std::mem::take(&mut self.slept_until_ns);
    }

    /// Follow a request; none when too many are followed already.
    pub fn begin(&mut self, sample: Sample) -> Option<Slot> {
        let slot = self.free.pop();
        match slot {
            Some(slot) => *self.get(slot) = sample,
            None => self.ring.drop_one(),
        }
        slot
    }

    /// What is known of a followed request so far.
    pub fn get(&mut self, slot: Slot) -> &mut Sample {
        &mut self.open[slot.get() as usize - 1]
    }

    /// A request went its whole way.
    pub fn finish(&mut self, slot: Slot) {
        let sample = *self.get(slot);
        if self.lun.is_none_or(|lun| sample.address == Some(lun)) {
            self.ring.push(sample);
        }
        self.free.push(slot);
    }

    /// A request was given up.
    pub fn forget(&mut self, slot: Slot) {
        self.free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(head: u16) -> Sample {
        Sample { head, ..Sample::default() }
    }

    #[test]
    fn a_full_ring_drops_what_is_new_and_counts_it() {
        let ring = TraceRing::new(2);
        (1..=5).for_each(|head| ring.push(sample(head)));
        assert_eq!(ring.dropped(), 3);
        assert_eq!((ring.pop().map(|s| s.head), ring.pop().map(|s| s.head)), (Some(1), Some(2)));
        ring.push(sample(6));
        assert_eq!((ring.pop().map(|s| s.head), ring.pop()), (Some(6), None));
    }

    #[test]
    fn every_slot_is_used_again_and_too_many_are_counted() {
        let ring = Arc::new(TraceRing::new(8));
        let mut tracer = Tracer::new(ring.clone(), None);
        let slots: Vec<Slot> = (0..OPEN).map(|_| tracer.begin(sample(1)).unwrap()).collect();
        assert_eq!((tracer.begin(sample(2)), ring.dropped()), (None, 1));
        slots.iter().for_each(|slot| tracer.forget(*slot));
        assert_eq!(ring.pop(), None, "what was given up is not told");
        let again: Vec<Slot> = (0..OPEN).map(|_| tracer.begin(sample(3)).unwrap()).collect();
        tracer.finish(again[0]);
        assert_eq!(ring.pop().map(|sample| sample.head), Some(3));
    }

    #[test]
    fn another_luns_samples_are_left_out() {
        let ring = Arc::new(TraceRing::new(8));
        let mut tracer = Tracer::new(ring.clone(), Some((0, 7)));
        for address in [None, Some((0, 1)), Some((0, 7))] {
            let slot = tracer.begin(Sample { address, ..Sample::default() }).unwrap();
            tracer.finish(slot);
        }
        assert_eq!(ring.pop().and_then(|sample| sample.address), Some((0, 7)));
        assert_eq!((ring.pop(), ring.dropped()), (None, 0));
    }

    #[test]
    fn a_look_counts_from_the_turn_before_or_from_later_spinning() {
        let mut tracer = Tracer::new(Arc::new(TraceRing::new(1)), None);
        tracer.begin_turn(100);
        assert_eq!(tracer.looked_ns, 0, "nothing was looked at before the trace began");
        tracer.begin_turn(200);
        assert_eq!(tracer.looked_ns, 100);
        tracer.looked_ns = 250;
        tracer.begin_turn(300);
        assert_eq!(tracer.looked_ns, 250);
    }

    #[test]
    fn a_sleep_wakes_for_one_turn() {
        let mut tracer = Tracer::new(Arc::new(TraceRing::new(1)), None);
        tracer.slept_until_ns = 90;
        tracer.begin_turn(100);
        assert_eq!(tracer.woken_ns, 90);
        tracer.begin_turn(200);
        assert_eq!(tracer.woken_ns, 0);
    }
}
