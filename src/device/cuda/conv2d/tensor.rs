//! Not written yet.

use crate::device::cuda::Cuda;
use crate::device::{Conv2dForward, Conv2dInputGradient, Conv2dPass, Conv2dShape};
use crate::error::{Error, Result};

pub(super) fn takes(_cuda: &Cuda, _shape: &Conv2dShape, _pass: Conv2dPass) -> bool {
    false
}

pub(super) fn forward(_cuda: &Cuda, _shape: &Conv2dShape, _arguments: &Conv2dForward) -> Result<()> {
    Err(Error::new("this kernel is not written yet"))
}

pub(super) fn input_gradient(_cuda: &Cuda, _shape: &Conv2dShape, _arguments: &Conv2dInputGradient) -> Result<()> {
    Err(Error::new("this kernel is not written yet"))
}
