//! The Python face of `ringway-core`: fds and integers in, records out. No logic lives here.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyKeyError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use ringway_core as core;
use ringway_core::device::{DeviceOptions, MAX_QUEUES};
use ringway_core::error::Error;
use ringway_core::scsi::Failure;
use ringway_core::slow::{SlowCommand, SlowKind};
use ringway_core::store::FileOptions;
use ringway_core::worker::{Completion, DeviceKind, EngineChoice, Matcher, QueueStart, RingLayout};

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

#[pyfunction]
fn inflight_size(queues: u16, queue_size: u16) -> u64 {
    core::inflight::queue_bytes(queue_size) * u64::from(queues)
}

#[pyfunction]
fn latency_bucket_bounds() -> Vec<u64> {
    core::stats::bounds()
}

#[pyclass(frozen, module = "ringway._core")]
struct Region(Arc<core::memory::Region>);

#[pymethods]
impl Region {
    #[new]
    #[pyo3(signature = (fd, *, guest_address, size_bytes, user_address, mmap_offset))]
    fn new(
        fd: RawFd,
        guest_address: u64,
        size_bytes: u64,
        user_address: u64,
        mmap_offset: u64,
    ) -> PyResult<Self> {
        let region =
            core::memory::Region::new(borrow(&fd)?, guest_address, size_bytes, user_address, mmap_offset);
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
struct InflightRegion(Arc<core::inflight::InflightRegion>);

#[pymethods]
impl InflightRegion {
    #[new]
    #[pyo3(signature = (fd, *, mmap_offset, size_bytes, queues, queue_size))]
    fn new(fd: RawFd, mmap_offset: u64, size_bytes: u64, queues: u16, queue_size: u16) -> PyResult<Self> {
        let region =
            core::inflight::InflightRegion::new(borrow(&fd)?, mmap_offset, size_bytes, queues, queue_size);
        region.map(|region| InflightRegion(Arc::new(region))).map_err(raise)
    }
}

#[pyclass(frozen, module = "ringway._core")]
struct DirtyLog(Arc<core::dirty::DirtyLog>);

#[pymethods]
impl DirtyLog {
    #[new]
    #[pyo3(signature = (fd, *, mmap_offset, size_bytes))]
    fn new(fd: RawFd, mmap_offset: u64, size_bytes: u64) -> PyResult<Self> {
        let log = core::dirty::DirtyLog::new(borrow(&fd)?, mmap_offset, size_bytes);
        log.map(|log| DirtyLog(Arc::new(log))).map_err(raise)
    }
}

#[pyclass(frozen, module = "ringway._core")]
struct Store(Arc<core::store::Store>);

impl Store {
    fn check(&self, offset: u64, length: u64) -> PyResult<()> {
        match self.0.contains(offset, length) {
            true => Ok(()),
            false => Err(raise_errno(libc_einval())),
        }
    }
}

fn libc_einval() -> i32 {
    22
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

#[pyclass(frozen, module = "ringway._core")]
struct Command(SlowCommand);

#[pymethods]
impl Command {
    #[getter]
    fn kind(&self) -> &'static str {
        match self.0.kind {
            SlowKind::Cdb => "cdb",
            SlowKind::Control => "control",
            SlowKind::Broken => "broken",
        }
    }

    #[getter]
    fn tag(&self) -> u64 {
        self.0.tag
    }

    #[getter]
    fn queue(&self) -> u16 {
        self.0.queue
    }

    #[getter]
    fn lun<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.lun)
    }

    #[getter]
    fn id(&self) -> u64 {
        self.0.id
    }

    #[getter]
    fn task_attribute(&self) -> u8 {
        self.0.task_attribute
    }

    #[getter]
    fn cdb<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.cdb)
    }

    #[getter]
    fn data_out<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.data_out)
    }

    #[getter]
    fn data_out_size(&self) -> usize {
        self.0.data_out_size
    }

    #[getter]
    fn data_in_size(&self) -> usize {
        self.0.data_in_size
    }

    #[getter]
    fn failure(&self) -> String {
        match self.0.failure {
            _ if self.0.kind == SlowKind::Broken => self.0.message.clone(),
            Failure::None => String::new(),
            Failure::Range => "range".into(),
            Failure::ReadOnly => "read_only".into(),
            Failure::NoLun => "no_lun".into(),
            Failure::Field => "field".into(),
            Failure::Parameter => "parameter".into(),
            Failure::Overrun => "overrun".into(),
            Failure::Errno(errno) => format!("errno:{errno}"),
        }
    }
}

#[pyclass(frozen, module = "ringway._core")]
struct Device(core::device::Device);

fn one_of<T: Copy>(what: &str, name: &str, table: &[(&str, T)]) -> PyResult<T> {
    let found = table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    found.ok_or_else(|| PyValueError::new_err(format!("unknown {what}: {name}")))
}

const KINDS: [(&str, DeviceKind); 2] = [("scsi", DeviceKind::Scsi), ("blk", DeviceKind::Blk)];
const ENGINES: [(&str, EngineChoice); 3] =
    [("auto", EngineChoice::Auto), ("uring", EngineChoice::Uring), ("epoll", EngineChoice::Epoll)];
const POLLS: [(&str, core::poll::PollMode); 3] = [
    ("interrupt", core::poll::PollMode::Interrupt),
    ("adaptive", core::poll::PollMode::Adaptive),
    ("poll", core::poll::PollMode::Poll),
];

#[pymethods]
impl Device {
    #[new]
    #[pyo3(signature = (kind, *, queues, workers=1, cpus=vec![], poll="adaptive", engine="auto"))]
    fn new(
        py: Python<'_>,
        kind: &str,
        queues: usize,
        workers: usize,
        cpus: Vec<usize>,
        poll: &str,
        engine: &str,
    ) -> PyResult<Self> {
        let options = DeviceOptions {
            kind: one_of("device", kind, &KINDS)?,
            queues: queues.min(MAX_QUEUES + 1),
            workers,
            cpus,
            poll: one_of("poll mode", poll, &POLLS)?,
            engine: one_of("engine", engine, &ENGINES)?,
        };
        py.detach(|| core::device::Device::new(&options)).map(Device).map_err(raise)
    }

    #[getter]
    fn engine(&self) -> &'static str {
        if self.0.engine() == EngineChoice::Uring {
            "uring"
        } else {
            "epoll"
        }
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }

    #[pyo3(signature = (target, lun, store, *, block_size, serial=None, timeout_s=10.0))]
    #[allow(clippy::too_many_arguments)]
    fn set_lun(
        &self,
        py: Python<'_>,
        target: u8,
        lun: u16,
        store: &Store,
        block_size: u32,
        serial: Option<&[u8]>,
        timeout_s: f64,
    ) -> PyResult<bool> {
        let (mut id, serial) = ([0; 20], serial.unwrap_or_default());
        let part = id.get_mut(..serial.len());
        part.ok_or_else(|| PyValueError::new_err("a serial of more than 20 bytes"))?.copy_from_slice(serial);
        let (store, timeout) = (store.0.clone(), seconds(timeout_s)?);
        py.detach(|| self.0.set_lun(target, lun, store, block_size, id, timeout)).map_err(raise)
    }

    #[pyo3(signature = (target, lun, *, timeout_s=10.0))]
    fn remove_lun(&self, py: Python<'_>, target: u8, lun: u16, timeout_s: f64) -> PyResult<bool> {
        let timeout = seconds(timeout_s)?;
        py.detach(|| self.0.remove_lun(target, lun, timeout)).map_err(raise)
    }

    fn set_gate(&self, target: u8, lun: u16, word: u64) -> PyResult<()> {
        self.0.set_gate(target, lun, word).map_err(raise)
    }

    #[pyo3(signature = (target, lun, offset, length, *, reads=true, timeout_s=10.0))]
    #[allow(clippy::too_many_arguments)]
    fn lock_range(
        &self,
        py: Python<'_>,
        target: u8,
        lun: u16,
        offset: u64,
        length: u64,
        reads: bool,
        timeout_s: f64,
    ) -> PyResult<Option<u64>> {
        let (end, timeout) = (offset.saturating_add(length), seconds(timeout_s)?);
        py.detach(|| self.0.lock_range((target, lun), offset, end, reads, timeout)).map_err(raise)
    }

    fn unlock_range(&self, target: u8, lun: u16, handle: u64) -> PyResult<()> {
        self.0.unlock_range(target, lun, handle).map_err(raise)
    }

    fn set_features(&self, py: Python<'_>, features: u64) -> PyResult<()> {
        py.detach(|| self.0.set_features(features)).map_err(raise)
    }

    fn set_writeback(&self, py: Python<'_>, enabled: bool) -> PyResult<()> {
        py.detach(|| self.0.set_writeback(enabled)).map_err(raise)
    }

    #[pyo3(signature = (regions, *, timeout_s=1.0))]
    fn set_memory(&self, py: Python<'_>, regions: Vec<PyRef<'_, Region>>, timeout_s: f64) -> PyResult<bool> {
        let (regions, timeout) =
            (regions.iter().map(|region| region.0.clone()).collect(), seconds(timeout_s)?);
        py.detach(|| self.0.set_memory(regions, timeout)).map_err(raise)
    }

    fn set_log(&self, py: Python<'_>, log: Option<PyRef<'_, DirtyLog>>) -> PyResult<()> {
        let log = log.map(|log| log.0.clone());
        py.detach(|| self.0.set_log(log)).map_err(raise)
    }

    #[pyo3(signature = (index, *, size, descriptors, available, used, base, kick_fd, call_fd, log_address=None, inflight=None))]
    #[allow(clippy::too_many_arguments)]
    fn start_queue(
        &self,
        py: Python<'_>,
        index: u16,
        size: u16,
        descriptors: u64,
        available: u64,
        used: u64,
        base: u16,
        kick_fd: Option<RawFd>,
        call_fd: Option<RawFd>,
        log_address: Option<u64>,
        inflight: Option<PyRef<'_, InflightRegion>>,
    ) -> PyResult<()> {
        let start = QueueStart {
            layout: RingLayout { size, descriptors, available, used },
            base,
            kick: own(kick_fd)?,
            call: own(call_fd)?,
            log_address,
            inflight: inflight.map(|region| region.0.clone()),
        };
        py.detach(|| self.0.start_queue(index, start)).map_err(raise)
    }

    fn enable_queue(&self, py: Python<'_>, index: u16, enabled: bool) -> PyResult<()> {
        py.detach(|| self.0.enable_queue(index, enabled)).map_err(raise)
    }

    fn set_queue_call(&self, py: Python<'_>, index: u16, fd: Option<RawFd>) -> PyResult<()> {
        let call = own(fd)?;
        py.detach(|| self.0.set_queue_call(index, call)).map_err(raise)
    }

    fn set_queue_log(&self, py: Python<'_>, index: u16, log_address: Option<u64>) -> PyResult<()> {
        py.detach(|| self.0.set_queue_log(index, log_address)).map_err(raise)
    }

    #[pyo3(signature = (index, *, timeout_s=5.0))]
    fn stop_queue(&self, py: Python<'_>, index: u16, timeout_s: f64) -> PyResult<u16> {
        let timeout = seconds(timeout_s)?;
        py.detach(|| self.0.stop_queue(index, timeout)).map_err(raise)
    }

    #[pyo3(signature = (timeout_s=None))]
    fn next_command(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<Option<Command>> {
        let timeout = timeout_s.map(seconds).transpose()?;
        Ok(py.detach(|| self.0.next_command(timeout)).map(Command))
    }

    fn wake(&self) {
        self.0.wake();
    }

    #[pyo3(signature = (tag, *, response, status=0, sense=None, data=None, taken=None))]
    #[allow(clippy::too_many_arguments)]
    fn complete(
        &self,
        tag: u64,
        response: u8,
        status: u8,
        sense: Option<&[u8]>,
        data: Option<&[u8]>,
        taken: Option<usize>,
    ) -> PyResult<()> {
        let (sense, data) = (sense.unwrap_or_default().to_vec(), data.unwrap_or_default().to_vec());
        if sense.len() > 96 {
            return Err(PyValueError::new_err("more than 96 bytes of sense data"));
        }
        self.0.complete(tag, Completion { response, status, sense, data, taken });
        Ok(())
    }

    fn complete_control(&self, tag: u64, response: Vec<u8>) {
        self.0.complete(tag, Completion { data: response, ..Completion::default() });
    }

    fn resume(&self, tag: u64) {
        self.0.resume(tag);
    }

    fn post_event(&self, event: u32, lun: [u8; 8], reason: u32) {
        self.0.post_event(event, lun, reason);
    }

    #[pyo3(signature = (*, target=None, lun=None, id=None, cancel=false, timeout_s=5.0))]
    fn drain(
        &self,
        py: Python<'_>,
        target: Option<u8>,
        lun: Option<u16>,
        id: Option<u64>,
        cancel: bool,
        timeout_s: f64,
    ) -> PyResult<bool> {
        let timeout = seconds(timeout_s)?;
        Ok(py.detach(|| self.0.wait_for(Matcher::Hot { target, lun, id }, cancel, timeout)))
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let all = PyDict::new(py);
        all.set_item("luns", lun_rows(py, &self.0)?)?;
        all.set_item("queues", queue_rows(py, &self.0)?)?;
        all.set_item("workers", worker_rows(py, &self.0)?)?;
        Ok(all)
    }
}

fn row<'py>(py: Python<'py>, fields: &[(&str, u64)]) -> PyResult<Bound<'py, PyDict>> {
    let row = PyDict::new(py);
    fields.iter().try_for_each(|(name, value)| row.set_item(name, value))?;
    Ok(row)
}

fn lun_rows<'py>(py: Python<'py>, device: &core::device::Device) -> PyResult<Bound<'py, PyList>> {
    let rows = PyList::empty(py);
    for lun in device.luns().iter() {
        for queue in 0..device.queue_counters().len() as u16 {
            let Some(c) = lun.state.counters_if_used(queue) else { continue };
            let fields = [
                ("queue", queue.into()),
                ("target", lun.state.target.into()),
                ("lun", lun.state.number.into()),
                ("reads", c.reads.get()),
                ("writes", c.writes.get()),
                ("flushes", c.flushes.get()),
                ("unmaps", c.unmaps.get()),
                ("other", c.other.get()),
                ("errors", c.errors.get()),
                ("read_bytes", c.read_bytes.get()),
                ("write_bytes", c.write_bytes.get()),
            ];
            let row = row(py, &fields)?;
            row.set_item("read_latency", c.read_latency.counts())?;
            row.set_item("write_latency", c.write_latency.counts())?;
            rows.append(row)?;
        }
    }
    Ok(rows)
}

fn queue_rows<'py>(py: Python<'py>, device: &core::device::Device) -> PyResult<Bound<'py, PyList>> {
    let rows = PyList::empty(py);
    for (queue, c) in device.queue_counters().iter().enumerate() {
        rows.append(row(
            py,
            &[
                ("queue", queue as u64),
                ("kicks", c.kicks.get()),
                ("signals", c.signals.get()),
                ("batches", c.batches.get()),
                ("requests", c.requests.get()),
                ("in_flight", c.in_flight.get()),
                ("running", c.running.get()),
            ],
        )?)?;
    }
    Ok(rows)
}

fn worker_rows<'py>(py: Python<'py>, device: &core::device::Device) -> PyResult<Bound<'py, PyList>> {
    let rows = PyList::empty(py);
    for w in device.worker_figures() {
        rows.append(row(
            py,
            &[
                ("worker", w.worker as u64),
                ("thread", w.thread),
                ("sleeps", w.sleeps),
                ("spins", w.spins),
                ("loops", w.loops),
                ("cpu_ns", w.cpu_ns),
            ],
        )?)?;
    }
    Ok(rows)
}

/// The module.
#[pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::{
        inflight_size, latency_bucket_bounds, Command, Device, DirtyLog, InflightRegion, Region, Store,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("GATE_ATTENTION", super::core::view::GATE_ATTENTION)?;
        module.add("GATE_NO_READ", super::core::view::GATE_NO_READ)?;
        module.add("GATE_NO_WRITE", super::core::view::GATE_NO_WRITE)?;
        module.add("MAX_SLOW_DATA", super::core::slow::MAX_SLOW_DATA)
    }
}
