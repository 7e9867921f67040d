//! A worker without its thread, for fuzzers: what it does follows from what it is given, and from nothing else.

use super::{Worker, WorkerSetup};
use crate::engine::Engine;
use crate::error::Result;

/// A worker that takes its turns when it is told to, on the caller's thread.
pub struct Stepped(Worker);

impl Stepped {
    /// As a worker's thread begins.
    pub fn new(setup: WorkerSetup) -> Result<Self> {
        Worker::new(setup).map(|(mut worker, _)| {
            if let Engine::Epoll(epoll) = &mut worker.context.engine {
                epoll.stay_alone();
            }
            Stepped(worker)
        })
    }

    /// One turn of the loop; whether there was work.
    pub fn turn(&mut self) -> bool {
        self.0.turn::<false>()
    }

    /// What a worker does to its rings round a sleep, without the sleep; whether work slipped in.
    pub fn doze(&mut self) -> bool {
        let Worker { queues, context, .. } = &mut self.0;
        let woken = queues.iter_mut().any(|queue| queue.ask_for_kick(context));
        queues.iter_mut().for_each(|queue| queue.awake(context));
        woken
    }
}
