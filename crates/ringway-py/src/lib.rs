//! The Python face of `ringway-core`: fds and integers in, records out. No logic lives here.

mod command;
mod device;
mod driver;
mod memory;
mod statistics;
mod store;
mod trace;

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use pyo3::exceptions::{PyKeyError, PyOSError, PyValueError};
use pyo3::prelude::*;
use ringway_core as core;
use ringway_core::error::Error;

fn raise(error: Error) -> PyErr {
    match error {
        Error::Os { context, source } => match source.raw_os_error() {
            Some(errno) => PyOSError::new_err((errno, format!("{context}: {source}"))),
            None => PyOSError::new_err(format!("{context}: {source}")),
        },
        Error::Invalid(message) => PyValueError::new_err(message),
        Error::NoLun(..) => PyKeyError::new_err(error.to_string()),
    }
}

fn raise_errno(errno: i32) -> PyErr {
    PyOSError::new_err((errno, std::io::Error::from_raw_os_error(errno).to_string()))
}

fn seconds(timeout_s: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(timeout_s.min(1e6)).map_err(|error| PyValueError::new_err(error.to_string()))
}

fn borrow(fd: &RawFd) -> PyResult<BorrowedFd<'_>> {
    if *fd < 0 {
        return Err(PyValueError::new_err(format!("no file descriptor: {fd}")));
    }
    // SAFETY: the caller keeps the fd open for the length of the call; a closed one is EBADF, not worse.
    Ok(unsafe { BorrowedFd::borrow_raw(*fd) })
}

fn own(fd: Option<RawFd>) -> PyResult<Option<OwnedFd>> {
    fd.map(|fd| core::notify::duplicate(fd).map_err(raise)).transpose()
}

fn one_of<T: Copy>(what: &str, name: &str, table: &[(&str, T)]) -> PyResult<T> {
    let found = table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    found.ok_or_else(|| PyValueError::new_err(format!("unknown {what}: {name}")))
}

#[pyfunction]
fn inflight_size(queues: u16, queue_size: u16) -> u64 {
    core::inflight::queue_bytes(queue_size) * u64::from(queues)
}

#[pyfunction]
fn latency_bucket_bounds() -> Vec<u64> {
    core::stats::bounds()
}

/// The module.
#[pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::{
        command::Command,
        device::Device,
        driver::{cache_line_ns, copies_per_second, Generations, LoadDriver},
        inflight_size, latency_bucket_bounds,
        memory::{DirtyLog, InflightRegion, Region},
        store::Store,
        trace::Trace,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::core::membarrier::prepare(); // now, while there is one thread
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("GATE_ATTENTION", super::core::view::GATE_ATTENTION)?;
        module.add("GATE_NO_READ", super::core::view::GATE_NO_READ)?;
        module.add("GATE_NO_WRITE", super::core::view::GATE_NO_WRITE)?;
        module.add("MAX_SLOW_DATA", super::core::slow::MAX_SLOW_DATA)
    }
}
