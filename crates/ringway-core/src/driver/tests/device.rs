//! A device for the driver's tests: it serves rings as the specification says, or breaks them in one known way.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{fence, AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::setup::{offsets, Setup, Shared};
use crate::driver::memory::Memory;
use crate::driver::{Kind, RingOffsets};

pub(crate) const SECTOR: usize = 512;

/// What the device does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    /// Flips a bit in what is written to this sector.
    FlipBit {
        sector: u64,
    },
    /// Acknowledges writes of this sector and forgets them.
    LoseWrite {
        sector: u64,
    },
    /// Writes what belongs to one sector to another.
    Misplace {
        from: u64,
        to: u64,
    },
    /// Acknowledges reads and leaves the buffer alone.
    SkipRead,
    /// Completes requests without writing a response.
    SkipResponse,
    /// Fails each n-th request, with the given bytes in the response (scsi: residual, status, response).
    Fail {
        every: u64,
        residual: u32,
        status: u8,
        response: u8,
    },
    /// The request after so many comes back with another id.
    WrongId {
        after: u64,
        id: u32,
    },
    /// The request after so many comes back twice.
    Twice {
        after: u64,
    },
    /// The request after so many comes back with the id of the one before.
    Repeat {
        after: u64,
    },
    /// Claims to have written so many bytes.
    Length {
        bytes: u32,
    },
    /// Claims so many more completions than there are.
    Jump {
        by: u16,
    },
    /// Takes requests and does not answer after so many.
    Hang {
        after: u64,
    },
    /// Holds back its first answer so long.
    Stall {
        milliseconds: u64,
    },
}

/// The device.
pub(crate) struct Device {
    setup: Setup,
    memory: Memory,
    fault: Fault,
    queues: Vec<DeviceQueue>,
    pub disks: Vec<Vec<u8>>,
    /// (queue, head) of requests that were popped and not answered.
    pub held: VecDeque<(usize, u16)>,
    pub served: u64,
    /// Requests that moved data, as (LUN, sector, bytes, is a write).
    pub log: Vec<(usize, u64, usize, bool)>,
    pub flushes: u64,
    /// How many requests were found at once.
    pub pops: Vec<usize>,
    last_id: u32,
    /// How often the driver would have been interrupted.
    pub interrupts: u64,
    pub kicks_taken: u64,
    /// When the first request came.
    woken: Option<Instant>,
}

struct DeviceQueue {
    at: RingOffsets,
    kick: OwnedFd,
    next: u16,
}

#[derive(Clone, Copy)]
struct Part {
    offset: usize,
    length: usize,
    writable: bool,
}

impl Device {
    /// At the rings as they are, holding requests already.
    pub(crate) fn new(shared: &Shared, fault: Fault, disks: Vec<Vec<u8>>, held: Vec<(usize, u16)>) -> Self {
        let memory = Memory::map(shared.memory.as_fd()).unwrap();
        let queue = |(number, kick): (usize, &OwnedFd)| {
            let at = offsets(number);
            // As a restarted back end does: the used index, and what was in flight on top.
            let taken = held.iter().filter(|(queue, _)| *queue == number).count() as u16;
            let next = memory.load::<u16>(at.used + 2).wrapping_add(taken);
            DeviceQueue { at, kick: kick.try_clone().unwrap(), next }
        };
        Self {
            queues: shared.kicks.iter().enumerate().map(queue).collect(),
            setup: shared.setup,
            memory,
            fault,
            disks,
            held: held.into(),
            served: 0,
            log: Vec::new(),
            flushes: 0,
            pops: Vec::new(),
            last_id: 0,
            interrupts: 0,
            kicks_taken: 0,
            woken: None,
        }
    }

    /// Serve until stopped.
    pub(crate) fn run(mut self, stop: &AtomicBool) -> Self {
        while !stop.load(Ordering::Relaxed) {
            let popped: usize = (0..self.queues.len()).map(|queue| self.pop(queue)).sum();
            self.pops.extend((popped > 0).then_some(popped));
            self.answer();
            match (popped, self.setup.sleeps) {
                (0, true) => self.sleep(stop),
                (0, false) => std::thread::yield_now(),
                _ => {}
            }
        }
        self
    }

    /// Take what is available, without answering.
    fn pop(&mut self, number: usize) -> usize {
        let queue = &mut self.queues[number];
        let index = self.memory.index(queue.at.available + 2).load(Ordering::Acquire);
        let count = index.wrapping_sub(queue.next);
        for _ in 0..count {
            let entry = usize::from(queue.next % self.setup.queue_size);
            self.held.push_back((number, self.memory.load(queue.at.available + 4 + 2 * entry)));
            queue.next = queue.next.wrapping_add(1);
        }
        usize::from(count)
    }

    /// Answer what is held: the last first, so that completions are out of order.
    fn answer(&mut self) {
        while let Some((queue, head)) = self.held.pop_back() {
            if self.is_mute() {
                self.held.push_back((queue, head));
                return;
            }
            let written = self.serve(queue, head);
            self.served += 1;
            self.complete(queue, u32::from(head), written);
        }
    }

    fn is_mute(&mut self) -> bool {
        match self.fault {
            Fault::Hang { after } => self.served >= after,
            Fault::Stall { milliseconds } => {
                self.woken.get_or_insert_with(Instant::now).elapsed() < Duration::from_millis(milliseconds)
            }
            _ => false,
        }
    }

    fn complete(&mut self, queue: usize, head: u32, written: u32) {
        let last = self.served - 1;
        match self.fault {
            Fault::WrongId { after, id } if last == after => self.add_used(queue, id, written, 1),
            Fault::Repeat { after } if last == after => self.add_used(queue, self.last_id, written, 1),
            Fault::Twice { after } if last == after => {
                self.add_used(queue, head, written, 1);
                self.add_used(queue, head, written, 1);
            }
            Fault::Length { bytes } => self.add_used(queue, head, bytes, 1),
            Fault::Jump { by } => self.add_used(queue, head, written, 1 + by),
            _ => self.add_used(queue, head, written, 1),
        }
        self.last_id = head;
    }

    fn add_used(&mut self, queue: usize, id: u32, written: u32, step: u16) {
        let at = self.queues[queue].at;
        let before = self.memory.index(at.used + 2).load(Ordering::Relaxed);
        let element = at.used + 4 + 8 * usize::from(before % self.setup.queue_size);
        self.memory.store(element, id);
        self.memory.store(element + 4, written);
        let after = before.wrapping_add(step);
        self.memory.index(at.used + 2).store(after, Ordering::Release);
        fence(Ordering::SeqCst);
        let wanted = if self.setup.event_idx {
            let event: u16 = self.memory.load(at.available + 4 + 2 * usize::from(self.setup.queue_size));
            after.wrapping_sub(event).wrapping_sub(1) < step
        } else {
            self.memory.load::<u16>(at.available) & 1 == 0
        };
        self.interrupts += u64::from(wanted);
    }

    /// Ask for kicks, look again, and wait for one. Nothing but a kick wakes it.
    fn sleep(&mut self, stop: &AtomicBool) {
        self.ask_for_kicks(true);
        let fresh = |queue: &DeviceQueue| {
            self.memory.index(queue.at.available + 2).load(Ordering::SeqCst) != queue.next
        };
        if !self.queues.iter().any(fresh) {
            let taken = loop {
                let taken = self.queues.iter().filter(|queue| take_kick(&queue.kick)).count();
                if taken > 0 || stop.load(Ordering::Relaxed) {
                    break taken;
                }
                std::thread::yield_now();
            };
            self.kicks_taken += taken as u64;
        }
        self.ask_for_kicks(false);
    }

    fn ask_for_kicks(&self, wanted: bool) {
        for queue in &self.queues {
            if self.setup.event_idx {
                let event = if wanted { queue.next } else { queue.next.wrapping_sub(1) };
                self.memory.store(queue.at.used + 4 + 8 * usize::from(self.setup.queue_size), event);
            } else {
                self.memory.store(queue.at.used, u16::from(!wanted));
            }
        }
        fence(Ordering::SeqCst);
    }

    /// Run one request; bytes written to the guest.
    fn serve(&mut self, queue: usize, head: u16) -> u32 {
        let parts = self.chain(queue, head);
        assert!(!parts[0].writable, "the header comes first");
        match self.setup.kind {
            Kind::Scsi => self.serve_scsi(&parts),
            Kind::Blk => self.serve_blk(&parts),
        }
    }

    fn chain(&self, queue: usize, head: u16) -> Vec<Part> {
        let table = self.queues[queue].at.descriptors;
        let (part, flags, _) = self.descriptor(table, head);
        if flags & 4 == 0 {
            return self.walk(table, head, usize::from(self.setup.queue_size));
        }
        assert!(self.setup.indirect, "an indirect chain that was not negotiated");
        assert_eq!((flags & 3, part.length % 16), (0, 0));
        self.walk(part.offset, 0, part.length / 16)
    }

    fn walk(&self, table: usize, mut index: u16, limit: usize) -> Vec<Part> {
        let mut parts = Vec::new();
        loop {
            assert!(parts.len() < limit && usize::from(index) < limit, "a chain without end");
            let (part, flags, next) = self.descriptor(table, index);
            assert_eq!(flags & !3, 0);
            let sorted = !part.writable && parts.iter().any(|part: &Part| part.writable);
            assert!(!sorted, "readable parts come before writable ones");
            parts.push(part);
            if flags & 1 == 0 {
                return parts;
            }
            index = next;
        }
    }

    fn descriptor(&self, table: usize, index: u16) -> (Part, u16, u16) {
        let at = table + 16 * usize::from(index);
        let address = self.memory.load::<u64>(at) - self.setup.guest_base;
        let (length, flags) = (self.memory.load::<u32>(at + 8) as usize, self.memory.load::<u16>(at + 12));
        let part = Part { offset: address as usize, length, writable: flags & 2 != 0 };
        (part, flags, self.memory.load(at + 14))
    }

    fn serve_scsi(&mut self, parts: &[Part]) -> u32 {
        assert_eq!(parts[0].length, 51);
        let header = self.bytes(parts[0]);
        assert_eq!((header[0], header[1], header[2] & 0xc0), (1, 0, 0x40), "the LUN's format");
        let lun = usize::from(header[2] & 0x3f) << 8 | usize::from(header[3]);
        assert_eq!(header[4..8], [0; 4]);
        assert_eq!(header[16..19], [0; 3], "simple, no priority");
        let response = *parts.iter().find(|part| part.writable).unwrap();
        assert_eq!(response.length, 108);
        let data = parts[1..].iter().copied().find(|part| part.offset != response.offset);
        let cdb = &header[19..];
        let number =
            |range: std::ops::Range<usize>| cdb[range].iter().fold(0, |n, &byte| n << 8 | u64::from(byte));
        let (lba, count, write) = match cdb[0] {
            0x28 | 0x2a => (number(2..6), number(7..9), cdb[0] == 0x2a),
            0x88 | 0x8a => (number(2..10), number(10..14), cdb[0] == 0x8a),
            0x35 => (0, 0, false),
            other => panic!("opcode {other:#x}"),
        };
        let mut answer = [0; 12];
        if let Some((residual, status, code)) = self.failure() {
            answer[4..8].copy_from_slice(&residual.to_le_bytes());
            (answer[10], answer[11]) = (status, code);
            self.respond(response, &answer);
            return 108;
        }
        self.respond(response, &answer);
        let Some(data) = data else {
            self.flushes += 1;
            return 108;
        };
        assert_eq!(data.length, count as usize * SECTOR, "the CDB's length is the buffer's");
        108 + self.transfer(lun, lba, data, write)
    }

    fn serve_blk(&mut self, parts: &[Part]) -> u32 {
        let header = self.bytes(parts[0]);
        assert_eq!((header.len(), &header[4..8]), (16, &[0; 4][..]));
        let status = *parts.last().unwrap();
        assert_eq!((status.length, status.writable), (1, true));
        let failure = self.failure();
        self.respond(status, &[failure.map_or(0, |(_, status, _)| status)]);
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
        match (header[0], failure) {
            (_, Some(_)) => 1,
            (4, _) => {
                assert_eq!((parts.len(), sector), (2, 0));
                self.flushes += 1;
                1
            }
            (kind, _) => 1 + self.transfer(0, sector, parts[1], kind == 1),
        }
    }

    fn respond(&self, part: Part, bytes: &[u8]) {
        if self.fault != Fault::SkipResponse {
            self.put(part.offset, bytes);
        }
    }

    fn failure(&self) -> Option<(u32, u8, u8)> {
        match self.fault {
            Fault::Fail { every, residual, status, response } if self.served.is_multiple_of(every) => {
                Some((residual, status, response))
            }
            _ => None,
        }
    }

    /// Move data between a disk and a part; bytes written to the guest.
    fn transfer(&mut self, lun: usize, sector: u64, part: Part, write: bool) -> u32 {
        assert_eq!((part.offset % 4096, part.writable), (0, !write));
        self.log.push((lun, sector, part.length, write));
        let sector = match self.fault {
            Fault::Misplace { from, to } if write && from == sector => to,
            _ => sector,
        };
        let start = sector as usize * SECTOR;
        let range = start..start + part.length;
        match (write, self.fault) {
            (true, Fault::LoseWrite { sector: lost }) if lost == sector => {}
            (true, fault) => {
                let mut bytes = self.bytes(part);
                if fault == (Fault::FlipBit { sector }) {
                    bytes[100] ^= 4;
                }
                self.disks[lun][range].copy_from_slice(&bytes);
            }
            (false, Fault::SkipRead) => {}
            (false, _) => {
                let bytes = self.disks[lun][range].to_vec();
                self.put(part.offset, &bytes);
            }
        }
        if write {
            0
        } else {
            part.length as u32
        }
    }

    fn bytes(&self, part: Part) -> Vec<u8> {
        (part.offset..part.offset + part.length).map(|offset| self.memory.load(offset)).collect()
    }

    fn put(&self, offset: usize, bytes: &[u8]) {
        bytes.iter().enumerate().for_each(|(index, &byte)| self.memory.store(offset + index, byte));
    }
}

fn take_kick(fd: &OwnedFd) -> bool {
    let mut count = [0u8; 8];
    // SAFETY: the fd is open and the buffer is writable.
    unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), 8) == 8 }
}
