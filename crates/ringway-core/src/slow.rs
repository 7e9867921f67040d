//! The way of a command to Python: a bounded ring that one or more Python threads pull from.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering::*};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::scsi::Failure;
use crate::sync::{fence, Arc, ArrayQueue, AtomicBool, AtomicUsize, Event, Mutex};

/// Bytes of data-out that a slow command carries at most.
pub const MAX_SLOW_DATA: usize = 4 << 20;
/// Bytes of a control request that Python sees at most; the longest that there is has 24.
pub const MAX_CONTROL_DATA: usize = 64;
/// Data-out of all slow commands together: what a guest can make us hold.
const BUDGET: usize = 64 << 20;
/// Of that, of one LUN's commands: what hangs on one disk leaves room for the others'.
const SHARE: usize = BUDGET / 4;
const CAPACITY: usize = 1024;

/// Bytes that are charged, of a ring or of a LUN.
#[derive(Clone, Debug)]
struct Account(Arc<AtomicUsize>);

impl Account {
    fn new() -> Self {
        Account(Arc::new(AtomicUsize::new(0)))
    }

    /// Whether there was room.
    fn charge(&self, len: usize, most: usize) -> bool {
        let fits = self.0.fetch_add(len, Relaxed) + len <= most;
        if !fits {
            self.give_back(len);
        }
        fits
    }

    fn give_back(&self, len: usize) {
        self.0.fetch_sub(len, Relaxed);
    }
}

/// What one LUN's commands have charged.
#[derive(Clone, Debug)]
pub struct Share(Account);

impl Default for Share {
    fn default() -> Self {
        Share(Account::new())
    }
}

/// Bytes that count against the ring's budget, and their LUN's share of it, until they are dropped, wherever they went.
#[derive(Debug, Default)]
pub struct Charged {
    bytes: Vec<u8>,
    accounts: [Option<Account>; 2],
}

impl Charged {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.accounts.iter().flatten().for_each(|account| account.give_back(self.bytes.len()));
    }
}

/// How long a command is anybody's: until its queue lets go of what it holds.
#[derive(Clone, Debug, Default)]
pub struct Life {
    ends: std::sync::Arc<AtomicU32>,
    born: u32,
}

impl Life {
    /// A command's, from its queue's.
    pub fn begin(&self) -> Self {
        Life { ends: self.ends.clone(), born: self.ends.load(Relaxed) }
    }

    /// All that began is over. The queue's own thread says so.
    pub fn end(&self) {
        self.ends.fetch_add(1, Release);
    }

    /// Whether the tag is dead: nobody waits for the command, and it must not be done.
    pub fn is_over(&self) -> bool {
        self.ends.load(Acquire) != self.born
    }
}

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
#[derive(Debug)]
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
    /// Which LUN of those that have been at its address; zero: there was none.
    pub instance: u64,
    /// Task attribute.
    pub task_attribute: u8,
    /// Zero-padded.
    pub cdb: [u8; 32],
    /// At most [`MAX_SLOW_DATA`].
    pub data_out: Charged,
    /// True length of data-out.
    pub data_out_size: usize,
    /// Bytes of the guest's data-in buffer.
    pub data_in_size: usize,
    /// Why a hot command failed.
    pub failure: Failure,
    /// What a broken queue says.
    pub message: String,
    /// Until when it is to be done.
    pub life: Life,
}

/// The ring.
#[derive(Debug)]
pub struct SlowRing {
    queue: ArrayQueue<Box<SlowCommand>>,
    /// At most one a queue and life of it: they pass the bounded ring by.
    notices: Mutex<VecDeque<Box<SlowCommand>>>,
    charged: Account,
    event: Event,
    sleepers: AtomicUsize,
    woken: AtomicBool,
}

impl SlowRing {
    /// An empty ring.
    pub fn new() -> Result<Self> {
        Ok(SlowRing {
            queue: ArrayQueue::new(CAPACITY),
            notices: Mutex::new(VecDeque::new()),
            charged: Account::new(),
            event: Event::new()?,
            sleepers: AtomicUsize::new(0),
            woken: AtomicBool::new(false),
        })
    }

    /// Room for so many bytes of data-out; none while the budget is spent, or the LUN's share of it.
    pub fn reserve(&self, len: usize, share: Option<&Share>) -> Option<Charged> {
        let account = share.map(|share| share.0.clone());
        if len > 0 && account.as_ref().is_some_and(|account| !account.charge(len, SHARE)) {
            return None;
        }
        if len > 0 && !self.charged.charge(len, BUDGET) {
            account.iter().for_each(|account| account.give_back(len));
            return None;
        }
        Some(Charged { bytes: vec![0; len], accounts: [Some(self.charged.clone()), account] })
    }

    /// Whether a push would fail.
    pub fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// Whether a pop would have to wait.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.notices.lock().unwrap().is_empty()
    }

    /// Tell of something that is no request.
    pub fn notice(&self, notice: Box<SlowCommand>) {
        self.notices.lock().unwrap().push_back(notice);
        self.event.signal();
    }

    /// Offer a command; gives it back when the ring is full.
    pub fn push(&self, command: Box<SlowCommand>) -> Result<(), Box<SlowCommand>> {
        self.queue.push(command)?;
        fence(SeqCst);
        if self.sleepers.load(SeqCst) > 0 {
            self.event.signal();
        }
        Ok(())
    }

    /// Let one waiter return empty-handed.
    pub fn wake(&self) {
        self.woken.swap(true, SeqCst); // in one order with the swaps of those who wait
        self.event.signal();
    }

    /// Take a command; waits until there is one, the time is over, or [`SlowRing::wake`]. Dead ones are dropped.
    pub fn pop(&self, timeout: Option<Duration>) -> Option<Box<SlowCommand>> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if let Some(command) = self.take() {
                self.pass_on();
                return Some(command);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !self.wait(left) {
                return None;
            }
        }
    }

    fn take(&self) -> Option<Box<SlowCommand>> {
        while let Some(command) = self.queue.pop() {
            if !command.life.is_over() {
                return Some(command);
            }
        }
        self.notices.lock().unwrap().pop_front()
    }

    /// Wait until there is something to take, and leave it; false when the time is over, or after
    /// [`SlowRing::wake`].
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        while self.is_empty() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if self.woken.swap(false, SeqCst) || left == Some(Duration::ZERO) {
                self.pass_on();
                return false;
            }
            self.sleep(left);
        }
        true
    }

    /// One thread resets the event for all that was signalled: who leaves wakes another for what is left.
    fn pass_on(&self) {
        fence(SeqCst);
        if self.sleepers.load(SeqCst) > 0 && !self.is_idle() {
            self.event.signal();
        }
    }

    fn is_idle(&self) -> bool {
        self.is_empty() && !self.woken.load(SeqCst)
    }

    fn sleep(&self, timeout: Option<Duration>) {
        self.sleepers.fetch_add(1, SeqCst);
        fence(SeqCst);
        if self.is_idle() {
            self.event.wait(timeout);
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
            instance: 0,
            task_attribute: 0,
            cdb: [0; 32],
            data_out: Charged::default(),
            data_out_size: 0,
            data_in_size: 0,
            failure: Failure::None,
            message: String::new(),
            life: Life::default(),
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
    fn what_waited_when_its_queue_let_go_is_not_done_after_a_restart() {
        let (ring, queue) = (SlowRing::new().unwrap(), Life::default());
        let of_queue = |tag| {
            let mut of_queue = command(tag);
            of_queue.life = queue.begin();
            of_queue
        };
        ring.push(of_queue(1)).unwrap();
        let taken = ring.pop(None).unwrap();
        (2..5).for_each(|tag| ring.push(of_queue(tag)).unwrap());
        assert!(!taken.life.is_over());
        queue.end();
        assert!(taken.life.is_over());
        ring.push(of_queue(5)).unwrap();
        assert_eq!(ring.pop(None).unwrap().tag, 5);
        assert!(ring.pop(Some(Duration::ZERO)).is_none());
    }

    #[test]
    fn to_wait_takes_nothing() {
        let ring = SlowRing::new().unwrap();
        assert!(!ring.wait(Some(Duration::ZERO)));
        ring.wake();
        assert!(!ring.wait(None));
        ring.push(command(1)).unwrap();
        assert!(ring.wait(None) && ring.wait(None));
        assert_eq!(ring.pop(None).unwrap().tag, 1);
        ring.notice(command(2));
        assert!(ring.wait(None));
        assert_eq!(ring.pop(None).unwrap().tag, 2);
    }

    #[test]
    fn a_guest_cannot_make_us_hold_more_than_the_budget() {
        let ring = SlowRing::new().unwrap();
        let held: Vec<Charged> = std::iter::from_fn(|| ring.reserve(MAX_SLOW_DATA, None)).collect();
        assert_eq!(held.len(), BUDGET / MAX_SLOW_DATA);
        let share = Share::default();
        assert!(ring.reserve(0, Some(&share)).is_some());
        assert!(ring.reserve(1, Some(&share)).is_none());
        drop(held);
        assert!(ring.reserve(MAX_SLOW_DATA, None).is_some());
        assert!(ring.reserve(SHARE, Some(&share)).is_some(), "what was refused was not charged");
    }

    #[test]
    fn one_lun_cannot_spend_the_budget_of_all() {
        let (ring, hung, other) = (SlowRing::new().unwrap(), Share::default(), Share::default());
        let held: Vec<Charged> = std::iter::from_fn(|| ring.reserve(MAX_SLOW_DATA, Some(&hung))).collect();
        assert_eq!(held.len(), SHARE / MAX_SLOW_DATA);
        assert!(ring.reserve(0, Some(&hung)).is_some(), "commands without data pass");
        assert!(ring.reserve(MAX_SLOW_DATA, Some(&other)).is_some());
        drop(held);
        assert!(ring.reserve(SHARE, Some(&hung)).is_some());
        assert!(ring.reserve(SHARE + 1, Some(&hung)).is_none());
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
