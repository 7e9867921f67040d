//! Our ring beside rust-vmm's `virtio-queue`: over the same bytes both pop the same chains, write the same used rings
//! and ask for kicks alike. Where they differ they do so by design:
//!
//! * What the oracle cuts short we refuse: an index outside of the table, a loop, a table in a table, a table of a length
//!   that is no multiple of a descriptor's, and more than 4 GiB.
//! * We also refuse what the oracle leaves to its users: buffers and tables outside of memory (the oracle reads a table
//!   entry by entry, so that one may leave its region), a table that is empty, chained, longer than 1024 entries or not
//!   8-aligned, a readable buffer behind a writable one, more than 64 MiB.
//! * The first interrupt after a start is always sent, and `VIRTQ_AVAIL_F_NO_INTERRUPT` is heeded; the oracle computes
//!   the first decision as any other, and knows no flag.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use ringway_core::memory::{MemoryMap, Region};
use ringway_core::vring::{Chain, RingAddresses, RingError, Vring, MAX_CHAIN_BYTES, MAX_INDIRECT};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const REGION: u64 = 0x4000;
/// Two regions that touch, a gap, and one more.
const REGIONS: [u64; 3] = [0, REGION, 0x10000];
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const TABLES: u64 = 0x3000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NO_INTERRUPT: u16 = 1;

/// A buffer as a driver describes it: address, length, whether the device writes it.
type Buffer = (u64, u32, bool);

/// One chain as each of them saw it.
struct Popped {
    ours: Result<(u16, Vec<Buffer>), RingError>,
    /// The oracle's head.
    head: u16,
    theirs: Vec<Buffer>,
    /// The oracle's chain ends before its end.
    cut: bool,
}

/// The same guest twice.
struct Twins {
    ours: MemoryMap,
    ring: Vring,
    chain: Chain,
    theirs: GuestMemoryMmap,
    queue: Queue,
    size: u16,
    event_idx: bool,
}

impl Twins {
    fn new(size: u16, start: u16, event_idx: bool) -> Self {
        // SAFETY: plain system calls; the fd is owned here.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
        let file = std::fs::File::from(fd);
        file.set_len(3 * REGION).unwrap();
        let region = |(n, gpa): (usize, u64)| {
            Arc::new(Region::new(file.as_fd(), gpa, REGION, gpa, n as u64 * REGION).unwrap())
        };
        let ours = MemoryMap::new(REGIONS.into_iter().enumerate().map(region).collect()).unwrap();
        let theirs = REGIONS.map(|gpa| (GuestAddress(gpa), REGION as usize));
        let theirs = GuestMemoryMmap::from_ranges(&theirs).unwrap();
        let at = |address| ours.user(address, 1).unwrap();
        let at = RingAddresses { descriptors: at(0), available: at(AVAILABLE), used: at(USED) };
        let mut queue = Queue::new(size).unwrap();
        queue.set_desc_table_address(Some(0), None);
        queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
        queue.set_used_ring_address(Some(USED as u32), None);
        queue.set_event_idx(event_idx);
        queue.set_next_avail(start);
        queue.set_next_used(start);
        queue.set_ready(true);
        let start = start.to_le_bytes();
        // SAFETY: the used ring, in our own mapping.
        unsafe { std::ptr::copy_nonoverlapping(start.as_ptr(), at.used.add(2), 2) };
        theirs.write_slice(&start, GuestAddress(USED + 2)).unwrap();
        // SAFETY: mapped and aligned for as long as `ours` lives.
        let ring = unsafe { Vring::new(at, size, u16::from_le_bytes(start), event_idx) };
        Twins { ours, ring, chain: Chain::default(), theirs, queue, size, event_idx }
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let place = self.ours.user(address, bytes.len() as u64).expect("an address of the test");
        // SAFETY: mapped, and nobody else looks.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        self.theirs.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn write_u16(&self, address: u64, value: u16) {
        self.write(address, &value.to_le_bytes());
    }

    fn descriptor(&self, address: u64, (buffer, len, flags, next): (u64, u32, u16, u16)) {
        let rest = [&len.to_le_bytes()[..], &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        self.write(address, &[&buffer.to_le_bytes()[..], &rest].concat());
    }

    fn same_memory(&self) {
        for gpa in REGIONS {
            let mut theirs = vec![0; REGION as usize];
            self.theirs.read_slice(&mut theirs, GuestAddress(gpa)).unwrap();
            let ours = self.ours.user(gpa, REGION).unwrap();
            // SAFETY: the whole of a region, and nobody else looks.
            assert!(unsafe { std::slice::from_raw_parts(ours, REGION as usize) } == theirs, "at {gpa:#x}");
        }
    }

    /// Pop from both, where something waits.
    fn pop(&mut self) -> Popped {
        let ours = self.ring.pop(&self.ours, &mut self.chain);
        let chain = self.queue.iter(&self.theirs).unwrap().next().expect("a chain that was offered");
        let (head, found): (u16, Vec<_>) = (chain.head_index(), chain.collect());
        Popped {
            ours: ours.map(|head| (head, self.buffers())),
            head,
            cut: found.last().is_none_or(|last| last.has_next()),
            theirs: found.iter().map(|found| (found.addr().0, found.len(), found.is_write_only())).collect(),
        }
    }

    /// Our spans in the guest's words.
    fn buffers(&self) -> Vec<Buffer> {
        let spans = self.chain.spans.iter().enumerate();
        let words = spans.map(|(n, span)| {
            let address = if span.len > 0 { self.ours.guest_address(span.base).unwrap() } else { 0 };
            (address, span.len as u32, n >= self.chain.readable)
        });
        words.collect()
    }
}

/// Without empty buffers, and cut where regions meet: what can be compared.
fn comparable(buffers: &[Buffer]) -> Vec<Buffer> {
    let mut parts = Vec::new();
    for &(mut address, mut len, write) in buffers {
        while len > 0 {
            let part = u64::from(len).min(REGION - address % REGION) as u32;
            parts.push((address, part, write));
            (address, len) = (address.wrapping_add(part.into()), len - part);
        }
    }
    parts
}

// ---- a driver that keeps the rules

#[derive(Clone, Debug)]
struct Request {
    buffers: Vec<Buffer>,
    indirect: bool,
}

#[derive(Clone, Debug)]
struct Round {
    requests: Vec<Request>,
    /// Which of the requests under way is completed next.
    completions: Vec<u8>,
    /// How far behind the used index the driver wants its next interrupt.
    used_event: u16,
    no_interrupt: bool,
    sleep: bool,
}

fn buffer(write: bool) -> impl Strategy<Value = Buffer> {
    let address = prop_oneof![
        REGION..2 * REGION - 2048,
        REGIONS[2]..REGIONS[2] + REGION - 2048,
        REGION - 256..REGION + 256,
    ];
    (address, 0u32..2048).prop_map(move |(address, len)| (address, len, write))
}

fn request() -> impl Strategy<Value = Request> {
    let buffers = (vec(buffer(false), 0..3), vec(buffer(true), 0..3));
    let buffers = buffers.prop_map(|(out, room)| [out, room].concat());
    let buffers = buffers.prop_filter("a chain has a descriptor", |buffers| !buffers.is_empty());
    (buffers, any::<bool>()).prop_map(|(buffers, indirect)| Request { buffers, indirect })
}

fn round() -> impl Strategy<Value = Round> {
    (vec(request(), 0..6), vec(any::<u8>(), 0..8), 0u16..6, any::<bool>(), any::<bool>()).prop_map(
        |(requests, completions, used_event, no_interrupt, sleep)| Round {
            requests,
            completions,
            used_event,
            no_interrupt,
            sleep,
        },
    )
}

/// What the driver knows: descriptors that are free, and requests under way (head, descriptors, bytes of room).
struct Driver {
    free: Vec<u16>,
    under_way: Vec<(u16, Vec<u16>, u32)>,
    available: u16,
    used: u16,
    signalled_before: bool,
}

impl Driver {
    fn new(size: u16, start: u16) -> Self {
        let free = (0..size).rev().collect();
        Driver { free, under_way: Vec::new(), available: start, used: start, signalled_before: false }
    }

    /// Offer a request and let both pop it.
    fn request(&mut self, twins: &mut Twins, request: &Request) {
        let needed = if request.indirect { 1 } else { request.buffers.len() };
        if self.free.len() < needed {
            return;
        }
        let taken: Vec<u16> = self.free.drain(self.free.len() - needed..).rev().collect();
        self.describe(twins, request, &taken);
        let slot = u64::from(self.available % twins.size);
        twins.write_u16(AVAILABLE + 4 + 2 * slot, taken[0]);
        self.available = self.available.wrapping_add(1);
        twins.write_u16(AVAILABLE + 2, self.available);
        assert_eq!(twins.ring.available(), Ok(1));
        let popped = twins.pop();
        let (head, ours) = popped.ours.expect("a request that makes sense");
        assert_eq!((head, comparable(&ours)), (taken[0], comparable(&request.buffers)));
        assert_eq!((popped.head, &popped.theirs, popped.cut), (taken[0], &request.buffers, false));
        assert_eq!(twins.ring.next_available(), twins.queue.next_avail());
        assert_eq!(twins.ring.available(), Ok(0));
        self.under_way.push((taken[0], taken, twins.chain.writable_bytes as u32));
    }

    fn describe(&self, twins: &Twins, request: &Request, taken: &[u16]) {
        let table = TABLES + 64 * u64::from(taken[0]);
        let last = request.buffers.len() - 1;
        for (n, &(address, len, write)) in request.buffers.iter().enumerate() {
            let flags = if write { WRITE } else { 0 } | if n < last { NEXT } else { 0 };
            let (place, next) = match request.indirect {
                true => (table + 16 * n as u64, n as u16 + 1),
                false => (16 * u64::from(taken[n]), taken.get(n + 1).copied().unwrap_or(0)),
            };
            twins.descriptor(place, (address, len, flags, next));
        }
        if request.indirect {
            let len = 16 * request.buffers.len() as u32;
            twins.descriptor(16 * u64::from(taken[0]), (table, len, INDIRECT, 0));
        }
    }

    /// Complete some, in any order, publish, and decide on an interrupt.
    fn complete(&mut self, twins: &mut Twins, round: &Round) {
        let used_event = self.used.wrapping_add(round.used_event);
        twins.write_u16(AVAILABLE + 4 + 2 * u64::from(twins.size), used_event);
        twins.write_u16(AVAILABLE, if round.no_interrupt { NO_INTERRUPT } else { 0 });
        let first = self.used;
        for place in &round.completions {
            if self.under_way.is_empty() {
                break;
            }
            let (head, taken, len) = self.under_way.remove(usize::from(*place) % self.under_way.len());
            twins.ring.push_used(head, len);
            twins.queue.add_used(&twins.theirs, head, len).unwrap();
            self.used = self.used.wrapping_add(1);
            self.free.extend(taken);
        }
        assert_eq!(twins.ring.has_unpublished(), first != self.used);
        if first == self.used {
            return;
        }
        twins.ring.publish();
        let (ours, theirs) =
            (twins.ring.wants_signal(), twins.queue.needs_notification(&twins.theirs).unwrap());
        let expected = match twins.event_idx {
            true => theirs || !self.signalled_before,
            false => theirs && !round.no_interrupt,
        };
        assert_eq!(ours, expected);
        self.signalled_before = true;
    }

    fn round(&mut self, twins: &mut Twins, round: &Round) {
        twins.ring.suppress_kicks();
        twins.queue.disable_notification(&twins.theirs).unwrap();
        round.requests.iter().for_each(|request| self.request(twins, request));
        self.complete(twins, round);
        if round.sleep {
            let asked = twins.queue.enable_notification(&twins.theirs).unwrap();
            assert_eq!(twins.ring.ask_for_kick(), Ok(asked));
        }
        twins.same_memory();
    }
}

// ---- a driver that keeps none

/// What a table can say: addresses in, at the edges of, and outside of the regions.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![
        6 => 0..2 * REGION,
        2 => REGION - 32..REGION + 32,
        2 => 2 * REGION - 32..2 * REGION + 32,
        1 => any::<u64>(),
        4 => (0u64..64).prop_map(|n| TABLES + 16 * n),
        1 => Just(REGIONS[2] + REGION - 32),
    ];
    let len = prop_oneof![4 => 0u32..64, 4 => (0u32..6).prop_map(|n| 16 * n), 1 => any::<u32>()];
    let flags = prop_oneof![3 => Just(0u16), 6 => Just(NEXT), 4 => Just(WRITE), 4 => Just(NEXT | WRITE), 3 => 0u16..16];
    (address, len, flags, prop_oneof![8 => 0u16..8, 1 => any::<u16>()])
}

/// Why the oracle, too, has no whole chain (`cut`), or why we want no part of what it has.
fn is_reason(error: RingError, head: u16, theirs: &[Buffer], cut: bool, twins: &Twins) -> bool {
    let mapped = |(address, len, _): &Buffer| twins.ours.append(*address, *len, &mut 0, &mut Vec::new());
    let total: u64 = theirs.iter().map(|buffer| u64::from(buffer.1)).sum();
    let first_written = theirs.iter().position(|(_, len, write)| *write && *len > 0);
    match error {
        RingError::BadIndex(_) | RingError::Loop(_) => cut,
        RingError::Indirect(_) => cut || twins.table_of(head).is_some_and(|table| twins.is_strange(table)),
        RingError::Unmapped(..) => cut || !theirs.iter().all(mapped),
        RingError::Order(_) => {
            first_written.is_some_and(|first| theirs[first..].iter().any(|buffer| !buffer.2))
        }
        RingError::TooLarge(_) => total > MAX_CHAIN_BYTES as u64,
        RingError::IndexJump(_) | RingError::Duplicate(_) => false,
    }
}

type Entry = (u64, u32, u16, u16);

impl Twins {
    /// The descriptor that leads from the ring's table to an indirect one.
    fn table_of(&self, head: u16) -> Option<Entry> {
        let mut index = head;
        for _ in 0..self.size {
            let entry = self.entry(16 * u64::from(index));
            if entry.2 & INDIRECT != 0 {
                return Some(entry);
            }
            index = entry.3;
        }
        None
    }

    /// Whether the oracle takes such a table and we do not.
    fn is_strange(&self, (address, len, flags, _): Entry) -> bool {
        let whole = self.ours.user(address, len.into()).is_some();
        flags & NEXT != 0 || len as usize > 16 * MAX_INDIRECT || address % 8 != 0 || !whole
    }

    fn entry(&self, address: u64) -> Entry {
        let mut bytes = [0; 16];
        self.theirs.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let address = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        (address, u32::from_le_bytes(bytes[8..12].try_into().unwrap()), word(12), word(14))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn what_a_driver_offers_is_popped_and_given_back_as_the_oracle_does(
        size in 0u32..5,
        start in prop_oneof![any::<u16>(), 65500u16..=65535],
        event_idx in any::<bool>(),
        rounds in vec(round(), 1..12),
    ) {
        let size = 1 << size;
        let mut twins = Twins::new(size, start, event_idx);
        twins.write_u16(AVAILABLE + 2, start);
        let mut driver = Driver::new(size, start);
        rounds.iter().for_each(|round| driver.round(&mut twins, round));
    }

    #[test]
    fn what_we_pop_the_oracle_pops_and_what_we_refuse_has_a_reason(
        table in vec(descriptor(), 8),
        tables in vec(descriptor(), 64),
        heads in vec(prop_oneof![8 => 0u16..8, 1 => any::<u16>()], 8),
        start in any::<u16>(),
        ahead in 0u16..12,
    ) {
        let mut twins = Twins::new(8, start, false);
        for (n, entry) in table.into_iter().enumerate() {
            twins.descriptor(16 * n as u64, entry);
        }
        for (n, entry) in tables.into_iter().enumerate() {
            twins.descriptor(TABLES + 16 * n as u64, entry);
        }
        for (n, head) in heads.iter().enumerate() {
            twins.write_u16(AVAILABLE + 4 + 2 * n as u64, *head);
        }
        twins.write_u16(AVAILABLE + 2, start.wrapping_add(ahead));
        let waiting = twins.ring.available();
        prop_assert_eq!(waiting.is_ok(), twins.queue.iter(&twins.theirs).is_ok(), "an index that jumps");
        for _ in 0..waiting.unwrap_or(0) {
            let Popped { ours, head, theirs, cut } = twins.pop();
            match ours {
                Ok((found, buffers)) => {
                    prop_assert!(!cut, "the oracle has no whole chain");
                    prop_assert_eq!((found, comparable(&buffers)), (head, comparable(&theirs)));
                }
                Err(error) => {
                    prop_assert!(is_reason(error, head, &theirs, cut, &twins), "{:?} of {:?}", error, theirs);
                    break;
                }
            }
        }
    }
}
