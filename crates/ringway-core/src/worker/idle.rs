//! What a worker does when there is nothing to do: spin while it pays, then sleep.

use std::time::Duration;

use super::queue::Queue;
use super::Worker;
use crate::clock::now_ns;
use crate::poll::SpinBudget;

/// How long a worker that never sleeps spins before it looks at its deadlines.
const POLL_NS: u64 = 1_000_000;

impl Worker {
    /// Nothing to do: spin while it pays, then ask for kicks and sleep.
    pub(super) fn idle(&mut self) {
        let on_kernel = self.context.engine.is_busy();
        let (since, budget) = (now_ns(), self.spin(on_kernel).budget_ns());
        let found = match budget {
            0 => None,
            _ => self
                .spin_until_work(since, budget.min(POLL_NS).min(self.context.next_due.saturating_sub(since))),
        };
        if found.is_none() && (budget == u64::MAX || self.has_overdue_fence()) {
            return;
        }
        let until = found.unwrap_or_else(|| self.sleep());
        self.spin(on_kernel).waited(until - since);
    }

    /// When there was work, to sixteen looks or so; none: the budget passed in vain.
    fn spin_until_work(&mut self, since: u64, budget: u64) -> Option<u64> {
        self.counters.spins.add(1);
        let mut now = since;
        while now - since <= budget {
            for _ in 0..16 {
                if self.has_work() {
                    return Some(now);
                }
                std::hint::spin_loop();
            }
            self.nothing_since(now);
            now = now_ns();
        }
        None
    }

    /// Ask for kicks and sleep, unless work slipped in; when that ended.
    fn sleep(&mut self) -> u64 {
        let looking = if self.context.tracer.is_some() { now_ns() } else { 0 };
        let context = &mut self.context;
        if self.queues.iter_mut().any(|queue| queue.ask_for_kick(context)) {
            return now_ns();
        }
        self.nothing_since(looking);
        if self.mailbox.has_mail() || self.queues.iter().any(Queue::must_poll) {
            return now_ns();
        }
        self.counters.sleeps.add(1);
        self.context.engine.wait(self.next_deadline(), &mut self.events);
        let woken = now_ns();
        if let Some(tracer) = &mut self.context.tracer {
            tracer.slept_until_ns = woken;
        }
        self.queues.iter_mut().for_each(|queue| queue.awake(&self.context));
        self.take_events();
        woken
    }

    fn has_overdue_fence(&self) -> bool {
        !self.fences.is_empty() && self.next_deadline() == Some(Duration::ZERO)
    }

    fn spin(&mut self, on_kernel: bool) -> &mut SpinBudget {
        if on_kernel {
            &mut self.kernel_spin
        } else {
            &mut self.guest_spin
        }
    }

    #[inline(always)]
    fn has_work(&mut self) -> bool {
        self.mailbox.has_mail() || self.context.engine.has_events() || self.queues.iter().any(Queue::has_work)
    }
}
