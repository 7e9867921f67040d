//! Backstores.

use std::os::fd::RawFd;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ringway_core as core;
use ringway_core::store::FileOptions;

use crate::{raise, raise_errno};

#[pyclass(frozen, module = "ringway._core")]
pub struct Store(pub Arc<core::store::Store>);

impl Store {
    fn check(&self, offset: u64, length: u64) -> PyResult<()> {
        match self.0.contains(offset, length) {
            true => Ok(()),
            false => Err(raise_errno(libc::EINVAL)),
        }
    }
}

#[pymethods]
impl Store {
    #[staticmethod]
    fn null(size_bytes: u64) -> Self {
        Store(Arc::new(core::store::Store::null(size_bytes)))
    }

    #[staticmethod]
    fn ram(size_bytes: u64) -> PyResult<Self> {
        core::store::Store::ram(size_bytes).map(|store| Store(Arc::new(store))).map_err(raise)
    }

    #[staticmethod]
    #[pyo3(signature = (fd, *, size_bytes, writable, direct=false, mapped=false, discard=true, memory_align=1, offset_align=1))]
    #[allow(clippy::too_many_arguments)]
    fn file(
        fd: RawFd,
        size_bytes: u64,
        writable: bool,
        direct: bool,
        mapped: bool,
        discard: bool,
        memory_align: usize,
        offset_align: u64,
    ) -> PyResult<Self> {
        let fd = core::notify::duplicate(fd).map_err(raise)?;
        let options =
            FileOptions { size: size_bytes, writable, direct, mapped, discard, memory_align, offset_align };
        core::store::Store::file(fd, options).map(|store| Store(Arc::new(store))).map_err(raise)
    }

    #[getter]
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    #[getter]
    fn size_bytes(&self) -> u64 {
        self.0.size()
    }

    #[getter]
    fn writable(&self) -> bool {
        self.0.options().writable
    }

    #[getter]
    fn discard(&self) -> bool {
        self.0.options().discard
    }

    fn read<'py>(&self, py: Python<'py>, offset: u64, length: usize) -> PyResult<Bound<'py, PyBytes>> {
        self.check(offset, length as u64)?;
        PyBytes::new_with(py, length, |buffer| py.detach(|| self.0.read(offset, buffer)).map_err(raise_errno))
    }

    #[pyo3(signature = (offset, data, *, fua=false))]
    fn write(&self, py: Python<'_>, offset: u64, data: &[u8], fua: bool) -> PyResult<()> {
        self.check(offset, data.len() as u64)?;
        py.detach(|| self.0.write(offset, data, fua)).map_err(raise_errno)
    }

    #[pyo3(signature = (offset, length, *, unmap=false))]
    fn zero(&self, py: Python<'_>, offset: u64, length: u64, unmap: bool) -> PyResult<()> {
        self.check(offset, length)?;
        py.detach(|| self.0.zero(offset, length, unmap)).map_err(raise_errno)
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.flush()).map_err(raise_errno)
    }
}
