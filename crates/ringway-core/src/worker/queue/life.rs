//! The life of a ring: start, recovery, changes from the control side, and the end.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::SyncSender;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::broken_notice;
use super::{refuse, Context, DeviceKind, Queue, Role};
use crate::error::{ensure, Result};
use crate::inflight::InflightRegion;
use crate::memory::{unmapped, MemoryMap};
use crate::notify::Call;
use crate::slow::Life;
use crate::stats::QueueCounters;
use crate::vring::{RingAddresses, Vring};

/// How long cancelled I/O may take to come back when a ring is stopped.
const CANCEL_GRACE: Duration = Duration::from_millis(500);
const S_BUSY: u8 = 5;

/// Where a ring lies, in the front end's addresses.
#[derive(Clone, Copy, Debug)]
pub struct RingLayout {
    /// Entries.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

impl RingLayout {
    fn translate(&self, memory: &MemoryMap) -> Result<RingAddresses> {
        let find = |what, address, len, align: u64| {
            ensure(address % align == 0, || format!("{what} at {address:#x} is not {align}-aligned"))?;
            let host = memory.user(address, len).ok_or_else(|| unmapped(what, address))?;
            ensure((host as u64).is_multiple_of(align), || {
                format!("{what} is not {align}-aligned in its file")
            })?;
            Ok(host)
        };
        Ok(RingAddresses {
            descriptors: find("descriptor table", self.descriptors, 16 * u64::from(self.size), 16)?,
            available: find("available ring", self.available, Vring::available_bytes(self.size), 2)?,
            used: find("used ring", self.used, Vring::used_bytes(self.size), 4)?,
        })
    }
}

/// All that starts a ring.
#[derive(Debug)]
pub struct QueueStart {
    /// Where it lies.
    pub layout: RingLayout,
    /// Next available index.
    pub base: u16,
    /// Kicks; none: the ring is polled.
    pub kick: Option<OwnedFd>,
    /// Interrupts.
    pub call: Option<OwnedFd>,
    /// Guest address of the used ring, for the dirty log.
    pub log_address: Option<u64>,
    /// In-flight tracking.
    pub inflight: Option<Arc<InflightRegion>>,
}

/// A stop under way.
pub struct Stop {
    deadline: Instant,
    cancelled: bool,
    reply: SyncSender<u16>,
}

impl Queue {
    pub fn new(index: u16, kind: DeviceKind, counters: Arc<QueueCounters>) -> Self {
        let role = match (kind, index) {
            (DeviceKind::Scsi, 0) => Role::Control,
            (DeviceKind::Scsi, 1) => Role::Event,
            _ => Role::Request,
        };
        Queue {
            index,
            role,
            ring: None,
            layout: None,
            enabled: false,
            broken: false,
            base: 0,
            kick: None,
            call: None,
            log_address: None,
            inflight: None,
            resubmit: Vec::new(),
            held: Vec::new(),
            held_count: 0,
            parked: Vec::new(),
            delayed: Vec::new(),
            life: Life::default(),
            stop: None,
            starts: 0,
            events_missed: false,
            trace: None,
            counters,
        }
    }

    pub fn index(&self) -> u16 {
        self.index
    }

    pub fn role(&self) -> Role {
        self.role
    }

    /// Names the kick of this life of the ring.
    pub fn token(&self) -> u32 {
        (self.starts & 0x7fff) << 16 | u32::from(self.index)
    }

    pub fn start(&mut self, context: &mut Context, start: QueueStart) -> Result<()> {
        let idle = self.ring.is_none() && self.held_count == 0;
        ensure(idle, || format!("queue {} is started already, or still has requests", self.index))?;
        let size = start.layout.size;
        let addresses = start.layout.translate(&context.view.memory)?;
        // SAFETY: translated and checked for alignment just now; `adopt` relocates the ring when memory changes.
        let mut ring = unsafe { Vring::new(addresses, size, start.base, context.view.event_idx()) };
        self.starts += 1;
        if let Some(kick) = &start.kick {
            context.engine.watch(kick.as_raw_fd(), self.token())?;
        }
        self.inflight = start.inflight.and_then(|region| region.queue(self.index, size));
        self.resubmit = self.recover(&mut ring);
        self.held = vec![0; size.into()];
        self.restart_trace(context);
        (self.layout, self.kick, self.log_address) = (Some(start.layout), start.kick, start.log_address);
        self.broken = false;
        self.ring = Some(ring);
        self.set_call(start.call);
        self.counters.running.set(1);
        Ok(())
    }

    /// Ask the in-flight region what the last back end held. It names heads and their order; what was popped is what
    /// is held and what is used, so the next available index follows from it (trap T7).
    fn recover(&mut self, ring: &mut Vring) -> Vec<u16> {
        let Some(inflight) = &mut self.inflight else { return Vec::new() };
        let (recovered, mut heads) = inflight.recover(ring.next_used());
        if recovered {
            ring.set_next_available(ring.next_used().wrapping_add(heads.len() as u16));
        }
        heads.reverse();
        heads
    }

    /// Only from here on may the ring be written (trap T6: the dirty log may come after the kick fd).
    pub fn enable(&mut self, context: &Context, enabled: bool) {
        self.enabled = enabled;
        self.awake(context);
    }

    /// A new call eventfd is signalled once: an interrupt may have been lost with the old one.
    pub fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call.map(Call::new);
        if let (Some(call), Some(_)) = (&self.call, &self.ring) {
            call.signal();
        }
    }

    pub fn set_log(&mut self, address: Option<u64>) {
        self.log_address = address;
    }

    /// Memory or features changed: the ring moves along, or breaks.
    pub fn adopt(&mut self, context: &mut Context) {
        let (Some(ring), Some(layout)) = (&mut self.ring, &self.layout) else { return };
        match layout.translate(&context.view.memory) {
            Ok(addresses) => {
                // SAFETY: translated and checked just now.
                unsafe { ring.relocate(addresses) };
                ring.set_event_idx(context.view.event_idx());
            }
            Err(error) => {
                self.fail(context, format!("memory was taken away under it: {error}"));
                self.disown(context);
                context.slab.free_disowned();
                self.drop_ring(context);
            }
        }
    }

    pub fn stop(&mut self, context: &mut Context, deadline: Instant, reply: SyncSender<u16>) {
        if self.ring.is_none() && self.held_count == 0 {
            let _ = reply.send(self.base);
            return;
        }
        if !self.broken && self.role != Role::Event && self.ring.is_some() {
            // else the next back end, if it gets no in-flight region, would never run them
            self.run_again(context);
        }
        self.stop = Some(Stop { deadline, cancelled: false, reply });
        self.retry_parked(context); // no limit holds a ring up that stops
        self.keep_deadline(context, Instant::now());
    }

    pub fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.stop.as_ref().map(|stop| stop.deadline)
    }

    /// A stopping ring: finish when it is drained; past the deadline cancel, then give up what is left.
    pub fn keep_deadline(&mut self, context: &mut Context, now: Instant) {
        let Some(stop) = &mut self.stop else { return };
        if self.held_count > 0 && now < stop.deadline {
            return;
        }
        if self.held_count > 0 && !stop.cancelled {
            stop.cancelled = true;
            stop.deadline = now + CANCEL_GRACE;
            for key in self.keys() {
                context.slab.get_mut(key).cancelled = Some(S_BUSY);
                context.engine.cancel(key);
            }
            return;
        }
        self.give_up(context);
        self.publish::<true>(context);
        self.drop_ring(context);
        if let Some(stop) = self.stop.take() {
            let _ = stop.reply.send(self.base);
        }
    }

    fn keys(&self) -> impl Iterator<Item = u32> + '_ {
        self.held.iter().filter(|key| **key != 0).map(|key| key - 1)
    }

    /// Fail to the guest what did not finish. I/O that is still in the kernel keeps its buffers until it ends.
    fn give_up(&mut self, context: &mut Context) {
        for key in self.disown(context) {
            let pending = context.slab.get(key);
            let (head, len) = (pending.head, refuse(context.kind, self.role, &pending.chain, S_BUSY));
            if let Some(log) = context.view.data_log() {
                let chain = &pending.chain;
                log.mark_spans(&pending.origin.memory, chain.writable(), 0, chain.writable_bytes);
            }
            self.push_head(head, len);
        }
        context.slab.free_disowned();
    }

    /// Held requests are no longer this queue's: nothing of them reaches the ring.
    fn disown(&mut self, context: &mut Context) -> Vec<u32> {
        let keys: Vec<u32> = self.keys().collect();
        for key in &keys {
            let pending = context.slab.get_mut(*key);
            pending.queue = None;
            let slot = pending.slot.take();
            context.forget(slot);
        }
        self.held.fill(0);
        self.count_held(0);
        self.parked.clear();
        self.delayed.clear();
        self.life.end();
        keys
    }

    fn drop_ring(&mut self, context: &mut Context) {
        if let Some(ring) = self.ring.take() {
            // event buffers that a dead back end had taken are still the guest's to get
            self.base = ring.next_available().wrapping_sub(self.resubmit.len() as u16);
        }
        if let Some(kick) = self.kick.take() {
            context.engine.unwatch(kick.as_raw_fd(), self.token());
        }
        (self.layout, self.inflight, self.log_address, self.call) = (None, None, None, None);
        self.resubmit.clear();
        self.counters.running.set(0);
    }

    /// Stop serving: the ring cannot be trusted. What is in flight still finishes.
    pub(super) fn fail(&mut self, context: &mut Context, message: String) {
        if !self.broken {
            self.broken = true;
            self.counters.running.set(0);
            context.slow.notice(broken_notice(self.index, message));
        }
    }
}
