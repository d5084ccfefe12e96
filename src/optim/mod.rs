//! Optimisers, and what they update: groups of parameters, each with its own learning rate.
//!
//! An optimiser is one file here: its name, the state that it keeps for each parameter, the numbers that a step reads from
//! device memory, and its loop for the CPU. Its kernel is `kernels/NAME.cu`. [`OPTIMIZERS`] lists them; the values of
//! `--optimizer`, checkpoints and reference files follow from that table.

mod adamw;
mod groups;
mod nesterov;
mod sgd;
mod updater;

use std::fmt;

pub use groups::{GroupSettings, Grouping};
pub use updater::{GradientClipping, Updater};

use crate::device::UpdateRule;
use crate::error::{Error, Result};

/// All optimisers; the first is the default.
pub const OPTIMIZERS: [&OptimizerKind; 3] = [&sgd::KIND, &nesterov::KIND, &adamw::KIND];

/// A row of [`OPTIMIZERS`].
#[derive(Debug)]
pub struct OptimizerKind {
    /// The value of `--optimizer`.
    pub name: &'static str,
    /// One line for the help.
    pub summary: &'static str,
    /// Makes it, or says which hyperparameter it does not take.
    pub build: fn(&Hyperparameters) -> Result<Box<dyn Optimizer>>,
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
    /// The row with this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(name: &str) -> Result<&'static Self> {
        OPTIMIZERS.into_iter().find(|kind| kind.name == name).ok_or_else(|| {
            let names: Vec<&str> = OPTIMIZERS.iter().map(|kind| kind.name).collect();
            Error::usage(format!("optimizer {name:?}: expected {}", names.join(" or ")))
        })
    }
}

/// How an optimiser turns gradients into an update.
pub trait Optimizer {
    /// Names of the state tensors that it keeps for each parameter; checkpoints store them as `SLOT/PARAMETER`.
    fn slots(&self) -> &'static [&'static str];

    /// The kernel and the loop that do it.
    fn rule(&self) -> &'static UpdateRule;

    /// Writes the numbers that the step reads, in the order in which the rule reads them. `step` counts from 1.
    fn words(&self, group: &GroupSettings, step: u64, words: &mut [f32]);

    /// Whether [`Optimizer::words`] depend on the number of the step, which checkpoints then store.
    fn counts_steps(&self) -> bool {
        false
    }
}

/// The settings of all optimisers. Each takes those that it has; the others must have their defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hyperparameters {
    /// Share of the velocity that stays from step to step.
    pub momentum: f64,
    /// Share of the mean of the gradients that stays from step to step.
    pub beta1: f64,
    /// Share of the mean of the squared gradients that stays from step to step.
    pub beta2: f64,
    /// Added to the root of that mean.
    pub epsilon: f64,
}

/// The name of a hyperparameter, and how to read it.
type NamedField = (&'static str, fn(&Hyperparameters) -> f64);

impl Hyperparameters {
    /// Refuses settings of other optimisers than the one called `name`.
    fn require_default(&self, name: &str, of_others: &[NamedField]) -> Result<()> {
        match of_others.iter().find(|(_, value)| value(self) != value(&Self::default())) {
            Some((other, _)) => Err(Error::usage(format!("the optimizer {name} has no {other}"))),
            None => Ok(()),
        }
    }
}

/// Hyperparameters of AdamW.
const OF_ADAMW: [NamedField; 3] =
    [("beta1", |all| all.beta1), ("beta2", |all| all.beta2), ("epsilon", |all| all.epsilon)];

impl Default for Hyperparameters {
    fn default() -> Self {
        Self { momentum: 0.0, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

/// An optimiser that has been chosen, with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerSettings {
    /// Which one.
    pub kind: &'static OptimizerKind,
    /// Its settings.
    pub hyperparameters: Hyperparameters,
}

impl OptimizerSettings {
    /// `torch.optim.SGD` with this momentum.
    pub fn sgd(momentum: f64) -> Self {
        Self { kind: &sgd::KIND, hyperparameters: Hyperparameters { momentum, ..Hyperparameters::default() } }
    }

    /// The optimiser.
    ///
    /// # Errors
    /// When a hyperparameter has a value that it cannot have.
    pub fn build(&self) -> Result<Box<dyn Optimizer>> {
        (self.kind.build)(&self.hyperparameters)
    }
}
