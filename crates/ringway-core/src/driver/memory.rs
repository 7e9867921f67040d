//! The memory that the driver shares with a back end, mapped whole.
//!
//! All raw access of the driver is here: every accessor checks its range, so that the rest is safe code. An
//! offset in the mapping is as good an identity as an address, and it is what the layout is computed in.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU16;

/// A shared mapping of a whole file. Lives until dropped; the fd may be closed before.
#[derive(Debug)]
pub(crate) struct Memory {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: the mapping belongs to this object and not to a thread, and shared access goes through atomics,
// volatile accesses and copies, as it must for memory that another process writes.
unsafe impl Send for Memory {}
// SAFETY: as above; no accessor hands out a plain reference into the mapping.
unsafe impl Sync for Memory {}

/// Integers that lie in rings and requests, little endian. Any bit pattern is one.
pub(crate) trait Word: Copy {
    /// Turn the little-endian form into the native one, or back.
    fn swap_le(self) -> Self;
}

macro_rules! words {
    ($($kind:ty),*) => {$(impl Word for $kind {
        #[inline(always)]
        fn swap_le(self) -> Self { self.to_le() }
    })*};
}
words!(u8, u16, u32, u64);

impl Memory {
    /// Map all of a file for reading and writing.
    ///
    /// Errors: the kernel's, when it cannot be mapped; `InvalidInput` when it has not even a page.
    pub(crate) fn map(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let size = file_size(fd)?;
        if size < 4096 {
            let text = format!("the memory has only {size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let address = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(ptr::null_mut(), size, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { base, size })
    }

    /// Bytes mapped.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Whether `length` bytes from `offset` on lie in the mapping.
    pub(crate) fn contains(&self, offset: usize, length: usize) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.size)
    }

    /// The address of `length` bytes at `offset`. Panics when they are not all in the mapping.
    #[inline(always)]
    fn at(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(length <= self.size && offset <= self.size - length, "outside of the shared memory");
        // SAFETY: offset lies in the mapping, as just checked.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// The address of one `T` at `offset`. Panics when it is not aligned or not in the mapping.
    #[inline(always)]
    fn place<T>(&self, offset: usize) -> *mut T {
        // The mapping starts at a page, so an aligned offset is an aligned address.
        assert!(offset.is_multiple_of(align_of::<T>()), "misaligned");
        self.at(offset, size_of::<T>()).cast()
    }

    /// Read a word once.
    #[inline(always)]
    pub(crate) fn load<T: Word>(&self, offset: usize) -> T {
        // SAFETY: `place` gives an aligned address in the mapping, where any bits are a T.
        unsafe { self.place::<T>(offset).read_volatile() }.swap_le()
    }

    /// Write a word.
    #[inline(always)]
    pub(crate) fn store<T: Word>(&self, offset: usize, value: T) {
        // SAFETY: `place` gives an aligned address in the mapping, which is writable.
        unsafe { self.place::<T>(offset).write_volatile(value.swap_le()) }
    }

    /// Write some bytes, wherever they lie.
    #[inline(always)]
    pub(crate) fn store_bytes<const N: usize>(&self, offset: usize, bytes: [u8; N]) {
        // SAFETY: N bytes at this address are in the mapping; an array of bytes needs no alignment.
        unsafe { self.at(offset, N).cast::<[u8; N]>().write_volatile(bytes) }
    }

    /// A 16-bit index that both sides share; in the byte order of the ring.
    #[inline(always)]
    pub(crate) fn index(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: aligned and in the mapping, which lives as long as the borrow of self.
        unsafe { &*self.place::<AtomicU16>(offset) }
    }

    /// Copy `words` into the memory, as they are.
    pub(crate) fn copy_in(&self, offset: usize, words: &[u64]) {
        let length = size_of_val(words);
        // SAFETY: the source is a slice of that many bytes, the target is in the mapping; they cannot overlap
        // since nothing hands out slices of the mapping.
        unsafe { ptr::copy_nonoverlapping(words.as_ptr().cast(), self.at(offset, length), length) }
    }

    /// Copy out of the memory into `words`, as they are.
    pub(crate) fn copy_out(&self, offset: usize, words: &mut [u64]) {
        let length = size_of_val(words);
        // SAFETY: as in `copy_in`, the other way round; any bits are a u64.
        unsafe { ptr::copy_nonoverlapping(self.at(offset, length), words.as_mut_ptr().cast(), length) }
    }

    /// Set `length` bytes to one value.
    pub(crate) fn fill(&self, offset: usize, length: usize, value: u8) {
        // SAFETY: that many bytes at this address are in the mapping.
        unsafe { ptr::write_bytes(self.at(offset, length), value, length) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own, and nobody can borrow from it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.size) };
    }
}

/// Bytes in an open file.
fn file_size(fd: BorrowedFd<'_>) -> io::Result<usize> {
    // SAFETY: all zeroes are a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the fd is open for the call, and stat is ours to write.
    if unsafe { libc::fstat(fd.as_raw_fd(), &mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(stat.st_size).map_err(|_| io::ErrorKind::InvalidInput.into())
}
