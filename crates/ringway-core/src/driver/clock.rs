//! Time at the cost of an instruction, and the thread's CPU: what it used, and which one it runs on.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

/// A monotonic clock in ticks of unknown length: the time-stamp counter where it is invariant, else nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    counter: bool,
    /// Nanoseconds in a tick, times 2^32.
    scale: u64,
}

impl Clock {
    /// The clock of this machine; measured against `CLOCK_MONOTONIC` once in a process, which takes 20 ms.
    pub(crate) fn calibrated() -> Self {
        static CLOCK: OnceLock<Clock> = OnceLock::new();
        *CLOCK.get_or_init(|| match counter::is_invariant() {
            true => Self { counter: true, scale: measure_scale() },
            false => Self { counter: false, scale: 1 << 32 },
        })
    }

    /// Now, in ticks.
    #[inline(always)]
    pub(crate) fn now(&self) -> u64 {
        if self.counter {
            counter::read()
        } else {
            nanoseconds_of(libc::CLOCK_MONOTONIC)
        }
    }

    /// Length of a number of ticks.
    #[inline(always)]
    pub(crate) fn nanoseconds(&self, ticks: u64) -> u64 {
        // Saturates after 584 years.
        ((u128::from(ticks) * u128::from(self.scale)) >> 32) as u64
    }

    /// Ticks in a number of seconds.
    pub(crate) fn ticks(&self, seconds: f64) -> f64 {
        seconds * 1e9 * (1u64 << 32) as f64 / self.scale as f64
    }

    /// Ticks in a duration.
    pub(crate) fn ticks_in(&self, duration: Duration) -> u64 {
        self.ticks(duration.as_secs_f64()) as u64
    }
}

/// CPU time of the calling thread in nanoseconds.
pub(crate) fn thread_cpu_nanoseconds() -> u64 {
    nanoseconds_of(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn nanoseconds_of(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: time is ours to write. Both clocks exist on every Linux, so it cannot fail.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// Nanoseconds in a tick of the counter, times 2^32.
fn measure_scale() -> u64 {
    let (ticks, time) = sample();
    std::thread::sleep(Duration::from_millis(20));
    let (later_ticks, later_time) = sample();
    let elapsed = u128::from(later_time - time) << 32;
    (elapsed / u128::from((later_ticks - ticks).max(1))) as u64
}

/// The counter and the time at one moment: the closest of some tries, for the thread may be preempted in one.
fn sample() -> (u64, u64) {
    let once = || {
        let before = counter::read();
        let time = nanoseconds_of(libc::CLOCK_MONOTONIC);
        let width = counter::read() - before;
        (width, before + width / 2, time)
    };
    let (_, ticks, time) = (0..16).map(|_| once()).min().unwrap_or_else(once);
    (ticks, time)
}

#[cfg(target_arch = "x86_64")]
mod counter {
    use std::arch::x86_64::{__cpuid, _rdtsc};

    /// Whether the counter runs at one rate in all power states: CPUID 8000_0007h, EDX bit 8.
    pub(super) fn is_invariant() -> bool {
        __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0
    }

    #[inline(always)]
    pub(super) fn read() -> u64 {
        // SAFETY: every x86_64 has the instruction, and it touches no memory.
        unsafe { _rdtsc() }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod counter {
    pub(super) fn is_invariant() -> bool {
        false
    }

    pub(super) fn read() -> u64 {
        0
    }
}

/// Keeps the calling thread on one CPU; where it might run before is restored when dropped.
#[derive(Debug)]
pub(crate) struct Pinned {
    before: libc::cpu_set_t,
}

impl Pinned {
    /// Errors: `EINVAL` when there is no such CPU, or this process may not use it.
    pub(crate) fn to(cpu: usize) -> io::Result<Self> {
        if cpu >= usize::try_from(libc::CPU_SETSIZE).unwrap_or(0) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut before = empty_set();
        // SAFETY: the set is ours to write and as large as we say; thread 0 is the calling one.
        if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut before) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut only = empty_set();
        // SAFETY: cpu is below CPU_SETSIZE.
        unsafe { libc::CPU_SET(cpu, &mut only) };
        set_affinity(&only)?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It fails only if those CPUs went offline meanwhile; then the kernel has already widened the set.
        let _ = set_affinity(&self.before);
    }
}

fn empty_set() -> libc::cpu_set_t {
    // SAFETY: a CPU set is an array of integers.
    unsafe { std::mem::zeroed() }
}

fn set_affinity(set: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: the set is readable and as large as we say.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_and_nanoseconds_are_inverse() {
        let clock = Clock::calibrated();
        let ticks = clock.ticks_in(Duration::from_secs(10));
        assert!(clock.nanoseconds(ticks).abs_diff(10_000_000_000) < 1000);
    }

    #[test]
    fn the_clock_goes_as_fast_as_the_kernels() {
        let clock = Clock::calibrated();
        let (ticks, time) = (clock.now(), nanoseconds_of(libc::CLOCK_MONOTONIC));
        std::thread::sleep(Duration::from_millis(5));
        let (later, later_time) = (clock.now(), nanoseconds_of(libc::CLOCK_MONOTONIC));
        let (ours, kernels) = (clock.nanoseconds(later - ticks), later_time - time);
        // A preemption between the two reads widens the difference: the bound is for a scale that is wrong.
        assert!(ours < 100 * kernels && kernels < 100 * ours, "{ours} {kernels}");
    }

    #[test]
    fn pinning_is_undone() {
        let before = empty_set_of_now();
        drop(Pinned::to(first_cpu(&before)).unwrap());
        // SAFETY: both are initialised sets.
        assert!(unsafe { libc::CPU_EQUAL(&before, &empty_set_of_now()) });
    }

    #[test]
    fn a_cpu_that_does_not_exist_is_refused() {
        assert_eq!(Pinned::to(1 << 20).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    fn empty_set_of_now() -> libc::cpu_set_t {
        let mut set = empty_set();
        // SAFETY: the set is ours to write.
        unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
        set
    }

    fn first_cpu(set: &libc::cpu_set_t) -> usize {
        // SAFETY: the numbers are below CPU_SETSIZE.
        (0..1024).find(|&cpu| unsafe { libc::CPU_ISSET(cpu, set) }).unwrap()
    }
}
