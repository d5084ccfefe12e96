//! Launches of `kernels/linear.cu`.

use super::Cuda;
use crate::device::{Conv2dPass, Gradient};
use crate::error::Result;
use crate::tensor::Tensor;

pub(super) fn workspace(_cuda: &Cuda, _batch: usize, _inputs: usize, _outputs: usize, _pass: Conv2dPass) -> usize {
    0
}

pub(super) fn forward(
    _cuda: &Cuda,
    _input: &Tensor,
    _weight: &Tensor,
    _bias: &Tensor,
    _output: &Tensor,
    _workspace: &Tensor,
) -> Result<()> {
    Err(crate::error::Error::new("this kernel is not written yet"))
}

pub(super) fn input_gradient(
    _cuda: &Cuda,
    _output_gradient: &Tensor,
    _weight: &Tensor,
    _input_gradient: &Gradient,
    _workspace: &Tensor,
) -> Result<()> {
    Err(crate::error::Error::new("this kernel is not written yet"))
}

pub(super) fn weight_gradient(
    _cuda: &Cuda,
    _input: Option<&Tensor>,
    _output_gradient: &Tensor,
    _weight_gradient: Option<&Tensor>,
    _bias_gradient: Option<&Tensor>,
    _workspace: &Tensor,
) -> Result<()> {
    Err(crate::error::Error::new("this kernel is not written yet"))
}
