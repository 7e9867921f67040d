//! Commands on their way to Python and back.

use std::sync::Arc;
use std::time::Duration;

use super::Device;
use crate::slow::SlowCommand;
use crate::worker::{Completion, Mailbox, Message};

impl Device {
    /// The next command for Python.
    pub fn next_command(&self, timeout: Option<Duration>) -> Option<Box<SlowCommand>> {
        self.slow.pop(timeout)
    }

    /// Wait until there is a command for Python; false when the time is over, or after a wake.
    pub fn wait_command(&self, timeout: Option<Duration>) -> bool {
        self.slow.wait(timeout)
    }

    /// Let one waiter go.
    pub fn wake(&self) {
        self.slow.wake();
    }

    fn home_of(&self, tag: u64) -> Option<&Arc<Mailbox>> {
        self.homes.get((tag >> 56) as usize).map(|home| &self.mailboxes[*home])
    }

    /// Finish a command.
    pub fn complete(&self, tag: u64, completion: Completion) {
        if let Some(mailbox) = self.home_of(tag) {
            mailbox.send(Message::Complete(tag, completion));
        }
    }

    /// Send a command back to the hot path.
    pub fn resume(&self, tag: u64) {
        if let Some(mailbox) = self.home_of(tag) {
            mailbox.send(Message::Resume(tag));
        }
    }

    /// Give the guest an event. Spec: virtio 1.3, 5.6.6.3.
    pub fn post_event(&self, event: u32, lun: [u8; 8], reason: u32) {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&event.to_le_bytes());
        bytes[4..12].copy_from_slice(&lun);
        bytes[12..].copy_from_slice(&reason.to_le_bytes());
        if let Some(home) = self.homes.get(1) {
            self.mailboxes[*home].send(Message::Event(bytes));
        }
    }
}
