//! The LUNs of a device: their stores, gates, limits and locked ranges.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Device;
use crate::error::{ensure, Error, Result};
use crate::limit::Rates;
use crate::store::Store;
use crate::view::{Lun, LunState, LunTable, MAX_LUN};
use crate::worker::{Matcher, Message};

/// Files that a device registers at most.
const FILE_SLOTS: u32 = 1024;

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
