//! What a device counted.

use std::sync::Arc;

use super::Device;
use crate::notify::thread_cpu_ns;
use crate::stats::QueueCounters;
use crate::view::LunTable;

/// One worker's figures.
#[derive(Clone, Copy, Debug)]
pub struct WorkerFigures {
    /// Number.
    pub worker: usize,
    /// Kernel thread id.
    pub thread: u64,
    /// Times it slept.
    pub sleeps: u64,
    /// Times it spun.
    pub spins: u64,
    /// Times it woke for a request that was due.
    pub alarms: u64,
    /// Requests that it was awake for, since it foresaw them.
    pub foreseen: u64,
    /// Turns of its loop.
    pub loops: u64,
    /// CPU time.
    pub cpu_ns: u64,
}

impl Device {
    /// Counters of all queues, by number.
    pub fn queue_counters(&self) -> &[Arc<QueueCounters>] {
        &self.queues
    }

    /// All LUNs.
    pub fn luns(&self) -> Arc<LunTable> {
        self.view().luns.clone()
    }

    /// Figures of all workers.
    pub fn worker_figures(&self) -> Vec<WorkerFigures> {
        let figures = self.counters.iter().enumerate().map(|(worker, counters)| {
            let thread = counters.thread.get();
            WorkerFigures {
                worker,
                thread,
                sleeps: counters.sleeps.get(),
                spins: counters.spins.get(),
                alarms: counters.alarms.get(),
                foreseen: counters.foreseen.get(),
                loops: counters.loops.get(),
                cpu_ns: if thread > 0 { thread_cpu_ns(thread as i32) } else { 0 },
            }
        });
        figures.collect()
    }
}
