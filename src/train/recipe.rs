//! How a network is trained: everything that decides the result, and nothing else.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::class_weights::ClassWeights;
use super::evaluate::Testing;
use super::trainer::{LossSettings, Trainable};
use crate::data::{
    Augmentation, DecodeOptions, ImageFolder, Mixing, Mode, ResizeMode, Splits, Transform, counted, open_dataset,
    open_table,
};
use crate::device::Mixture;
use crate::error::{Error, Result};
use crate::model::{Architecture, Freezing};
use crate::ops::LossReduction;
use crate::optim::{Grouping, OPTIMIZERS, OptimizerKind, OptimizerSettings, SCHEDULES, Schedule, ScheduleKind, WarmUp};

/// The settings of a training run. Two runs of the same recipe on the same images and device give the same bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The name of an [`Architecture`].
    pub architecture: String,
    /// Channels of the first stage.
    pub width: usize,
    /// Whether the network starts from random instead of pretrained weights.
    pub from_scratch: bool,
    /// Passes over the training images.
    pub epochs: usize,
    /// The fewest steps of the run. When it begins, `epochs` becomes the fewest epochs that have as many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Batch size.
    pub batch_size: usize,
    /// Batches whose gradients are added to those of one step.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub accumulate: usize,
    /// Whether the images of an epoch are drawn at random, so that every class is equally likely.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub balanced_sampling: bool,
    /// Learning rate of all layers but the head.
    pub learning_rate: f64,
    /// Learning rate of the head, as a multiple of the other.
    pub head_lr_multiplier: f64,
    /// The learning rate of each of the stem, `layer1`, `layer2` and `layer3`, as a multiple of that of the stage above it.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub layer_lr_decay: f64,
    /// The name of a schedule of [`crate::optim::SCHEDULES`].
    #[serde(default = "default_schedule", skip_serializing_if = "is_default_schedule")]
    pub schedule: String,
    /// The steps over which the learning rate rises; without it, the schedule has its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,
    /// The epoch after which the schedule begins. It is not 0 if a finished run was extended.
    #[serde(default, skip_serializing_if = "is_default")]
    pub schedule_from: usize,
    /// Epochs without a better model after which the run ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// Learning rates that are tried on held-back training images before the first epoch. The best of them takes the place of
    /// `learning_rate`; if none is better than the fitted head alone, there are no epochs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub try_learning_rates: Vec<f64>,
    /// Whether the model of the last epoch is saved instead of that of the best.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_last: bool,
    /// Whether validation images, if there are any, choose the epoch in spite of [`Recipe::keep_last`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub validation_chooses: bool,
    /// The decay of the moving average of the parameters, which is then the network that is evaluated and saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Weight decay, as the optimiser defines it.
    pub weight_decay: f64,
    /// Whether the weights and biases of batch norms and the biases of linear layers have no weight decay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_decay_norm_bias: bool,
    /// The name of an optimiser of [`crate::optim::OPTIMIZERS`].
    #[serde(default = "default_optimizer", skip_serializing_if = "is_default_optimizer")]
    pub optimizer: String,
    /// The optimiser's hyperparameters. One that is missing has its default.
    #[serde(flatten)]
    pub hyperparameters: Hyperparameters,
    /// `sum` or `mean`.
    pub loss_reduction: String,
    /// The share of the loss that is spread evenly over all classes, from 0 to 1.
    #[serde(default, skip_serializing_if = "is_default")]
    pub label_smoothing: f64,
    /// The weights of the classes in the loss; all 1 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<ClassWeights>,
    /// The parameter of mixup, `alpha` of [`Mixing::mixup`]; without it, there is no mixup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup: Option<f64>,
    /// The parameter of CutMix, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cutmix: Option<f64>,
    /// The largest norm that the gradients of all parameters together may have; larger ones are clipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_gradient_norm: Option<f64>,
    /// Frozen modules.
    pub freeze: Vec<String>,
    /// Whether frozen batch norms use their running statistics.
    pub freeze_batch_norm: bool,
    /// Rows of the old head that the new one starts with.
    pub head_from: Option<Vec<usize>>,
    /// Whether the head starts at random even if the weights have one for the same classes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_head: bool,
    /// Whether the head is fitted to features of the training images before the first epoch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fit_head: bool,
    /// Randomly augmented copies of each image to whose features the head is fitted, besides the image as it is and, if training mirrors
    /// images, its mirror image.
    #[serde(default, skip_serializing_if = "is_default")]
    pub feature_copies: usize,
    /// Height and width of the network's input.
    pub image_size: usize,
    /// Height and width of training images, if they are not those of the network's input in tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_size: Option<usize>,
    /// How images become squares.
    #[serde(default, skip_serializing_if = "ResizeMode::is_default")]
    pub resize: ResizeMode,
    /// Whether tests and predictions average the outputs for an image and for its mirror image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub average_mirror: bool,
    /// Whether the outputs of the saved model are divided by a temperature, which is fitted to images that are not trained on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub calibrate: bool,
    /// Whether images are rotated and mirrored according to their EXIF orientation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exif: bool,
    /// Whether images that the data set contains more than once are left out; see [`super::DataCheck`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drop_duplicates: bool,
    /// Augmentations besides those that every run has, or in the place of one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub augment: Vec<Augmentation>,
    /// Fraction of each class that is held out for testing, where the data set has no test folder.
    pub test_fraction: Option<f64>,
    /// The CSV file with the labels of the images, as an absolute path; none where folders are the classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
    /// Seed of the order of images, their augmentation and new parameters.
    pub seed: u64,
}

/// Values by the names of hyperparameters. It reads all fields that a recipe does not know, and refuses those that are not
/// numbers; [`Recipe::optimizer`] refuses unknown names.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Hyperparameters(pub BTreeMap<String, f64>);

impl<'de> Deserialize<'de> for Hyperparameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = BTreeMap::<String, serde_json::Value>::deserialize(deserializer)?;
        let number = |(name, value): (String, serde_json::Value)| match value.as_f64() {
            Some(number) => Ok((name, number)),
            None => Err(D::Error::custom(format!("unknown field `{name}`"))),
        };
        Ok(Self(fields.into_iter().map(number).collect::<Result<_, _>>()?))
    }
}

impl<const N: usize> From<[(&str, f64); N]> for Hyperparameters {
    fn from(values: [(&str, f64); N]) -> Self {
        Self(values.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
    }
}

fn default_optimizer() -> String {
    OPTIMIZERS[0].name.into()
}

fn is_default_optimizer(name: &String) -> bool {
    *name == OPTIMIZERS[0].name
}

fn default_schedule() -> String {
    SCHEDULES[0].name.into()
}

fn is_default_schedule(name: &String) -> bool {
    *name == SCHEDULES[0].name
}

fn one<T: From<u8>>() -> T {
    T::from(1)
}

fn is_one<T: From<u8> + PartialEq>(number: &T) -> bool {
    *number == T::from(1)
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Rows and columns of the largest images that a model may ask for.
pub const LARGEST_IMAGE_SIZE: usize = 65536;
/// Height and width of the smallest images that a network is trained on; a ResNet halves them five times.
pub const SMALLEST_IMAGE_SIZE: usize = 8;
/// Channels of the widest first stage; sizes of larger networks could overflow.
pub const LARGEST_WIDTH: usize = 4096;

/// One part in this many of the training images is held back while learning rates are tried.
pub const HELD_BACK_PARTS: usize = 5;

impl Recipe {
    /// That of the fine-tuning chapter of Dive into Deep Learning: 5 epochs, batch size 128, summed loss, ten times the
    /// learning rate for the head.
    pub fn fine_tuning() -> Self {
        Self {
            architecture: Architecture::default().to_string(),
            width: 64,
            from_scratch: false,
            epochs: 5,
            batch_size: 128,
            accumulate: 1,
            balanced_sampling: false,
            learning_rate: 5e-5,
            head_lr_multiplier: 10.0,
            layer_lr_decay: 1.0,
            schedule: default_schedule(),
            warm_up: None,
            schedule_from: 0,
            patience: None,
            steps: None,
            try_learning_rates: Vec::new(),
            keep_last: false,
            validation_chooses: false,
            ema: None,
            weight_decay: 1e-3,
            no_decay_norm_bias: false,
            optimizer: default_optimizer(),
            hyperparameters: Hyperparameters(OPTIMIZERS[0].defaults()),
            loss_reduction: "sum".into(),
            label_smoothing: 0.0,
            class_weights: None,
            mixup: None,
            cutmix: None,
            clip_gradient_norm: None,
            freeze: Vec::new(),
            freeze_batch_norm: false,
            head_from: None,
            new_head: false,
            fit_head: false,
            feature_copies: 0,
            image_size: 224,
            train_size: None,
            resize: ResizeMode::default(),
            average_mirror: false,
            calibrate: false,
            exif: false,
            drop_duplicates: false,
            augment: Vec::new(),
            test_fraction: None,
            labels: None,
            seed: 0,
        }
    }

    /// Its comparison: random weights, ten times the learning rate, the same for all layers.
    pub fn from_scratch() -> Self {
        Self { from_scratch: true, learning_rate: 5e-4, head_lr_multiplier: 1.0, ..Self::fine_tuning() }
    }

    /// Opens the data set in `data`.
    ///
    /// # Errors
    /// Those of [`open_dataset`], or of [`open_table`] if labels are in a table.
    pub fn open_data(&self, data: &Path) -> Result<Splits> {
        let splits = match &self.labels {
            Some(table) => open_table(data, Path::new(table), self.test_fraction, self.seed),
            None => open_dataset(data, self.test_fraction, self.seed),
        };
        Ok(splits?.decoded_with(self.decoding()))
    }

    /// Whether a step ends with this batch of an epoch, counted from 1: the last step of an epoch may have fewer batches.
    pub fn ends_step(&self, batch: usize, batches: usize) -> bool {
        batch == batches || batch.is_multiple_of(self.accumulate)
    }

    /// Height and width of training images.
    pub fn training_size(&self) -> usize {
        self.train_size.unwrap_or(self.image_size)
    }

    /// Height and width of images in this mode.
    pub fn size_of(&self, mode: Mode) -> usize {
        match mode {
            Mode::Train { .. } => self.training_size(),
            Mode::Evaluate => self.image_size,
        }
    }

    /// How images are tested.
    pub fn testing(&self) -> Testing {
        Testing { image_size: self.image_size, average_mirror: self.average_mirror, threshold: None }
    }

    /// Whether training mirrors some images.
    pub fn mirrors(&self) -> bool {
        self.training_transform().mirrors()
    }

    /// How training images become the network's input.
    pub fn training_transform(&self) -> Transform {
        Transform::training(self.training_size() as u32, self.resize, &self.augment)
    }

    /// Forms of each image to whose features the head is fitted.
    pub fn features_per_image(&self) -> usize {
        1 + usize::from(self.mirrors()) + self.feature_copies
    }

    /// Whether the final model is judged by training images that are held back: those of trials, or of the fit of the head alone.
    pub fn holds_back(&self) -> bool {
        !self.try_learning_rates.is_empty() || self.fits_only()
    }

    /// About how many images all trials of learning rates train on, if the training set has `images`.
    pub fn images_of_trials(&self, images: usize) -> usize {
        let share = |images: usize| images - images / HELD_BACK_PARTS;
        self.try_learning_rates.len() * self.epochs * share(images)
    }

    /// What the head is fitted to, in words.
    pub fn fitted_to(&self) -> String {
        let mirror = self.mirrors().then(|| "its mirror image".to_string());
        let copies =
            (self.feature_copies > 0).then(|| counted(self.feature_copies, "augmented copy", "augmented copies"));
        let forms: Vec<String> = ["each training image".to_string()].into_iter().chain(mirror).chain(copies).collect();
        match forms.split_last() {
            Some((last, others @ [_, ..])) => format!("{} and {last}", others.join(", ")),
            _ => forms.concat(),
        }
    }

    /// How images are read.
    pub fn decoding(&self) -> DecodeOptions {
        DecodeOptions::with_exif(self.exif)
    }

    /// The loss reduction.
    pub fn reduction(&self) -> Result<LossReduction> {
        match self.loss_reduction.as_str() {
            "sum" => Ok(LossReduction::Sum),
            "mean" => Ok(LossReduction::Mean),
            other => Err(Error::usage(format!("loss reduction {other}: expected sum or mean"))),
        }
    }

    /// The optimiser with its settings.
    ///
    /// # Errors
    /// When there is no such optimiser, it has no such hyperparameter, or a value is out of range.
    pub fn optimizer(&self) -> Result<OptimizerSettings> {
        OptimizerSettings::new(OptimizerKind::find(&self.optimizer)?, &self.hyperparameters.0)
    }

    /// The value of a hyperparameter, if the optimiser has it.
    pub fn hyperparameter(&self, name: &str) -> Option<f64> {
        let of_optimizer = || OptimizerKind::find(&self.optimizer).ok()?.defaults().get(name).copied();
        self.hyperparameters.0.get(name).copied().or_else(of_optimizer)
    }

    /// Steps in an epoch of this many batches.
    pub fn steps_of(&self, batches: usize) -> usize {
        batches.div_ceil(self.accumulate)
    }

    /// Whether the final layer is fitted and nothing else is trained.
    pub fn fits_only(&self) -> bool {
        self.fit_head && self.epochs == 0
    }

    /// Whether no images choose the epoch whose model is saved, in a run with or without validation images.
    pub fn keeps_last(&self, has_validation: bool) -> bool {
        self.keep_last && !(self.validation_chooses && has_validation)
    }

    /// Whether the network sees images that are changed at random.
    pub fn augments(&self) -> bool {
        !self.fits_only() || self.feature_copies > 0
    }

    /// The same for this many training images: if the steps are given, with the fewest epochs that have as many.
    pub fn for_images(self, images: usize) -> Self {
        let of_epoch = self.steps_of(images.div_ceil(self.batch_size)).max(1);
        Self { epochs: self.steps.map_or(self.epochs, |steps| steps.div_ceil(of_epoch)), ..self }
    }

    /// The schedule of the epochs from [`Recipe::schedule_from`] on, with this many steps in each.
    ///
    /// # Errors
    /// When there is no such schedule, or its warm-up does not end before the run.
    pub fn schedule(&self, steps_per_epoch: usize) -> Result<Schedule> {
        let epochs = self.epochs.saturating_sub(self.schedule_from);
        Schedule::new(ScheduleKind::find(&self.schedule)?, self.warm_up, epochs.saturating_mul(steps_per_epoch) as u64)
    }

    /// Whether the training loss is the cross entropy of single images, as that of the evaluation.
    pub fn trains_on_plain_loss(&self) -> bool {
        self.mixing().is_none() && self.class_weights.is_none() && self.label_smoothing == 0.0
    }

    /// The settings of mixup and CutMix, if there are any.
    pub fn mixing(&self) -> Option<Mixing> {
        let Self { mixup, cutmix, .. } = *self;
        (mixup.is_some() || cutmix.is_some()).then_some(Mixing { mixup, cutmix })
    }

    /// What is done to the images of a training batch, if any are mixed. Epochs and batches are counted from 0.
    pub fn mixture(&self, epoch: usize, batch: usize, images: usize) -> Option<Mixture> {
        let draw = |of: Mixing| of.draw(self.seed, epoch as u64, batch as u64, images, self.training_size());
        self.mixing().map(draw)
    }

    /// The weights of the classes of these training images, if they have any.
    ///
    /// # Errors
    /// Those of [`ClassWeights::of`].
    pub fn class_weights_for(&self, train: &ImageFolder) -> Result<Option<Vec<f64>>> {
        self.class_weights.as_ref().map(|weights| weights.of(train)).transpose()
    }

    /// The learning rates and weight decays of the groups of parameters.
    pub fn grouping(&self) -> Grouping {
        Grouping {
            learning_rate: self.learning_rate,
            head_learning_rate: self.learning_rate * self.head_lr_multiplier,
            layer_decay: self.layer_lr_decay,
            weight_decay: self.weight_decay,
            no_decay_norm_bias: self.no_decay_norm_bias,
        }
    }

    /// The settings of the network's parameters, and of the loss with these weights of the classes.
    pub fn trainable(&self, class_weights: Option<Vec<f64>>) -> Result<Trainable> {
        Ok(Trainable {
            freezing: Freezing { modules: self.freeze.clone(), batch_norm: self.freeze_batch_norm },
            optimizer: self.optimizer()?,
            grouping: self.grouping(),
            ema: self.ema,
            loss: LossSettings {
                reduction: self.reduction()?,
                label_smoothing: self.label_smoothing,
                class_weights,
                mixes: self.mixing().is_some(),
            },
            accumulates: self.accumulate > 1,
            max_gradient_norm: self.clip_gradient_norm.map(|norm| norm as f32),
        })
    }
}
