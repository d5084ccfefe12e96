//! Stochastic gradient descent with parameter groups, as `torch.optim.SGD`.

use crate::device::{Device, SgdStep};
use crate::error::Result;
use crate::graph::Parameters;

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

/// Updates every group of `parameters` from its gradients. `settings` are in the order of the groups.
pub fn sgd_step(device: &dyn Device, parameters: &Parameters, settings: &[GroupSettings]) -> Result<()> {
    for (group, settings) in parameters.groups().iter().zip(settings) {
        device.sgd(&SgdStep {
            values: &group.values,
            gradients: &group.gradients,
            velocity: group.velocity.as_ref(),
            copy: group.copy.as_ref(),
            learning_rate: settings.learning_rate,
            momentum: settings.momentum,
            weight_decay: settings.weight_decay,
        })?;
    }
    Ok(())
}
