//! Page-aligned buffers of our own, for I/O that guests' buffers are not aligned for.

use crate::memory::IoVec;

/// Bytes that one bounce buffer moves at most.
pub const CHUNK: usize = 1 << 20;

/// A page-aligned buffer for I/O that the guest's own buffers are not aligned for.
#[derive(Debug)]
pub struct Bounce {
    base: *mut u8,
    layout: std::alloc::Layout,
}

// SAFETY: plain owned memory.
unsafe impl Send for Bounce {}

impl Bounce {
    /// `len` zero bytes.
    pub fn new(len: usize) -> Self {
        let layout =
            std::alloc::Layout::from_size_align(len.max(1), 4096).expect("a buffer below isize::MAX");
        // SAFETY: the layout has a size.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        if base.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        Bounce { base, layout }
    }

    /// The first `len` bytes.
    pub fn bytes(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= self.layout.size());
        // SAFETY: our own memory, initialised, and `len` fits.
        unsafe { std::slice::from_raw_parts_mut(self.base, len) }
    }

    /// The first `len` bytes as a span.
    pub fn span(&self, len: usize) -> IoVec {
        assert!(len <= self.layout.size());
        IoVec { base: self.base, len }
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.base, self.layout) };
    }
}
