//! What a driver and a device of the tests share, and how they are started.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::device::{Device, Fault};
use crate::driver::memory::Memory;
use crate::driver::{Config, Kind, LoadDriver, RingOffsets};

const RING_SPACE: usize = 1 << 16;
const MEMORY_BYTES: usize = 32 << 20;

/// How a pair of driver and device is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub kind: Kind,
    pub queues: usize,
    pub queue_size: u16,
    pub event_idx: bool,
    pub indirect: bool,
    /// Where the ring indices start.
    pub base: u16,
    pub guest_base: u64,
    /// The device sleeps until it is kicked.
    pub sleeps: bool,
    pub fault: Fault,
    pub luns: usize,
    pub disk_bytes: usize,
    pub timeout: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            kind: Kind::Scsi,
            queues: 1,
            queue_size: 128,
            event_idx: true,
            indirect: true,
            base: 0,
            guest_base: 0,
            sleeps: false,
            fault: Fault::None,
            luns: 1,
            disk_bytes: 64 << 10,
            timeout: Duration::from_secs(180),
        }
    }
}

/// The memory and the eventfds that both sides share.
pub(crate) struct Shared {
    pub setup: Setup,
    pub memory: OwnedFd,
    pub kicks: Vec<OwnedFd>,
}

impl Shared {
    pub(crate) fn new(setup: Setup) -> Self {
        let memory = memfd(MEMORY_BYTES);
        let map = Memory::map(memory.as_fd()).unwrap();
        for queue in 0..setup.queues {
            let at = offsets(queue);
            map.store(at.available + 2, setup.base);
            map.store(at.used + 2, setup.base);
        }
        let kicks = (0..setup.queues).map(|_| eventfd()).collect();
        Self { setup, memory, kicks }
    }

    pub(crate) fn driver(&self) -> LoadDriver {
        let rings: Vec<_> = (0..self.setup.queues).map(offsets).collect();
        let kick_fds: Vec<_> = self.kicks.iter().map(AsFd::as_fd).collect();
        let Setup { kind, queue_size, event_idx, indirect, guest_base, timeout, .. } = self.setup;
        let (rings, kick_fds) = (rings.as_slice(), kick_fds.as_slice());
        let data_offset = self.setup.queues * RING_SPACE;
        let config = Config {
            kind,
            rings,
            queue_size,
            kick_fds,
            data_offset,
            event_idx,
            indirect,
            guest_base,
            timeout,
        };
        LoadDriver::new(self.memory.as_fd(), &config).unwrap()
    }

    /// Requests that the driver has submitted since the start.
    pub(crate) fn submitted(&self) -> usize {
        let map = Memory::map(self.memory.as_fd()).unwrap();
        let count = |queue| map.load::<u16>(offsets(queue).available + 2).wrapping_sub(self.setup.base);
        (0..self.setup.queues).map(|queue| usize::from(count(queue))).sum()
    }

    /// A device at the rings as they are, over these disks; it runs `held` first.
    pub(crate) fn start(&self, fault: Fault, disks: Vec<Vec<u8>>, held: Vec<(usize, u16)>) -> Running {
        let device = Device::new(self, fault, disks, held);
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        Running { stop, thread: Some(std::thread::spawn(move || device.run(&seen))) }
    }
}

/// A driver and a running device with empty disks.
pub(crate) fn pair(setup: Setup) -> (LoadDriver, Running) {
    let shared = Shared::new(setup);
    let running = shared.start(setup.fault, vec![vec![0; setup.disk_bytes]; setup.luns], Vec::new());
    (shared.driver(), running)
}

/// A device's thread.
pub(crate) struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Device>>,
}

impl Running {
    /// Stop it where it is, and see what it had.
    pub(crate) fn stop(mut self) -> Device {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Where the tests put the ring of a queue.
pub(crate) fn offsets(queue: usize) -> RingOffsets {
    let start = queue * RING_SPACE;
    RingOffsets { descriptors: start, available: start + 0x4000, used: start + 0x8000 }
}

pub(crate) fn memfd(size: usize) -> OwnedFd {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"driver-test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: the fd is new and nobody else's.
    let file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(size as u64).unwrap();
    file.into()
}

pub(crate) fn eventfd() -> OwnedFd {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    assert!(fd >= 0);
    // SAFETY: the fd is new and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
