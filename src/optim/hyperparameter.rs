//! The numbers that an optimiser takes.

use std::ops::{Bound, RangeBounds};

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
    /// Refuses a value that is out of range.
    pub(super) fn check(&self, optimizer: &str, value: f64) -> Result<()> {
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
        Err(Error::usage(format!("optimizer {optimizer}: {name} {value}: expected {expected}")))
    }
}
