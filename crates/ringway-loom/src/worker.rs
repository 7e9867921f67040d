//! The way into a worker, and the worker's half of it.

pub use ringway_core::worker::{Completion, Fence, QueueStart};

#[path = "../../ringway-core/src/worker/mailbox.rs"]
mod mailbox;

use std::collections::VecDeque;

pub use mailbox::{Mailbox, Message};

/// What a turn of a worker's loop takes out of its mailbox.
pub fn read_mail(mailbox: &Mailbox) -> VecDeque<Message> {
    match mailbox.has_mail() {
        true => mailbox.take(),
        false => VecDeque::new(),
    }
}

/// What a worker does when there is nothing to do.
pub fn sleep(mailbox: &Mailbox) {
    if !mailbox.has_mail() {
        mailbox.event.wait(None);
    }
}

/// The end of a worker.
pub fn close(mailbox: &Mailbox) {
    mailbox.close();
}
