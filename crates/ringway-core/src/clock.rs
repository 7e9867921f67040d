//! Time for latencies and spinning: the TSC where it is invariant (a few nanoseconds), else the vDSO (twenty-odd).

use std::sync::OnceLock;

use crate::notify::monotonic_ns;

/// Ticks to nanoseconds, as a 32.32 fixed-point factor; zero where there is no invariant TSC.
static FACTOR: OnceLock<u64> = OnceLock::new();

/// Calibrate; the first call takes two milliseconds.
pub fn calibrate() {
    FACTOR.get_or_init(measure);
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    // SAFETY: every x86-64 has RDTSC.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    0
}

#[cfg(target_arch = "x86_64")]
fn has_invariant_tsc() -> bool {
    use core::arch::x86_64::__cpuid;
    __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & 1 << 8 != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn has_invariant_tsc() -> bool {
    false
}

fn measure() -> u64 {
    if !has_invariant_tsc() {
        return 0;
    }
    let (from, first) = (monotonic_ns(), ticks());
    let mut now = from;
    while now - from < 2_000_000 {
        now = monotonic_ns();
    }
    let passed = u128::from(ticks() - first).max(1);
    ((u128::from(now - from) << 32) / passed) as u64
}

/// Nanoseconds since some fixed point; steady, for differences within this process.
#[inline(always)]
pub fn now_ns() -> u64 {
    match FACTOR.get() {
        Some(&factor) if factor != 0 => ((u128::from(ticks()) * u128::from(factor)) >> 32) as u64,
        _ => monotonic_ns(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_system_clock() {
        calibrate();
        let (from, first) = (monotonic_ns(), now_ns());
        std::thread::sleep(std::time::Duration::from_millis(20));
        let (system, ours) = (monotonic_ns() - from, now_ns() - first);
        assert!(ours.abs_diff(system) < system / 50, "{ours} ns here, {system} ns there");
    }
}
