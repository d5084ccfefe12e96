//! Optimisers, and what they update: groups of parameters, each with its own learning rate.
//!
//! An optimiser is one file here: its name, its hyperparameters, the state that it keeps for each parameter, the numbers that
//! a step reads from device memory, and its loop for the CPU. Its kernel is `kernels/NAME.cu`. [`OPTIMIZERS`] lists them; the
//! values of `--optimizer`, a flag for each hyperparameter, recipes, checkpoints and reference files follow from that table.

mod adamw;
mod groups;
mod hyperparameter;
mod nesterov;
mod sgd;
mod updater;

use std::collections::BTreeMap;
use std::fmt;

pub use groups::{GroupSettings, Grouping};
pub use hyperparameter::{Hyperparameter, OptimizerSettings};
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
