//! A worker step by step: what went wrong between two turns of its loop.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{sync_channel, SyncSender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_core::dirty::DirtyLog;
use ringway_core::memory::{MemoryMap, Region};
use ringway_core::poll::PollMode;
use ringway_core::slow::{SlowKind, SlowRing};
use ringway_core::store::{FileOptions, Store};
use ringway_core::view::{Lun, LunState, LunTable, View};
use ringway_core::worker::{
    DeviceKind, EngineChoice, Mailbox, Message, QueueStart, RingLayout, Stepped, WorkerSetup,
};

const LOG_ALL: u64 = 1 << 26;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const DATA: u64 = 0x3000;
const SIZE: u64 = 0x10000;
const DISK: u64 = 1 << 20;
const ENTRIES: u16 = 8;
/// Kinds of request. Spec: virtio 1.3, 5.2.6.
const READ: u32 = 0;
const WRITE: u32 = 1;
const GET_ID: u32 = 8;

/// A blk worker with one queue of a few entries, on memory that is looked at through its file.
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
        Self::over(EngineChoice::Epoll, Store::null(DISK)).expect("an epoll")
    }

    /// None: this host has no such engine.
    fn over(engine: EngineChoice, store: Store) -> Option<Self> {
        let (memory, log) = (memfd(SIZE), memfd(4096));
        let (mailbox, slow) = (Arc::new(Mailbox::new().unwrap()), Arc::new(SlowRing::new().unwrap()));
        let setup = WorkerSetup {
            kind: DeviceKind::Blk,
            queues: vec![(0, Arc::default())],
            cpu: None,
            poll: PollMode::Interrupt,
            engine,
            mailbox: mailbox.clone(),
            slow: slow.clone(),
            counters: Arc::default(),
        };
        let state = Arc::new(LunState::new(0, 0, 1));
        let store = Arc::new(store);
        let lun = Arc::new(Lun { state, store, block_shift: 9, file_slot: None, serial: [0; 20] });
        let mut bench = Bench { worker: Stepped::new(setup).ok()?, mailbox, slow, lun, memory, log };
        bench.set_view();
        let layout = RingLayout { size: ENTRIES, descriptors: 0, available: AVAILABLE, used: USED };
        let start =
            QueueStart { layout, base: 0, kick: None, call: None, log_address: Some(USED), inflight: None };
        bench.ask(|reply| Message::Start(0, Box::new(start), reply)).unwrap();
        Some(bench)
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

    /// Lay out a request for sector 0 as a chain of three descriptors, the first of them `head`.
    fn lay(&self, head: u16, kind: u32, data: u64, len: u32) {
        let header = DATA + 0x1000 * u64::from(head);
        self.write(header, &kind.to_le_bytes());
        let device_writes = if kind == WRITE { 0 } else { 2 };
        let parts = [(header, 16u32, 1u16), (data, len, 1 | device_writes), (header + 16, 1, 2)];
        for (slot, (address, len, flags)) in (head..).zip(parts) {
            let at = 16 * u64::from(slot);
            self.write(at, &address.to_le_bytes());
            self.write(at + 8, &len.to_le_bytes());
            self.write(at + 12, &flags.to_le_bytes());
            self.write(at + 14, &(slot + 1).to_le_bytes());
        }
    }

    /// Make heads available, all at once.
    fn offer(&self, heads: &[u16]) {
        for (place, head) in (0..).zip(heads) {
            self.write(AVAILABLE + 4 + 2 * place, &head.to_le_bytes());
        }
        self.write(AVAILABLE + 2, &(heads.len() as u16).to_le_bytes());
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
    bench.lay(0, READ, DATA + 512, 512);
    bench.offer(&[0, 0]);
    bench.worker.turn();
    let notice = bench.slow.pop(Some(Duration::ZERO)).expect("a notice");
    assert_eq!((notice.kind, notice.message.as_str()), (SlowKind::Broken, "head 0 was made available twice"));
    bench.lun.state.ranges.unlock(lock);
    bench.mailbox.send(Message::Wake);
    bench.worker.turn();
    let base = bench.ask(|reply| Message::Stop(0, Instant::now(), reply));
    assert_eq!((base, bench.word(USED + 2)), (1, 1), "what was taken was given back, and no more was taken");
}

#[test]
fn what_is_done_is_shown_before_the_kernel_is_given_the_rest() {
    // a pipe takes what it is given there and then: it gets the used ring as it is when the kernel is entered
    let (mut end, pipe) = std::io::pipe().unwrap();
    let options = FileOptions {
        size: DISK,
        writable: true,
        direct: false,
        mapped: false,
        discard: true,
        memory_align: 1,
        offset_align: 1,
    };
    let store = Store::file(pipe.into(), options).unwrap();
    let Some(mut bench) = Bench::over(EngineChoice::Uring, store) else { return };
    bench.ask(|reply| Message::Enable(0, true, reply));
    bench.lay(0, GET_ID, DATA + 512, 20);
    bench.lay(3, WRITE, USED, 512);
    bench.offer(&[0, 3]);
    let deadline = Instant::now() + Duration::from_secs(180);
    while bench.word(USED + 2) < 2 && Instant::now() < deadline {
        bench.worker.turn();
    }
    assert_eq!(bench.word(USED + 2), 2);
    let mut written = [0; 512];
    end.read_exact(&mut written).unwrap();
    assert_eq!(u16::from_le_bytes([written[2], written[3]]), 1);
}
