//! The numbers that an optimiser takes, and an optimiser with the values that were chosen for them.

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};

use super::{Optimizer, OptimizerKind, sgd};
use crate::error::{Error, Result};

/// A number that an optimiser takes. A flag, a field of the recipe and a field of reference files have its name.
#[derive(Debug)]
pub struct Hyperparameter {
    /// Its name, as in `torch.optim` where that is one word.
    pub name: &'static str,
    /// What it is, in a few words that follow "the".
    pub meaning: &'static str,
    /// Its value where none is given.
    pub default: f64,
    /// The least and the largest value. All values are finite.
    pub range: (Bound<f64>, Bound<f64>),
}

impl Hyperparameter {
    fn check(&self, kind: &OptimizerKind, value: f64) -> Result<()> {
        if value.is_finite() && self.range.contains(&value) {
            return Ok(());
        }
        let bound = |bound, included, excluded| match bound {
            Bound::Included(bound) => Some(format!("{included} {bound}")),
            Bound::Excluded(bound) => Some(format!("{excluded} {bound}")),
            Bound::Unbounded => None,
        };
        let bounds = [bound(self.range.0, "at least", "more than"), bound(self.range.1, "at most", "less than")];
        let expected: Vec<String> = bounds.into_iter().flatten().collect();
        let (name, expected) = (self.name, expected.join(" and "));
        Err(Error::usage(format!("optimizer {kind}: {name} {value}: expected {expected}")))
    }
}

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
            known.check(kind, value)?;
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
