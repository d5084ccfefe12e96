//! What an operation declares and computes, and the buffers that it is given.

use crate::device::{BatchNormBackward, Device, Gradient};
use crate::error::Result;
use crate::tensor::{ElementType, Shape, Tensor};

/// The gradients that a node must produce. The plan derives them from the trainable parameters.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// One for each input.
    pub inputs: Vec<bool>,
    /// One for each parameter.
    pub parameters: Vec<bool>,
}

/// The values of the forward pass that the backward pass reads, and which must therefore be kept.
#[derive(Debug, Clone)]
pub struct Reads {
    /// One for each input.
    pub inputs: Vec<bool>,
    /// One for each output.
    pub outputs: Vec<bool>,
}

/// The buffers of a node's forward pass.
pub struct ForwardBuffers {
    /// The inputs, in the order of the node's definition.
    pub inputs: Vec<Tensor>,
    /// Parameters and running statistics.
    pub parameters: Vec<Tensor>,
    /// As [`Operation::outputs`] describes them.
    pub outputs: Vec<Tensor>,
    /// As [`Operation::saved`] describes them.
    pub saved: Vec<Tensor>,
    /// Scratch memory of the size that [`Operation::forward_workspace`] returns.
    pub workspace: Tensor,
}

/// The buffers of a node's backward pass.
pub struct BackwardBuffers {
    /// The inputs that [`Operation::backward_reads`] requested.
    pub inputs: Vec<Option<Tensor>>,
    /// The outputs that [`Operation::backward_reads`] requested.
    pub outputs: Vec<Option<Tensor>>,
    /// Parameters and running statistics.
    pub parameters: Vec<Tensor>,
    /// The buffers that the forward pass has filled.
    pub saved: Vec<Tensor>,
    /// Gradient of the first output; absent for a loss, which is where the backward pass begins.
    pub output_gradient: Option<Tensor>,
    /// The destination of each requested input gradient.
    pub input_gradients: Vec<Option<Gradient>>,
    /// The destination of each requested parameter gradient, which is always overwritten.
    pub parameter_gradients: Vec<Option<Tensor>>,
    /// Scratch memory of the size that [`Operation::backward_workspace`] returns.
    pub workspace: Tensor,
    /// Whether the output gradient is reduced: [`BatchNormBackward::is_reduced`].
    pub is_reduced: bool,
}

impl BackwardBuffers {
    /// An input that the backward pass requested.
    pub(super) fn input(&self, index: usize) -> &Tensor {
        self.inputs[index].as_ref().expect("the plan keeps what backward_reads requested")
    }

    /// The gradient of the first output.
    pub(super) fn output_gradient(&self) -> &Tensor {
        self.output_gradient.as_ref().expect("the plan gives every node but a loss its output's gradient")
    }
}

/// A node's computation, with all its sizes.
pub trait Operation {
    /// One of the names that every folder uses: `conv2d`, `batch_norm`, ...
    fn name(&self) -> &'static str;

    /// Its outputs; only the first one has a gradient.
    fn outputs(&self) -> Vec<(Shape, ElementType)>;

    /// Whether gradients flow to this input at all. Class indices and statistics have none.
    fn is_differentiable(&self, _input: usize) -> bool {
        true
    }

    /// Whether the backward pass begins here.
    fn is_loss(&self) -> bool {
        false
    }

    /// Small buffers that the forward pass writes and, if there is one, the backward pass reads.
    fn saved(&self, _has_backward: bool) -> Vec<(Shape, ElementType)> {
        Vec::new()
    }

    /// Bytes of scratch memory for the forward pass.
    fn forward_workspace(&self, _device: &dyn Device) -> usize {
        0
    }

    /// Bytes of scratch memory for the backward pass.
    fn backward_workspace(&self, _device: &dyn Device, _wanted: &Wanted) -> usize {
        0
    }

    /// The values to keep for the backward pass.
    fn backward_reads(&self, wanted: &Wanted) -> Reads;

    /// Multiply-adds of the forward pass; 0 for operations that are bound by memory.
    fn multiply_adds(&self) -> usize {
        0
    }

    /// Computes the outputs.
    fn forward(&self, device: &dyn Device, buffers: &ForwardBuffers) -> Result<()>;

    /// Computes the requested gradients.
    fn backward(&self, device: &dyn Device, buffers: &BackwardBuffers) -> Result<()>;

    /// Whether the node that completes the output gradient may reduce it: [`BatchNormBackward::is_reduced`].
    fn has_reduction(&self, _wanted: &Wanted) -> bool {
        false
    }

    /// The arguments of that reduction.
    fn reduction<'a>(&self, _buffers: &'a BackwardBuffers) -> Option<BatchNormBackward<'a>> {
        None
    }

    /// Bytes of workspace of the batch norm that wrote the input, if this operation can reduce the input's gradient.
    fn reducing_workspace(&self, _device: &dyn Device) -> Option<usize> {
        None
    }

    /// [`Operation::backward`], with the reduction of the input's gradient for the batch norm that wrote the input. Only if
    /// [`Operation::reducing_workspace`] returns a size.
    fn backward_and_reduce(
        &self,
        device: &dyn Device,
        buffers: &BackwardBuffers,
        _batch_norm: &BatchNormBackward,
    ) -> Result<()> {
        self.backward(device, buffers)
    }
}
