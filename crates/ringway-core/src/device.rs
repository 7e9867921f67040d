//! The control side of one virtio device's data path.
//!
//! Changes make a new [`View`] and hand it to each worker; they return when all workers go by it.

mod figures;
mod trace;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use figures::WorkerFigures;

use crate::calls::Calls;
use crate::clock;
use crate::dirty::DirtyLog;
use crate::error::{ensure, Error, Result};
use crate::limit::Rates;
use crate::memory::{gather, IoVec, MemoryMap, Region};
use crate::notify;
use crate::poll::PollMode;
use crate::slow::{SlowCommand, SlowRing};
use crate::stats::{QueueCounters, WorkerCounters};
use crate::store::Store;
use crate::view::{Lun, LunState, LunTable, View, MAX_LUN};
use crate::vring::Vring;
use crate::worker::{self, Completion, DeviceKind, EngineChoice, Fence, Mailbox, Matcher, Message};
use crate::worker::{QueueStart, WorkerSetup};
pub use trace::{Trace, MAX_TRACE};

/// Queues of one device at most: tags carry eight bits of queue number.
pub const MAX_QUEUES: usize = 256;
const FILE_SLOTS: u32 = 1024;
/// How long a control call waits for a worker's answer before it calls the worker dead.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a device is made.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// scsi or blk.
    pub kind: DeviceKind,
    /// Virtqueues in all.
    pub queues: usize,
    /// Threads.
    pub workers: usize,
    /// CPUs to pin them to, in turn.
    pub cpus: Vec<usize>,
    /// When to spin.
    pub poll: PollMode,
    /// Which engine.
    pub engine: EngineChoice,
}

struct WorkerHandle {
    mailbox: Arc<Mailbox>,
    counters: Arc<WorkerCounters>,
    /// Disconnected when the thread ends.
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

/// A running data path.
pub struct Device {
    workers: Mutex<Vec<WorkerHandle>>,
    counters: Vec<Arc<WorkerCounters>>,
    mailboxes: Vec<Arc<Mailbox>>,
    queues: Vec<Arc<QueueCounters>>,
    /// Worker of each queue.
    homes: Vec<usize>,
    /// Held for a moment only: whoever asks for a LUN must not wait for a change.
    view: Mutex<Arc<View>>,
    /// Somebody traces.
    tracing: Arc<AtomicBool>,
    /// Held through a change; the places of registered files that are taken.
    changing: Mutex<BTreeSet<u32>>,
    slow: Arc<SlowRing>,
    calls: Calls,
    engine: EngineChoice,
    engine_reason: Option<String>,
}

fn home(kind: DeviceKind, queue: usize, workers: usize) -> usize {
    match kind {
        DeviceKind::Scsi => queue.saturating_sub(2) % workers,
        DeviceKind::Blk => queue % workers,
    }
}

impl Device {
    /// Start the workers.
    pub fn new(options: &DeviceOptions) -> Result<Self> {
        let (queues, workers) = (options.queues, options.workers);
        let least = if options.kind == DeviceKind::Scsi { 3 } else { 1 };
        ensure((least..=MAX_QUEUES).contains(&queues), || {
            format!("{queues} queues; {least} to {MAX_QUEUES} are possible")
        })?;
        ensure((1..=queues).contains(&workers), || format!("{workers} workers for {queues} queues"))?;
        clock::calibrate();
        let counters: Vec<Arc<QueueCounters>> = (0..queues).map(|_| Arc::default()).collect();
        let mut device = Device {
            workers: Mutex::new(Vec::with_capacity(workers)),
            counters: Vec::with_capacity(workers),
            mailboxes: Vec::with_capacity(workers),
            homes: (0..queues).map(|queue| home(options.kind, queue, workers)).collect(),
            queues: counters,
            view: Mutex::new(Arc::new(View { writeback: true, ..View::default() })),
            tracing: Arc::default(),
            changing: Mutex::default(),
            slow: Arc::new(SlowRing::new()?),
            calls: Calls::new()?,
            engine: EngineChoice::Auto,
            engine_reason: None,
        };
        for index in 0..workers {
            (device.engine, device.engine_reason) = device.spawn(options, index)?;
        }
        device.publish(&device.view())?;
        Ok(device)
    }

    fn spawn(&mut self, options: &DeviceOptions, index: usize) -> Result<worker::Opened> {
        let mailbox = Arc::new(Mailbox::new()?);
        let counters: Arc<WorkerCounters> = Arc::default();
        let mine = self.homes.iter().enumerate().filter(|(_, home)| **home == index);
        let setup = WorkerSetup {
            kind: options.kind,
            queues: mine.map(|(queue, _)| (queue as u16, self.queues[queue].clone())).collect(),
            cpu: (!options.cpus.is_empty()).then(|| options.cpus[index % options.cpus.len()]),
            poll: options.poll,
            engine: options.engine,
            mailbox: mailbox.clone(),
            slow: self.slow.clone(),
            counters: counters.clone(),
        };
        let (ready, started) = sync_channel(1);
        let (alive, ended) = sync_channel(0);
        let body = move || {
            worker::run(setup, ready);
            drop(alive);
        };
        let thread = std::thread::Builder::new().name(format!("ringway-io-{index}")).spawn(body);
        let thread = thread.map_err(|source| Error::Os { context: "starting a worker", source })?;
        self.mailboxes.push(mailbox.clone());
        self.counters.push(counters.clone());
        self.workers.lock().unwrap().push(WorkerHandle { mailbox, counters, ended, thread });
        started.recv().map_err(|_| dead())?
    }

    /// The engine that runs.
    pub fn engine(&self) -> EngineChoice {
        self.engine
    }

    /// What kept it from io_uring, if it would have taken that.
    pub fn engine_reason(&self) -> Option<&str> {
        self.engine_reason.as_deref()
    }

    /// Stop and join the workers. One that hangs in the kernel is left behind after a while.
    pub fn close(&self) {
        let workers = std::mem::take(&mut *self.workers.lock().unwrap());
        workers.iter().for_each(|worker| worker.mailbox.send(Message::Quit));
        for worker in workers {
            if worker.ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Disconnected) {
                let _ = worker.thread.join();
            }
            worker.counters.thread.set(0);
        }
        self.calls.close();
        self.slow.wake();
    }

    fn view(&self) -> Arc<View> {
        self.view.lock().unwrap().clone()
    }

    /// Hand a view to all workers and wait until they go by it.
    fn publish(&self, view: &Arc<View>) -> Result<()> {
        let (reply, answers) = sync_channel(self.mailboxes.len());
        for mailbox in &self.mailboxes {
            mailbox.send(Message::View(view.clone(), reply.clone()));
        }
        drop(reply);
        self.mailboxes.iter().try_for_each(|_| answer(&answers))
    }

    /// Change the view, one change at a time; returns the generation before which requests are of the old one.
    fn change(&self, change: impl FnOnce(&mut View, &mut BTreeSet<u32>) -> Result<()>) -> Result<u64> {
        let mut file_slots = self.changing.lock().unwrap();
        let mut view = View::clone(&self.view());
        view.generation += 1;
        change(&mut view, &mut file_slots)?;
        let view = Arc::new(view);
        *self.view.lock().unwrap() = view.clone();
        self.publish(&view)?;
        Ok(view.generation)
    }

    /// Wait for requests on all workers; whether all finished in time.
    pub fn wait_for(&self, matcher: Matcher, cancel: bool, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let (reply, answers) = sync_channel(self.mailboxes.len());
        for mailbox in &self.mailboxes {
            let reply = reply.clone();
            mailbox.send(Message::Fence(Fence { matcher, deadline, cancel, before: 0, reply }));
        }
        drop(reply);
        let limit = timeout + PATIENCE;
        (0..self.mailboxes.len()).fold(true, |all, _| answers.recv_timeout(limit).unwrap_or(false) && all)
    }

    fn ask<T>(&self, queue: u16, message: impl FnOnce(SyncSender<T>) -> Message) -> Result<Receiver<T>> {
        let home = self.homes.get(queue as usize);
        let home = home.ok_or_else(|| Error::Invalid(format!("no queue {queue}")))?;
        let (reply, answers) = sync_channel(1);
        self.mailboxes[*home].send(message(reply));
        Ok(answers)
    }
}

fn dead() -> Error {
    Error::errno("a worker thread is dead", libc::EIO)
}

fn answer<T>(answers: &Receiver<T>) -> Result<T> {
    answers.recv_timeout(PATIENCE).map_err(|_| dead())
}

// ---- LUNs ---------------------------------------------------------------------------------------------------

impl Device {
    /// Add a LUN or swap its store; whether nothing uses the old store any more.
    pub fn set_lun(
        &self,
        target: u8,
        number: u16,
        store: Arc<Store>,
        block_size: u32,
        serial: [u8; 20],
        timeout: Duration,
    ) -> Result<bool> {
        ensure(number <= MAX_LUN, || format!("LUN {number}; {MAX_LUN} is the highest"))?;
        ensure([512, 4096].contains(&block_size), || {
            format!("blocks of {block_size} bytes; 512 or 4096 are possible")
        })?;
        let block_shift = block_size.trailing_zeros();
        let aligned = store.options().offset_align <= u64::from(block_size) || !store.options().direct;
        ensure(aligned, || {
            format!("blocks of {block_size} bytes on a store of {}", store.options().offset_align)
        })?;
        let queues = self.queues.len();
        let mut instance = 0;
        let generation = self.change(|view, slots| {
            let mut luns = LunTable::clone(&view.luns);
            let old = luns.get(target, number).cloned();
            let state = old
                .as_ref()
                .map_or_else(|| Arc::new(LunState::new(target, number, queues)), |lun| lun.state.clone());
            instance = state.id.instance;
            let file_slot = store.file_descriptor().and_then(|_| take_slot(slots));
            let lun = Lun { state, store, block_shift, file_slot, serial };
            luns.replace(target, number, Some(Arc::new(lun)));
            view.luns = Arc::new(luns);
            old.and_then(|lun| lun.file_slot).map(|slot| slots.remove(&slot));
            Ok(())
        })?;
        Ok(self.wait_for(Matcher::StoreBefore { instance, generation }, false, timeout))
    }

    /// Remove a LUN; whether nothing uses it any more.
    pub fn remove_lun(&self, target: u8, number: u16, timeout: Duration) -> Result<bool> {
        let mut instance = 0;
        let generation = self.change(|view, slots| {
            let mut luns = LunTable::clone(&view.luns);
            let old = luns.replace(target, number, None).ok_or(Error::NoLun(target, number))?;
            instance = old.state.id.instance;
            view.luns = Arc::new(luns);
            old.file_slot.map(|slot| slots.remove(&slot));
            Ok(())
        })?;
        Ok(self.wait_for(Matcher::StoreBefore { instance, generation }, false, timeout))
    }

    /// Which of all LUNs that there have been is at an address.
    pub fn lun_instance(&self, target: u8, number: u16) -> Result<u64> {
        self.lun(target, number).map(|lun| lun.state.id.instance)
    }

    /// The LUN at an address, if it is that instance (or whichever it is).
    fn instance(&self, (target, number): (u8, u16), instance: Option<u64>) -> Result<Arc<Lun>> {
        let lun = self.lun(target, number)?;
        match instance.is_none_or(|instance| instance == lun.state.id.instance) {
            true => Ok(lun),
            false => Err(Error::NoLun(target, number)),
        }
    }

    fn lun(&self, target: u8, number: u16) -> Result<Arc<Lun>> {
        self.view().luns.get(target, number).cloned().ok_or(Error::NoLun(target, number))
    }

    /// Publish a gate word.
    pub fn set_gate(&self, address: (u8, u16), instance: Option<u64>, word: u64) -> Result<()> {
        self.instance(address, instance).map(|lun| lun.state.set_gate(word))
    }

    /// Limit what guests may do to a LUN, from now on and whatever waits.
    pub fn set_limit(&self, target: u8, number: u16, rates: Rates) -> Result<()> {
        self.lun(target, number)?.state.limit.set(rates);
        self.mailboxes.iter().for_each(|mailbox| mailbox.send(Message::Wake));
        Ok(())
    }

    /// Lock a range of bytes and wait for what is in flight in it.
    pub fn lock_range(
        &self,
        address: (u8, u16),
        instance: Option<u64>,
        start: u64,
        end: u64,
        reads: bool,
        timeout: Duration,
    ) -> Result<Option<u64>> {
        ensure(start < end, || format!("an empty range [{start}, {end})"))?;
        let lun = self.instance(address, instance)?;
        let deadline = Instant::now() + timeout;
        let Some(handle) = lun.state.ranges.lock(start, end, reads, deadline) else { return Ok(None) };
        let matcher = Matcher::Range { instance: lun.state.id.instance, start, end };
        if self.wait_for(matcher, false, deadline.saturating_duration_since(Instant::now())) {
            return Ok(Some(handle));
        }
        self.unlock(&lun, handle);
        Ok(None)
    }

    /// Give a range back and let parked requests go on.
    pub fn unlock_range(&self, target: u8, number: u16, handle: u64) -> Result<()> {
        self.lun(target, number).map(|lun| self.unlock(&lun, handle))
    }

    fn unlock(&self, lun: &Lun, handle: u64) {
        lun.state.ranges.unlock(handle);
        self.mailboxes.iter().for_each(|mailbox| mailbox.send(Message::Wake));
    }
}

fn take_slot(slots: &mut BTreeSet<u32>) -> Option<u32> {
    let slot = (0..FILE_SLOTS).find(|slot| !slots.contains(slot))?;
    slots.insert(slot);
    Some(slot)
}

// ---- the front end ------------------------------------------------------------------------------------------

impl Device {
    /// Features that the front end acknowledged.
    pub fn set_features(&self, features: u64) -> Result<()> {
        self.change(|view, _| {
            view.features = features;
            Ok(())
        })
        .map(drop)
    }

    /// blk: whether writes may be acknowledged before they are stable.
    pub fn set_writeback(&self, enabled: bool) -> Result<()> {
        self.change(|view, _| {
            view.writeback = enabled;
            Ok(())
        })
        .map(drop)
    }

    /// blk: the guest may have chosen write-through with a back end that is gone: serve it so until it flushes.
    pub fn doubt_writeback(&self) {
        self.luns().iter().for_each(|lun| lun.state.set_doubtful(true));
    }

    /// Swap the memory map; whether nothing uses a dropped region any more.
    pub fn set_memory(&self, regions: Vec<Arc<Region>>, timeout: Duration) -> Result<bool> {
        let memory = Arc::new(MemoryMap::new(regions)?);
        let generation = self.change(|view, _| {
            view.memory = memory;
            Ok(())
        })?;
        Ok(self.wait_for(Matcher::MemoryBefore(generation), false, timeout))
    }

    /// Set or drop the dirty log.
    pub fn set_log(&self, log: Option<Arc<DirtyLog>>) -> Result<()> {
        self.change(|view, _| {
            view.log = log;
            Ok(())
        })
        .map(drop)
    }

    /// Make a ring ready.
    pub fn start_queue(&self, queue: u16, start: QueueStart) -> Result<()> {
        let size = start.layout.size;
        ensure(size.is_power_of_two() && size <= 32768, || format!("a ring of {size} entries"))?;
        for (what, fd) in [("kick", &start.kick), ("call", &start.call)] {
            check_eventfd(what, fd.as_ref())?;
        }
        let call = self.calls.add(queue, start.call.as_ref())?;
        let started = answer(&self.ask(queue, |reply| Message::Start(queue, Box::new(start), reply))?)?;
        match started {
            Ok(()) => self.calls.keep_from(queue, call),
            Err(_) => self.calls.forget(call), // it may run already, with another
        }
        started
    }

    /// Serve a ring or let it rest.
    pub fn enable_queue(&self, queue: u16, enabled: bool) -> Result<()> {
        answer(&self.ask(queue, |reply| Message::Enable(queue, enabled, reply))?)
    }

    /// Another call eventfd.
    pub fn set_queue_call(&self, queue: u16, call: Option<OwnedFd>) -> Result<()> {
        check_eventfd("call", call.as_ref())?;
        let number = self.calls.add(queue, call.as_ref())?;
        answer(&self.ask(queue, |reply| Message::Call(queue, call, reply))?)?;
        self.calls.keep_from(queue, number);
        Ok(())
    }

    /// Another log address.
    pub fn set_queue_log(&self, queue: u16, address: Option<u64>) -> Result<()> {
        answer(&self.ask(queue, |reply| Message::Log(queue, address, reply))?)
    }

    /// Drain and stop a ring; its next available index.
    pub fn stop_queue(&self, queue: u16, timeout: Duration) -> Result<u16> {
        let deadline = Instant::now() + timeout;
        let answers = self.ask(queue, |reply| Message::Stop(queue, deadline, reply))?;
        let base = answers.recv_timeout(timeout + PATIENCE).map_err(|_| dead())?;
        self.calls.drop_all(queue);
        Ok(base)
    }

    /// Whether a device has ever used a used ring (a user address): a driver hands over a zeroed one, and its entries
    /// stay when the indices wrap. Spec: virtio 1.3, 4.1.5.1.3.
    pub fn is_used(&self, size: u16, used: u64) -> bool {
        let mut bytes = vec![0; Vring::used_bytes(size) as usize];
        let view = self.view();
        let Some(base) = view.memory.user(used, bytes.len() as u64) else { return false };
        gather(&[IoVec { base, len: bytes.len() }], 0, &mut bytes);
        let (index, entries) = (2..4, 4..4 + 8 * usize::from(size));
        bytes[index].iter().chain(&bytes[entries]).any(|byte| *byte != 0)
    }
}

fn check_eventfd(what: &str, fd: Option<&OwnedFd>) -> Result<()> {
    ensure(fd.is_none_or(notify::is_eventfd), || format!("the {what} fd is no eventfd"))
}

// ---- the slow path ------------------------------------------------------------------------------------------

impl Device {
    /// The next command for Python.
    pub fn next_command(&self, timeout: Option<Duration>) -> Option<Box<SlowCommand>> {
        self.slow.pop(timeout)
    }

    /// Wait until there is a command for Python; false when the time is over, or after a wake.
    pub fn wait_command(&self, timeout: Option<Duration>) -> bool {
        self.slow.wait(timeout)
    }

    /// Let one waiter go.
    pub fn wake(&self) {
        self.slow.wake();
    }

    fn home_of(&self, tag: u64) -> Option<&Arc<Mailbox>> {
        self.homes.get((tag >> 56) as usize).map(|home| &self.mailboxes[*home])
    }

    /// Finish a command.
    pub fn complete(&self, tag: u64, completion: Completion) {
        if let Some(mailbox) = self.home_of(tag) {
            mailbox.send(Message::Complete(tag, completion));
        }
    }

    /// Send a command back to the hot path.
    pub fn resume(&self, tag: u64) {
        if let Some(mailbox) = self.home_of(tag) {
            mailbox.send(Message::Resume(tag));
        }
    }

    /// Give the guest an event. Spec: virtio 1.3, 5.6.6.3.
    pub fn post_event(&self, event: u32, lun: [u8; 8], reason: u32) {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&event.to_le_bytes());
        bytes[4..12].copy_from_slice(&lun);
        bytes[12..].copy_from_slice(&reason.to_le_bytes());
        if let Some(home) = self.homes.get(1) {
            self.mailboxes[*home].send(Message::Event(bytes));
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.close();
    }
}
