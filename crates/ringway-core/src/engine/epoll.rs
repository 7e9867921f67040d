//! The engine where the kernel forbids io_uring.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::job::Job;
use super::threads::{Now, Threads};
use super::{Event, THREADS};
use crate::error::{Error, Result};
use crate::memory::IoVec;
use crate::store::Store;

/// An epoll of one worker, and its threads.
pub struct Epoll {
    fd: OwnedFd,
    threads: Threads,
    /// What the page cache had.
    early: Vec<Event>,
    /// Calls that were begun and not taken.
    running: usize,
    /// No threads: every call is made on the spot.
    alone: bool,
}

impl Epoll {
    /// Set up.
    pub fn new() -> Result<Self> {
        // SAFETY: a plain system call.
        let fd = match unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) } {
            -1 => return Err(Error::last_os("epoll")),
            // SAFETY: the fd is ours.
            fd => unsafe { OwnedFd::from_raw_fd(fd) },
        };
        let mut epoll = Epoll { fd, threads: Threads::new()?, early: Vec::new(), running: 0, alone: false };
        epoll.watch(epoll.threads.event(), THREADS)?;
        Ok(epoll)
    }

    /// Make every call on the spot from now on, for a worker without a thread.
    pub fn stay_alone(&mut self) {
        self.alone = true;
    }

    /// Submit the current step of a job: on the spot, if the page cache serves it, else to a thread.
    ///
    /// # Safety
    /// As for [`super::Engine::submit`].
    pub(super) unsafe fn submit(&mut self, key: u32, job: &mut Job, store: &Store, spans: &[IoVec]) {
        let fd = store.file_descriptor().expect("only files are submitted").as_raw_fd();
        let call = job.call(store, fd, spans);
        self.running += 1;
        if self.alone {
            return self.early.push(Event::Done(key, call.run()));
        }
        let now = if store.is_cached() { call.try_now() } else { Now::Waits };
        match now {
            Now::Done(bytes) => self.early.push(Event::Done(key, bytes)),
            // SAFETY: the caller's promise covers what the call points to.
            Now::Waits => unsafe { self.threads.submit(key, call) },
            // SAFETY: as above.
            Now::Unknown => unsafe { self.threads.submit_quick(key, call) },
        }
    }

    /// Have a call not be made, unless it has begun.
    pub(super) fn cancel(&mut self, key: u32) {
        self.threads.cancel(key);
    }

    #[inline(always)]
    pub(super) fn is_busy(&self) -> bool {
        self.running > 0
    }

    #[inline(always)]
    pub(super) fn has_ended(&self) -> bool {
        !self.early.is_empty() || self.threads.has_ended()
    }

    #[inline(always)]
    pub(super) fn take(&mut self, events: &mut Vec<Event>) {
        if self.running > 0 && self.has_ended() {
            let ended = self.threads.take().into_iter().map(|(key, result)| Event::Done(key, result));
            let before = events.len();
            events.extend(self.early.drain(..).chain(ended));
            self.running -= events.len() - before;
        }
    }

    pub(super) fn watch(&mut self, fd: RawFd, token: u32) -> Result<()> {
        let mut event =
            libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: token.into() };
        // SAFETY: the event is copied by the kernel.
        match unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(Error::last_os("epoll_ctl")),
        }
    }

    pub(super) fn unwatch(&mut self, fd: RawFd) {
        // SAFETY: DEL takes no event.
        unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
    }

    pub(super) fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) {
        let mut list = [libc::epoll_event { events: 0, u64: 0 }; 32];
        if self.has_ended() {
            return self.take(events);
        }
        let millis =
            timeout.map_or(-1, |timeout| timeout.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32);
        // SAFETY: the list is as long as it is said to be.
        let count = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), list.as_mut_ptr(), 32, millis) };
        let tokens = list.iter().take(count.max(0) as usize).map(|event| event.u64 as u32);
        events.extend(tokens.filter(|token| *token != THREADS).map(Event::Ready));
        self.take(events);
    }
}
