//! The data path of one virtio device.

use std::os::fd::RawFd;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use ringway_core as core;
use ringway_core::device::{DeviceOptions, MAX_QUEUES};
use ringway_core::limit::Rates;
use ringway_core::trace::TraceOptions;
use ringway_core::worker::{Completion, DeviceKind, EngineChoice, Matcher, QueueStart, RingLayout};

use crate::command::Command;
use crate::memory::{DirtyLog, InflightRegion, Region};
use crate::statistics;
use crate::store::Store;
use crate::trace::Trace;
use crate::{one_of, own, raise, seconds};

#[pyclass(frozen, module = "ringway._core")]
pub struct Device(pub core::device::Device);

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
    #[pyo3(signature = (kind, *, queues, workers=1, cpus=None, poll="adaptive", engine="auto"))]
    fn new(
        py: Python<'_>,
        kind: &str,
        queues: usize,
        workers: usize,
        cpus: Option<Vec<usize>>,
        poll: &str,
        engine: &str,
    ) -> PyResult<Self> {
        let options = DeviceOptions {
            kind: one_of("device", kind, &KINDS)?,
            queues: queues.min(MAX_QUEUES + 1),
            workers,
            cpus: cpus.unwrap_or_default(),
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

    #[getter]
    fn engine_reason(&self) -> Option<&str> {
        self.0.engine_reason()
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

    fn lun_instance(&self, target: u8, lun: u16) -> PyResult<u64> {
        self.0.lun_instance(target, lun).map_err(raise)
    }

    #[pyo3(signature = (target, lun, *, iops=0, bytes_per_s=0, burst_s=0.0))]
    fn set_limit(
        &self,
        py: Python<'_>,
        target: u8,
        lun: u16,
        iops: u64,
        bytes_per_s: u64,
        burst_s: f64,
    ) -> PyResult<()> {
        let burst_ns = seconds(burst_s)?.as_nanos().min(u128::from(u64::MAX)) as u64;
        let rates = Rates { iops, bytes_per_s, burst_ns };
        py.detach(|| self.0.set_limit(target, lun, rates)).map_err(raise)
    }

    #[pyo3(signature = (target, lun, word, *, instance=None))]
    fn set_gate(
        &self,
        py: Python<'_>,
        target: u8,
        lun: u16,
        word: u64,
        instance: Option<u64>,
    ) -> PyResult<()> {
        py.detach(|| self.0.set_gate((target, lun), instance, word)).map_err(raise)
    }

    #[pyo3(signature = (target, lun, offset, length, *, reads=true, timeout_s=10.0, instance=None))]
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
        instance: Option<u64>,
    ) -> PyResult<Option<u64>> {
        let (end, timeout) = (offset.saturating_add(length), seconds(timeout_s)?);
        py.detach(|| self.0.lock_range((target, lun), instance, offset, end, reads, timeout)).map_err(raise)
    }

    fn unlock_range(&self, py: Python<'_>, target: u8, lun: u16, handle: u64) -> PyResult<()> {
        py.detach(|| self.0.unlock_range(target, lun, handle)).map_err(raise)
    }

    fn set_features(&self, py: Python<'_>, features: u64) -> PyResult<()> {
        py.detach(|| self.0.set_features(features)).map_err(raise)
    }

    fn set_writeback(&self, py: Python<'_>, enabled: bool) -> PyResult<()> {
        py.detach(|| self.0.set_writeback(enabled)).map_err(raise)
    }

    fn doubt_writeback(&self, py: Python<'_>) {
        py.detach(|| self.0.doubt_writeback());
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

    fn is_used(&self, py: Python<'_>, size: u16, used: u64) -> bool {
        py.detach(|| self.0.is_used(size, used))
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

    #[pyo3(signature = (timeout_s=None))]
    fn wait_command(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<bool> {
        let timeout = timeout_s.map(seconds).transpose()?;
        Ok(py.detach(|| self.0.wait_command(timeout)))
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

    #[pyo3(signature = (*, target=None, lun=None, id=None, instance=None, cancel=false, timeout_s=5.0))]
    #[allow(clippy::too_many_arguments)]
    fn drain(
        &self,
        py: Python<'_>,
        target: Option<u8>,
        lun: Option<u16>,
        id: Option<u64>,
        instance: Option<u64>,
        cancel: bool,
        timeout_s: f64,
    ) -> PyResult<bool> {
        let timeout = seconds(timeout_s)?;
        Ok(py.detach(|| self.0.wait_for(Matcher::Hot { target, lun, id, instance }, cancel, timeout)))
    }

    #[pyo3(signature = (*, interval=1, capacity=16384, queue=None, lun=None))]
    fn start_trace(
        &self,
        py: Python<'_>,
        interval: u32,
        capacity: usize,
        queue: Option<u16>,
        lun: Option<(u8, u16)>,
    ) -> PyResult<Trace> {
        let options = TraceOptions { interval, capacity, queue, lun };
        py.detach(|| self.0.trace(options)).map(Trace::from).map_err(raise)
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        statistics::all(py, &self.0)
    }
}
