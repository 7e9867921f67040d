//! One virtqueue on its worker. Here: what it is, and its part of the loop (serve, publish, sleep); `life` starts
//! and stops it, `dispatch` decides what becomes of a request, `hold` keeps those that outlast a turn.

mod dispatch;
mod hold;
mod life;
mod traced;

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use super::pending::{Header, Pending};
use super::request::{answer_blk, answer_scsi};
use super::{Completion, Context, DeviceKind};
use crate::blk;
use crate::clock::now_ns;
use crate::fault::{self, Point};
use crate::inflight::QueueInflight;
use crate::limit::Permit;
use crate::memory::scatter;
use crate::notify::Call;
use crate::slow::Life;
use crate::stats::QueueCounters;
use crate::trace::{Notice, Slot};
use crate::view::{LunId, View};
use crate::vring::{Chain, RingError, Vring};
use life::Stop;
pub use life::{QueueStart, RingLayout};
pub use traced::QueueTrace;

/// Chains popped before the others get their turn and the batch is published.
const BATCH: u16 = 32;
/// Data of a batch after which the others get their turn, however few chains it was.
const BATCH_BYTES: usize = 4 << 20;
const S_FAILURE: u8 = 9;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// scsi: task management.
    Control,
    /// scsi: events to the guest.
    Event,
    /// I/O.
    Request,
}

/// A request between the ring and its answer.
struct Request {
    head: u16,
    popped_ns: u64,
    /// 0 until it is held for the first time.
    sequence: u64,
    past_gate: bool,
    permit: Permit,
    header: Header,
    /// The LUN that it was for when it was held; another at its address is as none.
    whose: Option<LunId>,
    /// The view that its spans point into, if that is not the current one.
    origin: Option<Rc<View>>,
    /// Where a trace follows it.
    slot: Option<Slot>,
}

impl Request {
    #[inline(always)]
    fn popped(head: u16, now: u64, slot: Option<Slot>) -> Self {
        Request {
            head,
            popped_ns: now,
            sequence: 0,
            past_gate: false,
            permit: Permit::default(),
            header: Header([0; 64]),
            whose: None,
            origin: None,
            slot,
        }
    }

    fn of(pending: &Pending) -> Self {
        let Pending { head, popped_ns, sequence, past_gate, permit, header, whose, slot, .. } = *pending;
        let origin = Some(pending.origin.clone());
        Request { head, popped_ns, sequence, past_gate, permit, header, whose, origin, slot }
    }
}

/// What one request is served with.
struct Turn<'a> {
    context: &'a mut Context,
    view: &'a View,
    request: Request,
    chain: &'a mut Chain,
}

impl Turn<'_> {
    /// The view that the request was popped under: its spans and its header's layout belong to it.
    #[inline(always)]
    fn origin(&self) -> &View {
        self.request.origin.as_deref().unwrap_or(self.view)
    }
}

/// The answer to a request that is not carried out; bytes written.
fn refuse(kind: DeviceKind, role: Role, chain: &Chain, response: u8) -> u32 {
    match (kind, role) {
        (DeviceKind::Blk, _) => answer_blk(chain, blk::Status::IoError, chain.writable_bytes - 1),
        (DeviceKind::Scsi, Role::Request) => answer_scsi(chain, &failed_with(response), 0),
        (DeviceKind::Scsi, _) => scatter(chain.writable(), 0, &[S_FAILURE; 8]) as u32,
    }
}

fn failed_with(response: u8) -> Completion {
    Completion { response, ..Completion::default() }
}

/// A virtqueue.
pub struct Queue {
    index: u16,
    role: Role,
    ring: Option<Vring>,
    layout: Option<RingLayout>,
    enabled: bool,
    broken: bool,
    base: u16,
    kick: Option<OwnedFd>,
    call: Option<Call>,
    log_address: Option<u64>,
    inflight: Option<QueueInflight>,
    /// Heads to run again, newest first.
    resubmit: Vec<u16>,
    /// Key + 1 of the held request of each head; 0: none.
    held: Vec<u32>,
    held_count: usize,
    parked: Vec<u32>,
    /// Parked until their time: their LUN is limited.
    delayed: Vec<u32>,
    /// Of what is held now: it ends when that is disowned.
    life: Life,
    stop: Option<Stop>,
    starts: u32,
    events_missed: bool,
    /// Some while its requests are traced.
    trace: Option<Box<QueueTrace>>,
    counters: Arc<QueueCounters>,
}

impl Queue {
    #[inline(always)]
    fn runs(&self) -> bool {
        self.enabled && !self.broken && self.stop.is_none() && self.ring.is_some()
    }

    /// Whether a chain (or a retry) waits.
    #[inline(always)]
    pub fn has_work(&self) -> bool {
        let waiting = |ring: &Vring| ring.available() != Ok(0);
        self.runs() && self.role != Role::Event && self.ring.as_ref().is_some_and(waiting)
    }

    pub fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// No kick fd was given: there is no way to wake up for it.
    pub fn must_poll(&self) -> bool {
        self.runs() && self.kick.is_none() && self.role != Role::Event
    }

    /// Pop a batch and start it; whether there was something.
    #[inline(always)]
    pub fn serve<const TRACED: bool>(&mut self, context: &mut Context) -> bool {
        let mut worked = false;
        if context.retry && !(self.parked.is_empty() && self.delayed.is_empty()) {
            worked |= self.retry_parked(context);
        }
        if !self.runs() || self.role == Role::Event {
            return worked;
        }
        if !self.resubmit.is_empty() {
            self.run_again(context);
        }
        worked | self.pop_batch::<TRACED>(context)
    }

    #[inline(always)]
    fn pop_batch<const TRACED: bool>(&mut self, context: &mut Context) -> bool {
        let ring = self.ring.as_mut().expect("a running ring");
        let count = match ring.available() {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return self.ring_failed(context, error),
        };
        if TRACED {
            self.trace_look(context, count);
        }
        let view = context.view.clone();
        let mut chain = std::mem::take(&mut context.scratch);
        let mut bytes = 0;
        for _ in 0..count.min(BATCH) {
            let ring = self.ring.as_mut().expect("a running ring");
            let index = ring.next_available();
            match ring.pop(&view.memory, &mut chain) {
                Ok(head) if self.held[head as usize] != 0 => {
                    ring.set_next_available(ring.next_available().wrapping_sub(1)); // it stays the guest's
                    self.ring_failed(context, RingError::Duplicate(head));
                    break;
                }
                Ok(head) => {
                    fault::note(context.kind, self.role, self.index, head, &chain);
                    fault::point(Point::Popped, self.index, head);
                    if let Some(inflight) = &mut self.inflight {
                        inflight.take(head);
                    }
                    fault::point(Point::Marked, self.index, head);
                    bytes += chain.readable_bytes + chain.writable_bytes;
                    let slot = if TRACED { self.trace_popped(context, head, index) } else { None };
                    let request = Request::popped(head, context.now, slot);
                    let turn = Turn { context, view: &view, request, chain: &mut chain };
                    match TRACED {
                        false => self.dispatch::<false>(turn),
                        true => self.dispatch_traced(turn),
                    }
                }
                Err(error) => {
                    self.ring_failed(context, error);
                    break;
                }
            }
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        context.scratch = chain;
        true
    }

    #[cold]
    fn ring_failed(&mut self, context: &mut Context, error: RingError) -> bool {
        self.fail(context, error.to_string());
        false
    }

    /// Run what the last back end held, oldest first.
    #[cold]
    fn run_again(&mut self, context: &mut Context) {
        let view = context.view.clone();
        while let Some(head) = self.resubmit.pop() {
            let mut chain = Chain::default();
            let ring = self.ring.as_mut().expect("a running ring");
            if let Err(error) = ring.read_chain(head, &view.memory, &mut chain) {
                self.ring_failed(context, error);
                return;
            }
            fault::note(context.kind, self.role, self.index, head, &chain);
            fault::point(Point::Marked, self.index, head);
            let request = Request::popped(head, context.now, None);
            self.dispatch_traced(Turn { context, view: &view, request, chain: &mut chain });
        }
    }

    /// Show the guest what was completed, and signal it if it wants that.
    #[inline(always)]
    pub fn publish<const TRACED: bool>(&mut self, context: &mut Context) {
        let Some(ring) = self.ring.as_mut().filter(|ring| ring.has_unpublished()) else { return };
        let (offset, len) = ring.publish();
        fault::batch(Point::Published, self.index);
        if let (Some(log), Some(address)) = (&context.view.log, self.log_address) {
            log.mark(address.wrapping_add(offset), len);
            log.mark(address.wrapping_add(2), 2);
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.published(ring.next_used());
        }
        fault::batch(Point::Cleared, self.index);
        self.counters.batches.add(1);
        let shown_ns = if TRACED { now_ns() } else { 0 };
        let notice = match (ring.wants_signal(), &self.call) {
            (false, _) => Notice::Suppressed,
            (true, None) => Notice::NoCall,
            (true, Some(call)) => {
                self.counters.signals.add(1);
                call.signal();
                fault::batch(Point::Signalled, self.index);
                Notice::Signalled
            }
        };
        if TRACED {
            self.trace_published(context, shown_ns, notice);
        }
    }

    /// Before sleeping; true when work slipped in.
    pub fn ask_for_kick(&mut self, context: &mut Context) -> bool {
        if !self.runs() || self.role == Role::Event {
            return false;
        }
        let ring = self.ring.as_mut().expect("a running ring");
        let answer = ring.ask_for_kick();
        if let (Some(log), Some(address)) = (&context.view.log, self.log_address) {
            log.mark(address, Vring::used_bytes(ring.size()));
        }
        answer.unwrap_or_else(|error| self.ring_failed(context, error))
    }

    /// After sleeping: the ring is polled again.
    pub fn awake(&mut self, context: &Context) {
        if !self.runs() || self.role == Role::Event {
            return;
        }
        let written = self.ring.as_mut().expect("a running ring").suppress_kicks();
        if let (true, Some(log), Some(address)) = (written, &context.view.log, self.log_address) {
            log.mark(address, 2);
        }
    }
}
