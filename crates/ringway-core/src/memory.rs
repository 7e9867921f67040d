//! Guest memory: an immutable map from guest physical (and front-end user) addresses to host pointers.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::error::{ensure, Error, Result};
use crate::mapping::{file_status, Mapping};

/// A span of host memory; the layout of `struct iovec`, so that a slice of them goes to the kernel as it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoVec {
    /// First byte.
    pub base: *mut u8,
    /// Bytes.
    pub len: usize,
}

/// One region that a front end shares.
#[derive(Debug)]
pub struct Region {
    mapping: Mapping,
    /// Guest physical address of the first byte.
    pub guest_address: u64,
    /// The front end's own address of the first byte.
    pub user_address: u64,
    /// Offset in the fd.
    pub mmap_offset: u64,
    /// (st_dev, st_ino) of the memory's file.
    pub identity: (u64, u64),
}

impl Region {
    /// Map a region.
    ///
    /// Addresses that wrap are refused, so that `address + size` never overflows later.
    pub fn new(fd: BorrowedFd<'_>, guest: u64, size: u64, user: u64, offset: u64) -> Result<Self> {
        let wraps = guest.checked_add(size).is_none() || user.checked_add(size).is_none();
        ensure(size > 0 && !wraps, || {
            format!("a region of {size} bytes at guest {guest:#x}, user {user:#x}")
        })?;
        let (device, inode, _, _) = file_status(fd)?;
        let mapping = Mapping::shared(fd, offset, size, true)?;
        Ok(Region {
            mapping,
            guest_address: guest,
            user_address: user,
            mmap_offset: offset,
            identity: (device, inode),
        })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.mapping.len() as u64
    }
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: u64,
    end: u64,
    host: *mut u8,
}

/// The regions of a guest, sorted by guest address; never changed, only replaced.
#[derive(Debug, Default)]
pub struct MemoryMap {
    spans: Vec<Span>,
    regions: Vec<Arc<Region>>,
}

// SAFETY: the pointers lead into `regions`, which are Send + Sync and live as long as the map.
unsafe impl Send for MemoryMap {}
// SAFETY: as above.
unsafe impl Sync for MemoryMap {}

impl MemoryMap {
    /// Build a map. Regions may touch but not overlap.
    pub fn new(mut regions: Vec<Arc<Region>>) -> Result<Self> {
        regions.sort_by_key(|region| region.guest_address);
        let spans: Vec<Span> = regions.iter().map(|region| Span::of(region)).collect();
        let overlap = spans.windows(2).find(|pair| pair[0].end > pair[1].start);
        ensure(overlap.is_none(), || {
            format!("two memory regions overlap at {:#x}", overlap.unwrap()[1].start)
        })?;
        Ok(MemoryMap { spans, regions })
    }

    /// Host pointer of a guest address, and how many bytes follow it in its region.
    ///
    /// `hint` remembers the last hit: buffers of one guest mostly lie in one region.
    #[inline(always)]
    pub fn translate(&self, guest: u64, hint: &mut usize) -> Option<(*mut u8, u64)> {
        match self.spans.get(*hint) {
            Some(span) if span.contains(guest) => Some(span.at(guest)),
            _ => self.search(guest, hint),
        }
    }

    #[cold]
    #[inline(never)]
    fn search(&self, guest: u64, hint: &mut usize) -> Option<(*mut u8, u64)> {
        let index = self.spans.partition_point(|span| span.end <= guest);
        let span = self.spans.get(index).filter(|span| span.contains(guest))?;
        *hint = index;
        Some(span.at(guest))
    }

    /// Append the host spans of `[guest, guest + len)`; false when a byte of it is not guest memory.
    #[inline(always)]
    pub fn append(&self, guest: u64, len: u32, hint: &mut usize, out: &mut Vec<IoVec>) -> bool {
        let len = u64::from(len);
        match self.translate(guest, hint) {
            Some((base, room)) if len <= room => {
                out.push(IoVec { base, len: len as usize });
                true
            }
            Some(_) => self.append_split(guest, len, hint, out),
            None => false,
        }
    }

    /// A buffer that runs over from one region into the next.
    #[cold]
    fn append_split(&self, mut guest: u64, mut len: u64, hint: &mut usize, out: &mut Vec<IoVec>) -> bool {
        while len > 0 {
            let Some((base, room)) = self.translate(guest, hint) else { return false };
            let part = len.min(room);
            out.push(IoVec { base, len: part as usize });
            len -= part;
            match guest.checked_add(part) {
                Some(next) => guest = next,
                None => return len == 0,
            }
        }
        true
    }

    /// Host pointer of a user address range that lies in one region.
    pub fn user(&self, address: u64, len: u64) -> Option<*mut u8> {
        self.regions.iter().find_map(|region| {
            let offset = address.checked_sub(region.user_address)?;
            let fits = offset <= region.size() && len <= region.size() - offset;
            // SAFETY: the offset lies inside the mapping.
            fits.then(|| unsafe { region.mapping.as_ptr().add(offset as usize) })
        })
    }

    /// Guest address of a host pointer (dirty logging only).
    pub fn guest_address(&self, host: *const u8) -> Option<u64> {
        self.spans.iter().find_map(|span| {
            let offset = (host as u64).checked_sub(span.host as u64)?;
            (offset < span.end - span.start).then_some(span.start + offset)
        })
    }
}

impl Span {
    fn of(region: &Region) -> Self {
        let start = region.guest_address;
        Span { start, end: start + region.size(), host: region.mapping.as_ptr() }
    }

    #[inline(always)]
    fn contains(&self, guest: u64) -> bool {
        guest >= self.start && guest < self.end
    }

    #[inline(always)]
    fn at(&self, guest: u64) -> (*mut u8, u64) {
        // SAFETY: `contains` was asked: the offset lies inside the mapping.
        (unsafe { self.host.add((guest - self.start) as usize) }, self.end - guest)
    }
}

/// Copy out of a list of spans, from `skip` on.
///
/// :returns: bytes copied, less than `out.len()` when the spans end first.
pub fn gather(spans: &[IoVec], skip: usize, out: &mut [u8]) -> usize {
    let mut done = 0;
    for_each_span(spans, skip, out.len(), |base, len| {
        // SAFETY: spans come from `MemoryMap::append`; `done + len` stays within `out`. The guest may write at the
        // same time: bytes are copied once and judged afterwards, no reference to them exists.
        unsafe { std::ptr::copy_nonoverlapping(base, out.as_mut_ptr().add(done), len) };
        done += len;
    });
    done
}

/// Copy into a list of spans, from `skip` on; returns bytes copied.
pub fn scatter(spans: &[IoVec], skip: usize, data: &[u8]) -> usize {
    let mut done = 0;
    for_each_span(spans, skip, data.len(), |base, len| {
        // SAFETY: as in `gather`, with the direction turned.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr().add(done), base, len) };
        done += len;
    });
    done
}

/// Call `visit` for the parts of `spans` within `[skip, skip + limit)`.
#[inline(always)]
pub fn for_each_span(
    spans: &[IoVec],
    mut skip: usize,
    mut limit: usize,
    mut visit: impl FnMut(*mut u8, usize),
) {
    for span in spans {
        if limit == 0 {
            return;
        }
        if skip >= span.len {
            skip -= span.len;
            continue;
        }
        let len = (span.len - skip).min(limit);
        // SAFETY: skip < span.len.
        visit(unsafe { span.base.add(skip) }, len);
        limit -= len;
        skip = 0;
    }
}

/// Make an owned error for a ring address that is not guest memory.
pub fn unmapped(what: &str, address: u64) -> Error {
    Error::Invalid(format!("{what} at user address {address:#x} is outside of the memory map"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};

    fn memfd(size: i64) -> OwnedFd {
        // SAFETY: plain system calls; the fd is owned here.
        unsafe {
            let fd = libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC);
            assert_eq!(libc::ftruncate(fd, size), 0);
            OwnedFd::from_raw_fd(fd)
        }
    }

    fn map() -> MemoryMap {
        let fd = memfd(0x4000);
        let region =
            |gpa, size, uva, offset| Arc::new(Region::new(fd.as_fd(), gpa, size, uva, offset).unwrap());
        MemoryMap::new(vec![region(0x11000, 0x1000, 0x9000, 0x2000), region(0x10000, 0x1000, 0x7000, 0)])
            .unwrap()
    }

    #[test]
    fn buffers_cross_into_an_adjacent_region_and_not_out_of_memory() {
        let (map, mut hint, mut out) = (map(), 0, Vec::new());
        assert!(map.append(0x10800, 0x1000, &mut hint, &mut out));
        assert_eq!(out.iter().map(|span| span.len).collect::<Vec<_>>(), [0x800, 0x800]);
        assert!(!map.append(0x11800, 0x801, &mut hint, &mut out));
        assert!(!map.append(u64::MAX - 3, 16, &mut hint, &mut out));
        assert!(!map.append(0xffff, 1, &mut hint, &mut out));
    }

    #[test]
    fn user_addresses_stay_in_one_region() {
        let map = map();
        assert!(map.user(0x7000, 0x1000).is_some());
        assert!(map.user(0x7000, 0x1001).is_none());
        assert!(map.user(0x9fff, 1).is_some());
        assert!(map.user(u64::MAX, 2).is_none());
        let host = map.user(0x9010, 1).unwrap();
        assert_eq!(map.guest_address(host), Some(0x11010));
    }

    #[test]
    fn overlaps_and_wraps_are_refused() {
        let fd = memfd(0x2000);
        let region = |gpa, uva| Region::new(fd.as_fd(), gpa, 0x1000, uva, 0);
        assert!(region(u64::MAX - 10, 0).is_err());
        assert!(region(0, u64::MAX - 10).is_err());
        let pair = vec![Arc::new(region(0, 0).unwrap()), Arc::new(region(0xfff, 0x5000).unwrap())];
        assert!(MemoryMap::new(pair).is_err());
    }
}
