//! A full fence between two sides of which one passes with each I/O, and the other hardly ever: the seldom one pays.
//!
//! Where each side writes, fences, and looks at what the other wrote, at least one sees the other's write. One side may
//! leave its fence to the kernel: membarrier(2) has every thread of the process that runs pass a full fence before it
//! returns. Whatever such a thread did before that fence the caller sees afterwards, and what it does behind it sees
//! what the caller did before. A fence with each 4 KiB that is written to memory cost 5 to 7 % of such a request.

use std::sync::atomic::{compiler_fence, fence, AtomicBool, Ordering::*};

/// Whether the kernel is known to do it.
static SERVED: AtomicBool = AtomicBool::new(false);

/// Ask the kernel for the often side's part from now on, if it does that (since 4.14). Until then both sides pay.
///
/// A process with one thread does this in microseconds, one with more waits some 12 ms for the kernel.
pub fn prepare() {
    if !SERVED.load(Relaxed) && barrier() {
        SERVED.store(true, Relaxed);
    }
}

/// The fence of who passes often. It only works against [`heavy_fence`].
#[inline(always)]
pub fn light_fence() {
    match SERVED.load(Relaxed) {
        true => compiler_fence(SeqCst),
        false => fence(SeqCst),
    }
}

/// The fence of who passes seldom: some microseconds. A signal handler may call it.
pub fn heavy_fence() {
    fence(SeqCst);
    barrier(); // after `prepare` it fails no more: the filter of a target lets it through
}

/// Each time the process tells the kernel first that it will ask: a process may have been forked since it did.
fn barrier() -> bool {
    let ask = |command: libc::c_int| {
        // SAFETY: a plain system call.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    };
    ask(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) && ask(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_serves_what_it_once_served() {
        prepare();
        assert_eq!(SERVED.load(Relaxed), barrier());
        light_fence();
        heavy_fence();
    }
}
