//! The corpus again, without instrumentation: each input as it is, and with bytes changed. Runs are repeatable.

use std::path::PathBuf;

use ringway_fuzz::{Target, TARGETS};

/// Changed copies of each input.
fn rounds() -> u64 {
    if std::env::var_os("RINGWAY_LONG").is_some_and(|value| value == "1") {
        1000
    } else {
        20
    }
}

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = std::fs::read_dir(&folder).expect("a corpus for each target");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).expect("an input"))).collect()
}

fn replay((name, run): Target) {
    let inputs = corpus(name);
    assert!(!inputs.is_empty(), "no corpus for {name}");
    for (path, input) in &inputs {
        println!("{}", path.display());
        run(input);
    }
    let mut random = 0x9e37_79b9_7f4a_7c15;
    for round in 0..rounds() {
        for (path, input) in &inputs {
            println!("{} changed, round {round}", path.display());
            run(&changed(input, &mut random));
        }
    }
}

/// A copy with a few bytes changed, cut or doubled.
fn changed(input: &[u8], random: &mut u64) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..1 + next(random) % 4 {
        let at = next(random) as usize % (bytes.len() + 1);
        match next(random) % 8 {
            0 => bytes.truncate(at),
            1 => bytes.extend_from_within(at..),
            2 => bytes.insert(at, next(random) as u8),
            _ if at < bytes.len() => bytes[at] = next(random) as u8,
            _ => {}
        }
        bytes.truncate(4096);
    }
    bytes
}

/// xorshift64
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn the_corpus_of_the_worker_does_no_harm() {
    replay(TARGETS[0]);
}

#[test]
fn the_corpus_of_chains_does_no_harm() {
    replay(TARGETS[1]);
}

#[test]
fn the_corpus_of_commands_does_no_harm() {
    replay(TARGETS[2]);
}

#[test]
fn the_corpus_of_in_flight_regions_does_no_harm() {
    replay(TARGETS[3]);
}

#[test]
fn the_corpus_of_dirty_logs_does_no_harm() {
    replay(TARGETS[4]);
}
