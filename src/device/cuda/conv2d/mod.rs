//! Launches of `kernels/conv2d.cu` and, on tensor cores, of `kernels/conv2d_tensor.cu` and `kernels/conv2d_stem.cu`.

mod plain;
mod stem;
mod tensor;

use super::Cuda;
use crate::device::{Conv2dForward, Conv2dInputGradient, Conv2dPass, Conv2dShape, Conv2dWeightGradient};
use crate::error::Result;
use crate::tensor::Shape;

/// Output pixels of one block of a forward convolution, of whichever kernel: the pixels of a row of partial statistics.
pub(super) const PIXELS_PER_BLOCK: usize = 128;
/// Rows of partial statistics that the last of their blocks to arrive combines.
const ROWS_PER_GROUP: usize = 64;

/// Rows of the partial statistics: the total, then one a group of blocks, then one a block. The last block of a group to
/// arrive combines the group, the last group the total, always in the same order.
pub(super) fn statistics_rows(shape: Shape) -> usize {
    let blocks = shape.rows().div_ceil(PIXELS_PER_BLOCK);
    1 + blocks.div_ceil(ROWS_PER_GROUP) + blocks
}

pub(super) fn workspace(cuda: &Cuda, shape: &Conv2dShape, pass: Conv2dPass) -> usize {
    let _ = (cuda, shape, pass);
    0
}

pub(super) fn forward(_cuda: &Cuda, _shape: &Conv2dShape, _arguments: &Conv2dForward) -> Result<()> {
    Err(crate::error::Error::new("this kernel is not written yet"))
}

pub(super) fn input_gradient(_cuda: &Cuda, _shape: &Conv2dShape, _arguments: &Conv2dInputGradient) -> Result<()> {
    Err(crate::error::Error::new("this kernel is not written yet"))
}

pub(super) fn weight_gradient(_cuda: &Cuda, _shape: &Conv2dShape, _arguments: &Conv2dWeightGradient) -> Result<()> {
    Err(crate::error::Error::new("this kernel is not written yet"))
}
