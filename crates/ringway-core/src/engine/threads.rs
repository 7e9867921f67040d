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

use crate::notify::Event;

/// Threads at most; each waits for one request.
const MOST: usize = 1024;
/// How long a thread waits for the next request before it ends.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a quick call may take before others are not to wait for it.
const QUICK: Duration = Duration::from_millis(1);
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

/// What comes of a call that may not wait.
#[derive(Debug)]
pub(super) enum Now {
    /// So many bytes.
    Done(i32),
    /// It would wait, or fail.
    Waits,
    /// A write to the page cache of a file system that cannot be asked (ext4): as a rule it would not wait.
    Unknown,
}

// SAFETY: what it points to stays until the call's result was taken: `Threads::submit`'s caller promises that.
unsafe impl Send for Call {}

impl Call {
    /// What the page cache has of a read, or takes of a write, on the spot.
    pub fn try_now(&self) -> Now {
        let CallKind::Transfer { write, offset, parts, count, flags: 0 } = self.kind else {
            return Now::Waits;
        };
        let (offset, flags) = (offset.cast_signed(), libc::RWF_NOWAIT);
        // SAFETY: as for Send; the kernel checks the buffers themselves.
        let done = unsafe {
            match write {
                true => libc::pwritev2(self.fd, parts, count, offset, flags),
                false => libc::preadv2(self.fd, parts, count, offset, flags),
            }
        };
        match i32::try_from(done) {
            Ok(done @ 1..) => Now::Done(done),
            Ok(-1) if write && errno(&std::io::Error::last_os_error()) == libc::EOPNOTSUPP => Now::Unknown,
            _ => Now::Waits,
        }
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

/// Something that one thread does at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Role {
    #[default]
    Free,
    /// A thread is to take it.
    Called,
    Taken,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(u32, Call)>,
    /// Calls that hardly ever wait: one thread makes them, one after the other. A thread each costs ten times as much.
    quick: VecDeque<(u32, Call)>,
    /// Who makes them.
    maker: Role,
    /// Who looks after the maker: none of them is to wait for one that waits.
    watcher: Role,
    /// Quick calls that were begun.
    begun: u64,
    done: Vec<(u32, i32)>,
    threads: usize,
    idle: usize,
    ended: bool,
}

impl State {
    /// Threads that there is something to do for.
    fn wanted(&self) -> usize {
        self.waiting.len() + [self.maker, self.watcher].iter().filter(|role| **role == Role::Called).count()
    }
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
        if state.done.len() == 1 {
            self.event.signal(); // who hears it takes all
        }
    }

    /// Have a thread see to what is wanted; the error, if there is none and can be none.
    fn call_thread(self: &Arc<Self>, state: &mut State) -> Result<(), i32> {
        if state.idle < state.wanted() && state.threads < MOST {
            let shared = self.clone();
            let builder = std::thread::Builder::new().name("ringway-call".into()).stack_size(STACK_BYTES);
            match builder.spawn(move || shared.serve()) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => return Err(errno(&error)),
                Err(_) => {} // one of those that are there will come to it
            }
        }
        self.called.notify_one();
        Ok(())
    }

    /// A thread's life.
    fn serve(self: &Arc<Self>) {
        let mut state = self.state();
        loop {
            if let Some((key, call)) = state.waiting.pop_front() {
                state = self.make(state, key, &call);
            } else if state.maker == Role::Called {
                state = self.make_quickly(state);
            } else if state.watcher == Role::Called {
                state = self.watch(state);
            } else if state.ended {
                break;
            } else {
                state.idle += 1;
                let (woken, time) =
                    self.called.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
                state = woken;
                state.idle -= 1;
                if time.timed_out() && state.wanted() == 0 {
                    break;
                }
            }
        }
        state.threads -= 1;
    }

    fn make<'a>(&'a self, state: MutexGuard<'a, State>, key: u32, call: &Call) -> MutexGuard<'a, State> {
        drop(state);
        let result = call.run();
        let mut state = self.state();
        self.end(&mut state, key, result);
        state
    }

    /// Make the quick calls.
    fn make_quickly<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.maker = Role::Taken;
        while let Some((key, call)) = state.quick.pop_front() {
            state.begun += 1;
            self.call_watcher(&mut state);
            state = self.make(state, key, &call);
        }
        state.maker = Role::Free;
        state
    }

    fn call_watcher(self: &Arc<Self>, state: &mut State) {
        if !state.quick.is_empty() && state.watcher == Role::Free {
            state.watcher = Role::Called;
            let _ = self.call_thread(state); // there is the maker
        }
    }

    /// While quick calls wait for their turn: have threads make them once the maker is at one for long.
    fn watch<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.watcher = Role::Taken;
        while !state.quick.is_empty() {
            let begun = state.begun;
            drop(state);
            std::thread::sleep(QUICK);
            state = self.state();
            if state.begun == begun {
                while let Some(waiting) = state.quick.pop_front() {
                    state.waiting.push_back(waiting);
                    let _ = self.call_thread(&mut state); // there is this one
                }
            }
        }
        state.watcher = Role::Free;
        state
    }
}

/// A worker's threads: as many as it has requests under way, none when it has none for a while.
pub(super) struct Threads(Arc<Shared>);

impl Threads {
    /// None yet.
    pub fn new() -> crate::error::Result<Self> {
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
        if let Err(errno) = self.0.call_thread(&mut state) {
            state.waiting.pop_back();
            self.0.end(&mut state, key, -errno);
        }
    }

    /// Have a call made that hardly ever waits.
    ///
    /// # Safety
    /// As for [`Threads::submit`].
    pub unsafe fn submit_quick(&self, key: u32, call: Call) {
        let mut state = self.0.state();
        state.quick.push_back((key, call));
        if state.maker != Role::Free {
            return self.0.call_watcher(&mut state);
        }
        state.maker = Role::Called;
        if let Err(errno) = self.0.call_thread(&mut state) {
            state.maker = Role::Free;
            state.quick.pop_back();
            self.0.end(&mut state, key, -errno);
        }
    }

    /// Have a call not be made, unless it has begun: nothing ends a system call that waits for a FUSE server.
    pub fn cancel(&self, key: u32) {
        let mut state = self.0.state();
        let before = state.waiting.len() + state.quick.len();
        state.waiting.retain(|(waiting, _)| *waiting != key);
        state.quick.retain(|(waiting, _)| *waiting != key);
        if state.waiting.len() + state.quick.len() < before {
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
        state.quick.clear();
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
        [false, true].into_iter().for_each(calls_that_wait);
    }

    fn calls_that_wait(quick: bool) {
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
            unsafe {
                match quick {
                    false => threads.submit(key as u32, call),
                    true => threads.submit_quick(key as u32, call),
                }
            }
        }
        for (key, (_, end)) in pipes.iter().enumerate().rev() {
            (&*end).write_all(b"x").unwrap();
            assert_eq!(take(&threads, 1), [(key as u32, 1)]);
        }
    }
}
