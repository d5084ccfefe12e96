//! Not written yet.

use crate::device::cuda::Cuda;
use crate::device::{Conv2dForward, Conv2dPass, Conv2dShape, Conv2dWeightGradient};
use crate::error::{Error, Result};

/// Never the gradient of the input.
pub(super) fn takes(_cuda: &Cuda, _shape: &Conv2dShape, _pass: Conv2dPass) -> bool {
    false
}

pub(super) fn workspace_bytes(_cuda: &Cuda, _shape: &Conv2dShape, _pass: Conv2dPass) -> usize {
    0
}

pub(super) fn forward(_cuda: &Cuda, _shape: &Conv2dShape, _arguments: &Conv2dForward) -> Result<()> {
    Err(Error::new("this kernel is not written yet"))
}

pub(super) fn weight_gradient(_cuda: &Cuda, _shape: &Conv2dShape, _arguments: &Conv2dWeightGradient) -> Result<()> {
    Err(Error::new("this kernel is not written yet"))
}
