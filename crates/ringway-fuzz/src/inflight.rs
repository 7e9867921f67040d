//! The in-flight region: whatever it holds, recovery ends and names each head once; what this back end wrote, the
//! next one finds.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use ringway_core::inflight::{queue_bytes, InflightRegion, QueueInflight};

use crate::guest::memfd;

const FILE: u64 = 16384;

#[derive(Arbitrary, Debug)]
enum Step {
    Take(u16),
    Complete(u8),
    Publish,
    /// Death between the store of `used.idx` and the clearing of the batch.
    DieBetween,
    Die,
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    offset: u16,
    queues: u8,
    queue: u8,
    region_size: u16,
    ring_size: u16,
    used: u16,
    content: &'a [u8],
    steps: Vec<Step>,
}

/// What the back end holds: heads as they were taken, and those that are on the used ring but not published.
#[derive(Default)]
struct Model {
    held: Vec<u16>,
    batch: Vec<u16>,
    used: u16,
}

impl Model {
    fn published(&mut self) {
        self.used = self.used.wrapping_add(self.batch.len() as u16);
        self.batch.clear();
    }

    /// Death: what was not published is held again.
    fn all(&self, order: &[u16]) -> Vec<u16> {
        order.iter().copied().filter(|head| self.held.contains(head) || self.batch.contains(head)).collect()
    }
}

/// Run one input.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let file = memfd(FILE);
    file.write_all_at(&input.content[..input.content.len().min(FILE as usize)], 0).expect("in the file");
    let (offset, queues) = (u64::from(input.offset), u16::from(input.queues));
    let size = queue_bytes(input.region_size) * u64::from(queues);
    if size > FILE || offset > FILE || offset + size > FILE {
        return;
    }
    let Ok(region) = InflightRegion::new(file.as_fd(), offset, size, queues, input.region_size) else {
        return;
    };
    let region = Arc::new(region);
    let find = || region.queue(input.queue.into(), input.ring_size);
    if let Some(queue) = find() {
        assert!(u16::from(input.queue) < queues && input.ring_size <= input.region_size);
        recover_twice(queue, &input, find);
    }
}

fn recover_twice(mut queue: QueueInflight, input: &Input, find: impl Fn() -> Option<QueueInflight>) {
    let (strange, heads) = queue.recover(input.used);
    check_heads(&heads, input.ring_size);
    let mut order = heads.clone();
    let mut model = Model { held: heads, batch: Vec::new(), used: input.used };
    for step in &input.steps {
        match *step {
            Step::Take(head) => take(&mut queue, &mut model, &mut order, head, input.ring_size),
            Step::Complete(place) if !model.held.is_empty() => {
                let head = model.held.remove(usize::from(place) % model.held.len());
                queue.complete(head);
                model.batch.push(head);
            }
            Step::Complete(_) => {}
            Step::Publish => {
                model.published();
                queue.published(model.used);
            }
            Step::DieBetween | Step::Die => {
                if matches!(step, Step::DieBetween) {
                    model.published();
                }
                queue = find().expect("it was there before");
                let (recovered, found) = queue.recover(model.used);
                assert!(recovered, "the region was in use");
                check_found(found.clone(), model.all(&order), strange);
                model.held = found;
                model.batch.clear();
            }
        }
    }
}

/// Oldest first; orders that somebody else wrote may be as large as numbers get, and newer ones then come before them.
fn check_found(mut found: Vec<u16>, mut expected: Vec<u16>, strange: bool) {
    if strange {
        found.sort_unstable();
        expected.sort_unstable();
    }
    assert_eq!(found, expected);
}

fn take(queue: &mut QueueInflight, model: &mut Model, order: &mut Vec<u16>, head: u16, size: u16) {
    if head >= size || model.held.contains(&head) || model.batch.contains(&head) {
        return; // the ring refuses these before the region hears of them
    }
    queue.take(head);
    order.retain(|taken| *taken != head);
    order.push(head);
    model.held.push(head);
}

fn check_heads(heads: &[u16], size: u16) {
    let mut sorted = heads.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), heads.len(), "a head came twice");
    assert!(heads.iter().all(|head| *head < size));
}
