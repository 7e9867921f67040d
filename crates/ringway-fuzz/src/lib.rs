//! Fuzz targets: each turns any bytes into what a hostile guest or front end could write, lets the core work on it,
//! and checks what must hold whatever they are.
//!
//! A target is a function of bytes. libFuzzer calls it in `src/bin`; the tests call it with the corpus.

pub mod chain;
pub mod command;
pub mod dirty;
pub mod driver;
pub mod guest;
pub mod inflight;
pub mod script;
pub mod worker;

/// A target's name, which its corpus has too, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 5] = [
    ("worker", worker::run),
    ("chain", chain::run),
    ("command", command::run),
    ("inflight", inflight::run),
    ("dirty", dirty::run),
];
