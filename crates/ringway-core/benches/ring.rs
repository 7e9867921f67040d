//! The price of a request on the ring alone: pop, translate, publish. Goal: at most 25 ns, hot, without dirty marking.

use std::hint::black_box;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use ringway_core::memory::{MemoryMap, Region};
use ringway_core::vring::{Chain, RingAddresses, Vring};

const SIZE: u16 = 128;
const BATCH: u16 = 32;
const MEMORY: u64 = 16 << 20;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x5000;
const TABLES: u64 = 0x10000;

struct Guest {
    map: MemoryMap,
    base: *mut u8,
}

impl Guest {
    /// `regions` equal regions; rings and buffers lie in the last one.
    fn new(regions: u64) -> Self {
        // SAFETY: plain system calls; the fd is owned here.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"bench".as_ptr(), 0)) };
        let file = std::fs::File::from(fd);
        file.set_len(MEMORY * regions).unwrap();
        let region =
            |i| Arc::new(Region::new(file.as_fd(), i * MEMORY, MEMORY, i * MEMORY, i * MEMORY).unwrap());
        let map = MemoryMap::new((0..regions).map(region).collect()).unwrap();
        let base = map.user((regions - 1) * MEMORY, MEMORY).unwrap();
        Guest { map, base }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // SAFETY: all offsets of this bench lie inside the region.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(at as usize), bytes.len()) };
    }

    fn descriptor(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    /// Header, 4 KiB of data, response: three descriptors a request.
    fn fill(&self, gpa: u64, indirect: bool) {
        for slot in 0..u64::from(SIZE / 4) {
            let (table, first) = match indirect {
                true => (TABLES + slot * 48, 0),
                false => (DESCRIPTORS + slot * 48, slot as u16 * 3),
            };
            let data = gpa + 0x100000 + slot * 8192;
            self.descriptor(table, data, 51, 1, first + 1);
            self.descriptor(table + 16, data + 64, 108, 3, first + 2);
            self.descriptor(table + 32, data + 4096, 4096, 2, 0);
            if indirect {
                self.descriptor(DESCRIPTORS + slot * 16, gpa + table, 48, 4, 0);
            }
            let head = if indirect { slot as u16 } else { first };
            for turn in 0..4 {
                self.put(AVAILABLE + 4 + 2 * (slot + turn * u64::from(SIZE / 4)), &head.to_le_bytes());
            }
        }
    }

    fn ring(&self) -> Vring {
        // SAFETY: offsets inside the region.
        let at = |offset: u64| unsafe { self.base.add(offset as usize) };
        let at = RingAddresses { descriptors: at(DESCRIPTORS), available: at(AVAILABLE), used: at(USED) };
        // SAFETY: mapped and aligned, for as long as the guest lives.
        unsafe { Vring::new(at, SIZE, 0, true) }
    }
}

fn batch(guest: &Guest, ring: &mut Vring, chain: &mut Chain, available: &mut u16) {
    *available = available.wrapping_add(BATCH);
    guest.put(AVAILABLE + 2, &available.to_le_bytes());
    for _ in 0..ring.available().unwrap() {
        let head = ring.pop(&guest.map, chain).unwrap();
        black_box(&chain.spans);
        ring.push_used(head, 4204);
    }
    ring.publish();
    black_box(ring.wants_signal());
}

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request");
    group.throughput(Throughput::Elements(BATCH.into()));
    for (name, regions, indirect) in
        [("direct", 2, false), ("indirect", 2, true), ("indirect_9_regions", 9, true)]
    {
        let guest = Guest::new(regions);
        guest.fill((regions - 1) * MEMORY, indirect);
        let (mut ring, mut chain, mut available) = (guest.ring(), Chain::default(), 0);
        group.bench_function(name, |bencher| {
            bencher.iter(|| batch(&guest, &mut ring, &mut chain, &mut available))
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
