//! A whole worker under a hostile driver: nothing outside of guest memory and of the disk is touched, what is written
//! is logged, what was taken is given back, and the queue beside it is served.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::mpsc::{sync_channel, Receiver};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use ringway_core::dirty::{DirtyLog, LOG_PAGE};
use ringway_core::inflight::{queue_bytes, InflightRegion};
use ringway_core::memory::MemoryMap;
use ringway_core::poll::PollMode;
use ringway_core::slow::{SlowKind, SlowRing};
use ringway_core::stats::QueueCounters;
use ringway_core::store::{FileOptions, Media, Store};
use ringway_core::view::{Lun, LunState, LunTable, View};
use ringway_core::worker::{
    Completion, DeviceKind, EngineChoice, Fence, Mailbox, Matcher, Message, QueueStart, RingLayout, Stepped,
    WorkerSetup,
};

use crate::driver::Driver;
use crate::guest::{fenced, memfd, Piece};
use crate::script::{Answer, Disk, Script, Step, PIECE, PIECES};

/// Queues: for scsi control, event, hostile, quiet.
pub const QUEUES: u16 = 4;
/// The queue whose rings and buffers the hostile ones do not know.
pub const QUIET: u16 = 3;
/// Where the quiet queue's rings and buffers lie.
pub const QUIET_PIECE: u64 = 0x7000_0000_0000;
const DISK: u64 = 0x20000;
const RING_ENTRIES: u16 = 16;
const EVENT_IDX: u64 = 1 << 29;
const LOG_ALL: u64 = 1 << 26;
const T10_PI: u64 = 1 << 3;

/// What costs too much to make anew for each input.
struct Estate {
    pieces: Vec<Piece>,
    disks: Vec<(Disk, Arc<Store>)>,
    log: (File, Arc<DirtyLog>),
    inflight: (File, Arc<InflightRegion>),
}

thread_local! {
    static ESTATE: Estate = Estate::new();
}

/// Run one input.
pub fn run(data: &[u8]) {
    if let Ok(script) = Script::arbitrary_take_rest(Unstructured::new(data)) {
        ESTATE.with(|estate| Play::new(estate, &script).run());
    }
}

impl Estate {
    fn new() -> Self {
        let mut pieces: Vec<Piece> = PIECES.iter().map(|address| Piece::new(*address, PIECE)).collect();
        pieces.push(Piece::new(QUIET_PIECE, PIECE));
        let log = memfd(LOG_PAGE);
        let marks = DirtyLog::new(log.as_fd(), 0, (PIECES[2] + PIECE) / LOG_PAGE / 8).expect("a log");
        let size = queue_bytes(RING_ENTRIES) * u64::from(QUEUES);
        let inflight = memfd(size);
        let region = InflightRegion::new(inflight.as_fd(), 0, size, QUEUES, RING_ENTRIES).expect("a region");
        let disks = [Disk::Null, Disk::Ram, Disk::Mapped, Disk::File, Disk::Aligned, Disk::ReadOnly];
        Estate {
            pieces,
            disks: disks.map(|disk| (disk, fenced(|| store(disk), mapped))).to_vec(),
            log: (log, Arc::new(marks)),
            inflight: (inflight, Arc::new(region)),
        }
    }

    fn wipe(&self) {
        self.pieces.iter().for_each(|piece| piece.bytes().fill(0));
        for (file, size) in [(&self.log.0, LOG_PAGE), (&self.inflight.0, queue_bytes(RING_ENTRIES) * 4)] {
            std::os::unix::fs::FileExt::write_all_at(file, &vec![0; size as usize], 0).expect("in the file");
        }
    }
}

fn store(disk: Disk) -> Arc<Store> {
    let options = FileOptions {
        size: DISK,
        writable: disk != Disk::ReadOnly,
        direct: false,
        mapped: disk == Disk::Mapped,
        discard: true,
        memory_align: if disk == Disk::Aligned { 512 } else { 1 },
        offset_align: if disk == Disk::Aligned { 512 } else { 1 },
    };
    Arc::new(match disk {
        Disk::Null => Store::null(DISK),
        Disk::Ram => Store::ram(DISK).expect("memory"),
        _ => Store::file(memfd(DISK).into(), options).expect("a file"),
    })
}

/// What is to be fenced of a store: a page of nobody's for those that are not mapped.
fn mapped(store: &Arc<Store>) -> (*mut u8, usize) {
    match store.media() {
        Media::Memory { mapping, .. } => (mapping.as_ptr(), mapping.len()),
        _ => {
            // SAFETY: a fresh mapping that nobody uses.
            let page = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_NONE, flags, -1, 0)
            };
            (page.cast(), 4096)
        }
    }
}

/// One input on its way.
struct Play<'a> {
    estate: &'a Estate,
    script: &'a Script,
    worker: Stepped,
    mailbox: Arc<Mailbox>,
    slow: Arc<SlowRing>,
    counters: Vec<Arc<QueueCounters>>,
    driver: Driver<'a>,
    lun: Arc<Lun>,
    view: View,
    locks: Vec<u64>,
    /// A ring lost its memory, or what a dead worker held was given to another: not all that is taken is given back.
    lossy: bool,
    /// Requests completed before the ring was started last.
    bases: Vec<(u16, u64)>,
}

impl<'a> Play<'a> {
    fn new(estate: &'a Estate, script: &'a Script) -> Self {
        estate.wipe();
        let disk = estate.disks.iter().find(|(disk, _)| *disk == script.disk).expect("a disk of each kind");
        let state = Arc::new(LunState::new(0, 0, QUEUES.into()));
        let block_shift = if script.large_blocks { 12 } else { 9 };
        let lun = Arc::new(Lun {
            state,
            store: disk.1.clone(),
            block_shift,
            file_slot: None,
            serial: *b"serial number of 20 ",
        });
        let mut luns = LunTable::default();
        luns.replace(0, 0, Some(lun.clone()));
        let view = View { luns: Arc::new(luns), writeback: script.writeback, ..View::default() };
        let counters: Vec<Arc<QueueCounters>> = (0..QUEUES).map(|_| Arc::default()).collect();
        let (worker, mailbox, slow) = hire(script, &counters);
        let driver = Driver::new(&estate.pieces, script);
        let bases = vec![(script.base, 0); QUEUES.into()];
        let mut play = Play {
            estate,
            script,
            worker,
            mailbox,
            slow,
            counters,
            driver,
            lun,
            view,
            locks: vec![],
            lossy: false,
            bases,
        };
        play.view.log = Some(estate.log.1.clone());
        play.set_features(script.features);
        play.set_memory(0xff);
        (0..QUEUES).for_each(|queue| play.start(queue, script.base));
        play
    }

    fn run(mut self) {
        for step in &self.script.steps {
            self.step(step);
        }
        self.finish();
        self.quiet_is_served();
        (0..QUEUES).for_each(|queue| {
            self.settle(queue);
        });
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Turn | Step::Doze => {
                let dozes = matches!(step, Step::Doze);
                self.watch(|play| if dozes { play.worker.doze() } else { play.worker.turn() });
            }
            Step::Answer(answer) => self.answer(answer),
            Step::Gate(word) => self.lun.state.set_gate((word & 7).into()),
            Step::Lock { start, blocks, reads } => self.lock(*start, *blocks, *reads),
            Step::Unlock => self.unlock(),
            Step::Memory(which) => self.set_memory(*which),
            Step::Features(which) => self.set_features(*which),
            Step::Event(event) => self.mailbox.send(Message::Event(*event)),
            Step::Abort(id) => self.abort(*id),
            Step::Restart(queue) => self.restart(u16::from(*queue) % QUIET),
            Step::Crash => self.crash(),
            other => self.driver.step(other),
        }
    }

    /// A turn, and: what changed in guest memory is logged where it has to be.
    fn turn(&mut self) -> bool {
        self.watch(|play| play.worker.turn())
    }

    fn watch(&mut self, work: impl FnOnce(&mut Self) -> bool) -> bool {
        if self.view.features & LOG_ALL == 0 {
            return work(self);
        }
        let before: Vec<Vec<u8>> =
            self.estate.pieces[..PIECES.len()].iter().map(|p| p.bytes().to_vec()).collect();
        let worked = work(self);
        let mut log = [0; 64];
        std::os::unix::fs::FileExt::read_at(&self.estate.log.0, &mut log, 0).expect("a file");
        for (piece, before) in self.estate.pieces.iter().zip(before) {
            let pages = piece.bytes().chunks(4096).zip(before.chunks(4096)).enumerate();
            for (page, _) in pages.filter(|(_, (now, before))| now != before) {
                let page = (piece.region.guest_address / LOG_PAGE) as usize + page;
                assert!(log[page / 8] & 1 << (page % 8) != 0, "page {page} was written and not logged");
            }
        }
        worked
    }

    // ---- the control side

    fn publish(&mut self) {
        self.view.generation += 1;
        let (reply, answer) = sync_channel(1);
        self.mailbox.send(Message::View(Arc::new(self.view.clone()), reply));
        self.turn();
        answer.try_recv().expect("the worker goes by the view");
    }

    fn set_features(&mut self, which: u8) {
        self.turn(); // what was said before is done by the old view
        let bit = |number: u8, feature: u64| if which >> number & 1 != 0 { feature } else { 0 };
        self.view.features = bit(0, EVENT_IDX) | bit(1, LOG_ALL) | bit(2, T10_PI);
        self.publish();
    }

    fn set_memory(&mut self, which: u8) {
        let chosen = self
            .estate
            .pieces
            .iter()
            .enumerate()
            .filter(|(number, _)| *number == 3 || which >> number & 1 != 0);
        let regions = chosen.map(|(_, piece)| piece.region.clone()).collect();
        self.view.memory = Arc::new(MemoryMap::new(regions).expect("regions that do not overlap"));
        self.lossy |= which & 1 == 0;
        self.publish();
    }

    fn start(&mut self, queue: u16, base: u16) {
        let (reply, answer) = sync_channel(1);
        let inflight = self.script.inflight.then(|| self.estate.inflight.1.clone());
        let at = self.driver.layout(queue);
        let log_address = (queue != QUIET).then_some(at.used);
        let start = QueueStart { layout: at, base, kick: None, call: None, log_address, inflight };
        self.mailbox.send(Message::Start(queue, Box::new(start), reply));
        let (enabled, done) = sync_channel(1);
        self.mailbox.send(Message::Enable(queue, true, enabled));
        self.bases[usize::from(queue)] = (base, self.counters[usize::from(queue)].requests.get());
        self.turn();
        done.try_recv().expect("an enabled queue");
        self.lossy |= answer.try_recv().expect("an answer").is_err();
    }

    fn lock(&mut self, start: u8, blocks: u8, reads: bool) {
        let shift = self.lun.block_shift;
        let (start, end) = (u64::from(start) << shift, (u64::from(start) + u64::from(blocks) + 1) << shift);
        self.locks.extend(self.lun.state.ranges.lock(start, end, reads, Instant::now()));
    }

    fn unlock(&mut self) {
        if let Some(handle) = self.locks.pop() {
            self.lun.state.ranges.unlock(handle);
            self.mailbox.send(Message::Wake);
        }
    }

    fn abort(&mut self, id: Option<u64>) {
        let matcher = Matcher::Hot { target: id.is_none().then_some(0), lun: None, id, instance: None };
        let (reply, _) = sync_channel(1);
        let deadline = Instant::now();
        self.mailbox.send(Message::Fence(Fence { matcher, deadline, cancel: true, before: 0, reply }));
    }

    fn answer(&mut self, answer: &Answer) {
        let Some(command) = self.slow.pop(Some(Duration::ZERO)) else { return };
        if command.kind == SlowKind::Broken {
            return self.driver.broken[usize::from(command.queue)] = true;
        }
        let completion = Completion {
            response: answer.response,
            status: answer.status,
            sense: vec![0x70; answer.sense.into()],
            data: vec![0xda; answer.data.into()],
            taken: answer.taken.map(|taken| taken as usize),
        };
        if let Some(forged) = answer.forged {
            self.mailbox.send(Message::Complete(forged, completion.clone()));
        }
        self.mailbox.send(match answer.resume && command.kind == SlowKind::Cdb {
            true => Message::Resume(command.tag),
            false => Message::Complete(command.tag, completion),
        });
    }

    /// Answer all, until nothing is held any more.
    fn finish(&mut self) {
        while !self.locks.is_empty() {
            self.unlock();
        }
        let answer =
            Answer { resume: false, response: 0, status: 0, sense: 0, data: 0, taken: None, forged: None };
        for _ in 0..256 {
            self.mailbox.send(Message::Wake);
            self.turn();
            while !self.slow.is_empty() {
                self.answer(&answer);
            }
            if !self.turn() && self.slow.is_empty() && self.held() == 0 {
                return;
            }
        }
        panic!("{} requests are held for ever, or there is no end to them", self.held());
    }

    fn held(&self) -> u64 {
        self.counters.iter().map(|counters| counters.in_flight.get()).sum()
    }

    // ---- the end of rings and of workers

    fn stop(&mut self, queue: u16) -> Receiver<u16> {
        let (reply, answer) = sync_channel(1);
        self.mailbox.send(Message::Stop(queue, Instant::now(), reply));
        self.turn();
        answer
    }

    /// Stop a ring: what was taken from it was given back.
    fn settle(&mut self, queue: u16) -> u16 {
        let base = self.stop(queue).try_recv().expect("a ring that holds nothing stops at once");
        let (before, counted) = self.bases[usize::from(queue)];
        let completed = self.counters[usize::from(queue)].requests.get() - counted;
        if !self.lossy {
            assert_eq!(
                base.wrapping_sub(before),
                completed as u16,
                "queue {queue} took more than it gave back"
            );
        }
        base
    }

    fn restart(&mut self, queue: u16) {
        self.finish();
        let base = self.settle(queue);
        self.driver.broken[usize::from(queue)] = false;
        self.start(queue, base);
    }

    fn crash(&mut self) {
        if !self.script.inflight {
            return;
        }
        self.lossy = true;
        (self.worker, self.mailbox, self.slow) = hire(self.script, &self.counters);
        self.counters.iter().for_each(|counters| counters.in_flight.set(0));
        self.driver.broken.fill(false);
        self.publish();
        for queue in 0..QUEUES {
            let base = self.driver.used_index(queue);
            self.start(queue, base);
        }
    }

    /// Whatever the others did: a read and a write on the quiet queue.
    fn quiet_is_served(&mut self) {
        self.lun.state.set_gate(0);
        for write in [true, false] {
            let Some(before) = self.driver.offer_quiet(write, self.view.features & T10_PI != 0) else {
                return;
            };
            self.finish();
            self.driver.check_quiet(before, write && self.script.disk == Disk::ReadOnly);
        }
    }
}

fn hire(script: &Script, counters: &[Arc<QueueCounters>]) -> (Stepped, Arc<Mailbox>, Arc<SlowRing>) {
    let mailbox = Arc::new(Mailbox::new().expect("an eventfd"));
    let slow = Arc::new(SlowRing::new().expect("an eventfd"));
    let setup = WorkerSetup {
        kind: if script.scsi { DeviceKind::Scsi } else { DeviceKind::Blk },
        queues: (0..QUEUES).zip(counters.iter().cloned()).collect(),
        cpu: None,
        poll: PollMode::Interrupt,
        engine: EngineChoice::Epoll,
        mailbox: mailbox.clone(),
        slow: slow.clone(),
        counters: Arc::default(),
    };
    (Stepped::new(setup).expect("a worker"), mailbox, slow)
}

/// Where a queue's ring lies.
pub fn layout(queue: u16, size: u16) -> RingLayout {
    let base = if queue == QUIET { QUIET_PIECE } else { 0x1000 * u64::from(queue) };
    RingLayout { size, descriptors: base, available: base + 0x400, used: base + 0x800 }
}
