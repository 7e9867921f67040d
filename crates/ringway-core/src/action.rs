//! What a request wants of a store, whatever device it came through.

use crate::bounce::{Bounce, CHUNK};
use crate::memory::IoVec;
use crate::store::{Errno, Media, Store};

/// A range of bytes.
pub type Range = (u64, u64);

/// A decoded and checked request. Offsets and lengths are bytes inside the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing to do.
    Nothing,
    /// Move data between the store and the request's spans.
    Transfer {
        /// Guest to store.
        write: bool,
        /// In the store.
        offset: u64,
        /// Bytes.
        len: usize,
        /// Bytes of the readable (write) or writable (read) spans before the data.
        skip: usize,
        /// Write: stable before it completes. Read: from the medium.
        fua: bool,
    },
    /// Make what was written stable.
    Flush,
    /// Zero ranges.
    Zero {
        /// (offset, bytes) each.
        ranges: Vec<Range>,
        /// Give the space back where the medium can.
        unmap: bool,
        /// Writethrough: stable before it completes.
        fua: bool,
        /// Bytes of the guest's data that said so.
        taken: usize,
    },
    /// Repeat a pattern over a range.
    Fill {
        /// In the store.
        offset: u64,
        /// Bytes; a multiple of the pattern's.
        len: u64,
        /// One block, the guest's data.
        pattern: Vec<u8>,
    },
}

impl Action {
    /// The ranges that it touches, and whether it changes them.
    pub fn touches(&self, mut blocked: impl FnMut(u64, u64, bool) -> bool) -> bool {
        match self {
            Action::Transfer { write, offset, len, .. } => blocked(*offset, *offset + *len as u64, *write),
            Action::Zero { ranges, .. } => {
                ranges.iter().any(|(offset, len)| blocked(*offset, *offset + *len, true))
            }
            Action::Fill { offset, len, .. } => blocked(*offset, *offset + *len, true),
            Action::Nothing | Action::Flush => false,
        }
    }

    /// Whether the store can do it without waiting for a disk.
    #[inline(always)]
    pub fn is_instant(&self, store: &Store) -> bool {
        if let Action::Zero { ranges, fua: false, .. } = self {
            if ranges.is_empty() {
                return true;
            }
        }
        match store.media() {
            Media::Null => true,
            Media::File(_) => matches!(self, Action::Nothing),
            Media::Memory { sync: false, .. } => true,
            Media::Memory { sync: true, .. } => {
                matches!(self, Action::Nothing | Action::Transfer { fua: false, .. } | Action::Fill { .. })
            }
        }
    }

    /// Do it here and now, by system calls where need be.
    #[inline(always)]
    pub fn run(&self, store: &Store, spans: &[IoVec]) -> Result<(), Errno> {
        match self {
            Action::Transfer { write, offset, len, skip, fua: false } if is_memory(store) => {
                store.copy(*write, *offset, spans, *skip, *len)
            }
            other => other.run_slowly(store, spans),
        }
    }

    #[inline(never)]
    fn run_slowly(&self, store: &Store, spans: &[IoVec]) -> Result<(), Errno> {
        match self {
            Action::Nothing => Ok(()),
            Action::Transfer { write, offset, len, skip, fua } => {
                if *fua && !*write {
                    store.flush()?;
                }
                store.transfer(*write, *offset, spans, *skip, *len, *fua)
            }
            Action::Flush => store.flush(),
            Action::Zero { ranges, unmap, fua, .. } => {
                ranges.iter().try_for_each(|(offset, len)| store.zero(*offset, *len, *unmap))?;
                if *fua {
                    store.flush()?;
                }
                Ok(())
            }
            Action::Fill { offset, len, pattern } => fill(store, *offset, *len, pattern),
        }
    }

    /// Append its steps, last first, for an engine that does one at a time.
    pub fn steps(&self, steps: &mut Vec<Step>) {
        match *self {
            Action::Nothing => {}
            Action::Transfer { write, offset, len, skip, fua } => {
                steps.push(Step::Transfer { write, offset, len, skip, fua });
                if fua && !write {
                    steps.push(Step::Flush);
                }
            }
            Action::Flush => steps.push(Step::Flush),
            Action::Zero { ref ranges, unmap, fua, .. } => {
                if fua {
                    steps.push(Step::Flush);
                }
                steps.extend(ranges.iter().rev().map(|&(offset, len)| Step::Zero { offset, len, unmap }));
            }
            Action::Fill { offset, len, .. } => steps.push(Step::Fill { offset, len }),
        }
    }

    /// The buffer that [`Step::Fill`] writes from.
    pub fn pattern_buffer(&self) -> Option<Bounce> {
        match self {
            Action::Fill { len, pattern, .. } => Some(pattern_buffer(*len, pattern)),
            _ => None,
        }
    }
}

#[inline(always)]
fn is_memory(store: &Store) -> bool {
    matches!(store.media(), Media::Null | Media::Memory { .. })
}

fn pattern_buffer(len: u64, pattern: &[u8]) -> Bounce {
    let size = (CHUNK as u64).min(len) as usize;
    let mut buffer = Bounce::new(size);
    buffer
        .bytes(size)
        .chunks_mut(pattern.len())
        .for_each(|part| part.copy_from_slice(&pattern[..part.len()]));
    buffer
}

fn fill(store: &Store, mut offset: u64, len: u64, pattern: &[u8]) -> Result<(), Errno> {
    let end = offset + len;
    let buffer = pattern_buffer(len, pattern);
    while offset < end {
        let part = (CHUNK as u64).min(end - offset) as usize;
        store.transfer(true, offset, &[buffer.span(part)], 0, part, false)?;
        offset += part as u64;
    }
    Ok(())
}

/// One I/O of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Spans to store or back.
    Transfer {
        /// Guest to store.
        write: bool,
        /// In the store.
        offset: u64,
        /// Bytes left.
        len: usize,
        /// Bytes of the spans before them.
        skip: usize,
        /// Stable before it completes.
        fua: bool,
    },
    /// Pattern buffer to store, again and again.
    Fill {
        /// In the store.
        offset: u64,
        /// Bytes left.
        len: u64,
    },
    /// fdatasync.
    Flush,
    /// fallocate.
    Zero {
        /// In the store.
        offset: u64,
        /// Bytes.
        len: u64,
        /// By a hole.
        unmap: bool,
    },
}
