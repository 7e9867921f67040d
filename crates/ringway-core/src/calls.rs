//! Keeps front ends from holding up a worker with their call eventfds.
//!
//! A worker looks before it writes to one that blocks, but a front end can clear O_NONBLOCK at any time (the flag is
//! of the open file, which is shared), and fill the counter between the look and the write. So a thread looks at all
//! of them once a second, while there are any: a full one is emptied, which lets a writer go on. Nobody honest
//! has one that is full: it takes 2^64 - 2 signals that nobody heard.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::notify;

/// How long a worker waits for a peer at most.
const TICK: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Held {
    queue: u16,
    number: u64,
    fd: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<Held>,
    number: u64,
    over: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Duplicates of the call eventfds that workers may write to, and the thread that looks at them.
#[derive(Debug)]
pub struct Calls {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Calls {
    /// Start the thread; it sleeps while there are no calls.
    pub fn new() -> Result<Self> {
        let shared: Arc<Shared> = Arc::default();
        let (name, body) = ("ringway-calls".to_string(), shared.clone());
        let thread = std::thread::Builder::new().name(name).spawn(move || body.run());
        let thread = thread.map_err(|source| Error::Os { context: "starting a thread", source })?;
        Ok(Calls { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Look at a queue's next call as well, from before its worker gets it.
    pub fn add(&self, queue: u16, call: Option<&OwnedFd>) -> Result<u64> {
        let fd = call.map(|call| notify::duplicate(call.as_raw_fd())).transpose()?;
        let mut state = self.shared.lock();
        state.number += 1;
        let number = state.number;
        state.calls.extend(fd.map(|fd| Held { queue, number, fd }));
        self.shared.changed.notify_one();
        Ok(number)
    }

    /// The queue's worker uses no older call than this one any more.
    pub fn keep_from(&self, queue: u16, number: u64) {
        self.shared.lock().calls.retain(|held| held.queue != queue || held.number >= number);
    }

    /// The queue's worker did not take this one.
    pub fn forget(&self, number: u64) {
        self.shared.lock().calls.retain(|held| held.number != number);
    }

    /// The queue's worker uses none any more.
    pub fn drop_all(&self, queue: u16) {
        self.keep_from(queue, u64::MAX);
    }

    /// End the thread; idempotent.
    pub fn close(&self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.lock().unwrap().take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.over {
            state = if state.calls.is_empty() {
                self.changed.wait(state).unwrap()
            } else {
                self.changed.wait_timeout(state, TICK).unwrap().0
            };
            empty_full_ones(&state.calls);
        }
    }
}

fn empty_full_ones(calls: &[Held]) {
    let poll = |held: &Held| libc::pollfd { fd: held.fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    let mut polls: Vec<libc::pollfd> = calls.iter().map(poll).collect();
    // SAFETY: the list is as long as it is said to be.
    unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, 0) };
    polls.iter().filter(|poll| poll.revents & libc::POLLOUT == 0).for_each(|poll| empty(poll.fd));
}

/// Read an eventfd, and never wait for it: its peer may have emptied it meanwhile.
fn empty(fd: i32) {
    let mut count = 0u64;
    let part = libc::iovec { iov_base: (&raw mut count).cast(), iov_len: 8 };
    // SAFETY: eight bytes into a local.
    unsafe { libc::preadv2(fd, &part, 1, -1, libc::RWF_NOWAIT) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::Call;
    use std::os::fd::FromRawFd;

    #[test]
    fn a_front_end_that_fills_its_eventfd_under_a_writer_holds_it_up_for_a_moment_only() {
        let fd = notify::eventfd().unwrap();
        let ours = notify::duplicate(fd.as_raw_fd()).unwrap();
        let call = Call::new(notify::duplicate(fd.as_raw_fd()).unwrap());
        let calls = Calls::new().unwrap();
        calls.add(0, Some(&ours)).unwrap();
        let most = u64::MAX - 1;
        // SAFETY: a plain system call on an fd of ours; eight bytes from a local.
        unsafe {
            assert_eq!(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, 0), 0);
            assert_eq!(libc::write(fd.as_raw_fd(), (&raw const most).cast(), 8), 8);
        }
        call.signal(); // it was non-blocking when it was taken over: nobody looks
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd.
        assert_eq!(unsafe { libc::poll(&mut poll, 1, 0) }, 1, "the signal was lost");
        calls.close();
    }

    #[test]
    fn what_is_not_full_is_left_alone_and_what_is_dropped_is_forgotten() {
        // SAFETY: a plain system call; the fd is new and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::eventfd(7, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) };
        let calls = Calls::new().unwrap();
        let first = calls.add(3, Some(&fd)).unwrap();
        let second = calls.add(3, Some(&fd)).unwrap();
        empty_full_ones(&calls.shared.lock().calls);
        let mut count = 0u64;
        // SAFETY: eight bytes into a local.
        unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) };
        assert_eq!(count, 7);
        empty(fd.as_raw_fd()); // and does not wait
        calls.keep_from(3, second);
        assert!(first < second && calls.shared.lock().calls.len() == 1);
        calls.drop_all(3);
        assert!(calls.shared.lock().calls.is_empty());
        calls.close();
        calls.close();
    }
}
