//! Memory that loses more pages than a process may have mappings; alone in its process, which would die of it.

use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use ringway_core::mapping::{faulted_since, faults, Mapping};

const PAGE: u64 = 4096;

#[test]
fn a_peer_that_takes_pages_away_here_and_there_does_not_end_the_process() {
    let most = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse::<u64>().unwrap();
    let pages = 2 * most.min(1 << 18) + 2;
    // SAFETY: a plain system call; the fd is owned here.
    let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"lost".as_ptr(), libc::MFD_CLOEXEC)) };
    let file = File::from(fd);
    file.set_len(pages * PAGE).unwrap();
    let mapping = Mapping::shared(file.as_fd(), 0, pages * PAGE, true).unwrap();
    // SAFETY: inside of the mapping.
    let at = |page: u64| unsafe { mapping.as_ptr().add((page * PAGE) as usize) };
    // SAFETY: as above.
    unsafe { at(0).write_volatile(7) };
    file.set_len(PAGE).unwrap();
    let before = faults();
    // SAFETY: as above; the handler supplies what is gone.
    (1..pages / 2).for_each(|pair| unsafe { at(2 * pair).write_volatile(1) });
    assert!(faulted_since(before));
    // SAFETY: as above.
    assert_eq!(unsafe { at(0).read_volatile() }, 7, "what is there is still the file's");
    file.set_len(pages * PAGE).unwrap();
    mapping.repair(file.as_fd());
    // SAFETY: as above.
    unsafe { at(pages - 1).write_volatile(9) };
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, (pages - 1) * PAGE).unwrap();
    assert_eq!(byte, [9], "and a file that grew again is there as a whole");
}
