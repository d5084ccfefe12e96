//! Maximum over windows (`torch.nn.MaxPool2d`).

use super::operation::{BackwardBuffers, ForwardBuffers, Operation, Reads, Wanted};
use crate::device::{Device, MaxPoolWindow};
use crate::error::Result;
use crate::tensor::{ElementType, Shape};

/// Input `[N, H, W, C]`, output `[N, OH, OW, C]`. The backward pass keeps one byte per output element and nothing else.
pub struct MaxPool {
    /// `[N, H, W, C]`
    pub input: Shape,
    /// The element type of input and output.
    pub element_type: ElementType,
    /// Size, stride and padding.
    pub window: MaxPoolWindow,
}

impl MaxPool {
    fn output(&self) -> Shape {
        let [batch, height, width, channels] = *self.input.dims() else {
            unreachable!("the builder checks that max_pool gets an activation");
        };
        [batch, self.window.output_extent(height), self.window.output_extent(width), channels].into()
    }
}

impl Operation for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool"
    }

    fn outputs(&self) -> Vec<(Shape, ElementType)> {
        vec![(self.output(), self.element_type)]
    }

    fn saved(&self, has_backward: bool) -> Vec<(Shape, ElementType)> {
        if has_backward { vec![(self.output(), ElementType::U8)] } else { Vec::new() }
    }

    fn backward_reads(&self, _wanted: &Wanted) -> Reads {
        Reads { inputs: vec![false], outputs: vec![false] }
    }

    fn forward(&self, device: &dyn Device, buffers: &ForwardBuffers) -> Result<()> {
        device.max_pool_forward(self.window, &buffers.inputs[0], &buffers.outputs[0], buffers.saved.first())
    }

    fn backward(&self, device: &dyn Device, buffers: &BackwardBuffers) -> Result<()> {
        match &buffers.input_gradients[0] {
            Some(gradient) => {
                device.max_pool_backward(self.window, &buffers.saved[0], buffers.output_gradient(), gradient)
            }
            None => Ok(()),
        }
    }
}
