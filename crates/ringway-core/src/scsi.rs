//! Hot SCSI commands: from a CDB to an [`Action`]. What is not decoded here is Python's.
//!
//! Spec: SBC-4 r22, clause 5; SPC-6 r05.

use crate::action::{Action, Range};
use crate::memory::{gather, IoVec};
use crate::view::{Lun, GATE_ATTENTION, GATE_NO_READ, GATE_NO_WRITE};

/// Bytes that one WRITE SAME may cover (VPD B0 says so).
pub const MAX_WRITE_SAME: u64 = 32 << 20;
/// Descriptors of one UNMAP (VPD B0 says so).
pub const MAX_UNMAP_DESCRIPTORS: usize = 256;
/// Bytes of a virtio-scsi response header.
pub const RESPONSE_BYTES: usize = 108;

/// Why a hot command cannot run. Python builds the sense data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// None: the worker merely asks.
    None,
    /// Beyond the end of the medium.
    Range,
    /// The store is not writable.
    ReadOnly,
    /// No such LUN.
    NoLun,
    /// A field of the CDB.
    Field,
    /// The parameter list.
    Parameter,
    /// The guest's buffer is smaller than the transfer.
    Overrun,
    /// The store's errno.
    Errno(i32),
}

/// A hot command, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotCommand {
    /// TEST UNIT READY.
    TestUnitReady,
    /// READ and WRITE 6/10/12/16.
    Transfer {
        /// WRITE.
        write: bool,
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Force unit access.
        fua: bool,
    },
    /// SYNCHRONIZE CACHE 10/16.
    Flush {
        /// First block.
        lba: u64,
        /// Blocks, 0: to the end.
        blocks: u32,
    },
    /// UNMAP with so many bytes of parameter list.
    Unmap(u16),
    /// WRITE SAME 10/16.
    WriteSame {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// The unmap bit.
        unmap: bool,
        /// No data-out: zeroes.
        no_data: bool,
    },
    /// A hot opcode with a field that is refused.
    Refused,
}

#[inline(always)]
fn be16(cdb: &[u8; 32], at: usize) -> u16 {
    u16::from_be_bytes([cdb[at], cdb[at + 1]])
}

#[inline(always)]
fn be32(cdb: &[u8; 32], at: usize) -> u32 {
    u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]])
}

#[inline(always)]
fn be64(cdb: &[u8; 32], at: usize) -> u64 {
    u64::from(be32(cdb, at)) << 32 | u64::from(be32(cdb, at + 4))
}

/// Decode a hot command; `None` for all others, and for hot ones whose CONTROL byte asks for ACA.
#[inline(always)]
pub fn decode(cdb: &[u8; 32]) -> Option<HotCommand> {
    let transfer = |write, lba, blocks| {
        let (protect, fua) = (cdb[1] & 0xe0, cdb[1] & 8 != 0);
        match protect {
            0 => HotCommand::Transfer { write, lba, blocks, fua },
            _ => HotCommand::Refused,
        }
    };
    let (opcode, naca) = (cdb[0], cdb[control_byte(cdb[0])] & 4 != 0);
    if naca {
        return None;
    }
    Some(match opcode {
        0x28 | 0x2a => transfer(opcode == 0x2a, be32(cdb, 2).into(), be16(cdb, 7).into()),
        0x88 | 0x8a => transfer(opcode == 0x8a, be64(cdb, 2), be32(cdb, 10)),
        0xa8 | 0xaa => transfer(opcode == 0xaa, be32(cdb, 2).into(), be32(cdb, 6)),
        0x08 | 0x0a => short_transfer(cdb),
        0x00 => HotCommand::TestUnitReady,
        0x35 => HotCommand::Flush { lba: be32(cdb, 2).into(), blocks: be16(cdb, 7).into() },
        0x91 => HotCommand::Flush { lba: be64(cdb, 2), blocks: be32(cdb, 10) },
        0x42 if cdb[1] & 1 != 0 => HotCommand::Refused,
        0x42 => HotCommand::Unmap(be16(cdb, 7)),
        0x41 => write_same(cdb, be32(cdb, 2).into(), be16(cdb, 7).into(), false),
        0x93 => write_same(cdb, be64(cdb, 2), be32(cdb, 10), cdb[1] & 1 != 0),
        _ => return None,
    })
}

#[inline(always)]
fn control_byte(opcode: u8) -> usize {
    match opcode >> 5 {
        0 => 5,
        1 | 2 => 9,
        4 => 15,
        5 => 11,
        _ => 31,
    }
}

/// READ(6) and WRITE(6): 21 bits of LBA, and 0 blocks are 256.
fn short_transfer(cdb: &[u8; 32]) -> HotCommand {
    let lba = u64::from(be32(cdb, 0) & 0x1f_ffff);
    let blocks = match cdb[4] {
        0 => 256,
        n => n.into(),
    };
    HotCommand::Transfer { write: cdb[0] == 0x0a, lba, blocks, fua: false }
}

/// WRPROTECT, ANCHOR and the obsolete PBDATA and LBDATA are refused.
fn write_same(cdb: &[u8; 32], lba: u64, blocks: u32, no_data: bool) -> HotCommand {
    match cdb[1] & 0xf6 {
        0 => HotCommand::WriteSame { lba, blocks, unmap: cdb[1] & 8 != 0, no_data },
        _ => HotCommand::Refused,
    }
}

impl HotCommand {
    /// The gate bits that send it to the slow path.
    #[inline(always)]
    pub fn gate_mask(&self) -> u64 {
        GATE_ATTENTION
            | match self {
                HotCommand::Transfer { write: false, .. } => GATE_NO_READ,
                HotCommand::Transfer { .. } | HotCommand::Unmap(_) | HotCommand::WriteSame { .. } => {
                    GATE_NO_WRITE
                }
                _ => 0,
            }
    }

    /// Check it against the LUN and the guest's buffers.
    ///
    /// :param header: bytes of the request header, before data-out.
    #[inline(always)]
    pub fn plan(
        &self,
        lun: &Lun,
        header: usize,
        readable: &[IoVec],
        out_bytes: usize,
        in_bytes: usize,
    ) -> Result<Action, Failure> {
        match *self {
            HotCommand::Transfer { write, lba, blocks, fua } => {
                let (offset, len) = byte_range(lun, lba, blocks.into())?;
                let (room, skip) = if write { (out_bytes, header) } else { (in_bytes, RESPONSE_BYTES) };
                if write && !lun.store.options().writable {
                    return Err(Failure::ReadOnly);
                }
                if len > room as u64 {
                    return Err(Failure::Overrun);
                }
                Ok(match len {
                    0 => Action::Nothing,
                    _ => Action::Transfer { write, offset, len: len as usize, skip, fua },
                })
            }
            other => other.plan_rare(lun, header, readable, out_bytes),
        }
    }

    #[inline(never)]
    fn plan_rare(&self, lun: &Lun, header: usize, readable: &[IoVec], out: usize) -> Result<Action, Failure> {
        match *self {
            HotCommand::TestUnitReady | HotCommand::Transfer { .. } => Ok(Action::Nothing),
            HotCommand::Refused => Err(Failure::Field),
            HotCommand::Flush { lba, blocks } => byte_range(lun, lba, blocks.into()).map(|_| Action::Flush),
            _ if !lun.store.options().writable => Err(Failure::ReadOnly),
            HotCommand::Unmap(len) => plan_unmap(lun, header, readable, out, len as usize),
            HotCommand::WriteSame { lba, blocks, unmap, no_data } => {
                let (offset, len) = byte_range(lun, lba, blocks.into())?;
                if len == 0 || len > MAX_WRITE_SAME {
                    return Err(Failure::Field);
                }
                plan_write_same(lun, header, readable, out, (offset, len), unmap, no_data)
            }
        }
    }
}

#[inline(always)]
fn byte_range(lun: &Lun, lba: u64, blocks: u64) -> Result<Range, Failure> {
    let capacity = lun.store.size() >> lun.block_shift;
    if lba > capacity || blocks > capacity - lba {
        return Err(Failure::Range);
    }
    Ok((lba << lun.block_shift, blocks << lun.block_shift))
}

/// Spec: SBC-4 r22, 5.31 UNMAP.
fn plan_unmap(
    lun: &Lun,
    header: usize,
    readable: &[IoVec],
    out: usize,
    len: usize,
) -> Result<Action, Failure> {
    if len == 0 {
        return Ok(Action::Zero { ranges: vec![], unmap: true, fua: false, taken: 0 });
    }
    if !(8..=8 + 16 * MAX_UNMAP_DESCRIPTORS).contains(&len) {
        return Err(Failure::Parameter);
    }
    if len > out {
        return Err(Failure::Overrun);
    }
    let mut list = vec![0; len];
    gather(readable, header, &mut list);
    let described = u16::from_be_bytes([list[2], list[3]]) as usize;
    let count = described.min(len - 8) / 16;
    let mut ranges = Vec::with_capacity(count);
    for entry in list[8..8 + 16 * count].chunks_exact(16) {
        let lba = u64::from_be_bytes(entry[..8].try_into().expect("8 bytes"));
        let blocks = u32::from_be_bytes(entry[8..12].try_into().expect("4 bytes"));
        let range = byte_range(lun, lba, blocks.into())?;
        if range.1 > 0 {
            ranges.push(range);
        }
    }
    if !lun.store.options().discard {
        ranges.clear();
    }
    Ok(Action::Zero { ranges, unmap: true, fua: false, taken: len })
}

/// Spec: SBC-4 r22, 5.50 WRITE SAME (16).
fn plan_write_same(
    lun: &Lun,
    header: usize,
    readable: &[IoVec],
    out: usize,
    (offset, len): Range,
    unmap: bool,
    no_data: bool,
) -> Result<Action, Failure> {
    let mut pattern = vec![0; 1 << lun.block_shift];
    if !no_data {
        if out < pattern.len() {
            return Err(Failure::Overrun);
        }
        gather(readable, header, &mut pattern);
    }
    Ok(match pattern.iter().all(|byte| *byte == 0) {
        true => Action::Zero {
            ranges: vec![(offset, len)],
            unmap,
            fua: false,
            taken: if no_data { 0 } else { pattern.len() },
        },
        false => Action::Fill { offset, len, pattern },
    })
}

/// Decode the eight LUN bytes: single level, flat or peripheral addressing.
///
/// Spec: virtio 1.3, 5.6.6.1. SPDK's initiator writes `01 T 00 nn`, Linux and QEMU `01 T 40 nn`.
#[inline(always)]
pub fn lun_address(bytes: &[u8]) -> Option<(u8, u16)> {
    let method = bytes[2] & 0xc0;
    if bytes[0] != 1 || (method != 0x40 && bytes[2] != 0) {
        return None;
    }
    Some((bytes[1], u16::from(bytes[2] & 0x3f) << 8 | u16::from(bytes[3])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::view::LunState;
    use std::sync::Arc;

    fn lun(size: u64, block_shift: u32) -> Lun {
        let state = Arc::new(LunState::new(0, 0, 1));
        Lun { state, store: Arc::new(Store::null(size)), block_shift, file_slot: None, serial: [0; 20] }
    }

    fn cdb(bytes: &[u8]) -> [u8; 32] {
        let mut cdb = [0; 32];
        cdb[..bytes.len()].copy_from_slice(bytes);
        cdb
    }

    #[test]
    fn reads_and_writes_of_all_lengths_decode_alike() {
        let same = HotCommand::Transfer { write: true, lba: 0x1234, blocks: 7, fua: false };
        for bytes in [
            &[0x0a, 0, 0x12, 0x34, 7, 0][..],
            &[0x2a, 0, 0, 0, 0x12, 0x34, 0, 0, 7, 0],
            &[0xaa, 0, 0, 0, 0x12, 0x34, 0, 0, 0, 7, 0, 0],
            &[0x8a, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0, 0, 0, 7, 0, 0],
        ] {
            assert_eq!(decode(&cdb(bytes)), Some(same));
        }
        let short = HotCommand::Transfer { write: false, lba: 0x1f_ffff, blocks: 256, fua: false };
        assert_eq!(decode(&cdb(&[0x08, 0xff, 0xff, 0xff, 0, 0])), Some(short));
    }

    #[test]
    fn protection_anchors_and_aca_do_not_run_hot() {
        assert_eq!(decode(&cdb(&[0x28, 0x20])), Some(HotCommand::Refused));
        assert_eq!(decode(&cdb(&[0x42, 0x01])), Some(HotCommand::Refused));
        assert_eq!(decode(&cdb(&[0x93, 0x10])), Some(HotCommand::Refused));
        assert_eq!(decode(&cdb(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 4])), None);
        assert_eq!(decode(&cdb(&[0x12])), None);
    }

    #[test]
    fn ranges_end_at_the_last_block() {
        let lun = lun(10 * 4096, 12);
        assert_eq!(byte_range(&lun, 9, 1), Ok((9 * 4096, 4096)));
        assert_eq!(byte_range(&lun, 10, 0), Ok((40960, 0)));
        assert_eq!(byte_range(&lun, 10, 1), Err(Failure::Range));
        assert_eq!(byte_range(&lun, u64::MAX, u32::MAX.into()), Err(Failure::Range));
        assert_eq!(byte_range(&lun, 11, 0), Err(Failure::Range));
    }

    #[test]
    fn unmap_lists_are_taken_at_their_word_and_no_further() {
        let lun = lun(1 << 20, 9);
        let mut list = vec![0u8; 8 + 32];
        list[3] = 32;
        list[8 + 7] = 4;
        list[8 + 11] = 8;
        list[24 + 7] = 100;
        let span = [IoVec { base: list.as_mut_ptr(), len: list.len() }];
        let planned = plan_unmap(&lun, 0, &span, 40, 40);
        assert_eq!(
            planned,
            Ok(Action::Zero { ranges: vec![(2048, 4096)], unmap: true, fua: false, taken: 40 })
        );
        assert_eq!(plan_unmap(&lun, 0, &span, 40, 41), Err(Failure::Overrun));
        assert_eq!(plan_unmap(&lun, 0, &span, 40, 7), Err(Failure::Parameter));
        let nothing = Action::Zero { ranges: vec![], unmap: true, fua: false, taken: 0 };
        assert_eq!(plan_unmap(&lun, 0, &span, 40, 0), Ok(nothing));
        list[8] = 0xff;
        assert_eq!(plan_unmap(&lun, 0, &span, 40, 40), Err(Failure::Range));
    }

    #[test]
    fn lun_bytes_of_linux_and_of_spdk_mean_the_same() {
        assert_eq!(lun_address(&[1, 2, 0x40, 3, 0, 0, 0, 0]), Some((2, 3)));
        assert_eq!(lun_address(&[1, 2, 0x00, 3, 0, 0, 0, 0]), Some((2, 3)));
        assert_eq!(lun_address(&[1, 2, 0x7f, 0xff, 0, 0, 0, 0]), Some((2, 0x3fff)));
        assert_eq!(lun_address(&[1, 2, 0x01, 0, 0, 0, 0, 0]), None);
        assert_eq!(lun_address(&[0xc1, 1, 0, 0, 0, 0, 0, 0]), None);
    }
}
