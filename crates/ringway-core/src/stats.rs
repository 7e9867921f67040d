//! Counters and latency histograms. Each is written by one worker and read by anybody: no locked instruction.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const FIRST: u32 = 7;
const LAST: u32 = 36;
const SUB: usize = 8;
/// Buckets of a latency histogram: one below 128 ns, eight a power of two up to 2^36 ns, one above.
pub const BUCKETS: usize = 1 + (LAST - FIRST) as usize * SUB + 1;

/// The bucket that a latency falls into.
#[inline(always)]
pub fn bucket_of(ns: u64) -> usize {
    if ns < 1 << FIRST {
        return 0;
    }
    let exponent = ns.ilog2();
    if exponent >= LAST {
        return BUCKETS - 1;
    }
    1 + (exponent - FIRST) as usize * SUB + ((ns >> (exponent - 3)) & 7) as usize
}

/// Exclusive upper bounds of the buckets, in nanoseconds; the last is `u64::MAX`.
pub fn bounds() -> Vec<u64> {
    let inner = (FIRST..LAST).flat_map(|e| (1..=SUB as u64).map(move |s| (1 << e) + (s << (e - 3))));
    std::iter::once(1 << FIRST).chain(inner).chain(std::iter::once(u64::MAX)).collect()
}

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Add; only the owning worker may.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Set; only the owning worker may.
    #[inline(always)]
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// Read, from any thread.
    #[inline(always)]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counts of latencies by bucket, one writer.
#[derive(Debug)]
pub struct LatencyHistogram([Counter; BUCKETS]);

impl Default for LatencyHistogram {
    fn default() -> Self {
        LatencyHistogram(std::array::from_fn(|_| Counter::default()))
    }
}

impl LatencyHistogram {
    /// Count one latency.
    #[inline(always)]
    pub fn record(&self, ns: u64) {
        self.0[bucket_of(ns)].add(1);
    }

    /// A copy of the counts.
    pub fn counts(&self) -> Vec<u64> {
        self.0.iter().map(Counter::get).collect()
    }
}

/// What one queue did with one LUN.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct LunCounters {
    /// Commands that read the medium.
    pub reads: Counter,
    /// Commands that wrote data.
    pub writes: Counter,
    /// Cache flushes.
    pub flushes: Counter,
    /// UNMAP, WRITE SAME, discard, write-zeroes.
    pub unmaps: Counter,
    /// All else, the slow path included.
    pub other: Counter,
    /// Commands that ended with another status than GOOD.
    pub errors: Counter,
    /// Bytes read.
    pub read_bytes: Counter,
    /// Bytes written.
    pub write_bytes: Counter,
    /// Popped to completed.
    pub read_latency: LatencyHistogram,
    /// Popped to completed.
    pub write_latency: LatencyHistogram,
}

/// What one queue did.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct QueueCounters {
    /// Kicks that arrived.
    pub kicks: Counter,
    /// Interrupts sent.
    pub signals: Counter,
    /// Batches published.
    pub batches: Counter,
    /// Requests completed.
    pub requests: Counter,
    /// Requests that Python was asked about.
    pub slow: Counter,
    /// Requests held now.
    pub in_flight: Counter,
    /// 1 while the ring is served.
    pub running: Counter,
}

/// What one worker did.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Kernel thread id.
    pub thread: Counter,
    /// Times it slept.
    pub sleeps: Counter,
    /// Times it spun without work.
    pub spins: Counter,
    /// Times an alarm woke it for a request that was due.
    pub alarms: Counter,
    /// Requests, or batches of them, that it was awake for.
    pub foreseen: Counter,
    /// Turns of the loop.
    pub loops: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_enclose_their_buckets() {
        let bounds = bounds();
        assert_eq!(bounds.len(), BUCKETS);
        assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
        for ns in (0..4096).chain([1 << 20, (1 << 36) - 1, 1 << 36, u64::MAX - 1]) {
            let bucket = bucket_of(ns);
            assert!(ns < bounds[bucket], "{ns}");
            assert!(bucket == 0 || ns >= bounds[bucket - 1], "{ns}");
        }
    }
}
