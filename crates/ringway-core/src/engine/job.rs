//! One request's I/O: its steps, the buffers that the kernel sees, and what a result means.

use std::os::fd::RawFd;

use io_uring::{opcode, squeue, types};

use super::threads::{Call, CallKind};
use crate::action::{Action, Step};
use crate::bounce::{Bounce, CHUNK};
use crate::memory::{for_each_span, gather, scatter, IoVec};
use crate::store::{Errno, Store};

/// Spans of one system call at most (UIO_MAXIOV).
const MAX_SPANS: usize = 1024;

/// EAGAIN and EINTR in a row after which an I/O has failed: io_uring has EAGAIN for a write of nothing, each time.
const MAX_STALLS: u32 = 1000;

/// One I/O under way, or about to be.
#[derive(Debug, Default)]
pub struct Job {
    /// Steps left, the current one last.
    pub steps: Vec<Step>,
    /// Buffer of a fill, or for guests' buffers that are not aligned.
    pub bounce: Option<Bounce>,
    /// What was handed to the kernel.
    parts: Vec<IoVec>,
    bounced: bool,
    /// Bytes of a fill's pattern.
    pattern: usize,
    /// How often the kernel asked to be asked again since it last did something.
    stalls: u32,
}

// SAFETY: the parts are host pointers into a memory map (or `bounce`) that the job's owner keeps alive.
unsafe impl Send for Job {}

/// What a finished I/O means for its job.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Submit again.
    Again,
    /// All steps are done, or one failed.
    Finished(std::result::Result<(), Errno>),
}

impl Job {
    /// Take the steps of an action.
    pub fn prepare_for(&mut self, action: &Action) {
        action.steps(&mut self.steps);
        if let Action::Fill { pattern, .. } = action {
            self.pattern = pattern.len();
            self.bounce = action.pattern_buffer();
        }
    }

    /// Forget all, and keep the vectors.
    pub fn reset(&mut self) {
        self.steps.clear();
        self.parts.clear();
        self.bounce = None;
        self.stalls = 0;
    }

    /// Take the result of the submitted step into account.
    pub fn advance(&mut self, result: i32, spans: &[IoVec]) -> Progress {
        let Some(step) = self.steps.last_mut() else { return Progress::Finished(Ok(())) };
        match (result, step) {
            (r, _) if (r == -libc::EINTR || r == -libc::EAGAIN) && self.stalls < MAX_STALLS => {
                self.stalls += 1;
                Progress::Again
            }
            (r, Step::Zero { offset, len, .. }) if r == -libc::EOPNOTSUPP => {
                let fill = Step::Fill { offset: *offset, len: *len };
                self.pattern = 1;
                self.bounce = Some(Bounce::new(CHUNK.min(*len as usize)));
                *self.steps.last_mut().expect("a step") = fill;
                Progress::Again
            }
            (r, _) if r < 0 => Progress::Finished(Err(-r)),
            (0, Step::Transfer { .. } | Step::Fill { .. }) => Progress::Finished(Err(libc::EIO)),
            (done, Step::Transfer { write, offset, len, skip, .. }) => {
                let done = done as usize;
                if self.bounced && !*write {
                    scatter(spans, *skip, self.bounce.as_mut().expect("a bounce buffer").bytes(done));
                }
                self.stalls = 0;
                *offset += done as u64;
                *skip += done;
                *len = len.saturating_sub(done);
                let left = *len;
                self.next_if(left == 0)
            }
            // the next write starts with the pattern's first byte
            (done, Step::Fill { .. }) if !(done as usize).is_multiple_of(self.pattern) => {
                Progress::Finished(Err(libc::EIO))
            }
            (done, Step::Fill { offset, len }) => {
                *offset += done as u64;
                *len = len.saturating_sub(done as u64);
                let left = *len;
                self.next_if(left == 0)
            }
            (_, Step::Flush | Step::Zero { .. }) => self.next_if(true),
        }
    }

    fn next_if(&mut self, step_done: bool) -> Progress {
        if step_done {
            self.steps.pop();
        }
        match self.steps.is_empty() {
            true => Progress::Finished(Ok(())),
            false => Progress::Again,
        }
    }

    /// Lay out the buffers of the current transfer, bounced where they are not aligned.
    fn prepare(&mut self, store: &Store, spans: &[IoVec], write: bool, skip: usize, len: usize) {
        self.parts.clear();
        for_each_span(spans, skip, len, |base, len| self.parts.push(IoVec { base, len }));
        self.parts.truncate(MAX_SPANS);
        self.bounced = !store.takes(&self.parts);
        if !self.bounced {
            return;
        }
        let part = len.min(CHUNK);
        let bounce = self.bounce.get_or_insert_with(|| Bounce::new(part));
        if write {
            gather(spans, skip, bounce.bytes(part));
        }
        self.parts.clear();
        self.parts.push(bounce.span(part));
    }

    fn prepare_fill(&mut self, len: u64) {
        let part = len.min(CHUNK as u64) as usize;
        let bounce = self.bounce.as_ref().expect("a pattern");
        self.parts.clear();
        self.parts.push(bounce.span(part));
    }

    /// Whether the current step moves data.
    pub(super) fn transfers(&self) -> bool {
        matches!(self.steps.last(), Some(Step::Transfer { .. } | Step::Fill { .. }))
    }

    /// The current step as a system call.
    pub(super) fn call(&mut self, store: &Store, fd: RawFd, spans: &[IoVec]) -> Call {
        let kind = match *self.steps.last().expect("a job has a step") {
            Step::Transfer { write, offset, len, skip, fua } => {
                self.prepare(store, spans, write, skip, len);
                self.transfer_call(write, offset, sync_flags(write, fua))
            }
            Step::Fill { offset, len } => {
                self.prepare_fill(len);
                self.transfer_call(true, offset, 0)
            }
            Step::Flush => CallKind::Flush,
            Step::Zero { offset, len, unmap } => CallKind::Zero { mode: store.zero_mode(unmap), offset, len },
        };
        Call { fd, kind }
    }

    fn transfer_call(&self, write: bool, offset: u64, flags: i32) -> CallKind {
        let count = i32::try_from(self.parts.len()).expect("MAX_SPANS at most");
        CallKind::Transfer { write, offset, parts: self.parts.as_ptr().cast(), count, flags }
    }

    pub(super) fn entry(&mut self, store: &Store, fd: RawFd, file: File, spans: &[IoVec]) -> squeue::Entry {
        match *self.steps.last().expect("a job has a step") {
            Step::Transfer { write, offset, len, skip, fua } => {
                self.prepare(store, spans, write, skip, len);
                self.vectored(file, write, offset, fua)
            }
            Step::Fill { offset, len } => {
                self.prepare_fill(len);
                self.vectored(file, true, offset, false)
            }
            // by fd: the kernel runs these apart, and looks a table place up when it gets to them; by then the LUN may
            // have another store there. The request keeps its own store's fd open.
            Step::Flush => opcode::Fsync::new(types::Fd(fd)).flags(types::FsyncFlags::DATASYNC).build(),
            Step::Zero { offset, len, unmap } => {
                opcode::Fallocate::new(types::Fd(fd), len).offset(offset).mode(store.zero_mode(unmap)).build()
            }
        }
    }

    fn vectored(&self, file: File, write: bool, offset: u64, fua: bool) -> squeue::Entry {
        let flags = sync_flags(write, fua);
        if let [IoVec { base, len }] = self.parts[..] {
            if let Ok(len) = u32::try_from(len) {
                return if write {
                    file.write(base, len, offset, flags)
                } else {
                    file.read(base, len, offset)
                };
            }
        }
        let (list, count) = (self.parts.as_ptr().cast::<libc::iovec>(), self.parts.len() as u32);
        match write {
            true => file.writev(list, count, offset, flags),
            false => file.readv(list, count, offset),
        }
    }
}

fn sync_flags(write: bool, fua: bool) -> i32 {
    if fua && write {
        libc::RWF_DSYNC
    } else {
        0
    }
}

/// An fd of the process, or its place in the ring's table.
#[derive(Clone, Copy)]
pub(super) enum File {
    Fixed(u32),
    Plain(RawFd),
}

macro_rules! on_file {
    ($file:expr, $fd:ident => $build:expr) => {
        match $file {
            File::Fixed(slot) => {
                let $fd = types::Fixed(slot);
                $build
            }
            File::Plain(raw) => {
                let $fd = types::Fd(raw);
                $build
            }
        }
    };
}

impl File {
    fn read(self, base: *mut u8, len: u32, offset: u64) -> squeue::Entry {
        on_file!(self, fd => opcode::Read::new(fd, base, len).offset(offset).build())
    }

    fn write(self, base: *const u8, len: u32, offset: u64, flags: i32) -> squeue::Entry {
        on_file!(self, fd => opcode::Write::new(fd, base, len).offset(offset).rw_flags(flags).build())
    }

    fn readv(self, list: *const libc::iovec, count: u32, offset: u64) -> squeue::Entry {
        on_file!(self, fd => opcode::Readv::new(fd, list, count).offset(offset).build())
    }

    fn writev(self, list: *const libc::iovec, count: u32, offset: u64, flags: i32) -> squeue::Entry {
        on_file!(self, fd => opcode::Writev::new(fd, list, count).offset(offset).rw_flags(flags).build())
    }
}
