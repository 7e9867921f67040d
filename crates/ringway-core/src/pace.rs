//! Foresees requests that come at an even pace, so that a worker is awake when the next is due.
//!
//! A sleep's end comes late: a halted CPU takes tens of microseconds to run again. Who knows when the next request is
//! due sets an alarm for shortly before, and spins for a moment.

use std::ops::Range;

/// Gaps between requests that are worth it: below, there is no time to sleep; above, what is foreseen is too vague.
const GAPS_NS: Range<u64> = 45_000..2_000_000;
/// How far off an alarm has to be.
const AHEAD_NS: u64 = 5_000;
/// What it takes more to wake up by an alarm than by a kick, in nanoseconds of spinning.
const ALARM_NS: u64 = 10_000;
/// By how much a worker means to be early, besides what is uncertain.
const EARLY_NS: u64 = 1_000;
/// By how much a wake-up is late, until that is known.
const LATENESS_NS: u64 = 20_000;

/// A mean and the mean deviation from it; what is old counts for less.
#[derive(Clone, Copy, Debug)]
struct Mean {
    value: u64,
    deviation: u64,
}

impl Mean {
    /// Take in a value; one that is far out moves it as if it were less so, or one hiccup would spoil many gaps.
    fn add(&mut self, value: u64) {
        let off = value.abs_diff(self.value).min(4 * self.deviation + self.value / 64);
        self.value = if value > self.value { self.value + off / 8 } else { self.value - off / 8 };
        self.deviation = self.deviation - self.deviation / 8 + off / 8;
    }
}

/// What is foreseen, in nanoseconds of the clock that is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A request is due now: it is worth to spin until then.
    Due(u64),
    /// There is time to sleep until this alarm; the second is for the request after the next.
    Ahead([u64; 2]),
}

/// How a wait for a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// By a look: when it came.
    Spinning,
    /// By an alarm's wake-up: a moment after it came.
    Alarmed,
    /// By another wake-up, its kick's: later than it came.
    Woken,
}

/// The pace of a worker's requests, and whether it is even enough.
///
/// What foreseeing a request costs is counted for each of them, whether it was done or not: the alarm, the spinning,
/// and a sleep as well where the request came at another time. It is done while that is less than what sleeping
/// costs. Pure: it knows no clock, it is told.
#[derive(Debug)]
pub struct Pace {
    enabled: bool,
    sleep_ns: u64,
    /// When the last request came; 0: unknown.
    last: u64,
    /// By how much `last` may be too late.
    blur: u64,
    gap: Mean,
    /// Of wake-ups.
    lateness: Mean,
    /// What foreseeing cost of late.
    cost_ns: u64,
    /// An alarm was set for the request that is next.
    set: bool,
    /// The request that was due last did not come.
    missed: bool,
}

impl Pace {
    /// Nothing is known; where a sleep costs as much as `sleep_ns` of spinning.
    pub fn new(enabled: bool, sleep_ns: u64) -> Self {
        Pace {
            enabled,
            sleep_ns,
            last: 0,
            blur: 0,
            gap: Mean { value: GAPS_NS.start, deviation: GAPS_NS.start },
            lateness: Mean { value: LATENESS_NS, deviation: LATENESS_NS / 8 },
            cost_ns: 2 * sleep_ns,
            set: false,
            missed: false,
        }
    }

    /// What is foreseen now, if anything.
    #[inline(always)]
    pub fn next(&self, now: u64) -> Option<Next> {
        if self.cost_ns >= self.sleep_ns || self.missed {
            return None;
        }
        let alarm = self.awake_from().saturating_sub(self.blur + self.lateness.value);
        if alarm > now + AHEAD_NS {
            return Some(Next::Ahead([alarm, alarm + self.blur + self.gap.value]));
        }
        (alarm..self.awake_until()).contains(&now).then(|| Next::Due(self.awake_until()))
    }

    /// The alarms of [`Next::Ahead`] were set.
    pub fn set(&mut self) {
        self.set = true;
    }

    /// An alarm woke the worker, later by this than it was to.
    pub fn rang(&mut self, late_ns: u64) {
        self.lateness.add(late_ns);
    }

    /// What was due has not come: the next request is waited for asleep.
    pub fn missed(&mut self) {
        self.missed = true;
    }

    /// A request was found `now`, by a worker that had waited for it `since` then.
    #[inline(always)]
    pub fn came(&mut self, since: u64, now: u64, found: Found) {
        if self.enabled {
            self.note(since, now, found);
        }
    }

    fn note(&mut self, since: u64, now: u64, found: Found) {
        let late = match found {
            Found::Spinning => 0,
            Found::Alarmed => EARLY_NS,
            Found::Woken => self.lateness.value,
        };
        let at = now.saturating_sub(late).max(since);
        let gap = at.saturating_sub(self.last);
        if GAPS_NS.contains(&gap) {
            self.count(self.cost(since, at, found));
            self.gap.add(gap);
        } else if gap < GAPS_NS.start {
            self.count(2 * self.sleep_ns);
        } else {
            self.cost_ns = 2 * self.sleep_ns;
        }
        // while kicks come before alarms, the next alarm is earlier each time
        self.blur = if found == Found::Woken { (self.blur + late / 2).min(2 * late) } else { 0 };
        self.last = at;
        (self.set, self.missed) = (false, false);
    }

    fn count(&mut self, cost: u64) {
        self.cost_ns = (7 * self.cost_ns + cost) / 8;
    }

    /// What it costs, or would have cost, to foresee a request that came `at` then.
    fn cost(&self, since: u64, at: u64, found: Found) -> u64 {
        let (from, until) = (self.awake_from(), self.awake_until());
        match found {
            Found::Alarmed => ALARM_NS,
            Found::Woken if self.set && !self.missed => ALARM_NS + self.sleep_ns,
            _ if at < from || from < since + self.lateness.value + AHEAD_NS => self.sleep_ns,
            _ if at <= until => ALARM_NS + at - from,
            _ => ALARM_NS + until - from + self.sleep_ns,
        }
    }

    fn awake_from(&self) -> u64 {
        (self.last + self.gap.value).saturating_sub(self.margin())
    }

    fn awake_until(&self) -> u64 {
        self.last + self.gap.value + 3 * self.margin()
    }

    fn margin(&self) -> u64 {
        EARLY_NS + self.gap.deviation + self.lateness.deviation
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poll::FOR_A_GUEST_NS;

    const START: u64 = 1_000_000_000;
    /// Of all wake-ups.
    const LATE_NS: u64 = 25_000;
    const SERVED_NS: u64 = 1_000;

    fn pace() -> Pace {
        Pace::new(true, FOR_A_GUEST_NS)
    }

    /// What a worker got out of a pace.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Outcome {
        foreseen: usize,
        alarms: usize,
        spun_ns: u64,
    }

    /// Serve requests that come at these times, as a worker does.
    fn serve(pace: &mut Pace, times: &[u64]) -> Outcome {
        let (mut outcome, mut since) = (Outcome::default(), times[0] - 1);
        for &at in times {
            let (now, found) = wait(pace, since, at, &mut outcome);
            pace.came(since, now, found);
            since = now + SERVED_NS;
        }
        outcome
    }

    /// When and how a worker that waits `since` then finds what comes `at` then.
    fn wait(pace: &mut Pace, since: u64, at: u64, outcome: &mut Outcome) -> (u64, Found) {
        let woken = match pace.next(since) {
            None => return kicked(since, at),
            Some(Next::Due(_)) => since,
            Some(Next::Ahead([alarm, _])) => {
                pace.set();
                if at < alarm {
                    return kicked(since, at);
                }
                outcome.alarms += 1;
                pace.rang(LATE_NS);
                alarm + LATE_NS
            }
        };
        if at <= woken {
            return (woken, Found::Alarmed);
        }
        let Some(Next::Due(until)) = pace.next(woken) else { return kicked(woken, at) };
        outcome.spun_ns += at.min(until) - woken;
        if at <= until {
            outcome.foreseen += 1;
            return (at, Found::Spinning);
        }
        pace.missed();
        assert_eq!(pace.next(until), None);
        kicked(until, at)
    }

    fn kicked(since: u64, at: u64) -> (u64, Found) {
        (at.max(since) + LATE_NS, Found::Woken)
    }

    /// Times with gaps that repeat.
    fn times(gaps: &[u64], count: usize) -> Vec<u64> {
        let sum = |at: &mut u64, gap: &u64| {
            *at += gap;
            Some(*at)
        };
        gaps.iter().cycle().scan(START, sum).take(count).collect()
    }

    /// Numbers below a bound that follow no rule a pace could see.
    fn random(bound: u64) -> impl Iterator<Item = u64> {
        let mut state = 1u64;
        std::iter::repeat_with(move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        })
    }

    #[test]
    fn an_even_pace_is_foreseen_soon_and_then_each_time() {
        for gap in [60_000, 100_000, 500_000, 1_000_000] {
            let mut pace = pace();
            let times = times(&[gap], 600);
            serve(&mut pace, &times[..100]);
            let outcome = serve(&mut pace, &times[100..]);
            assert_eq!(outcome.foreseen, 500, "{gap}");
            assert!(outcome.spun_ns < 500 * 3 * EARLY_NS, "{gap} {outcome:?}");
        }
    }

    #[test]
    fn a_pace_that_sways_a_little_is_foreseen_mostly() {
        let mut pace = pace();
        let times: Vec<u64> =
            times(&[100_000], 1100).iter().zip(random(4_000)).map(|(at, sway)| at + sway).collect();
        serve(&mut pace, &times[..100]);
        let outcome = serve(&mut pace, &times[100..]);
        assert!(outcome.alarms > 990 && outcome.foreseen > 800, "{outcome:?}");
        assert!(outcome.spun_ns < 1000 * FOR_A_GUEST_NS / 4, "{outcome:?}");
    }

    #[test]
    fn what_follows_no_rule_is_left_alone() {
        let gaps: Vec<u64> = random(200_000).take(2000).collect();
        let outcome = serve(&mut pace(), &times(&gaps, 2000));
        assert!(outcome.alarms < 20, "{outcome:?}");
        let outcome = serve(&mut pace(), &times(&[100_000, 300_000], 2000));
        assert!(outcome.alarms < 20, "{outcome:?}");
    }

    #[test]
    fn what_is_too_fast_or_too_slow_is_left_alone() {
        for gap in [2_000, 40_000, 2_500_000, 1_000_000_000] {
            let outcome = serve(&mut pace(), &times(&[gap], 1000));
            assert_eq!(outcome, Outcome::default(), "{gap}");
        }
    }

    #[test]
    fn a_guest_that_stops_costs_one_alarm() {
        let mut times = times(&[100_000], 200);
        let before = serve(&mut pace(), &times);
        let last = times[199];
        times.extend((1..4).map(|second| last + second * 1_000_000_000));
        let after = serve(&mut pace(), &times);
        assert_eq!((after.foreseen, after.alarms), (before.foreseen, before.alarms + 1));
        assert!(after.spun_ns - before.spun_ns < 10_000, "{before:?} {after:?}");
    }

    #[test]
    fn another_pace_is_learned() {
        let mut pace = pace();
        let times = times(&[100_000], 200);
        serve(&mut pace, &times);
        let slower: Vec<u64> = (1..600).map(|count| times[199] + count * 130_000).collect();
        let outcome = serve(&mut pace, &slower);
        assert!(outcome.foreseen > 450, "{outcome:?}");
    }

    #[test]
    fn a_hiccup_is_forgotten() {
        let mut pace = pace();
        let mut times = times(&[100_000], 400);
        let late = times[203] - 10_000;
        times[200..203].fill(late);
        serve(&mut pace, &times[..200]);
        let outcome = serve(&mut pace, &times[200..]);
        assert!(outcome.foreseen > 170, "{outcome:?}");
    }

    #[test]
    fn an_alarm_is_as_early_as_wake_ups_are_late() {
        let mut pace = pace();
        let times = times(&[100_000], 200);
        serve(&mut pace, &times);
        let due = times[199] + 100_000;
        let Some(Next::Ahead([alarm, following])) = pace.next(times[199]) else { panic!("{pace:?}") };
        assert!((due - LATE_NS - 3 * EARLY_NS..due - LATE_NS).contains(&alarm), "{}", due - alarm);
        assert!(following.abs_diff(alarm + 100_000) < 100);
        let Some(Next::Due(until)) = pace.next(alarm + LATE_NS) else { panic!("{pace:?}") };
        assert!((due..due + 10_000).contains(&until));
        assert_eq!(pace.next(until), None);
    }

    #[test]
    fn who_does_not_spin_foresees_nothing() {
        let mut pace = Pace::new(false, FOR_A_GUEST_NS);
        assert_eq!(serve(&mut pace, &times(&[100_000], 500)), Outcome::default());
    }
}
