//! Requests that outlast a turn: in the kernel, in Python, or parked.

use std::sync::Arc;

use super::super::pending::{Class, Pending, Phase};
use super::super::request::answer_scsi;
use super::super::Completion;
use super::{failed_with, Context, Queue, Request, Role, Turn, S_FAILURE};
use crate::action::Action;
use crate::engine::{Job, Progress};
use crate::memory::{gather, scatter};
use crate::scsi::{Failure, RESPONSE_BYTES};
use crate::slow::{SlowCommand, SlowKind, MAX_SLOW_DATA};
use crate::store::Errno;
use crate::view::Lun;
use crate::vring::Chain;

const EVENTS_MISSED: u32 = 0x8000_0000;

impl Queue {
    /// Keep a request beyond this turn. The chain's spans move into it.
    pub(super) fn hold(&mut self, turn: &mut Turn<'_>, lun: Option<&Arc<Lun>>) -> u32 {
        let Request { head, popped_ns, sequence, past_gate, header } = turn.request;
        let key = turn.context.slab.insert(Box::new(Pending {
            queue: Some(self.index),
            head,
            phase: Phase::Parked,
            chain: std::mem::take(turn.chain),
            header,
            popped_ns,
            sequence,
            serial: 0,
            generation: turn.view.generation,
            past_gate,
            wants_python: false,
            cancelled: None,
            lun: lun.cloned(),
            memory: turn.view.memory.clone(),
            job: Job::default(),
            class: Class::Other,
            range: (0, 0),
            bytes: 0,
            failure: Failure::None,
        }));
        self.held[head as usize] = key + 1;
        self.count_held(self.held_count + 1);
        key
    }

    pub(super) fn release(&mut self, head: u16) {
        self.held[head as usize] = 0;
        self.count_held(self.held_count - 1);
    }

    fn count_held(&mut self, count: usize) {
        self.held_count = count;
        self.counters.in_flight.set(count as u64);
    }

    pub(super) fn park(&mut self, context: &mut Context, key: u32, wants_python: bool) {
        let pending = context.slab.get_mut(key);
        (pending.phase, pending.wants_python) = (Phase::Parked, wants_python);
        self.parked.push(key);
    }

    /// Try parked requests again; whether any went on.
    #[cold]
    pub(super) fn retry_parked(&mut self, context: &mut Context) -> bool {
        let parked = std::mem::take(&mut self.parked);
        let before = parked.len();
        for key in parked {
            match context.slab.get(key).wants_python {
                true => self.offer(context, key),
                false => self.run_held(context, key),
            }
        }
        self.parked.len() < before
    }

    /// A held request starts over.
    fn run_held(&mut self, context: &mut Context, key: u32) {
        let mut pending = context.slab.remove(key);
        self.release(pending.head);
        let view = context.view.clone();
        let request = Request::of(&pending);
        self.dispatch(Turn { context, view: &view, request, chain: &mut pending.chain });
    }

    // ---- in the kernel

    pub(super) fn submit_first(&mut self, context: &mut Context, key: u32, action: &Action) {
        let pending = context.slab.get_mut(key);
        (pending.class, pending.range, pending.bytes) = Class::of(action);
        pending.job.steps = action.steps();
        pending.job.bounce = action.pattern_buffer();
        self.submit(context, key);
    }

    fn submit(&mut self, context: &mut Context, key: u32) {
        let pending = context.slab.get_mut(key);
        pending.phase = Phase::Running;
        let lun = pending.lun.as_ref().expect("a request for a store has a LUN");
        let spans = data_spans(&pending.chain, pending.class);
        // SAFETY: `pending` is boxed and stays until `io_done`; it holds the memory map and the LUN (with its store).
        unsafe { context.engine.submit(key, &mut pending.job, &lun.store, lun.file_slot, spans) };
    }

    /// An I/O ended.
    pub fn io_done(&mut self, context: &mut Context, key: u32, result: i32) {
        let pending = context.slab.get_mut(key);
        match pending.job.advance(result, data_spans(&pending.chain, pending.class)) {
            Progress::Again => self.submit(context, key),
            Progress::Finished(outcome) => self.finish(context, key, outcome),
        }
    }

    fn finish(&mut self, context: &mut Context, key: u32, outcome: Result<(), Errno>) {
        let mut pending = context.slab.remove(key);
        self.release(pending.head);
        let lun = pending.lun.take().expect("a request for a store has a LUN");
        let view = context.view.clone();
        let request = Request::of(&pending);
        let Pending { chain, memory, class, bytes, cancelled, .. } = &mut *pending;
        let turn = Turn { context, view: &view, request, chain };
        match (outcome, cancelled) {
            (Ok(()), _) => self.succeed(&turn, memory, &lun, *class, *bytes),
            (Err(libc::ECANCELED | libc::EINTR), Some(response)) => {
                let len = answer_scsi(turn.chain, &failed_with(*response), 0);
                self.push(&turn, len);
            }
            (Err(errno), _) => self.store_failed(turn, &lun, errno),
        }
    }

    // ---- in Python

    #[cold]
    pub(super) fn ask_python(&mut self, turn: &mut Turn<'_>, lun: Option<&Arc<Lun>>, failure: Failure) {
        let key = self.hold(turn, lun);
        turn.context.slab.get_mut(key).failure = failure;
        self.offer(turn.context, key);
    }

    /// Offer a held request to Python; parked when the ring is full.
    fn offer(&mut self, context: &mut Context, key: u32) {
        let command = self.slow_command(context, key);
        let pending = context.slab.get_mut(key);
        pending.phase = Phase::Slow;
        if context.slow.push(command).is_err() {
            self.park(context, key, true);
        }
    }

    fn slow_command(&self, context: &Context, key: u32) -> Box<SlowCommand> {
        let layout = context.view.scsi_header_layout();
        let (kind, header_bytes, answer_bytes) = match self.role {
            Role::Request => (SlowKind::Cdb, layout.bytes, RESPONSE_BYTES),
            _ => (SlowKind::Control, 0, 0),
        };
        let pending = context.slab.get(key);
        let out = pending.chain.readable_bytes - header_bytes;
        let mut data_out = vec![0; out.min(MAX_SLOW_DATA)];
        gather(pending.chain.readable(), header_bytes, &mut data_out);
        Box::new(SlowCommand {
            kind,
            tag: context.slab.tag(key, self.index),
            queue: self.index,
            lun: pending.header.lun(),
            id: pending.header.id(),
            task_attribute: pending.header.task_attribute(),
            cdb: pending.header.cdb(layout.cdb),
            data_out,
            data_out_size: out,
            data_in_size: pending.chain.writable_bytes - answer_bytes,
            failure: pending.failure,
            message: String::new(),
        })
    }

    /// Python finished a command.
    pub fn slow_done(&mut self, context: &mut Context, key: u32, completion: &Completion) {
        let mut pending = context.slab.remove(key);
        self.release(pending.head);
        let layout = context.view.scsi_header_layout();
        let len = match self.role {
            Role::Request => {
                self.count_slow(pending.lun.as_deref(), completion);
                answer_scsi(&pending.chain, completion, pending.chain.readable_bytes - layout.bytes)
            }
            _ => scatter(pending.chain.writable(), 0, &completion.data) as u32,
        };
        let view = context.view.clone();
        let request = Request::of(&pending);
        self.push(&Turn { context, view: &view, request, chain: &mut pending.chain }, len);
    }

    fn count_slow(&self, lun: Option<&Lun>, completion: &Completion) {
        let Some(lun) = lun else { return };
        let counters = lun.state.counters(self.index);
        counters.other.add(1);
        counters.errors.add(u64::from(completion.status != 0 || completion.response != 0));
    }

    /// Python sends a command back to the hot path.
    pub fn resume(&mut self, context: &mut Context, key: u32) {
        let pending = context.slab.get_mut(key);
        if pending.failure != Failure::None {
            // it would fail the same way for ever
            return self.slow_done(context, key, &failed_with(S_FAILURE));
        }
        pending.past_gate = true;
        self.run_held(context, key);
    }

    /// Give the guest an event, or remember that one was missed.
    pub fn post_event(&mut self, context: &mut Context, mut event: [u8; 16]) {
        let view = context.view.clone();
        let mut chain = Chain::default();
        let popped = match (self.runs(), &mut self.ring) {
            (true, Some(ring)) if ring.available().is_ok_and(|count| count > 0) => {
                ring.pop(&view.memory, &mut chain)
            }
            _ => return self.events_missed = true,
        };
        let head = match popped {
            Ok(head) => head,
            Err(error) => return self.fail(context, error.to_string()),
        };
        if std::mem::take(&mut self.events_missed) {
            let kind = u32::from_le_bytes(event[..4].try_into().expect("4 bytes")) | EVENTS_MISSED;
            event[..4].copy_from_slice(&kind.to_le_bytes());
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.take(head);
        }
        let len = scatter(chain.writable(), 0, &event) as u32;
        let request = Request::popped(head, context.now);
        self.push(&Turn { context, view: &view, request, chain: &mut chain }, len);
    }
}

fn data_spans(chain: &Chain, class: Class) -> &[crate::memory::IoVec] {
    match class {
        Class::Write => chain.readable(),
        _ => chain.writable(),
    }
}
