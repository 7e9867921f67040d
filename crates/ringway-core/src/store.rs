//! Backstores: where the bytes of a disk live.
//!
//! A store is immutable: a resize makes a new one and swaps it under the LUN. The synchronous methods serve
//! the slow path and hosts without io_uring; io_uring submits on [`Store::file_descriptor`] itself.

mod copy;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::bounce::{Bounce, CHUNK};
use crate::error::{ensure, Result};
use crate::mapping::{file_system, Mapping};
use crate::memory::{for_each_span, IoVec};
use copy::{copy_failed, copy_once, Copied};

/// An errno.
pub type Errno = i32;

/// How a file is to be served.
#[derive(Clone, Copy, Debug)]
pub struct FileOptions {
    /// Bytes.
    pub size: u64,
    /// Whether guests may change it.
    pub writable: bool,
    /// The fd bypasses the page cache.
    pub direct: bool,
    /// Serve by loads and stores.
    pub mapped: bool,
    /// The medium takes FALLOC_FL_PUNCH_HOLE.
    pub discard: bool,
    /// Alignment of buffers, bytes.
    pub memory_align: usize,
    /// Alignment of offsets and lengths, bytes.
    pub offset_align: u64,
}

/// What a store is made of.
#[derive(Debug)]
pub enum Media {
    /// Forgets.
    Null,
    /// Loads and stores; `file` is what is mapped (none: anonymous).
    Memory {
        /// The bytes.
        mapping: Mapping,
        /// The file behind them.
        file: Option<OwnedFd>,
        /// A flush has to reach a medium (DAX).
        sync: bool,
    },
    /// Reads and writes on an fd.
    File(OwnedFd),
}

/// Offsets go to the kernel as signed numbers.
const MAX_SIZE: u64 = i64::MAX as u64;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// An open backstore.
#[derive(Debug)]
pub struct Store {
    media: Media,
    options: FileOptions,
    id: u64,
    remote: bool,
    threads: bool,
}

/// FUSE and virtiofs. From linux/magic.h.
const FUSE: i64 = 0x6573_5546;
/// File systems whose reads and writes wait for somebody else where they are called, whatever is asked of them: FUSE,
/// NFS, SMB (two), 9P, Ceph, AFS (two). From linux/magic.h; CIFS and Ceph have theirs in fs/.
const REMOTE: [i64; 8] =
    [FUSE, 0x6969, 0xfe53_4d42, 0xff53_4d42, 0x0102_1997, 0x00c3_6400, 0x5346_414f, 0x6b41_4653];

impl Store {
    fn with(media: Media, options: FileOptions) -> Self {
        Store { media, options, id: NEXT_ID.fetch_add(1, Relaxed), remote: false, threads: false }
    }

    fn volatile(size: u64) -> FileOptions {
        FileOptions {
            size,
            writable: true,
            direct: false,
            mapped: true,
            discard: true,
            memory_align: 1,
            offset_align: 1,
        }
    }

    /// A disk that forgets.
    pub fn null(size: u64) -> Self {
        Self::with(Media::Null, Self::volatile(size))
    }

    /// A disk in anonymous memory.
    pub fn ram(size: u64) -> Result<Self> {
        let mapping = Mapping::anonymous(size)?;
        // SAFETY: advice on our own mapping; huge pages spare TLB misses and are only a wish.
        unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.len(), libc::MADV_HUGEPAGE) };
        Ok(Self::with(Media::Memory { mapping, file: None, sync: false }, Self::volatile(size)))
    }

    /// A raw file or a block device.
    pub fn file(fd: OwnedFd, options: FileOptions) -> Result<Self> {
        let aligned = options.memory_align.is_power_of_two() && options.offset_align.is_power_of_two();
        ensure(aligned && (1..=MAX_SIZE).contains(&options.size), || format!("a store of {options:?}"))?;
        if !options.mapped {
            let (magic, _) = file_system(fd.as_fd())?;
            let (remote, threads) = (REMOTE.contains(&magic), magic == FUSE);
            return Ok(Store { remote, threads, ..Self::with(Media::File(fd), options) });
        }
        let mapping = Mapping::shared(fd.as_fd(), 0, options.size, options.writable)?;
        let (magic, _) = file_system(fd.as_fd())?;
        let sync = ![libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC].contains(&magic);
        Ok(Self::with(Media::Memory { mapping, file: Some(fd), sync }, options))
    }

    /// What it is made of.
    #[inline(always)]
    pub fn media(&self) -> &Media {
        &self.media
    }

    /// How it is served.
    #[inline(always)]
    pub fn options(&self) -> &FileOptions {
        &self.options
    }

    /// Whether its I/O may wait for somebody else where it is submitted: a thread of the kernel has to do that.
    #[inline(always)]
    pub fn is_remote(&self) -> bool {
        self.remote
    }

    /// Whether reads may find what they want in this host's page cache.
    pub fn is_cached(&self) -> bool {
        !self.options.direct && !self.remote
    }

    /// Whether io_uring is not to read and write it: FUSE.
    #[inline(always)]
    pub fn needs_threads(&self) -> bool {
        self.threads
    }

    /// Unique in this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Bytes.
    #[inline(always)]
    pub fn size(&self) -> u64 {
        self.options.size
    }

    /// The fd that io_uring reads, writes and syncs, if any.
    pub fn file_descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.media {
            Media::File(fd) => Some(fd.as_fd()),
            Media::Memory { file, sync: true, .. } => file.as_ref().map(AsFd::as_fd),
            _ => None,
        }
    }

    /// Whether `[offset, offset + len)` lies inside.
    #[inline(always)]
    pub fn contains(&self, offset: u64, len: u64) -> bool {
        offset <= self.options.size && len <= self.options.size - offset
    }

    /// Whether spans can go to the file as they are.
    pub fn takes(&self, spans: &[IoVec]) -> bool {
        if self.options.memory_align == 1 && !self.options.direct {
            return true;
        }
        // statx(2): the offset's alignment binds each segment's length too
        let (place, length) = (self.options.memory_align - 1, self.options.offset_align as usize - 1);
        spans.iter().all(|span| span.base as usize & place == 0 && span.len & length == 0)
    }

    /// Copy between guest spans (from `skip` on, `len` bytes) and a store in memory.
    ///
    /// `Err(EIO)` when a page of the store or of the guest was gone, `Err(ENOSPC)` when there was no room for one.
    #[inline(always)]
    pub fn copy(
        &self,
        write: bool,
        offset: u64,
        spans: &[IoVec],
        skip: usize,
        len: usize,
    ) -> Result<(), Errno> {
        let Media::Memory { mapping, file, .. } = &self.media else { return Ok(()) };
        debug_assert!(self.contains(offset, len as u64));
        match copy_once(mapping, write, offset, spans, skip, len) {
            Copied::Whole => Ok(()),
            failed => copy_failed(mapping, file.as_ref(), failed, (write, offset, spans, skip, len)),
        }
    }

    /// Read or write synchronously; `fua` makes a write stable before it returns.
    pub fn transfer(
        &self,
        write: bool,
        offset: u64,
        spans: &[IoVec],
        skip: usize,
        len: usize,
        fua: bool,
    ) -> Result<(), Errno> {
        match &self.media {
            Media::Null => Ok(()),
            Media::Memory { .. } => {
                self.copy(write, offset, spans, skip, len)?;
                if fua && write {
                    self.flush()?;
                }
                Ok(())
            }
            Media::File(fd) => {
                let mut parts = Vec::with_capacity(spans.len());
                for_each_span(spans, skip, len, |base, len| parts.push(IoVec { base, len }));
                if self.takes(&parts) {
                    return transfer_all(fd.as_raw_fd(), write, offset, &mut parts, fua);
                }
                self.transfer_bounced(fd.as_raw_fd(), write, offset, &parts, len, fua)
            }
        }
    }

    fn transfer_bounced(
        &self,
        fd: RawFd,
        write: bool,
        offset: u64,
        parts: &[IoVec],
        len: usize,
        fua: bool,
    ) -> Result<(), Errno> {
        let mut bounce = Bounce::new(len.min(CHUNK));
        for start in (0..len).step_by(CHUNK) {
            let part = (len - start).min(CHUNK);
            if write {
                crate::memory::gather(parts, start, bounce.bytes(part));
            }
            transfer_all(fd, write, offset + start as u64, &mut [bounce.span(part)], fua)?;
            if !write {
                crate::memory::scatter(parts, start, bounce.bytes(part));
            }
        }
        Ok(())
    }

    /// What it is, in a word.
    pub fn kind(&self) -> &'static str {
        match &self.media {
            Media::Null => "null",
            Media::Memory { file: None, .. } => "ram",
            Media::Memory { .. } => "mapped",
            Media::File(_) => "file",
        }
    }

    /// Read into a buffer of ours; the caller asked [`Store::contains`].
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        buffer.fill(0);
        let spans = [IoVec { base: buffer.as_mut_ptr(), len: buffer.len() }];
        self.transfer(false, offset, &spans, 0, buffer.len(), false)
    }

    /// Write from a buffer of ours; the caller asked [`Store::contains`].
    pub fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Errno> {
        let spans = [IoVec { base: data.as_ptr().cast_mut(), len: data.len() }];
        self.transfer(true, offset, &spans, 0, data.len(), fua)
    }

    /// Make all that was written stable.
    pub fn flush(&self) -> Result<(), Errno> {
        match self.file_descriptor() {
            // SAFETY: a plain system call on an fd that we own.
            Some(fd) => retry(|| unsafe { libc::fdatasync(fd.as_raw_fd()) } as isize).map(drop),
            None => Ok(()),
        }
    }

    /// Zero a range; with `unmap` give its space back where the medium can.
    pub fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Errno> {
        match &self.media {
            Media::Null => Ok(()),
            Media::Memory { mapping, file: None, .. } => {
                zero_anonymous(mapping, offset as usize, len as usize);
                Ok(())
            }
            Media::Memory { file: Some(fd), .. } | Media::File(fd) => self.zero_file(fd, offset, len, unmap),
        }
    }

    fn zero_file(&self, fd: &OwnedFd, offset: u64, len: u64, unmap: bool) -> Result<(), Errno> {
        let mode = self.zero_mode(unmap);
        // SAFETY: a plain system call on an fd that we own.
        let call =
            || unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset.cast_signed(), len.cast_signed()) }
                as isize;
        match retry(call) {
            Err(libc::EOPNOTSUPP) => self.write_zeroes(offset, len),
            other => other.map(drop),
        }
    }

    /// The fallocate mode that zeroes: by a hole where that is wanted and can be, else in place.
    pub fn zero_mode(&self, unmap: bool) -> i32 {
        match unmap && self.options.discard {
            true => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            // tmpfs has no ZERO_RANGE: a hole reads as zeroes too
            false if matches!(self.media, Media::Memory { .. }) => {
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE
            }
            false => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        }
    }

    /// Zero by writing: the way that every file system has.
    fn write_zeroes(&self, mut offset: u64, mut len: u64) -> Result<(), Errno> {
        let bounce = Bounce::new(CHUNK.min(len as usize));
        while len > 0 {
            let part = len.min(CHUNK as u64);
            self.transfer(true, offset, &[bounce.span(part as usize)], 0, part as usize, false)?;
            offset += part;
            len -= part;
        }
        Ok(())
    }
}

fn zero_anonymous(mapping: &Mapping, offset: usize, len: usize) {
    let (start, end) = (offset.next_multiple_of(4096), (offset + len) & !4095);
    // SAFETY: the caller asked `contains`; private anonymous pages read as zero after DONTNEED.
    unsafe {
        let base = mapping.as_ptr();
        if start >= end {
            return ptr::write_bytes(base.add(offset), 0, len);
        }
        ptr::write_bytes(base.add(offset), 0, start - offset);
        libc::madvise(base.add(start).cast(), end - start, libc::MADV_DONTNEED);
        ptr::write_bytes(base.add(end), 0, offset + len - end);
    }
}

/// Repeat a system call while it is interrupted.
fn retry(mut call: impl FnMut() -> isize) -> Result<usize, Errno> {
    loop {
        let done = call();
        if done >= 0 {
            return Ok(done as usize);
        }
        match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::EINTR) => continue,
            errno => return Err(errno.unwrap_or(libc::EIO)),
        }
    }
}

/// preadv or pwritev until all is done; short transfers go on, an end of file is EIO.
fn transfer_all(
    fd: RawFd,
    write: bool,
    mut offset: u64,
    spans: &mut [IoVec],
    fua: bool,
) -> Result<(), Errno> {
    let mut rest = spans;
    let flags = if fua && write { libc::RWF_DSYNC } else { 0 };
    while !rest.is_empty() {
        let count = i32::try_from(rest.len().min(1024)).expect("1024 at most");
        let (list, at) = (rest.as_ptr().cast::<libc::iovec>(), offset.cast_signed());
        // SAFETY: IoVec has iovec's layout; the spans are mapped for as long as the caller holds them.
        let done = retry(|| unsafe {
            match write {
                true => libc::pwritev2(fd, list, count, at, flags),
                false => libc::preadv2(fd, list, count, at, flags),
            }
        })?;
        if done == 0 {
            return Err(libc::EIO);
        }
        offset += done as u64;
        rest = advance(rest, done);
    }
    Ok(())
}

/// Drop `done` bytes from the front of a list of spans.
pub fn advance(mut spans: &mut [IoVec], mut done: usize) -> &mut [IoVec] {
    while let Some(first) = spans.first_mut() {
        if done < first.len {
            // SAFETY: done < len.
            first.base = unsafe { first.base.add(done) };
            first.len -= done;
            break;
        }
        done -= first.len;
        spans = &mut spans[1..];
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::FromRawFd;

    fn memfd(size: u64) -> File {
        // SAFETY: plain system calls; the fd is owned here.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"store".as_ptr(), libc::MFD_CLOEXEC)) };
        file.set_len(size).unwrap();
        file
    }

    fn stores() -> Vec<Store> {
        let options = |mapped| FileOptions { mapped, ..Store::volatile(1 << 16) };
        let odd = FileOptions { memory_align: 512, direct: true, ..options(false) };
        vec![
            Store::ram(1 << 16).unwrap(),
            Store::file(memfd(1 << 16).into(), options(true)).unwrap(),
            Store::file(memfd(1 << 16).into(), options(false)).unwrap(),
            Store::file(memfd(1 << 16).into(), odd).unwrap(),
        ]
    }

    fn spans(bytes: &mut [u8]) -> Vec<IoVec> {
        bytes.chunks_mut(700).map(|part| IoVec { base: part.as_mut_ptr(), len: part.len() }).collect()
    }

    #[test]
    fn what_was_written_is_read_and_what_was_zeroed_is_zero() {
        for store in stores() {
            let mut data: Vec<u8> = (0..8192u32).map(|i| (i % 251) as u8).collect();
            store.transfer(true, 4096, &spans(&mut data), 100, 8000, true).unwrap();
            store.zero(5000, 4096, true).unwrap();
            store.zero(9100, 10, false).unwrap();
            store.flush().unwrap();
            let mut back = vec![9; 8000];
            store.transfer(false, 4096, &spans(&mut back), 0, 8000, false).unwrap();
            let mut expected = data[100..8100].to_vec();
            expected[904..5000].fill(0);
            expected[5004..5014].fill(0);
            assert!(back == expected, "{:?}", store.media());
        }
    }

    #[test]
    fn a_mapped_file_that_shrinks_is_an_error_of_the_request() {
        let file = memfd(1 << 16);
        let options = FileOptions { mapped: true, ..Store::volatile(1 << 16) };
        let store = Store::file(file.try_clone().unwrap().into(), options).unwrap();
        file.set_len(0).unwrap();
        let mut data = vec![0; 4096];
        assert_eq!(store.transfer(false, 8192, &spans(&mut data), 0, 4096, false), Err(libc::EIO));
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_of_the_request() {
        let file = memfd(1 << 16);
        let options = FileOptions { mapped: false, ..Store::volatile(1 << 16) };
        let store = Store::file(file.try_clone().unwrap().into(), options).unwrap();
        file.set_len(4096).unwrap();
        let mut data = vec![0; 8192];
        assert_eq!(store.transfer(false, 0, &spans(&mut data), 0, 8192, false), Err(libc::EIO));
    }
}
