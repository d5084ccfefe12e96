//! Mean over the whole image (`torch.nn.AdaptiveAvgPool2d(1)` and flatten).

use super::operation::{BackwardBuffers, ForwardBuffers, Operation, Reads, Wanted};
use crate::device::Device;
use crate::error::Result;
use crate::tensor::{ElementType, Shape};

/// Input `[N, H, W, C]`, output `[N, C]`, which is float32 in every precision: the head is small.
pub struct AvgPool {
    /// `[N, H, W, C]`
    pub input: Shape,
}

impl Operation for AvgPool {
    fn name(&self) -> &'static str {
        "avg_pool"
    }

    fn outputs(&self) -> Vec<(Shape, ElementType)> {
        vec![([self.input.dims()[0], self.input.channels()].into(), ElementType::F32)]
    }

    fn backward_reads(&self, _wanted: &Wanted) -> Reads {
        Reads { inputs: vec![false], outputs: vec![false] }
    }

    fn forward(&self, device: &dyn Device, buffers: &ForwardBuffers) -> Result<()> {
        device.avg_pool_forward(&buffers.inputs[0], &buffers.outputs[0])
    }

    fn backward(&self, device: &dyn Device, buffers: &BackwardBuffers) -> Result<()> {
        match &buffers.input_gradients[0] {
            Some(gradient) => device.avg_pool_backward(buffers.output_gradient(), gradient),
            None => Ok(()),
        }
    }
}
