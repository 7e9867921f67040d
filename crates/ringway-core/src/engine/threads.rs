//! Threads of ours that make system calls: all of them where io_uring is forbidden, and the reads and writes that
//! io_uring does not do right.
//!
//! Up to 6.18 at least, io_uring itself goes on with a short read or write of a regular file, once, when the file can
//! be polled; a FUSE file can. Where the server asked for FOPEN_DIRECT_IO the kernel does not move the request's
//! position meanwhile (fs/fuse/file.c, `fuse_direct_IO`): the rest comes from, or goes to, the place where the first
//! part did, and the result tells nothing of it.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::Result;
use crate::notify::Event;

/// Threads at most; each waits for one request.
const MOST: usize = 1024;
/// How long a thread waits for the next request before it ends.
const PATIENCE: Duration = Duration::from_secs(2);
/// It makes one system call.
const STACK_BYTES: usize = 64 << 10;

/// One system call on a file.
#[derive(Debug)]
pub(super) struct Call {
    pub fd: RawFd,
    pub kind: CallKind,
}

/// Which.
#[derive(Debug)]
pub(super) enum CallKind {
    /// preadv2 or pwritev2.
    Transfer { write: bool, offset: u64, parts: *const libc::iovec, count: i32, flags: i32 },
    /// fdatasync.
    Flush,
    /// fallocate.
    Zero { mode: i32, offset: u64, len: u64 },
}

// SAFETY: what it points to stays until the call's result was taken: `Threads::submit`'s caller promises that.
unsafe impl Send for Call {}

impl Call {
    /// What the page cache has of a read, or takes of a write, on the spot: bytes. None: it would wait, or its file
    /// system cannot do it so (ext4 cannot write so).
    pub fn try_now(&self) -> Option<i32> {
        let CallKind::Transfer { write, offset, parts, count, flags: 0 } = self.kind else { return None };
        let (offset, flags) = (offset.cast_signed(), libc::RWF_NOWAIT);
        // SAFETY: as for Send; the kernel checks the buffers themselves.
        let done = unsafe {
            match write {
                true => libc::pwritev2(self.fd, parts, count, offset, flags),
                false => libc::preadv2(self.fd, parts, count, offset, flags),
            }
        };
        i32::try_from(done).ok().filter(|done| *done > 0)
    }

    /// Bytes, or -errno.
    pub fn run(&self) -> i32 {
        let fd = self.fd;
        // SAFETY: as for Send; the kernel checks the buffers themselves.
        let done = unsafe {
            match self.kind {
                CallKind::Transfer { write: true, offset, parts, count, flags } => {
                    libc::pwritev2(fd, parts, count, offset.cast_signed(), flags)
                }
                CallKind::Transfer { write: false, offset, parts, count, flags } => {
                    libc::preadv2(fd, parts, count, offset.cast_signed(), flags)
                }
                CallKind::Flush => libc::fdatasync(fd) as isize,
                CallKind::Zero { mode, offset, len } => {
                    libc::fallocate(fd, mode, offset.cast_signed(), len.cast_signed()) as isize
                }
            }
        };
        match done {
            0.. => i32::try_from(done).expect("Linux moves less than 2 GiB at once"),
            _ => -errno(&std::io::Error::last_os_error()),
        }
    }
}

fn errno(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(u32, Call)>,
    done: Vec<(u32, i32)>,
    threads: usize,
    idle: usize,
    ended: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    called: Condvar,
    event: Event,
    /// Calls that ended and were not taken: what a worker may ask without a lock.
    ended: AtomicUsize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, state: &mut State, key: u32, result: i32) {
        state.done.push((key, result));
        self.ended.store(state.done.len(), Release);
        self.event.signal();
    }

    /// A thread's life.
    fn serve(&self) {
        let mut state = self.state();
        loop {
            if let Some((key, call)) = state.waiting.pop_front() {
                drop(state);
                let result = call.run();
                state = self.state();
                self.end(&mut state, key, result);
                continue;
            }
            if state.ended {
                break;
            }
            state.idle += 1;
            let (woken, time) =
                self.called.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if time.timed_out() && state.waiting.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}

/// A worker's threads: as many as it has requests under way, none when it has none for a while.
pub(super) struct Threads(Arc<Shared>);

impl Threads {
    /// None yet.
    pub fn new() -> Result<Self> {
        let event = Event::new()?;
        Ok(Threads(Arc::new(Shared {
            state: Mutex::default(),
            called: Condvar::new(),
            event,
            ended: AtomicUsize::new(0),
        })))
    }

    /// Written when a call ended.
    pub fn event(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }

    /// Have a call made. One that no thread can be had for fails.
    ///
    /// # Safety
    /// The fd, the list of parts and the parts stay in place until [`Threads::take`] gave the key back.
    pub unsafe fn submit(&self, key: u32, call: Call) {
        let mut state = self.0.state();
        state.waiting.push_back((key, call));
        if state.idle < state.waiting.len() && state.threads < MOST {
            let shared = self.0.clone();
            let builder = std::thread::Builder::new().name("ringway-call".into()).stack_size(STACK_BYTES);
            match builder.spawn(move || shared.serve()) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    state.waiting.pop_back();
                    self.0.end(&mut state, key, -errno(&error));
                }
                Err(_) => {} // one of those that are there will come to it
            }
        }
        self.0.called.notify_one();
    }

    /// Have a call not be made, unless it has begun: nothing ends a system call that waits for a FUSE server.
    pub fn cancel(&self, key: u32) {
        let mut state = self.0.state();
        let before = state.waiting.len();
        state.waiting.retain(|(waiting, _)| *waiting != key);
        if state.waiting.len() < before {
            self.0.end(&mut state, key, -libc::ECANCELED);
        }
    }

    /// Whether [`Threads::take`] would give something.
    #[inline(always)]
    pub fn has_ended(&self) -> bool {
        self.0.ended.load(Acquire) != 0
    }

    /// What ended: keys, and bytes or -errno.
    pub fn take(&self) -> Vec<(u32, i32)> {
        let mut state = self.0.state();
        self.0.ended.store(0, Release);
        std::mem::take(&mut state.done)
    }
}

impl Drop for Threads {
    /// What has not begun is not done.
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waiting.clear();
        state.ended = true;
        self.0.called.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Seek, Write};
    use std::os::fd::FromRawFd;

    fn take(threads: &Threads, count: usize) -> Vec<(u32, i32)> {
        let mut ended = Vec::new();
        while ended.len() < count {
            threads.0.event.wait(Some(Duration::from_secs(5)));
            ended.extend(threads.take());
        }
        ended.sort_unstable();
        ended
    }

    fn pipe() -> (File, File) {
        let mut ends = [0; 2];
        // SAFETY: two places for two fds, which are ours then.
        unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
        }
    }

    #[test]
    fn calls_end_with_what_the_kernel_said() {
        // SAFETY: plain system calls; the fd is owned here.
        let mut file =
            unsafe { File::from_raw_fd(libc::memfd_create(c"remote".as_ptr(), libc::MFD_CLOEXEC)) };
        file.write_all(&[7; 5000]).unwrap();
        file.rewind().unwrap();
        let mut data = [0u8; 4096];
        let part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
        let read = |fd, offset| Call {
            fd,
            kind: CallKind::Transfer { write: false, offset, parts: &raw const part, count: 1, flags: 0 },
        };
        let threads = Threads::new().unwrap();
        for (key, call) in [read(file.as_raw_fd(), 1000), read(-1, 0)].into_iter().enumerate() {
            // SAFETY: all of it lives until the end of the test.
            unsafe { threads.submit(key as u32, call) };
        }
        assert_eq!(take(&threads, 2), [(0, 4000), (1, -libc::EBADF)]);
        assert!(data[..4000].iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_call_that_waits_holds_up_no_other() {
        let pipes: Vec<_> = (0..8).map(|_| pipe()).collect();
        let mut data = [0u8; 1];
        let part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: 1 };
        let threads = Threads::new().unwrap();
        for (key, (end, _)) in pipes.iter().enumerate() {
            // an offset of -1: where the file is, as read(2)
            let (fd, parts) = (end.as_raw_fd(), &raw const part);
            let kind = CallKind::Transfer { write: false, offset: u64::MAX, parts, count: 1, flags: 0 };
            let call = Call { fd, kind };
            // SAFETY: all of it lives until the end of the test; nobody reads the byte.
            unsafe { threads.submit(key as u32, call) };
        }
        for (key, (_, end)) in pipes.iter().enumerate().rev() {
            (&*end).write_all(b"x").unwrap();
            assert_eq!(take(&threads, 1), [(key as u32, 1)]);
        }
    }
}
