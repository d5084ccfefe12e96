//! Fits the head to features of the training images: cross-validation chooses the penalty, then all images are used.

use super::evaluate::Prediction;
use super::features::Features;
use super::logistic::{Examples, LinearLayer, Regression};
use super::metrics::TriedPenalty;
use crate::data::random::{Purpose, RandomStream};

/// The penalties that are tried, the strongest first, so that each fit begins at the end of a smoother one.
const PENALTIES: [f64; 7] = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001];

/// Parts of the images in cross-validation.
const FOLDS: usize = 5;

/// With more numbers than this in all features times classes, one part is held out instead of each in turn.
const MANY: usize = 200_000_000;

/// The maximum number of predictions of held-out images that are kept.
const KEPT_PREDICTIONS: usize = 2000;

/// A fitted head.
#[derive(Debug, Clone)]
pub struct HeadFit {
    /// The head.
    pub layer: LinearLayer,
    /// The penalty that was chosen: that with the smallest loss on held-out images.
    pub penalty: f64,
    /// All that were tried.
    pub tried: Vec<TriedPenalty>,
    /// Mean loss of the images as they are, not augmented, with the weights of the classes.
    pub loss: f64,
    /// Share of these images that it classifies correctly.
    pub accuracy: f64,
    /// Predictions of images that were held out, with the penalty that was chosen.
    pub held_out: Vec<Prediction>,
}

/// Features of the training images: as they are, and as augmented.
pub struct TrainingFeatures {
    /// Features of an image.
    pub dimension: usize,
    /// The weight of each class.
    pub class_weights: Vec<f64>,
    /// Of the images as they are.
    pub plain: Features,
    /// Of augmented copies; each has the same images in another order.
    pub copies: Vec<Features>,
    /// Whether the outputs for an image and for its mirror image, which is then the first of the copies, are averaged.
    pub average_mirror: bool,
    /// For each image of the data set, the group of images that look the same. All of a group are held out together.
    pub groups: Vec<usize>,
}

/// Fits the head. `step` is called before each fit with its number and their number, and ends the work with its error.
pub fn fit_head<E>(
    training: &TrainingFeatures,
    seed: u64,
    mut step: impl FnMut(usize, usize) -> Result<(), E>,
) -> Result<HeadFit, E> {
    let folds = training.folds(seed);
    let rows = training.plain.indices.len() * (1 + training.copies.len());
    let held_out: Vec<usize> = match rows * training.dimension * training.class_weights.len() > MANY {
        true => vec![0],
        false => (0..FOLDS).collect(),
    };
    let fits = held_out.len() * PENALTIES.len() + 1;
    let mut sums = [(0.0, 0.0, 0, 0); PENALTIES.len()];
    let mut predictions: [Vec<Prediction>; PENALTIES.len()] = Default::default();
    let all_tested = training.tested();
    for (round, &fold) in held_out.iter().enumerate() {
        let fitted = training.select(|index| folds[index] != fold);
        let tested = all_tested.select(training.dimension, |index| folds[index] == fold);
        if fitted.targets.is_empty() || tested.targets.is_empty() {
            continue;
        }
        let weights = training.weights_of(&fitted.targets);
        let examples = Examples { features: &fitted.values, targets: &fitted.targets, weights: &weights };
        let regression = Regression::new(examples, training.class_weights.len());
        let tested_weight: f64 = training.weights_of(&tested.targets).iter().sum();
        let mut point: Option<Vec<f64>> = None;
        for (number, (penalty, (loss, weight, correct, images))) in PENALTIES.iter().zip(&mut sums).enumerate() {
            step(round * PENALTIES.len() + number, fits)?;
            let fit = regression.fit(*penalty, point.as_deref());
            let (own_loss, own_correct) = fit.layer.evaluate(&tested.values, &tested.targets, &training.class_weights);
            *loss += own_loss;
            *weight += tested_weight;
            *correct += own_correct;
            *images += tested.targets.len();
            let room = KEPT_PREDICTIONS.saturating_sub(predictions[number].len());
            let of_fold = tested.indices.iter().zip(&tested.targets).zip(fit.layer.logits(&tested.values));
            predictions[number].extend(of_fold.take(room).map(|((&index, &target), logits)| {
                Prediction::new(index, target, logits.into_iter().map(|logit| logit as f32).collect())
            }));
            point = Some(fit.point);
        }
    }
    let tried: Vec<TriedPenalty> = PENALTIES
        .into_iter()
        .zip(sums)
        .filter(|(_, (.., images))| *images > 0)
        .map(|(penalty, (loss, weight, correct, images))| TriedPenalty {
            penalty,
            loss: loss / weight,
            accuracy: correct as f64 / images as f64,
        })
        .collect();
    let best = tried.iter().min_by(|a, b| a.loss.total_cmp(&b.loss));
    let penalty = best.map_or(PENALTIES[PENALTIES.len() / 2], |tried| tried.penalty);
    let chosen = PENALTIES.iter().position(|one| *one == penalty).unwrap_or(0);
    let held_out = std::mem::take(&mut predictions[chosen]);
    step(fits - 1, fits)?;
    let all = training.select(|_| true);
    let weights = training.weights_of(&all.targets);
    let examples = Examples { features: &all.values, targets: &all.targets, weights: &weights };
    let layer = Regression::new(examples, training.class_weights.len()).fit(penalty, None).layer;
    let Features { values, targets, .. } = &all_tested;
    let (loss, correct) = layer.evaluate(values, targets, &training.class_weights);
    let weight: f64 = training.weights_of(targets).iter().sum();
    Ok(HeadFit {
        layer,
        penalty,
        tried,
        loss: loss / weight,
        accuracy: correct as f64 / targets.len() as f64,
        held_out,
    })
}

impl TrainingFeatures {
    /// The features of images as tests see them.
    fn tested(&self) -> Features {
        let mut tested = self.plain.clone();
        if self.average_mirror
            && let Some(mirrored) = self.copies.first()
        {
            tested.values.iter_mut().zip(&mirrored.values).for_each(|(one, other)| *one = (*one + other) / 2.0);
        }
        tested
    }

    /// The weights of examples of these classes.
    fn weights_of(&self, targets: &[usize]) -> Vec<f64> {
        targets.iter().map(|&target| self.class_weights[target]).collect()
    }

    /// The part to which each image of the data set belongs: every class is divided evenly, and groups stay together.
    fn folds(&self, seed: u64) -> Vec<usize> {
        let mut of_group = vec![None; self.groups.len()];
        let mut groups_of_class: Vec<Vec<usize>> = vec![Vec::new(); self.class_weights.len()];
        for (&index, &target) in self.plain.indices.iter().zip(&self.plain.targets) {
            let group = self.groups[index];
            if of_group[group].is_none() {
                of_group[group] = Some(0);
                groups_of_class[target].push(group);
            }
        }
        // Classes follow one another, so that small ones do not all fill the same parts.
        let mut next = 0;
        for (class, groups) in groups_of_class.iter_mut().enumerate() {
            groups.sort_unstable();
            RandomStream::new(seed, Purpose::Folds, class as u64, 0).shuffle(groups);
            for &group in groups.iter() {
                of_group[group] = Some(next % FOLDS);
                next += 1;
            }
        }
        self.groups.iter().map(|&group| of_group[group].unwrap_or(0)).collect()
    }

    /// Those of some images, chosen by their index.
    pub fn part(&self, wanted: impl Fn(usize) -> bool) -> Self {
        let select = |features: &Features| features.select(self.dimension, &wanted);
        let (plain, copies) = (select(&self.plain), self.copies.iter().map(select).collect());
        Self { plain, copies, groups: self.groups.clone(), class_weights: self.class_weights.clone(), ..*self }
    }

    /// The features of some images and of their copies.
    fn select(&self, wanted: impl Fn(usize) -> bool) -> Features {
        let mut selected = self.plain.select(self.dimension, &wanted);
        for copy in &self.copies {
            selected.extend(copy.select(self.dimension, &wanted));
        }
        selected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two features that tell the class, with noise, and two that are noise.
    fn training(images: usize, groups: Vec<usize>) -> TrainingFeatures {
        let mut random = RandomStream::new(3, Purpose::Drawing, 0, 0);
        let targets: Vec<usize> = (0..images).map(|image| image % 3).collect();
        let mut values = Vec::new();
        for &target in &targets {
            let mut noise = || random.uniform(-1.0, 1.0) as f32;
            values.extend([noise() + target as f32, noise() - target as f32, 5.0 * noise(), 5.0 * noise()]);
        }
        let plain = Features { values, targets, indices: (0..images).collect() };
        TrainingFeatures {
            dimension: 4,
            class_weights: vec![1.0; 3],
            plain,
            copies: Vec::new(),
            average_mirror: false,
            groups,
        }
    }

    fn fit(training: &TrainingFeatures) -> HeadFit {
        fit_head(training, 0, |_, _| Ok::<_, ()>(())).unwrap()
    }

    #[test]
    fn the_penalty_with_the_least_loss_on_held_out_images_is_chosen() {
        let found = fit(&training(90, (0..90).collect()));
        assert_eq!(found.tried.iter().map(|one| one.penalty).collect::<Vec<_>>(), PENALTIES);
        let least = found.tried.iter().map(|one| one.loss).fold(f64::INFINITY, f64::min);
        let chosen = found.tried.iter().find(|one| one.penalty == found.penalty).unwrap();
        assert_eq!(chosen.loss, least);
        assert!(found.loss < least && found.accuracy > 0.6 && chosen.accuracy > 0.5, "{found:?}");
        // All were held out once, so that the share is a multiple of 1/90.
        let correct = chosen.accuracy * 90.0;
        assert!((correct - correct.round()).abs() < 1e-9, "{correct}");
    }

    #[test]
    fn parts_have_equal_shares_of_every_class_and_keep_groups_together() {
        let groups = (0..100).map(|image| if image % 10 == 0 { 7 } else { image }).collect::<Vec<usize>>();
        let training = training(100, groups.clone());
        let folds = training.folds(5);
        assert_eq!(folds, training.folds(5));
        assert_ne!(folds, training.folds(6));
        assert!((0..100).step_by(10).all(|image| folds[image] == folds[7]), "{folds:?}");
        for class in 0..3 {
            let mut counts = [0; FOLDS];
            let alone = |image: &usize| image % 3 == class && !image.is_multiple_of(10) && *image != 7;
            (0..100).filter(alone).for_each(|image| counts[folds[image]] += 1);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 2, "{counts:?}");
        }
    }

    /// Otherwise an image would be held out while its copies are fitted, and features that say nothing would look good.
    #[test]
    fn copies_are_held_out_with_their_image() {
        let mut shares = Vec::new();
        for seed in 0..4 {
            let mut noise = training(30, (0..30).collect());
            let mut random = RandomStream::new(seed, Purpose::Drawing, 1, 0);
            noise.plain.values.iter_mut().for_each(|value| *value = random.uniform(-1.0, 1.0) as f32);
            noise.copies = vec![noise.plain.clone(); 3];
            let found = fit(&noise);
            shares.extend(found.tried.iter().map(|one| one.accuracy));
        }
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        assert!(mean < 0.5, "{mean}: {shares:?}");
    }

    #[test]
    fn one_image_a_class_is_enough_and_the_work_can_be_ended() {
        let few = training(3, vec![0, 1, 2]);
        assert_eq!(fit(&few).accuracy, 1.0);
        let mut steps = Vec::new();
        let ended = fit_head(&few, 0, |step, of| {
            steps.push((step, of));
            if step == 3 { Err("ended") } else { Ok(()) }
        });
        assert_eq!(ended.err(), Some("ended"));
        assert_eq!(steps, [(0, 36), (1, 36), (2, 36), (3, 36)]);
    }
}
