//! The dirty log: one bit for each 4 KiB page of guest physical memory that the back end wrote.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

use crate::error::Result;
use crate::mapping::Mapping;
use crate::memory::{for_each_span, IoVec, MemoryMap};

/// Page size of the log, whatever the host's is. Spec: vhost-user, "Migration".
pub const LOG_PAGE: u64 = 4096;

/// A mapped log.
#[derive(Debug)]
pub struct DirtyLog(Mapping);

impl DirtyLog {
    /// Map `size` bytes of a log, 8 pages a byte.
    pub fn new(fd: BorrowedFd<'_>, offset: u64, size: u64) -> Result<Self> {
        Mapping::shared(fd, offset, size, true).map(DirtyLog)
    }

    /// Mark `[address, address + len)`. Pages beyond the log's end are nobody's.
    pub fn mark(&self, address: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = address.saturating_add(len - 1) / LOG_PAGE;
        for page in address / LOG_PAGE..=last {
            let byte = (page / 8) as usize;
            if byte >= self.0.len() {
                return;
            }
            // SAFETY: byte < len; AtomicU8 has the layout of u8, and the front end uses atomic operations too.
            let cell = unsafe { AtomicU8::from_ptr(self.0.as_ptr().add(byte)) };
            cell.fetch_or(1 << (page % 8), SeqCst);
        }
    }

    /// Mark the first `len` bytes of a request's writable buffers.
    pub fn mark_spans(&self, memory: &MemoryMap, spans: &[IoVec], skip: usize, len: usize) {
        for_each_span(spans, skip, len, |base, len| {
            if let Some(address) = memory.guest_address(base) {
                self.mark(address, len as u64);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};

    #[test]
    fn marks_every_page_that_was_touched_and_nothing_behind_the_log() {
        // SAFETY: plain system calls; the fd is owned here.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"log".as_ptr(), libc::MFD_CLOEXEC)) };
        let file = std::fs::File::from(fd);
        file.set_len(4096).unwrap();
        let log = DirtyLog::new(file.as_fd(), 0, 4).unwrap();
        log.mark(0x1fff, 2);
        log.mark(31 * LOG_PAGE, 10 * LOG_PAGE);
        log.mark(u64::MAX, u64::MAX);
        log.mark(5 * LOG_PAGE, 0);
        let mut bytes = [0; 5];
        std::os::unix::fs::FileExt::read_at(&file, &mut bytes, 0).unwrap();
        assert_eq!(bytes, [0b0000_0110, 0, 0, 0b1000_0000, 0]);
    }
}
