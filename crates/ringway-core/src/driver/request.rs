//! What a request looks like in memory: virtio-scsi commands and virtio-blk requests.

use super::memory::Memory;

/// Offset of the response in a slot's record, behind the header.
const RESPONSE: usize = 64;
/// Offset of the indirect table in a slot's record.
const TABLE: usize = 192;
/// Bytes of a slot's record: header, response, indirect table.
pub(crate) const RECORD_BYTES: usize = 256;

/// Spec: virtio 1.3, 5.6.6.1: LUN, id, three bytes, CDB.
const SCSI_HEADER_BYTES: u32 = 51;
const SCSI_CDB: usize = 19;
/// Spec: virtio 1.3, 5.6.6.1: 12 bytes and 96 of sense.
const SCSI_RESPONSE_BYTES: u32 = 108;
/// Spec: virtio 1.3, 5.2.6.
const BLK_HEADER_BYTES: u32 = 16;
const BLK_STATUS_BYTES: u32 = 1;

/// Flat space addressing. Spec: virtio 1.3, 5.6.6.1.
const FLAT_LUN: u16 = 0x4000;
/// LUN numbers that flat space addressing can say.
pub(crate) const MAX_LUNS: u16 = 0x4000;

/// Which device the queues belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// virtio-scsi request queues; the disks are target 0.
    Scsi,
    /// virtio-blk.
    Blk,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Flush,
}

/// One request of a workload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub operation: Operation,
    pub lun: u16,
    /// In the format's LBA units.
    pub lba: u64,
    /// When it should have been submitted, in ticks; `None`: it is due when it is submitted.
    pub due: Option<u64>,
}

/// One buffer of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// Offset in the memory.
    pub offset: usize,
    pub length: u32,
    /// By the device.
    pub writable: bool,
}

/// Where the parts of one slot lie in the memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Of the record.
    pub record: usize,
    /// Of the data buffer.
    pub data: usize,
}

impl Place {
    /// Offset of the slot's indirect table.
    pub(crate) fn table(self) -> usize {
        self.record + TABLE
    }
}

/// How requests of one run are laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub kind: Kind,
    /// Bytes of an LBA unit: the disk's logical block for scsi, 512 for blk.
    pub sector_bytes: u32,
    /// Bytes of data in each read or write.
    pub data_bytes: u32,
}

impl Format {
    /// Bytes of an LBA unit. Spec: virtio 1.3, 5.2.6: blk always counts in 512 bytes.
    pub(crate) fn sector_of(kind: Kind, sector_bytes: u32) -> u32 {
        match kind {
            Kind::Scsi => sector_bytes,
            Kind::Blk => 512,
        }
    }

    /// Write what is the same in all requests of a slot.
    pub(crate) fn prepare(&self, memory: &Memory, place: Place, id: u64) {
        memory.fill(place.record, RECORD_BYTES, 0);
        if self.kind == Kind::Scsi {
            memory.store_bytes(place.record, [1, 0]);
            memory.store(place.record + 8, id);
        }
    }

    /// Write what differs.
    #[inline(always)]
    pub(crate) fn encode(&self, memory: &Memory, place: Place, request: &Request) {
        match self.kind {
            Kind::Scsi => {
                memory.store_bytes(place.record + 2, (FLAT_LUN | request.lun).to_be_bytes());
                let count = self.data_bytes / self.sector_bytes;
                memory.store_bytes(place.record + SCSI_CDB, cdb(request.operation, request.lba, count));
            }
            Kind::Blk => {
                memory.store(place.record, blk_type(request.operation));
                memory.store(place.record + 8, request.lba);
            }
        }
    }

    /// Make a response look failed until the device writes it.
    pub(crate) fn poison(&self, memory: &Memory, place: Place) {
        memory.store_bytes(place.record + RESPONSE, [0xff; 12]);
    }

    /// Whether the device says that all of the request was done: good status, no residual.
    #[inline(always)]
    pub(crate) fn succeeded(&self, memory: &Memory, place: Place) -> bool {
        let response = place.record + RESPONSE;
        match self.kind {
            Kind::Scsi => {
                let residual = memory.load::<u32>(response + 4);
                // Status qualifier, status, response: what a good command has in them is zero.
                let outcome = memory.load::<u32>(response + 8) >> 16;
                residual | outcome == 0
            }
            Kind::Blk => memory.load::<u8>(response) == 0,
        }
    }

    /// The buffers of a request in the order of the chain: two for a flush, else three.
    pub(crate) fn segments(&self, operation: Operation, place: Place) -> ([Segment; 3], usize) {
        let (header, response) = self.frame(place);
        let writable = operation == Operation::Read;
        let data = Segment { offset: place.data, length: self.data_bytes, writable };
        match (operation, self.kind) {
            (Operation::Flush, _) => ([header, response, response], 2),
            (Operation::Read, Kind::Scsi) => ([header, response, data], 3),
            _ => ([header, data, response], 3),
        }
    }

    /// Bytes that the device may write for a request.
    pub(crate) fn writable_bytes(&self, operation: Operation) -> u32 {
        let response = match self.kind {
            Kind::Scsi => SCSI_RESPONSE_BYTES,
            Kind::Blk => BLK_STATUS_BYTES,
        };
        response + if operation == Operation::Read { self.data_bytes } else { 0 }
    }

    fn frame(&self, place: Place) -> (Segment, Segment) {
        let (header, response) = match self.kind {
            Kind::Scsi => (SCSI_HEADER_BYTES, SCSI_RESPONSE_BYTES),
            Kind::Blk => (BLK_HEADER_BYTES, BLK_STATUS_BYTES),
        };
        let header = Segment { offset: place.record, length: header, writable: false };
        (header, Segment { offset: place.record + RESPONSE, length: response, writable: true })
    }
}

/// VIRTIO_BLK_T_IN, _OUT, _FLUSH. Spec: virtio 1.3, 5.2.6.
fn blk_type(operation: Operation) -> u32 {
    match operation {
        Operation::Read => 0,
        Operation::Write => 1,
        Operation::Flush => 4,
    }
}

/// READ and WRITE in their 10-byte form where it reaches, else in the 16-byte one; SYNCHRONIZE CACHE(10) of all.
///
/// Spec: SBC-4 r22, commands READ and WRITE (10) and (16), SYNCHRONIZE CACHE (10).
#[inline(always)]
fn cdb(operation: Operation, lba: u64, count: u32) -> [u8; 16] {
    let short = lba <= u64::from(u32::MAX) && count <= u32::from(u16::MAX);
    let opcode: u8 = match (operation, short) {
        (Operation::Read, true) => 0x28,
        (Operation::Read, false) => 0x88,
        (Operation::Write, true) => 0x2a,
        (Operation::Write, false) => 0x8a,
        (Operation::Flush, _) => return (0x35_u128 << 120).to_be_bytes(),
    };
    // Composed in a register and stored at once: bytes written one by one would stall the copy.
    let fields = match short {
        true => u128::from(lba) << 80 | u128::from(count) << 56,
        false => u128::from(lba) << 48 | u128::from(count) << 16,
    };
    (u128::from(opcode) << 120 | fields).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_cdbs_have_the_lba_at_2_and_the_count_at_7() {
        let found = cdb(Operation::Read, 0x0102_0304, 0x0506);
        assert_eq!(found, [0x28, 0, 1, 2, 3, 4, 0, 5, 6, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(cdb(Operation::Write, u64::from(u32::MAX), 8)[0], 0x2a);
    }

    #[test]
    fn long_cdbs_have_the_lba_at_2_and_the_count_at_10() {
        let found = cdb(Operation::Write, 0x0102_0304_0506, 0x0708_090a);
        assert_eq!(found, [0x8a, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0]);
        assert_eq!(cdb(Operation::Read, 1 << 32, 8)[0], 0x88);
        assert_eq!(cdb(Operation::Read, 0, 0x1_0000)[0], 0x88);
    }

    #[test]
    fn a_flush_is_of_the_whole_disk() {
        let mut expected = [0; 16];
        expected[0] = 0x35;
        assert_eq!(cdb(Operation::Flush, 77, 8), expected);
    }
}
