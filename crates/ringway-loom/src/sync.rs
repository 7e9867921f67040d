//! What the core calls `crate::sync`, over loom.

use std::collections::VecDeque;
use std::time::Duration;

pub use loom::sync::atomic::{fence, AtomicBool, AtomicU32, AtomicUsize};
pub use loom::sync::{Arc, Condvar, Mutex};

use loom::sync::atomic::Ordering::SeqCst;

pub use crate::membarrier::{heavy_fence, light_fence};
use ringway_core::error::Result;

/// crossbeam's bounded queue, no stronger than it: whether it is empty is asked of an atomic, not under the lock.
#[derive(Debug)]
pub struct ArrayQueue<T> {
    items: Mutex<VecDeque<T>>,
    len: AtomicUsize,
    capacity: usize,
}

impl<T> ArrayQueue<T> {
    /// An empty queue.
    pub fn new(capacity: usize) -> Self {
        ArrayQueue { items: Mutex::new(VecDeque::new()), len: AtomicUsize::new(0), capacity }
    }

    /// Append; gives the value back when the queue is full.
    pub fn push(&self, value: T) -> std::result::Result<(), T> {
        let mut items = self.items.lock().expect("no panic");
        if items.len() == self.capacity {
            return Err(value);
        }
        items.push_back(value);
        self.len.fetch_add(1, SeqCst);
        Ok(())
    }

    /// Take the oldest.
    pub fn pop(&self) -> Option<T> {
        let mut items = self.items.lock().expect("no panic");
        let value = items.pop_front();
        if value.is_some() {
            self.len.fetch_sub(1, SeqCst);
        }
        value
    }

    /// Whether a pop would find nothing.
    pub fn is_empty(&self) -> bool {
        self.len.load(SeqCst) == 0
    }

    /// Whether a push would fail.
    pub fn is_full(&self) -> bool {
        self.len.load(SeqCst) == self.capacity
    }
}

/// An eventfd: a counter that is waited for and reset in two steps, as poll and read are.
#[derive(Debug)]
pub struct Event {
    signals: Mutex<u64>,
    changed: Condvar,
}

impl Event {
    /// One that was not signalled yet.
    pub fn new() -> Result<Self> {
        Ok(Event { signals: Mutex::new(0), changed: Condvar::new() })
    }

    /// Wake who waits, now or next.
    pub fn signal(&self) {
        *self.signals.lock().expect("no panic") += 1;
        self.changed.notify_all();
    }

    /// Wait until it is signalled, and reset it. A time-out is over at once.
    pub fn wait(&self, timeout: Option<Duration>) {
        let mut signals = self.signals.lock().expect("no panic");
        while *signals == 0 && timeout.is_none() {
            signals = self.changed.wait(signals).expect("no panic");
        }
        drop(signals);
        *self.signals.lock().expect("no panic") = 0;
    }
}
