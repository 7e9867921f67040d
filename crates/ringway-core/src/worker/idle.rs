//! What a worker does when there is nothing to do: spin while it pays, then sleep.

use std::time::Duration;

use super::queue::Queue;
use super::Worker;
use crate::clock::now_ns;
use crate::pace::{Found, Next};
use crate::poll::SpinBudget;

/// How long a worker that never sleeps spins before it looks at its deadlines.
const POLL_NS: u64 = 1_000_000;

impl Worker {
    /// Nothing to do: spin while it pays, or for a request that is due; then ask for kicks and sleep.
    pub(super) fn idle(&mut self) {
        let (on_kernel, now) = (self.context.engine.is_busy(), now_ns());
        let since = self.waiting_since.take().unwrap_or(now);
        let next = self.pace.next(now).filter(|_| !on_kernel);
        let budget = match next {
            None => self.spin(on_kernel).budget_ns(),
            Some(Next::Due(until)) => until - now,
            Some(Next::Ahead(_)) => 0,
        };
        let seen = match budget {
            0 => None,
            _ => {
                self.spin_until_work(now, budget.min(POLL_NS).min(self.context.next_due.saturating_sub(now)))
            }
        };
        if seen.is_none() && (budget == u64::MAX || self.has_overdue_fence()) {
            return;
        }
        let is_due = matches!(next, Some(Next::Due(_)));
        if seen.is_none() && is_due {
            self.pace.missed();
        }
        let (until, found) = seen.map_or_else(|| self.sleep(on_kernel), |at| (at, Found::Spinning));
        let foreseen = found == Found::Alarmed || seen.is_some() && is_due;
        self.waited(since, until, found, on_kernel, foreseen);
    }

    /// Learn from a wait, unless an alarm interrupted it.
    fn waited(&mut self, since: u64, until: u64, found: Found, on_kernel: bool, foreseen: bool) {
        let has_requests = self.queues.iter().any(Queue::has_work);
        if found == Found::Alarmed && !has_requests {
            self.waiting_since = Some(since);
            return;
        }
        if has_requests && !on_kernel {
            self.counters.foreseen.add(u64::from(foreseen));
            self.pace.came(since, until, found);
        }
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

    /// Ask for kicks and sleep, unless work slipped in; when and how that ended.
    fn sleep(&mut self, on_kernel: bool) -> (u64, Found) {
        if !on_kernel {
            self.set_alarms();
        }
        let looking = if self.context.tracer.is_some() { now_ns() } else { 0 };
        let context = &mut self.context;
        if self.queues.iter_mut().any(|queue| queue.ask_for_kick(context)) {
            return (now_ns(), Found::Spinning);
        }
        self.nothing_since(looking);
        if self.mailbox.has_mail() || self.queues.iter().any(Queue::must_poll) {
            return (now_ns(), Found::Spinning);
        }
        self.counters.sleeps.add(1);
        let rang = self.context.engine.wait(self.next_deadline(), &mut self.events);
        let woken = now_ns();
        if let Some(tracer) = &mut self.context.tracer {
            tracer.slept_until_ns = woken;
        }
        self.queues.iter_mut().for_each(|queue| queue.awake(&self.context));
        self.take_events();
        (woken, self.woken_by(rang, woken))
    }

    /// For the requests that are foreseen.
    fn set_alarms(&mut self) {
        let engine = &mut self.context.engine;
        match self.pace.next(now_ns()) {
            Some(Next::Ahead(alarms)) => {
                engine.set_alarms(&alarms);
                self.pace.set();
            }
            _ => engine.set_alarms(&[]),
        }
    }

    fn woken_by(&mut self, rang: Option<u64>, woken: u64) -> Found {
        let Some(at) = rang else { return Found::Woken };
        self.counters.alarms.add(1);
        self.pace.rang(woken.saturating_sub(at));
        Found::Alarmed
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
