//! virtio-blk requests: from a header to an [`Action`].
//!
//! Spec: virtio 1.3, 5.2.6. Sectors are 512 bytes whatever the logical block size is.

use crate::action::Action;
use crate::memory::{gather, IoVec};
use crate::view::Lun;

/// Bytes of a request header.
pub const HEADER_BYTES: usize = 16;
/// Segments of one discard or write-zeroes request (the configuration space says so).
pub const MAX_SEGMENTS: usize = 256;
/// Bytes of one segment (the configuration space says so).
pub const MAX_SEGMENT_BYTES: u64 = 1 << 30;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const UNMAP: u32 = 1;

/// The status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Failed.
    IoError = 1,
    /// Not known here.
    Unsupported = 2,
}

/// What a request turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlkCommand {
    /// For the store.
    Run(Action),
    /// Answer with the serial number.
    Identify,
}

/// Decode and check a request.
///
/// :param out_bytes: readable bytes behind the header; `in_bytes`: writable ones before the status.
#[inline(always)]
pub fn plan(
    header: &[u8],
    lun: &Lun,
    readable: &[IoVec],
    out_bytes: usize,
    in_bytes: usize,
    writeback: bool,
) -> Result<BlkCommand, Status> {
    let kind = u32::from_le_bytes(header[..4].try_into().expect("4 bytes"));
    let sector = u64::from_le_bytes(header[8..16].try_into().expect("8 bytes"));
    let writable = lun.store.options().writable;
    let action = match kind {
        IN => transfer(lun, false, sector, in_bytes, 0, false)?,
        OUT if writable => transfer(lun, true, sector, out_bytes, HEADER_BYTES, !writeback)?,
        FLUSH => Action::Flush,
        DISCARD | WRITE_ZEROES if writable => segments(lun, kind, readable, out_bytes, !writeback)?,
        OUT | DISCARD | WRITE_ZEROES => return Err(Status::IoError),
        GET_ID => return Ok(BlkCommand::Identify),
        _ => return Err(Status::Unsupported),
    };
    Ok(BlkCommand::Run(action))
}

#[inline(always)]
fn byte_range(lun: &Lun, sector: u64, len: u64) -> Result<u64, Status> {
    let offset = sector.checked_mul(512).ok_or(Status::IoError)?;
    let mask = (1u64 << lun.block_shift) - 1;
    match (offset | len) & mask == 0 && lun.store.contains(offset, len) {
        true => Ok(offset),
        false => Err(Status::IoError),
    }
}

#[inline(always)]
fn transfer(
    lun: &Lun,
    write: bool,
    sector: u64,
    len: usize,
    skip: usize,
    fua: bool,
) -> Result<Action, Status> {
    let offset = byte_range(lun, sector, len as u64)?;
    Ok(match len {
        0 => Action::Nothing,
        _ => Action::Transfer { write, offset, len, skip, fua },
    })
}

fn segments(lun: &Lun, kind: u32, readable: &[IoVec], bytes: usize, fua: bool) -> Result<Action, Status> {
    if bytes == 0 || !bytes.is_multiple_of(16) || bytes > 16 * MAX_SEGMENTS {
        return Err(Status::IoError);
    }
    let mut list = vec![0; bytes];
    gather(readable, HEADER_BYTES, &mut list);
    let mut unmap = true;
    let mut ranges = Vec::with_capacity(bytes / 16);
    for entry in list.chunks_exact(16) {
        let sector = u64::from_le_bytes(entry[..8].try_into().expect("8 bytes"));
        let count = u32::from_le_bytes(entry[8..12].try_into().expect("4 bytes"));
        let flags = u32::from_le_bytes(entry[12..].try_into().expect("4 bytes"));
        if flags & !UNMAP != 0 || (kind == DISCARD && flags != 0) {
            return Err(Status::Unsupported);
        }
        unmap &= kind == DISCARD || flags & UNMAP != 0;
        let len = u64::from(count) * 512;
        let offset = byte_range(lun, sector, len)?;
        if len > MAX_SEGMENT_BYTES {
            return Err(Status::IoError);
        }
        if len > 0 {
            ranges.push((offset, len));
        }
    }
    let idle = ranges.is_empty() || (kind == DISCARD && !lun.store.options().discard);
    Ok(if idle { Action::Nothing } else { Action::Zero { ranges, unmap, fua, taken: 0 } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::view::LunState;
    use std::sync::Arc;

    fn lun(block_shift: u32) -> Lun {
        let state = Arc::new(LunState::new(0, 0, 1));
        Lun { state, store: Arc::new(Store::null(1 << 20)), block_shift, file_slot: None, serial: [0; 20] }
    }

    fn header(kind: u32, sector: u64) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }

    fn run(kind: u32, sector: u64, out: usize, into: usize) -> Result<BlkCommand, Status> {
        plan(&header(kind, sector), &lun(12), &[], out, into, true)
    }

    #[test]
    fn sectors_are_512_bytes_and_requests_whole_blocks() {
        let action = Action::Transfer { write: false, offset: 4096, len: 8192, skip: 0, fua: false };
        assert_eq!(run(IN, 8, 0, 8192), Ok(BlkCommand::Run(action)));
        assert_eq!(run(IN, 1, 0, 4096), Err(Status::IoError));
        assert_eq!(run(OUT, 8, 512, 0), Err(Status::IoError));
        assert_eq!(run(OUT, 2048, 4096, 0), Err(Status::IoError));
        assert_eq!(run(IN, u64::MAX, 0, 4096), Err(Status::IoError));
        assert_eq!(run(99, 0, 0, 0), Err(Status::Unsupported));
    }

    #[test]
    fn writethrough_writes_are_stable_when_they_complete() {
        let planned = plan(&header(OUT, 0), &lun(9), &[], 512, 0, false);
        let action = Action::Transfer { write: true, offset: 0, len: 512, skip: 16, fua: true };
        assert_eq!(planned, Ok(BlkCommand::Run(action)));
    }

    #[test]
    fn segments_with_unknown_flags_are_unsupported() {
        let mut request = header(WRITE_ZEROES, 0).to_vec();
        request.extend([8, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0]);
        let span = |request: &mut Vec<u8>| [IoVec { base: request.as_mut_ptr(), len: request.len() }];
        let spans = span(&mut request);
        let action = Action::Zero { ranges: vec![(4096, 8192)], unmap: true, fua: false, taken: 0 };
        assert_eq!(plan(&request[..16], &lun(9), &spans, 16, 0, true), Ok(BlkCommand::Run(action)));
        let discard = plan(&header(DISCARD, 0), &lun(9), &spans, 16, 0, true);
        assert_eq!(discard, Err(Status::Unsupported), "discard has no flags");
        assert_eq!(plan(&header(DISCARD, 0), &lun(9), &spans, 15, 0, true), Err(Status::IoError));
    }
}
