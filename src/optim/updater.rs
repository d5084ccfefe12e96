//! Updates the parameter groups of a network, step by step.

use super::accumulation::Accumulation;
use super::groups::GroupSettings;
use super::optimizer::Optimizer;
use super::schedule::{LOWERED_MOMENTUM, StepFactors};
use crate::device::{Clip, Device, UpdateArguments, write_f32};
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

/// An optimiser at work. What changes from step to step lies in device memory, where [`Updater::begin_step`] writes it: a
/// recorded [`Updater::issue`] stays the same when a learning rate changes.
pub struct Updater {
    optimizer: Box<dyn Optimizer>,
    groups: Vec<GroupSettings>,
    clipping: Option<GradientClipping>,
    factors: StepFactors,
    steps: u64,
    /// `[groups * words]`
    words: Tensor,
    /// What `words` holds.
    uploaded: Vec<f32>,
    /// What it is to hold; here so that a step allocates nothing.
    wanted: Vec<f32>,
}

impl Updater {
    /// Allocates what `optimizer` needs beside its slots. `groups` are in the order of those of the parameters.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new(
        device: &dyn Device,
        optimizer: Box<dyn Optimizer>,
        groups: Vec<GroupSettings>,
        clipping: Option<GradientClipping>,
    ) -> Result<Self> {
        let count = groups.len() * optimizer.rule().words;
        // NaN differs from whatever is wanted, so the first step writes all.
        let (words, uploaded, wanted) = (floats(device, count)?, vec![f32::NAN; count], vec![0.0; count]);
        Ok(Self { optimizer, groups, clipping, factors: StepFactors::default(), steps: 0, words, uploaded, wanted })
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

    /// Names of the state tensors of each parameter.
    pub fn slots(&self) -> &'static [&'static str] {
        self.optimizer.slots()
    }

    /// Steps so far, where the optimiser's next step depends on their number.
    pub fn counted_steps(&self) -> Option<u64> {
        self.optimizer.counts_steps().then_some(self.steps)
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
        if self.wanted != self.uploaded {
            write_f32(device, &self.wanted, &self.words)?;
            self.uploaded.copy_from_slice(&self.wanted);
        }
        Ok(())
    }

    /// Updates every group of `parameters` from its gradients, or from those that `accumulation` has added. Where `loss` is given and its
    /// first value is not finite, or the norm that is to be clipped is not, nothing changes.
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
                slots: &group.slots,
                compute_copy: group.compute_copy.as_ref(),
                words: &self.words.part(index * rule.words, [rule.words].into()),
                loss,
                clip,
            })?;
        }
        Ok(())
    }
}

fn floats(device: &dyn Device, count: usize) -> Result<Tensor> {
    Ok(Tensor::new(device.allocate(count * size_of::<f32>())?, 0, [count].into(), ElementType::F32))
}
