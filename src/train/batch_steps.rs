//! What a recipe does with each batch of an epoch, in a run and in its trials.

use super::evaluate::batch_shape;
use super::network::BatchResult;
use super::recipe::Recipe;
use super::trainer::Trainer;
use crate::data::InputBatch;
use crate::device::Device;
use crate::error::Result;
use crate::optim::Schedule;
use crate::tensor::Tensor;

/// The training steps of a recipe.
pub(super) struct BatchSteps {
    recipe: Recipe,
    schedule: Schedule,
    /// Batches of an epoch.
    batches: usize,
    fewest_images: usize,
}

impl BatchSteps {
    /// Those of epochs of so many batches.
    ///
    /// # Errors
    /// When the recipe's schedule does not fit.
    pub fn new(recipe: &Recipe, batches: usize, trainer: &Trainer) -> Result<Self> {
        Ok(Self {
            schedule: recipe.schedule(recipe.steps_of(batches))?,
            batches,
            fewest_images: trainer.network().fewest_images(recipe.training_size()),
            recipe: recipe.clone(),
        })
    }

    /// Whether batch norm cannot train on a batch of so many images.
    pub fn leaves_out(&self, images: usize) -> bool {
        images < self.fewest_images
    }

    /// Adds the gradients of a batch with this number in its epoch, both counted from 0, and updates the parameters if every batch is a
    /// step. None if the batch has too few images, and is left out.
    ///
    /// # Errors
    /// When the device fails.
    pub fn train(
        &self,
        trainer: &mut Trainer,
        epoch: usize,
        number: usize,
        batch: &InputBatch,
    ) -> Result<Option<BatchResult>> {
        let images = batch.targets.len();
        if self.leaves_out(images) {
            return Ok(None);
        }
        let before = epoch.saturating_sub(self.recipe.schedule_from) * self.recipe.steps_of(self.batches);
        let step = before + number / self.recipe.accumulate;
        trainer.updater_mut().set_step_factors(self.schedule.at(step as u64));
        if let Some(mixture) = self.recipe.mixture(epoch, number, images) {
            trainer.set_mixture(&mixture)?;
        }
        let write = |device: &dyn Device, input: &Tensor| batch.write(device, input);
        Ok(Some(trainer.step_by(batch_shape(batch, self.recipe.training_size()), write, &batch.targets)?))
    }

    /// Ends a step if it ends with this batch, counted from 1. Returns the norm of its gradients, if it is known only now.
    ///
    /// # Errors
    /// When the device fails.
    pub fn end(&self, trainer: &mut Trainer, batch: usize) -> Result<Option<f32>> {
        match self.ends_with(batch) {
            true => trainer.end_step(),
            false => Ok(None),
        }
    }

    /// Whether a step ends with this batch, counted from 1.
    pub fn ends_with(&self, batch: usize) -> bool {
        self.recipe.ends_step(batch, self.batches)
    }
}
