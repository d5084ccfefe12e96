//! Batch normalisation with its activation, then max pooling, in one node: the activation between them is never written.

use super::operation::{BackwardBuffers, ForwardBuffers, Operation, Reads, Wanted};
use super::{BatchNorm, MaxPool};
use crate::device::{BatchNormMode, Device};
use crate::error::Result;
use crate::tensor::{ElementType, Shape};

/// On a device for which [`Device::has_batch_norm_max_pool`] is true. Inputs and parameters are those of [`BatchNorm`], without a
/// residual; the output is that of [`MaxPool`].
pub struct BatchNormMaxPool {
    /// The first half.
    pub batch_norm: BatchNorm,
    /// The second half.
    pub max_pool: MaxPool,
}

impl Operation for BatchNormMaxPool {
    fn name(&self) -> &'static str {
        "batch_norm_max_pool"
    }

    fn outputs(&self) -> Vec<(Shape, ElementType)> {
        self.max_pool.outputs()
    }

    fn is_differentiable(&self, input: usize) -> bool {
        self.batch_norm.is_differentiable(input)
    }

    fn saved(&self, has_backward: bool) -> Vec<(Shape, ElementType)> {
        // The forward pass writes the indices in any case.
        [self.batch_norm.saved(has_backward), self.max_pool.saved(true)].concat()
    }

    fn backward_workspace(&self, device: &dyn Device, wanted: &Wanted) -> usize {
        self.batch_norm.backward_workspace(device, wanted)
    }

    fn backward_reads(&self, wanted: &Wanted) -> Reads {
        let mut reads = self.batch_norm.backward_reads(wanted);
        reads.inputs[0] = true;
        reads
    }

    fn forward(&self, device: &dyn Device, buffers: &ForwardBuffers) -> Result<()> {
        let statistics = (self.batch_norm.mode == BatchNormMode::Training).then(|| &buffers.inputs[1]);
        let arguments = self.batch_norm.arguments(
            &buffers.inputs[0],
            statistics,
            &buffers.parameters,
            &buffers.saved[0],
            None,
            &buffers.outputs[0],
        );
        device.batch_norm_max_pool_forward(self.max_pool.window, &arguments, &buffers.saved[1])
    }

    fn backward(&self, device: &dyn Device, buffers: &BackwardBuffers) -> Result<()> {
        let arguments = self.batch_norm.backward_arguments(buffers, false);
        device.batch_norm_max_pool_backward(self.max_pool.window, &arguments, &buffers.saved[1])
    }
}
