//! A worker: one thread, some queues, one engine.
//!
//! The loop pops in batches, runs what is instant, submits the rest once a turn, publishes once a batch and
//! signals at most once a batch. Everything in here belongs to the thread; the outside speaks through the
//! [`Mailbox`].

mod fence;
mod idle;
mod mailbox;
mod pending;
mod queue;
mod request;
mod stepped;
mod traced;

use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::mpsc::SyncSender;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use fence::{Fence, Matcher};
pub use mailbox::{Mailbox, Message, TraceStart};
pub use queue::{QueueStart, RingLayout, Role};
pub use stepped::Stepped;

use crate::clock::now_ns;
use crate::engine::{Engine, Epoll, Event, Uring};
use crate::error::{Error, Result};
use crate::fault;
use crate::pace::Pace;
use crate::poll::{PollMode, SpinBudget, FOR_A_GUEST_NS, FOR_THE_KERNEL_NS};
use crate::slow::{Charged, Life, SlowCommand, SlowKind, SlowRing};
use crate::stats::{QueueCounters, WorkerCounters};
use crate::trace::Tracer;
use crate::view::View;
use crate::vring::Chain;
use pending::{Phase, Slab};
use queue::Queue;

/// Which virtio device the queues belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// virtio-scsi: control, event and request queues.
    Scsi,
    /// virtio-blk: request queues.
    Blk,
}

/// Which engine a worker takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring where the kernel allows it.
    Auto,
    /// io_uring or nothing.
    Uring,
    /// epoll, and threads.
    Epoll,
}

/// How Python finished a slow command.
#[derive(Clone, Debug, Default)]
pub struct Completion {
    /// VIRTIO_SCSI_S_*.
    pub response: u8,
    /// SAM status.
    pub status: u8,
    /// Sense data, at most 96 bytes.
    pub sense: Vec<u8>,
    /// Data-in; for a control request all that is written.
    pub data: Vec<u8>,
    /// Bytes of data-out that were used; none: all.
    pub taken: Option<usize>,
}

/// What a worker is made from.
pub struct WorkerSetup {
    /// The device's kind.
    pub kind: DeviceKind,
    /// Queue numbers and their counters.
    pub queues: Vec<(u16, Arc<QueueCounters>)>,
    /// CPU to pin to.
    pub cpu: Option<usize>,
    /// When to spin.
    pub poll: PollMode,
    /// Engine.
    pub engine: EngineChoice,
    /// Way in.
    pub mailbox: Arc<Mailbox>,
    /// Way out to Python.
    pub slow: Arc<SlowRing>,
    /// Counters.
    pub counters: Arc<WorkerCounters>,
}

/// What queues share of their worker.
pub(crate) struct Context {
    kind: DeviceKind,
    view: Rc<View>,
    engine: Engine,
    slab: Slab,
    slow: Arc<SlowRing>,
    now: u64,
    scratch: Chain,
    /// Parked requests are to be tried again in this turn.
    retry: bool,
    /// When the first delayed request may go; never: `u64::MAX`.
    next_due: u64,
    /// Some while requests are traced.
    tracer: Option<Box<Tracer>>,
}

struct Worker {
    queues: Vec<Queue>,
    context: Context,
    fences: Vec<Fence>,
    mailbox: Arc<Mailbox>,
    counters: Arc<WorkerCounters>,
    /// For waits with I/O in the kernel, and for those without.
    kernel_spin: SpinBudget,
    guest_spin: SpinBudget,
    pace: Pace,
    /// When the wait began that an alarm interrupted.
    waiting_since: Option<u64>,
    events: Vec<Event>,
    next_retry: u64,
    quitting: bool,
}

const MAIL: u32 = u32::MAX;

/// Which engine a worker runs, and what kept it from io_uring if it would have preferred that.
pub type Opened = (EngineChoice, Option<String>);

/// A worker thread's body. `ready` hears which engine runs, or why none does.
pub fn run(setup: WorkerSetup, ready: SyncSender<Result<Opened>>) {
    let (slow, mailbox) = (setup.slow.clone(), setup.mailbox.clone());
    let (mut worker, reason) = match Worker::new(setup) {
        Ok(made) => made,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let engine = if worker.context.engine.is_uring() { EngineChoice::Uring } else { EngineChoice::Epoll };
    let _ = ready.send(Ok((engine, reason)));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.run()));
    if outcome.is_err() {
        // The queues stay as they are: unpublished requests are in the in-flight region for the next process.
        std::mem::forget(worker);
        slow.notice(broken_notice(u16::MAX, "a worker thread panicked: its queues are dead".into()));
    }
    mailbox.close();
}

pub(crate) fn broken_notice(queue: u16, message: String) -> Box<SlowCommand> {
    Box::new(SlowCommand {
        kind: SlowKind::Broken,
        tag: 0,
        queue,
        lun: [0; 8],
        id: 0,
        instance: 0,
        task_attribute: 0,
        cdb: [0; 32],
        data_out: Charged::default(),
        data_out_size: 0,
        data_in_size: 0,
        failure: crate::scsi::Failure::None,
        message,
        life: Life::default(),
    })
}

fn open_engine(choice: EngineChoice) -> Result<(Engine, Option<String>)> {
    let uring = || Uring::new().map(|ring| Engine::Uring(Box::new(ring)));
    let epoll = || Epoll::new().map(Engine::Epoll);
    match choice {
        EngineChoice::Epoll => Ok((epoll()?, None)),
        EngineChoice::Uring => {
            Ok((uring().map_err(|source| Error::Os { context: "io_uring", source })?, None))
        }
        EngineChoice::Auto => match uring() {
            Ok(engine) => Ok((engine, None)),
            Err(reason) => Ok((epoll()?, Some(reason.to_string()))),
        },
    }
}

fn pin(cpu: Option<usize>) -> Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    // SAFETY: a zeroed set is valid; CPU_SET checks nothing, so the number is bounded first.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if cpu >= libc::CPU_SETSIZE as usize {
            return Err(Error::Invalid(format!("no CPU {cpu}")));
        }
        libc::CPU_SET(cpu, &mut set);
        match libc::sched_setaffinity(0, size_of_val(&set), &set) {
            0 => Ok(()),
            _ => Err(Error::last_os("pinning a worker to its CPU")),
        }
    }
}

impl Worker {
    fn new(setup: WorkerSetup) -> Result<(Self, Option<String>)> {
        pin(setup.cpu)?;
        let (mut engine, reason) = open_engine(setup.engine)?;
        engine.watch(setup.mailbox.event.as_raw_fd(), MAIL)?;
        let foresees = setup.poll == PollMode::Adaptive && engine.is_uring();
        // SAFETY: gettid has no preconditions.
        setup.counters.thread.set(unsafe { libc::gettid() } as u64);
        let queues =
            setup.queues.into_iter().map(|(index, counters)| Queue::new(index, setup.kind, counters));
        let worker = Worker {
            queues: queues.collect(),
            context: Context {
                kind: setup.kind,
                view: Rc::default(),
                engine,
                slab: Slab::default(),
                slow: setup.slow,
                now: now_ns(),
                scratch: Chain::default(),
                retry: false,
                next_due: u64::MAX,
                tracer: None,
            },
            next_retry: 0,
            fences: Vec::new(),
            mailbox: setup.mailbox,
            counters: setup.counters,
            kernel_spin: SpinBudget::new(setup.poll, FOR_THE_KERNEL_NS),
            guest_spin: SpinBudget::new(setup.poll, FOR_A_GUEST_NS),
            pace: Pace::new(foresees, FOR_A_GUEST_NS),
            waiting_since: None,
            events: Vec::new(),
            quitting: false,
        };
        Ok((worker, reason))
    }

    fn run(&mut self) {
        while !self.quitting {
            self.counters.loops.add(1);
            // the loop exists twice, so that a trace costs nothing while it is off
            let worked = match self.context.tracer {
                None => self.turn::<false>(),
                Some(_) => self.turn::<true>(),
            };
            if !worked {
                self.idle();
            }
        }
        self.wait_for_kernel();
    }

    /// The kernel may still read and write what held requests point to: wait for it, or leave it all in place.
    fn wait_for_kernel(&mut self) {
        let deadline = Instant::now() + QUIT_PATIENCE;
        let running =
            |context: &Context| context.slab.iter().any(|(_, pending)| pending.phase == Phase::Running);
        while running(&self.context) && Instant::now() < deadline {
            self.context.engine.wait(Some(PARKED_RETRY), &mut self.events);
            self.take_events();
            self.publish::<true>();
        }
        if running(&self.context) {
            std::mem::forget(std::mem::take(&mut self.context.slab));
        }
    }

    /// One turn of the loop; whether there was work.
    fn turn<const TRACED: bool>(&mut self) -> bool {
        let mut worked = false;
        if self.mailbox.has_mail() {
            self.read_mail();
            worked = true;
            if self.context.tracer.is_some() != TRACED && !self.quitting {
                // who asked for a trace has its answer: the next request must find the other loop
                return true;
            }
        }
        self.context.now = now_ns();
        if TRACED {
            self.begin_traced_turn();
        }
        if self.context.now >= self.next_retry.min(self.context.next_due) {
            self.context.next_due = u64::MAX;
            self.next_retry = self.context.now + PARKED_RETRY.as_nanos() as u64;
            self.context.retry = true;
        }
        for queue in &mut self.queues {
            worked |= queue.serve::<TRACED>(&mut self.context);
        }
        self.context.retry = false;
        if self.context.engine.has_pushed() {
            // what is done does not wait while the kernel copies out of its cache for others
            self.publish_early::<TRACED>();
        }
        self.context.engine.turn(&mut self.events);
        fault::entered();
        worked |= self.take_events();
        self.publish::<TRACED>();
        if !self.fences.is_empty() || self.queues.iter().any(Queue::is_stopping) {
            self.keep_deadlines();
        }
        worked
    }

    /// Show guests what is finished.
    #[inline(always)]
    fn publish<const TRACED: bool>(&mut self) {
        for queue in &mut self.queues {
            queue.publish::<TRACED>(&mut self.context);
        }
    }

    /// Apart, so that turns which submit nothing carry one copy of [`Worker::publish`].
    #[inline(never)]
    fn publish_early<const TRACED: bool>(&mut self) {
        self.publish::<TRACED>();
    }

    fn take_events(&mut self) -> bool {
        if self.events.is_empty() {
            return false;
        }
        let mut events = std::mem::take(&mut self.events);
        self.context.now = now_ns();
        for event in events.drain(..) {
            match event {
                Event::Ready(MAIL) => {}
                Event::Ready(token) => {
                    if let Some(queue) = self.queues.iter_mut().find(|queue| queue.token() == token) {
                        queue.kicked(self.context.now);
                    }
                }
                Event::Done(key, result) => self.io_done(key, result),
            }
        }
        self.events = events;
        true
    }

    fn io_done(&mut self, key: u32, result: i32) {
        let Some(queue) = self.context.slab.get(key).queue else { return self.context.slab.free(key) };
        if let Some(queue) = self.queues.iter_mut().find(|candidate| candidate.index() == queue) {
            queue.io_done(&mut self.context, key, result);
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        let stops = self.queues.iter().filter_map(Queue::deadline);
        let parked = self.queues.iter().any(Queue::has_parked).then(|| Instant::now() + PARKED_RETRY);
        let first = stops.chain(self.fences.iter().map(|fence| fence.deadline)).chain(parked).min();
        let due = self.context.next_due;
        let due = (due != u64::MAX).then(|| Duration::from_nanos(due.saturating_sub(now_ns())));
        first.map(|first| first.saturating_duration_since(Instant::now())).into_iter().chain(due).min()
    }

    fn keep_deadlines(&mut self) {
        let now = Instant::now();
        for queue in &mut self.queues {
            queue.keep_deadline(&mut self.context, now);
        }
        let slab = &self.context.slab;
        self.fences.retain(|fence| match fence.is_open(slab) {
            true if now < fence.deadline => true,
            open => {
                let _ = fence.reply.send(!open);
                false
            }
        });
    }

    fn read_mail(&mut self) {
        for message in self.mailbox.take() {
            self.context.now = now_ns();
            self.handle(message);
        }
    }

    fn queue(&mut self, index: u16) -> (&mut Queue, &mut Context) {
        let queue =
            self.queues.iter_mut().find(|queue| queue.index() == index).expect("a queue of this worker");
        (queue, &mut self.context)
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::View(view, reply) => {
                self.adopt(&view);
                let _ = reply.send(());
            }
            Message::Start(index, start, reply) => {
                let (queue, context) = self.queue(index);
                let _ = reply.send(queue.start(context, *start));
            }
            Message::Enable(index, enabled, reply) => {
                let (queue, context) = self.queue(index);
                queue.enable(context, enabled);
                let _ = reply.send(());
            }
            Message::Call(index, call, reply) => {
                self.queue(index).0.set_call(call);
                let _ = reply.send(());
            }
            Message::Log(index, address, reply) => {
                self.queue(index).0.set_log(address);
                let _ = reply.send(());
            }
            Message::Stop(index, deadline, reply) => {
                let (queue, context) = self.queue(index);
                queue.stop(context, deadline, reply);
            }
            Message::Fence(fence) => self.fence(fence),
            Message::Complete(tag, completion) => self.slow_done(tag, Some(completion)),
            Message::Resume(tag) => self.slow_done(tag, None),
            Message::Event(event) => {
                if let Some(queue) = self.queues.iter_mut().find(|queue| queue.role() == Role::Event) {
                    queue.post_event(&mut self.context, event);
                }
            }
            Message::Trace(start, reply) => {
                self.trace(start);
                let _ = reply.send(());
            }
            Message::Wake => self.context.retry = true,
            Message::Quit => self.quitting = true,
        }
    }

    fn adopt(&mut self, view: &Arc<View>) {
        self.context.view = Rc::new(View::clone(view));
        self.context.engine.adopt(view);
        for queue in &mut self.queues {
            queue.adopt(&mut self.context);
        }
    }

    fn fence(&mut self, mut fence: Fence) {
        fence.before = self.context.slab.next_sequence();
        if fence.cancel {
            for (key, phase) in fence.matches(&self.context.slab) {
                self.cancel(key, phase, fence.response());
            }
        }
        self.fences.push(fence);
    }

    fn cancel(&mut self, key: u32, phase: Phase, response: u8) {
        let pending = self.context.slab.get_mut(key);
        pending.cancelled = Some(response);
        match (phase, pending.queue) {
            (Phase::Parked, Some(index)) => {
                let (queue, context) = self.queue(index);
                queue.cancel_parked(context, key, response);
            }
            (Phase::Running, _) => self.context.engine.cancel(key),
            _ => {}
        }
    }

    fn slow_done(&mut self, tag: u64, completion: Option<Completion>) {
        let Some((key, index)) = self.context.slab.find(tag) else { return };
        let (queue, context) = self.queue(index);
        match completion {
            Some(completion) => queue.slow_done(context, key, &completion),
            None => queue.resume(context, key),
        }
    }
}

/// How long the end of a worker waits for the kernel.
const QUIT_PATIENCE: Duration = Duration::from_secs(10);
/// How soon a parked request is tried again when nothing else wakes its worker.
const PARKED_RETRY: Duration = Duration::from_millis(1);
