//! The way of a command to Python: a bounded ring that one or more Python threads pull from.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;

use crate::error::Result;
use crate::notify;
use crate::scsi::Failure;

/// Bytes of data-out that a slow command carries at most.
pub const MAX_SLOW_DATA: usize = 4 << 20;
const CAPACITY: usize = 1024;

/// What Python is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowKind {
    /// A SCSI command.
    Cdb,
    /// A control-queue request.
    Control,
    /// No request: a queue was stopped.
    Broken,
}

/// A request on its way to Python.
#[derive(Clone, Debug)]
pub struct SlowCommand {
    /// What it is.
    pub kind: SlowKind,
    /// Handle of the completion.
    pub tag: u64,
    /// Virtqueue.
    pub queue: u16,
    /// The request header's LUN bytes.
    pub lun: [u8; 8],
    /// The driver's tag.
    pub id: u64,
    /// Task attribute.
    pub task_attribute: u8,
    /// Zero-padded.
    pub cdb: [u8; 32],
    /// At most [`MAX_SLOW_DATA`].
    pub data_out: Vec<u8>,
    /// True length of data-out.
    pub data_out_size: usize,
    /// Bytes of the guest's data-in buffer.
    pub data_in_size: usize,
    /// Why a hot command failed.
    pub failure: Failure,
    /// What a broken queue says.
    pub message: String,
}

/// The ring.
#[derive(Debug)]
pub struct SlowRing {
    queue: ArrayQueue<Box<SlowCommand>>,
    event: OwnedFd,
    sleepers: AtomicUsize,
    woken: AtomicBool,
}

impl SlowRing {
    /// An empty ring.
    pub fn new() -> Result<Self> {
        Ok(SlowRing {
            queue: ArrayQueue::new(CAPACITY),
            event: notify::eventfd()?,
            sleepers: AtomicUsize::new(0),
            woken: AtomicBool::new(false),
        })
    }

    /// Offer a command; gives it back when the ring is full.
    pub fn push(&self, command: Box<SlowCommand>) -> Result<(), Box<SlowCommand>> {
        self.queue.push(command)?;
        std::sync::atomic::fence(SeqCst);
        if self.sleepers.load(SeqCst) > 0 {
            notify::signal(&self.event);
        }
        Ok(())
    }

    /// Let one waiter return empty-handed.
    pub fn wake(&self) {
        self.woken.store(true, SeqCst);
        notify::signal(&self.event);
    }

    /// Take a command; waits until there is one, the time is over, or [`SlowRing::wake`].
    pub fn pop(&self, timeout: Option<Duration>) -> Option<Box<SlowCommand>> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if let Some(command) = self.queue.pop() {
                return Some(command);
            }
            if self.woken.swap(false, SeqCst) {
                return None;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return None;
            }
            self.sleep(left);
        }
    }

    fn sleep(&self, timeout: Option<Duration>) {
        self.sleepers.fetch_add(1, SeqCst);
        if self.queue.is_empty() && !self.woken.load(SeqCst) {
            notify::wait(self.event.as_raw_fd(), timeout);
        }
        self.sleepers.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(tag: u64) -> Box<SlowCommand> {
        Box::new(SlowCommand {
            kind: SlowKind::Cdb,
            tag,
            queue: 0,
            lun: [0; 8],
            id: 0,
            task_attribute: 0,
            cdb: [0; 32],
            data_out: vec![],
            data_out_size: 0,
            data_in_size: 0,
            failure: Failure::None,
            message: String::new(),
        })
    }

    #[test]
    fn commands_arrive_in_order_and_a_full_ring_says_so() {
        let ring = SlowRing::new().unwrap();
        (0..CAPACITY as u64).for_each(|tag| ring.push(command(tag)).unwrap());
        assert!(ring.push(command(9999)).is_err());
        (0..CAPACITY as u64).for_each(|tag| assert_eq!(ring.pop(None).unwrap().tag, tag));
        assert!(ring.pop(Some(Duration::from_millis(1))).is_none());
    }

    #[test]
    fn a_sleeper_is_woken_by_a_command_and_by_wake() {
        let ring = SlowRing::new().unwrap();
        std::thread::scope(|scope| {
            let sleeper =
                scope.spawn(|| (ring.pop(None).map(|command| command.tag), ring.pop(None).is_none()));
            ring.push(command(7)).unwrap();
            while !sleeper.is_finished() && ring.sleepers.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
            ring.wake();
            assert_eq!(sleeper.join().unwrap(), (Some(7), true));
        });
    }
}
