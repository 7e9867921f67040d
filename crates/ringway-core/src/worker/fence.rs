//! Waiting for requests that are in flight now, while new ones go on.

use std::sync::mpsc::SyncSender;
use std::time::Instant;

use super::pending::{Pending, Phase, Slab};

/// Which requests a fence waits for.
#[derive(Clone, Copy, Debug)]
pub enum Matcher {
    /// On the hot path, of a LUN (or all), of one driver's tag (or all). To a guest, a LUN is an address: what it
    /// aborts there is also what it sent to one that is gone. Who means one LUN alone gives its instance.
    Hot {
        /// (target, LUN); a target alone; none: all.
        target: Option<u8>,
        /// LUN number.
        lun: Option<u16>,
        /// The driver's tag.
        id: Option<u64>,
        /// `LunId::instance`.
        instance: Option<u64>,
    },
    /// On the hot path, touching a range of a LUN.
    Range {
        /// `LunId::instance`.
        instance: u64,
        /// First byte.
        start: u64,
        /// Behind the last byte.
        end: u64,
    },
    /// Anywhere, with spans in the memory of a view before this generation.
    MemoryBefore(u64),
    /// In the kernel, on the store that a LUN had in a view before this generation. What is parked uses none yet.
    StoreBefore {
        /// `LunId::instance`.
        instance: u64,
        /// The view's.
        generation: u64,
    },
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
        let of = |instance| pending.whose.is_some_and(|whose| whose.instance == instance);
        match self.matcher {
            Matcher::MemoryBefore(generation) => pending.origin.generation < generation,
            Matcher::StoreBefore { instance, generation } => {
                pending.phase == Phase::Running && of(instance) && pending.current.generation < generation
            }
            Matcher::Hot { target, lun, id, instance } => {
                let at = pending.whose.map(|whose| whose.address());
                let same =
                    at.is_some_and(|at| target.is_none_or(|t| t == at.0) && lun.is_none_or(|l| l == at.1));
                hot && same && id.is_none_or(|id| id == pending.header.id()) && instance.is_none_or(of)
            }
            Matcher::Range { instance, start, end } => {
                // a parked request touches nothing yet: it is what the lock holds back
                let met = pending.range.0 < end && start < pending.range.1;
                pending.phase == Phase::Running && of(instance) && met
            }
        }
    }
}
