//! The CPU back end.

pub mod conv2d;
mod direct;
mod gemm;
mod jobs;
pub mod simd;
mod winograd;
