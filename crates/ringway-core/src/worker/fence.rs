//! Waiting for requests that are in flight now, while new ones go on.

use std::sync::mpsc::SyncSender;
use std::time::Instant;

use super::pending::{Pending, Phase, Slab};

/// Which requests a fence waits for.
#[derive(Clone, Copy, Debug)]
pub enum Matcher {
    /// On the hot path, of a LUN (or all), of one driver's tag (or all).
    Hot {
        /// (target, LUN); a target alone; none: all.
        target: Option<u8>,
        /// LUN number.
        lun: Option<u16>,
        /// The driver's tag.
        id: Option<u64>,
    },
    /// On the hot path, touching a range of a LUN.
    Range {
        /// Target.
        target: u8,
        /// LUN.
        lun: u16,
        /// First byte.
        start: u64,
        /// Behind the last byte.
        end: u64,
    },
    /// Anywhere, with spans in the memory of a view before this generation.
    MemoryBefore(u64),
    /// In the kernel, on the stores of a view before this generation. What is parked uses none yet.
    StoresBefore(u64),
}

/// A wait for requests.
pub struct Fence {
    /// Which.
    pub matcher: Matcher,
    /// Give up then.
    pub deadline: Instant,
    /// Ask the kernel to cancel them.
    pub cancel: bool,
    /// Set by the worker: later requests do not count.
    pub before: u64,
    /// Whether they finished in time.
    pub reply: SyncSender<bool>,
}

const S_ABORTED: u8 = 2;
const S_RESET: u8 = 4;

impl Fence {
    /// What a cancelled request answers. Spec: virtio 1.3, 5.6.6.1.
    pub fn response(&self) -> u8 {
        match self.matcher {
            Matcher::Hot { id: Some(_), .. } => S_ABORTED,
            _ => S_RESET,
        }
    }

    /// Whether something still matches.
    pub fn is_open(&self, slab: &Slab) -> bool {
        slab.iter().any(|(_, pending)| self.matches_one(pending))
    }

    /// Keys that match, and where each is.
    pub fn matches(&self, slab: &Slab) -> Vec<(u32, Phase)> {
        let matching = slab.iter().filter(|(_, pending)| self.matches_one(pending));
        matching.map(|(key, pending)| (key, pending.phase)).collect()
    }

    fn matches_one(&self, pending: &Pending) -> bool {
        if pending.sequence >= self.before {
            return false;
        }
        let hot = pending.phase != Phase::Slow;
        let at = pending.address;
        match self.matcher {
            Matcher::MemoryBefore(generation) => pending.origin.generation < generation,
            Matcher::StoresBefore(generation) => {
                pending.phase == Phase::Running && pending.current.generation < generation
            }
            Matcher::Hot { target, lun, id } => {
                let same =
                    at.is_some_and(|at| target.is_none_or(|t| t == at.0) && lun.is_none_or(|l| l == at.1));
                hot && same && id.is_none_or(|id| id == pending.header.id())
            }
            Matcher::Range { target, lun, start, end } => {
                // a parked request touches nothing yet: it is what the lock holds back
                let met = pending.range.0 < end && start < pending.range.1;
                pending.phase == Phase::Running && at == Some((target, lun)) && met
            }
        }
    }
}
