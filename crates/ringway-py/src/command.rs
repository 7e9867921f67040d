//! Commands on their way to Python.

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ringway_core::scsi::Failure;
use ringway_core::slow::{SlowCommand, SlowKind};

#[pyclass(frozen, module = "ringway._core")]
pub struct Command(pub Box<SlowCommand>);

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
    fn dead(&self) -> bool {
        self.0.life.is_over()
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
    fn instance(&self) -> u64 {
        self.0.instance
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
        PyBytes::new(py, self.0.data_out.bytes())
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
