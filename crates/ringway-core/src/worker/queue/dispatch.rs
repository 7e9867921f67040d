//! What becomes of a request: done at once, submitted, parked, or asked of Python.

use std::sync::Arc;

use super::super::pending::{Class, Header};
use super::super::request::{answer_blk, answer_scsi, answer_scsi_good};
use super::{failed_with, DeviceKind, Queue, Role, Turn, S_FAILURE};
use crate::action::Action;
use crate::blk::{self, BlkCommand};
use crate::clock::now_ns;
use crate::fault::{self, Point};
use crate::memory::scatter;
use crate::scsi::{self, Failure, RESPONSE_BYTES};
use crate::store::Errno;
use crate::view::Lun;

impl Queue {
    /// As [`Queue::dispatch`], for requests that may be followed by a trace.
    #[inline(never)]
    pub(super) fn dispatch_traced(&mut self, turn: Turn<'_>) {
        let Turn { context, view, request, chain } = turn;
        let (slot, head) = (request.slot, request.head);
        self.dispatch::<true>(Turn { context: &mut *context, view, request, chain });
        self.trace_settled(context, slot, head);
    }

    #[inline(always)]
    pub(super) fn dispatch<const TRACED: bool>(&mut self, turn: Turn<'_>) {
        match (turn.context.kind, self.role) {
            (DeviceKind::Scsi, Role::Request) => self.dispatch_scsi::<TRACED>(turn),
            (DeviceKind::Blk, _) => self.dispatch_blk::<TRACED>(turn),
            (DeviceKind::Scsi, _) => self.dispatch_control(turn),
        }
    }

    #[inline(always)]
    fn dispatch_scsi<const TRACED: bool>(&mut self, mut turn: Turn<'_>) {
        let layout = turn.origin().scsi_header_layout();
        if turn.chain.writable_bytes < RESPONSE_BYTES {
            return self.push(&turn, 0);
        }
        if !self.read_header(&mut turn, layout.bytes) {
            let len = answer_scsi(turn.chain, &failed_with(S_FAILURE), 0);
            return self.push(&turn, len);
        }
        let header = turn.request.header;
        let (out, room) =
            (turn.chain.readable_bytes - layout.bytes, turn.chain.writable_bytes - RESPONSE_BYTES);
        let address = scsi::lun_address(&header.0);
        let whose = turn.request.whose;
        let lun = address.and_then(|(target, number)| turn.view.luns.get(target, number));
        let Some(lun) = lun.filter(|lun| whose.is_none_or(|whose| whose == lun.state.id)) else {
            return self.ask_python(&mut turn, None, Failure::None);
        };
        match scsi::decode(&header.cdb(layout.cdb)) {
            Some(command) if turn.request.past_gate || lun.state.gate() & command.gate_mask() == 0 => {
                match command.plan(lun, layout.bytes, turn.chain.readable(), out, room) {
                    Ok(action) => self.execute::<TRACED>(turn, lun, &action),
                    Err(failure) => self.ask_python(&mut turn, Some(lun), failure),
                }
            }
            _ => self.ask_python(&mut turn, Some(lun), Failure::None),
        }
    }

    #[inline(always)]
    fn dispatch_blk<const TRACED: bool>(&mut self, mut turn: Turn<'_>) {
        if turn.chain.writable_bytes == 0 {
            return self.push(&turn, 0);
        }
        let room = turn.chain.writable_bytes - 1;
        let Some(lun) = turn.view.luns.get(0, 0).filter(|_| self.read_header(&mut turn, blk::HEADER_BYTES))
        else {
            let len = answer_blk(turn.chain, blk::Status::IoError, room);
            return self.push(&turn, len);
        };
        let header = turn.request.header;
        let out = turn.chain.readable_bytes - blk::HEADER_BYTES;
        let writeback = turn.view.writeback && !lun.state.is_doubtful();
        match blk::plan(&header.0, lun, turn.chain.readable(), out, room, writeback) {
            Ok(BlkCommand::Run(action)) => self.execute::<TRACED>(turn, lun, &action),
            Ok(BlkCommand::Identify) => self.identify(&turn, lun, room),
            Err(status) => self.refuse_blk(&turn, lun, status),
        }
    }

    /// Copy the header out of guest memory, once in a request's life: what was judged is what runs, whatever the guest
    /// writes there meanwhile. False: it is too short.
    #[inline(always)]
    fn read_header(&self, turn: &mut Turn<'_>, bytes: usize) -> bool {
        if turn.request.sequence == 0 {
            let Some(header) = Header::read(turn.chain, bytes) else { return false };
            turn.request.header = header;
        }
        true
    }

    /// GET_ID. Spec: virtio 1.3, 5.2.6: 20 bytes, zero-padded; less when the buffer is smaller.
    fn identify(&mut self, turn: &Turn<'_>, lun: &Lun, room: usize) {
        fault::point(Point::Submitted, self.index, turn.request.head);
        let copied = scatter(turn.chain.writable(), 0, &lun.serial[..room.min(lun.serial.len())]);
        answer_blk(turn.chain, blk::Status::Ok, room);
        lun.state.counters(self.index).other.add(1);
        let written = if room > copied { copied } else { room + 1 };
        self.push(turn, written as u32);
    }

    fn refuse_blk(&mut self, turn: &Turn<'_>, lun: &Lun, status: blk::Status) {
        lun.state.counters(self.index).errors.add(1);
        let len = answer_blk(turn.chain, status, turn.chain.writable_bytes - 1);
        self.push(turn, len);
    }

    /// A control request goes to Python whole.
    fn dispatch_control(&mut self, mut turn: Turn<'_>) {
        match turn.chain.writable_bytes {
            0 => self.push(&turn, 0),
            _ => self.ask_python(&mut turn, None, Failure::None),
        }
    }

    #[inline(always)]
    fn execute<const TRACED: bool>(&mut self, mut turn: Turn<'_>, lun: &Arc<Lun>, action: &Action) {
        let ranges = &lun.state.ranges;
        if action.touches(|start, end, write| ranges.blocks(start, end, write)) {
            let key = self.hold(&mut turn, Some(lun));
            return self.park(turn.context, key, false);
        }
        if lun.state.limit.is_on() && self.must_wait(&mut turn, lun, action) {
            let key = self.hold(&mut turn, Some(lun));
            return self.delay(turn.context, key);
        }
        if TRACED {
            turn.trace_dispatched(lun, action);
        }
        if !action.is_instant(&lun.store) {
            let key = self.hold(&mut turn, Some(lun));
            return self.submit_first(turn.context, key, action);
        }
        let (class, _, bytes) = Class::of(action);
        let spans = if class == Class::Write { turn.chain.readable() } else { turn.chain.writable() };
        fault::point(Point::Submitted, self.index, turn.request.head);
        match action.run(&lun.store, spans) {
            Ok(()) => {
                let now = now_ns();
                if TRACED {
                    turn.trace_completed(now);
                }
                self.succeed(&turn, lun, class, bytes, now);
            }
            Err(errno) => self.store_failed(turn, lun, errno),
        }
    }

    /// Whether a request has to wait for its time. A ring that stops is drained, whatever the limit.
    #[inline(never)]
    fn must_wait(&self, turn: &mut Turn<'_>, lun: &Lun, action: &Action) -> bool {
        let (limit, now) = (&lun.state.limit, turn.context.now);
        if self.stop.is_some() || matches!(action, Action::Nothing | Action::Flush) {
            return false;
        }
        if !limit.is_valid(turn.request.permit) {
            turn.request.permit = limit.reserve(now, Class::of(action).2);
        }
        turn.request.permit.due_ns > now
    }

    #[inline(always)]
    pub(super) fn succeed(&mut self, turn: &Turn<'_>, lun: &Lun, class: Class, bytes: usize, now: u64) {
        self.count(lun, class, bytes, now.saturating_sub(turn.request.popped_ns));
        let chain = &*turn.chain;
        let len = match turn.context.kind {
            DeviceKind::Blk => answer_blk(chain, blk::Status::Ok, chain.writable_bytes - 1),
            DeviceKind::Scsi => {
                let out = chain.readable_bytes - turn.origin().scsi_header_layout().bytes;
                answer_scsi_good(chain, class != Class::Read && out > 0, bytes, out)
            }
        };
        self.push(turn, len);
    }

    #[inline(always)]
    fn count(&self, lun: &Lun, class: Class, bytes: usize, latency: u64) {
        let counters = lun.state.counters(self.index);
        match class {
            Class::Read => {
                counters.reads.add(1);
                counters.read_bytes.add(bytes as u64);
                counters.read_latency.record(latency);
            }
            Class::Write => {
                counters.writes.add(1);
                counters.write_bytes.add(bytes as u64);
                counters.write_latency.record(latency);
            }
            Class::Flush => {
                counters.flushes.add(1);
                lun.state.set_doubtful(false);
            }
            Class::Unmap => counters.unmaps.add(1),
            Class::Other => counters.other.add(1),
        }
    }

    /// The store answered with an errno: Python finds the sense data, blk has but one status for it.
    #[cold]
    pub(super) fn store_failed(&mut self, mut turn: Turn<'_>, lun: &Arc<Lun>, errno: Errno) {
        match turn.context.kind {
            DeviceKind::Scsi => self.ask_python(&mut turn, Some(lun), Failure::Errno(errno)),
            DeviceKind::Blk => self.refuse_blk(&turn, lun, blk::Status::IoError),
        }
    }

    /// Put a finished chain on the used ring.
    #[inline(always)]
    pub(super) fn push(&mut self, turn: &Turn<'_>, len: u32) {
        if let Some(log) = turn.context.view.data_log() {
            log.mark_spans(&turn.origin().memory, turn.chain.writable(), 0, turn.chain.writable_bytes);
        }
        self.push_head(turn.request.head, len);
    }

    #[inline(always)]
    pub(super) fn push_head(&mut self, head: u16, len: u32) {
        let Some(ring) = &mut self.ring else { return };
        fault::point(Point::Completed, self.index, head);
        if let Some(inflight) = &mut self.inflight {
            inflight.complete(head);
        }
        ring.push_used(head, len);
        fault::point(Point::Pushed, self.index, head);
        self.counters.requests.add(1);
    }
}
