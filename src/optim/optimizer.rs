//! What an optimiser is: a row of the table, and how it turns gradients into an update.

use std::collections::BTreeMap;
use std::fmt;

use super::groups::GroupSettings;
use super::hyperparameter::Hyperparameter;
use crate::device::UpdateRule;

/// A row of [`OPTIMIZERS`](super::OPTIMIZERS).
#[derive(Debug)]
pub struct OptimizerKind {
    /// The value of `--optimizer`.
    pub name: &'static str,
    /// One line for the help.
    pub summary: &'static str,
    /// Its hyperparameters.
    pub hyperparameters: &'static [Hyperparameter],
    /// Makes it from the values of its hyperparameters, which are in their ranges and in their order.
    pub build: fn(&[f64]) -> Box<dyn Optimizer>,
}

impl PartialEq for OptimizerKind {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Display for OptimizerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl OptimizerKind {
    /// The hyperparameters with their defaults.
    pub fn defaults(&self) -> BTreeMap<String, f64> {
        self.hyperparameters.iter().map(|of| (of.name.to_string(), of.default)).collect()
    }
}

/// How an optimiser turns gradients into an update.
pub trait Optimizer {
    /// Names of the state tensors that it keeps for each parameter; checkpoints store them as `SLOT/PARAMETER`.
    fn slots(&self) -> &'static [&'static str];

    /// The kernel and the loop that do it.
    fn rule(&self) -> &'static UpdateRule;

    /// Writes the numbers that the step reads, in the order in which the rule reads them. `step` counts from 1. The momentum, or
    /// what takes its place, is lower by `lowered_momentum`, but at least zero.
    fn words(&self, group: &GroupSettings, step: u64, lowered_momentum: f64, words: &mut [f32]);

    /// Whether [`Optimizer::words`] depend on the number of the step, which checkpoints then store.
    fn counts_steps(&self) -> bool {
        false
    }
}
