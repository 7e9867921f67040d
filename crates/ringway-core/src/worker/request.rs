//! A request from its header to its answer, for both devices.

use super::pending::{Class, Header};
use super::Completion;
use crate::action::Action;
use crate::blk;
use crate::memory::{gather, scatter, IoVec};
use crate::scsi::RESPONSE_BYTES;
use crate::vring::Chain;

impl Header {
    /// Copy a request's header out of guest memory, once.
    #[inline(always)]
    pub fn read(chain: &Chain, bytes: usize) -> Option<Self> {
        let mut header = [0; 64];
        match chain.readable_bytes >= bytes {
            true => {
                gather(chain.readable(), 0, &mut header[..bytes]);
                Some(Header(header))
            }
            false => None,
        }
    }

    /// scsi: the LUN bytes.
    pub fn lun(&self) -> [u8; 8] {
        self.0[..8].try_into().expect("8 bytes")
    }

    /// scsi: the driver's tag.
    pub fn id(&self) -> u64 {
        u64::from_le_bytes(self.0[8..16].try_into().expect("8 bytes"))
    }

    /// scsi: the task attribute.
    pub fn task_attribute(&self) -> u8 {
        self.0[16]
    }

    /// scsi: the CDB.
    #[inline(always)]
    pub fn cdb(&self, at: usize) -> [u8; 32] {
        self.0[at..at + 32].try_into().expect("32 bytes")
    }
}

impl Class {
    /// How an action is counted, the range that it touches, and the bytes that it moves from or to the guest.
    #[inline(always)]
    pub fn of(action: &Action) -> (Self, (u64, u64), usize) {
        match action {
            Action::Transfer { write, offset, len, .. } => {
                let class = if *write { Class::Write } else { Class::Read };
                (class, (*offset, *offset + *len as u64), *len)
            }
            Action::Flush => (Class::Flush, (0, 0), 0),
            Action::Zero { ranges, taken, .. } => {
                let start = ranges.iter().map(|range| range.0).min().unwrap_or(0);
                let end = ranges.iter().map(|range| range.0 + range.1).max().unwrap_or(0);
                (Class::Unmap, (start, end), *taken)
            }
            Action::Fill { offset, len, pattern } => (Class::Unmap, (*offset, *offset + *len), pattern.len()),
            Action::Nothing => (Class::Other, (0, 0), 0),
        }
    }
}

const S_OK: u8 = 0;
const S_OVERRUN: u8 = 1;

/// The bytes of a virtio-scsi response header. Spec: virtio 1.3, 5.6.6.1.
#[inline(always)]
fn scsi_response(completion: &Completion, response: u8, residual: u32) -> [u8; RESPONSE_BYTES] {
    let mut bytes = [0; RESPONSE_BYTES];
    let sense = &completion.sense[..completion.sense.len().min(96)];
    bytes[..4].copy_from_slice(&(sense.len() as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&residual.to_le_bytes());
    bytes[10] = completion.status;
    bytes[11] = response;
    bytes[12..12 + sense.len()].copy_from_slice(sense);
    bytes
}

/// Answer a SCSI command that went well, with `moved` bytes of data in the direction `write`.
///
/// :returns: bytes written to the guest.
#[inline(always)]
pub fn answer_scsi_good(chain: &Chain, write: bool, moved: usize, out_bytes: usize) -> u32 {
    let in_bytes = chain.writable_bytes - RESPONSE_BYTES;
    let room = if write { out_bytes } else { in_bytes };
    let residual = (room - moved) as u32;
    write_front(chain.writable(), &scsi_response(&GOOD, S_OK, residual));
    (RESPONSE_BYTES + if write { 0 } else { moved }) as u32
}

static GOOD: Completion =
    Completion { response: S_OK, status: 0, sense: Vec::new(), data: Vec::new(), taken: None };

/// Answer a SCSI command as Python decided.
///
/// Data-in that does not fit is an overrun; what is left of the guest's buffer is the residual.
pub fn answer_scsi(chain: &Chain, completion: &Completion, out_bytes: usize) -> u32 {
    let in_bytes = chain.writable_bytes - RESPONSE_BYTES;
    let data = &completion.data[..completion.data.len().min(in_bytes)];
    let overrun = completion.response == S_OK && completion.data.len() > in_bytes;
    let response = if overrun { S_OVERRUN } else { completion.response };
    let all = if completion.status == 0 && completion.response == S_OK { out_bytes } else { 0 };
    let moved_out = completion.taken.unwrap_or(all).min(out_bytes);
    let residual = if in_bytes > 0 { in_bytes - data.len() } else { out_bytes - moved_out };
    scatter(chain.writable(), RESPONSE_BYTES, data);
    write_front(chain.writable(), &scsi_response(completion, response, residual as u32));
    (RESPONSE_BYTES + data.len()) as u32
}

#[inline(always)]
fn write_front(spans: &[IoVec], bytes: &[u8]) {
    match spans.first() {
        Some(first) if first.len >= bytes.len() => {
            // SAFETY: the span is mapped guest memory and long enough.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), first.base, bytes.len()) };
        }
        _ => {
            scatter(spans, 0, bytes);
        }
    }
}

/// Write a blk status byte, the last writable one.
///
/// :returns: bytes written to the guest: all of them, or on failure none that are known to be contiguous.
#[inline(always)]
pub fn answer_blk(chain: &Chain, status: blk::Status, in_bytes: usize) -> u32 {
    scatter(chain.writable(), chain.writable_bytes - 1, &[status as u8]);
    match status {
        blk::Status::Ok => in_bytes as u32 + 1,
        _ if in_bytes == 0 => 1,
        _ => 0,
    }
}
