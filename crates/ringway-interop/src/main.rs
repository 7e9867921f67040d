//! `ringway-interop SOCKET`: write, read back, zero and flush a vhost-user-blk disk through libblkio's driver crate.
//!
//! Exits 0 and prints what it did; any difference or failed request is an error. The disk must be at least 8 MiB.

use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};

type Outcome<T> = Result<T, Box<dyn Error>>;

const QUEUES: usize = 2;
const BLOCK: usize = 4096;
const BLOCKS: usize = 512;
const ROUNDS: u8 = 4;

/// Memory that the device sees, outside of the rings' own.
struct Buffers {
    base: *mut u8,
    len: usize,
    file: File,
}

impl Buffers {
    fn new(len: usize) -> Outcome<Self> {
        // SAFETY: plain system calls; the fd is new and ours.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"buffers".as_ptr(), libc::MFD_CLOEXEC)) };
        file.set_len(len as u64)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh shared mapping of our own file; it is never unmapped.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        match base == libc::MAP_FAILED {
            true => Err(std::io::Error::last_os_error().into()),
            false => Ok(Buffers { base: base.cast(), len, file }),
        }
    }

    fn block(&self, index: usize) -> &'static mut [u8] {
        assert!((index + 1) * BLOCK <= self.len);
        // SAFETY: inside the mapping, which lives for ever; one request at a time uses a block.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(index * BLOCK), BLOCK) }
    }
}

struct Client<'a> {
    transport: Box<VirtioBlkTransport>,
    queues: Vec<VirtioBlkQueue<'a, usize>>,
    buffers: Buffers,
}

impl Client<'_> {
    fn connect(socket: &str) -> Outcome<Self> {
        let wanted = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        // discard, write-zeroes, multi-queue, flush
        let device = 1 << 9 | 1 << 12 | 1 << 13 | 1 << 14;
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::new(socket, wanted.bits() | device)?);
        let queues = VirtioBlkQueue::setup_queues(transport.as_mut(), QUEUES, 128)?;
        let buffers = Buffers::new(BLOCKS * BLOCK)?;
        let fd = buffers.file.as_raw_fd();
        transport.map_mem_region(buffers.base as usize, buffers.len, fd, 0)?;
        Ok(Client { transport, queues, buffers })
    }

    /// Submit one request for each block, 64 in flight a queue, and wait for all.
    fn each_block(
        &mut self,
        mut submit: impl FnMut(&mut VirtioBlkQueue<'_, usize>, u64, &'static mut [u8], usize) -> Outcome<()>,
    ) -> Outcome<()> {
        let mut waiting: VecDeque<usize> = (0..BLOCKS).collect();
        let mut left = BLOCKS;
        while left > 0 {
            for _ in 0..32 {
                let Some(block) = waiting.pop_front() else { break };
                let queue = &mut self.queues[block % QUEUES];
                submit(queue, (block * BLOCK) as u64, self.buffers.block(block), block)?;
            }
            left -= self.settle(if left > 32 { 32 } else { left })?;
        }
        Ok(())
    }

    /// Notify, then poll both queues until so many requests came back.
    fn settle(&mut self, count: usize) -> Outcome<usize> {
        for queue in 0..QUEUES {
            if self.queues[queue].avail_notif_needed() {
                self.transport.get_submission_notifier(queue).notify()?;
            }
        }
        let mut done = 0;
        while done < count {
            for queue in &mut self.queues {
                for completion in queue.completions() {
                    if completion.ret != 0 {
                        return Err(
                            format!("request {} failed: {}", completion.context, completion.ret).into()
                        );
                    }
                    done += 1;
                }
            }
            std::thread::yield_now();
        }
        Ok(done)
    }

    fn expect(&mut self, what: &str, byte: impl Fn(usize) -> u8) -> Outcome<()> {
        (0..BLOCKS).for_each(|block| self.buffers.block(block).fill(0xee));
        self.each_block(|queue, offset, block, context| Ok(queue.read(offset, block, context)?))?;
        match (0..BLOCKS).find(|block| self.buffers.block(*block).iter().any(|found| *found != byte(*block)))
        {
            Some(block) => Err(format!("{what}: block {block} differs").into()),
            None => Ok(()),
        }
    }

    fn round(&mut self, round: u8) -> Outcome<()> {
        let pattern = move |block: usize| (block as u8).wrapping_mul(7).wrapping_add(round);
        (0..BLOCKS).for_each(|block| self.buffers.block(block).fill(pattern(block)));
        self.each_block(|queue, offset, block, context| Ok(queue.write(offset, block, context)?))?;
        self.queues[0].flush(0)?;
        self.settle(1)?;
        self.expect("read back", pattern)?;
        self.queues[1].write_zeroes(0, (BLOCKS * BLOCK / 2) as u64, true, 0)?;
        self.settle(1)?;
        self.queues[0].discard((BLOCKS * BLOCK / 2) as u64, BLOCK as u64, 0)?;
        self.settle(1)?;
        self.expect("zeroed", move |block| if block <= BLOCKS / 2 { 0 } else { pattern(block) })
    }
}

fn main() -> Outcome<()> {
    let socket = std::env::args().nth(1).ok_or("usage: ringway-interop SOCKET")?;
    let mut client = Client::connect(&socket)?;
    (1..=ROUNDS).try_for_each(|round| client.round(round))?;
    println!("{ROUNDS} rounds of {BLOCKS} blocks on {QUEUES} queues: written, read, zeroed, flushed");
    Ok(())
}
