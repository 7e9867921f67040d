//! Guest memory between pages that nobody may touch: an access outside of it ends the process.

use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use ringway_core::memory::{MemoryMap, Region};

const PAGE: usize = 4096;

/// A file in memory.
pub fn memfd(size: u64) -> File {
    // SAFETY: a plain system call; the fd is new and owned here.
    let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC)) };
    let file = File::from(fd);
    file.set_len(size).expect("memory");
    file
}

/// Map a page that nobody may touch: at a place, unless something else lies there, or anywhere. It stays for ever.
fn block(place: Option<*mut u8>) -> Option<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let flags = flags | if place.is_some() { libc::MAP_FIXED_NOREPLACE } else { 0 };
    let wanted = place.unwrap_or(std::ptr::null_mut());
    // SAFETY: NOREPLACE: nothing that is mapped changes.
    let page = unsafe { libc::mmap(wanted.cast(), PAGE, libc::PROT_NONE, flags, -1, 0) }.cast();
    (page != libc::MAP_FAILED.cast() && (place.is_none() || page == wanted)).then_some(page)
}

/// Two threads that map in turns would take each other's places, try after try.
static PLACES: Mutex<()> = Mutex::new(());

/// Make a value whose memory lies between two such pages. The kernel fills the address space from above, so that what
/// is mapped next mostly lies right below; where it does not, there is another try.
pub fn fenced<T>(make: impl Fn() -> T, place: impl Fn(&T) -> (*mut u8, usize)) -> T {
    let _alone = PLACES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for _ in 0..1024 {
        let above = block(None);
        let value = make();
        let (base, len) = place(&value);
        assert!((base as usize).is_multiple_of(PAGE) && len.is_multiple_of(PAGE));
        let behind = Some(base.wrapping_add(len));
        if (above == behind || block(behind).is_some()) && block(Some(base.wrapping_sub(PAGE))).is_some() {
            return value;
        }
        std::mem::forget(value); // the next lies elsewhere
    }
    panic!("no place for memory between two pages");
}

/// A piece of guest memory; user addresses are guest addresses.
pub struct Piece {
    /// What a memory map is made of.
    pub region: Arc<Region>,
    base: *mut u8,
    len: usize,
}

impl Piece {
    /// Zeroes at a guest address, fenced.
    pub fn new(address: u64, len: u64) -> Self {
        let make = || {
            let file = memfd(len);
            Arc::new(Region::new(file.as_fd(), address, len, address, 0).expect("a region"))
        };
        let host = |region: &Arc<Region>| {
            let map = MemoryMap::new(vec![region.clone()]).expect("one region");
            (map.user(address, len).expect("all of it"), len as usize)
        };
        let region = fenced(make, host);
        let (base, len) = host(&region);
        Piece { region, base, len }
    }

    /// The bytes. Whoever holds them lets no device work meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub fn bytes(&self) -> &mut [u8] {
        // SAFETY: mapped for the life of `region`; one thread, and the harness looks or the device works, never both.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.len) }
    }

    /// Whether a span lies inside.
    pub fn holds(&self, base: *mut u8, len: usize) -> bool {
        let start = (base as usize).wrapping_sub(self.base as usize);
        start <= self.len && len <= self.len - start
    }

    /// Offset of a guest address with room for `len` bytes behind it.
    pub fn offset(&self, address: u64, len: usize) -> Option<usize> {
        let offset = usize::try_from(address.checked_sub(self.region.guest_address)?).ok()?;
        (offset <= self.len && len <= self.len - offset).then_some(offset)
    }
}
