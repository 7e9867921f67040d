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

/// The budgets to choose from, besides none.
const STEPS_NS: [u64; 6] = [2_000, 4_000, 8_000, 16_000, 32_000, 50_000];
/// What it is worth to be spared a sleep, in nanoseconds of spinning. A guest feels the whole time until the thread
/// runs again.
pub const FOR_A_GUEST_NS: u64 = 30_000;
/// As above, while the kernel has I/O of ours: the wake-up is short against what a disk takes, and more of it ends
/// meanwhile, which makes the next batch.
pub const FOR_THE_KERNEL_NS: u64 = 5_000;
/// The waits after which the budget is chosen anew.
const REVIEW: u32 = 16;
/// The waits after which one spins to the last step, whatever the budget says: a sleep's end comes late by the wake-up,
/// so that sleeps alone would never show how soon there was work.
const PROBE: u32 = 64;

/// The spin budget: of the steps, the one that would have cost least over the last waits.
///
/// A wait costs its spinning if it ended within the budget, else the whole budget and a sleep. Older waits count for
/// less. Pure: it knows no clock, it is told.
#[derive(Debug)]
pub struct SpinBudget {
    mode: PollMode,
    sleep_ns: u64,
    budget_ns: u64,
    waits: u32,
    /// Waits that ended within each step; the last: within none.
    ended: [u32; STEPS_NS.len() + 1],
}

impl SpinBudget {
    /// A new budget, where a sleep costs as much as `sleep_ns` of spinning; adaptive starts with none.
    pub fn new(mode: PollMode, sleep_ns: u64) -> Self {
        SpinBudget { mode, sleep_ns, budget_ns: 0, waits: 0, ended: [0; STEPS_NS.len() + 1] }
    }

    /// Nanoseconds to spin now.
    #[inline(always)]
    pub fn budget_ns(&self) -> u64 {
        match self.mode {
            PollMode::Interrupt => 0,
            PollMode::Adaptive if self.waits % PROBE == PROBE - 1 => STEPS_NS[STEPS_NS.len() - 1],
            PollMode::Adaptive => self.budget_ns,
            PollMode::Poll => u64::MAX,
        }
    }

    /// There was work again after this time, spinning and sleep together.
    #[inline(always)]
    pub fn waited(&mut self, ns: u64) {
        let step = STEPS_NS.iter().position(|step| ns <= *step).unwrap_or(STEPS_NS.len());
        self.ended[step] += 1;
        self.waits = self.waits.wrapping_add(1);
        if self.waits.is_multiple_of(REVIEW) {
            self.review();
        }
    }

    fn review(&mut self) {
        let cost = |budget: u64| -> u64 {
            let ends = self.ended.iter().zip(STEPS_NS.iter().chain([&u64::MAX]));
            let one = |end: u64| if end <= budget { end } else { budget + self.sleep_ns };
            ends.map(|(count, end)| u64::from(*count) * one(*end)).sum()
        };
        let choices = [0].into_iter().chain(STEPS_NS);
        self.budget_ns = choices.min_by_key(|budget| cost(*budget)).expect("there are choices");
        self.ended.iter_mut().for_each(|count| *count /= 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(waits: &[u64]) -> u64 {
        settled(FOR_A_GUEST_NS, waits)
    }

    fn settled(sleep_ns: u64, waits: &[u64]) -> u64 {
        let mut spin = SpinBudget::new(PollMode::Adaptive, sleep_ns);
        waits.iter().cycle().take(8 * REVIEW as usize).for_each(|ns| spin.waited(*ns));
        spin.budget_ns()
    }

    #[test]
    fn it_spins_as_long_as_work_is_worth_waiting_for() {
        assert_eq!(after(&[1_000]), 2_000);
        assert_eq!(after(&[15_000]), 16_000);
        assert_eq!(after(&[1_000, 1_000, 1_000, 200_000]), 2_000, "one long wait in four is slept through");
        assert_eq!(after(&[10_000, 100_000, 100_000, 100_000]), 0, "one short wait in four does not pay");
    }

    #[test]
    fn it_does_not_spin_for_what_a_sleep_serves_as_well() {
        assert_eq!(after(&[60_000]), 0, "a disk's answer");
        assert_eq!(after(&[45_000]), 0);
        assert_eq!(after(&[10_000_000]), 0, "an idle guest");
        assert_eq!(settled(FOR_THE_KERNEL_NS, &[10_000]), 0, "a busy disk");
        assert_eq!(settled(FOR_THE_KERNEL_NS, &[3_000]), 4_000, "a very fast one");
    }

    #[test]
    fn it_follows_a_guest_that_changes_its_ways() {
        let mut spin = SpinBudget::new(PollMode::Adaptive, FOR_A_GUEST_NS);
        (0..100 * REVIEW).for_each(|_| spin.waited(1_000));
        (0..5 * REVIEW).for_each(|_| spin.waited(100_000));
        assert_eq!(spin.budget_ns(), 0);
        (0..5 * REVIEW).for_each(|_| spin.waited(1_000));
        assert_eq!(spin.budget_ns(), 2_000);
    }

    #[test]
    fn now_and_then_it_looks_how_soon_work_would_come() {
        let mut spin = SpinBudget::new(PollMode::Adaptive, FOR_A_GUEST_NS);
        (0..PROBE - 1).for_each(|_| spin.waited(100_000));
        assert_eq!(spin.budget_ns(), 50_000);
        spin.waited(100_000);
        assert_eq!(spin.budget_ns(), 0);
    }

    #[test]
    fn the_other_modes_are_constant() {
        for (mode, budget) in [(PollMode::Interrupt, 0), (PollMode::Poll, u64::MAX)] {
            let mut spin = SpinBudget::new(mode, FOR_A_GUEST_NS);
            (0..2 * PROBE).for_each(|_| spin.waited(1_000));
            assert_eq!(spin.budget_ns(), budget);
        }
    }
}
