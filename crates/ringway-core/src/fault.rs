//! Fault points: places on a request's way at which a test has the process killed.
//!
//! Only a build with the feature `fault-points` has them; in any other each call is empty. The plan comes with the
//! process: `RINGWAY_FAULT=published:write:137` raises SIGKILL when a write is published for the 137th time. The
//! point's and class's names are written to the fd `RINGWAY_FAULT_FD` before, so that a test can tell this death from
//! others.

/// Where a request is. Each point is passed once by each request, except that one which asks for no interrupt is never
/// `Signalled`, and one of a dead back end's is `Marked` without having been `Popped`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Off the available ring; nobody knows.
    Popped,
    /// Marked in the in-flight region; nothing was done.
    Marked,
    /// Handed to the kernel or to Python, or about to run on the spot.
    Submitted,
    /// The store has done it and the answer is in guest memory.
    Completed,
    /// On the used ring; the guest cannot see it.
    Pushed,
    /// `used.idx` shows it; still marked.
    Published,
    /// Not marked any more; the guest was not interrupted.
    Cleared,
    /// The guest was interrupted.
    Signalled,
}

#[cfg(not(feature = "fault-points"))]
mod points {
    use super::Point;
    use crate::vring::Chain;
    use crate::worker::{DeviceKind, Role};

    #[inline(always)]
    pub fn note(_: DeviceKind, _: Role, _: u16, _: u16, _: &Chain) {}

    #[inline(always)]
    pub fn point(_: Point, _: u16, _: u16) {}

    #[inline(always)]
    pub fn batch(_: Point, _: u16) {}

    #[inline(always)]
    pub fn queued(_: u16, _: u16) {}

    #[inline(always)]
    pub fn entered() {}
}

#[cfg(feature = "fault-points")]
mod points {
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::sync::OnceLock;

    use super::Point;
    use crate::memory::gather;
    use crate::vring::Chain;
    use crate::worker::{DeviceKind, Role};

    /// Where a SCSI command's CDB begins; behind the protection lengths when those are there.
    const CDB: usize = 19;

    /// What is to be killed, and when.
    struct Plan {
        point: String,
        class: String,
        left: AtomicU64,
        marker: i32,
    }

    impl Plan {
        /// `None`: the environment names none. A plan that cannot be read is a test's error.
        fn read() -> Option<Self> {
            let text = std::env::var("RINGWAY_FAULT").ok()?;
            let mut words = text.split(':').map(str::to_owned);
            let mut word = || words.next().expect("RINGWAY_FAULT is POINT:CLASS:COUNT");
            let marker = std::env::var("RINGWAY_FAULT_FD").expect("RINGWAY_FAULT_FD is set");
            Some(Plan {
                point: word(),
                class: word(),
                left: AtomicU64::new(word().parse().expect("COUNT is a number")),
                marker: marker.parse().expect("RINGWAY_FAULT_FD is a number"),
            })
        }

        fn die(&self) -> ! {
            let text = format!("{}:{}\n", self.point, self.class);
            // SAFETY: the buffer is as long as is said; the others take no pointers. Should SIGKILL be forbidden to
            // us, the abort is a death that no test takes for the right one.
            unsafe {
                libc::write(self.marker, text.as_ptr().cast(), text.len());
                libc::kill(libc::getpid(), libc::SIGKILL);
            }
            std::process::abort()
        }
    }

    fn plan() -> Option<&'static Plan> {
        static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
        PLAN.get_or_init(Plan::read).as_ref()
    }

    /// What a worker's thread knows of requests, by queue and head.
    #[derive(Default)]
    struct Known {
        classes: HashMap<(u16, u16), &'static str>,
        queued: Vec<(u16, u16)>,
        pushed: Vec<(u16, u16)>,
        batch: Vec<(u16, u16)>,
    }

    thread_local!(static KNOWN: RefCell<Known> = RefCell::default());

    fn class_of(kind: DeviceKind, role: Role, chain: &Chain) -> &'static str {
        let mut header = [0; 64];
        gather(chain.readable(), 0, &mut header[..chain.readable_bytes.min(64)]);
        match (kind, role) {
            (DeviceKind::Blk, _) => match header[0] {
                0 => "read",
                1 => "write",
                4 => "flush",
                11 | 13 => "unmap",
                _ => "slow",
            },
            (DeviceKind::Scsi, Role::Request) => match header[CDB] {
                0x08 | 0x28 | 0x88 | 0xa8 => "read",
                0x0a | 0x2a | 0x8a | 0xaa => "write",
                0x35 | 0x91 => "flush",
                0x41 | 0x42 | 0x93 => "unmap",
                _ => "slow",
            },
            _ => "slow",
        }
    }

    fn hit(point: Point, class: &str) {
        let Some(plan) = plan() else { return };
        if plan.class != class || plan.point != format!("{point:?}").to_lowercase() {
            return;
        }
        if plan.left.fetch_sub(1, Relaxed) == 1 {
            plan.die();
        }
    }

    /// Remember what the request at a head is, before it passes its first point here.
    pub fn note(kind: DeviceKind, role: Role, queue: u16, head: u16, chain: &Chain) {
        let class = class_of(kind, role, chain);
        KNOWN.with_borrow_mut(|known| known.classes.insert((queue, head), class));
    }

    /// A request passes a point.
    pub fn point(point: Point, queue: u16, head: u16) {
        KNOWN.with_borrow_mut(|known| {
            if point == Point::Pushed {
                known.pushed.push((queue, head));
            }
            if let Some(class) = known.classes.get(&(queue, head)) {
                hit(point, class);
            }
        });
    }

    /// What was pushed to a queue since it was published last passes a point of publishing.
    pub fn batch(point: Point, queue: u16) {
        KNOWN.with_borrow_mut(|known| {
            if point == Point::Published {
                let pushed = std::mem::take(&mut known.pushed);
                (known.batch, known.pushed) = pushed.into_iter().partition(|(of, _)| *of == queue);
            }
            known.batch.iter().filter_map(|key| known.classes.get(key)).for_each(|class| hit(point, class));
        });
    }

    /// A request waits to be handed to the kernel.
    pub fn queued(queue: u16, head: u16) {
        KNOWN.with_borrow_mut(|known| known.queued.push((queue, head)));
    }

    /// The kernel has what waited for it.
    pub fn entered() {
        let queued = KNOWN.with_borrow_mut(|known| std::mem::take(&mut known.queued));
        queued.into_iter().for_each(|(queue, head)| point(Point::Submitted, queue, head));
    }
}

pub use points::{batch, entered, note, point, queued};
