//! Commands: whatever a header says, what is planned stays inside of the store and of the guest's buffers, and what
//! is then done to the store is what was planned.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use ringway_core::action::Action;
use ringway_core::blk::{self, BlkCommand};
use ringway_core::memory::IoVec;
use ringway_core::scsi::{decode, RESPONSE_BYTES};
use ringway_core::store::{Media, Store};
use ringway_core::view::{Lun, LunState};

use crate::guest::{fenced, Piece};
use crate::script::Command;

const SIZE: usize = 0x8000;
/// Data of one request at most.
const MOST: usize = 0x3000;

#[derive(Arbitrary, Debug)]
struct Input {
    scsi: bool,
    null: bool,
    size: u16,
    large_blocks: bool,
    writeback: bool,
    command: Command,
    cuts: (u16, u16),
    out: u16,
    room: u16,
    content: Vec<u8>,
}

struct Bench {
    store: Arc<Store>,
    buffers: Piece,
}

thread_local! {
    static BENCH: Bench = Bench {
        store: fenced(|| Arc::new(Store::ram(SIZE as u64).expect("memory")), |store| (bytes(store).as_mut_ptr(), SIZE)),
        buffers: Piece::new(0, 0x8000),
    };
}

#[allow(clippy::mut_from_ref)]
fn bytes(store: &Store) -> &mut [u8] {
    let Media::Memory { mapping, .. } = store.media() else { unreachable!("a store in memory") };
    // SAFETY: the whole of a mapping that lives as long as the store; one thread.
    unsafe { std::slice::from_raw_parts_mut(mapping.as_ptr(), mapping.len()) }
}

/// Run one input.
pub fn run(data: &[u8]) {
    if let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) {
        BENCH.with(|bench| bench.play(&input));
    }
}

impl Bench {
    fn play(&self, input: &Input) {
        let shift = if input.large_blocks { 12 } else { 9 };
        // a store that forgets may be of any size; its end need not be a block's
        let store = if input.null { Arc::new(Store::null(input.size.into())) } else { self.store.clone() };
        let state = Arc::new(LunState::new(0, 0, 1));
        let lun = Lun { state, store, block_shift: shift, file_slot: None, serial: [0; 20] };
        let (out, room) = (usize::from(input.out) % MOST, usize::from(input.room) % MOST);
        let spans = self.spans(input, out, room);
        let Some((action, skip)) = plan(input, &lun, &spans, out, room) else { return };
        check(&action, &lun, out, room, skip);
        if input.null {
            return action.run(&lun.store, &spans[1]).expect("a store that forgets");
        }
        let spans =
            if matches!(action, Action::Transfer { write: true, .. }) { &spans[0] } else { &spans[1] };
        let expected = expect(&action, bytes(&self.store), spans);
        action.run(&self.store, spans).expect("a store in memory");
        assert!(bytes(&self.store) == expected, "{action:?}");
    }

    /// Readable and writable spans behind which nothing may be touched, cut in two each.
    fn spans(&self, input: &Input, out: usize, room: usize) -> [Vec<IoVec>; 2] {
        let memory = self.buffers.bytes();
        memory.fill(0xee);
        let len = header_bytes(input) + out;
        let header = if input.scsi { [0; 51].to_vec() } else { input.command.blk_header().to_vec() };
        let readable = &mut memory[0x4000 - len..0x4000];
        readable[..header.len()].copy_from_slice(&header);
        let content = &input.content[..input.content.len().min(out)];
        readable[header.len()..][..content.len()].copy_from_slice(content);
        let writable = room + if input.scsi { RESPONSE_BYTES } else { 1 };
        [cut(readable, input.cuts.0.into()), cut(&mut memory[0x8000 - writable..], input.cuts.1.into())]
    }
}

fn header_bytes(input: &Input) -> usize {
    if input.scsi {
        51
    } else {
        blk::HEADER_BYTES
    }
}

fn cut(bytes: &mut [u8], at: usize) -> Vec<IoVec> {
    let (front, back) = bytes.split_at_mut(at % (bytes.len() + 1));
    [front, back].map(|part| IoVec { base: part.as_mut_ptr(), len: part.len() }).to_vec()
}

/// The action, and how many bytes of the spans come before its data.
fn plan(
    input: &Input,
    lun: &Lun,
    spans: &[Vec<IoVec>; 2],
    out: usize,
    room: usize,
) -> Option<(Action, usize)> {
    if input.scsi {
        let command = decode(&input.command.cdb())?;
        let action = command.plan(lun, 51, &spans[0], out, room).ok()?;
        let write = matches!(action, Action::Transfer { write: true, .. });
        return Some((action, if write { 51 } else { RESPONSE_BYTES }));
    }
    match blk::plan(&input.command.blk_header(), lun, &spans[0], out, room, input.writeback).ok()? {
        BlkCommand::Identify => None,
        BlkCommand::Run(action) => {
            let write = matches!(action, Action::Transfer { write: true, .. });
            Some((action, if write { blk::HEADER_BYTES } else { 0 }))
        }
    }
}

fn check(action: &Action, lun: &Lun, out: usize, room: usize, skip: usize) {
    let inside = |offset: u64, len: u64| assert!(lun.store.contains(offset, len), "{action:?}");
    match action {
        Action::Transfer { write, offset, len, skip: skipped, .. } => {
            inside(*offset, *len as u64);
            assert!(*len <= if *write { out } else { room }, "{action:?}");
            assert_eq!(*skipped, skip);
        }
        Action::Zero { ranges, taken, .. } => {
            ranges.iter().for_each(|(offset, len)| inside(*offset, *len));
            assert!(*taken <= out);
        }
        Action::Fill { offset, len, pattern } => {
            inside(*offset, *len);
            assert!(pattern.len() <= out && len.is_multiple_of(pattern.len() as u64));
        }
        Action::Nothing | Action::Flush => {}
    }
}

/// What the store holds after an action, by the letter of it.
fn expect(action: &Action, before: &[u8], spans: &[IoVec]) -> Vec<u8> {
    let mut after = before.to_vec();
    match action {
        Action::Transfer { write: true, offset, len, skip, .. } => {
            // SAFETY: the spans lie in the bench's buffers, which nobody changes.
            let parts = spans.iter().map(|span| unsafe { std::slice::from_raw_parts(span.base, span.len) });
            let all: Vec<u8> = parts.flatten().copied().collect();
            after[*offset as usize..][..*len].copy_from_slice(&all[*skip..*skip + *len]);
        }
        Action::Zero { ranges, .. } => {
            ranges.iter().for_each(|(offset, len)| after[*offset as usize..][..*len as usize].fill(0));
        }
        Action::Fill { offset, len, pattern } => {
            let place = &mut after[*offset as usize..][..*len as usize];
            place.chunks_mut(pattern.len()).for_each(|part| part.copy_from_slice(pattern));
        }
        _ => {}
    }
    after
}
