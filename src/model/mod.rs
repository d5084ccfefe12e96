//! Networks: what they consist of, and how their parameters begin.

pub mod init;
mod parameters;
mod resnet;

pub use parameters::{HEAD, is_head};
pub use resnet::{Architecture, BatchShape, Freezing, NetworkGraph, Phase, ResNet};
