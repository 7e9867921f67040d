//! Verifying loads: writes of rising generations, reads that check them, for tests that kill and migrate.

use std::error::Error;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;

use super::clock::Clock;
use super::drive::{Tag, Tally, Workload};
use super::load::{Report, Stopwatch};
use super::pattern::{Found, Pattern, SECTOR_BYTES, UNTOUCHED};
use super::queue::{Buffer, Completion, Slots};
use super::random::{below, happens, Random};
use super::request::{Kind, Operation, Request, MAX_LUNS};
use super::{invalid, LoadDriver};

const READ_PERCENT: u8 = 50;

/// How much of a mixed load comes before the final sweep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// For so long.
    Seconds(f64),
    /// So many requests; none: just the sweep.
    Requests(u64),
}

/// A verifying load.
#[derive(Clone, Debug)]
pub struct Verify {
    /// Of the mixed load.
    pub length: Length,
    /// Bytes of the disk that are used, from block 0.
    pub size_bytes: u64,
    /// Bytes of each request; a multiple of 512.
    pub block_bytes: u32,
    /// Requests in flight for each queue, at most.
    pub depth: u16,
    /// Which disk.
    pub lun: u16,
    /// Names the content as well as the sequence: who verifies what another wrote uses the same.
    pub seed: u32,
    /// Bytes of the disk's logical block: 512 or 4096.
    pub sector_bytes: u32,
    /// A block's first write has the generation after this.
    pub generation_base: u32,
    /// Flush after so many requests; 0: never (a blk device without F_FLUSH).
    pub flush_every: u64,
}

/// What each block of a disk holds, so far as it is known. It outlives a run, and a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generations {
    /// The last write that the device acknowledged; 0: none, the content is not known and not checked.
    pub acknowledged: Vec<u32>,
    /// The last write that was submitted: it may have reached the disk, be it acknowledged or not.
    pub issued: Vec<u32>,
}

impl Generations {
    /// Of a disk whose content is not known.
    pub fn unknown(blocks: usize) -> Self {
        Self { acknowledged: vec![0; blocks], issued: vec![0; blocks] }
    }
}

/// A block that did not hold what was acknowledged. Carried by an `io::Error` of kind `InvalidData`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Of the disk.
    pub lun: u16,
    /// First LBA of the block that was read, in the disk's logical blocks (blk: of 512 bytes).
    pub lba: u64,
    /// First byte in it that is wrong.
    pub byte: usize,
    /// Generations that it might have had: acknowledged before the read, to issued before its end.
    pub expected: RangeInclusive<u32>,
    /// What the sector holds.
    pub found: Found,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lun, lba, byte, expected, found } = self;
        write!(f, "LUN {lun}, LBA {lba}, byte {byte}: expected generation {}", expected.start())?;
        if expected.start() != expected.end() {
            write!(f, " to {}", expected.end())?;
        }
        write!(f, ", found {found}")
    }
}

impl Error for Mismatch {}

impl LoadDriver {
    /// Write and read a disk at random and check each read; then flush, read every block and check it.
    ///
    /// Each block has at most one write in flight. A read must give the last acknowledged generation, or one in
    /// flight meanwhile. `state` is kept true whatever happens, so that a later call, or another process, can go on.
    /// Failed requests are counted, not checked.
    ///
    /// Errors: as of [`LoadDriver::run`]; `InvalidData` around a [`Mismatch`] for the first wrong block, after what
    /// was in flight came back: the driver can be used again.
    pub fn verify(&mut self, plan: &Verify, state: &mut Generations) -> io::Result<Report> {
        plan.check(self.kind, state)?;
        let format = self.format(plan.sector_bytes, plan.block_bytes)?;
        self.lay_out(Slots { format, depth: plan.depth, poison: true })?;
        let (watch, mut tally) = (Stopwatch::start(), Tally::new());
        let clock = self.clock;
        let slots = self.queues.len() * usize::from(plan.depth);
        let mut checker = Checker::new(plan, format.sector_bytes, slots, state, &clock);
        self.drive(&mut checker, &mut tally)?;
        for phase in [Phase::Flush(plan.flush_every > 0), Phase::Sweep(0)] {
            checker.phase = phase;
            self.drive(&mut checker, &mut tally)?;
        }
        let checked = checker.checked;
        match checker.mismatch {
            Some(mismatch) => Err(io::Error::new(io::ErrorKind::InvalidData, mismatch)),
            None => Ok(Report { checked, ..watch.report(tally, plan.block_bytes) }),
        }
    }
}

impl Verify {
    fn check(&self, kind: Kind, state: &Generations) -> io::Result<()> {
        let luns = if kind == Kind::Scsi { MAX_LUNS } else { 1 };
        let blocks = self.size_bytes / u64::from(self.block_bytes.max(1));
        let fits = |list: &Vec<u32>| list.len() as u64 == blocks;
        let wrong = [
            (blocks == 0, "the disk is smaller than a block"),
            (!self.block_bytes.is_multiple_of(SECTOR_BYTES), "a block is a multiple of 512 bytes"),
            (self.lun >= luns, "no such LUN"),
            (!fits(&state.acknowledged) || !fits(&state.issued), "the state is of another number of blocks"),
            (
                matches!(self.length, Length::Seconds(s) if !(0.0..=1e9).contains(&s)),
                "seconds are not from 0 to 10^9",
            ),
        ];
        match wrong.iter().find(|(wrong, _)| *wrong) {
            Some((_, text)) => Err(invalid((*text).to_owned())),
            None => Ok(()),
        }
    }
}

/// What a verifying load does now.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Random reads and writes, until a time.
    Until(u64),
    /// As before, so many.
    Requests(u64),
    /// One flush, unless it was sent.
    Flush(bool),
    /// Reads of all blocks, from this one on.
    Sweep(usize),
}

/// What a slot is at.
#[derive(Clone, Copy, Debug, Default)]
struct Task {
    block: usize,
    /// Of a write: its own. Of a read: the last one acknowledged when it was submitted.
    generation: u32,
}

struct Checker<'a> {
    state: &'a mut Generations,
    pattern: Pattern,
    random: Random,
    phase: Phase,
    lun: u16,
    /// LBA units in a block.
    step: u64,
    block_bytes: u32,
    generation_base: u32,
    flush_every: u64,
    since_flush: u64,
    depth: usize,
    tasks: Vec<Task>,
    /// Whether a block has a write in flight.
    writing: Vec<bool>,
    words: Vec<u64>,
    checked: u64,
    mismatch: Option<Mismatch>,
}

impl<'a> Checker<'a> {
    fn new(
        plan: &Verify,
        sector_bytes: u32,
        slots: usize,
        state: &'a mut Generations,
        clock: &Clock,
    ) -> Self {
        let phase = match plan.length {
            Length::Seconds(seconds) => Phase::Until(clock.now() + clock.ticks(seconds) as u64),
            Length::Requests(count) => Phase::Requests(count),
        };
        Self {
            writing: vec![false; state.issued.len()],
            state,
            pattern: Pattern { seed: plan.seed },
            random: Random::new(u64::from(plan.seed)),
            phase,
            lun: plan.lun,
            step: u64::from(plan.block_bytes / sector_bytes),
            block_bytes: plan.block_bytes,
            generation_base: plan.generation_base,
            flush_every: plan.flush_every,
            since_flush: 0,
            depth: usize::from(plan.depth),
            tasks: vec![Task::default(); slots],
            words: vec![0; plan.block_bytes as usize / 8],
            checked: 0,
            mismatch: None,
        }
    }

    fn request(&self, operation: Operation, block: usize) -> Request {
        Request { operation, lun: self.lun, lba: block as u64 * self.step, due: None }
    }

    /// Sector of 512 bytes at which a block starts.
    fn sector(&self, block: usize) -> u64 {
        block as u64 * u64::from(self.block_bytes / SECTOR_BYTES)
    }

    fn task(&mut self, tag: Tag) -> &mut Task {
        &mut self.tasks[tag.queue * self.depth + usize::from(tag.slot)]
    }

    fn flush(&mut self) -> Request {
        self.since_flush = 0;
        self.request(Operation::Flush, 0)
    }

    fn read(&mut self, tag: Tag, block: usize, buffer: Buffer<'_>) -> Request {
        buffer.fill(UNTOUCHED);
        let generation = self.state.acknowledged[block];
        *self.task(tag) = Task { block, generation };
        self.request(Operation::Read, block)
    }

    fn write(&mut self, tag: Tag, block: usize, buffer: Buffer<'_>) -> Request {
        let generation = self.state.issued[block].max(self.generation_base) + 1;
        self.state.issued[block] = generation;
        self.writing[block] = true;
        let sector = self.sector(block);
        self.pattern.fill(&mut self.words, sector, generation);
        buffer.write(&self.words);
        *self.task(tag) = Task { block, generation };
        self.request(Operation::Write, block)
    }

    fn mixed(&mut self, tag: Tag, buffer: Buffer<'_>) -> Request {
        self.since_flush += 1;
        if self.since_flush == self.flush_every {
            return self.flush();
        }
        let word = self.random.next();
        let block = below(word, self.writing.len() as u64) as usize;
        if self.writing[block] || happens(word, READ_PERCENT) {
            self.read(tag, block, buffer)
        } else {
            self.write(tag, block, buffer)
        }
    }

    fn check(&mut self, task: Task, buffer: Buffer<'_>) {
        if task.generation == 0 || self.mismatch.is_some() {
            return;
        }
        buffer.read(&mut self.words);
        self.checked += 1;
        let expected = task.generation..=self.state.issued[task.block];
        let sector = self.sector(task.block);
        self.mismatch = self.pattern.compare(&self.words, sector, expected.clone()).map(|(byte, found)| {
            let lba = task.block as u64 * self.step;
            Mismatch { lun: self.lun, lba, byte, expected, found }
        });
    }
}

impl Workload for Checker<'_> {
    fn finished(&mut self, now: u64) -> bool {
        let over = match self.phase {
            Phase::Until(end) => now >= end,
            Phase::Requests(left) => left == 0,
            Phase::Flush(due) => !due,
            Phase::Sweep(next) => next == self.writing.len(),
        };
        over || self.mismatch.is_some()
    }

    fn wanted(&mut self, free: usize, _: u64) -> usize {
        free
    }

    fn next(&mut self, tag: Tag, buffer: Buffer<'_>) -> Option<Request> {
        match &mut self.phase {
            Phase::Requests(0) | Phase::Flush(false) => return None,
            Phase::Sweep(next) if *next == self.writing.len() => return None,
            Phase::Until(_) => {}
            Phase::Requests(left) => *left -= 1,
            Phase::Flush(due) => {
                *due = false;
                return Some(self.flush());
            }
            Phase::Sweep(next) => {
                let block = *next;
                *next += 1;
                return Some(self.read(tag, block, buffer));
            }
        }
        Some(self.mixed(tag, buffer))
    }

    fn done(&mut self, tag: Tag, completion: &Completion, buffer: Buffer<'_>) {
        let task = *self.task(tag);
        match completion.operation {
            Operation::Write => {
                self.writing[task.block] = false;
                if completion.good {
                    self.state.acknowledged[task.block] = task.generation;
                }
            }
            Operation::Read if completion.good => self.check(task, buffer),
            Operation::Read | Operation::Flush => {}
        }
    }
}
