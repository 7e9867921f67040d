//! A worker's part of a trace: on and off, and when it looked at its rings.

use super::queue::QueueTrace;
use super::{TraceStart, Worker};
use crate::clock::now_ns;
use crate::trace::Tracer;

impl Worker {
    /// Begin a trace, or end it.
    pub(super) fn trace(&mut self, start: Option<TraceStart>) {
        self.context.slab.forget_slots();
        for queue in &mut self.queues {
            let wanted =
                start.as_ref().filter(|(_, options)| options.queue.is_none_or(|only| only == queue.index()));
            queue.set_trace(wanted.map(|(_, options)| Box::new(QueueTrace::new(options.interval, now_ns()))));
        }
        self.context.tracer = start.map(|(ring, options)| Box::new(Tracer::new(ring, options.lun)));
    }

    pub(super) fn begin_traced_turn(&mut self) {
        if let Some(tracer) = &mut self.context.tracer {
            tracer.begin_turn(self.context.now);
        }
    }

    /// All rings were looked at since then, and nothing new was there.
    #[inline(always)]
    pub(super) fn nothing_since(&mut self, now: u64) {
        if let Some(tracer) = &mut self.context.tracer {
            tracer.looked_ns = now;
        }
    }
}
