//! The engine where there is io_uring.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::{cqueue, opcode, squeue, types, IoUring};

use super::alarms::Alarms;
use super::job::{File, Job};
use super::threads::{Call, Threads};
use super::{Event, THREADS};
use crate::clock::now_ns;
use crate::memory::IoVec;
use crate::store::Store;
use crate::view::View;

const ENTRIES: u32 = 256;
const FILES: u32 = 1024;
/// Requests of a worker that may wait in the kernel on threads, at most; these come and go as they are needed.
const KERNEL_THREADS: u32 = 1024;

const WATCH: u64 = 1 << 56;
const REQUEST: u64 = 2 << 56;
const IGNORE: u64 = 3 << 56;
const ALARM: u64 = 4 << 56;

/// An io_uring of one worker.
pub struct Uring {
    ring: IoUring,
    files: HashMap<u32, u64>,
    watched: HashMap<u32, RawFd>,
    has_table: bool,
    /// Requests that were submitted and have not ended.
    running: usize,
    /// What was collected to make room while the submission queue was full.
    early: Vec<Event>,
    /// Once there was a store that needs them.
    threads: Option<Threads>,
    alarms: Alarms,
}

impl Uring {
    /// Set up; must be called on the worker's own thread (SINGLE_ISSUER).
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(ENTRIES * 8)
            .build(ENTRIES)
            .or_else(|_| IoUring::builder().setup_r_disabled().setup_cqsize(ENTRIES * 8).build(ENTRIES))?;
        let has_table = ring.submitter().register_files_sparse(FILES).is_ok();
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed =
            [opcode::Read::CODE, opcode::Readv::CODE, opcode::Fallocate::CODE, opcode::PollAdd::CODE];
        // resource tagging came with multishot polls (5.13), which cannot be asked for by themselves
        let has_multishot = ring.params().is_feature_resource_tagging();
        if !has_multishot || !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        // what hangs keeps a thread of the kernel; by default there are four for each CPU, and all disks share them
        let _ = ring.submitter().register_iowq_max_workers(&mut [KERNEL_THREADS, 0]);
        // spares the look-up of the ring's own fd in each system call; kernels without it go on without
        let _ = ring.submitter().register_ring_fd();
        restrict(&ring)?;
        Ok(Uring {
            ring,
            files: HashMap::new(),
            watched: HashMap::new(),
            has_table,
            running: 0,
            early: Vec::new(),
            threads: None,
            alarms: Alarms::default(),
        })
    }

    /// Submit the current step of a job.
    ///
    /// # Safety
    /// As for [`super::Engine::submit`].
    pub(super) unsafe fn submit(
        &mut self,
        key: u32,
        job: &mut Job,
        store: &Store,
        file_slot: Option<u32>,
        spans: &[IoVec],
    ) {
        let fd = store.file_descriptor().expect("only files are submitted").as_raw_fd();
        self.running += 1;
        if store.needs_threads() && job.transfers() {
            let call = job.call(store, fd, spans);
            // SAFETY: the caller's promise covers what the call points to.
            return unsafe { self.call(key, call) };
        }
        let slot = file_slot.filter(|slot| !store.is_remote() && self.has_file(*slot, store));
        let file = slot.map_or(File::Plain(fd), File::Fixed);
        let mut entry = job.entry(store, fd, file, spans).user_data(REQUEST | u64::from(key));
        if store.is_remote() {
            entry = entry.flags(squeue::Flags::ASYNC);
        }
        // SAFETY: the caller's promise covers what the entry points to.
        unsafe { self.push(&entry) };
    }

    /// Ask the kernel to cancel a submitted job.
    pub(super) fn cancel(&mut self, key: u32) {
        if let Some(threads) = &self.threads {
            threads.cancel(key);
        }
        let entry = opcode::AsyncCancel::new(REQUEST | u64::from(key)).build().user_data(IGNORE);
        // SAFETY: the entry points to nothing.
        unsafe { self.push(&entry) };
    }

    #[inline(always)]
    pub(super) fn has_pushed(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    #[inline(always)]
    pub(super) fn is_busy(&self) -> bool {
        self.running > 0
    }

    #[inline(always)]
    fn has_file(&self, slot: u32, store: &Store) -> bool {
        self.files.get(&slot) == Some(&store.id())
    }

    /// # Safety
    /// What the entry points to stays valid until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: the caller's promise.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // EBUSY: the completion queue overflowed, and submitting goes on when it was reaped
            if self.ring.submit().is_err() {
                let mut early = std::mem::take(&mut self.early);
                self.reap(&mut early);
                self.early = early;
            }
        }
    }

    /// Have a thread of ours do it.
    ///
    /// # Safety
    /// What the call points to stays valid until its completion.
    unsafe fn call(&mut self, key: u32, call: Call) {
        if self.threads.is_none() {
            match Threads::new() {
                Ok(threads) => {
                    self.watched.insert(THREADS, threads.event());
                    self.threads = Some(threads);
                    self.arm(THREADS);
                }
                Err(_) => {
                    self.running -= 1;
                    return self.early.push(Event::Done(key, -libc::ENOMEM));
                }
            }
        }
        if let Some(threads) = &self.threads {
            // SAFETY: the caller's promise.
            unsafe { threads.submit(key, call) };
        }
    }

    pub(super) fn watch(&mut self, fd: RawFd, token: u32) {
        self.watched.insert(token, fd);
        self.arm(token);
    }

    fn arm(&mut self, token: u32) {
        let Some(fd) = self.watched.get(&token) else { return };
        let poll = opcode::PollAdd::new(types::Fd(*fd), libc::POLLIN as u32).multi(true);
        // SAFETY: the entry points to nothing.
        unsafe { self.push(&poll.build().user_data(WATCH | u64::from(token))) };
    }

    pub(super) fn unwatch(&mut self, token: u32) {
        if self.watched.remove(&token).is_some() {
            let entry = opcode::PollRemove::new(WATCH | u64::from(token)).build().user_data(IGNORE);
            // SAFETY: the entry points to nothing.
            unsafe { self.push(&entry) };
            let _ = self.ring.submit();
        }
    }

    #[inline(always)]
    pub(super) fn set_alarms(&mut self, wanted: &[u64]) {
        if !wanted.is_empty() || !self.alarms.is_empty() {
            self.change_alarms(wanted);
        }
    }

    /// Remove the alarms that are not wanted, and set those that are missing.
    fn change_alarms(&mut self, wanted: &[u64]) {
        let others = self.alarms.others(wanted);
        for name in &others {
            let entry = opcode::TimeoutRemove::new(ALARM | u64::from(*name)).build().user_data(IGNORE);
            // SAFETY: the entry points to nothing.
            unsafe { self.push(&entry) };
        }
        if !others.is_empty() {
            let mut early = std::mem::take(&mut self.early);
            self.turn(&mut early);
            self.early = early;
        }
        let now = now_ns();
        for at in wanted {
            if let Some((entry, name)) = self.alarms.set(*at, now) {
                // SAFETY: the alarms have what the entry points to, and live as long as the ring.
                unsafe { self.push(&entry.user_data(ALARM | u64::from(name))) };
            }
        }
    }

    #[inline(always)]
    pub(super) fn has_events(&mut self) -> bool {
        !self.early.is_empty() || self.ring.submission().taskrun() || !self.ring.completion().is_empty()
    }

    #[inline(always)]
    pub(super) fn turn(&mut self, events: &mut Vec<Event>) {
        let queue = self.ring.submission();
        let (pushed, taskrun) = (queue.len() as u32, queue.taskrun() || queue.cq_overflow());
        drop(queue);
        if taskrun || pushed > 0 {
            // DEFER_TASKRUN: completions come into being when their issuer asks for them, here along with submitting
            // SAFETY: no argument is passed.
            let _ = unsafe { self.ring.submitter().enter::<libc::sigset_t>(pushed, 0, GETEVENTS, None) };
        }
        self.reap(events);
    }

    pub(super) fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> Option<u64> {
        self.alarms.forget_rang();
        let result = match timeout {
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                let spec = types::Timespec::from(timeout);
                let args = types::SubmitArgs::new().timespec(&spec);
                self.ring.submitter().submit_with_args(1, &args)
            }
        };
        // EINTR, ETIME and EBUSY all mean: look, and come back
        let _ = result;
        self.reap(events);
        self.alarms.rang()
    }

    #[inline(always)]
    fn reap(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.early);
        if self.ring.completion().is_empty() {
            return;
        }
        let mut rearm = Vec::new();
        for entry in self.ring.completion() {
            let low = entry.user_data() as u32;
            match entry.user_data() & !0xff_ffff_ffff_ffff {
                REQUEST => {
                    self.running -= 1;
                    events.push(Event::Done(low, entry.result()));
                }
                WATCH => {
                    match &self.threads {
                        Some(threads) if low == THREADS => {
                            let ended = threads.take();
                            self.running -= ended.len();
                            events.extend(ended.into_iter().map(|(key, result)| Event::Done(key, result)));
                        }
                        _ => events.push(Event::Ready(low)),
                    }
                    if !cqueue::more(entry.flags()) && entry.result() >= 0 {
                        rearm.push(low);
                    }
                }
                ALARM => self.alarms.ended(low, entry.result()),
                _ => {}
            }
        }
        rearm.into_iter().for_each(|token| self.arm(token));
    }

    pub(super) fn adopt(&mut self, view: &View) {
        if !self.has_table {
            return;
        }
        let wanted: HashMap<u32, &Store> =
            view.luns.iter().filter_map(|lun| Some((lun.file_slot?, &*lun.store))).collect();
        let gone: Vec<u32> = self.files.keys().filter(|slot| !wanted.contains_key(slot)).copied().collect();
        for slot in gone {
            self.files.remove(&slot);
            let _ = self.ring.submitter().register_files_update(slot, &[-1]);
        }
        for (slot, store) in wanted {
            let Some(fd) = store.file_descriptor().filter(|_| !self.has_file(slot, store)) else { continue };
            if self.ring.submitter().register_files_update(slot, &[fd.as_raw_fd()]).is_ok() {
                self.files.insert(slot, store.id());
            }
        }
    }
}

/// All that a ring is ever asked to do.
const OPCODES: [u8; 11] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
    opcode::PollRemove::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Timeout::CODE,
    opcode::TimeoutRemove::CODE,
];
/// IORING_REGISTER_FILES_UPDATE
const REGISTER_FILES_UPDATE: u8 = 6;

/// Let a disabled ring do nothing but [`OPCODES`], for good, and enable it.
///
/// What goes through a ring passes no seccomp filter: without this, who controls the process could open files and
/// sockets here that its filter keeps it from.
fn restrict(ring: &IoUring) -> io::Result<()> {
    let mut allowed = Vec::from(OPCODES.map(Restriction::sqe_op));
    let flags = squeue::Flags::FIXED_FILE | squeue::Flags::ASYNC;
    allowed.push(Restriction::sqe_flags_allowed(flags.bits()));
    allowed.push(Restriction::register_op(REGISTER_FILES_UPDATE));
    ring.submitter().register_restrictions(&mut allowed)?;
    ring.submitter().register_enable_rings()
}

/// IORING_ENTER_GETEVENTS
const GETEVENTS: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_does_what_a_target_needs_and_nothing_else() {
        if IoUring::new(2).is_err() {
            return; // this host forbids io_uring
        }
        let mut ring = Uring::new().expect("a ring of ours, where there are any");
        let path = c"/etc/passwd";
        let entries = [
            opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            opcode::Nop::new().build(),
            opcode::AsyncCancel::new(REQUEST | 99).build(),
        ];
        for (key, entry) in entries.into_iter().enumerate() {
            ring.running += 1;
            // SAFETY: the path lives until the end of the test.
            unsafe { ring.push(&entry.user_data(REQUEST | key as u64)) };
        }
        let mut events = Vec::new();
        while events.len() < 4 {
            ring.wait(None, &mut events);
        }
        assert_eq!(ring.running, 0);
        let refused = |key| Event::Done(key, -libc::EACCES);
        assert!((0..3).all(|key| events.contains(&refused(key))), "{events:?}");
        assert!(events.contains(&Event::Done(3, -libc::ENOENT)), "what is allowed was done: {events:?}");
        assert!(ring.ring.submitter().unregister_files().is_err(), "the table is kept");
        assert!(ring.ring.submitter().register_files_update(0, &[0]).is_ok(), "and can be filled");
    }

    #[test]
    fn an_alarm_ends_a_wait_and_is_kept_while_it_is_wanted() {
        if IoUring::new(2).is_err() {
            return; // this host forbids io_uring
        }
        let (mut ring, mut events) = (Uring::new().expect("a ring of ours"), Vec::new());
        let (now, hour) = (now_ns(), 3_600_000_000_000);
        ring.set_alarms(&[now + 1, now + hour]);
        assert_eq!(ring.wait(None, &mut events), Some(now + 1));
        ring.set_alarms(&[now + hour + 1]);
        assert!(ring.ring.submission().is_empty(), "it is set, and close enough");
        ring.set_alarms(&[]);
        while !ring.alarms.is_empty() {
            assert_eq!(ring.wait(None, &mut events), None, "what was removed does not go off");
        }
        assert_eq!(events, []);
    }
}
