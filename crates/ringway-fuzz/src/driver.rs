//! The driver's side of the rings: it writes what a script says, and remembers nothing but where it is.

use ringway_core::scsi::RESPONSE_BYTES;
use ringway_core::worker::RingLayout;

use crate::guest::Piece;
use crate::script::{Data, Request, Script, Step, TABLES};
use crate::worker::{layout, QUEUES, QUIET, QUIET_PIECE};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const HEADER: u64 = 0x8000;

/// A descriptor of a request that makes sense.
type Part = (u64, u32, u16);

/// The driver of all queues.
pub struct Driver<'a> {
    pieces: &'a [Piece],
    scsi: bool,
    size: u16,
    base: u16,
    headers: u64,
    /// Queues that the device stopped.
    pub broken: Vec<bool>,
}

impl<'a> Driver<'a> {
    /// Rings that rest at the script's base.
    pub fn new(pieces: &'a [Piece], script: &Script) -> Self {
        let size = 1 << (script.ring % 5);
        let broken = vec![false; QUEUES.into()];
        let driver = Driver { pieces, scsi: script.scsi, size, base: script.base, headers: 0, broken };
        for queue in 0..QUEUES {
            let at = driver.layout(queue);
            driver.write(at.available + 2, &script.base.to_le_bytes());
            driver.write(at.used + 2, &script.base.to_le_bytes());
        }
        driver
    }

    /// Where a ring lies. The quiet one has room for its chains.
    pub fn layout(&self, queue: u16) -> RingLayout {
        layout(queue, if queue == QUIET { 16 } else { self.size })
    }

    /// What the used ring says.
    pub fn used_index(&self, queue: u16) -> u16 {
        self.read_u16(self.layout(queue).used + 2)
    }

    /// Do what a step says.
    pub fn step(&mut self, step: &Step) {
        match step {
            Step::Request(request) => self.request(request),
            Step::Descriptor { queue, table, slot, value } => {
                let at = match table {
                    Some(table) => TABLES + 0x1000 * u64::from(table & 3) + 16 * u64::from(*slot),
                    None => self.layout(u16::from(*queue) % QUIET).descriptors + 16 * u64::from(slot & 0xf),
                };
                self.write(at, &value.bytes());
            }
            Step::Poke(address, bytes) if address.0 < QUIET_PIECE => self.write(address.0, bytes),
            Step::Offer { queue, head } => self.offer(u16::from(*queue) % QUIET, *head),
            Step::Jump { queue, by } => {
                let at = self.layout(u16::from(*queue) % QUIET).available + 2;
                let index = self.read_u16(at).wrapping_add_signed(*by);
                self.write(at, &index.to_le_bytes());
            }
            _ => {}
        }
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        for piece in self.pieces {
            if let Some(offset) = piece.offset(address, bytes.len()) {
                piece.bytes()[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
        }
    }

    fn read_u16(&self, address: u64) -> u16 {
        let place = self.pieces.iter().find_map(|piece| Some((piece, piece.offset(address, 2)?)));
        let (piece, offset) = place.expect("an address of a ring");
        u16::from_le_bytes(piece.bytes()[offset..offset + 2].try_into().expect("2 bytes"))
    }

    fn offer(&self, queue: u16, head: u16) {
        let at = self.layout(queue);
        let index = self.read_u16(at.available + 2);
        self.write(at.available + 4 + 2 * u64::from(index % at.size), &head.to_le_bytes());
        self.write(at.available + 2, &index.wrapping_add(1).to_le_bytes());
    }

    // ---- requests that make sense

    fn request(&mut self, request: &Request) {
        let queue = u16::from(request.queue) % QUIET;
        let mut parts = vec![self.header(request, queue)];
        if let Some(data) = &request.out {
            self.write(data.address.0, &request.content);
            parts.extend(cut(data, 0));
        }
        let answer = HEADER + 0x1000 + 128 * (self.headers % 16);
        let answer = (answer, if self.scsi { RESPONSE_BYTES as u32 } else { 1 }, WRITE);
        let room: Vec<Part> = request.room.iter().flat_map(|data| cut(data, WRITE)).collect();
        // scsi: the response comes first; blk: the status last
        parts.extend(if self.scsi { [vec![answer], room].concat() } else { [room, vec![answer]].concat() });
        self.chain(queue, request.head, request.table, &parts);
    }

    /// Write a header; a control queue's is of another kind.
    fn header(&mut self, request: &Request, queue: u16) -> Part {
        let address = HEADER + 64 * (self.headers % 64);
        self.headers += 1;
        let bytes = match (self.scsi, queue) {
            (true, 0) => request.content[..24].to_vec(),
            (true, _) => {
                let lun = [1, 0, 0x40, request.content[39] & 0x11, 0, 0, 0, 0];
                [&lun[..], &request.content[..8], &[0; 3], &request.command.cdb()].concat()
            }
            _ => request.command.blk_header().to_vec(),
        };
        self.write(address, &bytes);
        let short = if request.short < 224 { 0 } else { usize::from(request.short & 31) };
        (address, bytes.len().saturating_sub(short) as u32, 0)
    }

    /// Lay a chain into the ring's table or an indirect one, and offer it.
    fn chain(&self, queue: u16, head: u8, table: Option<u8>, parts: &[Part]) {
        let at = self.layout(queue);
        let head = u16::from(head) % at.size;
        let (base, places): (u64, Vec<u16>) = match table {
            Some(table) => (TABLES + 0x1000 * u64::from(table & 3), (0..parts.len() as u16).collect()),
            None => (at.descriptors, (0..parts.len() as u16).map(|n| (head + n) % at.size).collect()),
        };
        for (number, part) in parts.iter().enumerate() {
            self.descriptor(base, places[number], *part, places.get(number + 1));
        }
        if table.is_some() {
            self.descriptor(at.descriptors, head, (base, 16 * parts.len() as u32, INDIRECT), None);
        }
        self.offer(queue, head);
    }

    fn descriptor(&self, base: u64, place: u16, (address, len, flags): Part, next: Option<&u16>) {
        let flags = flags | if next.is_some() { NEXT } else { 0 };
        let at = base + 16 * u64::from(place);
        self.write(at, &address.to_le_bytes());
        self.write(at + 8, &len.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.copied().unwrap_or(0).to_le_bytes());
    }

    // ---- the quiet queue

    /// Offer a read or a write of the first 4096 bytes of the disk.
    ///
    /// :returns: the used index before it; none when the hostile driver wrote to the quiet one's ring through some
    /// request of its own, or killed the disk's ring memory: that is its right.
    pub fn offer_quiet(&self, write: bool, t10_pi: bool) -> Option<u16> {
        let at = self.layout(QUIET);
        let (offered, used) = (self.read_u16(at.available + 2), self.used_index(QUIET));
        if offered != used || offered.wrapping_sub(self.base) > 1 || self.quiet_was_written() {
            return None;
        }
        let (header, answer, data) = (QUIET_PIECE + 0x1000, QUIET_PIECE + 0x1100, QUIET_PIECE + 0x2000);
        let bytes = quiet_header(self.scsi, write, t10_pi);
        self.write(header, &bytes);
        self.write(answer, &[0xee; RESPONSE_BYTES]);
        let header = (header, bytes.len() as u32, 0);
        let answer = (answer, if self.scsi { RESPONSE_BYTES as u32 } else { 1 }, WRITE);
        let data = (data, 4096, if write { 0 } else { WRITE });
        let parts = if self.scsi && !write { [header, answer, data] } else { [header, data, answer] };
        self.chain(QUIET, 0, None, &parts);
        Some(used)
    }

    fn quiet_was_written(&self) -> bool {
        self.pieces[3].bytes()[0x3000..].iter().any(|byte| *byte != 0)
    }

    /// It was completed, and went well unless it had to fail.
    pub fn check_quiet(&self, before: u16, fails: bool) {
        assert_eq!(self.used_index(QUIET), before.wrapping_add(1), "the quiet queue was not served");
        let answer = &self.pieces[3].bytes()[0x1100..0x1100 + RESPONSE_BYTES];
        if !fails {
            let good = if self.scsi { answer[10] == 0 && answer[11] == 0 } else { answer[0] == 0 };
            assert!(good, "the quiet queue's request failed: {answer:x?}");
        }
    }
}

/// READ or WRITE of 4096 bytes; blocks are 512 or 4096 bytes, and a READ of one block of either is allowed less.
fn quiet_header(scsi: bool, write: bool, t10_pi: bool) -> Vec<u8> {
    if !scsi {
        let mut header = vec![0; 16];
        header[0] = write.into();
        return header;
    }
    let mut header = vec![0; if t10_pi { 59 } else { 51 }];
    header[..4].copy_from_slice(&[1, 0, 0x40, 0]);
    let cdb = header.len() - 32;
    header[cdb] = if write { 0x2a } else { 0x28 };
    header[cdb + 8] = 1;
    header
}

fn cut(data: &Data, flags: u16) -> impl Iterator<Item = Part> {
    let (address, len, parts) = (data.address.0, data.len.0, u32::from(data.parts & 3) + 1);
    (0..parts).map(move |part| {
        let size = len / parts;
        let size_here = if part + 1 == parts { len - size * part } else { size };
        (address.wrapping_add(u64::from(size * part)), size_here, flags)
    })
}
