//! Launches of `kernels/max_pool.cu`.

use super::Cuda;
use crate::device::{Gradient, MaxPoolWindow};
use crate::error::Result;
use crate::tensor::Tensor;

pub(super) fn forward(
    _cuda: &Cuda,
    _window: MaxPoolWindow,
    _input: &Tensor,
    _output: &Tensor,
    _positions: Option<&Tensor>,
) -> Result<()> {
    Err(crate::error::Error::new("this kernel is not written yet"))
}

pub(super) fn backward(
    _cuda: &Cuda,
    _window: MaxPoolWindow,
    _positions: &Tensor,
    _output_gradient: &Tensor,
    _input_gradient: &Gradient,
) -> Result<()> {
    Err(crate::error::Error::new("this kernel is not written yet"))
}
