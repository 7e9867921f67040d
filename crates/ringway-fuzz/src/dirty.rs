//! The dirty log: each page that was written is marked, no other, and nothing behind the log.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use arbitrary::{Arbitrary, Unstructured};
use ringway_core::dirty::{DirtyLog, LOG_PAGE};

use crate::guest::memfd;

const FILE: usize = 8192;

#[derive(Arbitrary, Debug)]
struct Write {
    address: Address,
    len: Len,
}

#[derive(Arbitrary, Debug)]
enum Address {
    Page(u16, u16),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Len {
    Short(u16),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
struct Input {
    offset: u16,
    size: u16,
    writes: Vec<Write>,
}

impl Write {
    fn range(&self) -> (u64, u64) {
        let address = match self.address {
            Address::Page(page, offset) => u64::from(page) * LOG_PAGE + u64::from(offset),
            Address::Any(address) => address,
        };
        let len = match self.len {
            Len::Short(len) => len.into(),
            Len::Any(len) => len,
        };
        (address, len)
    }
}

/// Run one input.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let (offset, size) = (u64::from(input.offset), u64::from(input.size));
    let file = memfd(FILE as u64);
    let log = DirtyLog::new(file.as_fd(), offset, size);
    assert_eq!(log.is_ok(), size > 0 && offset + size <= FILE as u64);
    let Ok(log) = log else { return };
    let mut expected = vec![0u8; FILE];
    for write in &input.writes {
        let (address, len) = write.range();
        log.mark(address, len);
        expect(&mut expected[offset as usize..(offset + size) as usize], address, len);
    }
    let mut found = vec![0; FILE];
    file.read_exact_at(&mut found, 0).expect("a file of that size");
    assert_eq!(found, expected, "{input:?}");
}

/// The same, page by page, in numbers that do not wrap.
fn expect(log: &mut [u8], address: u64, len: u64) {
    let end = u128::from(address) + u128::from(len);
    for page in 0..log.len() * 8 {
        let start = page as u128 * u128::from(LOG_PAGE);
        if start < end && u128::from(address) < start + u128::from(LOG_PAGE) && len > 0 {
            log[page / 8] |= 1 << (page % 8);
        }
    }
}
