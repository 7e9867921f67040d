//! Whatever a guest writes into a ring: no panic, and no span outside of its memory.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use ringway_core::memory::{MemoryMap, Region};
use ringway_core::vring::{Chain, RingAddresses, Vring, MAX_CHAIN_BYTES};

const SIZE: u16 = 8;
const REGION: u64 = 0x10000;
const SECOND: u64 = 0x40000;
const AVAILABLE: usize = 0x1000;
const USED: usize = 0x2000;

/// Two regions with a gap between them; rings lie in the first.
struct Guest {
    map: MemoryMap,
    base: *mut u8,
    second: *mut u8,
}

impl Guest {
    fn new() -> Self {
        // SAFETY: plain system calls; the fd is owned here.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
        let file = std::fs::File::from(fd);
        file.set_len(2 * REGION).unwrap();
        let region = |gpa, offset| Arc::new(Region::new(file.as_fd(), gpa, REGION, gpa, offset).unwrap());
        let map = MemoryMap::new(vec![region(0, 0), region(SECOND, REGION)]).unwrap();
        let (base, second) = (map.user(0, REGION).unwrap(), map.user(SECOND, REGION).unwrap());
        Guest { map, base, second }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= REGION as usize);
        // SAFETY: inside the first region.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(at), bytes.len()) };
    }

    fn ring(&self, next_available: u16) -> Vring {
        // SAFETY: inside the first region.
        let at = |offset: usize| unsafe { self.base.add(offset) };
        let at = RingAddresses { descriptors: at(0), available: at(AVAILABLE), used: at(USED) };
        // SAFETY: mapped and aligned, for as long as the guest lives.
        unsafe { Vring::new(at, SIZE, next_available, true) }
    }

    fn holds(&self, base: *mut u8, len: usize) -> bool {
        [self.base, self.second].iter().any(|region| {
            let start = base as usize;
            start >= *region as usize && start + len <= *region as usize + REGION as usize
        })
    }
}

/// Addresses in, at the edges of, and outside of the regions.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..REGION,
        REGION - 32..REGION + 32,
        SECOND - 32..SECOND + 32,
        SECOND..SECOND + REGION,
        any::<u64>(),
        u64::MAX - 32..=u64::MAX,
    ]
}

fn descriptor() -> impl Strategy<Value = [u8; 16]> {
    let len = prop_oneof![0u32..64, 0..0x20000u32, any::<u32>(), (0u32..70).prop_map(|n| 16 * n)];
    (address(), len, 0u16..8, prop_oneof![0..SIZE + 2, any::<u16>()]).prop_map(
        |(address, len, flags, next)| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&address.to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&next.to_le_bytes());
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_table_gives_spans_inside_guest_memory_or_an_error(
        table in vec(descriptor(), SIZE as usize),
        indirect in vec(descriptor(), 64),
        heads in vec(prop_oneof![0..SIZE + 1, any::<u16>()], SIZE as usize),
        start in any::<u16>(),
        ahead in 0..SIZE + 3,
    ) {
        let guest = Guest::new();
        guest.write(0, &table.concat());
        guest.write(0x4000, &indirect.concat());
        let heads: Vec<u8> = heads.iter().flat_map(|head| head.to_le_bytes()).collect();
        guest.write(AVAILABLE + 2, &start.wrapping_add(ahead).to_le_bytes());
        guest.write(AVAILABLE + 4, &heads);
        let (mut ring, mut chain) = (guest.ring(start), Chain::default());
        let waiting = ring.available();
        prop_assert_eq!(waiting.is_ok(), ahead <= SIZE);
        for _ in 0..waiting.unwrap_or(0) {
            let before = ring.next_available();
            match ring.pop(&guest.map, &mut chain) {
                Ok(head) => {
                    prop_assert!(head < SIZE);
                    prop_assert!(chain.spans.iter().all(|span| guest.holds(span.base, span.len)));
                    let readable: usize = chain.readable().iter().map(|span| span.len).sum();
                    let writable: usize = chain.writable().iter().map(|span| span.len).sum();
                    prop_assert_eq!((readable, writable), (chain.readable_bytes, chain.writable_bytes));
                    prop_assert!(readable + writable <= MAX_CHAIN_BYTES);
                }
                Err(_) => {
                    prop_assert_eq!(ring.next_available(), before, "a chain that was refused was not popped");
                    break;
                }
            }
        }
    }
}
