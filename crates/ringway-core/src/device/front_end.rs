//! What the front end tells a device: features, memory, the dirty log, and each ring.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{answer, dead, Device, PATIENCE};
use crate::dirty::DirtyLog;
use crate::error::{ensure, Result};
use crate::memory::{gather, IoVec, MemoryMap, Region};
use crate::notify;
use crate::vring::Vring;
use crate::worker::{Matcher, Message, QueueStart};

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
