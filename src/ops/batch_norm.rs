//! Batch normalisation, with an added residual and an activation in the same node (`torch.nn.BatchNorm2d`; Ioffe and Szegedy,
//! 2015).

use super::operation::{BackwardBuffers, ForwardBuffers, Operation, Reads, Wanted};
use crate::device::{Activation, BatchNormBackward, BatchNormForward, BatchNormMode, Device, Gradient};
use crate::error::Result;
use crate::tensor::{ElementType, Shape, Tensor};

/// Added to the variance before the square root.
pub const EPSILON: f32 = 1e-5;
/// Weight of the new value in the running statistics.
pub const MOMENTUM: f32 = 0.1;

/// Inputs: `[N, H, W, C]`, then in training mode the partial statistics, then the residual if there is one.
/// Parameters: weight, bias, running mean, running variance, each `[C]`.
pub struct BatchNorm {
    /// `[N, H, W, C]`
    pub shape: Shape,
    /// The type of the activations.
    pub element_type: ElementType,
    /// The statistics to use.
    pub mode: BatchNormMode,
    /// Whether the last input is added before the activation.
    pub residual: bool,
    /// The activation, applied last.
    pub activation: Activation,
}

impl BatchNorm {
    fn residual_input(&self) -> Option<usize> {
        self.residual.then_some(if self.mode == BatchNormMode::Training { 2 } else { 1 })
    }

    pub(super) fn arguments<'a>(
        &self,
        input: &'a Tensor,
        statistics: Option<&'a Tensor>,
        parameters: &'a [Tensor],
        saved_statistics: &'a Tensor,
        residual: Option<&'a Tensor>,
        output: &'a Tensor,
    ) -> BatchNormForward<'a> {
        let [weight, bias, running_mean, running_variance] = parameters else {
            unreachable!("the builder gives a batch_norm four parameters");
        };
        BatchNormForward {
            mode: self.mode,
            input,
            statistics,
            weight,
            bias,
            running_mean,
            running_variance,
            saved_statistics,
            residual,
            activation: self.activation,
            output,
            epsilon: EPSILON,
            momentum: MOMENTUM,
        }
    }

    /// The gradients that the backward pass requests. With `is_reduced`, the output gradient is that of the residual as well, and a
    /// residual gradient in the same memory is there already.
    pub(super) fn backward_arguments<'a>(
        &self,
        buffers: &'a BackwardBuffers,
        is_reduced: bool,
    ) -> BatchNormBackward<'a> {
        let output_gradient = buffers.output_gradient();
        let residual = self.residual_input().and_then(|index| buffers.input_gradients[index].as_ref());
        let is_written = |gradient: &&Gradient| !(is_reduced && gradient.tensor.address() == output_gradient.address());
        BatchNormBackward {
            mode: self.mode,
            input: buffers.inputs[0].as_ref(),
            output: buffers.outputs[0].as_ref(),
            activation: self.activation,
            output_gradient,
            is_reduced,
            weight: &buffers.parameters[0],
            bias: &buffers.parameters[1],
            saved_statistics: &buffers.saved[0],
            input_gradient: buffers.input_gradients[0].as_ref(),
            residual_gradient: residual.filter(is_written),
            weight_gradient: buffers.parameter_gradients[0].as_ref(),
            bias_gradient: buffers.parameter_gradients[1].as_ref(),
            workspace: &buffers.workspace,
        }
    }

    fn inputs(&self) -> usize {
        1 + usize::from(self.mode == BatchNormMode::Training) + usize::from(self.residual)
    }
}

impl Operation for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn outputs(&self) -> Vec<(Shape, ElementType)> {
        vec![(self.shape, self.element_type)]
    }

    fn is_differentiable(&self, input: usize) -> bool {
        input == 0 || Some(input) == self.residual_input()
    }

    fn saved(&self, _has_backward: bool) -> Vec<(Shape, ElementType)> {
        vec![([4, self.shape.channels()].into(), ElementType::F32)]
    }

    fn backward_workspace(&self, device: &dyn Device, _wanted: &Wanted) -> usize {
        device.batch_norm_workspace(self.shape)
    }

    fn backward_reads(&self, wanted: &Wanted) -> Reads {
        let has_activation = self.activation != Activation::None;
        let mut inputs = vec![false; self.inputs()];
        // The input gives the normalised value (gradients of weight and, in training mode, of the input) and, if
        // there is no residual, the argument of the activation.
        inputs[0] = wanted.parameters[0]
            || (wanted.inputs[0] && self.mode == BatchNormMode::Training)
            || (has_activation && !self.residual);
        Reads { inputs, outputs: vec![has_activation && self.residual] }
    }

    fn forward(&self, device: &dyn Device, buffers: &ForwardBuffers) -> Result<()> {
        let statistics = (self.mode == BatchNormMode::Training).then(|| &buffers.inputs[1]);
        let residual = self.residual_input().map(|index| &buffers.inputs[index]);
        device.batch_norm_forward(&self.arguments(
            &buffers.inputs[0],
            statistics,
            &buffers.parameters,
            &buffers.saved[0],
            residual,
            &buffers.outputs[0],
        ))
    }

    fn backward(&self, device: &dyn Device, buffers: &BackwardBuffers) -> Result<()> {
        device.batch_norm_backward(&self.backward_arguments(buffers, buffers.is_reduced))
    }

    fn reduction<'a>(&self, buffers: &'a BackwardBuffers) -> Option<BatchNormBackward<'a>> {
        buffers.is_reduced.then(|| self.backward_arguments(buffers, false))
    }

    fn has_reduction(&self, wanted: &Wanted) -> bool {
        self.mode == BatchNormMode::Training && wanted.inputs[0]
    }
}
