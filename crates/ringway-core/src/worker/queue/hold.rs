//! Requests that outlast a turn: in the kernel, in Python, or parked.

use super::super::pending::{Class, Pending, Phase};
use super::super::request::answer_scsi;
use super::super::Completion;
use super::{failed_with, refuse, Context, Queue, Request, Role, Turn, S_FAILURE};
use crate::action::Action;
use crate::engine::Progress;
use crate::fault::{self, Point};
use crate::memory::{gather, scatter, IoVec};
use crate::scsi::{Failure, RESPONSE_BYTES};
use crate::slow::{SlowCommand, SlowKind, MAX_CONTROL_DATA, MAX_SLOW_DATA};
use crate::store::Errno;
use crate::view::Lun;
use crate::vring::Chain;

const EVENTS_MISSED: u32 = 0x8000_0000;

impl Queue {
    /// Keep a request beyond this turn. The chain's spans move into it, with the view that they belong to.
    pub(super) fn hold(&mut self, turn: &mut Turn<'_>, lun: Option<&Lun>) -> u32 {
        let Turn { context, request, chain, .. } = turn;
        let mut pending = context.slab.spare();
        std::mem::swap(&mut pending.chain, chain);
        pending.queue = Some(self.index);
        pending.head = request.head;
        pending.phase = Phase::Parked;
        pending.header = request.header;
        pending.popped_ns = request.popped_ns;
        pending.sequence = request.sequence;
        pending.past_gate = request.past_gate;
        pending.permit = request.permit;
        pending.wants_python = false;
        pending.cancelled = None;
        pending.current = context.view.clone();
        pending.origin = request.origin.take().unwrap_or_else(|| context.view.clone());
        pending.whose = lun.map(|lun| lun.state.id).or(request.whose);
        (pending.class, pending.range, pending.bytes) = (Class::Other, (0, 0), 0);
        pending.failure = Failure::None;
        pending.slot = request.slot;
        let key = context.slab.insert(pending);
        self.held[request.head as usize] = key + 1;
        self.count_held(self.held_count + 1);
        key
    }

    pub(super) fn release(&mut self, head: u16) {
        self.held[head as usize] = 0;
        self.count_held(self.held_count - 1);
    }

    pub(super) fn count_held(&mut self, count: usize) {
        self.held_count = count;
        self.counters.in_flight.set(count as u64);
    }

    pub(super) fn park(&mut self, context: &mut Context, key: u32, wants_python: bool) {
        let pending = context.slab.get_mut(key);
        (pending.phase, pending.wants_python) = (Phase::Parked, wants_python);
        let slot = pending.slot;
        self.parked.push(key);
        context.trace_parked(slot);
    }

    /// Try parked requests again; whether any went on. Those for Python stay while the slow ring is full.
    #[cold]
    pub(super) fn retry_parked(&mut self, context: &mut Context) -> bool {
        let parked = std::mem::take(&mut self.parked);
        let before = parked.len();
        for key in parked {
            match context.slab.get(key).wants_python {
                true if context.slow.is_full() => self.parked.push(key),
                true => self.offer(context, key),
                false => self.run_held(context, key),
            }
        }
        (self.parked.len() < before) | self.retry_delayed(context)
    }

    /// Keep a request until its time. The worker is told when the first one's comes.
    #[cold]
    pub(super) fn delay(&mut self, context: &mut Context, key: u32) {
        let pending = context.slab.get(key);
        let (due, slot) = (pending.permit.due_ns, pending.slot);
        context.next_due = context.next_due.min(due);
        self.delayed.push(key);
        context.trace_parked(slot);
    }

    /// Let go on what is due, or has to ask again because the limit, the LUN or the ring's state is another now.
    fn retry_delayed(&mut self, context: &mut Context) -> bool {
        let delayed = std::mem::take(&mut self.delayed);
        let before = delayed.len();
        for key in delayed {
            let pending = context.slab.get(key);
            let valid = pending.lun().is_some_and(|lun| lun.state.limit.is_valid(pending.permit));
            let same = valid && pending.current.generation == context.view.generation;
            match same && self.stop.is_none() && pending.permit.due_ns > context.now {
                true => self.delay(context, key),
                false => self.run_held(context, key),
            }
        }
        self.delayed.len() < before
    }

    /// A held request starts over.
    fn run_held(&mut self, context: &mut Context, key: u32) {
        let mut pending = context.slab.remove(key);
        self.release(pending.head);
        let view = context.view.clone();
        let request = Request::of(&pending);
        self.dispatch_traced(Turn { context, view: &view, request, chain: &mut pending.chain });
        context.slab.recycle(pending);
    }

    /// A parked request is cancelled before it did anything.
    pub fn cancel_parked(&mut self, context: &mut Context, key: u32, response: u8) {
        self.parked.retain(|parked| *parked != key);
        self.delayed.retain(|delayed| *delayed != key);
        self.finish(context, key, Err(libc::ECANCELED), Some(response));
    }

    // ---- in the kernel

    pub(super) fn submit_first(&mut self, context: &mut Context, key: u32, action: &Action) {
        let pending = context.slab.get_mut(key);
        (pending.class, pending.range, pending.bytes) = Class::of(action);
        pending.job.prepare_for(action);
        fault::queued(self.index, pending.head);
        self.submit(context, key);
    }

    fn submit(&mut self, context: &mut Context, key: u32) {
        let pending = context.slab.get_mut(key);
        pending.phase = Phase::Running;
        let Pending { job, chain, class, current, whose, .. } = pending;
        let lun = whose.and_then(|id| current.luns.find(id));
        let lun = lun.expect("a request for a store has a LUN");
        // SAFETY: `pending` is boxed and stays until `io_done`; it holds the views whose memory and store these are.
        unsafe { context.engine.submit(key, job, &lun.store, lun.file_slot, data_spans(chain, *class)) };
    }

    /// An I/O ended.
    pub fn io_done(&mut self, context: &mut Context, key: u32, result: i32) {
        let pending = context.slab.get_mut(key);
        let cancelled = pending.cancelled;
        match pending.job.advance(result, data_spans(&pending.chain, pending.class)) {
            Progress::Again if cancelled.is_some() => {
                self.finish(context, key, Err(libc::ECANCELED), cancelled)
            }
            Progress::Again => self.submit(context, key),
            Progress::Finished(outcome) => self.finish(context, key, outcome, cancelled),
        }
    }

    fn finish(&mut self, context: &mut Context, key: u32, outcome: Result<(), Errno>, cancelled: Option<u8>) {
        let mut pending = context.slab.remove(key);
        self.release(pending.head);
        let (view, current, request) = (context.view.clone(), pending.current.clone(), Request::of(&pending));
        let lun = pending.whose.and_then(|id| current.luns.find(id));
        let (class, bytes, now) = (pending.class, pending.bytes, context.now);
        let (head, slot) = (pending.head, pending.slot);
        let turn = Turn { context, view: &view, request, chain: &mut pending.chain };
        match (outcome, cancelled, lun) {
            (Ok(()), _, Some(lun)) => self.succeed(&turn, lun, class, bytes, now),
            (Err(libc::ECANCELED | libc::EINTR), Some(response), _) => {
                let len = refuse(turn.context.kind, self.role, turn.chain, response);
                self.push(&turn, len);
            }
            (Err(errno), _, Some(lun)) => self.store_failed(turn, lun, errno),
            (_, _, None) => unreachable!("a request for a store has a LUN"),
        }
        self.trace_settled(context, slot, head);
        context.slab.recycle(pending);
    }

    // ---- in Python

    #[cold]
    pub(super) fn ask_python(&mut self, turn: &mut Turn<'_>, lun: Option<&Lun>, failure: Failure) {
        let key = self.hold(turn, lun);
        turn.context.slab.get_mut(key).failure = failure;
        self.offer(turn.context, key);
    }

    /// Offer a held request to Python; parked when the ring is full or its data has no room.
    fn offer(&mut self, context: &mut Context, key: u32) {
        let Some(command) = self.slow_command(context, key) else { return self.park(context, key, true) };
        let pending = context.slab.get_mut(key);
        pending.phase = Phase::Slow;
        let head = pending.head;
        self.trace_asked(context, key);
        match context.slow.push(command) {
            Ok(()) => {
                self.counters.slow.add(1);
                fault::point(Point::Submitted, self.index, head);
            }
            Err(_) => self.park(context, key, true),
        }
    }

    fn slow_command(&self, context: &Context, key: u32) -> Option<Box<SlowCommand>> {
        let pending = context.slab.get(key);
        let layout = pending.origin.scsi_header_layout();
        let (kind, header_bytes, answer_bytes, most) = match self.role {
            Role::Request => (SlowKind::Cdb, layout.bytes, RESPONSE_BYTES, MAX_SLOW_DATA),
            _ => (SlowKind::Control, 0, 0, MAX_CONTROL_DATA),
        };
        let out = pending.chain.readable_bytes - header_bytes;
        let share = pending.lun().map(|lun| &lun.state.slow);
        let mut data_out = context.slow.reserve(out.min(most), share)?;
        gather(pending.chain.readable(), header_bytes, data_out.bytes_mut());
        Some(Box::new(SlowCommand {
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
            instance: pending.whose.map_or(0, |id| id.instance),
            failure: pending.failure,
            message: String::new(),
            life: self.life.begin(),
        }))
    }

    /// Python finished a command.
    pub fn slow_done(&mut self, context: &mut Context, key: u32, completion: &Completion) {
        let mut pending = context.slab.remove(key);
        self.release(pending.head);
        let header = pending.origin.scsi_header_layout().bytes;
        let len = match self.role {
            Role::Request => {
                self.count_slow(pending.lun().map(|lun| &**lun), completion);
                answer_scsi(&pending.chain, completion, pending.chain.readable_bytes - header)
            }
            _ => scatter(pending.chain.writable(), 0, &completion.data) as u32,
        };
        let (view, request) = (context.view.clone(), Request::of(&pending));
        self.push(&Turn { context, view: &view, request, chain: &mut pending.chain }, len);
        self.trace_settled(context, pending.slot, pending.head);
        context.slab.recycle(pending);
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

    // ---- events

    /// Give the guest an event, or remember that one was missed.
    pub fn post_event(&mut self, context: &mut Context, mut event: [u8; 16]) {
        let view = context.view.clone();
        let mut chain = Chain::default();
        let head = match self.event_buffer(context, &mut chain) {
            Some(head) => head,
            None => return self.events_missed = true,
        };
        if std::mem::take(&mut self.events_missed) {
            let kind = u32::from_le_bytes(event[..4].try_into().expect("4 bytes")) | EVENTS_MISSED;
            event[..4].copy_from_slice(&kind.to_le_bytes());
        }
        let len = scatter(chain.writable(), 0, &event) as u32;
        let request = Request::popped(head, context.now, None);
        self.push(&Turn { context, view: &view, request, chain: &mut chain }, len);
    }

    /// The next buffer for an event: one that a dead back end had taken, else the next available.
    fn event_buffer(&mut self, context: &mut Context, chain: &mut Chain) -> Option<u16> {
        if !self.runs() {
            return None;
        }
        let (memory, ring) = (context.view.memory.clone(), self.ring.as_mut()?);
        let popped = match self.resubmit.pop() {
            Some(head) => ring.read_chain(head, &memory, chain).map(|()| head),
            None if ring.available().is_ok_and(|count| count > 0) => ring.pop(&memory, chain),
            None => return None,
        };
        match popped {
            Ok(head) => {
                if let Some(inflight) = &mut self.inflight {
                    inflight.take(head);
                }
                Some(head)
            }
            Err(error) => {
                self.fail(context, error.to_string());
                None
            }
        }
    }
}

fn data_spans(chain: &Chain, class: Class) -> &[IoVec] {
    match class {
        Class::Write => chain.readable(),
        _ => chain.writable(),
    }
}
