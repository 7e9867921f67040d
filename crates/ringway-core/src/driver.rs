//! A polling virtio driver: the guest's side of split rings, for benchmarks and for loads that verify.
//!
//! One thread drives all queues, never sleeps and never takes an interrupt, so that what it measures is the device.
//! It owns no socket: somebody else does the vhost-user handshake. [`LoadDriver::run`] measures;
//! [`LoadDriver::verify`] checks what the disk holds while a test kills or migrates the back end.
//!
//! `machine` measures what the host itself can do. Layers, each knowing only those below: `load`, `verify` (what to do) over `drive` (the loop) over `queue` (slots
//! and chains) over `ring` and `request` (the formats) over `memory` (all the raw access).

mod clock;
mod drive;
mod load;
pub mod machine;
mod memory;
mod pattern;
mod queue;
pub(crate) mod random;
mod request;
mod ring;
#[cfg(test)]
mod tests;
mod verify;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

pub use load::{Load, Report};
pub use pattern::Found;
pub use request::Kind;
pub use ring::RingOffsets;
pub use verify::{Generations, Length, Mismatch, Verify};

use clock::Clock;
use memory::Memory;
use queue::{Chains, Queue, Slots, DATA_ALIGN};
use random::Random;
use request::{Format, Place, RECORD_BYTES};
use ring::Ring;

/// How long a device may be silent, unless [`Config::timeout`] says something else.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What was agreed with the back end.
#[derive(Clone, Debug)]
pub struct Config<'a> {
    /// Which device the queues belong to.
    pub kind: Kind,
    /// The request queues (without a scsi device's control and event queue).
    pub rings: &'a [RingOffsets],
    /// Entries of each ring.
    pub queue_size: u16,
    /// Eventfds, one a queue; duplicated.
    pub kick_fds: &'a [BorrowedFd<'a>],
    /// Where requests and buffers may lie in the memory, to its end.
    pub data_offset: usize,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC was negotiated; each request takes one ring entry instead of three.
    pub indirect: bool,
    /// Guest physical address of the memory's first byte.
    pub guest_base: u64,
    /// How long a device that has requests may be silent.
    pub timeout: Duration,
}

/// The driver of some queues. See the [module](self).
#[derive(Debug)]
pub struct LoadDriver {
    kind: Kind,
    memory: Memory,
    clock: Clock,
    queues: Vec<Queue>,
    data_offset: usize,
    timeout: Duration,
    /// Why the rings are not to be touched any more.
    broken: Option<String>,
}

impl LoadDriver {
    /// Map the memory, whole, and take over the rings, which must rest: nothing in flight. Their indices go on
    /// from where they are.
    ///
    /// Errors: `InvalidInput` when a ring does not rest, or is misaligned or outside of the memory, or the numbers of
    /// rings and fds differ; the kernel's when the memory cannot be mapped.
    pub fn new(memory: BorrowedFd<'_>, config: &Config<'_>) -> io::Result<Self> {
        let (rings, kicks) = (config.rings.len(), config.kick_fds.len());
        if rings == 0 || rings != kicks {
            return Err(invalid(format!("{rings} rings with {kicks} kick fds")));
        }
        let memory = Memory::map(memory)?;
        let chains = Chains { indirect: config.indirect, guest_base: config.guest_base };
        let queue = |(number, (&at, fd)): (usize, (&RingOffsets, &BorrowedFd<'_>))| {
            let ring = Ring::new(&memory, at, config.queue_size, config.event_idx)?;
            Ok(Queue::new(number, ring, fd.try_clone_to_owned()?, chains, config.kind))
        };
        let queues = config.rings.iter().zip(config.kick_fds).enumerate().map(queue);
        let queues = queues.collect::<io::Result<_>>()?;
        let (kind, data_offset, timeout) = (config.kind, config.data_offset, config.timeout);
        Ok(Self { kind, memory, clock: Clock::calibrated(), queues, data_offset, timeout, broken: None })
    }

    /// Requests that the device has: not zero only after a call that timed out.
    pub fn outstanding(&self) -> usize {
        self.queues.iter().map(Queue::outstanding).sum()
    }

    /// The format of requests of `block_bytes`.
    fn format(&self, sector_bytes: u32, block_bytes: u32) -> io::Result<Format> {
        if ![512, 4096].contains(&sector_bytes) {
            return Err(invalid(format!("a logical block of {sector_bytes} bytes: not 512 or 4096")));
        }
        if block_bytes == 0 || !block_bytes.is_multiple_of(sector_bytes) {
            return Err(invalid(format!(
                "requests of {block_bytes} bytes: not whole blocks of {sector_bytes}"
            )));
        }
        let sector_bytes = Format::sector_of(self.kind, sector_bytes);
        Ok(Format { kind: self.kind, sector_bytes, data_bytes: block_bytes })
    }

    /// Make slots on each queue: the records of all queues, and behind them the buffers.
    ///
    /// Errors: `InvalidInput` when the memory or a ring is too small; as [`Self::drive`] when an earlier run's requests
    /// are still out and do not come.
    fn lay_out(&mut self, slots: Slots) -> io::Result<()> {
        self.drain()?;
        let records = self.data_offset.next_multiple_of(RECORD_BYTES);
        let data = (records + self.queues.len() * slots.record_bytes()).next_multiple_of(DATA_ALIGN);
        let needed = data + self.queues.len() * slots.data_bytes();
        if needed > self.memory.size() {
            let size = self.memory.size();
            return Err(invalid(format!("the requests need {needed} bytes of memory, there are {size}")));
        }
        for (number, queue) in self.queues.iter_mut().enumerate() {
            let record = records + number * slots.record_bytes();
            queue.lay_out(&self.memory, slots, Place { record, data: data + number * slots.data_bytes() })?;
        }
        Ok(())
    }

    /// Put something into all buffers that no store can compress or detect as zeroes, and touch their pages.
    fn fill_buffers(&self, seed: u64) {
        let mut random = Random::new(seed);
        for queue in &self.queues {
            queue.fill_buffers(&self.memory, || random.next());
        }
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

fn corrupt(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
