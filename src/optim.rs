//! Stochastic gradient descent with parameter groups, as `torch.optim.SGD`.

use crate::device::{Clip, Device, SgdStep};
use crate::error::Result;
use crate::graph::Parameters;
use crate::tensor::{ElementType, Tensor};

/// The settings of one parameter group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupSettings {
    /// Step size.
    pub learning_rate: f32,
    /// Factor of the velocity; 0 for none.
    pub momentum: f32,
    /// Added to the gradient, times the value.
    pub weight_decay: f32,
}

/// Memory for the norm of all gradients, and the longest that they may be.
pub struct GradientClipping {
    max_norm: f32,
    sums: Tensor,
    norm: Tensor,
}

impl GradientClipping {
    /// Allocates what [`sgd_step`] needs to clip the gradients of `parameters` to `max_norm`.
    pub fn new(device: &dyn Device, parameters: &Parameters, max_norm: f32) -> Result<Self> {
        let lengths: Vec<usize> = parameters.groups().iter().map(|group| group.gradients.len()).collect();
        let floats = |count: usize| -> Result<Tensor> {
            Ok(Tensor::new(device.allocate(count * size_of::<f32>())?, 0, [count].into(), ElementType::F32))
        };
        Ok(Self { max_norm, sums: floats(device.gradient_norm_sums(&lengths))?, norm: floats(1)? })
    }

    /// The norm that the gradients of the last step had before they were clipped, `[1]`.
    pub fn norm(&self) -> &Tensor {
        &self.norm
    }
}

/// Updates every group of `parameters` from its gradients. `settings` are in the order of the groups. Where `loss` is given
/// and its first value is not finite, or the norm that is to be clipped is not, nothing changes.
pub fn sgd_step(
    device: &dyn Device,
    parameters: &Parameters,
    settings: &[GroupSettings],
    loss: Option<&Tensor>,
    clipping: Option<&GradientClipping>,
) -> Result<()> {
    if let Some(GradientClipping { sums, norm, .. }) = clipping {
        let gradients: Vec<&Tensor> = parameters.groups().iter().map(|group| &group.gradients).collect();
        device.gradient_norm(&gradients, sums, norm)?;
    }
    let clip = clipping.map(|clipping| Clip { norm: &clipping.norm, max_norm: clipping.max_norm });
    for (group, settings) in parameters.groups().iter().zip(settings) {
        device.sgd(&SgdStep {
            values: &group.values,
            gradients: &group.gradients,
            velocity: group.velocity.as_ref(),
            copy: group.copy.as_ref(),
            learning_rate: settings.learning_rate,
            momentum: settings.momentum,
            weight_decay: settings.weight_decay,
            loss,
            clip,
        })?;
    }
    Ok(())
}
