//! What threads share, in one place: the crate `ringway-loom` puts loom's in its stead, and so checks the very files
//! that run here under every order of events.

pub use std::sync::atomic::{fence, AtomicBool, AtomicU32, AtomicUsize};
pub use std::sync::{Arc, Condvar, Mutex};

pub use crossbeam_queue::ArrayQueue;

pub use crate::membarrier::{heavy_fence, light_fence};
pub use crate::notify::Event;
