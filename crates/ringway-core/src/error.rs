//! What can go wrong on the control side of the data path.

use std::io;

/// An error of the core. Hot-path failures are not errors: they are completions with a bad status.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused something.
    #[error("{context}: {source}")]
    Os {
        /// What was tried.
        context: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An argument makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// No such LUN.
    #[error("no LUN {1} at target {0}")]
    NoLun(u8, u16),
}

/// Shorthand of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The last OS error, with what was tried.
    pub fn last_os(context: &'static str) -> Self {
        Error::Os { context, source: io::Error::last_os_error() }
    }

    /// An OS error by number.
    pub fn errno(context: &'static str, errno: i32) -> Self {
        Error::Os { context, source: io::Error::from_raw_os_error(errno) }
    }
}

/// `Err` with an [`Error::Invalid`] when the condition does not hold.
pub fn ensure(condition: bool, message: impl FnOnce() -> String) -> Result<()> {
    if condition {
        Ok(())
    } else {
        Err(Error::Invalid(message()))
    }
}
