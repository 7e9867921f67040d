//! The in-flight region: which requests a back end holds, in memory that survives it.
//!
//! Spec: vhost-user, "Inflight I/O tracking", split virtqueues. The region is the front end's memory: nothing
//! in it is believed beyond its bounds.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{fence, AtomicU16, AtomicU64, AtomicU8, Ordering::*};
use std::sync::Arc;

use crate::error::{ensure, Result};
use crate::mapping::Mapping;

const HEADER: usize = 16;
const ENTRY: usize = 16;
const ALIGN: usize = 64;
const VERSION: u16 = 1;

/// Bytes of one queue's part.
pub fn queue_bytes(queue_size: u16) -> u64 {
    ((HEADER + ENTRY * queue_size as usize).div_ceil(ALIGN) * ALIGN) as u64
}

/// A mapped region for some queues of one size.
#[derive(Debug)]
pub struct InflightRegion {
    mapping: Mapping,
    queues: u16,
    queue_size: u16,
}

impl InflightRegion {
    /// Map a region.
    pub fn new(fd: BorrowedFd<'_>, offset: u64, size: u64, queues: u16, queue_size: u16) -> Result<Self> {
        let needed = queue_bytes(queue_size) * u64::from(queues);
        ensure(size >= needed && queue_size > 0, || {
            format!("an in-flight region of {size} bytes; {queues} queues of {queue_size} need {needed}")
        })?;
        Ok(InflightRegion { mapping: Mapping::shared(fd, offset, size, true)?, queues, queue_size })
    }

    /// The part of queue `index`, if the region has one that is large enough.
    pub fn queue(self: &Arc<Self>, index: u16, size: u16) -> Option<QueueInflight> {
        if index >= self.queues || size > self.queue_size {
            return None;
        }
        // SAFETY: `new` checked that all queues fit.
        let base =
            unsafe { self.mapping.as_ptr().add(queue_bytes(self.queue_size) as usize * index as usize) };
        // Entries are read as u64 atomics: an offset that is not 8-aligned cannot be served.
        (base as usize).is_multiple_of(8).then(|| QueueInflight {
            base,
            size,
            counter: 0,
            batch: Vec::with_capacity(size as usize),
            _region: self.clone(),
        })
    }
}

/// One queue's part. Owned by the queue's worker.
#[derive(Debug)]
pub struct QueueInflight {
    base: *mut u8,
    size: u16,
    counter: u64,
    batch: Vec<u16>,
    _region: Arc<InflightRegion>,
}

// SAFETY: `base` leads into `_region`, whose mapping is Send and lives as long.
unsafe impl Send for QueueInflight {}

impl QueueInflight {
    #[inline(always)]
    fn half(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: offset < HEADER or within an entry below `size`; 2-aligned since `base` is 8-aligned.
        unsafe { AtomicU16::from_ptr(self.base.add(offset).cast()) }
    }

    fn version(&self) -> &AtomicU16 {
        self.half(8)
    }

    fn last_batch_head(&self) -> &AtomicU16 {
        self.half(12)
    }

    fn used_idx(&self) -> &AtomicU16 {
        self.half(14)
    }

    #[inline(always)]
    fn entry(&self, head: u16) -> usize {
        debug_assert!(head < self.size);
        HEADER + ENTRY * head as usize
    }

    #[inline(always)]
    fn held(&self, head: u16) -> &AtomicU8 {
        // SAFETY: the entry lies in the region, see `queue`.
        unsafe { AtomicU8::from_ptr(self.base.add(self.entry(head))) }
    }

    #[inline(always)]
    fn next(&self, head: u16) -> &AtomicU16 {
        self.half(self.entry(head) + 6)
    }

    #[inline(always)]
    fn order(&self, head: u16) -> &AtomicU64 {
        // SAFETY: 8-aligned, inside of the entry.
        unsafe { AtomicU64::from_ptr(self.base.add(self.entry(head) + 8).cast()) }
    }

    /// Start or recover. A fresh region (version 0) takes its used index from the ring (trap T8).
    ///
    /// :returns: whether the region was in use before, and the heads to run again, oldest first.
    pub fn recover(&mut self, ring_used_idx: u16) -> (bool, Vec<u16>) {
        if self.version().load(Acquire) != VERSION {
            self.half(10).store(self.size, Relaxed);
            self.used_idx().store(ring_used_idx, Relaxed);
            (0..self.size).for_each(|head| self.held(head).store(0, Relaxed));
            self.version().store(VERSION, Release);
            return (false, Vec::new());
        }
        self.finish_last_batch(ring_used_idx);
        // each order is read once: a front end may change them while they are sorted
        let heads = (0..self.size).filter(|head| self.held(*head).load(Relaxed) != 0);
        let mut held: Vec<(u64, u16)> = heads.map(|head| (self.order(head).load(Relaxed), head)).collect();
        held.sort_unstable();
        self.counter = held.last().map_or(0, |(order, _)| order.wrapping_add(1));
        (true, held.into_iter().map(|(_, head)| head).collect())
    }

    /// Death came between `used.idx` and the clearing of the batch: clear it now.
    fn finish_last_batch(&mut self, ring_used_idx: u16) {
        let batch = ring_used_idx.wrapping_sub(self.used_idx().load(Acquire));
        let mut head = self.last_batch_head().load(Relaxed);
        for _ in 0..batch.min(self.size) {
            if head >= self.size {
                break;
            }
            self.held(head).store(0, Relaxed);
            head = self.next(head).load(Relaxed);
        }
        self.used_idx().store(ring_used_idx, Release);
    }

    /// A request was popped: mark it before anything is done about it.
    #[inline(always)]
    pub fn take(&mut self, head: u16) {
        self.order(head).store(self.counter, Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.held(head).store(1, Release);
    }

    /// A request was put on the used ring (not yet published).
    #[inline(always)]
    pub fn complete(&mut self, head: u16) {
        let previous = self.last_batch_head().load(Relaxed);
        self.next(head).store(previous, Relaxed);
        self.last_batch_head().store(head, Release);
        self.batch.push(head);
    }

    /// `used.idx` was published: the batch is no longer ours.
    #[inline(always)]
    pub fn published(&mut self, ring_used_idx: u16) {
        fence(Release);
        for index in 0..self.batch.len() {
            self.held(self.batch[index]).store(0, Relaxed);
        }
        self.batch.clear();
        self.used_idx().store(ring_used_idx, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};

    fn region(queues: u16, size: u16) -> Arc<InflightRegion> {
        // SAFETY: plain system calls; the fd is owned here.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"inflight".as_ptr(), libc::MFD_CLOEXEC)) };
        let file = std::fs::File::from(fd);
        let bytes = queue_bytes(size) * u64::from(queues);
        file.set_len(bytes).unwrap();
        Arc::new(InflightRegion::new(file.as_fd(), 0, bytes, queues, size).unwrap())
    }

    #[test]
    fn a_fresh_region_takes_its_used_index_from_the_ring() {
        let region = region(2, 8);
        let mut queue = region.queue(1, 8).unwrap();
        assert_eq!(queue.recover(41), (false, vec![]));
        assert_eq!(queue.used_idx().load(Relaxed), 41);
        assert!(region.queue(2, 8).is_none());
        assert!(region.queue(0, 16).is_none());
    }

    #[test]
    fn requests_come_back_in_the_order_they_were_taken() {
        let region = region(1, 8);
        let mut queue = region.queue(0, 8).unwrap();
        queue.recover(0);
        [5, 2, 7, 1].into_iter().for_each(|head| queue.take(head));
        queue.complete(2);
        queue.published(1);
        let mut again = region.queue(0, 8).unwrap();
        assert_eq!(again.recover(1), (true, vec![5, 7, 1]));
        again.take(3);
        assert_eq!(region.queue(0, 8).unwrap().recover(1).1, [5, 7, 1, 3]);
    }

    #[test]
    fn death_between_used_idx_and_the_clearing_loses_nothing_and_repeats_nothing() {
        let region = region(1, 8);
        let mut queue = region.queue(0, 8).unwrap();
        queue.recover(0);
        [0, 1, 2, 3].into_iter().for_each(|head| queue.take(head));
        queue.complete(0);
        queue.published(1);
        queue.complete(2);
        queue.complete(3);
        // used.idx was stored (3), `published` never ran
        assert_eq!(region.queue(0, 8).unwrap().recover(3), (true, vec![1]));
    }

    #[test]
    fn a_hostile_batch_list_ends() {
        let region = region(1, 8);
        let mut queue = region.queue(0, 8).unwrap();
        queue.recover(0);
        queue.last_batch_head().store(3, Relaxed);
        queue.next(3).store(3, Relaxed);
        queue.recover(60_000);
        queue.last_batch_head().store(60_000, Relaxed);
        assert_eq!(queue.recover(1).1, Vec::<u16>::new());
    }
}
