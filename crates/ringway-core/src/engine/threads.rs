//! Threads of ours, for the reads and writes that io_uring does not do right.
//!
//! Up to 6.18 at least, io_uring itself goes on with a short read or write of a regular file, once, when the file can
//! be polled; a FUSE file can. Where the server asked for FOPEN_DIRECT_IO the kernel does not move the request's
//! position meanwhile (fs/fuse/file.c, `fuse_direct_IO`): the rest comes from, or goes to, the place where the first
//! part did, and the result tells nothing of it.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
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

/// One read or write.
#[derive(Debug)]
pub(super) struct Call {
    pub write: bool,
    pub fd: RawFd,
    pub offset: u64,
    pub parts: *const libc::iovec,
    pub count: i32,
    pub flags: i32,
}

// SAFETY: what it points to stays until the call's result was taken: `Threads::submit`'s caller promises that.
unsafe impl Send for Call {}

impl Call {
    /// Bytes, or -errno.
    fn run(&self) -> i32 {
        let Call { write, fd, offset, parts, count, flags } = *self;
        let offset = offset.cast_signed();
        // SAFETY: as for Send; the kernel checks the buffers themselves.
        let done = unsafe {
            match write {
                true => libc::pwritev2(fd, parts, count, offset, flags),
                false => libc::preadv2(fd, parts, count, offset, flags),
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
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    fn serve(&self) {
        let mut state = self.state();
        loop {
            if let Some((key, call)) = state.waiting.pop_front() {
                drop(state);
                let result = call.run();
                state = self.state();
                state.done.push((key, result));
                self.event.signal();
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
        Ok(Threads(Arc::new(Shared { state: Mutex::default(), called: Condvar::new(), event })))
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
            let builder = std::thread::Builder::new().name("remote-io".into()).stack_size(STACK_BYTES);
            match builder.spawn(move || shared.serve()) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    state.waiting.pop_back();
                    state.done.push((key, -errno(&error)));
                    self.0.event.signal();
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
            state.done.push((key, -libc::ECANCELED));
            self.0.event.signal();
        }
    }

    /// What ended: keys, and bytes or -errno.
    pub fn take(&self) -> Vec<(u32, i32)> {
        std::mem::take(&mut self.0.state().done)
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
        let read = |fd, offset| Call { write: false, fd, offset, parts: &raw const part, count: 1, flags: 0 };
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
            let call = Call { write: false, fd, offset: u64::MAX, parts, count: 1, flags: 0 };
            // SAFETY: all of it lives until the end of the test; nobody reads the byte.
            unsafe { threads.submit(key as u32, call) };
        }
        for (key, (_, end)) in pipes.iter().enumerate().rev() {
            (&*end).write_all(b"x").unwrap();
            assert_eq!(take(&threads, 1), [(key as u32, 1)]);
        }
    }
}
