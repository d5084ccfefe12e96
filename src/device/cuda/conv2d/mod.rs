//! Launches of the convolutions. `kernels/conv2d.cu` supports every shape. Shapes that suit tensor cores use, in tf32 and
//! bf16, `kernels/conv2d_tensor.cu`, `kernels/conv2d_weight_gradient.cu` and
//! `kernels/conv2d_stem.cu`.

mod finish;
mod geometry;
mod plain;
mod stem;
mod tensor;
mod tensor_weight;

use super::engine::Cuda;
use super::statistics::{PIXELS_PER_BLOCK, rows_of};
use crate::device::interface::{
    BatchNormForward, Conv2dForward, Conv2dInputGradient, Conv2dPass, Conv2dShape, Conv2dWeightGradient,
};
use crate::error::Result;
use crate::tensor::Shape;

/// Rows of the partial statistics of an activation of `shape`.
pub(super) fn statistics_rows(shape: Shape) -> usize {
    rows_of(shape.rows().div_ceil(PIXELS_PER_BLOCK))
}

/// The kernels of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernels {
    /// Float32 arithmetic on either storage type.
    Plain,
    /// Forward and input gradient on tensor cores.
    Tensor,
    /// Weight gradient on tensor cores.
    TensorWeight,
    /// Few input channels, on tensor cores.
    Stem,
}

fn choose(cuda: &Cuda, shape: &Conv2dShape, pass: Conv2dPass) -> Kernels {
    if stem::takes(cuda, shape, pass) {
        return Kernels::Stem;
    }
    match pass {
        Conv2dPass::Forward | Conv2dPass::InputGradient if tensor::takes(cuda, shape, pass) => Kernels::Tensor,
        Conv2dPass::WeightGradient if tensor_weight::takes(cuda, shape) => Kernels::TensorWeight,
        _ => Kernels::Plain,
    }
}

/// Bytes of workspace of a pass.
pub(super) fn workspace(cuda: &Cuda, shape: &Conv2dShape, pass: Conv2dPass) -> usize {
    match choose(cuda, shape, pass) {
        Kernels::Plain => plain::workspace_bytes(shape, pass),
        Kernels::Tensor => 0,
        Kernels::TensorWeight => tensor_weight::workspace_bytes(cuda, shape),
        Kernels::Stem => stem::workspace_bytes(cuda, shape, pass),
    }
}

/// With `batch_norm`, [`Device::conv2d_batch_norm`](crate::device::interface::Device::conv2d_batch_norm).
pub(super) fn forward(
    cuda: &Cuda,
    shape: &Conv2dShape,
    arguments: &Conv2dForward,
    batch_norm: Option<&BatchNormForward>,
) -> Result<()> {
    match choose(cuda, shape, Conv2dPass::Forward) {
        Kernels::Stem => stem::forward(cuda, shape, arguments, batch_norm),
        Kernels::Tensor => tensor::forward(cuda, shape, arguments, batch_norm),
        Kernels::TensorWeight | Kernels::Plain => plain::forward(cuda, shape, arguments, batch_norm),
    }
}

/// [`Device::reducing_workspace`](crate::device::interface::Device::reducing_workspace).
pub(super) fn reducing_workspace(cuda: &Cuda, shape: &Conv2dShape) -> Option<usize> {
    match choose(cuda, shape, Conv2dPass::InputGradient) {
        Kernels::Tensor => tensor::reducing_workspace(shape),
        Kernels::Stem | Kernels::TensorWeight | Kernels::Plain => None,
    }
}

pub(super) fn input_gradient(cuda: &Cuda, shape: &Conv2dShape, arguments: &Conv2dInputGradient) -> Result<()> {
    match choose(cuda, shape, Conv2dPass::InputGradient) {
        Kernels::Tensor => tensor::input_gradient(cuda, shape, arguments),
        Kernels::Stem | Kernels::TensorWeight | Kernels::Plain => plain::input_gradient(cuda, shape, arguments),
    }
}

pub(super) fn weight_gradient(cuda: &Cuda, shape: &Conv2dShape, arguments: &Conv2dWeightGradient) -> Result<()> {
    match choose(cuda, shape, Conv2dPass::WeightGradient) {
        Kernels::Stem => stem::weight_gradient(cuda, shape, arguments),
        Kernels::TensorWeight => tensor_weight::weight_gradient(cuda, shape, arguments),
        Kernels::Tensor | Kernels::Plain => plain::weight_gradient(cuda, shape, arguments),
    }
}
