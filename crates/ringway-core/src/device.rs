//! The control side of one virtio device's data path.
//!
//! Changes make a new [`View`] and hand it to each worker; they return when all workers go by it.

mod figures;
mod front_end;
mod luns;
mod slow_path;
mod trace;

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use figures::WorkerFigures;
pub use trace::{Trace, MAX_TRACE};

use crate::calls::Calls;
use crate::clock;
use crate::error::{ensure, Error, Result};
use crate::poll::PollMode;
use crate::slow::SlowRing;
use crate::stats::{QueueCounters, WorkerCounters};
use crate::view::View;
use crate::worker::{self, DeviceKind, EngineChoice, Fence, Mailbox, Matcher, Message, WorkerSetup};

/// Queues of one device at most: tags carry eight bits of queue number.
pub const MAX_QUEUES: usize = 256;
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

impl Drop for Device {
    fn drop(&mut self) {
        self.close();
    }
}
