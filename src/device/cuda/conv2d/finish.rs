//! The batch norm that a convolution applies in evaluation, before it writes its output.

use crate::device::cuda::arguments::kernel_arguments;
use crate::device::cuda::driver::Work;
use crate::device::interface::{Activation, BatchNormForward, BatchNormMode};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

kernel_arguments! {
    pub(super) struct Conv2dFinish {
        weight: u64,
        bias: u64,
        running_mean: u64,
        running_variance: u64,
        residual: u64,
        epsilon: f32,
        activation: Activation,
    }
}

impl Conv2dFinish {
    /// # Errors
    /// In training mode, whose statistics are those of the convolution's whole output.
    pub(super) fn new(batch_norm: &BatchNormForward) -> Result<Self> {
        if batch_norm.mode != BatchNormMode::Running {
            return Err(Error::new("conv2d_batch_norm: expected running statistics"));
        }
        Ok(Self {
            weight: batch_norm.weight.address(),
            bias: batch_norm.bias.address(),
            running_mean: batch_norm.running_mean.address(),
            running_variance: batch_norm.running_variance.address(),
            residual: batch_norm.residual.map_or(0, Tensor::address),
            epsilon: batch_norm.epsilon,
            activation: batch_norm.activation,
        })
    }
}

/// What a convolution does for `batch_norm` beside its own `work`.
pub(super) fn finished_work(work: Work, batch_norm: &BatchNormForward) -> Work {
    let vectors = 4 * batch_norm.weight.bytes();
    Work {
        operations: work.operations + 3 * batch_norm.output.len() as u64,
        bytes_read: work.bytes_read + (batch_norm.residual.map_or(0, Tensor::bytes) + vectors) as u64,
        ..work
    }
}
