//! Two-dimensional convolution without bias (`torch.nn.Conv2d(bias=False)`).

use super::batch_norm::BatchNorm;
use super::operation::{BackwardBuffers, ForwardBuffers, Operation, Reads, Wanted};
use crate::device::{
    BatchNormBackward, Conv2dForward, Conv2dInputGradient, Conv2dPass, Conv2dShape, Conv2dWeightGradient, Device,
    Gradient,
};
use crate::error::Result;
use crate::tensor::{ElementType, Shape, Tensor};

/// Input `[N, H, W, C]`, parameter `[K, R, S, C]`, output `[N, OH, OW, K]`.
pub struct Conv2d {
    /// All sizes.
    pub shape: Conv2dShape,
    /// The element type of input and output.
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

    fn gradients(
        &self,
        device: &dyn Device,
        buffers: &BackwardBuffers,
        batch_norm: Option<&BatchNormBackward>,
    ) -> Result<()> {
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
            let arguments = Conv2dInputGradient { output_gradient, weight, input_gradient, batch_norm, workspace };
            device.conv2d_input_gradient(&self.shape, &arguments)?;
        }
        Ok(())
    }
}

/// A convolution and the batch norm after it, by running statistics, in one pass, on a device that has
/// [`Device::conv2d_batch_norm`]. Evaluation only: there is no backward pass.
///
/// Inputs: `[N, H, W, C]`, then the residual if there is one. Parameters: those of the convolution, then of the batch norm.
pub struct Conv2dBatchNorm {
    /// The convolution.
    pub convolution: Conv2d,
    /// The batch norm, in running mode.
    pub batch_norm: BatchNorm,
}

impl Operation for Conv2dBatchNorm {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn outputs(&self) -> Vec<(Shape, ElementType)> {
        self.batch_norm.outputs()
    }

    fn saved(&self, has_backward: bool) -> Vec<(Shape, ElementType)> {
        self.batch_norm.saved(has_backward)
    }

    fn forward_workspace(&self, device: &dyn Device) -> usize {
        self.convolution.forward_workspace(device)
    }

    fn backward_reads(&self, _wanted: &Wanted) -> Reads {
        Reads { inputs: vec![false; 1 + usize::from(self.batch_norm.residual)], outputs: vec![false] }
    }

    fn multiply_adds(&self) -> usize {
        self.convolution.multiply_adds()
    }

    fn forward(&self, device: &dyn Device, buffers: &ForwardBuffers) -> Result<()> {
        let (weight, parameters) = buffers.parameters.split_first().expect("the builder gives it five parameters");
        let output = &buffers.outputs[0];
        let convolution = Conv2dForward {
            input: &buffers.inputs[0],
            weight,
            output,
            statistics: None,
            workspace: &buffers.workspace,
        };
        let batch_norm =
            self.batch_norm.arguments(output, None, parameters, &buffers.saved[0], buffers.inputs.get(1), output);
        device.conv2d_batch_norm(&self.convolution.shape, &convolution, &batch_norm)
    }

    fn backward(&self, _device: &dyn Device, _buffers: &BackwardBuffers) -> Result<()> {
        unreachable!("a graph for evaluation has no gradients")
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
        self.gradients(device, buffers, None)
    }

    fn reducing_workspace(&self, device: &dyn Device) -> Option<usize> {
        device.reducing_workspace(&self.shape)
    }

    fn backward_and_reduce(
        &self,
        device: &dyn Device,
        buffers: &BackwardBuffers,
        batch_norm: &BatchNormBackward,
    ) -> Result<()> {
        self.gradients(device, buffers, Some(batch_norm))
    }
}
