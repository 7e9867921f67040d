//! The way into a worker: messages, and an eventfd that wakes it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::*;
use std::sync::mpsc::SyncSender;
use std::sync::Arc;
use std::time::Instant;

use super::{Completion, Fence, QueueStart};
use crate::error::Result;
use crate::sync::{AtomicBool, Event, Mutex};
use crate::trace::{TraceOptions, TraceRing};
use crate::view::View;

/// What a worker is told.
pub enum Message {
    /// Go on with another view.
    View(Arc<View>, SyncSender<()>),
    /// Make a ring ready.
    Start(u16, Box<QueueStart>, SyncSender<Result<()>>),
    /// Serve a ring or let it rest.
    Enable(u16, bool, SyncSender<()>),
    /// Another call eventfd.
    Call(u16, Option<OwnedFd>, SyncSender<()>),
    /// Log writes to the used ring there.
    Log(u16, Option<u64>, SyncSender<()>),
    /// Drain and stop a ring by then; answers the next available index.
    Stop(u16, Instant, SyncSender<u16>),
    /// Tell when what matches is finished.
    Fence(Fence),
    /// A slow command is finished.
    Complete(u64, Completion),
    /// A slow command goes to the hot path.
    Resume(u64),
    /// For the event queue.
    Event([u8; 16]),
    /// Follow requests from now on; none: no more. Answers when that is so.
    Trace(Option<TraceStart>, SyncSender<()>),
    /// Look again (a range lock was released).
    Wake,
    /// The end.
    Quit,
}

/// What begins a trace: the worker's own ring, and what goes there.
pub type TraceStart = (Arc<TraceRing>, TraceOptions);

/// The way into a worker.
#[derive(Debug)]
pub struct Mailbox {
    /// None once the worker is gone: a message to it is dropped, and with it the way to answer.
    messages: Mutex<Option<VecDeque<Message>>>,
    waiting: AtomicBool,
    pub(super) event: Event,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Message")
    }
}

impl Mailbox {
    /// An empty mailbox.
    pub fn new() -> Result<Self> {
        let messages = Mutex::new(Some(VecDeque::new()));
        Ok(Mailbox { messages, waiting: AtomicBool::new(false), event: Event::new()? })
    }

    /// Send; wakes the worker.
    pub fn send(&self, message: Message) {
        if let Some(messages) = &mut *self.messages.lock().unwrap() {
            messages.push_back(message);
            self.waiting.store(true, Release);
            self.event.signal();
        }
    }

    pub(super) fn close(&self) {
        self.messages.lock().unwrap().take();
    }

    #[inline(always)]
    pub(super) fn has_mail(&self) -> bool {
        self.waiting.load(Relaxed)
    }

    pub(super) fn take(&self) -> VecDeque<Message> {
        self.waiting.store(false, Relaxed);
        self.messages.lock().unwrap().as_mut().map(std::mem::take).unwrap_or_default()
    }
}
