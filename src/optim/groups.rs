//! Parameter groups: parameters with the same learning rate and weight decay.

use crate::graph::ParameterRole;

/// The settings of one group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupSettings {
    /// Step size.
    pub learning_rate: f64,
    /// Share of each value that the optimiser takes away from it; SGD does so by adding it to the gradient.
    pub weight_decay: f64,
}

/// How parameters are divided into groups.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Grouping {
    /// Learning rate of all layers but the head.
    pub learning_rate: f64,
    /// Learning rate of the head.
    pub head_learning_rate: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether the weights and biases of batch norms and the biases of linear layers have no weight decay.
    pub no_decay_norm_bias: bool,
}

impl Grouping {
    /// The groups, in the order of [`Grouping::group_of`].
    pub fn groups(&self) -> Vec<GroupSettings> {
        let Self { learning_rate, head_learning_rate, weight_decay, no_decay_norm_bias } = *self;
        let decays = if no_decay_norm_bias { &[weight_decay, 0.0][..] } else { &[weight_decay] };
        let rates = [learning_rate, head_learning_rate];
        let with_decay = |&weight_decay: &f64| rates.map(|learning_rate| GroupSettings { learning_rate, weight_decay });
        decays.iter().flat_map(with_decay).collect()
    }

    /// The group of a parameter of the head, or of another layer.
    pub fn group_of(&self, is_head: bool, role: ParameterRole) -> usize {
        let is_weight = matches!(role, ParameterRole::ConvolutionWeight | ParameterRole::LinearWeight);
        usize::from(is_head) + if self.no_decay_norm_bias && !is_weight { 2 } else { 0 }
    }
}
