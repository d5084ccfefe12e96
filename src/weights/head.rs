//! A new head from rows of an old one, for classes that the weights already know.

use super::matching::MatchReport;
use super::state_dict::{TensorEntry, TensorFile};
use crate::error::{Error, Result};

const WEIGHT: &str = "fc.weight";
const BIAS: &str = "fc.bias";

/// A linear layer's parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// The number of classes.
    pub classes: usize,
    /// The number of input features.
    pub inputs: usize,
    /// `[classes, inputs]`.
    pub weight: Vec<f32>,
    /// `[classes]`.
    pub bias: Vec<f32>,
}

/// Copies one row of the file's head for each class of the network, in that order.
///
/// # Errors
/// When the file has no head of this form, when there is not one row for each class, when a row lies outside the old
/// head, or when the old head takes another number of features.
pub fn head_from(rows: &[usize], file: &TensorFile, report: &MatchReport) -> Result<Head> {
    let shown = file.path().display();
    let no_head = |reason: String| Error::new(format!("cannot copy rows of the final layer of {shown}: {reason}"));
    let shape = |entry: Option<&TensorEntry>| entry.map(|entry| entry.shape.clone());
    let (weight, bias) = (shape(file.get(WEIGHT)), shape(file.get(BIAS)));
    let (classes, inputs) = match (weight.as_deref(), bias.as_deref()) {
        (Some(&[classes, inputs]), Some(&[biases])) if classes == biases => (classes, inputs),
        (None, _) | (_, None) => return Err(no_head(format!("{WEIGHT} or {BIAS} is missing"))),
        (Some(weight), Some(bias)) => {
            return Err(no_head(format!("{WEIGHT} {weight:?} and {BIAS} {bias:?} are not those of a linear layer")));
        }
    };
    if let Some(&[new_classes, new_inputs]) =
        report.expected_head.iter().find(|key| key.name == WEIGHT).map(|key| key.shape.as_slice())
    {
        if rows.len() != new_classes {
            return Err(no_head(format!("expected {new_classes} rows, one per class, found {}", rows.len()))
                .hint("list the rows in the order of the classes: folder names, sorted"));
        }
        if new_inputs != inputs {
            return Err(no_head(format!("expected {new_inputs} features, found {inputs}")));
        }
    }
    if let Some(row) = rows.iter().find(|&&row| row >= classes) {
        return Err(no_head(format!("it has no row {row}, expected 0 to {}", classes - 1)));
    }
    let (old_weight, old_bias) = (file.read_finite_f32(WEIGHT)?, file.read_finite_f32(BIAS)?);
    let mut head = Head { classes: rows.len(), inputs, weight: Vec::new(), bias: Vec::new() };
    for &row in rows {
        head.weight.extend_from_slice(&old_weight[row * inputs..][..inputs]);
        head.bias.push(old_bias[row]);
    }
    Ok(head)
}
