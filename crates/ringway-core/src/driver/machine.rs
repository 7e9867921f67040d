//! What the machine itself can do, measured beside a load: figures of a target mean little without it.

use std::hint::{black_box, spin_loop};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::clock::Pinned;
use super::invalid;
use super::random::{below, Random};
use crate::mapping::Mapping;

/// Round trips in a chunk; of the chunks' times the median is taken, so that a preemption in one does not count.
const CHUNK: u64 = 500;
/// Looks at the line before a side lets others run: they may be on one CPU after all.
const PATIENCE: u32 = 1 << 16;
const STOP: u64 = u64::MAX;

/// A cache line of its own.
#[repr(align(128))]
struct Line(AtomicU64);

/// Nanoseconds that a cache line takes from one CPU to the other and back: the median over `length`.
///
/// Errors: `InvalidInput` when this process may not run on one of them.
pub fn round_trip_ns(cpus: (usize, usize), length: Duration) -> io::Result<f64> {
    let line = Line(AtomicU64::new(0));
    let _here = pin(cpus.0)?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| pin(cpus.1).map(|_there| answer(&line.0)));
        let mut chunks = Vec::new();
        let end = Instant::now() + length;
        let mut turn = 1;
        while chunks.is_empty() || Instant::now() < end {
            let start = Instant::now();
            let last = turn + 2 * CHUNK;
            while turn < last && !echo.is_finished() {
                line.0.store(turn, Ordering::Release);
                wait_while(&line.0, |seen| seen == turn && !echo.is_finished());
                turn += 2;
            }
            chunks.push(start.elapsed());
        }
        line.0.store(STOP, Ordering::Release);
        echo.join().map_err(|_| invalid("the other thread failed".to_owned()))??;
        chunks.sort_unstable();
        Ok(chunks[chunks.len() / 2].as_secs_f64() * 1e9 / CHUNK as f64)
    })
}

/// Answer each odd number with the even one behind it.
fn answer(line: &AtomicU64) {
    loop {
        match wait_while(line, |seen| seen % 2 == 0) {
            STOP => return,
            turn => line.store(turn + 1, Ordering::Release),
        }
    }
}

fn wait_while(line: &AtomicU64, waits: impl Fn(u64) -> bool) -> u64 {
    let mut looks = 0;
    loop {
        let seen = line.load(Ordering::Acquire);
        if !waits(seen) {
            return seen;
        }
        looks += 1;
        match looks % PATIENCE {
            0 => std::thread::yield_now(),
            _ => spin_loop(),
        }
    }
}

/// Plain copies a second of `block_bytes` from random places of a store of `store_bytes` in memory into so many
/// buffers in turn, on one CPU: what a store in memory is measured by.
///
/// Errors: `InvalidInput` when the store holds no block or this process may not run there; the kernel's, without memory.
pub fn copies_per_second(
    cpu: Option<usize>,
    block_bytes: u32,
    buffers: u32,
    store_bytes: u64,
    length: Duration,
) -> io::Result<f64> {
    let (block, blocks) = (block_bytes as usize, store_bytes / u64::from(block_bytes.max(1)));
    if block == 0 || blocks == 0 || buffers == 0 {
        return Err(invalid(format!("no blocks of {block_bytes} bytes in {store_bytes}, or no buffers")));
    }
    let _pinned = cpu.map(pin).transpose()?;
    let store = Touched::new(store_bytes)?;
    let mut room = Touched::new(u64::from(buffers) * u64::from(block_bytes))?;
    let (mut random, mut copies) = (Random::new(1), 0u64);
    let start = Instant::now();
    loop {
        for buffer in room.bytes_mut().chunks_exact_mut(block) {
            let from = below(random.next(), blocks) as usize * block;
            black_box(buffer).copy_from_slice(&store.bytes()[from..from + block]);
        }
        copies += u64::from(buffers);
        let elapsed = start.elapsed();
        if elapsed >= length {
            return Ok(copies as f64 / elapsed.as_secs_f64());
        }
    }
}

/// Memory whose pages are all there, large ones where the kernel has them: as a store in memory has it.
struct Touched(Mapping);

impl Touched {
    fn new(bytes: u64) -> io::Result<Self> {
        let mapping = Mapping::anonymous(bytes).map_err(io::Error::other)?;
        // SAFETY: advice about memory that is ours and mapped; it changes no content.
        unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.len(), libc::MADV_HUGEPAGE) };
        let mut memory = Self(mapping);
        memory.bytes_mut().fill(0x5a);
        Ok(memory)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is private, as long as we say, initialised by the kernel, and borrowed with self.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), self.0.len()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; self is borrowed alone, and nobody else knows the mapping.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), self.0.len()) }
    }
}

fn pin(cpu: usize) -> io::Result<Pinned> {
    Pinned::to(cpu).map_err(|error| invalid(format!("cannot run on CPU {cpu}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    fn cpu() -> usize {
        // SAFETY: reads a number of this thread's.
        usize::try_from(unsafe { libc::sched_getcpu() }).unwrap()
    }

    #[test]
    fn a_line_goes_there_and_back_even_on_one_cpu() {
        assert!(round_trip_ns((cpu(), cpu()), SHORT).unwrap() > 0.0);
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused_on_either_side() {
        for cpus in [(1 << 20, cpu()), (cpu(), 1 << 20)] {
            assert_eq!(round_trip_ns(cpus, SHORT).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn copies_are_counted() {
        assert!(copies_per_second(None, 512, 0, 1 << 20, SHORT).is_err());
        assert!(copies_per_second(None, 4096, 8, 1 << 20, SHORT).unwrap() > 0.0);
        assert!(copies_per_second(None, 4096, 8, 100, SHORT).is_err());
        assert!(copies_per_second(None, 0, 8, 100, SHORT).is_err());
    }
}
