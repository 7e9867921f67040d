//! What a hostile driver does, in words that reach deep: requests that are well formed up to one thing.

use arbitrary::{Arbitrary, Result, Unstructured};

use crate::worker::QUIET_PIECE;

/// Bytes of each piece of the hostile guest's memory.
pub const PIECE: u64 = 0x10000;
/// Its pieces: two that touch, a gap, and one more.
pub const PIECES: [u64; 3] = [0, PIECE, 0x40000];
/// Where its indirect tables lie, one a page, behind the pages of its rings.
pub const TABLES: u64 = 0x4000;

/// A guest address: inside, at an edge, or anywhere.
#[derive(Clone, Copy, Debug)]
pub struct Address(pub u64);

impl<'a> Arbitrary<'a> for Address {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let choice = u8::arbitrary(u)?;
        let piece = PIECES[usize::from(choice) % PIECES.len()];
        Ok(Address(match choice >> 5 {
            0..=3 => piece + u64::from(u16::arbitrary(u)?),
            4 => (piece + PIECE).wrapping_add_signed(i8::arbitrary(u)?.into()),
            5 => piece.wrapping_add_signed(i8::arbitrary(u)?.into()),
            6 => TABLES + 0x1000 * u64::from(choice & 3),
            _ => far_from_quiet(u64::arbitrary(u)?),
        }))
    }
}

/// Any address but those from which the quiet queue's memory could be reached.
fn far_from_quiet(address: u64) -> u64 {
    match address.abs_diff(QUIET_PIECE) >> 33 {
        0 => 0,
        _ => address,
    }
}

/// A descriptor's length: short, sectors, entries of a table, or anything.
#[derive(Clone, Copy, Debug)]
pub struct Length(pub u32);

impl<'a> Arbitrary<'a> for Length {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let choice = u8::arbitrary(u)?;
        Ok(Length(match choice >> 6 {
            0 => u32::from(choice & 0x3f) * 16,
            1 => u32::from(choice & 0x3f) * 512,
            2 => u8::arbitrary(u)?.into(),
            _ => u32::arbitrary(u)?,
        }))
    }
}

/// One descriptor. The low bits of flags are likely, others happen.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Descriptor {
    /// Where.
    pub address: Address,
    /// How long.
    pub len: Length,
    /// NEXT, WRITE, INDIRECT, and what nobody defined.
    pub flags: u8,
    /// The next one.
    pub next: u8,
}

impl Descriptor {
    /// As it lies in memory.
    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.0.to_le_bytes());
        bytes[12] = self.flags;
        // one in sixteen lies outside of any table
        bytes[14..].copy_from_slice(
            &(u16::from(self.next & 0xf) | u16::from(self.next >> 4 == 15) << 9).to_le_bytes(),
        );
        bytes
    }
}

/// The data of a request: how it is cut into descriptors, and where it lies.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Data {
    /// Where its first byte lies.
    pub address: Address,
    /// Blocks or bytes of it.
    pub len: Length,
    /// Descriptors that it is spread over, less one.
    pub parts: u8,
}

/// A request that a driver could have sent, cut and placed in any way.
#[derive(Arbitrary, Clone, Debug)]
pub struct Request {
    /// Which queue; the quiet one is left alone.
    pub queue: u8,
    /// First ring entry.
    pub head: u8,
    /// Its descriptors lie in this indirect table.
    pub table: Option<u8>,
    /// Bytes cut from the header's end.
    pub short: u8,
    /// The command.
    pub command: Command,
    /// Readable data.
    pub out: Option<Data>,
    /// Writable data.
    pub room: Option<Data>,
    /// Bytes at the front of the readable data.
    pub content: [u8; 40],
}

/// A command of either device, in fields or in bytes.
#[derive(Arbitrary, Clone, Debug)]
pub enum Command {
    /// READ or WRITE, of any length of CDB.
    Transfer {
        /// WRITE.
        write: bool,
        /// Which CDB.
        form: u8,
        /// First block.
        lba: Block,
        /// Blocks.
        blocks: u8,
        /// Force unit access.
        fua: bool,
    },
    /// UNMAP or WRITE SAME, discard or write zeroes.
    Zero {
        /// Which of them.
        form: u8,
        /// First block.
        lba: Block,
        /// Blocks.
        blocks: u16,
    },
    /// A flush, or anything short.
    Plain(u8),
    /// A CDB, or the front of a blk header.
    Raw([u8; 32]),
}

/// A block number: small ones are likely.
#[derive(Clone, Copy, Debug)]
pub struct Block(pub u64);

impl<'a> Arbitrary<'a> for Block {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let choice = u8::arbitrary(u)?;
        Ok(Block(if choice < 240 { choice.into() } else { u64::arbitrary(u)? }))
    }
}

impl Command {
    /// A CDB.
    pub fn cdb(&self) -> [u8; 32] {
        let mut cdb = [0; 32];
        match *self {
            Command::Transfer { write, form, lba, blocks, fua } => {
                transfer(&mut cdb, write, form, lba, blocks, fua)
            }
            Command::Zero { form, lba, blocks } => zero(&mut cdb, form, lba, blocks),
            Command::Plain(opcode) => {
                cdb[0] = [0x35, 0x91, 0x00, 0x12, 0x9e, 0xa0, 0x5f, 0x1a][usize::from(opcode & 7)]
            }
            Command::Raw(bytes) => cdb = bytes,
        }
        cdb
    }

    /// Type, priority and sector of a blk request.
    pub fn blk_header(&self) -> [u8; 16] {
        let (kind, sector) = match *self {
            Command::Transfer { write, lba, .. } => (u32::from(write), lba.0),
            Command::Zero { form, lba, .. } => (if form & 1 == 0 { 11 } else { 13 }, lba.0),
            Command::Plain(kind) => ([4, 8, 0, 14][usize::from(kind & 3)], 0),
            Command::Raw(bytes) => return bytes[..16].try_into().expect("16 bytes"),
        };
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        header
    }
}

fn transfer(cdb: &mut [u8; 32], write: bool, form: u8, lba: Block, blocks: u8, fua: bool) {
    let low = (lba.0 as u32).to_be_bytes();
    cdb[0] = [0x08, 0x28, 0xa8, 0x88][usize::from(form & 3)] + if write { 2 } else { 0 };
    cdb[1] = if fua { 8 } else { 0 };
    match form & 3 {
        0 => {
            cdb[1..4].copy_from_slice(&low[1..]);
            cdb[4] = blocks;
        }
        1 => {
            cdb[2..6].copy_from_slice(&low);
            cdb[8] = blocks;
        }
        2 => {
            cdb[2..6].copy_from_slice(&low);
            cdb[9] = blocks;
        }
        _ => {
            cdb[2..10].copy_from_slice(&lba.0.to_be_bytes());
            cdb[13] = blocks;
        }
    }
}

fn zero(cdb: &mut [u8; 32], form: u8, lba: Block, blocks: u16) {
    cdb[0] = [0x42, 0x41, 0x93, 0x93][usize::from(form & 3)];
    match form & 3 {
        0 => cdb[7..9].copy_from_slice(&blocks.to_be_bytes()), // bytes of the list
        1 => {
            cdb[2..6].copy_from_slice(&(lba.0 as u32).to_be_bytes());
            cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
        }
        same => {
            cdb[1] = (same - 2) | (form & 8); // NDOB, UNMAP
            cdb[2..10].copy_from_slice(&lba.0.to_be_bytes());
            cdb[12..14].copy_from_slice(&blocks.to_be_bytes());
        }
    }
}

/// What happens next.
#[derive(Arbitrary, Clone, Debug)]
pub enum Step {
    /// The worker takes a turn.
    Turn,
    /// A request is offered.
    Request(Request),
    /// A descriptor is written, to a ring's table or to an indirect one.
    Descriptor {
        /// Which queue.
        queue: u8,
        /// Which indirect table, if any.
        table: Option<u8>,
        /// Its place.
        slot: u8,
        /// What it says.
        value: Descriptor,
    },
    /// Bytes change in memory.
    Poke(Address, [u8; 8]),
    /// A head is offered.
    Offer {
        /// Which queue.
        queue: u8,
        /// Any number.
        head: u16,
    },
    /// The available index changes.
    Jump {
        /// Which queue.
        queue: u8,
        /// By how much.
        by: i16,
    },
    /// Python answers a command.
    Answer(Answer),
    /// The gate of LUN 0 changes.
    Gate(u8),
    /// A range of it is locked.
    Lock {
        /// First block.
        start: u8,
        /// Blocks.
        blocks: u8,
        /// Reads wait as well.
        reads: bool,
    },
    /// The oldest lock is given back.
    Unlock,
    /// Memory changes: one bit for each piece.
    Memory(u8),
    /// The front end acknowledges other features.
    Features(u8),
    /// An event for the guest.
    Event([u8; 16]),
    /// A task is aborted, by the driver's tag or wholesale.
    Abort(Option<u64>),
    /// A ring is drained, stopped and started again.
    Restart(u8),
    /// The worker dies; another one goes on with the same memory and in-flight region.
    Crash,
    /// The worker goes to sleep and wakes up.
    Doze,
}

/// Python's answer.
#[derive(Arbitrary, Clone, Debug)]
pub struct Answer {
    /// Run it on the hot path after all.
    pub resume: bool,
    /// VIRTIO_SCSI_S_*.
    pub response: u8,
    /// SAM status.
    pub status: u8,
    /// Bytes of sense data.
    pub sense: u8,
    /// Bytes of data-in.
    pub data: u16,
    /// Bytes of data-out that were used.
    pub taken: Option<u32>,
    /// A tag that somebody made up.
    pub forged: Option<u64>,
}

/// A disk.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Forgets.
    Null,
    /// Memory.
    Ram,
    /// A mapped file.
    Mapped,
    /// A file by system calls.
    File,
    /// A file whose buffers have to be aligned.
    Aligned,
    /// Nobody may write.
    ReadOnly,
}

/// A device, and what happens to it.
#[derive(Arbitrary, Clone, Debug)]
pub struct Script {
    /// scsi, else blk.
    pub scsi: bool,
    /// LUN 0.
    pub disk: Disk,
    /// Blocks of 4096 bytes, else 512.
    pub large_blocks: bool,
    /// log2 of the entries of a ring, at most 4.
    pub ring: u8,
    /// Where ring indices begin.
    pub base: u16,
    /// A front end that has an in-flight region.
    pub inflight: bool,
    /// Acknowledged features, see [`Step::Features`].
    pub features: u8,
    /// blk: the write cache is on.
    pub writeback: bool,
    /// The story.
    pub steps: Vec<Step>,
}
