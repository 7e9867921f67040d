//! Eventfds: kicks in, calls out.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::error::{Error, Result};

/// A new non-blocking eventfd.
pub(crate) fn eventfd() -> Result<OwnedFd> {
    // SAFETY: a plain system call.
    match unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) } {
        -1 => Err(Error::last_os("eventfd")),
        // SAFETY: the fd is new and ours.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// An eventfd of our own, to wake a thread by.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// One that was not signalled yet.
    pub fn new() -> Result<Self> {
        eventfd().map(Event)
    }

    /// Wake who waits, now or next.
    pub fn signal(&self) {
        signal(&self.0);
    }

    /// Wait until it is signalled, and reset it.
    pub fn wait(&self, timeout: Option<Duration>) {
        wait(self.0.as_raw_fd(), timeout);
    }
}

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A duplicate of somebody's fd.
pub fn duplicate(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: a plain system call; a bad fd is an error.
    match unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) } {
        -1 => Err(Error::last_os("dup")),
        // SAFETY: the fd is new and ours.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// Whether an fd is an eventfd: others could block a worker or raise SIGPIPE.
pub fn is_eventfd(fd: &OwnedFd) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"anon_inode:[eventfd]"))
}

/// Add one to an eventfd. A full one is as good as signalled.
#[inline(always)]
fn signal(fd: &OwnedFd) {
    let one = 1u64;
    // SAFETY: eight bytes from a local. The result does not matter: EAGAIN means that the counter is full.
    unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), 8) };
}

/// A front end's call eventfd. One that blocks (libblkio's does) is asked before it is written: a hostile peer could
/// have filled it, and a worker must never wait for a peer.
#[derive(Debug)]
pub struct Call {
    fd: OwnedFd,
    blocks: bool,
}

impl Call {
    /// Take over an eventfd; its flags are read once.
    pub fn new(fd: OwnedFd) -> Self {
        // SAFETY: a plain system call on an fd that we own.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
        Call { fd, blocks: flags & libc::O_NONBLOCK == 0 }
    }

    /// Signal the guest.
    #[inline(always)]
    pub fn signal(&self) {
        if !self.blocks || is_writable(&self.fd) {
            signal(&self.fd);
        }
    }
}

fn is_writable(fd: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 && poll.revents & libc::POLLOUT != 0 }
}

/// Wait for an eventfd and reset it.
fn wait(fd: RawFd, timeout: Option<Duration>) {
    let millis =
        timeout.map_or(-1, |timeout| timeout.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32);
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut count = 0u64;
    // SAFETY: one pollfd; eight bytes into a local; the fd does not block.
    unsafe {
        if libc::poll(&mut poll, 1, millis) > 0 {
            libc::read(fd, (&raw mut count).cast(), 8);
        }
    }
}

/// Nanoseconds of CLOCK_MONOTONIC.
#[inline(always)]
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills a local; served by the vDSO.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds of CPU time of one thread of this process.
pub fn thread_cpu_ns(thread: i32) -> u64 {
    let clock = (!thread << 3) | 6;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills a local; a dead thread is EINVAL and leaves zero.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_eventfd_that_blocks_does_not_hold_us_up() {
        // SAFETY: a plain system call; the fd is new and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
        let most = u64::MAX - 1;
        // SAFETY: eight bytes from a local.
        assert_eq!(unsafe { libc::write(fd.as_raw_fd(), (&raw const most).cast(), 8) }, 8);
        assert!(is_eventfd(&fd));
        let call = Call::new(fd);
        assert!(call.blocks);
        call.signal();
    }
}
