//! Two-dimensional convolution without bias (`torch.nn.Conv2d(bias=False)`).

use super::{BackwardBuffers, ForwardBuffers, Operation, Reads, Wanted};
use crate::device::{
    Conv2dForward, Conv2dInputGradient, Conv2dPass, Conv2dShape, Conv2dWeightGradient, Device, Gradient,
};
use crate::error::Result;
use crate::tensor::{ElementType, Shape, Tensor};

/// Input `[N, H, W, C]`, parameter `[K, R, S, C]`, output `[N, OH, OW, K]`.
pub struct Conv2d {
    /// All sizes.
    pub shape: Conv2dShape,
    /// Of input and output.
    pub element_type: ElementType,
    /// Rows of the second output, the partial statistics of the first; 0 for none.
    pub statistics_rows: usize,
}

impl Conv2d {
    fn weight_gradient<'a>(&self, buffers: &'a BackwardBuffers) -> Option<&'a Tensor> {
        buffers.parameter_gradients[0].as_ref()
    }

    fn input_gradient<'a>(&self, buffers: &'a BackwardBuffers) -> Option<&'a Gradient> {
        buffers.input_gradients[0].as_ref()
    }
}

impl Operation for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn outputs(&self) -> Vec<(Shape, ElementType)> {
        let Conv2dShape { batch, output_channels, .. } = self.shape;
        let output = [batch, self.shape.output_height(), self.shape.output_width(), output_channels].into();
        let mut outputs = vec![(output, self.element_type)];
        if self.statistics_rows > 0 {
            outputs.push(([self.statistics_rows, 2, output_channels].into(), ElementType::F32));
        }
        outputs
    }

    fn forward_workspace(&self, device: &dyn Device) -> usize {
        device.conv2d_workspace(&self.shape, Conv2dPass::Forward)
    }

    fn backward_workspace(&self, device: &dyn Device, wanted: &Wanted) -> usize {
        let bytes = |wanted: bool, pass| if wanted { device.conv2d_workspace(&self.shape, pass) } else { 0 };
        bytes(wanted.inputs[0], Conv2dPass::InputGradient).max(bytes(wanted.parameters[0], Conv2dPass::WeightGradient))
    }

    fn backward_reads(&self, wanted: &Wanted) -> Reads {
        Reads { inputs: vec![wanted.parameters[0]], outputs: vec![false; self.outputs().len()] }
    }

    fn multiply_adds(&self) -> usize {
        self.shape.multiply_adds()
    }

    fn forward(&self, device: &dyn Device, buffers: &ForwardBuffers) -> Result<()> {
        device.conv2d_forward(
            &self.shape,
            &Conv2dForward {
                input: &buffers.inputs[0],
                weight: &buffers.parameters[0],
                output: &buffers.outputs[0],
                statistics: buffers.outputs.get(1),
                workspace: &buffers.workspace,
            },
        )
    }

    fn backward(&self, device: &dyn Device, buffers: &BackwardBuffers) -> Result<()> {
        let output_gradient = buffers.output_gradient();
        if let Some(weight_gradient) = self.weight_gradient(buffers) {
            let input = buffers.input(0);
            let workspace = &buffers.workspace;
            let arguments = Conv2dWeightGradient { input, output_gradient, weight_gradient, workspace };
            device.conv2d_weight_gradient(&self.shape, &arguments)?;
        }
        if let Some(input_gradient) = self.input_gradient(buffers) {
            let weight = &buffers.parameters[0];
            let workspace = &buffers.workspace;
            let arguments = Conv2dInputGradient { output_gradient, weight, input_gradient, workspace };
            device.conv2d_input_gradient(&self.shape, &arguments)?;
        }
        Ok(())
    }
}
