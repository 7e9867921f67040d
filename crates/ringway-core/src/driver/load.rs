//! Benchmark loads: random or sequential, closed loop or at an offered rate.

use std::io;
use std::time::Instant;

use super::clock::{thread_cpu_nanoseconds, Clock, Pinned};
use super::drive::{Tag, Tally, Workload};
use super::queue::{Buffer, Completion, Slots};
use super::random::{below, happens, Random};
use super::request::{Format, Kind, Operation, Request, MAX_LUNS};
use super::{invalid, LoadDriver};

/// A load to put on the queues.
#[derive(Clone, Debug)]
pub struct Load {
    /// How long to submit; then what is in flight is waited for.
    pub seconds: f64,
    /// Bytes of each request.
    pub block_bytes: u32,
    /// Requests in flight for each queue, at most.
    pub depth: u16,
    /// Bytes of each disk that are used, from block 0.
    pub size_bytes: u64,
    /// Share of reads; the others write.
    pub read_percent: u8,
    /// One block after the other on each disk, instead of at random.
    pub sequential: bool,
    /// Disks, LUN 0 to this, taken in turn.
    pub luns: u16,
    /// Refill a queue only when so many slots are free (and, at an offered rate, as many requests are due). All
    /// that are free are then submitted at once, with one look at whether the device wants a kick.
    pub batch: u16,
    /// Take so many completions of a queue, at most, before their successors are published (with one barrier, and
    /// one look at whether the device wants a kick); 0: all that there are.
    ///
    /// 1 is what bdevperf does over SPDK's initiator: each completion is replaced before the next is looked at.
    pub burst: u16,
    /// Offered load over all queues; 0: as fast as requests complete.
    ///
    /// With a rate, latency counts from when a request was due, so that a device that stalls cannot hide it.
    pub rate_iops: f64,
    /// CPU to run on meanwhile.
    pub cpu: Option<usize>,
    /// Start of the pseudo-random sequence.
    pub seed: u64,
    /// Bytes of the disk's logical block (the unit of scsi LBAs): 512 or 4096.
    pub sector_bytes: u32,
}

impl Default for Load {
    /// Five seconds of 4 KiB random reads at depth 1 within 1 GiB.
    fn default() -> Self {
        Self {
            seconds: 5.0,
            block_bytes: 4096,
            depth: 1,
            size_bytes: 1 << 30,
            read_percent: 100,
            sequential: false,
            luns: 1,
            batch: 1,
            burst: 0,
            rate_iops: 0.0,
            cpu: None,
            seed: 1,
            sector_bytes: 512,
        }
    }
}

/// What became of a load.
#[derive(Clone, Debug)]
pub struct Report {
    /// Requests that came back, failed ones included.
    pub requests: u64,
    /// Requests that failed or were cut short.
    pub errors: u64,
    /// Bytes of good reads.
    pub read_bytes: u64,
    /// Bytes of good writes.
    pub write_bytes: u64,
    /// Good flushes.
    pub flushes: u64,
    /// Reads whose content was compared.
    pub checked: u64,
    /// Requests of the offered load that were due but never submitted, for want of a free slot.
    pub unsent: u64,
    /// Times that the device asked to be kicked.
    pub kicks: u64,
    /// From the first submission until the last completion.
    pub seconds: f64,
    /// CPU time of the calling thread meanwhile.
    pub cpu_seconds: f64,
    /// Requests by latency, in the buckets of [`crate::stats::bounds`].
    pub latency: Vec<u64>,
}

/// Wall and CPU time of a run.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    wall: Instant,
    cpu: u64,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { wall: Instant::now(), cpu: thread_cpu_nanoseconds() }
    }

    /// The report of what was counted since the start.
    pub(crate) fn report(&self, tally: Tally, block_bytes: u32) -> Report {
        let (reads, writes, flushes, errors) = (tally.reads, tally.writes, tally.flushes, tally.errors);
        Report {
            requests: reads + writes + flushes + errors,
            errors,
            read_bytes: reads * u64::from(block_bytes),
            write_bytes: writes * u64::from(block_bytes),
            flushes,
            checked: 0,
            unsent: 0,
            kicks: tally.kicks,
            seconds: self.wall.elapsed().as_secs_f64(),
            cpu_seconds: (thread_cpu_nanoseconds() - self.cpu) as f64 / 1e9,
            latency: tally.latency,
        }
    }
}

impl LoadDriver {
    /// Drive the queues from the calling thread, and measure.
    ///
    /// Errors: `InvalidInput` when the numbers make no sense or the memory or rings are too small for them; nothing
    /// was submitted then. `TimedOut` when a queue did not answer for the time limit. `InvalidData` when the device
    /// broke a ring.
    pub fn run(&mut self, load: &Load) -> io::Result<Report> {
        load.check(self.kind)?;
        let _pinned = load.cpu.map(pin).transpose()?;
        let format = self.format(load.sector_bytes, load.block_bytes)?;
        self.lay_out(Slots { format, depth: load.depth, poison: false })?;
        self.fill_buffers(load.seed);
        let (watch, mut tally) = (Stopwatch::start(), Tally::new());
        let mut mix = Mix::new(load, &format, &self.clock);
        self.drive(&mut mix, &mut tally)?;
        let unsent = mix.unsent();
        Ok(Report { unsent, ..watch.report(tally, load.block_bytes) })
    }
}

impl Load {
    fn check(&self, kind: Kind) -> io::Result<()> {
        let luns = if kind == Kind::Scsi { MAX_LUNS } else { 1 };
        let wrong = [
            (!(0.0..=1e9).contains(&self.seconds), "seconds are not from 0 to 10^9"),
            (!(0.0..=1e9).contains(&self.rate_iops), "the rate is not from 0 to 10^9"),
            (self.read_percent > 100, "more than 100 percent reads"),
            (self.luns == 0 || self.luns > luns, "no such number of LUNs"),
            (self.batch == 0 || self.batch > self.depth, "a batch is from 1 to the depth"),
            (self.size_bytes < u64::from(self.block_bytes), "the disk is smaller than a block"),
        ];
        match wrong.iter().find(|(wrong, _)| *wrong) {
            Some((_, text)) => Err(invalid((*text).to_owned())),
            None => Ok(()),
        }
    }
}

fn pin(cpu: usize) -> io::Result<Pinned> {
    Pinned::to(cpu).map_err(|error| invalid(format!("cannot run on CPU {cpu}: {error}")))
}

/// The requests of a load.
struct Mix {
    random: Random,
    blocks: u64,
    /// LBA units in a block.
    step: u64,
    read_percent: u8,
    batch: usize,
    burst: u16,
    /// `Some`: where each disk's sequence is.
    position: Option<u64>,
    luns: u16,
    lun: u16,
    deadline: u64,
    pace: Option<Pace>,
}

impl Mix {
    fn new(load: &Load, format: &Format, clock: &Clock) -> Self {
        let start = clock.now();
        let length = clock.ticks(load.seconds);
        Self {
            random: Random::new(load.seed),
            blocks: load.size_bytes / u64::from(load.block_bytes),
            step: u64::from(load.block_bytes / format.sector_bytes),
            read_percent: load.read_percent,
            batch: usize::from(load.batch),
            burst: if load.burst == 0 { u16::MAX } else { load.burst },
            position: load.sequential.then_some(0),
            luns: load.luns,
            lun: 0,
            deadline: start + length as u64,
            pace: (load.rate_iops > 0.0).then(|| Pace::new(start, clock.ticks(1.0 / load.rate_iops), length)),
        }
    }

    fn unsent(&self) -> u64 {
        self.pace.as_ref().map_or(0, |pace| pace.due(self.deadline))
    }

    /// The LUN and the LBA that are next, for a random word.
    #[inline(always)]
    fn pick(&mut self, word: u64) -> (u16, u64) {
        let lun = self.lun;
        let last = lun + 1 == self.luns;
        self.lun = if last { 0 } else { lun + 1 };
        (lun, self.next_block(word, last) * self.step)
    }

    #[inline(always)]
    fn next_block(&mut self, word: u64, last_lun: bool) -> u64 {
        let Some(block) = self.position else { return below(word, self.blocks) };
        if last_lun {
            let next = block + 1;
            self.position = Some(if next == self.blocks { 0 } else { next });
        }
        block
    }
}

impl Workload for Mix {
    #[inline(always)]
    fn finished(&mut self, now: u64) -> bool {
        now >= self.deadline
    }

    #[inline(always)]
    fn wanted(&mut self, free: usize, now: u64) -> usize {
        let ready = match &self.pace {
            None => free,
            Some(_) if free == 0 => 0,
            Some(pace) => free.min(pace.due(now) as usize),
        };
        if ready >= self.batch {
            ready
        } else {
            0
        }
    }

    #[inline(always)]
    fn burst(&self, _: u16) -> u16 {
        self.burst
    }

    #[inline(always)]
    fn next(&mut self, _: Tag, _: Buffer<'_>) -> Option<Request> {
        let word = self.random.next();
        let (lun, lba) = self.pick(word);
        let operation = if happens(word, self.read_percent) { Operation::Read } else { Operation::Write };
        Some(Request { operation, lun, lba, due: self.pace.as_mut().map(Pace::take) })
    }

    #[inline(always)]
    fn done(&mut self, _: Tag, _: &Completion, _: Buffer<'_>) {}
}

/// When the requests of an offered load are due: evenly spaced.
#[derive(Debug)]
struct Pace {
    start: u64,
    /// Ticks from one to the next.
    period: f64,
    /// Requests of the whole run.
    total: u64,
    taken: u64,
}

impl Pace {
    fn new(start: u64, period: f64, length: f64) -> Self {
        Self { start, period, total: (length / period).ceil() as u64, taken: 0 }
    }

    /// Requests that are due and not taken.
    #[inline(always)]
    fn due(&self, now: u64) -> u64 {
        let passed = now.saturating_sub(self.start) as f64 / self.period;
        (passed as u64 + 1).min(self.total).saturating_sub(self.taken)
    }

    /// Take the next; when it is or was due.
    #[inline(always)]
    fn take(&mut self) -> u64 {
        let due = self.start + (self.taken as f64 * self.period) as u64;
        self.taken += 1;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_counts_from_the_schedule_and_not_from_the_submission() {
        let mut pace = Pace::new(1000, 10.0, 100.0);
        assert_eq!((pace.due(1000), pace.due(1009), pace.due(1010)), (1, 1, 2));
        assert_eq!((pace.take(), pace.take(), pace.take()), (1000, 1010, 1020));
        assert_eq!(pace.due(1029), 0);
        assert_eq!(pace.due(1035), 1);
    }

    #[test]
    fn a_pace_ends_with_the_run() {
        let pace = Pace::new(0, 10.0, 100.0);
        assert_eq!(pace.due(1_000_000), 10);
    }

    #[test]
    fn a_sequence_visits_each_block_of_each_disk_in_turn() {
        let load =
            Load { sequential: true, luns: 2, size_bytes: 3 * 8192, block_bytes: 8192, ..Load::default() };
        let format = Format { kind: Kind::Scsi, sector_bytes: 4096, data_bytes: 8192 };
        let mut mix = Mix::new(&load, &format, &Clock::calibrated());
        let found: Vec<_> = (0..8).map(|_| mix.pick(0)).collect();
        assert_eq!(found, [(0, 0), (1, 0), (0, 2), (1, 2), (0, 4), (1, 4), (0, 0), (1, 0)]);
    }
}
