//! The one wait point of a worker: an io_uring, or epoll and threads where the kernel forbids that.
//!
//! Kicks arrive as multishot polls in the ring that also carries the I/O. Eventfds are never read: each
//! write to one is an edge, for io_uring and (EPOLLET) for epoll alike.

mod alarms;
mod epoll;
mod job;
mod threads;
mod uring;

use std::os::fd::RawFd;
use std::time::Duration;

use crate::error::Result;
use crate::memory::IoVec;
use crate::store::Store;
use crate::view::View;
pub use epoll::Epoll;
pub use job::{Job, Progress};
pub use uring::Uring;

/// Names the event of [`threads::Threads`] among what is watched; no queue has this token.
const THREADS: u32 = u32::MAX - 1;

/// What a worker is told after it slept or looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The eventfd behind this token was written.
    Ready(u32),
    /// The I/O of this key ended: bytes, or -errno.
    Done(u32, i32),
}

/// A worker's engine.
pub enum Engine {
    /// io_uring.
    Uring(Box<Uring>),
    /// epoll; threads do what would wait.
    Epoll(Epoll),
}

impl Engine {
    /// Watch an eventfd.
    pub fn watch(&mut self, fd: RawFd, token: u32) -> Result<()> {
        match self {
            Engine::Uring(ring) => {
                ring.watch(fd, token);
                Ok(())
            }
            Engine::Epoll(epoll) => epoll.watch(fd, token),
        }
    }

    /// Stop watching.
    pub fn unwatch(&mut self, fd: RawFd, token: u32) {
        match self {
            Engine::Uring(ring) => ring.unwatch(token),
            Engine::Epoll(epoll) => epoll.unwatch(fd),
        }
    }

    /// Whether it is an io_uring.
    pub fn is_uring(&self) -> bool {
        matches!(self, Engine::Uring(_))
    }

    /// Submit the current step of a job.
    ///
    /// # Safety
    /// The job and its spans stay in place and mapped until [`Event::Done`] with this key.
    pub unsafe fn submit(
        &mut self,
        key: u32,
        job: &mut Job,
        store: &Store,
        file_slot: Option<u32>,
        spans: &[IoVec],
    ) {
        match self {
            // SAFETY: the caller's promise.
            Engine::Uring(ring) => unsafe { ring.submit(key, job, store, file_slot, spans) },
            // SAFETY: the caller's promise.
            Engine::Epoll(epoll) => unsafe { epoll.submit(key, job, store, spans) },
        }
    }

    /// Ask the kernel to cancel a submitted job.
    pub fn cancel(&mut self, key: u32) {
        match self {
            Engine::Uring(ring) => ring.cancel(key),
            Engine::Epoll(epoll) => epoll.cancel(key),
        }
    }

    /// Whether [`Engine::turn`] will hand something over: the kernel may do it there and then, which takes its time.
    #[inline(always)]
    pub fn has_pushed(&mut self) -> bool {
        match self {
            Engine::Uring(ring) => ring.has_pushed(),
            Engine::Epoll(_) => false,
        }
    }

    /// Hand over what was pushed and collect what ended, without waiting.
    #[inline(always)]
    pub fn turn(&mut self, events: &mut Vec<Event>) {
        match self {
            Engine::Uring(ring) => ring.turn(events),
            // rings are polled anyway, and edges wait for `wait`
            Engine::Epoll(epoll) => epoll.take(events),
        }
    }

    /// Whether the kernel has I/O of ours.
    #[inline(always)]
    pub fn is_busy(&self) -> bool {
        match self {
            Engine::Uring(ring) => ring.is_busy(),
            Engine::Epoll(epoll) => epoll.is_busy(),
        }
    }

    /// Whether a look would find something (free of system calls; epoll knows of I/O only).
    #[inline(always)]
    pub fn has_events(&mut self) -> bool {
        match self {
            Engine::Uring(ring) => ring.has_events(),
            Engine::Epoll(epoll) => epoll.has_ended(),
        }
    }

    /// Sleep until something happens; if an alarm went off meanwhile, when it was to.
    pub fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> Option<u64> {
        match self {
            Engine::Uring(ring) => ring.wait(timeout, events),
            Engine::Epoll(epoll) => {
                epoll.wait(timeout, events);
                None
            }
        }
    }

    /// Have [`Engine::wait`] end at these times, and at no other that was set; epoll has no alarms.
    #[inline(always)]
    pub fn set_alarms(&mut self, wanted: &[u64]) {
        if let Engine::Uring(ring) = self {
            ring.set_alarms(wanted);
        }
    }

    /// A new view: register its stores' files, let go of those that left.
    pub fn adopt(&mut self, view: &View) {
        if let Engine::Uring(ring) = self {
            ring.adopt(view);
        }
    }
}
