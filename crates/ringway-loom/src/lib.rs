//! What Ringway's threads share, over loom: the core's own files, with another `sync` beneath them.

#[path = "../../ringway-core/src/epoch.rs"]
pub mod epoch;
pub mod membarrier;
#[path = "../../ringway-core/src/range.rs"]
pub mod range;
#[path = "../../ringway-core/src/slow.rs"]
pub mod slow;
pub mod sync;
pub mod worker;

pub use ringway_core::{error, scsi, trace, view};
