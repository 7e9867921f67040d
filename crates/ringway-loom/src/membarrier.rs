//! membarrier(2): a full fence that another thread passes somewhere in its course, because it is asked to.
//!
//! A model cannot interrupt a thread. So the thread waits, at one place of its course, until it is asked; a model is run
//! for each place.

use loom::sync::atomic::{fence, Ordering::SeqCst};
use loom::sync::{Condvar, Mutex};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// No thread is to be interrupted: none runs.
    Nobody,
    NotYet,
    Now,
    Answered,
}

struct Interrupt {
    asked: Mutex<Asked>,
    changed: Condvar,
}

loom::lazy_static! {
    static ref INTERRUPT: Interrupt = Interrupt { asked: Mutex::new(Asked::Nobody), changed: Condvar::new() };
}

impl Interrupt {
    fn wait(&self, wanted: Asked) {
        let mut asked = self.asked.lock().expect("no panic");
        while *asked != wanted {
            asked = self.changed.wait(asked).expect("no panic");
        }
    }

    fn set(&self, to: Asked) {
        *self.asked.lock().expect("no panic") = to;
        self.changed.notify_all();
    }
}

/// From now on there is a thread that will call [`interrupted`], once.
pub fn expect_interrupt() {
    INTERRUPT.set(Asked::NotYet);
}

/// Where the thread is when it is asked.
pub fn interrupted() {
    INTERRUPT.wait(Asked::Now);
    fence(SeqCst);
    INTERRUPT.set(Asked::Answered);
}

/// Nothing: the other side's fence is for both.
pub fn light_fence() {}

/// A fence here and, the first time, one in the thread that there is.
pub fn heavy_fence() {
    fence(SeqCst);
    let first = *INTERRUPT.asked.lock().expect("no panic") == Asked::NotYet;
    if first {
        INTERRUPT.set(Asked::Now);
        INTERRUPT.wait(Asked::Answered);
    }
}
