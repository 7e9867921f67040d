//! The driver against a device in the same process: right ones, and each wrong in its own way.

pub(crate) mod device;
pub(crate) mod setup;

use std::io::ErrorKind;
use std::time::Duration;

use super::drive::{Tag, Tally, Workload};
use super::queue::{Buffer, Completion, Slots};
use super::request::{Operation, Request};
use super::{Found, Generations, Kind, Length, Load, Mismatch, Report, Verify};
use device::{Device, Fault};
use setup::{pair, Running, Setup, Shared};

const KINDS: [Kind; 2] = [Kind::Scsi, Kind::Blk];
const DISK: u64 = 64 << 10;

fn all_layouts() -> impl Iterator<Item = Setup> {
    let choices = (0..8).map(|bits| (KINDS[bits & 1], bits & 2 != 0, bits & 4 != 0));
    choices.map(|(kind, indirect, event_idx)| Setup { kind, indirect, event_idx, ..Setup::default() })
}

fn load() -> Load {
    Load { seconds: 0.02, depth: 16, size_bytes: DISK, ..Load::default() }
}

/// Run a load on new pairs, for longer and longer, until one run makes so many requests.
fn run_enough(setup: Setup, load: Load, requests: u64) -> (Report, Device) {
    let mut load = load;
    loop {
        let (mut driver, device) = pair(setup);
        let report = driver.run(&load).unwrap();
        assert_eq!(driver.outstanding(), 0);
        let device = device.stop();
        if report.requests >= requests {
            return (report, device);
        }
        load.seconds *= 2.0;
    }
}

fn verify(requests: u64) -> Verify {
    Verify {
        length: Length::Requests(requests),
        size_bytes: DISK,
        block_bytes: 4096,
        depth: 16,
        lun: 0,
        seed: 42,
        sector_bytes: 512,
        generation_base: 0,
        flush_every: 64,
    }
}

fn unknown(plan: &Verify) -> Generations {
    Generations::unknown((plan.size_bytes / u64::from(plan.block_bytes)) as usize)
}

#[test]
fn a_load_is_what_the_device_saw() {
    for setup in all_layouts() {
        let (report, device) = run_enough(setup, Load { read_percent: 50, ..load() }, 100);
        let bytes = |write| {
            device.log.iter().filter(|(.., w)| *w == write).map(|(_, _, n, _)| *n as u64).sum::<u64>()
        };
        assert_eq!((report.requests, report.errors), (device.served, 0), "{setup:?}");
        assert_eq!((report.read_bytes, report.write_bytes), (bytes(false), bytes(true)), "{setup:?}");
        assert_eq!(report.latency.iter().sum::<u64>(), report.requests);
        assert_eq!(device.interrupts, 0, "{setup:?}");
    }
}

#[test]
fn a_device_that_sleeps_is_kicked_and_one_that_polls_is_not() {
    for setup in all_layouts() {
        let (mut driver, device) = pair(Setup { sleeps: true, ..setup });
        let report = driver.run(&load()).unwrap();
        assert!(report.kicks > 0 && report.requests > 0, "{setup:?}");
        assert!(device.stop().kicks_taken <= report.kicks);
    }
}

#[test]
fn a_device_that_asked_for_no_kicks_gets_none() {
    // With EVENT_IDX the event is never moved from 0, and passed once by the first batch.
    let (mut driver, _device) = pair(Setup { base: 5, ..Setup::default() });
    assert_eq!(driver.run(&load()).unwrap().kicks, 0);
}

#[test]
fn indices_wrap_and_guest_memory_may_start_anywhere() {
    for setup in all_layouts() {
        let (mut driver, device) = pair(Setup { base: 0xffe0, guest_base: 0x1_4000_0000, ..setup });
        let report = driver.verify(&verify(500), &mut unknown(&verify(0))).unwrap();
        assert_eq!(report.errors, 0);
        assert_eq!(device.stop().interrupts, 0);
    }
}

#[test]
fn luns_and_queues_take_turns() {
    let setup = Setup { luns: 3, queues: 2, ..Setup::default() };
    let (report, device) = run_enough(setup, Load { luns: 3, ..load() }, 100);
    let count = |lun| device.log.iter().filter(|entry| entry.0 == lun).count() as u64;
    let even = |count| (report.requests / 3..=report.requests.div_ceil(3)).contains(&count);
    assert!((0..3).map(count).all(even), "{:?} of {}", [count(0), count(1), count(2)], report.requests);
}

#[test]
fn a_sequence_is_in_order_and_starts_again() {
    let load = Load { sequential: true, depth: 1, block_bytes: 8192, ..load() };
    let (_, device) = run_enough(Setup::default(), load, 20);
    let expected = (0..DISK / 512).step_by(16).cycle();
    assert!(device.log.iter().map(|entry| entry.1).eq(expected.take(device.log.len())));
}

#[test]
fn random_loads_stay_on_the_disk_and_reach_all_of_it() {
    // Not a whole number of blocks: the rest is never touched.
    let load = Load { block_bytes: 8192, size_bytes: 6 * 8192 + 4096, ..load() };
    let (_, device) = run_enough(Setup::default(), load, 500);
    let mut seen: Vec<_> = device.log.iter().map(|entry| entry.1).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, (0..6).map(|block| block * 16).collect::<Vec<_>>());
}

#[test]
fn a_batch_is_published_at_once() {
    for batch in [5, 16] {
        let (_, device) = run_enough(Setup::default(), Load { batch, ..load() }, 100);
        assert!(device.pops.iter().all(|&count| count >= usize::from(batch)), "{batch}: {:?}", device.pops);
    }
}

#[test]
fn a_request_starts_when_it_was_due_or_else_when_it_was_published() {
    let shared = Shared::new(Setup::default());
    let mut driver = shared.driver();
    let format = driver.format(512, 4096).unwrap();
    driver.lay_out(Slots { format, depth: 2, poison: false }).unwrap();
    let (queue, memory) = (&mut driver.queues[0], &driver.memory);
    for due in [Some(5), None] {
        queue.fill(memory, &Request { operation: Operation::Read, lun: 0, lba: 0, due });
    }
    queue.publish(memory, 1000).unwrap();
    let device = shared.start(Fault::None, vec![vec![0; DISK as usize]], Vec::new());
    while queue.arrived(memory).unwrap() < 2 {
        std::thread::yield_now();
    }
    let mut started = [0, 1].map(|ahead| queue.complete(memory, ahead).unwrap().started);
    started.sort_unstable();
    assert_eq!((started, device.stop().served), ([5, 1000], 2));
}

#[test]
fn an_offered_load_is_sent_whole_or_counted() {
    for batch in [1, 4] {
        let (mut driver, device) = pair(Setup::default());
        let load = Load { rate_iops: 2000.0, seconds: 0.1, batch, ..load() };
        let report = driver.run(&load).unwrap();
        assert_eq!((report.requests + report.unsent, report.requests), (200, device.stop().served));
    }
}

#[test]
fn requests_that_a_stall_kept_from_being_sent_are_counted() {
    let fault = Fault::Stall { milliseconds: 60 };
    let (mut driver, _device) = pair(Setup { fault, ..Setup::default() });
    let load = Load { rate_iops: 1000.0, seconds: 0.05, depth: 1, ..load() };
    let report = driver.run(&load).unwrap();
    // The stall outlasts the run: one request met it, and all others found no free slot.
    assert_eq!(report.requests + report.unsent, 50);
    assert!(report.requests <= 1);
}

#[test]
fn latency_counts_from_the_schedule() {
    let fault = Fault::Stall { milliseconds: 60 };
    let (mut driver, _device) = pair(Setup { fault, ..Setup::default() });
    let report = driver.run(&Load { rate_iops: 1000.0, seconds: 0.2, depth: 1, ..load() }).unwrap();
    let buckets = report.latency.iter().zip(crate::stats::bounds());
    let late: u64 = buckets.filter(|(_, bound)| *bound > 10_000_000).map(|(count, _)| count).sum();
    // Those due in the first 50 ms of the stall are at least 10 ms late, though only one was with the device.
    assert!(late + report.unsent >= 50, "{late} {}", report.unsent);
}

#[test]
fn failures_are_counted_and_move_no_bytes() {
    let fail = |residual, status, response| Fault::Fail { every: 10, residual, status, response };
    let ways = [
        (Kind::Scsi, fail(0, 2, 0)),
        (Kind::Scsi, fail(0, 0, 9)),
        (Kind::Scsi, fail(4096, 0, 0)),
        (Kind::Blk, fail(0, 1, 0)),
    ];
    for (kind, fault) in ways {
        let (report, _) = run_enough(Setup { kind, fault, ..Setup::default() }, load(), 20);
        assert_eq!(report.errors, report.requests.div_ceil(10), "{fault:?}");
        assert_eq!(report.read_bytes, (report.requests - report.errors) * 4096);
    }
}

#[test]
fn a_verifying_load_passes_on_a_right_device() {
    for setup in all_layouts() {
        let setup = Setup { queues: 2, ..setup };
        let (mut driver, device) = pair(setup);
        let (plan, mut state) = (verify(2000), unknown(&verify(0)));
        let report = driver.verify(&plan, &mut state).unwrap();
        let device = device.stop();
        assert_eq!(state.acknowledged, state.issued);
        assert!(state.issued.iter().all(|&generation| generation > 10), "{state:?}");
        assert!(report.checked > 500 && report.errors == 0, "{report:?}");
        assert_eq!((report.flushes, device.interrupts), (device.flushes, 0));
        assert_eq!(report.flushes, 2000 / 64 + 1);
    }
}

#[test]
fn another_driver_verifies_what_one_wrote() {
    let shared = Shared::new(Setup::default());
    let device = shared.start(Fault::None, vec![vec![0; DISK as usize]], Vec::new());
    let (plan, mut state) = (Verify { generation_base: 1000, ..verify(400) }, unknown(&verify(0)));
    shared.driver().verify(&plan, &mut state).unwrap();
    assert!(state.issued.iter().all(|&generation| generation == 0 || generation > 1000));
    let known = state.issued.iter().filter(|&&generation| generation > 0).count() as u64;
    let kept = state.clone();
    let report = shared.driver().verify(&verify(0), &mut state).unwrap();
    assert_eq!((report.checked, state), (known, kept.clone()));
    // Lose one block behind the driver's back: now it must not pass.
    let mut disks = device.stop().disks;
    disks[0][4096 * 3..4096 * 4].fill(0);
    let _device = shared.start(Fault::None, disks, Vec::new());
    let error = shared.driver().verify(&verify(0), &mut kept.clone()).unwrap_err();
    assert_eq!(
        mismatch(&error),
        Mismatch {
            lun: 0,
            lba: 24,
            byte: 0,
            expected: kept.issued[3]..=kept.issued[3],
            found: Found::Zeroes,
        }
    );
}

#[test]
fn a_verifying_load_by_time_ends_with_a_sweep() {
    let (mut driver, device) = pair(Setup::default());
    let plan = Verify { length: Length::Seconds(0.03), flush_every: 0, ..verify(0) };
    let mut state = unknown(&plan);
    let report = driver.verify(&plan, &mut state).unwrap();
    let device = device.stop();
    let mut swept: Vec<_> =
        device.log[device.log.len() - 16..].iter().map(|entry| (entry.1, entry.3)).collect();
    swept.sort_unstable();
    assert_eq!(swept, (0..16).map(|block| (block * 8, false)).collect::<Vec<_>>());
    assert_eq!((report.requests, report.flushes), (device.served, 0));
}

#[test]
fn large_logical_blocks_count_in_their_own_unit() {
    let plan = Verify { sector_bytes: 4096, flush_every: 0, ..verify(200) };
    let (mut driver, device) = pair(Setup { kind: Kind::Blk, ..Setup::default() });
    driver.verify(&plan, &mut unknown(&plan)).unwrap();
    assert!(device.stop().log.iter().any(|entry| entry.1 == DISK / 512 - 8));
}

fn mismatch(error: &std::io::Error) -> Mismatch {
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    error.get_ref().and_then(|inner| inner.downcast_ref::<Mismatch>()).expect("a mismatch").clone()
}

fn verify_on(fault: Fault) -> Mismatch {
    let (mut driver, _device) = pair(Setup { fault, ..Setup::default() });
    let plan = verify(4000);
    let error = driver.verify(&plan, &mut unknown(&plan)).unwrap_err();
    // What was in flight came back, and the driver can go on.
    assert_eq!(driver.outstanding(), 0);
    driver.run(&load()).unwrap();
    mismatch(&error)
}

#[test]
fn a_flipped_bit_is_found_where_it_is() {
    let wrong = verify_on(Fault::FlipBit { sector: 40 });
    assert_eq!((wrong.lba, wrong.byte), (40, 96));
    let Found::Damaged { expected, found } = wrong.found else { panic!("{wrong}") };
    assert_eq!(expected ^ found, 4 << 32);
}

#[test]
fn a_lost_write_is_found() {
    let wrong = verify_on(Fault::LoseWrite { sector: 48 });
    assert_eq!((wrong.lba, wrong.byte, wrong.found), (48, 0, Found::Zeroes));
    assert!(*wrong.expected.start() > 0);
}

#[test]
fn a_misplaced_write_is_found() {
    let wrong = verify_on(Fault::Misplace { from: 8, to: 16 });
    match (wrong.lba, wrong.found) {
        (16, Found::Pattern { sector: 8, .. }) | (8, Found::Zeroes) => {}
        _ => panic!("{wrong}"),
    }
}

#[test]
fn a_read_that_wrote_nothing_is_found() {
    let wrong = verify_on(Fault::SkipRead);
    assert_eq!((wrong.byte, wrong.found), (0, Found::Untouched));
    assert!(wrong.to_string().ends_with("found a buffer that was not written"), "{wrong}");
}

#[test]
fn a_response_that_was_not_written_is_a_failure() {
    for kind in KINDS {
        let (mut driver, _device) = pair(Setup { kind, fault: Fault::SkipResponse, ..Setup::default() });
        let report = driver.verify(&verify(100), &mut unknown(&verify(0))).unwrap();
        assert_eq!((report.errors, report.requests), (117, 117));
    }
}

#[test]
fn a_queue_is_silent_from_when_it_got_something_to_answer() {
    let shared = Shared::new(Setup::default());
    let mut driver = shared.driver();
    let format = driver.format(512, 4096).unwrap();
    driver.lay_out(Slots { format, depth: 2, poison: false }).unwrap();
    let (queue, memory) = (&mut driver.queues[0], &driver.memory);
    queue.start_listening(10);
    assert!(!queue.is_silent(1000, 20));
    for now in [1000, 1015] {
        queue.fill(memory, &Request { operation: Operation::Read, lun: 0, lba: 0, due: None });
        queue.publish(memory, now).unwrap();
    }
    assert!(!queue.is_silent(1020, 20) && queue.is_silent(1021, 20));
}

#[test]
fn failed_writes_leave_either_generation_right() {
    let fault = Fault::Fail { every: 7, residual: 0, status: 8, response: 0 };
    let (mut driver, _device) = pair(Setup { fault, ..Setup::default() });
    let (plan, mut state) = (verify(3000), unknown(&verify(0)));
    let report = driver.verify(&plan, &mut state).unwrap();
    assert!(report.errors > 100 && report.checked > 100);
    assert!(state
        .acknowledged
        .iter()
        .zip(&state.issued)
        .all(|(acknowledged, issued)| acknowledged <= issued));
}

#[test]
fn a_device_that_breaks_its_ring_is_named_and_left() {
    let ways = [
        (Fault::WrongId { after: 20, id: 77 }, "id 77, which is not outstanding"),
        (Fault::WrongId { after: 20, id: u32::MAX }, "id 4294967295, which is not outstanding"),
        (Fault::Twice { after: 20 }, "outstanding"),
        // All are sent when all came back: the second of a round cannot be the first again.
        (Fault::Repeat { after: 17 }, "which is not outstanding"),
        (Fault::Length { bytes: 108 + 4096 + 1 }, "4205 bytes"),
        (Fault::Jump { by: 300 }, "used index went ahead by"),
    ];
    for (fault, text) in ways {
        let (mut driver, _device) = pair(Setup { fault, ..Setup::default() });
        let load = Load { seconds: 20.0, batch: 16, ..load() };
        for _ in 0..2 {
            let error = driver.run(&load).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}

#[test]
fn a_silent_device_is_a_timeout_and_its_answers_are_taken_later() {
    let shared = Shared::new(Setup { timeout: Duration::from_millis(50), ..Setup::default() });
    let device = shared.start(Fault::Hang { after: 0 }, vec![vec![0; DISK as usize]], Vec::new());
    let mut driver = shared.driver();
    let load = Load { seconds: 20.0, ..load() };
    for _ in 0..2 {
        let error = driver.run(&load).unwrap_err();
        assert_eq!((error.kind(), driver.outstanding()), (ErrorKind::TimedOut, 16));
        assert!(error.to_string().contains("0.05 s, 16 requests outstanding"), "{error}");
    }
    let dead = device.stop();
    let _device = shared.start(Fault::None, dead.disks, dead.held.into());
    driver.timeout = Setup::default().timeout;
    driver.run(&Load { seconds: 0.01, ..load }).unwrap();
    assert_eq!(driver.outstanding(), 0);
}

#[test]
fn a_device_killed_with_requests_in_flight_and_restarted_loses_nothing() {
    let setup = Setup { queues: 2, ..Setup::default() };
    let shared = Shared::new(setup);
    let device = shared.start(Fault::Hang { after: 700 }, vec![vec![0; DISK as usize]], Vec::new());
    let (plan, mut state) = (verify(2000), unknown(&verify(0)));
    let mut driver = shared.driver();
    let report = std::thread::scope(|scope| {
        let verifying = scope.spawn(|| driver.verify(&plan, &mut state));
        let dead = killed_full(device, &shared, || verifying.is_finished());
        assert_eq!(dead.served, 700);
        let _device = shared.start(Fault::None, dead.disks, dead.held.into());
        verifying.join().unwrap()
    });
    assert_eq!(report.unwrap().errors, 0);
    assert_eq!(state.acknowledged, state.issued);
}

#[test]
fn a_restart_that_forgets_acknowledged_writes_is_found() {
    let shared = Shared::new(Setup::default());
    let device = shared.start(Fault::Hang { after: 700 }, vec![vec![0; DISK as usize]], Vec::new());
    let (plan, mut state) = (verify(2000), unknown(&verify(0)));
    let mut driver = shared.driver();
    let error = std::thread::scope(|scope| {
        let verifying = scope.spawn(|| driver.verify(&plan, &mut state));
        let dead = killed_full(device, &shared, || verifying.is_finished());
        let _device = shared.start(Fault::None, vec![vec![0; DISK as usize]], dead.held.into());
        verifying.join().unwrap()
    });
    assert_eq!(mismatch(&error.unwrap_err()).found, Found::Zeroes);
}

/// Kill a device that hangs, once it holds all that the driver can have in flight (or the driver gave up).
fn killed_full(device: Running, shared: &Shared, is_over: impl Fn() -> bool) -> Device {
    let expected = 700 + 16 * shared.setup.queues;
    while shared.submitted() < expected && !is_over() {
        std::thread::yield_now();
    }
    device.stop()
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is_sent() {
    let (mut driver, device) = pair(Setup { indirect: false, ..Setup::default() });
    let wrong = [
        Load { depth: 0, batch: 0, ..load() },
        Load { depth: 43, ..load() },
        Load { batch: 17, ..load() },
        Load { luns: 0, ..load() },
        Load { luns: 0x4001, ..load() },
        Load { read_percent: 101, ..load() },
        Load { seconds: f64::NAN, ..load() },
        Load { rate_iops: -1.0, ..load() },
        Load { block_bytes: 1000, ..load() },
        Load { block_bytes: 0, ..load() },
        Load { sector_bytes: 1024, ..load() },
        Load { size_bytes: 4095, ..load() },
        Load { cpu: Some(1 << 20), ..load() },
        Load { block_bytes: 4 << 20, size_bytes: 1 << 30, ..load() },
    ];
    for load in wrong {
        assert_eq!(driver.run(&load).unwrap_err().kind(), ErrorKind::InvalidInput, "{load:?}");
    }
    let mut short = Generations::unknown(15);
    assert_eq!(driver.verify(&verify(1), &mut short).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(device.stop().served, 0);
}

/// Reads block 0, and counts what is taken before it is asked for more.
struct Bursts {
    burst: u16,
    left: u32,
    taken: u16,
    most: u16,
}

impl Workload for Bursts {
    fn finished(&mut self, _: u64) -> bool {
        self.left == 0
    }

    fn wanted(&mut self, free: usize, _: u64) -> usize {
        self.most = self.most.max(std::mem::take(&mut self.taken));
        free
    }

    fn burst(&self, _: u16) -> u16 {
        self.burst
    }

    fn next(&mut self, _: Tag, _: Buffer<'_>) -> Option<Request> {
        self.left = self.left.checked_sub(1)?;
        Some(Request { operation: Operation::Read, lun: 0, lba: 0, due: None })
    }

    fn done(&mut self, _: Tag, _: &Completion, _: Buffer<'_>) {
        self.taken += 1;
    }
}

#[test]
fn no_more_than_a_burst_is_taken_before_its_successors_are_published() {
    for burst in [1, 3] {
        let (mut driver, device) = pair(Setup::default());
        let format = driver.format(512, 4096).unwrap();
        driver.lay_out(Slots { format, depth: 16, poison: false }).unwrap();
        let mut workload = Bursts { burst, left: 2000, taken: 0, most: 0 };
        driver.drive(&mut workload, &mut Tally::new()).unwrap();
        assert!((1..=burst).contains(&workload.most), "{burst}: {}", workload.most);
        assert_eq!(device.stop().served, 2000);
    }
}

#[test]
fn a_load_takes_all_that_there_is_or_a_burst() {
    for burst in [0, 1, 4] {
        let (report, device) = run_enough(Setup::default(), Load { burst, ..load() }, 100);
        assert_eq!((report.requests, report.errors), (device.served, 0));
    }
}
