//! Optimisers, and what they update: groups of parameters, each with its own learning rate.
//!
//! An optimiser is one file here: its name, its hyperparameters, the state that it keeps for each parameter, the numbers that
//! a step reads from device memory, and its loop for the CPU. Its kernel is `kernels/NAME.cu`. [`OPTIMIZERS`] lists them; the
//! values of `--optimizer`, a flag for each hyperparameter, recipes, checkpoints and reference files follow from that table.

mod accumulation;
mod adamw;
mod average;
mod groups;
mod hyperparameter;
mod lbfgs;
mod nesterov;
mod optimizer;
mod schedule;
mod settings;
mod sgd;
mod updater;

pub use accumulation::Accumulation;
pub use average::AVERAGE_SLOT;
pub use groups::{GroupSettings, Grouping};
pub use hyperparameter::Hyperparameter;
pub use lbfgs::{Minimum, Stopping, minimise};
pub use optimizer::{Optimizer, OptimizerKind};
pub use schedule::{LOWERED_MOMENTUM, SCHEDULES, Schedule, ScheduleKind, StepFactors, WarmUp};
pub use settings::OptimizerSettings;
pub use updater::{GradientClipping, Updater};

use crate::error::{Error, Result};

/// All optimisers; the first is the default.
pub const OPTIMIZERS: [&OptimizerKind; 3] = [&sgd::KIND, &nesterov::KIND, &adamw::KIND];

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
