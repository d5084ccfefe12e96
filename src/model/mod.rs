//! Networks: what they consist of, and how their parameters begin.

pub mod init;
mod network;
mod resnet;

pub use network::{BatchResult, HEAD, LogitGradients, Network, Trainable, is_head};
pub use resnet::{Architecture, BatchShape, Freezing, NetworkGraph, Phase, ResNet};
