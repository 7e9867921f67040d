//! What workers see of the world: one immutable snapshot, replaced as a whole at a batch border.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, OnceLock};

use crate::dirty::DirtyLog;
use crate::limit::Limit;
use crate::memory::MemoryMap;
use crate::range::RangeLocks;
use crate::slow::Share;
use crate::stats::LunCounters;
use crate::store::Store;

/// Gate bit: every command goes to the slow path.
pub const GATE_ATTENTION: u64 = 1;
/// Gate bit: commands that read the medium go to the slow path.
pub const GATE_NO_READ: u64 = 2;
/// Gate bit: commands that change the medium go to the slow path.
pub const GATE_NO_WRITE: u64 = 4;

/// LUN numbers are 14 bits wide (flat addressing).
pub const MAX_LUN: u16 = 0x3fff;

const EVENT_IDX: u64 = 1 << 29;
const LOG_ALL: u64 = 1 << 26;
const SCSI_T10_PI: u64 = 1 << 3;

/// Which LUN: another one may come to the address of one that was removed, and what was meant for that is not for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LunId {
    /// Target number.
    pub target: u8,
    /// LUN number.
    pub number: u16,
    /// Unique in the process, and never zero.
    pub instance: u64,
}

impl LunId {
    /// (target, LUN).
    pub fn address(&self) -> (u8, u16) {
        (self.target, self.number)
    }
}

static NEXT_INSTANCE: AtomicU64 = AtomicU64::new(1);

/// What stays the same of a LUN while its store is swapped.
#[derive(Debug)]
pub struct LunState {
    /// Which it is.
    pub id: LunId,
    gate: AtomicU64,
    doubtful: AtomicBool,
    /// Range locks.
    pub ranges: RangeLocks,
    /// What its commands in Python's hands have charged.
    pub slow: Share,
    /// What it may do at most.
    pub limit: Limit,
    counters: Box<[OnceLock<Box<LunCounters>>]>,
}

impl LunState {
    /// A LUN for a device with so many queues. Its gate is open.
    pub fn new(target: u8, number: u16, queues: usize) -> Self {
        let counters = (0..queues).map(|_| OnceLock::new()).collect();
        LunState {
            id: LunId { target, number, instance: NEXT_INSTANCE.fetch_add(1, Relaxed) },
            gate: AtomicU64::new(0),
            doubtful: AtomicBool::new(false),
            ranges: RangeLocks::default(),
            slow: Share::default(),
            limit: Limit::default(),
            counters,
        }
    }

    /// What must not run on the hot path.
    #[inline(always)]
    pub fn gate(&self) -> u64 {
        self.gate.load(Acquire)
    }

    /// Publish a new gate word.
    pub fn set_gate(&self, word: u64) {
        self.gate.store(word, Release);
    }

    /// blk: whether it is in doubt that the guest knows of a volatile cache; its next flush proves that it does.
    #[inline(always)]
    pub fn is_doubtful(&self) -> bool {
        self.doubtful.load(Relaxed)
    }

    /// Begin or end the doubt.
    pub fn set_doubtful(&self, doubtful: bool) {
        // each flush says so, and a store would take the line with the gate away from all other workers
        if self.is_doubtful() != doubtful {
            self.doubtful.store(doubtful, Relaxed);
        }
    }

    /// The counters of one queue, made at its first use.
    #[inline(always)]
    pub fn counters(&self, queue: u16) -> &LunCounters {
        self.counters[queue as usize].get_or_init(Box::default)
    }

    /// The counters of a queue that has used this LUN.
    pub fn counters_if_used(&self, queue: u16) -> Option<&LunCounters> {
        self.counters.get(queue as usize)?.get().map(|counters| &**counters)
    }
}

/// A LUN as of now: its state and the store that it is mapped to.
#[derive(Debug)]
pub struct Lun {
    /// What survives a swap.
    pub state: Arc<LunState>,
    /// The bytes.
    pub store: Arc<Store>,
    /// log2 of the logical block size.
    pub block_shift: u32,
    /// Place of the store's fd in each worker's table of registered files.
    pub file_slot: Option<u32>,
    /// blk GET_ID.
    pub serial: [u8; 20],
}

/// LUNs by (target, number).
#[derive(Debug, Default, Clone)]
pub struct LunTable(Vec<Vec<Option<Arc<Lun>>>>);

impl LunTable {
    /// The LUN at an address.
    #[inline(always)]
    pub fn get(&self, target: u8, number: u16) -> Option<&Arc<Lun>> {
        self.0.get(target as usize)?.get(number as usize)?.as_ref()
    }

    /// A LUN, unless it was removed.
    pub fn find(&self, id: LunId) -> Option<&Arc<Lun>> {
        self.get(id.target, id.number).filter(|lun| lun.state.id == id)
    }

    /// Put a LUN in its place (or none); returns what was there.
    pub fn replace(&mut self, target: u8, number: u16, lun: Option<Arc<Lun>>) -> Option<Arc<Lun>> {
        let luns = place(&mut self.0, target as usize);
        std::mem::replace(place(luns, number as usize), lun)
    }

    /// All LUNs in order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Lun>> {
        self.0.iter().flatten().flatten()
    }
}

fn place<T: Default>(list: &mut Vec<T>, index: usize) -> &mut T {
    if list.len() <= index {
        list.resize_with(index + 1, T::default);
    }
    &mut list[index]
}

/// The snapshot.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Grows with every change.
    pub generation: u64,
    /// Guest memory.
    pub memory: Arc<MemoryMap>,
    /// LUNs.
    pub luns: Arc<LunTable>,
    /// Dirty log, while there is one.
    pub log: Option<Arc<DirtyLog>>,
    /// Virtio features that the front end acknowledged.
    pub features: u64,
    /// blk: writes may be acknowledged before they are stable.
    pub writeback: bool,
}

impl View {
    /// EVENT_IDX was negotiated.
    pub fn event_idx(&self) -> bool {
        self.features & EVENT_IDX != 0
    }

    /// The log that data writes go to, if LOG_ALL is on.
    #[inline(always)]
    pub fn data_log(&self) -> Option<&DirtyLog> {
        match self.features & LOG_ALL != 0 {
            true => self.log.as_deref(),
            false => None,
        }
    }

    /// Bytes of a SCSI request header: 51, or 59 with T10_PI, as Linux lays it out.
    ///
    /// linux/virtio_scsi.h puts the two PI lengths before the CDB; drivers follow it.
    #[inline(always)]
    pub fn scsi_header_layout(&self) -> ScsiHeaderLayout {
        match self.features & SCSI_T10_PI != 0 {
            false => ScsiHeaderLayout { bytes: 51, cdb: 19 },
            true => ScsiHeaderLayout { bytes: 59, cdb: 27 },
        }
    }
}

/// Where things lie in a virtio-scsi request header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiHeaderLayout {
    /// Bytes in all.
    pub bytes: usize,
    /// Offset of the 32-byte CDB.
    pub cdb: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_layout_follows_the_session() {
        let view = View::default();
        assert_eq!(view.scsi_header_layout(), ScsiHeaderLayout { bytes: 51, cdb: 19 });
        let view = View { features: SCSI_T10_PI, ..view };
        assert_eq!(view.scsi_header_layout(), ScsiHeaderLayout { bytes: 59, cdb: 27 });
    }

    #[test]
    fn luns_are_found_where_they_were_put() {
        let mut table = LunTable::default();
        let state = Arc::new(LunState::new(3, 300, 1));
        let store = Arc::new(Store::null(512));
        let lun = Arc::new(Lun { state, store, block_shift: 9, file_slot: None, serial: [0; 20] });
        assert!(table.replace(3, 300, Some(lun)).is_none());
        assert!(table.get(3, 300).is_some());
        assert!(
            table.get(3, 299).is_none() && table.get(2, 300).is_none() && table.get(255, 16383).is_none()
        );
        assert!(table.replace(3, 300, None).is_some());
        assert_eq!(table.iter().count(), 0);
    }
}
