//! The models. Each says what holds under every order of events.

use std::sync::mpsc::{sync_channel, TryRecvError};
use std::time::{Duration, Instant};

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::*};
use loom::sync::Arc;
use loom::thread;

use ringway_core::scsi::Failure;
use ringway_core::view::View;
use ringway_loom::epoch::Epoch;
use ringway_loom::membarrier::{expect_interrupt, interrupted};
use ringway_loom::range::RangeLocks;
use ringway_loom::slow::{Charged, Life, Share, SlowCommand, SlowKind, SlowRing};
use ringway_loom::worker::{close, read_mail, sleep, Mailbox, Message};

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    let long = std::env::var_os("RINGWAY_LONG").is_some_and(|value| value == "1");
    builder.preemption_bound = builder.preemption_bound.or(Some(if long { 3 } else { 2 }));
    builder.check(run);
}

fn command(kind: SlowKind, tag: u64) -> Box<SlowCommand> {
    Box::new(SlowCommand {
        kind,
        tag,
        queue: 0,
        lun: [0; 8],
        id: 0,
        instance: 0,
        task_attribute: 0,
        cdb: [0; 32],
        data_out: Charged::default(),
        data_out_size: 0,
        data_in_size: 0,
        failure: Failure::None,
        message: String::new(),
        life: Life::default(),
    })
}

/// Two threads of Python that take one command each and are then busy for ever.
fn takers(ring: &Arc<SlowRing>) -> Vec<thread::JoinHandle<Option<u64>>> {
    let taker = |ring: Arc<SlowRing>| thread::spawn(move || ring.pop(None).map(|command| command.tag));
    (0..2).map(|_| taker(ring.clone())).collect()
}

fn taken(takers: Vec<thread::JoinHandle<Option<u64>>>) -> Vec<Option<u64>> {
    let mut taken: Vec<Option<u64>> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
    taken.sort();
    taken
}

#[test]
fn a_command_wakes_a_sleeper() {
    model(|| {
        let ring = Arc::new(SlowRing::new().unwrap());
        let taker = thread::spawn({
            let ring = ring.clone();
            move || (0..2).map(|_| ring.pop(None).unwrap().tag).collect::<Vec<_>>()
        });
        ring.push(command(SlowKind::Cdb, 1)).unwrap();
        ring.push(command(SlowKind::Cdb, 2)).unwrap();
        assert_eq!(taker.join().unwrap(), [1, 2]);
    });
}

#[test]
fn no_command_waits_for_a_busy_thread_while_another_sleeps() {
    model(|| {
        let ring = Arc::new(SlowRing::new().unwrap());
        let takers = takers(&ring);
        ring.push(command(SlowKind::Cdb, 1)).unwrap();
        ring.push(command(SlowKind::Cdb, 2)).unwrap();
        assert_eq!(taken(takers), [Some(1), Some(2)]);
    });
}

#[test]
fn no_notice_waits_for_a_busy_thread_while_another_sleeps() {
    model(|| {
        let ring = Arc::new(SlowRing::new().unwrap());
        let takers = takers(&ring);
        ring.notice(command(SlowKind::Broken, 1));
        ring.push(command(SlowKind::Cdb, 2)).unwrap();
        assert_eq!(taken(takers), [Some(1), Some(2)]);
    });
}

#[test]
fn wake_lets_one_waiter_go_and_loses_no_command() {
    model(|| {
        let ring = Arc::new(SlowRing::new().unwrap());
        let takers = takers(&ring);
        ring.wake();
        ring.push(command(SlowKind::Cdb, 1)).unwrap();
        assert_eq!(taken(takers), [None, Some(1)]);
    });
}

#[test]
fn the_budget_is_never_exceeded_and_comes_back() {
    const MOST: usize = 33 << 20;
    model(|| {
        let ring = Arc::new(SlowRing::new().unwrap());
        let held = Arc::new(AtomicUsize::new(0));
        let charge = |ring: Arc<SlowRing>, held: Arc<AtomicUsize>| {
            if let Some(charged) = ring.reserve(MOST, None) {
                assert_eq!(held.fetch_add(1, SeqCst), 0, "two halves of the budget and a bit");
                held.fetch_sub(1, SeqCst);
                drop(charged);
            }
        };
        let (other, other_held) = (ring.clone(), held.clone());
        let thread = thread::spawn(move || charge(other, other_held));
        charge(ring.clone(), held);
        thread.join().unwrap();
        assert!(ring.reserve(MOST, None).is_some());
    });
}

#[test]
fn a_share_is_never_exceeded_and_comes_back() {
    const MOST: usize = 9 << 20;
    model(|| {
        let (ring, share) = (Arc::new(SlowRing::new().unwrap()), Share::default());
        let (other, other_share) = (ring.clone(), share.clone());
        let thread = thread::spawn(move || other.reserve(MOST, Some(&other_share)));
        let held = [ring.reserve(MOST, Some(&share)), thread.join().unwrap()];
        assert!(held.iter().flatten().count() < 2, "two halves of the share and a bit");
        drop(held);
        assert!(ring.reserve(MOST, Some(&share)).is_some());
    });
}

#[test]
fn a_worker_gets_all_its_mail_and_does_not_sleep_on_it() {
    model(|| {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let send = |mailbox: Arc<Mailbox>, tag| move || mailbox.send(Message::Resume(tag));
        let senders = [1, 2].map(|tag| thread::spawn(send(mailbox.clone(), tag)));
        let mut got = Vec::new();
        while got.len() < 2 {
            got.extend(read_mail(&mailbox).into_iter().map(|message| match message {
                Message::Resume(tag) => tag,
                _ => unreachable!("nobody sends that"),
            }));
            if got.len() < 2 {
                sleep(&mailbox);
            }
        }
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn who_writes_to_a_dead_worker_hears_of_it() {
    model(|| {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let worker = thread::spawn({
            let mailbox = mailbox.clone();
            move || {
                drop(read_mail(&mailbox));
                close(&mailbox);
            }
        });
        let (reply, answer) = sync_channel(1);
        mailbox.send(Message::Enable(0, true, reply));
        worker.join().unwrap();
        assert_eq!(
            answer.try_recv(),
            Err(TryRecvError::Disconnected),
            "the message lies in the mailbox for ever"
        );
    });
}

/// Wait for a reply. loom does not see through std's channel: `seen` carries what the channel guarantees.
fn wait_for(seen: &AtomicBool) {
    while !seen.load(Acquire) {
        thread::yield_now();
    }
}

#[test]
fn memory_is_unmapped_when_no_worker_uses_it_any_more() {
    model(|| {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        // one cell for the memory of each generation: written by who unmaps it, read by who works on it
        let memory = Arc::new([UnsafeCell::new(true), UnsafeCell::new(true)]);
        let seen = Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let (mailbox, memory, seen) = (mailbox.clone(), memory.clone(), seen.clone());
            move || {
                let mut view = View::default();
                while view.generation == 0 {
                    for message in read_mail(&mailbox) {
                        let Message::View(next, reply) = message else { unreachable!("nobody sends that") };
                        view = View::clone(&next);
                        let _ = reply.send(());
                        seen.store(true, Release);
                    }
                    // SAFETY: a read; loom checks that nobody writes.
                    memory[view.generation as usize].with(|mapped| assert!(unsafe { *mapped }));
                    if view.generation == 0 {
                        sleep(&mailbox);
                    }
                }
            }
        });
        let (reply, answer) = sync_channel(1);
        mailbox.send(Message::View(std::sync::Arc::new(View { generation: 1, ..View::default() }), reply));
        wait_for(&seen);
        assert_eq!(answer.try_recv(), Ok(()));
        // SAFETY: a write; loom checks that nobody else looks.
        memory[0].with_mut(|mapped| unsafe { *mapped = false });
        worker.join().unwrap();
    });
}

#[test]
fn who_locks_a_range_is_alone_with_it_once_what_was_in_flight_is_done() {
    model(|| {
        let (mailbox, ranges) = (Arc::new(Mailbox::new().unwrap()), Arc::new(RangeLocks::default()));
        let medium = Arc::new(UnsafeCell::new(0));
        let seen = Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let (mailbox, ranges, medium, seen) =
                (mailbox.clone(), ranges.clone(), medium.clone(), seen.clone());
            move || {
                let (mut requests, mut messages) = (2, 0);
                while requests > 0 || messages < 2 {
                    let mail = read_mail(&mailbox);
                    messages += mail.len();
                    // the fence: what was in flight before it is done, since this worker's requests end at once
                    if mail.iter().any(|message| matches!(message, Message::Resume(_))) {
                        seen.store(true, Release);
                    }
                    if requests > 0 && !ranges.blocks(0, 8, true) {
                        // SAFETY: a write; loom checks that nobody else looks.
                        medium.with_mut(|medium| unsafe { *medium += 1 });
                        requests -= 1;
                    } else if messages < 2 {
                        sleep(&mailbox);
                    }
                }
            }
        });
        let handle = ranges.lock(0, 8, true, Instant::now() + Duration::from_secs(60)).unwrap();
        mailbox.send(Message::Resume(0));
        wait_for(&seen);
        // SAFETY: a write; loom checks that nobody else looks.
        medium.with_mut(|medium| unsafe { *medium += 1 });
        ranges.unlock(handle);
        mailbox.send(Message::Wake);
        worker.join().unwrap();
        // SAFETY: the worker is gone.
        assert_eq!(medium.with(|medium| unsafe { *medium }), 3);
    });
}

#[test]
fn two_holders_of_a_range_take_turns() {
    model(|| {
        let ranges = Arc::new(RangeLocks::default());
        let medium = Arc::new(UnsafeCell::new(0));
        let hold = |ranges: Arc<RangeLocks>, medium: Arc<UnsafeCell<i32>>| {
            move || {
                let handle = ranges.lock(0, 8, true, Instant::now() + Duration::from_secs(60)).unwrap();
                // SAFETY: a write; loom checks that nobody else looks.
                medium.with_mut(|medium| unsafe { *medium += 1 });
                ranges.unlock(handle);
            }
        };
        let other = thread::spawn(hold(ranges.clone(), medium.clone()));
        hold(ranges.clone(), medium.clone())();
        other.join().unwrap();
        assert!(!ranges.blocks(0, 8, true), "a lock was left behind");
    });
}

/// A page of a mapping: the file's, or zeroes that stand in. What a copy meets is a plain load for the CPU's sake: it
/// orders nothing.
const FILE: usize = 0;
const ZEROES: usize = 1;

/// `at` is where in its course the kernel has this thread pass a fence.
fn copy(epoch: &Epoch, page: &AtomicUsize, stored: bool, at: Option<usize>) {
    let pass = |place| (at == Some(place)).then(interrupted);
    pass(0);
    let before = epoch.now();
    pass(1);
    let met = page.load(Relaxed);
    pass(2);
    let held = epoch.held_since(before, stored);
    pass(3);
    if held {
        assert_eq!(met, FILE, "a copy to zeroes counts as one to the file");
    }
}

fn lose(epoch: &Epoch, page: &AtomicUsize) {
    epoch.spoil();
    page.store(ZEROES, Relaxed);
    epoch.spoil();
}

#[test]
fn no_copy_counts_that_met_a_page_which_another_thread_lost() {
    let places = (0..4).map(|place| (true, Some(place)));
    for (stored, at) in places.chain([(false, None)]) {
        model(move || {
            let shared = Arc::new((Epoch(AtomicU32::new(0)), AtomicUsize::new(FILE)));
            let other = shared.clone();
            at.inspect(|_| expect_interrupt());
            let thread = thread::spawn(move || lose(&other.0, &other.1));
            copy(&shared.0, &shared.1, stored, at);
            thread.join().unwrap();
        });
    }
}

#[test]
fn no_copy_counts_that_met_a_page_before_it_was_mended() {
    for stored in [false, true] {
        model(move || {
            let shared = Arc::new((Epoch(AtomicU32::new(0)), AtomicUsize::new(FILE)));
            lose(&shared.0, &shared.1);
            let other = shared.clone();
            let thread = thread::spawn(move || {
                let seen = other.0.now();
                other.1.store(FILE, Relaxed);
                assert!(other.0.mend(seen));
            });
            copy(&shared.0, &shared.1, stored, None);
            thread.join().unwrap();
            assert!(shared.0.held_since(shared.0.now(), stored), "it is the file again");
        });
    }
}
