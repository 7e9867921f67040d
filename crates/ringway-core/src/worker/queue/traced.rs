//! A queue's part of a trace: which requests are followed, and what is written down of them.
//!
//! Nothing here runs while no trace is on: the loop of a worker exists twice (`TRACED`), and a request that is not
//! followed has no slot.

use std::collections::VecDeque;

use super::super::pending::{Class, Header};
use super::{Context, DeviceKind, Queue, Role, Turn};
use crate::action::Action;
use crate::clock::now_ns;
use crate::driver::random::{below, Random};
use crate::trace::{Carrier, Notice, Operation, Sample, Slot, Wake};
use crate::view::{Lun, View};

/// Looks at the ring that are told apart; chains of more looks that wait at once count for the last of them.
const ARRIVALS: usize = 64;

/// Chains that one look at the ring found.
struct Arrival {
    /// Available index behind the last of them.
    end: u16,
    absent_ns: u64,
    seen_ns: u64,
    woken_ns: u64,
    wake: Wake,
}

/// What a queue keeps while it is traced.
pub struct QueueTrace {
    interval: u64,
    /// Requests until the next one is followed. (Up to two stretches: more than an interval's own 32 bits hold.)
    countdown: u64,
    /// Requests of this stretch of `interval` that come after it.
    rest: u64,
    random: Random,
    /// Oldest first.
    arrivals: VecDeque<Arrival>,
    kicked_ns: u64,
    /// On the used ring, and not shown to the guest yet.
    unpublished: Vec<Slot>,
}

impl QueueTrace {
    /// Follow one request of each `interval`, chosen at random: a guest that goes round its disks in turn would show
    /// but one of them to an even step.
    pub fn new(interval: u32, seed: u64) -> Self {
        let mut trace = QueueTrace {
            interval: interval.max(1).into(),
            countdown: 0,
            rest: 0,
            random: Random::new(seed),
            arrivals: VecDeque::with_capacity(ARRIVALS),
            kicked_ns: 0,
            unpublished: Vec::with_capacity(64),
        };
        trace.choose();
        trace
    }

    /// Choose one of the next stretch.
    fn choose(&mut self) {
        let place = below(self.random.next(), self.interval);
        self.countdown = self.rest + place + 1;
        self.rest = self.interval - 1 - place;
    }

    /// A look at the ring found chains up to an index.
    fn look(&mut self, next: u16, arrival: Arrival) {
        if self.arrivals.back().map_or(next, |last| last.end) == arrival.end {
            return;
        }
        let full = self.arrivals.len() >= ARRIVALS;
        match self.arrivals.back_mut() {
            Some(last) if full => (last.end, last.seen_ns) = (arrival.end, arrival.seen_ns),
            _ => self.arrivals.push_back(arrival),
        }
    }

    /// The look that found the chain at an available index.
    fn arrival(&mut self, index: u16) -> Option<&Arrival> {
        let passed = |arrival: &Arrival| !(1..=32768).contains(&arrival.end.wrapping_sub(index));
        while self.arrivals.front().is_some_and(passed) {
            self.arrivals.pop_front();
        }
        self.arrivals.front()
    }

    fn is_due(&mut self) -> bool {
        self.countdown -= 1;
        if self.countdown > 0 {
            return false;
        }
        self.choose();
        true
    }
}

impl From<Class> for Operation {
    fn from(class: Class) -> Self {
        match class {
            Class::Read => Operation::Read,
            Class::Write => Operation::Write,
            Class::Flush => Operation::Flush,
            Class::Unmap => Operation::Unmap,
            Class::Other => Operation::Other,
        }
    }
}

impl Context {
    /// The record of a followed request.
    fn sample(&mut self, slot: Option<Slot>) -> Option<&mut Sample> {
        let (tracer, slot) = (self.tracer.as_mut()?, slot?);
        Some(tracer.get(slot))
    }

    /// A request waits for a range lock, or for room on the way to Python.
    pub(super) fn trace_parked(&mut self, slot: Option<Slot>) {
        if let Some(sample) = self.sample(slot) {
            sample.parked = true;
        }
    }

    /// A request is nobody's any more.
    pub(super) fn forget(&mut self, slot: Option<Slot>) {
        if let (Some(tracer), Some(slot)) = (&mut self.tracer, slot) {
            tracer.forget(slot);
        }
    }
}

impl Turn<'_> {
    /// The store is about to have it.
    #[inline(never)]
    pub(super) fn trace_dispatched(&mut self, lun: &Lun, action: &Action) {
        if self.request.slot.is_none() {
            return;
        }
        let opcode = opcode(self.context.kind, &self.request.header, self.origin());
        let in_kernel = !action.is_instant(&lun.store);
        let Some(sample) = self.context.sample(self.request.slot) else { return };
        let (class, _, bytes) = Class::of(action);
        sample.address = Some(lun.state.id.address());
        (sample.operation, sample.opcode, sample.bytes) = (class.into(), opcode, bytes);
        dispatched(sample, if in_kernel { Carrier::Kernel } else { Carrier::Worker });
    }

    /// The worker itself is done with it.
    #[inline(never)]
    pub(super) fn trace_completed(&mut self, now: u64) {
        if let Some(sample) = self.context.sample(self.request.slot) {
            sample.completed_ns = now;
        }
    }
}

fn opcode(kind: DeviceKind, header: &Header, origin: &View) -> u8 {
    header.0[if kind == DeviceKind::Scsi { origin.scsi_header_layout().cdb } else { 0 }]
}

/// The first carrier sets the time; Python stays named when it lets a command go on to the store.
fn dispatched(sample: &mut Sample, carrier: Carrier) {
    if sample.dispatched_ns == 0 {
        sample.dispatched_ns = now_ns();
    }
    if sample.carrier != Carrier::Python {
        sample.carrier = carrier;
    }
}

impl Queue {
    /// Begin or end a trace.
    pub fn set_trace(&mut self, trace: Option<Box<QueueTrace>>) {
        self.trace = trace;
    }

    /// This queue's kick was seen.
    pub fn kicked(&mut self, now: u64) {
        self.counters.kicks.add(1);
        if let Some(trace) = &mut self.trace {
            trace.kicked_ns = now;
        }
    }

    /// The ring starts over: its indices name other chains, and what the last one did not show is nobody's.
    pub(super) fn restart_trace(&mut self, context: &mut Context) {
        if let Some(trace) = &mut self.trace {
            trace.arrivals.clear();
            trace.unpublished.drain(..).for_each(|slot| context.forget(Some(slot)));
        }
    }

    /// The ring was looked at, and `count` chains wait.
    #[inline(never)]
    pub(super) fn trace_look(&mut self, context: &Context, count: u16) {
        let (Some(trace), Some(ring), Some(tracer)) = (&mut self.trace, &self.ring, &context.tracer) else {
            return;
        };
        let wake = match tracer.woken_ns {
            0 => Wake::Polling,
            woken if trace.kicked_ns >= woken => Wake::Kick,
            _ => Wake::Other,
        };
        let next = ring.next_available();
        let arrival = Arrival {
            end: next.wrapping_add(count),
            absent_ns: tracer.looked_ns,
            seen_ns: now_ns(),
            woken_ns: tracer.woken_ns,
            wake,
        };
        trace.look(next, arrival);
    }

    /// A chain was popped from an available index: follow it if its turn has come.
    #[inline(never)]
    pub(super) fn trace_popped(&mut self, context: &mut Context, head: u16, index: u16) -> Option<Slot> {
        let trace = self.trace.as_mut()?;
        if !trace.is_due() {
            return None;
        }
        let mut sample = Sample { queue: self.index, head, dequeued_ns: now_ns(), ..Sample::default() };
        if self.role == Role::Control {
            sample.operation = Operation::Control;
        }
        if let Some(arrival) = trace.arrival(index) {
            (sample.absent_ns, sample.seen_ns) = (arrival.absent_ns, arrival.seen_ns);
            (sample.woken_ns, sample.wake) = (arrival.woken_ns, arrival.wake);
        }
        context.tracer.as_mut()?.begin(sample)
    }

    /// A followed request is in Python's hands.
    #[inline(never)]
    pub(super) fn trace_asked(&self, context: &mut Context, key: u32) {
        let pending = context.slab.get(key);
        let opcode = opcode(context.kind, &pending.header, &pending.origin);
        let (slot, address) = (pending.slot, pending.whose.map(|id| id.address()));
        let Some(sample) = context.sample(slot) else { return };
        sample.address = address.or(sample.address);
        if self.role == Role::Request {
            sample.opcode = opcode;
        }
        dispatched(sample, Carrier::Python);
    }

    /// A followed request was worked on. Unless it is held (again), the guest is shown it next.
    #[inline(always)]
    pub(super) fn trace_settled(&mut self, context: &mut Context, slot: Option<Slot>, head: u16) {
        if let Some(slot) = slot {
            self.settle(context, slot, head);
        }
    }

    #[cold]
    fn settle(&mut self, context: &mut Context, slot: Slot, head: u16) {
        let held = self.held.get(usize::from(head)).is_some_and(|key| *key != 0);
        let (Some(sample), Some(trace), false) = (context.sample(Some(slot)), &mut self.trace, held) else {
            return;
        };
        if sample.completed_ns == 0 {
            sample.completed_ns = now_ns();
        }
        if sample.dispatched_ns == 0 {
            // it was refused: nobody but the worker had it
            sample.dispatched_ns = sample.dequeued_ns;
        }
        trace.unpublished.push(slot);
    }

    /// The guest was shown what is finished, and told so.
    #[inline(never)]
    pub(super) fn trace_published(&mut self, context: &mut Context, enqueued_ns: u64, notice: Notice) {
        let (Some(trace), Some(tracer)) = (&mut self.trace, &mut context.tracer) else { return };
        let notified_ns = if notice == Notice::Signalled { now_ns() } else { 0 };
        for slot in trace.unpublished.drain(..) {
            let sample = tracer.get(slot);
            (sample.enqueued_ns, sample.notified_ns, sample.notice) = (enqueued_ns, notified_ns, notice);
            tracer.finish(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(end: u16, at: u64) -> Arrival {
        Arrival { end, absent_ns: at - 1, seen_ns: at, woken_ns: 0, wake: Wake::Polling }
    }

    fn seen(trace: &mut QueueTrace, index: u16) -> Option<u64> {
        trace.arrival(index).map(|arrival| arrival.seen_ns)
    }

    #[test]
    fn one_of_each_stretch_is_followed_and_no_place_in_it_is_preferred() {
        const STRETCHES: usize = 1000;
        let mut trace = QueueTrace::new(4, 1);
        let mut places = [0; 4];
        for _ in 0..STRETCHES {
            let due = [0; 4].map(|_| trace.is_due());
            assert_eq!(due.iter().filter(|due| **due).count(), 1);
            places[due.iter().position(|due| *due).unwrap()] += 1;
        }
        assert!(places.iter().all(|count| (STRETCHES / 5..STRETCHES / 3).contains(count)), "{places:?}");
    }

    #[test]
    fn the_longest_interval_takes_two_of_its_kind() {
        let mut trace = QueueTrace::new(u32::MAX, 3);
        for _ in 0..1000 {
            trace.choose();
            assert!((1..=2 * u64::from(u32::MAX)).contains(&trace.countdown));
        }
    }

    #[test]
    fn an_interval_of_one_follows_all() {
        let mut trace = QueueTrace::new(1, 7);
        assert!((0..100).all(|_| trace.is_due()));
    }

    #[test]
    fn a_chain_belongs_to_the_look_that_found_it_first() {
        let mut trace = QueueTrace::new(1, 1);
        trace.look(65530, arrival(65534, 10));
        trace.look(65532, arrival(65534, 20));
        trace.look(65532, arrival(2, 30));
        let looks: Vec<_> = [65530, 65532, 65533, 65534, 0, 1].map(|index| seen(&mut trace, index)).into();
        assert_eq!(looks, [10, 10, 10, 30, 30, 30].map(Some));
        trace.look(2, arrival(3, 40));
        assert_eq!(seen(&mut trace, 2), Some(40));
        assert_eq!(seen(&mut trace, 3), None);
    }

    #[test]
    fn looks_that_are_not_told_apart_lie_later_never_earlier() {
        let mut trace = QueueTrace::new(1, 1);
        (1..=100).for_each(|at| trace.look(0, arrival(at, 1000 + u64::from(at))));
        assert_eq!(trace.arrivals.len(), ARRIVALS);
        assert_eq!(seen(&mut trace, 0), Some(1001));
        assert_eq!(seen(&mut trace, 99), Some(1100));
        assert_eq!(trace.arrival(99).map(|arrival| arrival.absent_ns), Some(1063));
    }
}
