//! Range locks of a LUN: writers, COMPARE AND WRITE and copiers stay out of each other's way.
//!
//! Workers ask one atomic; it is zero while nobody holds a lock.

use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::Instant;

use crate::sync::{AtomicUsize, Condvar, Mutex};

#[derive(Clone, Copy, Debug)]
struct Lock {
    handle: u64,
    start: u64,
    end: u64,
    reads: bool,
}

impl Lock {
    fn meets(&self, start: u64, end: u64) -> bool {
        start < self.end && self.start < end
    }
}

#[derive(Debug, Default)]
struct Held {
    locks: Vec<Lock>,
}

/// Handles are unique in the process: that of a LUN which was removed must not name a lock of the next one at its
/// address.
static NEXT_HANDLE: AtomicU64 = AtomicU64::new(1);

/// The locks of one LUN.
#[derive(Debug, Default)]
pub struct RangeLocks {
    active: AtomicUsize,
    held: Mutex<Held>,
    released: Condvar,
}

impl RangeLocks {
    /// Take `[start, end)`; waits for other holders until the deadline.
    ///
    /// This only stops new I/O: the caller then waits for what is in flight.
    pub fn lock(&self, start: u64, end: u64, reads: bool, deadline: Instant) -> Option<u64> {
        let mut held = self.held.lock().unwrap();
        while held.locks.iter().any(|lock| lock.meets(start, end)) {
            let left = deadline.checked_duration_since(Instant::now())?;
            held = self.released.wait_timeout(held, left).unwrap().0;
        }
        let handle = NEXT_HANDLE.fetch_add(1, Relaxed);
        held.locks.push(Lock { handle, start, end, reads });
        self.active.store(held.locks.len(), SeqCst);
        Some(handle)
    }

    /// Give a lock back.
    pub fn unlock(&self, handle: u64) {
        let mut held = self.held.lock().unwrap();
        held.locks.retain(|lock| lock.handle != handle);
        self.active.store(held.locks.len(), SeqCst);
        self.released.notify_all();
    }

    /// Whether I/O to `[start, end)` must wait.
    #[inline(always)]
    pub fn blocks(&self, start: u64, end: u64, write: bool) -> bool {
        self.active.load(Acquire) != 0 && self.search(start, end, write)
    }

    #[cold]
    fn search(&self, start: u64, end: u64, write: bool) -> bool {
        let held = self.held.lock().unwrap();
        held.locks.iter().any(|lock| (write || lock.reads) && lock.meets(start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn blocks_what_meets_and_nothing_else() {
        let locks = RangeLocks::default();
        assert!(!locks.blocks(0, u64::MAX, true));
        let handle = locks.lock(100, 200, false, Instant::now()).unwrap();
        assert!(locks.blocks(199, 300, true));
        assert!(!locks.blocks(200, 300, true));
        assert!(!locks.blocks(150, 160, false), "a copier lets reads pass");
        assert_eq!(locks.lock(150, 160, true, Instant::now() + Duration::from_millis(5)), None);
        locks.unlock(handle);
        assert!(!locks.blocks(150, 160, true));
    }

    #[test]
    fn a_handle_names_a_lock_of_one_lun_only() {
        let (removed, next) = (RangeLocks::default(), RangeLocks::default());
        let old = removed.lock(0, 8, true, Instant::now()).unwrap();
        let new = next.lock(0, 8, true, Instant::now()).unwrap();
        next.unlock(old);
        assert!(next.blocks(0, 8, true), "a command to a LUN that is gone gave back another's lock");
        next.unlock(new);
        assert!(!next.blocks(0, 8, true));
    }

    #[test]
    fn a_waiter_gets_the_range_when_it_is_free() {
        let locks = RangeLocks::default();
        let first = locks.lock(0, 10, true, Instant::now()).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| locks.lock(5, 15, true, Instant::now() + Duration::from_secs(180)));
            locks.unlock(first);
            assert!(waiter.join().unwrap().is_some());
        });
    }
}
