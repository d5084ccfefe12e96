//! What a device can do: the kernels that every back end provides.

pub mod conv2d;
pub mod cpu;
