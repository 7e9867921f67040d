//! Alarms of a ring: timeouts that are set ahead, beside its other work.

use std::time::Duration;

use io_uring::types::Timespec;
use io_uring::{opcode, squeue};

/// How far off an alarm may be for one that is wanted.
const CLOSE_NS: u64 = 2_000;
/// Alarms that are set at a time, at most.
const SLOTS: usize = 8;

/// The alarms that are set.
///
/// Two are, as a rule: the next, and the one after it. As long as the kernel has a timer ahead, it can set others behind
/// it, and stop its tick and start it again, without touching the CPU's clock, which takes a virtual machine 4 to 7 µs
/// each time. With one alarm at a time, a wake-up did that three times: it was 26 µs late and took 19 µs of CPU.
#[derive(Default)]
pub(super) struct Alarms {
    serial: u32,
    /// Name, and when it is to go off.
    set: Vec<(u32, u64)>,
    times: Box<[Timespec; SLOTS]>,
    rang: Option<u64>,
}

impl Alarms {
    /// Whether none is set.
    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Names of those that none of these are.
    pub(super) fn others(&self, wanted: &[u64]) -> Vec<u32> {
        let is_wanted = |at: u64| wanted.iter().any(|other| at.abs_diff(*other) <= CLOSE_NS);
        self.set.iter().filter(|(_, at)| !is_wanted(*at)).map(|(name, _)| *name).collect()
    }

    /// The entry that sets an alarm, and its name; none: there is one, or there are too many.
    ///
    /// What the entry points to stays in place for as long as `self` lives.
    pub(super) fn set(&mut self, at: u64, now: u64) -> Option<(squeue::Entry, u32)> {
        let is_set = self.set.iter().any(|(_, other)| at.abs_diff(*other) <= CLOSE_NS);
        if is_set || self.set.len() == SLOTS {
            return None;
        }
        self.serial = self.serial.wrapping_add(1);
        let time = &mut self.times[self.serial as usize % SLOTS];
        *time = Timespec::from(Duration::from_nanos(at.saturating_sub(now)));
        self.set.push((self.serial, at));
        Some((opcode::Timeout::new(time).build(), self.serial))
    }

    /// One went off, or was removed.
    pub(super) fn ended(&mut self, name: u32, result: i32) {
        let Some(place) = self.set.iter().position(|(other, _)| *other == name) else { return };
        let (_, at) = self.set.swap_remove(place);
        if result == -libc::ETIME {
            self.rang = Some(at);
        }
    }

    /// When the one was to go off that did so since [`Alarms::forget_rang`].
    pub(super) fn rang(&self) -> Option<u64> {
        self.rang
    }

    /// What went off is known, or does not matter any more.
    pub(super) fn forget_rang(&mut self) {
        self.rang = None;
    }
}
