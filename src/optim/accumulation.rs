//! The gradients of several batches, added to those of one step.

use crate::device::{Accumulate, Device, write_f32};
use crate::error::Result;
use crate::graph::Parameters;
use crate::tensor::{ElementType, Tensor};

/// The gradients of the batches of a step so far: those of the sum of their losses, or of the mean loss over all their images.
/// The factors of a batch lie in device memory, where [`Accumulation::begin_batch`] writes them: a recorded
/// [`Accumulation::issue`] stays the same.
pub struct Accumulation {
    /// One for each parameter group.
    sums: Vec<Tensor>,
    /// `[2]`: the factor of the sums so far, and that of the next gradients.
    words: Tensor,
    /// Batches so far.
    batches: usize,
    /// Sum of their weights.
    weight: f64,
}

impl Accumulation {
    /// Allocates memory for the gradients of `parameters`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new(device: &dyn Device, parameters: &Parameters) -> Result<Self> {
        let floats = |count: usize| -> Result<Tensor> {
            Ok(Tensor::new(device.allocate(count * size_of::<f32>())?, 0, [count].into(), ElementType::F32))
        };
        let sums = parameters.groups().iter().map(|group| floats(group.gradients.len())).collect::<Result<_>>()?;
        Ok(Self { sums, words: floats(2)?, batches: 0, weight: 0.0 })
    }

    /// Bytes of the sums.
    pub fn bytes(&self) -> usize {
        self.sums.iter().map(Tensor::bytes).sum()
    }

    /// The sums, one tensor for each parameter group.
    pub fn sums(&self) -> &[Tensor] {
        &self.sums
    }

    /// Whether no batch has been added since the last step.
    pub fn is_empty(&self) -> bool {
        self.batches == 0
    }

    /// Counts a batch. `weight` is the divisor of a batch's mean loss, or `None` for a summed loss. To be done before each
    /// [`Accumulation::issue`] and each replay of one.
    ///
    /// # Errors
    /// When the device fails.
    pub fn begin_batch(&mut self, device: &dyn Device, weight: Option<f64>) -> Result<()> {
        let words = match weight {
            None => [if self.is_empty() { 0.0 } else { 1.0 }, 1.0],
            Some(weight) => {
                let before = self.weight;
                self.weight += weight;
                [before / self.weight, weight / self.weight].map(|word| word as f32)
            }
        };
        self.batches += 1;
        write_f32(device, &words, &self.words)
    }

    /// Adds the gradients of `parameters` to the sums.
    ///
    /// # Errors
    /// When the device fails.
    pub fn issue(&self, device: &dyn Device, parameters: &Parameters) -> Result<()> {
        let mut groups = parameters.groups().iter().zip(&self.sums);
        groups.try_for_each(|(group, sums)| {
            let (values, words) = (&group.gradients, &self.words);
            device.accumulate(&Accumulate { values, sums, words, loss: None, norm: None })
        })
    }

    /// The next batch begins a new step.
    pub fn end_step(&mut self) {
        (self.batches, self.weight) = (0, 0.0);
    }
}
