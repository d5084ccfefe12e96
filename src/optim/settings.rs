//! An optimiser with the values of its hyperparameters.

use std::collections::BTreeMap;

use super::hyperparameter::Hyperparameter;
use super::optimizer::{Optimizer, OptimizerKind};
use super::sgd;
use crate::error::{Error, Result};

/// An optimiser that has been chosen, with its hyperparameters.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizerSettings {
    kind: &'static OptimizerKind,
    /// In the order of those of `kind`.
    values: Vec<f64>,
}

impl OptimizerSettings {
    /// An optimiser with these hyperparameters, and the defaults of the others.
    ///
    /// # Errors
    /// When the optimiser has no hyperparameter of a name, or a value is out of range.
    pub fn new(kind: &'static OptimizerKind, given: &BTreeMap<String, f64>) -> Result<Self> {
        let known = |name: &String| kind.hyperparameters.iter().any(|known| known.name == name);
        if let Some(name) = given.keys().find(|&name| !known(name)) {
            let names: Vec<&str> = kind.hyperparameters.iter().map(|known| known.name).collect();
            let names = names.join(", ");
            return Err(Error::usage(format!("optimizer {kind}: there is no hyperparameter {name}, only {names}")));
        }
        let value = |known: &Hyperparameter| {
            let value = given.get(known.name).copied().unwrap_or(known.default);
            known.check(kind.name, value)?;
            Ok(value)
        };
        Ok(Self { kind, values: kind.hyperparameters.iter().map(value).collect::<Result<_>>()? })
    }

    /// `torch.optim.SGD` with this momentum.
    ///
    /// # Errors
    /// When the momentum is out of range.
    pub fn sgd(momentum: f64) -> Result<Self> {
        Self::new(&sgd::KIND, &BTreeMap::from([("momentum".to_string(), momentum)]))
    }

    /// Which optimiser it is.
    pub fn kind(&self) -> &'static OptimizerKind {
        self.kind
    }

    /// The hyperparameters with their values.
    pub fn values(&self) -> impl Iterator<Item = (&'static Hyperparameter, f64)> {
        self.kind.hyperparameters.iter().zip(self.values.iter().copied())
    }

    /// The optimiser.
    pub fn build(&self) -> Box<dyn Optimizer> {
        (self.kind.build)(&self.values)
    }
}
