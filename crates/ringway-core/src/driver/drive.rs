//! The loop: poll each queue's used ring, hand completions to the workload, refill, publish.

use std::io;

use super::clock::Clock;
use super::memory::Memory;
use super::queue::{Buffer, Completion, Queue};
use super::request::{Operation, Request};
use super::{corrupt, LoadDriver};
use crate::stats::{bucket_of, BUCKETS};

/// Without an answer for this long, the loop yields its CPU between two looks: the device may need it.
const POLITE_AFTER_S: f64 = 0.001;

/// Which request: the queue and the slot in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tag {
    pub queue: usize,
    pub slot: u16,
}

/// Where requests come from and what becomes of them.
pub(crate) trait Workload {
    /// Whether nothing more is to be submitted; once true, it stays so.
    fn finished(&mut self, now: u64) -> bool;
    /// How many of `free` slots to fill now.
    fn wanted(&mut self, free: usize, now: u64) -> usize;
    /// Completions to take from a queue, at most, before what became free is submitted again.
    fn burst(&self, depth: u16) -> u16 {
        // Taking all would let a device that completes in batches run in lockstep with the driver, each idle while
        // the other works; taking one by one costs a barrier a request.
        depth.div_ceil(2)
    }
    /// The next request and, in the buffer, what it writes; `None` if there is none now.
    fn next(&mut self, tag: Tag, buffer: Buffer<'_>) -> Option<Request>;
    /// A request came back; `buffer` has what it read.
    fn done(&mut self, tag: Tag, completion: &Completion, buffer: Buffer<'_>);
}

/// What was counted.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub errors: u64,
    pub kicks: u64,
    pub latency: Vec<u64>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self { reads: 0, writes: 0, flushes: 0, errors: 0, kicks: 0, latency: vec![0; BUCKETS] }
    }

    #[inline(always)]
    fn count(&mut self, completion: &Completion, nanoseconds: u64) {
        self.latency[bucket_of(nanoseconds)] += 1;
        match (completion.good, completion.operation) {
            (false, _) => self.errors += 1,
            (true, Operation::Read) => self.reads += 1,
            (true, Operation::Write) => self.writes += 1,
            (true, Operation::Flush) => self.flushes += 1,
        }
    }
}

/// Nothing new: waits for what is in flight.
struct Drain;

impl Workload for Drain {
    fn finished(&mut self, _: u64) -> bool {
        true
    }

    fn wanted(&mut self, _: usize, _: u64) -> usize {
        0
    }

    fn next(&mut self, _: Tag, _: Buffer<'_>) -> Option<Request> {
        None
    }

    fn done(&mut self, _: Tag, _: &Completion, _: Buffer<'_>) {}
}

impl LoadDriver {
    /// Run a workload until it is finished and all of its requests came back.
    ///
    /// Errors: `TimedOut` when a queue does not answer for the time limit: its requests stay outstanding, and the
    /// next call waits for them first. `InvalidData` when a device breaks the ring: the driver is unusable then.
    pub(crate) fn drive<W: Workload>(&mut self, workload: &mut W, tally: &mut Tally) -> io::Result<()> {
        if let Some(reason) = &self.broken {
            return Err(corrupt(reason.clone()));
        }
        let outcome = self.turn_until_done(workload, tally);
        if let Err(error) = &outcome {
            if error.kind() == io::ErrorKind::InvalidData {
                self.broken = Some(error.to_string());
            }
        }
        outcome
    }

    /// Wait for what an earlier run left behind.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        self.drive(&mut Drain, &mut Tally::new())
    }

    fn turn_until_done<W: Workload>(&mut self, workload: &mut W, tally: &mut Tally) -> io::Result<()> {
        let Self { memory, clock, queues, .. } = self;
        let (limit, polite) = (clock.ticks_in(self.timeout), clock.ticks(POLITE_AFTER_S) as u64);
        let mut heard = clock.now();
        queues.iter_mut().for_each(|queue| queue.start_listening(heard));
        loop {
            let (mut ending, mut outstanding) = (true, 0);
            for queue in queues.iter_mut() {
                let arrived = queue.arrived(memory)?.min(workload.burst(queue.depth()));
                let now = clock.now();
                if arrived > 0 {
                    reap(queue, memory, clock, arrived, now, workload, tally)?;
                    heard = now;
                } else if queue.is_silent(now, limit) {
                    let number = queue.number();
                    return Err(self.silence(number));
                } else if now.saturating_sub(heard) > polite {
                    std::thread::yield_now();
                }
                ending = workload.finished(now);
                if !ending {
                    submit(queue, memory, clock, now, workload, tally)?;
                }
                outstanding += queue.outstanding();
            }
            if ending && outstanding == 0 {
                return Ok(());
            }
        }
    }

    #[cold]
    fn silence(&self, number: usize) -> io::Error {
        let outstanding: usize = self.queues.iter().map(Queue::outstanding).sum();
        let seconds = self.timeout.as_secs_f64();
        let text = format!("queue {number}: no answer for {seconds} s, {outstanding} requests outstanding");
        io::Error::new(io::ErrorKind::TimedOut, text)
    }
}

#[inline(always)]
fn reap<W: Workload>(
    queue: &mut Queue,
    memory: &Memory,
    clock: &Clock,
    arrived: u16,
    now: u64,
    workload: &mut W,
    tally: &mut Tally,
) -> io::Result<()> {
    for ahead in 0..arrived {
        let completion = queue.complete(memory, ahead)?;
        tally.count(&completion, clock.nanoseconds(now.saturating_sub(completion.started)));
        let tag = Tag { queue: queue.number(), slot: completion.slot };
        workload.done(tag, &completion, queue.buffer(memory, completion.slot));
    }
    queue.accept(memory, arrived, now);
    Ok(())
}

#[inline(always)]
fn submit<W: Workload>(
    queue: &mut Queue,
    memory: &Memory,
    clock: &Clock,
    now: u64,
    workload: &mut W,
    tally: &mut Tally,
) -> io::Result<()> {
    let wanted = workload.wanted(queue.free(), now);
    let mut filled = 0;
    while filled < wanted {
        let Some(slot) = queue.next_slot() else { break };
        let tag = Tag { queue: queue.number(), slot };
        let Some(request) = workload.next(tag, queue.buffer(memory, slot)) else { break };
        queue.fill(memory, &request);
        filled += 1;
    }
    if filled > 0 {
        tally.kicks += u64::from(queue.publish(memory, clock.now())?);
    }
    Ok(())
}
