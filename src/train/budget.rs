//! A run that is to end within a time: its speed is measured before it starts, and it gets as many epochs as fit.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::average::STATISTICS_IMAGES;
use super::batch_steps::BatchSteps;
use super::evaluate::evaluate;
use super::recipe::Recipe;
use super::run::Run;
use crate::data::{Batches, ImageFolder, ImageStore, Loader, Mode, Splits};
use crate::error::{Error, Result};

/// The part of the time that is planned; the rest is for what is not measured, such as the report and a machine that becomes slower.
const PLANNED: f64 = 0.9;
/// The part of the time in which the speed of training is measured, unless a few batches take longer.
const MEASURED: f64 = 0.03;
/// Batches after the first that are measured at least and at most. The first is slower, because memory is prepared for it.
const MEASURED_BATCHES: [usize; 2] = [2, 50];
/// Batches of the test whose speed is measured.
const TESTED_BATCHES: usize = 2;

/// Seconds for each image.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Speed {
    training: f64,
    /// Of the evaluation, or of computing features.
    testing: f64,
}

/// Images that a run works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Images {
    training: usize,
    /// Those that choose the model.
    choosing: usize,
    /// Those of the test at the end and of the report.
    test: usize,
}

impl Images {
    fn of(splits: &Splits) -> Self {
        let test = splits.test.len();
        let tests = if splits.validation.is_some() { 2 } else { 1 };
        Self { training: splits.train.len(), choosing: splits.choosing().len(), test: tests * test }
    }

    /// The seconds of the whole run.
    fn seconds(&self, recipe: &Recipe, speed: Speed) -> f64 {
        let fitting = match recipe.fit_head {
            true => self.training * recipe.features_per_image() + self.choosing,
            false => 0,
        };
        let averaging = if recipe.ema.is_some() { self.training.min(STATISTICS_IMAGES) } else { 0 };
        let trained = recipe.images_of_trials(self.training) + recipe.epochs * self.training;
        let tested = fitting + recipe.epochs * (self.choosing + averaging) + self.test;
        trained as f64 * speed.training + tested as f64 * speed.testing
    }
}

/// `recipe` with as many of its epochs as take this time at most. If not even one does, only the final layer is fitted, or there is no such
/// recipe.
fn shortened(recipe: &Recipe, images: &Images, speed: Speed, seconds: f64) -> Option<Recipe> {
    let of =
        |epochs: usize| Recipe { epochs, steps: recipe.steps.filter(|_| epochs == recipe.epochs), ..recipe.clone() };
    let [none, one] = [0, 1].map(|epochs| images.seconds(&of(epochs), speed));
    let fitting = ((seconds - none) / (one - none)).floor();
    match (fitting >= 1.0, recipe.fit_head) {
        (true, _) => Some(of(recipe.epochs.min(fitting as usize))),
        (false, true) => Some(Recipe { try_learning_rates: Vec::new(), ..of(0) }),
        (false, false) => None,
    }
}

impl Run<'_> {
    /// Takes epochs from the recipe, so that the new run takes at most this time from its start on. Returns a sentence about it.
    ///
    /// # Errors
    /// When the time is too short for an epoch, and the final layer is not fitted. When images cannot be read, or the device fails.
    pub fn fit_into(&mut self, budget: Duration) -> Result<String> {
        let speed = self.measure(budget)?;
        let images = Images::of(&self.splits);
        let left = PLANNED * budget.as_secs_f64() - self.started.elapsed().as_secs_f64();
        let seconds = |recipe: &Recipe| {
            let epochs = images.seconds(recipe, speed) + self.started.elapsed().as_secs_f64();
            epochs.round().max(1.0) as u64
        };
        let budget = budget.as_secs();
        let Some(shortened) = shortened(&self.recipe, &images, speed, left) else {
            let least = seconds(&Recipe { epochs: 1, ..self.recipe.clone() });
            return Err(Error::usage(format!("--budget {budget}s: a run of one epoch takes about {least} s"))
                .hint("give more time, or fit only the final layer with --head-only"));
        };
        let [wanted, epochs] = [self.recipe.epochs, shortened.epochs];
        let takes = seconds(&shortened);
        if epochs > 0 {
            let batches = self.splits.train.len().div_ceil(shortened.batch_size);
            shortened.schedule(shortened.steps_of(batches))?;
        }
        self.recipe = shortened;
        Ok(match epochs {
            0 => format!("only the final layer is fitted: with an epoch, the run would take more than {budget} s"),
            epochs if epochs == wanted => format!("the whole run fits into {budget} s: it takes about {takes} s"),
            epochs => format!("{epochs} of {wanted} epochs fit into {budget} s: the run takes about {takes} s"),
        })
    }

    /// Trains on some batches and classifies others, and leaves the trainer as it was.
    fn measure(&mut self, budget: Duration) -> Result<Speed> {
        let store = Rc::new(ImageStore::new(self.trainer.network().shared_device(), self.options.image_memory));
        let loader = |run: &Self, folder: &ImageFolder, mode| {
            let loader = Loader::new(Arc::new(folder.clone()), run.loader_options(mode))?;
            Batches::new(loader.with_augmentations(&run.recipe.augment), &store)
        };
        let mut training = loader(self, &self.splits.train, Mode::Train { seed: self.recipe.seed })?;
        let mut choosing = self.splits.choosing().clone();
        choosing.samples.truncate(TESTED_BATCHES * self.recipe.batch_size);
        let tested = choosing.len().max(1);
        let mut choosing = loader(self, &choosing, Mode::Evaluate)?;

        let before = self.trainer.state()?;
        let batches = training.loader().batch_count();
        let steps = BatchSteps::new(&self.recipe, batches, &self.trainer)?;
        let [fewest, most] = MEASURED_BATCHES;
        let (mut begun, mut images, mut done) = (Instant::now(), 0, 0);
        let mut seconds = 0.0;
        'measured: for epoch in 0.. {
            let mut of_epoch = training.epoch_from(epoch, 0);
            let mut number = 0;
            while let Some(batch) = of_epoch.next_batch() {
                let batch = batch?;
                self.options.check_interruption("stopped before the run began")?;
                steps.train(&mut self.trainer, 0, number, &batch)?;
                number += 1;
                steps.end(&mut self.trainer, number)?;
                match done {
                    0 => begun = Instant::now(),
                    _ => images += batch.targets.len() + batch.skipped.len(),
                }
                done += 1;
                seconds = begun.elapsed().as_secs_f64();
                if done > most || (done > fewest && seconds > MEASURED * budget.as_secs_f64()) {
                    break 'measured;
                }
            }
        }
        let training = seconds / images.max(1) as f64;
        self.trainer.set_state(&before)?;

        let mut seconds = 0.0;
        // The first time, memory is prepared.
        for _ in 0..2 {
            let begun = Instant::now();
            evaluate(self.trainer.network_mut(), &mut choosing, self.recipe.testing(), |_| Ok(()))?;
            seconds = begun.elapsed().as_secs_f64();
        }
        Ok(Speed { training, testing: seconds / tested as f64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGES: Images = Images { training: 100, choosing: 20, test: 10 };
    const SPEED: Speed = Speed { training: 0.3, testing: 0.1 };

    #[test]
    fn as_many_epochs_as_fit() {
        let recipe = Recipe { epochs: 7, ..Recipe::fine_tuning() };
        // An epoch takes 30 s and its test 2 s; the test at the end takes 1 s.
        let epochs = |seconds| shortened(&recipe, &IMAGES, SPEED, seconds).map(|recipe| recipe.epochs);
        for (seconds, expected) in [(32.9, None), (33.1, Some(1)), (64.9, Some(1)), (65.1, Some(2)), (1e9, Some(7))] {
            assert_eq!(epochs(seconds), expected, "{seconds} s");
        }
        assert_eq!(epochs(-5.0), None);
        let averaged = Recipe { ema: Some(0.9), ..recipe };
        assert_eq!(shortened(&averaged, &IMAGES, SPEED, 33.1), None, "10 s more, for the statistics of the average");
    }

    #[test]
    fn trials_take_part_of_the_time_and_without_time_only_the_final_layer_is_fitted() {
        let recipe =
            Recipe { epochs: 4, fit_head: true, try_learning_rates: vec![1e-4, 1e-3], ..Recipe::fine_tuning() };
        // Features of images and their mirror images, and their test: 22 s. Each epoch: 30 s, two of 24 s in trials, and 2 s.
        let of = |seconds| shortened(&recipe, &IMAGES, SPEED, seconds).unwrap();
        assert_eq!(of(23.0 + 80.1).epochs, 1);
        assert_eq!(of(23.0 + 159.9).epochs, 1);
        assert_eq!(of(23.0 + 160.1), Recipe { epochs: 2, ..recipe.clone() });
        assert_eq!(of(23.0 + 79.9), Recipe { epochs: 0, try_learning_rates: Vec::new(), ..recipe.clone() });
        assert_eq!(of(0.0).epochs, 0);
    }
}
