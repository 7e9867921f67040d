//! How long a worker spins before it sleeps.

/// What a worker does when it has nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollMode {
    /// Sleep at once.
    Interrupt,
    /// Spin while it pays.
    Adaptive,
    /// Never sleep.
    Poll,
}

const FLOOR_NS: u64 = 4_000;
const CEILING_NS: u64 = 50_000;

/// The spin budget: doubled when work comes soon after a sleep began, halved when spinning was in vain.
///
/// Pure: it knows no clock, it is told.
#[derive(Debug)]
pub struct SpinBudget {
    mode: PollMode,
    budget_ns: u64,
}

impl SpinBudget {
    /// A new budget; adaptive starts with none.
    pub fn new(mode: PollMode) -> Self {
        SpinBudget { mode, budget_ns: 0 }
    }

    /// Nanoseconds to spin now.
    #[inline(always)]
    pub fn budget_ns(&self) -> u64 {
        match self.mode {
            PollMode::Interrupt => 0,
            PollMode::Adaptive => self.budget_ns,
            PollMode::Poll => u64::MAX,
        }
    }

    /// A whole budget passed without work.
    pub fn spun_in_vain(&mut self) {
        self.budget_ns /= 2;
        if self.budget_ns < FLOOR_NS {
            self.budget_ns = 0;
        }
    }

    /// Work ended a sleep that lasted this long.
    pub fn slept(&mut self, ns: u64) {
        if ns <= CEILING_NS {
            self.budget_ns = (self.budget_ns * 2).clamp(FLOOR_NS, CEILING_NS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_grows_while_it_pays_and_dies_when_it_does_not() {
        let mut spin = SpinBudget::new(PollMode::Adaptive);
        assert_eq!(spin.budget_ns(), 0);
        (0..10).for_each(|_| spin.slept(10_000));
        assert_eq!(spin.budget_ns(), CEILING_NS);
        (0..10).for_each(|_| spin.spun_in_vain());
        assert_eq!(spin.budget_ns(), 0);
        spin.slept(1_000_000);
        assert_eq!(spin.budget_ns(), 0, "a long sleep would not have been saved by spinning");
    }

    #[test]
    fn the_other_modes_are_constant() {
        for (mode, budget) in [(PollMode::Interrupt, 0), (PollMode::Poll, u64::MAX)] {
            let mut spin = SpinBudget::new(mode);
            spin.slept(5_000);
            assert_eq!(spin.budget_ns(), budget);
        }
    }
}
