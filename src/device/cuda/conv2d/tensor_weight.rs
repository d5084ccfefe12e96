//! Not written yet.

use crate::device::cuda::Cuda;
use crate::device::{Conv2dShape, Conv2dWeightGradient};
use crate::error::{Error, Result};

pub(super) fn takes(_cuda: &Cuda, _shape: &Conv2dShape) -> bool {
    false
}

pub(super) fn workspace_bytes(_cuda: &Cuda, _shape: &Conv2dShape) -> usize {
    0
}

pub(super) fn weight_gradient(_cuda: &Cuda, _shape: &Conv2dShape, _arguments: &Conv2dWeightGradient) -> Result<()> {
    Err(Error::new("this kernel is not written yet"))
}
