//! The data path of Ringway: from a guest's ring to a store and back, without Python.
//!
//! From the ground up: [`mapping`] and [`memory`] (guest memory), [`vring`] (the split queue), [`store`]
//! (backstores), [`action`] (what a request wants of a store), [`scsi`] and [`blk`] (from a header to an action),
//! [`engine`] (io_uring or epoll), [`worker`] (the threads), [`device`] (the face to the control side).

pub mod action;
pub mod blk;
pub mod bounce;
pub mod calls;
pub mod clock;
pub mod device;
pub mod dirty;
pub mod driver;
pub mod engine;
pub mod epoch;
pub mod error;
mod fault;
pub mod inflight;
pub mod limit;
pub mod mapping;
pub mod membarrier;
pub mod memory;
pub mod notify;
pub mod pace;
pub mod poll;
pub mod range;
pub mod scsi;
pub mod slow;
pub mod stats;
pub mod store;
pub mod sync;
pub mod trace;
pub mod view;
pub mod vring;
pub mod worker;
