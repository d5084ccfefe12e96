//! Parameter groups: parameters with the same learning rate and weight decay.

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
    /// Learning rate of all layers but the head.
    pub learning_rate: f64,
    /// Learning rate of the head.
    pub head_learning_rate: f64,
    /// Weight decay of all parameters.
    pub weight_decay: f64,
}

impl Grouping {
    /// The groups, in the order of [`Grouping::group_of`].
    pub fn groups(&self) -> Vec<GroupSettings> {
        let Self { learning_rate, head_learning_rate, weight_decay } = *self;
        [learning_rate, head_learning_rate].map(|learning_rate| GroupSettings { learning_rate, weight_decay }).to_vec()
    }

    /// The group of a parameter of the head, or of another layer.
    pub fn group_of(&self, is_head: bool) -> usize {
        usize::from(is_head)
    }
}
