//! The polling driver.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Mutex;

use pyo3::exceptions::{PyOSError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use ringway_core as core;
use ringway_core::driver::{machine, Config, Kind, Length, Load, Report, RingOffsets, Verify};

use crate::{borrow, one_of, seconds};

const KINDS: [(&str, Kind); 2] = [("scsi", Kind::Scsi), ("blk", Kind::Blk)];

fn raise(error: std::io::Error) -> PyErr {
    match error.kind() {
        std::io::ErrorKind::InvalidInput => PyValueError::new_err(error.to_string()),
        std::io::ErrorKind::TimedOut => PyTimeoutError::new_err(error.to_string()),
        _ => match error.raw_os_error() {
            Some(errno) => PyOSError::new_err((errno, error.to_string())),
            None => PyOSError::new_err((libc::EILSEQ, error.to_string())),
        },
    }
}

/// What each block of a disk holds.
#[pyclass(frozen, module = "ringway._core")]
pub struct Generations(Mutex<core::driver::Generations>);

#[pymethods]
impl Generations {
    #[new]
    fn new(blocks: usize) -> Self {
        Generations(Mutex::new(core::driver::Generations::unknown(blocks)))
    }

    #[getter]
    fn acknowledged(&self) -> Vec<u32> {
        self.0.lock().unwrap().acknowledged.clone()
    }

    #[getter]
    fn issued(&self) -> Vec<u32> {
        self.0.lock().unwrap().issued.clone()
    }
}

#[pyclass(frozen, module = "ringway._core")]
pub struct LoadDriver(Mutex<core::driver::LoadDriver>);

#[pymethods]
impl LoadDriver {
    #[new]
    #[pyo3(signature = (memory_fd, *, kind, rings, queue_size, kick_fds, data_offset, event_idx, indirect, timeout_s=10.0))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        memory_fd: RawFd,
        kind: &str,
        rings: Vec<(usize, usize, usize)>,
        queue_size: u16,
        kick_fds: Vec<RawFd>,
        data_offset: usize,
        event_idx: bool,
        indirect: bool,
        timeout_s: f64,
    ) -> PyResult<Self> {
        let offsets = |(descriptors, available, used)| RingOffsets { descriptors, available, used };
        let rings: Vec<RingOffsets> = rings.into_iter().map(offsets).collect();
        let kicks: Vec<BorrowedFd<'_>> = kick_fds.iter().map(borrow).collect::<PyResult<_>>()?;
        let config = Config {
            kind: one_of("device", kind, &KINDS)?,
            rings: &rings,
            queue_size,
            kick_fds: &kicks,
            data_offset,
            event_idx,
            indirect,
            guest_base: 0,
            timeout: seconds(timeout_s)?,
        };
        let driver = core::driver::LoadDriver::new(borrow(&memory_fd)?, &config).map_err(raise)?;
        Ok(LoadDriver(Mutex::new(driver)))
    }

    #[pyo3(signature = (*, seconds, block_bytes, depth, size_bytes, read_percent=100, sequential=false, luns=1, batch=1, burst=0, rate_iops=0.0, cpu=None, seed=1, sector_bytes=512))]
    #[allow(clippy::too_many_arguments)]
    fn run<'py>(
        &self,
        py: Python<'py>,
        seconds: f64,
        block_bytes: u32,
        depth: u16,
        size_bytes: u64,
        read_percent: u8,
        sequential: bool,
        luns: u16,
        batch: u16,
        burst: u16,
        rate_iops: f64,
        cpu: Option<usize>,
        seed: u64,
        sector_bytes: u32,
    ) -> PyResult<Bound<'py, PyDict>> {
        let load = Load {
            seconds,
            block_bytes,
            depth,
            size_bytes,
            read_percent,
            sequential,
            luns,
            batch,
            burst,
            rate_iops,
            cpu,
            seed,
            sector_bytes,
        };
        report(py, &py.detach(|| self.0.lock().unwrap().run(&load)).map_err(raise)?)
    }

    #[pyo3(signature = (state, *, size_bytes, block_bytes=4096, depth=8, seconds=None, requests=0, lun=0, seed=1, sector_bytes=512, generation_base=0, flush_every=0))]
    #[allow(clippy::too_many_arguments)]
    fn verify<'py>(
        &self,
        py: Python<'py>,
        state: PyRef<'py, Generations>,
        size_bytes: u64,
        block_bytes: u32,
        depth: u16,
        seconds: Option<f64>,
        requests: u64,
        lun: u16,
        seed: u32,
        sector_bytes: u32,
        generation_base: u32,
        flush_every: u64,
    ) -> PyResult<Bound<'py, PyDict>> {
        let length = seconds.map_or(Length::Requests(requests), Length::Seconds);
        let plan = Verify {
            length,
            size_bytes,
            block_bytes,
            depth,
            lun,
            seed,
            sector_bytes,
            generation_base,
            flush_every,
        };
        let state = &*state;
        let done = py.detach(|| self.0.lock().unwrap().verify(&plan, &mut state.0.lock().unwrap()));
        report(py, &done.map_err(raise)?)
    }
}

#[pyfunction]
#[pyo3(signature = (cpus, *, seconds=0.01))]
pub fn cache_line_ns(py: Python<'_>, cpus: (usize, usize), seconds: f64) -> PyResult<f64> {
    let length = crate::seconds(seconds)?;
    py.detach(|| machine::round_trip_ns(cpus, length)).map_err(raise)
}

#[pyfunction]
#[pyo3(signature = (*, block_bytes, buffers=32, store_bytes=256 << 20, cpu=None, seconds=0.1))]
pub fn copies_per_second(
    py: Python<'_>,
    block_bytes: u32,
    buffers: u32,
    store_bytes: u64,
    cpu: Option<usize>,
    seconds: f64,
) -> PyResult<f64> {
    let length = crate::seconds(seconds)?;
    py.detach(|| machine::copies_per_second(cpu, block_bytes, buffers, store_bytes, length)).map_err(raise)
}

fn report<'py>(py: Python<'py>, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let row = PyDict::new(py);
    let counts = [
        ("requests", report.requests),
        ("errors", report.errors),
        ("read_bytes", report.read_bytes),
        ("write_bytes", report.write_bytes),
        ("flushes", report.flushes),
        ("checked", report.checked),
        ("unsent", report.unsent),
        ("kicks", report.kicks),
    ];
    counts.iter().try_for_each(|(name, value)| row.set_item(name, value))?;
    row.set_item("seconds", report.seconds)?;
    row.set_item("cpu_seconds", report.cpu_seconds)?;
    row.set_item("latency", &report.latency)?;
    Ok(row)
}
