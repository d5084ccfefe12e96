//! Updates the parameter groups of a network, step by step.

use super::accumulation::Accumulation;
use super::average::{self, AVERAGE_SLOT};
use super::groups::GroupSettings;
use super::optimizer::Optimizer;
use super::schedule::{LOWERED_MOMENTUM, StepFactors};
use crate::device::{Accumulate, Clip, Device, UpdateArguments, write_f32};
use crate::error::Result;
use crate::graph::Parameters;
use crate::tensor::{ElementType, Tensor};

/// Memory for the norm of all gradients, and the largest that it may be.
pub struct GradientClipping {
    max_norm: f32,
    sums: Tensor,
    norm: Tensor,
}

impl GradientClipping {
    /// Allocates what is needed to clip the gradients of `parameters` to `max_norm`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new(device: &dyn Device, parameters: &Parameters, max_norm: f32) -> Result<Self> {
        let lengths: Vec<usize> = parameters.groups().iter().map(|group| group.gradients.len()).collect();
        let sums = floats(device, device.gradient_norm_sums(&lengths))?;
        Ok(Self { max_norm, sums, norm: floats(device, 1)? })
    }

    /// The norm that the gradients of the last step had before they were clipped, `[1]`.
    pub fn norm(&self) -> &Tensor {
        &self.norm
    }
}

/// Numbers that a step reads for the average.
const AVERAGE_WORDS: usize = 2;

/// An optimiser at work. What changes from step to step lies in device memory, where [`Updater::begin_step`] writes it: a
/// recorded [`Updater::issue`] stays the same when a learning rate changes.
pub struct Updater {
    optimizer: Box<dyn Optimizer>,
    groups: Vec<GroupSettings>,
    clipping: Option<GradientClipping>,
    /// The decay of the average of the parameters.
    average: Option<f64>,
    factors: StepFactors,
    steps: u64,
    /// `[groups * words]`, and the two factors of the average.
    words: Tensor,
    /// What `words` holds.
    uploaded: Vec<f32>,
    /// What it is to hold; here so that a step allocates nothing.
    wanted: Vec<f32>,
}

impl Updater {
    /// Allocates what `optimizer` needs beside its slots. `groups` are in the order of those of the parameters. With `average`, which is the
    /// decay, an average of the parameters is in their slot after those of the optimiser.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new(
        device: &dyn Device,
        optimizer: Box<dyn Optimizer>,
        groups: Vec<GroupSettings>,
        clipping: Option<GradientClipping>,
        average: Option<f64>,
    ) -> Result<Self> {
        let count = groups.len() * optimizer.rule().words + average.map_or(0, |_| AVERAGE_WORDS);
        // NaN differs from whatever is wanted, so the first step writes all.
        let (words, uploaded, wanted) = (floats(device, count)?, vec![f32::NAN; count], vec![0.0; count]);
        let factors = StepFactors::default();
        Ok(Self { optimizer, groups, clipping, average, factors, steps: 0, words, uploaded, wanted })
    }

    /// The settings of each group.
    pub fn groups(&self) -> &[GroupSettings] {
        &self.groups
    }

    /// Sets the learning rate of a group, from the next step on.
    pub fn set_learning_rate(&mut self, group: usize, learning_rate: f64) {
        if let Some(group) = self.groups.get_mut(group) {
            group.learning_rate = learning_rate;
        }
    }

    /// What a schedule makes of the next step and those after it.
    pub fn set_step_factors(&mut self, factors: StepFactors) {
        self.factors = factors;
    }

    /// The norm of the gradients of the last step, `[1]`, where they are clipped.
    pub fn gradient_norm(&self) -> Option<&Tensor> {
        self.clipping.as_ref().map(GradientClipping::norm)
    }

    /// Names of the state tensors of each parameter that `optimizer` trains: its own, and that of the average if there is one.
    pub fn slots(optimizer: &dyn Optimizer, average: Option<f64>) -> Vec<&'static str> {
        optimizer.slots().iter().copied().chain(average.map(|_| AVERAGE_SLOT)).collect()
    }

    /// Whether an average of the parameters is kept.
    pub fn averages(&self) -> bool {
        self.average.is_some()
    }

    /// Steps so far, where the next step depends on their number.
    pub fn counted_steps(&self) -> Option<u64> {
        (self.optimizer.counts_steps() || self.averages()).then_some(self.steps)
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Continues after this many steps.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// Counts a step and writes to device memory what has changed since the last one. To be done before each
    /// [`Updater::issue`] and each replay of one.
    ///
    /// # Errors
    /// When the device fails.
    pub fn begin_step(&mut self, device: &dyn Device) -> Result<()> {
        self.steps += 1;
        let count = self.optimizer.rule().words;
        for (group, words) in self.groups.iter().zip(self.wanted.chunks_exact_mut(count)) {
            let group = GroupSettings { learning_rate: group.learning_rate * self.factors.learning_rate, ..*group };
            self.optimizer.words(&group, self.steps, LOWERED_MOMENTUM * self.factors.lowered_momentum, words);
        }
        if let Some(decay) = self.average {
            let of_average = self.wanted.len() - AVERAGE_WORDS;
            self.wanted[of_average..].copy_from_slice(&average::words(decay, self.steps));
        }
        if self.wanted != self.uploaded {
            write_f32(device, &self.wanted, &self.words)?;
            self.uploaded.copy_from_slice(&self.wanted);
        }
        Ok(())
    }

    /// Updates every group of `parameters` from its gradients, or from those that `accumulation` has added, and their average. Where
    /// `loss` is given and its first value is not finite, or the norm that is to be clipped is not, nothing changes.
    ///
    /// # Errors
    /// When the device fails.
    pub fn issue(
        &self,
        device: &dyn Device,
        parameters: &Parameters,
        accumulation: Option<&Accumulation>,
        loss: Option<&Tensor>,
    ) -> Result<()> {
        let gradients_of = |index: usize| match accumulation {
            Some(accumulation) => &accumulation.sums()[index],
            None => &parameters.groups()[index].gradients,
        };
        if let Some(GradientClipping { sums, norm, .. }) = &self.clipping {
            let gradients: Vec<&Tensor> = (0..parameters.groups().len()).map(gradients_of).collect();
            device.gradient_norm(&gradients, sums, norm)?;
        }
        let clip = self.clipping.as_ref().map(|clipping| Clip { norm: &clipping.norm, max_norm: clipping.max_norm });
        let rule = self.optimizer.rule();
        for (index, group) in parameters.groups().iter().enumerate() {
            device.update(&UpdateArguments {
                rule,
                values: &group.values,
                gradients: gradients_of(index),
                slots: &group.slots[..rule.slots],
                compute_copy: group.compute_copy.as_ref(),
                words: &self.words.part(index * rule.words, [rule.words].into()),
                loss,
                clip,
            })?;
            if self.average.is_some() {
                device.accumulate(&Accumulate {
                    values: &group.values,
                    sums: &group.slots[rule.slots],
                    words: &self.words.part(self.words.len() - AVERAGE_WORDS, [AVERAGE_WORDS].into()),
                    loss,
                    norm: clip.map(|clip| clip.norm),
                })?;
            }
        }
        Ok(())
    }
}

fn floats(device: &dyn Device, count: usize) -> Result<Tensor> {
    Ok(Tensor::new(device.allocate(count * size_of::<f32>())?, 0, [count].into(), ElementType::F32))
}
