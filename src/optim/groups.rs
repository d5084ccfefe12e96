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
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grouping {
    /// Learning rate of the last stage of the body, and of all of it if `layer_decay` is 1.
    pub learning_rate: f64,
    /// Learning rate of the head.
    pub head_learning_rate: f64,
    /// The learning rate of each stage of the body, as a share of that of the stage above.
    pub layer_decay: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether the weights and biases of batch norms and the biases of linear layers have no weight decay.
    pub no_decay_norm_bias: bool,
}

impl Grouping {
    /// The groups, in the order of [`Grouping::group_of`]. The body has this many stages.
    pub fn groups(&self, stages: usize) -> Vec<GroupSettings> {
        let Self { learning_rate, head_learning_rate, weight_decay, no_decay_norm_bias, .. } = *self;
        let decays = if no_decay_norm_bias { &[weight_decay, 0.0][..] } else { &[weight_decay] };
        let of_body = (0..self.rates_of_body(stages)).rev();
        let mut rates: Vec<f64> = of_body.map(|above| learning_rate * self.layer_decay.powi(above as i32)).collect();
        rates.push(head_learning_rate);
        let group =
            |weight_decay: f64| rates.iter().map(move |&learning_rate| GroupSettings { learning_rate, weight_decay });
        decays.iter().flat_map(|&weight_decay| group(weight_decay)).collect()
    }

    /// The group of a parameter in this stage of the body, counted from 0 at the input, or in the head.
    pub fn group_of(&self, stage: Option<usize>, stages: usize, role: ParameterRole) -> usize {
        let is_weight = matches!(role, ParameterRole::ConvolutionWeight | ParameterRole::LinearWeight);
        let of_body = self.rates_of_body(stages);
        let rate = stage.map_or(of_body, |stage| stage.min(of_body - 1));
        rate + if self.no_decay_norm_bias && !is_weight { of_body + 1 } else { 0 }
    }

    /// Different learning rates of the body.
    fn rates_of_body(&self, stages: usize) -> usize {
        if self.layer_decay == 1.0 { 1 } else { stages.max(1) }
    }
}

impl Default for Grouping {
    fn default() -> Self {
        Self {
            learning_rate: 0.0,
            head_learning_rate: 0.0,
            layer_decay: 1.0,
            weight_decay: 0.0,
            no_decay_norm_bias: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [ParameterRole; 2] = [ParameterRole::ConvolutionWeight, ParameterRole::LinearBias];

    fn setting(grouping: &Grouping, stage: Option<usize>, role: ParameterRole) -> (f64, f64) {
        let group = grouping.groups(5)[grouping.group_of(stage, 5, role)];
        (group.learning_rate, group.weight_decay)
    }

    #[test]
    fn each_stage_has_its_learning_rate() {
        let one = Grouping {
            learning_rate: 1.0,
            head_learning_rate: 10.0,
            layer_decay: 1.0,
            weight_decay: 0.5,
            no_decay_norm_bias: false,
        };
        assert_eq!(one.groups(5).len(), 2);
        let decayed = Grouping { layer_decay: 0.5, no_decay_norm_bias: true, ..one };
        assert_eq!(decayed.groups(5).len(), 12);
        for role in ROLES {
            let decay = if role == ROLES[0] { 0.5 } else { 0.0 };
            for stage in 0..5 {
                assert_eq!(setting(&one, Some(stage), role), (1.0, 0.5));
                assert_eq!(setting(&decayed, Some(stage), role), (0.5f64.powi(4 - stage as i32), decay));
            }
            assert_eq!(setting(&one, None, role), (10.0, 0.5));
            assert_eq!(setting(&decayed, None, role), (10.0, decay));
        }
    }
}
