//! A worker step by step: what went wrong between two turns of its loop.

use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{sync_channel, SyncSender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_core::dirty::DirtyLog;
use ringway_core::memory::{MemoryMap, Region};
use ringway_core::poll::PollMode;
use ringway_core::slow::{SlowKind, SlowRing};
use ringway_core::store::Store;
use ringway_core::view::{Lun, LunState, LunTable, View};
use ringway_core::worker::{
    DeviceKind, EngineChoice, Mailbox, Message, QueueStart, RingLayout, Stepped, WorkerSetup,
};

const LOG_ALL: u64 = 1 << 26;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const DATA: u64 = 0x3000;
const SIZE: u64 = 0x10000;

/// A blk worker with one queue of four entries, on memory that is looked at through its file.
struct Bench {
    worker: Stepped,
    mailbox: Arc<Mailbox>,
    slow: Arc<SlowRing>,
    lun: Arc<Lun>,
    memory: File,
    log: File,
}

fn memfd(size: u64) -> File {
    // SAFETY: a plain system call; the fd is owned here.
    let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"steps".as_ptr(), libc::MFD_CLOEXEC)) };
    let file = File::from(fd);
    file.set_len(size).unwrap();
    file
}

impl Bench {
    fn new() -> Self {
        let (memory, log) = (memfd(SIZE), memfd(4096));
        let (mailbox, slow) = (Arc::new(Mailbox::new().unwrap()), Arc::new(SlowRing::new().unwrap()));
        let setup = WorkerSetup {
            kind: DeviceKind::Blk,
            queues: vec![(0, Arc::default())],
            cpu: None,
            poll: PollMode::Interrupt,
            engine: EngineChoice::Epoll,
            mailbox: mailbox.clone(),
            slow: slow.clone(),
            counters: Arc::default(),
        };
        let state = Arc::new(LunState::new(0, 0, 1));
        let store = Arc::new(Store::null(1 << 20));
        let lun = Arc::new(Lun { state, store, block_shift: 9, file_slot: None, serial: [0; 20] });
        let mut bench = Bench { worker: Stepped::new(setup).unwrap(), mailbox, slow, lun, memory, log };
        bench.set_view();
        let layout = RingLayout { size: 4, descriptors: 0, available: AVAILABLE, used: USED };
        let start =
            QueueStart { layout, base: 0, kick: None, call: None, log_address: Some(USED), inflight: None };
        bench.ask(|reply| Message::Start(0, Box::new(start), reply)).unwrap();
        bench
    }

    fn set_view(&mut self) {
        let region = Region::new(self.memory.as_fd(), 0, SIZE, 0, 0).unwrap();
        let mut luns = LunTable::default();
        luns.replace(0, 0, Some(self.lun.clone()));
        let view = View {
            memory: Arc::new(MemoryMap::new(vec![Arc::new(region)]).unwrap()),
            luns: Arc::new(luns),
            log: Some(Arc::new(DirtyLog::new(self.log.as_fd(), 0, 8).unwrap())),
            features: LOG_ALL,
            ..View::default()
        };
        self.ask(|reply| Message::View(Arc::new(view), reply));
    }

    fn ask<T>(&mut self, message: impl FnOnce(SyncSender<T>) -> Message) -> T {
        let (reply, answer) = sync_channel(1);
        self.mailbox.send(message(reply));
        self.worker.turn();
        answer.try_recv().expect("an answer in the same turn")
    }

    fn word(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read_exact_at(&mut bytes, address).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, address).unwrap();
    }

    /// A read of one sector at head 0, offered `times`.
    fn offer(&self, times: u16) {
        for (slot, (address, len, flags)) in
            [(DATA, 16u32, 1u16), (DATA + 512, 512, 3), (DATA + 1024, 1, 2)].into_iter().enumerate()
        {
            let at = 16 * slot as u64;
            self.write(at, &address.to_le_bytes());
            self.write(at + 8, &len.to_le_bytes());
            self.write(at + 12, &flags.to_le_bytes());
            self.write(at + 14, &(slot as u16 + 1).to_le_bytes());
        }
        self.write(AVAILABLE + 2, &times.to_le_bytes());
    }
}

#[test]
fn the_flags_of_a_ring_that_is_enabled_are_logged() {
    let mut bench = Bench::new();
    assert_eq!(bench.word(USED), 0);
    bench.ask(|reply| Message::Enable(0, true, reply));
    assert_eq!(bench.word(USED), 1, "kicks are not wanted while the ring is polled");
    let mut log = [0; 8];
    bench.log.read_exact_at(&mut log, 0).unwrap();
    assert_eq!(log[0], 1 << (USED / 4096));
}

#[test]
fn a_head_that_is_offered_twice_is_taken_once() {
    let mut bench = Bench::new();
    bench.ask(|reply| Message::Enable(0, true, reply));
    let lock = bench.lun.state.ranges.lock(0, 512, true, Instant::now()).unwrap();
    bench.offer(2);
    bench.worker.turn();
    let notice = bench.slow.pop(Some(Duration::ZERO)).expect("a notice");
    assert_eq!((notice.kind, notice.message.as_str()), (SlowKind::Broken, "head 0 was made available twice"));
    bench.lun.state.ranges.unlock(lock);
    bench.mailbox.send(Message::Wake);
    bench.worker.turn();
    let base = bench.ask(|reply| Message::Stop(0, Instant::now(), reply));
    assert_eq!((base, bench.word(USED + 2)), (1, 1), "what was taken was given back, and no more was taken");
}
