//! Shared mappings that survive their file's shrinking.
//!
//! A load or store behind the end of a truncated file raises SIGBUS. The handler here puts a zero page under the
//! faulting address of a known mapping (zeroes up to its end, once that was often), marks the mapping broken and goes
//! on; whoever copies asks [`faults`] afterwards and fails the request. Faults elsewhere keep their old meaning.
//!
//! A file system that is full raises it, too, and has room again later: [`Mapping::repair`] puts the file back under
//! a mapping. What was copied meanwhile may have gone to one of those pages, which [`Mapping::epoch`] tells.
//!
//! The kernel may have no room for such a page: too many mappings, too much data. Then what needs less room stands in:
//! shared memory, which is nobody's data, and what is left of the mapping, which splits it once and not twice. The
//! process dies only where there is no memory left to promise, as it would in its allocator.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{compiler_fence, AtomicBool, AtomicU32, AtomicUsize, Ordering::*};
use std::sync::Once;

use crate::epoch::Epoch;
use crate::error::{ensure, Error, Result};
use crate::membarrier;

const GUARDS: usize = 2048;
/// Pages of a mapping that are put under it one by one; the next one brings all behind it along.
const SINGLE_PAGES: u32 = 64;
/// Of all mappings together: each may make two mappings of the kernel's more, of which a process has 65,530.
const ALL_SINGLE_PAGES: u32 = 8192;

struct Guard {
    start: AtomicUsize,
    end: AtomicUsize,
    page: AtomicUsize,
    taken: AtomicBool,
    /// Which pages are the file's.
    epoch: Epoch,
    /// Handlers at work.
    handling: AtomicU32,
    /// Pages that were put under it one by one.
    pages: AtomicU32,
}

impl Guard {
    /// Whether a page may be put under it alone.
    fn takes_single(&self) -> bool {
        if !charge(&SINGLES, ALL_SINGLE_PAGES) {
            return false;
        }
        let fits = charge(&self.pages, SINGLE_PAGES);
        if !fits {
            SINGLES.fetch_sub(1, SeqCst);
        }
        fits
    }

    /// Its single pages are gone.
    fn forget_singles(&self) {
        SINGLES.fetch_sub(self.pages.swap(0, SeqCst), SeqCst);
    }

    /// Put zeroes under a page that is gone, of a mapping up to `end`; whether there was room.
    fn stand_in(&self, address: usize, end: usize) -> bool {
        let page = self.page.load(Acquire);
        let base = address & !(page - 1);
        self.takes_single() && put_zeroes(base, page) || put_zeroes(base, end - base)
    }
}

/// Count one more, if there are fewer than so many.
fn charge(counter: &AtomicU32, most: u32) -> bool {
    let fits = counter.fetch_add(1, SeqCst) < most;
    if !fits {
        counter.fetch_sub(1, SeqCst);
    }
    fits
}

/// Map zeroes in place of a part of a mapping of ours; whether there was room. Private ones, or else shared ones: these
/// count against no limit on a process's data.
fn put_zeroes(base: usize, len: usize) -> bool {
    let flags = libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    [libc::MAP_PRIVATE, libc::MAP_SHARED].iter().any(|kind| {
        // SAFETY: mmap is a bare system call; the range lies inside a mapping that we own, and MAP_FIXED replaces just
        // that. (An older kernel may have taken it away before it fails: the next attempt fills the hole.)
        let mapped = unsafe {
            let at = base as *mut libc::c_void;
            libc::mmap(at, len, libc::PROT_READ | libc::PROT_WRITE, flags | kind, -1, 0)
        };
        mapped != libc::MAP_FAILED
    })
}

static TABLE: [Guard; GUARDS] = [const {
    Guard {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        taken: AtomicBool::new(false),
        epoch: Epoch(AtomicU32::new(0)),
        handling: AtomicU32::new(0),
        pages: AtomicU32::new(0),
    }
}; GUARDS];
/// Pages that stand in one by one, in all mappings.
static SINGLES: AtomicU32 = AtomicU32::new(0);
static FAULTS: AtomicU32 = AtomicU32::new(0);
static INSTALL: Once = Once::new();

thread_local! {
    /// Whether this thread took a fault that [`faulted_since`] has not reported.
    static FAULTED: AtomicBool = const { AtomicBool::new(false) };
}

/// How often a mapping broke since the process started, in any thread. For [`faulted_since`].
#[inline(always)]
pub fn faults() -> u32 {
    FAULTS.load(Relaxed)
}

/// Whether this thread touched a page that was gone, since it asked [`faults`]. SIGBUS comes to the thread that
/// faults; the process-wide count merely spares a look at the thread's own flag.
#[inline(always)]
pub fn faulted_since(before: u32) -> bool {
    compiler_fence(SeqCst); // between a copy and what this thread's own signal handler has noted of it
    faults() != before && FAULTED.with(|faulted| faulted.swap(false, Relaxed))
}

extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    for guard in &TABLE {
        let (start, end) = (guard.start.load(Acquire), guard.end.load(Acquire));
        if !(start..end).contains(&address) {
            continue;
        }
        guard.handling.fetch_add(1, SeqCst);
        guard.epoch.spoil(); // before there is a page that is not the file's, and after: see `repair`
        let mapped = guard.stand_in(address, end);
        guard.epoch.spoil();
        guard.handling.fetch_sub(1, SeqCst);
        if mapped {
            FAULTED.with(|faulted| faulted.store(true, Relaxed));
            FAULTS.fetch_add(1, Release);
            return;
        }
    }
    // SAFETY: restores the default action; the instruction faults again and the process dies as it should.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

fn install_handler() {
    INSTALL.call_once(|| {
        membarrier::prepare();
        // SAFETY: a zeroed sigaction is valid; the handler is async-signal-safe (atomics and mmap only).
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
        }
    });
}

/// A shared or private mapping of `len` bytes, unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    base: *mut u8,
    mapped: usize,
    skip: usize,
    len: usize,
    guard: usize,
    protection: i32,
    /// Offset of the first mapped byte in the file.
    offset: i64,
}

// SAFETY: the mapping is plain memory; all access goes through raw pointers whose users bring their own ordering.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Map `len` bytes of a file from any offset, shared.
    pub fn shared(fd: BorrowedFd<'_>, offset: u64, len: u64, writable: bool) -> Result<Self> {
        let page = page_size(fd)?;
        let skip = offset % page as u64;
        let total = len.checked_add(skip).filter(|total| *total <= isize::MAX as u64);
        let total = total.ok_or_else(|| Error::Invalid(format!("a mapping of {len} bytes at {offset}")))?;
        ensure(len > 0, || "an empty mapping".into())?;
        check_length(fd, offset, len)?;
        let mapped = (total as usize).div_ceil(page) * page;
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        let start = i64::try_from(offset - skip).map_err(|_| Error::errno("mmap", libc::EOVERFLOW))?;
        Self::map(
            mapped,
            page,
            skip as usize,
            len as usize,
            protection,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            start,
        )
    }

    /// Anonymous zero memory, not reserved.
    pub fn anonymous(len: u64) -> Result<Self> {
        ensure(len > 0 && len <= isize::MAX as u64, || format!("a mapping of {len} bytes"))?;
        let mapped = (len as usize).div_ceil(4096) * 4096;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        Self::map(mapped, 4096, 0, len as usize, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    }

    #[allow(clippy::too_many_arguments)]
    fn map(
        mapped: usize,
        page: usize,
        skip: usize,
        len: usize,
        protection: i32,
        flags: i32,
        fd: i32,
        offset: i64,
    ) -> Result<Self> {
        install_handler();
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let base = unsafe { libc::mmap(ptr::null_mut(), mapped, protection, flags, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(Error::last_os("mmap"));
        }
        // SAFETY: advice on our own mapping; guest memory does not belong in a core dump of ours or in a child.
        unsafe {
            libc::madvise(base, mapped, libc::MADV_DONTDUMP);
            libc::madvise(base, mapped, libc::MADV_DONTFORK);
        }
        let base = base.cast::<u8>();
        let mut mapping = Mapping { base, mapped, skip, len, guard: GUARDS, protection, offset };
        mapping.guard = claim_guard(base as usize, mapped, page)?;
        Ok(mapping)
    }

    /// First byte.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: skip < mapped.
        unsafe { self.base.add(self.skip) }
    }

    /// Length in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: empty mappings are refused.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tells what was copied whether it met the file.
    #[inline(always)]
    pub fn epoch(&self) -> &Epoch {
        &TABLE[self.guard].epoch
    }

    /// Put the file back under a shared mapping that is broken; what is not there breaks it again. From any thread.
    ///
    /// It stays broken when the kernel has no room for that.
    #[cold]
    pub fn repair(&self, fd: BorrowedFd<'_>) {
        let guard = &TABLE[self.guard];
        loop {
            let epoch = guard.epoch.now();
            if epoch & 1 == 0 {
                return;
            }
            if guard.handling.load(SeqCst) > 0 {
                std::thread::yield_now();
                continue;
            }
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            // SAFETY: our own mapping, of the same file and size as before; who reads or writes in it goes on.
            let base = unsafe {
                libc::mmap(self.base.cast(), self.mapped, self.protection, flags, fd.as_raw_fd(), self.offset)
            };
            // a handler that began after the look at `handling` has changed the epoch: its page may lie over ours
            let mended = base != libc::MAP_FAILED;
            if mended || put_zeroes(self.base as usize, self.mapped) {
                guard.forget_singles();
            }
            if !mended || guard.epoch.mend(epoch) {
                // SAFETY: advice on our own mapping, as in `map`.
                unsafe {
                    libc::madvise(self.base.cast(), self.mapped, libc::MADV_DONTDUMP);
                    libc::madvise(self.base.cast(), self.mapped, libc::MADV_DONTFORK);
                }
                return;
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.guard < GUARDS {
            TABLE[self.guard].end.store(0, Release);
            TABLE[self.guard].start.store(0, Release);
        }
        // SAFETY: our own mapping, and nobody holds a pointer into it any more.
        unsafe { libc::munmap(self.base.cast(), self.mapped) };
        if self.guard < GUARDS {
            TABLE[self.guard].forget_singles();
            TABLE[self.guard].taken.store(false, Release);
        }
    }
}

fn claim_guard(start: usize, len: usize, page: usize) -> Result<usize> {
    let free = TABLE.iter().position(|g| g.taken.compare_exchange(false, true, AcqRel, Relaxed).is_ok());
    let index = free.ok_or_else(|| Error::errno("mappings", libc::ENOMEM))?;
    let guard = &TABLE[index];
    guard.epoch.0.store(0, SeqCst);
    guard.page.store(page, Release);
    guard.start.store(start, Release);
    guard.end.store(start + len, Release);
    Ok(index)
}

/// The page size that a mapping of this file has (hugetlbfs: its huge page).
fn page_size(fd: BorrowedFd<'_>) -> Result<usize> {
    Ok(match file_system(fd)? {
        (libc::HUGETLBFS_MAGIC, block) if block.is_power_of_two() => block,
        _ => 4096,
    })
}

/// (magic, block size) of the file system that a file lies on.
pub fn file_system(fd: BorrowedFd<'_>) -> Result<(i64, usize)> {
    // SAFETY: statfs is plain data and the kernel fills it.
    let stat = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        if libc::fstatfs(fd.as_raw_fd(), &mut stat) < 0 {
            return Err(Error::last_os("fstatfs"));
        }
        stat
    };
    Ok((stat.f_type, stat.f_bsize as usize))
}

/// (st_dev, st_ino, st_mode, st_size).
pub fn file_status(fd: BorrowedFd<'_>) -> Result<(u64, u64, u32, u64)> {
    // SAFETY: stat is plain data and the kernel fills it.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        if libc::fstat(fd.as_raw_fd(), &mut stat) < 0 {
            return Err(Error::last_os("fstat"));
        }
        Ok((stat.st_dev, stat.st_ino, stat.st_mode, stat.st_size as u64))
    }
}

fn check_length(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<()> {
    let (_, _, mode, size) = file_status(fd)?;
    let short = mode & libc::S_IFMT == libc::S_IFREG && offset.checked_add(len).is_none_or(|end| end > size);
    if short {
        return Err(Error::errno("the file is shorter than the mapping", libc::EINVAL));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_file_that_shrinks_breaks_its_mapping_and_not_the_process() {
        let path = std::env::temp_dir().join(format!("ringway-mapping-{}", std::process::id()));
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(8192).unwrap();
        let mapping = Mapping::shared(file.as_fd(), 0, 8192, true).unwrap();
        let before = faults();
        file.set_len(0).unwrap();
        // SAFETY: inside the mapping; the handler supplies a page.
        let byte = unsafe { mapping.as_ptr().add(5000).read_volatile() };
        assert_eq!(byte, 0);
        assert!(faulted_since(before));
        assert!(!faulted_since(before), "a fault is reported once");
        std::thread::spawn(move || assert!(!faulted_since(before), "another thread's copies are good"))
            .join()
            .unwrap();
        assert_eq!(mapping.epoch().now() & 1, 1);
        file.set_len(8192).unwrap();
        mapping.repair(file.as_fd());
        let mended = mapping.epoch().now();
        let before = faults();
        // SAFETY: inside the mapping, which is the file's again.
        unsafe { mapping.as_ptr().add(5000).write_volatile(7) };
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 5000).unwrap();
        assert_eq!((byte[0], mapping.epoch().now(), faulted_since(before)), (7, mended, false));
        assert_eq!(mended & 1, 0);
    }

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let size = file.metadata().unwrap().len();
        assert!(Mapping::shared(file.as_fd(), 0, size + 1, false).is_err());
        assert!(Mapping::shared(file.as_fd(), u64::MAX - 10, 20, false).is_err());
    }
}
