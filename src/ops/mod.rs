//! The operations of the graph, one file each: shapes, what the backward pass needs, and the calls on the device.

mod avg_pool;
pub mod batch_norm;
mod batch_norm_max_pool;
mod conv2d;
mod cross_entropy;
mod linear;
mod max_pool;
mod operation;

pub use crate::device::LossReduction;
pub use avg_pool::AvgPool;
pub use batch_norm::BatchNorm;
pub use batch_norm_max_pool::BatchNormMaxPool;
pub use conv2d::{Conv2d, Conv2dBatchNorm};
pub use cross_entropy::CrossEntropyLoss;
pub use linear::Linear;
pub use max_pool::MaxPool;
pub use operation::{BackwardBuffers, ForwardBuffers, Operation, Reads, Wanted};
