//! Guest memory, the in-flight region and the dirty log.

use std::os::fd::RawFd;
use std::sync::Arc;

use pyo3::prelude::*;
use ringway_core as core;

use crate::{borrow, raise};

#[pyclass(frozen, module = "ringway._core")]
pub struct Region(pub Arc<core::memory::Region>);

#[pymethods]
impl Region {
    #[new]
    #[pyo3(signature = (fd, *, guest_address, size_bytes, user_address, mmap_offset))]
    fn new(
        py: Python<'_>,
        fd: RawFd,
        guest_address: u64,
        size_bytes: u64,
        user_address: u64,
        mmap_offset: u64,
    ) -> PyResult<Self> {
        let fd = borrow(&fd)?;
        let region =
            py.detach(|| core::memory::Region::new(fd, guest_address, size_bytes, user_address, mmap_offset));
        region.map(|region| Region(Arc::new(region))).map_err(raise)
    }

    #[getter]
    fn guest_address(&self) -> u64 {
        self.0.guest_address
    }

    #[getter]
    fn size_bytes(&self) -> u64 {
        self.0.size()
    }

    #[getter]
    fn user_address(&self) -> u64 {
        self.0.user_address
    }

    #[getter]
    fn mmap_offset(&self) -> u64 {
        self.0.mmap_offset
    }

    #[getter]
    fn identity(&self) -> (u64, u64) {
        self.0.identity
    }
}

#[pyclass(frozen, module = "ringway._core")]
pub struct InflightRegion(pub Arc<core::inflight::InflightRegion>);

#[pymethods]
impl InflightRegion {
    #[new]
    #[pyo3(signature = (fd, *, mmap_offset, size_bytes, queues, queue_size))]
    fn new(
        py: Python<'_>,
        fd: RawFd,
        mmap_offset: u64,
        size_bytes: u64,
        queues: u16,
        queue_size: u16,
    ) -> PyResult<Self> {
        let fd = borrow(&fd)?;
        let region = py
            .detach(|| core::inflight::InflightRegion::new(fd, mmap_offset, size_bytes, queues, queue_size));
        region.map(|region| InflightRegion(Arc::new(region))).map_err(raise)
    }
}

#[pyclass(frozen, module = "ringway._core")]
pub struct DirtyLog(pub Arc<core::dirty::DirtyLog>);

#[pymethods]
impl DirtyLog {
    #[new]
    #[pyo3(signature = (fd, *, mmap_offset, size_bytes))]
    fn new(py: Python<'_>, fd: RawFd, mmap_offset: u64, size_bytes: u64) -> PyResult<Self> {
        let fd = borrow(&fd)?;
        let log = py.detach(|| core::dirty::DirtyLog::new(fd, mmap_offset, size_bytes));
        log.map(|log| DirtyLog(Arc::new(log))).map_err(raise)
    }
}
