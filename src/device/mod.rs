//! The interface of devices: memory, and one kernel for each forward and backward computation.
//!
//! The methods are kernel launches, not tensor algebra: every argument is a buffer that the graph's plan
//! has already placed, nothing is returned, nothing is allocated. Activations are NHWC, see [`Conv2dShape`] for
//! weights. An output may never overlap another argument.

pub mod cpu;
pub mod cuda;
pub mod threads;

mod activation;
mod augment;
mod conv2d;
mod edits;
mod host_copy;
mod interface;
mod mixture;
mod update;

pub use host_copy::{read_f32, write_f32, write_i32};
pub use interface::*;
