//! Traces: samples as rows.

use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use ringway_core as core;
use ringway_core::trace::{Carrier, Notice, Operation, Sample, Wake};

#[pyclass(frozen, module = "ringway._core")]
pub struct Trace {
    trace: Mutex<Option<core::device::Trace>>,
    started_ns: u64,
}

impl From<core::device::Trace> for Trace {
    fn from(trace: core::device::Trace) -> Self {
        Trace { started_ns: trace.started_ns(), trace: Mutex::new(Some(trace)) }
    }
}

#[pymethods]
impl Trace {
    fn take<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Bound<'py, PyList>> {
        let samples = py.detach(|| match &*self.trace.lock().unwrap() {
            Some(trace) => trace.take(most),
            None => Vec::new(),
        });
        let rows = samples.iter().map(|sample| self.row(py, sample));
        PyList::new(py, rows.collect::<PyResult<Vec<_>>>()?)
    }

    #[getter]
    fn dropped(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.trace.lock().unwrap().as_ref().map_or(0, core::device::Trace::dropped))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.trace.lock().unwrap().take()));
    }
}

impl Trace {
    fn row<'py>(&self, py: Python<'py>, sample: &Sample) -> PyResult<Bound<'py, PyDict>> {
        let row = PyDict::new(py);
        row.set_item("queue", sample.queue)?;
        row.set_item("head", sample.head)?;
        row.set_item("target", sample.address.map(|address| address.0))?;
        row.set_item("lun", sample.address.map(|address| address.1))?;
        row.set_item("operation", operation(sample.operation))?;
        row.set_item("opcode", sample.opcode)?;
        row.set_item("bytes", sample.bytes)?;
        row.set_item("wake", wake(sample.wake))?;
        row.set_item("carrier", carrier(sample.carrier))?;
        row.set_item("parked", sample.parked)?;
        row.set_item("notice", notice(sample.notice))?;
        for (name, time) in [
            ("absent_ns", sample.absent_ns),
            ("woken_ns", sample.woken_ns),
            ("seen_ns", sample.seen_ns),
            ("dequeued_ns", sample.dequeued_ns),
            ("dispatched_ns", sample.dispatched_ns),
            ("completed_ns", sample.completed_ns),
            ("enqueued_ns", sample.enqueued_ns),
            ("notified_ns", sample.notified_ns),
        ] {
            row.set_item(name, (time > 0).then(|| time.saturating_sub(self.started_ns)))?;
        }
        Ok(row)
    }
}

fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Read => "read",
        Operation::Write => "write",
        Operation::Flush => "flush",
        Operation::Unmap => "unmap",
        Operation::Other => "other",
        Operation::Control => "control",
    }
}

fn wake(wake: Wake) -> &'static str {
    match wake {
        Wake::Polling => "polling",
        Wake::Kick => "kick",
        Wake::Other => "other",
    }
}

fn carrier(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::Worker => "worker",
        Carrier::Kernel => "kernel",
        Carrier::Python => "python",
    }
}

fn notice(notice: Notice) -> &'static str {
    match notice {
        Notice::Suppressed => "suppressed",
        Notice::Signalled => "signalled",
        Notice::NoCall => "no-call",
    }
}
