//! Copies between guest memory and a mapped store, either of which may lose a page meanwhile.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr;

use super::Errno;
use crate::mapping::{faulted_since, faults, file_status, Mapping};
use crate::memory::{for_each_span, IoVec};

/// Times that a copy is repeated because others' faults made it doubtful.
const MAX_COPIES: usize = 16;

/// What became of a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Copied {
    Whole,
    /// A page of the guest's memory was gone.
    GuestGone,
    /// A page of the store was gone, or there was no room for it.
    StoreGone,
    /// As much happened to another thread: what was copied may have gone to a page that is not the file's.
    Doubtful,
}

/// The caller asked [`Store::contains`].
#[inline(always)]
pub(super) fn copy_once(
    mapping: &Mapping,
    write: bool,
    offset: u64,
    spans: &[IoVec],
    skip: usize,
    len: usize,
) -> Copied {
    let (before, epoch) = (faults(), mapping.epoch().now());
    // SAFETY: the caller asked `contains`.
    let mut at = unsafe { mapping.as_ptr().add(offset as usize) };
    for_each_span(spans, skip, len, |base, len| {
        // SAFETY: both sides are mapped for `len` bytes and are different mappings (a guest that shares its own
        // memory as a disk gets what it asked for: `copy` allows overlap). A vanished page raises SIGBUS,
        // which `mapping` turns into zeroes and a count.
        unsafe {
            match write {
                true => ptr::copy(base, at, len),
                false => ptr::copy(at, base, len),
            }
            at = at.add(len);
        }
    });
    let held = mapping.epoch().held_since(epoch, write);
    match (faulted_since(before), held) {
        (false, true) => Copied::Whole,
        (true, true) => Copied::GuestGone,
        (true, false) => Copied::StoreGone,
        (false, false) => Copied::Doubtful,
    }
}

/// Put the file back under the mapping; copy again what only others broke.
#[cold]
#[inline(never)]
pub(super) fn copy_failed(
    mapping: &Mapping,
    file: Option<&OwnedFd>,
    mut copied: Copied,
    (write, offset, spans, skip, len): (bool, u64, &[IoVec], usize, usize),
) -> Result<(), Errno> {
    for _ in 0..MAX_COPIES {
        let Some(file) = file.filter(|_| copied != Copied::GuestGone) else { return Err(libc::EIO) };
        mapping.repair(file.as_fd());
        if copied == Copied::StoreGone {
            let end = offset + len as u64;
            let shrank = file_status(file.as_fd()).is_ok_and(|(_, _, _, size)| end > size);
            return Err(if write && !shrank { libc::ENOSPC } else { libc::EIO });
        }
        copied = copy_once(mapping, write, offset, spans, skip, len);
        if copied == Copied::Whole {
            return Ok(());
        }
    }
    Err(libc::EIO)
}
