//! Tracing, from the control side.

use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::mpsc::sync_channel;
use std::sync::Arc;

use super::{answer, Device};
use crate::clock;
use crate::error::{ensure, Error, Result};
use crate::trace::{Sample, TraceOptions, TraceRing};
use crate::worker::{Mailbox, Message, TraceStart};

/// Samples that wait to be read, for each worker, at most.
pub const MAX_TRACE: usize = 1 << 20;

/// A trace that is on until it is dropped.
pub struct Trace {
    rings: Vec<Arc<TraceRing>>,
    mailboxes: Vec<Arc<Mailbox>>,
    tracing: Arc<AtomicBool>,
    started_ns: u64,
}

impl Device {
    /// Follow requests from now on.
    pub fn trace(&self, options: TraceOptions) -> Result<Trace> {
        ensure(options.interval > 0, || "every 0th request".into())?;
        ensure((1..=MAX_TRACE).contains(&options.capacity), || {
            format!("room for {} samples; 1 to {MAX_TRACE} are possible", options.capacity)
        })?;
        if let Some(queue) = options.queue.filter(|queue| usize::from(*queue) >= self.queues.len()) {
            return Err(Error::Invalid(format!("no queue {queue}")));
        }
        if self.tracing.swap(true, AcqRel) {
            return Err(Error::errno("a trace is on already", libc::EBUSY));
        }
        let trace = Trace {
            rings: self.mailboxes.iter().map(|_| Arc::new(TraceRing::new(options.capacity))).collect(),
            mailboxes: self.mailboxes.clone(),
            tracing: self.tracing.clone(),
            started_ns: clock::now_ns(),
        };
        trace.tell(|ring| Some((ring.clone(), options)))?;
        Ok(trace)
    }
}

impl Trace {
    fn tell(&self, start: impl Fn(&Arc<TraceRing>) -> Option<TraceStart>) -> Result<()> {
        let (reply, answers) = sync_channel(self.mailboxes.len());
        for (mailbox, ring) in self.mailboxes.iter().zip(&self.rings) {
            mailbox.send(Message::Trace(start(ring), reply.clone()));
        }
        drop(reply);
        self.mailboxes.iter().try_for_each(|_| answer(&answers))
    }

    /// When it began, by the clock of its samples.
    pub fn started_ns(&self) -> u64 {
        self.started_ns
    }

    /// Take samples that wait, worker by worker, at most so many.
    pub fn take(&self, most: usize) -> Vec<Sample> {
        self.rings.iter().flat_map(|ring| std::iter::from_fn(|| ring.pop())).take(most).collect()
    }

    /// Samples that had no room so far.
    pub fn dropped(&self) -> u64 {
        self.rings.iter().map(|ring| ring.dropped()).sum()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // a dead worker traces nothing any more
        let _ = self.tell(|_| None);
        self.tracing.store(false, Release);
    }
}
