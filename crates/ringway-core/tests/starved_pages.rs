//! Pages that are lost while the kernel has no room for what stands in; alone in its process, which would die of it.

use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use ringway_core::mapping::{faulted_since, faults, Mapping};
use ringway_core::memory::IoVec;
use ringway_core::store::{FileOptions, Store};

const PAGE: u64 = 4096;

fn memfd(pages: u64) -> File {
    // SAFETY: a plain system call; the fd is owned here.
    let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"starved".as_ptr(), libc::MFD_CLOEXEC)) };
    let file = File::from(fd);
    file.set_len(pages * PAGE).unwrap();
    file
}

fn most_mappings() -> usize {
    std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap()
}

/// Many mappings that lose as many single pages as each may: more mappings of the kernel's than there may be.
fn many_lose_a_few() {
    const EACH: u64 = 140;
    let file = memfd(EACH);
    let many = (most_mappings() / 100).min(1900);
    let mappings: Vec<Mapping> =
        (0..many).map(|_| Mapping::shared(file.as_fd(), 0, EACH * PAGE, true).unwrap()).collect();
    file.set_len(0).unwrap();
    let before = faults();
    for mapping in &mappings {
        for page in (1..EACH).step_by(2) {
            // SAFETY: inside of the mapping; the handler supplies what is gone.
            unsafe { mapping.as_ptr().add((page * PAGE) as usize).write_volatile(1) };
        }
    }
    assert!(faulted_since(before));
    file.set_len(EACH * PAGE).unwrap();
    for mapping in &mappings {
        mapping.repair(file.as_fd());
        // SAFETY: as above.
        unsafe { mapping.as_ptr().write_volatile(9) };
    }
    assert!(!faulted_since(before));
}

fn mapped_store(file: &File, pages: u64) -> Store {
    let options = FileOptions {
        size: pages * PAGE,
        writable: true,
        direct: false,
        mapped: true,
        discard: true,
        memory_align: 1,
        offset_align: 1,
    };
    Store::file(file.try_clone().unwrap().into(), options).unwrap()
}

/// A store that loses a page: an error of the request, and it is served again once the page is back.
fn a_store_loses_a_page(starve: impl FnOnce() -> Box<dyn FnOnce()>) {
    let file = memfd(8);
    let store = mapped_store(&file, 8);
    let mut data = vec![7; PAGE as usize];
    let spans = [IoVec { base: data.as_mut_ptr(), len: data.len() }];
    let (write, read) = ((true, 5 * PAGE), (false, 5 * PAGE));
    let run = |(write, at)| store.transfer(write, at, &spans, 0, PAGE as usize, false);
    run(write).unwrap();
    let fed = starve();
    file.set_len(2 * PAGE).unwrap();
    let first = (run(read), run(write), run(read));
    file.set_len(8 * PAGE).unwrap();
    fed();
    assert_eq!(first, (Err(libc::EIO), Err(libc::EIO), Err(libc::EIO)));
    let _ = run(read); // puts the file back, at the latest
    assert_eq!((run(write), run(read)), (Ok(()), Ok(())));
}

/// No private memory that can be written.
fn no_data() -> Box<dyn FnOnce()> {
    // SAFETY: plain system calls on a struct of ours.
    unsafe {
        let mut before: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_DATA, &mut before);
        let less = libc::rlimit { rlim_cur: PAGE, ..before };
        assert_eq!(libc::setrlimit(libc::RLIMIT_DATA, &less), 0);
        Box::new(move || assert_eq!(libc::setrlimit(libc::RLIMIT_DATA, &before), 0))
    }
}

/// No mapping more.
fn no_mappings() -> Box<dyn FnOnce()> {
    let len = 2 * most_mappings() * PAGE as usize;
    // SAFETY: a fresh mapping, whose every other page gets another protection, and which is given back as a whole.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let base = libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0);
        assert_ne!(base, libc::MAP_FAILED);
        let at = |page: usize| base.cast::<u8>().add(page * PAGE as usize).cast();
        let full = (0..most_mappings())
            .any(|pair| libc::mprotect(at(2 * pair), PAGE as usize, libc::PROT_READ) == -1);
        assert!(full, "there is room for another mapping");
        Box::new(move || assert_eq!(libc::munmap(base, len), 0))
    }
}

#[test]
fn pages_that_are_lost_without_room_for_others_are_errors_of_requests() {
    many_lose_a_few();
    a_store_loses_a_page(no_data);
    a_store_loses_a_page(no_mappings);
}
