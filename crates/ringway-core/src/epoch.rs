//! Whether all pages of a mapping are its file's: told to who copies, while others lose pages and mend them.

use std::sync::atomic::Ordering::*;

use crate::sync::{fence, heavy_fence, light_fence, AtomicU32};

/// Odd while a page is not the file's; each change makes another number.
#[derive(Debug)]
pub struct Epoch(pub AtomicU32);

impl Epoch {
    /// To be asked before a copy.
    #[inline(always)]
    pub fn now(&self) -> u32 {
        self.0.load(SeqCst)
    }

    /// Whether a copy met the file's pages alone, since [`Epoch::now`] answered `before`.
    ///
    /// A copy is ordinary loads and stores. A CPU may carry them out after the load of a number that follows them,
    /// be that sequentially consistent: a load on an ARM, a store on x86 too. Then the number would be the one from
    /// before a page was lost, and the copy on the page that stands in for it. An acquire fence keeps the copy's
    /// loads before; its stores take a full one, for which who loses a page pays (for the former x86 pays nothing).
    #[inline(always)]
    pub fn held_since(&self, before: u32, stored: bool) -> bool {
        match stored {
            true => light_fence(),
            false => fence(Acquire),
        }
        before & 1 == 0 && self.0.load(Relaxed) == before
    }

    /// A page of the mapping is about to be another than the file's, or has just become it.
    pub fn spoil(&self) {
        self.0.fetch_add(2, SeqCst);
        self.0.fetch_or(1, SeqCst);
        heavy_fence(); // before the page is there: that a store follows a read-modify-write binds only its load
    }

    /// All pages are the file's again, unless one was lost since the number was `seen`; whether they are.
    pub fn mend(&self, seen: u32) -> bool {
        self.0.compare_exchange(seen, seen.wrapping_add(1), SeqCst, SeqCst).is_ok()
    }
}
