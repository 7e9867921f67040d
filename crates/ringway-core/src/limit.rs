//! What a LUN may do at most: a virtual schedule of its requests, and one of their bytes.
//!
//! Each request takes the next free time of both schedules when it comes, and goes when the later one is there. Time
//! that nobody took is kept for a while, the burst: so a worker that wakes late costs the guest nothing. It is the
//! virtual scheduling algorithm of ITU-T I.371 (2004), annex A.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};
use std::sync::Mutex;

/// The least burst: wake-ups are late by less than this, on a host that is not overloaded.
pub const LEAST_BURST_NS: u64 = 10_000_000;

/// Limits; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Requests in a second.
    pub iops: u64,
    /// Bytes in a second.
    pub bytes_per_s: u64,
    /// Unused time that is kept.
    pub burst_ns: u64,
}

/// When a request may go. One of other rates than today's is void.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permit {
    /// On the workers' clock.
    pub due_ns: u64,
    epoch: u32,
}

/// The limit of one LUN, shared by its workers.
#[derive(Debug, Default)]
pub struct Limit {
    on: AtomicBool,
    epoch: AtomicU32,
    schedule: Mutex<Schedule>,
}

/// Times are nanoseconds as f64: a hundred days are exact to one.
#[derive(Debug, Default)]
struct Schedule {
    rates: Rates,
    next_request: f64,
    next_byte: f64,
}

impl Limit {
    /// Whether there is one: all that an unlimited LUN pays for.
    #[inline(always)]
    pub fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// Change it. What waits has to ask again.
    pub fn set(&self, rates: Rates) {
        let mut schedule = self.schedule.lock().unwrap();
        if schedule.rates != rates {
            *schedule = Schedule { rates, ..Schedule::default() };
            self.epoch.fetch_add(1, Release);
        }
        self.on.store(rates.iops != 0 || rates.bytes_per_s != 0, Release);
    }

    /// Whether a permit was given under today's rates.
    pub fn is_valid(&self, permit: Permit) -> bool {
        permit.epoch == self.epoch.load(Acquire)
    }

    /// Take the next free time for a request of so many bytes.
    pub fn reserve(&self, now_ns: u64, bytes: usize) -> Permit {
        let mut schedule = self.schedule.lock().unwrap();
        // under the lock: the rates and the epoch belong together
        Permit { due_ns: schedule.take(now_ns, bytes), epoch: self.epoch.load(Acquire) }
    }
}

impl Schedule {
    fn take(&mut self, now_ns: u64, bytes: usize) -> u64 {
        let oldest = now_ns.saturating_sub(self.rates.burst_ns.max(LEAST_BURST_NS)) as f64;
        let request = take(&mut self.next_request, oldest, self.rates.iops, 1.0);
        let byte = take(&mut self.next_byte, oldest, self.rates.bytes_per_s, bytes as f64);
        request.max(byte) as u64
    }
}

/// The next free time of one schedule, and no earlier than `oldest`; what is taken moves it on.
fn take(next: &mut f64, oldest: f64, per_second: u64, amount: f64) -> f64 {
    if per_second == 0 {
        return 0.0;
    }
    let due = next.max(oldest);
    *next = due + amount * 1e9 / per_second as f64;
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn limit(iops: u64, bytes_per_s: u64, burst_ns: u64) -> Limit {
        let limit = Limit::default();
        limit.set(Rates { iops, bytes_per_s, burst_ns });
        limit
    }

    /// How many requests go in ten seconds, of a guest that keeps `depth` in flight and a worker that wakes `late`.
    fn done(limit: &Limit, depth: usize, bytes: usize, late: u64) -> u64 {
        let (begin, mut count) = (100 * SECOND, 0);
        let mut waiting: Vec<u64> = (0..depth).map(|_| limit.reserve(begin, bytes).due_ns).collect();
        loop {
            waiting.sort_unstable();
            let now = waiting[0].max(begin) + late;
            if now > begin + 10 * SECOND {
                return count;
            }
            for due in &mut waiting {
                if *due <= now {
                    count += 1;
                    *due = limit.reserve(now, bytes).due_ns;
                }
            }
        }
    }

    fn is_close(done: u64, wanted: u64) -> bool {
        done.abs_diff(wanted) * 100 <= wanted
    }

    #[test]
    fn requests_keep_their_rate_at_any_depth_and_with_late_wake_ups() {
        for (iops, depth, late) in
            [(100, 1, 0), (1_000, 32, 50_000), (5_000, 1, 100_000), (30_000, 64, 900_000)]
        {
            let done = done(&limit(iops, 0, 0), depth, 4096, late);
            assert!(is_close(done, 10 * iops), "{done} of {} at depth {depth}", 10 * iops);
        }
    }

    #[test]
    fn bytes_keep_their_rate_whatever_the_size_of_requests() {
        for bytes in [512, 4096, 1 << 20] {
            let done = done(&limit(0, 50 << 20, 0), 8, bytes, 0) * bytes as u64;
            assert!(is_close(done, 500 << 20), "{done} bytes in requests of {bytes}");
        }
    }

    #[test]
    fn the_tighter_of_two_limits_holds() {
        assert!(is_close(done(&limit(1_000, 100 << 20, 0), 16, 4096, 0), 10_000));
        assert!(is_close(done(&limit(100_000, 4096 * 1_000, 0), 16, 4096, 0), 10_000));
    }

    #[test]
    fn a_pause_gives_a_burst_and_no_more() {
        let limit = limit(1_000, 0, 2 * SECOND);
        let now = 100 * SECOND;
        let at_once = (0..10_000).filter(|_| limit.reserve(now, 0).due_ns <= now).count();
        assert!((2_000..=2_001).contains(&at_once), "{at_once}");
    }

    #[test]
    fn new_rates_void_old_permits() {
        let limit = limit(1, 0, 0);
        let slow = (0..100).map(|_| limit.reserve(SECOND, 0)).last().unwrap();
        assert!(limit.is_valid(slow) && slow.due_ns > 90 * SECOND);
        limit.set(Rates { iops: 1_000, ..Rates::default() });
        assert!(!limit.is_valid(slow) && limit.reserve(SECOND, 0).due_ns <= SECOND);
        limit.set(Rates::default());
        assert!(!limit.is_on());
    }
}
