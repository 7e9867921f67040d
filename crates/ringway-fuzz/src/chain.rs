//! Descriptor chains: any table gives spans inside of guest memory, or an error, and soon.

use arbitrary::{Arbitrary, Unstructured};
use ringway_core::memory::MemoryMap;
use ringway_core::vring::{Chain, RingAddresses, Vring, MAX_CHAIN_BYTES};

use crate::guest::Piece;
use crate::script::{Address, Descriptor, PIECE, PIECES, TABLES};

const AVAILABLE: usize = 0x1000;
const USED: usize = 0x2000;

#[derive(Arbitrary, Debug)]
struct Input {
    ring: u8,
    event_idx: bool,
    start: u16,
    ahead: u16,
    heads: Vec<u8>,
    descriptors: Vec<Descriptor>,
    tables: Vec<Descriptor>,
    pokes: Vec<(Address, [u8; 8])>,
}

struct Guest {
    pieces: Vec<Piece>,
    map: MemoryMap,
}

thread_local! {
    static GUEST: Guest = {
        let pieces: Vec<Piece> = PIECES.iter().map(|address| Piece::new(*address, PIECE)).collect();
        let map = MemoryMap::new(pieces.iter().map(|piece| piece.region.clone()).collect());
        Guest { map: map.expect("regions that do not overlap"), pieces }
    };
}

/// Run one input.
pub fn run(data: &[u8]) {
    if let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) {
        GUEST.with(|guest| guest.play(&input));
    }
}

impl Guest {
    fn play(&self, input: &Input) {
        let size = 1u16 << (input.ring % 5);
        self.write(input, size);
        // SAFETY: inside of the first piece, which stays mapped; aligned.
        let at = |offset: usize| unsafe { self.map.user(0, PIECE).expect("the first piece").add(offset) };
        let at = RingAddresses { descriptors: at(0), available: at(AVAILABLE), used: at(USED) };
        // SAFETY: as above; a ring of 16 entries fits.
        let mut ring = unsafe { Vring::new(at, size, input.start, input.event_idx) };
        let mut chain = Chain::default();
        let waiting = ring.available();
        for _ in 0..waiting.unwrap_or(0) {
            let before = ring.next_available();
            let Ok(head) = ring.pop(&self.map, &mut chain) else {
                assert_eq!(ring.next_available(), before, "a chain that was refused was not popped");
                break;
            };
            assert!(head < size);
            self.check(&chain);
            ring.push_used(head, chain.writable_bytes as u32);
        }
        let (offset, len) = ring.publish();
        assert!(offset >= 4 && offset + len <= Vring::used_bytes(size));
        ring.wants_signal();
        ring.suppress_kicks();
        let _ = ring.ask_for_kick();
    }

    fn write(&self, input: &Input, size: u16) {
        self.pieces.iter().for_each(|piece| piece.bytes().fill(0));
        let memory = self.pieces[0].bytes();
        let index = input.start.wrapping_add(input.ahead % (size + 2));
        memory[AVAILABLE + 2..AVAILABLE + 4].copy_from_slice(&index.to_le_bytes());
        for (slot, head) in input.heads.iter().take(size.into()).enumerate() {
            memory[AVAILABLE + 4 + 2 * slot] = *head;
        }
        for (slot, descriptor) in input.descriptors.iter().take(size.into()).enumerate() {
            memory[16 * slot..][..16].copy_from_slice(&descriptor.bytes());
        }
        for (slot, descriptor) in input.tables.iter().take(1024).enumerate() {
            memory[TABLES as usize + 16 * slot..][..16].copy_from_slice(&descriptor.bytes());
        }
        for (address, bytes) in &input.pokes {
            for piece in &self.pieces {
                if let Some(offset) = piece.offset(address.0, 8) {
                    piece.bytes()[offset..offset + 8].copy_from_slice(bytes);
                }
            }
        }
    }

    /// Spans lie inside, add up, and can be read.
    fn check(&self, chain: &Chain) {
        let inside = |span: &ringway_core::memory::IoVec| {
            self.pieces.iter().any(|piece| piece.holds(span.base, span.len))
        };
        assert!(chain.spans.iter().all(inside), "{chain:?}");
        let sum = |spans: &[ringway_core::memory::IoVec]| spans.iter().map(|span| span.len).sum::<usize>();
        assert_eq!(
            (sum(chain.readable()), sum(chain.writable())),
            (chain.readable_bytes, chain.writable_bytes)
        );
        assert!(chain.readable_bytes + chain.writable_bytes <= MAX_CHAIN_BYTES);
    }
}
