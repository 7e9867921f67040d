//! Counters as rows.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use ringway_core as core;

/// All rows of a device.
pub fn all<'py>(py: Python<'py>, device: &core::device::Device) -> PyResult<Bound<'py, PyDict>> {
    let all = PyDict::new(py);
    all.set_item("luns", lun_rows(py, device)?)?;
    all.set_item("queues", queue_rows(py, device)?)?;
    all.set_item("workers", worker_rows(py, device)?)?;
    Ok(all)
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
                ("target", lun.state.id.target.into()),
                ("lun", lun.state.id.number.into()),
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
                ("slow_commands", c.slow.get()),
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
                ("alarms", w.alarms),
                ("foreseen", w.foreseen),
                ("loops", w.loops),
                ("cpu_ns", w.cpu_ns),
            ],
        )?)?;
    }
    Ok(rows)
}
