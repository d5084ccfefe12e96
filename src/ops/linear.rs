//! Fully connected layer (`torch.nn.Linear`).

use super::operation::{BackwardBuffers, ForwardBuffers, Operation, Reads, Wanted};
use crate::device::{Conv2dPass, Device};
use crate::error::Result;
use crate::tensor::{ElementType, Shape};

/// Input `[N, inputs]`, parameters `[outputs, inputs]` and `[outputs]`, output `[N, outputs]`.
pub struct Linear {
    /// Rows of the input.
    pub batch: usize,
    /// Number of input features.
    pub inputs: usize,
    /// Number of output features.
    pub outputs: usize,
}

impl Linear {
    fn workspace(&self, device: &dyn Device, pass: Conv2dPass) -> usize {
        device.linear_workspace(self.batch, self.inputs, self.outputs, pass)
    }
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn outputs(&self) -> Vec<(Shape, ElementType)> {
        vec![([self.batch, self.outputs].into(), ElementType::F32)]
    }

    fn forward_workspace(&self, device: &dyn Device) -> usize {
        self.workspace(device, Conv2dPass::Forward)
    }

    fn backward_workspace(&self, device: &dyn Device, _wanted: &Wanted) -> usize {
        self.workspace(device, Conv2dPass::InputGradient).max(self.workspace(device, Conv2dPass::WeightGradient))
    }

    fn backward_reads(&self, wanted: &Wanted) -> Reads {
        Reads { inputs: vec![wanted.parameters[0]], outputs: vec![false] }
    }

    fn multiply_adds(&self) -> usize {
        self.batch * self.inputs * self.outputs
    }

    fn forward(&self, device: &dyn Device, buffers: &ForwardBuffers) -> Result<()> {
        let (weight, bias) = (&buffers.parameters[0], &buffers.parameters[1]);
        device.linear_forward(&buffers.inputs[0], weight, bias, &buffers.outputs[0], &buffers.workspace)
    }

    fn backward(&self, device: &dyn Device, buffers: &BackwardBuffers) -> Result<()> {
        let output_gradient = buffers.output_gradient();
        let [weight_gradient, bias_gradient] = [0, 1].map(|index| buffers.parameter_gradients[index].as_ref());
        if weight_gradient.is_some() || bias_gradient.is_some() {
            device.linear_weight_gradient(
                buffers.inputs[0].as_ref(),
                output_gradient,
                weight_gradient,
                bias_gradient,
                &buffers.workspace,
            )?;
        }
        match &buffers.input_gradients[0] {
            Some(gradient) => {
                let weight = &buffers.parameters[0];
                device.linear_input_gradient(output_gradient, weight, gradient, &buffers.workspace)
            }
            None => Ok(()),
        }
    }
}
