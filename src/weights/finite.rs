//! Checks that no loaded weight is infinite or not a number, and that no variance is negative.

use super::state_dict::{TensorEntry, TensorFile, printable};
use crate::error::{Error, Result};

/// The suffix of the names of variances.
const VARIANCE: &str = "running_var";

/// What is wrong with the elements of a tensor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Faults {
    not_numbers: usize,
    infinite: usize,
    /// Negative elements of a variance.
    negative: usize,
}

impl TensorFile {
    /// Like [`TensorFile::read_f32`], for weights. Every command reads weights through this function.
    ///
    /// # Errors
    /// Those of [`TensorFile::read_f32`], and when an element is infinite or not a number, or a variance is negative.
    pub fn read_finite_f32(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.read_f32(name)?;
        if is_sound(name, &values) {
            return Ok(values);
        }
        let shown = self.path().display();
        let this = describe(name, &values);
        let others = self.entries().iter().filter(|entry| entry.name != name && entry.is_float());
        let others = others.filter(|entry| self.is_faulty(entry)).count();
        let others = match others {
            0 => String::new(),
            1 => "; 1 other tensor of the file is damaged as well".into(),
            others => format!("; {others} other tensors of the file are damaged as well"),
        };
        Err(Error::new(format!("{shown}: tensor {} {this}{others}", printable(name)))
            .hint("the weights are damaged or come from a training run that diverged: use an earlier checkpoint"))
    }

    fn is_faulty(&self, entry: &TensorEntry) -> bool {
        self.read_f32(&entry.name).is_ok_and(|values| !is_sound(&entry.name, &values))
    }
}

/// Whether a network can use the values of a tensor with this name. Without branches, so that the compiler vectorises it.
pub fn is_sound(name: &str, values: &[f32]) -> bool {
    let is_finite = values.iter().fold(true, |sound, value| sound & value.is_finite());
    is_finite && !(is_variance(name) && values.iter().any(|&value| value < 0.0))
}

/// What is wrong with the values of a tensor with this name, as in `has 3 NaN values, of 64`.
pub fn describe(name: &str, values: &[f32]) -> String {
    let mut faults = Faults::default();
    for value in values {
        faults.not_numbers += usize::from(value.is_nan());
        faults.infinite += usize::from(value.is_infinite());
        faults.negative += usize::from(is_variance(name) && *value < 0.0 && value.is_finite());
    }
    let kinds = [(faults.not_numbers, "NaN"), (faults.infinite, "infinite"), (faults.negative, "negative")];
    let kinds: Vec<String> =
        kinds.iter().filter(|(number, _)| *number > 0).map(|(number, kind)| format!("{number} {kind}")).collect();
    let expected = if is_variance(name) { "finite ones that are not negative" } else { "finite ones" };
    let plural = if values.len() == 1 { "" } else { "s" };
    format!("has {} of {} value{plural}, expected {expected}", kinds.join(" and "), values.len())
}

fn is_variance(name: &str) -> bool {
    name.ends_with(VARIANCE)
}
