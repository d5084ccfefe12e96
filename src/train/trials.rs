//! Trials: runs on a part of the training images, which choose the learning rate by the rest.

use std::rc::Rc;
use std::sync::Arc;

use super::average::recompute_statistics;
use super::batch_steps::BatchSteps;
use super::checkpoint::Choice;
use super::evaluate::{Prediction, evaluate};
use super::metrics::Trial;
use super::recipe::{HELD_BACK_PARTS, Recipe};
use super::temperature::temperature;
use super::trainer::Trainer;
use crate::data::random::{Purpose, RandomStream};
use crate::data::{Batches, ImageFolder, ImageStore, InputBatch, Loader, LoaderOptions, Mode, SkippedSample};
use crate::error::{ErrorKind, Result};

/// The division of the training images for trials.
pub struct Division {
    /// For each image of the data set, whether it is held back.
    pub is_held_back: Vec<bool>,
}

impl Division {
    /// Holds back a fifth of each class of `folder`. All images of one of `groups` stay together: it has a number for each image.
    pub fn new(folder: &ImageFolder, groups: &[usize], seed: u64) -> Self {
        let mut of_group: Vec<Option<bool>> = vec![None; groups.len()];
        let mut groups_of_class: Vec<Vec<usize>> = vec![Vec::new(); folder.classes.len()];
        for (sample, &group) in folder.samples.iter().zip(groups) {
            if of_group[group].replace(false).is_none() {
                groups_of_class[sample.class].push(group);
            }
        }
        for (class, members) in groups_of_class.iter_mut().enumerate() {
            RandomStream::new(seed, Purpose::Trials, class as u64, 0).shuffle(members);
            // Of a class with few images, at least one, unless none would be left.
            let count = (members.len() as f64 / HELD_BACK_PARTS as f64).round().max(1.0) as usize;
            let count = count.min(members.len().saturating_sub(1));
            members[..count].iter().for_each(|&group| of_group[group] = Some(true));
        }
        Self { is_held_back: groups.iter().map(|&group| of_group[group] == Some(true)).collect() }
    }

    /// The images that are held back, or the others.
    fn part(&self, folder: &ImageFolder, held_back: bool) -> Arc<ImageFolder> {
        let samples = folder.samples.iter().zip(&self.is_held_back).filter(|(_, is)| **is == held_back);
        Arc::new(ImageFolder { samples: samples.map(|(sample, _)| sample.clone()).collect(), ..folder.clone() })
    }
}

/// Progress of the trials.
pub enum TrialEvent<'a> {
    /// A batch of a trial was trained on.
    Batch {
        /// Batches of all trials so far.
        batch: usize,
        /// Batches of all trials.
        of: usize,
    },
    /// Images could not be read.
    Skipped(&'a [SkippedSample]),
}

/// The outcome of the trials.
pub struct Trials {
    /// Number of held-back images.
    pub held_back: usize,
    /// Epochs of each trial.
    pub epochs: usize,
    /// The trials; that of the fitted head alone is the first.
    pub trials: Vec<Trial>,
    /// The predictions of each of them.
    predictions: Vec<Vec<Prediction>>,
}

impl Trials {
    /// The simplest network within the uncertainty of the best, as the one-standard-error rule has it (Breiman et al., "Classification and
    /// Regression Trees", 1984): the trial with the smallest loss of those whose loss is lower than the fitted head's alone by more than
    /// the standard error of the difference, or the fitted head alone.
    pub fn choice(&self) -> Choice {
        let rate = self.best().and_then(|best| self.trials[best].learning_rate);
        rate.map_or(Choice::FixedBody, Choice::LearningRate)
    }

    /// The temperature of the chosen trial's network.
    pub fn temperature(&self) -> Option<f64> {
        self.best().and_then(|best| temperature(&self.predictions[best]))
    }

    fn best(&self) -> Option<usize> {
        let alone = self.trials.first()?.loss;
        let is_better = |trial: &Trial| {
            trial
                .standard_error
                .zip(alone)
                .is_none_or(|(error, alone)| trial.loss.is_some_and(|loss| alone - loss > error))
        };
        let candidates = self.trials.iter().enumerate().filter(|(_, trial)| is_better(trial));
        let finite = candidates.filter_map(|(number, trial)| Some((number, trial.loss?)));
        finite.min_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(number, _)| number)
    }
}

/// Tries each of the recipe's learning rates, whose networks or averages of them are compared, starting from the state of `trainer`, whose head was fitted to the images that are not
/// held back. `trainer` is then as it was. `see` ends the work with its error.
///
/// # Errors
/// When `see` fails, or the device does.
pub fn try_learning_rates(
    trainer: &mut Trainer,
    recipe: &Recipe,
    folder: &ImageFolder,
    division: &Division,
    options: LoaderOptions,
    store: &Rc<ImageStore>,
    mut see: impl FnMut(TrialEvent) -> Result<()>,
) -> Result<Trials> {
    let loader = |held_back: bool, mode: Mode| {
        let loader = Loader::new(
            division.part(folder, held_back),
            LoaderOptions { mode, image_size: recipe.size_of(mode) as u32, ..options },
        )?;
        let loader = loader.with_augmentations(&recipe.augment);
        let is_balanced = recipe.balanced_sampling && !held_back;
        Batches::new(if is_balanced { loader.with_balanced_classes() } else { loader }, store)
    };
    let mut train_batches = loader(false, Mode::Train { seed: recipe.seed })?;
    let mut held_back_batches = loader(true, Mode::Evaluate)?;
    let epochs = recipe.epochs;
    let batches_of_epoch = train_batches.loader().batch_count();
    let steps = BatchSteps::new(&Recipe { schedule_from: 0, ..recipe.clone() }, batches_of_epoch, trainer)?;
    let of = recipe.try_learning_rates.len() * epochs * batches_of_epoch;

    let start = trainer.state()?;
    let alone = predictions(trainer, &mut held_back_batches, recipe, &mut see)?;
    let mut trials = vec![trial(None, Some(&alone), &alone, recipe.calibrate)];
    let mut all_predictions = vec![alone.clone()];
    for (number, &learning_rate) in recipe.try_learning_rates.iter().enumerate() {
        trainer.set_learning_rates(&Recipe { learning_rate, ..recipe.clone() }.grouping());
        let mut is_finite = true;
        'epochs: for epoch in 0..epochs {
            let mut batches = train_batches.epoch_from(epoch as u64, 0);
            let mut number_of_batch = 0;
            while let Some(batch) = batches.next_batch() {
                let batch = batch?;
                see(TrialEvent::Skipped(&batch.skipped))?;
                let result = steps.train(trainer, epoch, number_of_batch, &batch)?;
                number_of_batch += 1;
                is_finite = result.is_none_or(|result| result.loss.is_finite())
                    && steps.end(trainer, number_of_batch)?.is_none_or(f32::is_finite);
                let batches_before = (number * epochs + epoch) * batches_of_epoch;
                see(TrialEvent::Batch { batch: batches_before + number_of_batch, of })?;
                if !is_finite {
                    break 'epochs;
                }
            }
        }
        if is_finite && trainer.start_average()?.is_some() {
            let (network, size) = (trainer.network_mut(), recipe.training_size());
            recompute_statistics(network, &mut train_batches, epochs as u64, size, |_, _| {
                see(TrialEvent::Skipped(&[]))
            })?;
        }
        let found = match is_finite {
            true => match predictions(trainer, &mut held_back_batches, recipe, &mut see) {
                Err(error) if error.kind() == ErrorKind::NotFinite => None,
                result => Some(result?),
            },
            false => None,
        };
        trials.push(trial(Some(learning_rate), found.as_deref(), &alone, recipe.calibrate));
        all_predictions.push(found.unwrap_or_default());
        trainer.set_state(&start)?;
    }
    Ok(Trials { held_back: alone.len(), epochs, trials, predictions: all_predictions })
}

/// The predictions for the held-back images.
fn predictions(
    trainer: &mut Trainer,
    batches: &mut Batches,
    recipe: &Recipe,
    see: &mut impl FnMut(TrialEvent) -> Result<()>,
) -> Result<Vec<Prediction>> {
    let visit = |batch: &InputBatch| see(TrialEvent::Skipped(&batch.skipped));
    Ok(evaluate(trainer.network_mut(), batches, recipe.testing(), visit)?.1)
}

/// The outcome of one trial; `found` is none if its numbers were no longer finite. If the model is to be calibrated, the loss is that with
/// its temperature: a network that is right more often is not refused because it is too certain, which the temperature mends.
fn trial(learning_rate: Option<f64>, found: Option<&[Prediction]>, alone: &[Prediction], is_calibrated: bool) -> Trial {
    let is_correct = |prediction: &Prediction| prediction.class() == prediction.target;
    let found = found.unwrap_or_default();
    let images = found.len().max(1) as f64;
    let losses = |of: &[Prediction]| -> Vec<f64> {
        let temperature = temperature(of).filter(|_| is_calibrated).unwrap_or(1.0);
        of.iter().map(|one| one.divided_by(temperature).loss()).collect()
    };
    let (losses, losses_alone) = (losses(found), losses(alone));
    let loss = losses.iter().sum::<f64>() / images;
    let differences: Vec<f64> = losses.iter().zip(&losses_alone).map(|(one, other)| one - other).collect();
    let is_compared = learning_rate.is_some() && !found.is_empty();
    let pairs = || found.iter().map(is_correct).zip(alone.iter().map(is_correct));
    Trial {
        learning_rate,
        loss: (!found.is_empty()).then_some(loss),
        standard_error: is_compared.then(|| standard_error(&differences)),
        accuracy: found.iter().filter(|one| is_correct(one)).count() as f64 / images,
        gained: pairs().filter(|pair| *pair == (true, false)).count(),
        lost: pairs().filter(|pair| *pair == (false, true)).count(),
    }
}

/// The standard error of the mean of `values`; infinite for fewer than two, which say nothing of how much they vary.
fn standard_error(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    if values.len() < 2 {
        return f64::INFINITY;
    }
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (count - 1.0) / count).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DecodeOptions, Sample};

    fn folder(classes: &[usize]) -> ImageFolder {
        let files = (0..classes.len()).map(|number| format!("{number}.png").into()).collect();
        let names = (0..3).map(|class| class.to_string()).collect();
        let mut folder = ImageFolder::unlabelled(files, names, DecodeOptions::default());
        for (sample, &class) in folder.samples.iter_mut().zip(classes) {
            *sample = Sample { class, ..sample.clone() };
        }
        folder
    }

    #[test]
    fn a_fifth_of_each_class_is_held_back_and_copies_stay_together() {
        let classes: Vec<usize> =
            (0..72).map(|image| if image < 50 { 0 } else { 1 + usize::from(image > 69) }).collect();
        let mut groups: Vec<usize> = (0..72).collect();
        for copy in [3, 4, 5, 6] {
            groups[copy] = 3;
        }
        let folder = folder(&classes);
        let mut held_back_at_all = [0; 72];
        for seed in 0..40 {
            let division = Division::new(&folder, &groups, seed);
            assert_eq!(division.is_held_back, Division::new(&folder, &groups, seed).is_held_back);
            assert!([4, 5, 6].iter().all(|&copy| division.is_held_back[copy] == division.is_held_back[3]));
            let count = |class: usize| {
                let of_class = division.is_held_back.iter().zip(&classes).filter(|(_, of)| **of == class);
                of_class.filter(|(held_back, _)| **held_back).count()
            };
            // 47 groups of 50 images, 20 images, and 2.
            assert!([9, 12].contains(&count(0)) || division.is_held_back[3], "{}", count(0));
            assert_eq!((count(1), count(2)), (4, 1));
            let [training, held_back] = [false, true].map(|which| division.part(&folder, which));
            assert_eq!(training.len() + held_back.len(), 72);
            assert!(training.class_counts().iter().all(|&count| count > 0));
            division.is_held_back.iter().zip(&mut held_back_at_all).for_each(|(is, count)| *count += usize::from(*is));
        }
        assert!(held_back_at_all.iter().all(|&count| count > 0), "{held_back_at_all:?}");
    }

    #[test]
    fn the_smallest_loss_is_chosen_and_the_fixed_body_if_none_is_smaller_by_more_than_its_standard_error() {
        let with_error = |learning_rate: Option<f64>, loss, error| {
            let standard_error = learning_rate.and(Some(error));
            Trial { learning_rate, loss, standard_error, accuracy: 0.5, gained: 0, lost: 0 }
        };
        let one = |learning_rate, loss| with_error(learning_rate, loss, 0.01);
        let choice = |trials: &[Trial]| {
            Trials { held_back: 10, epochs: 1, trials: trials.to_vec(), predictions: Vec::new() }.choice()
        };
        let alone = one(None, Some(0.5));
        assert_eq!(
            choice(&[alone, one(Some(1e-3), Some(0.4)), one(Some(1e-2), Some(0.45))]),
            Choice::LearningRate(1e-3)
        );
        assert_eq!(choice(&[alone, one(Some(1e-3), Some(0.5)), one(Some(1e-2), None)]), Choice::FixedBody);
        assert_eq!(choice(&[one(None, None), one(Some(1e-2), None)]), Choice::FixedBody);
        assert_eq!(choice(&[one(None, None), one(Some(1e-2), Some(0.6))]), Choice::LearningRate(1e-2));
        let uncertain = with_error(Some(1e-3), Some(0.4), 0.11);
        assert_eq!(choice(&[alone, uncertain]), Choice::FixedBody);
        assert_eq!(choice(&[alone, uncertain, one(Some(1e-2), Some(0.45))]), Choice::LearningRate(1e-2));
        assert_eq!(choice(&[alone, with_error(Some(1e-3), Some(0.4), 0.09)]), Choice::LearningRate(1e-3));
        assert_eq!(choice(&[alone, with_error(Some(1e-3), Some(0.4), f64::INFINITY)]), Choice::FixedBody);
    }

    #[test]
    fn the_standard_error_is_of_the_differences_of_the_same_images() {
        let prediction = |target, logit: f32| Prediction::new(0, target, vec![logit, 0.0]);
        let of = |logits: [f32; 4]| logits.map(|logit| prediction(0, logit)).to_vec();
        let (alone, found) = (of([0.0, 1.0, -1.0, 2.0]), of([0.5, 1.0, -2.0, 2.0]));
        let difference = |at: usize| found[at].loss() - alone[at].loss();
        let differences = [0, 1, 2, 3].map(difference);
        let mean = differences.iter().sum::<f64>() / 4.0;
        let variance = differences.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / 3.0;
        let error = trial(Some(1.0), Some(&found), &alone, false).standard_error.unwrap();
        assert!((error - (variance / 4.0).sqrt()).abs() < 1e-12, "{error}");
        // The loss of each varies far more than their differences, which are equal here.
        let equal = trial(Some(1.0), Some(&alone), &alone, false).standard_error.unwrap();
        assert_eq!(equal, 0.0);
        assert_eq!(trial(Some(1.0), Some(&found[..1]), &alone[..1], false).standard_error, Some(f64::INFINITY));
        assert_eq!(trial(None, Some(&alone), &alone, false).standard_error, None);
    }

    #[test]
    fn gains_and_losses_are_counted_against_the_fitted_head_alone() {
        let prediction =
            |target, class: usize| Prediction::new(0, target, (0..2).map(|k| f32::from(k == class)).collect());
        let alone = [prediction(0, 0), prediction(0, 1), prediction(1, 1), prediction(1, 0)];
        let found = [prediction(0, 1), prediction(0, 0), prediction(1, 1), prediction(1, 1)];
        let trial = trial(Some(1.0), Some(&found), &alone, false);
        assert_eq!((trial.accuracy, trial.gained, trial.lost), (0.75, 2, 1));
        assert_eq!(super::trial(Some(1.0), None, &alone, true).loss, None);
    }

    #[test]
    fn certainty_alone_does_not_decide_between_calibrated_models() {
        // Both classify three of four images correctly; one says so ten times as strongly.
        let of = |scale: f32| {
            let prediction = |index| Prediction::new(index, usize::from(index == 3), vec![scale, 0.0]);
            (0..4).map(prediction).collect::<Vec<_>>()
        };
        let (cautious, certain) = (of(1.0), of(10.0));
        let loss = |of: &[Prediction], is_calibrated| trial(None, Some(of), of, is_calibrated).loss.unwrap();
        assert!(loss(&certain, false) > 2.0 * loss(&cautious, false));
        assert!((loss(&certain, true) - loss(&cautious, true)).abs() < 1e-6);
    }
}
