//! The flags of the recipe: what they are, how they change one, and which of them ask for one.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use crate::data::{Augmentation, ResizeMode};
use crate::error::Result;
use crate::model::Architecture;
use crate::optim::{Hyperparameter, OPTIMIZERS, OptimizerKind, SCHEDULES, WarmUp};
use crate::train::{ClassWeights, Hyperparameters, Recipe};

/// A flag for each field of the recipe; those that are not given leave the field as it is.
#[derive(Clone, clap::Args)]
pub struct RecipeArguments {
    /// Start from random weights; the default learning rate is then 5e-4 for all layers
    #[arg(long, help_heading = "Network options")]
    from_scratch: bool,

    /// Architecture of a network trained from scratch; otherwise the weights decide [default: resnet18]
    #[arg(long = "arch", value_name = "NAME", value_parser = architecture_names(), help_heading = "Network options")]
    architecture: Option<String>,

    /// Number of channels of the first stage of a network trained from scratch [default: 64]
    #[arg(long, value_name = "N", help_heading = "Network options")]
    width: Option<usize>,

    /// Number of passes over the training images [default: 5]
    #[arg(long, value_name = "N", help_heading = "Training options")]
    epochs: Option<usize>,

    /// Train for at least this many steps, in whole epochs, instead of a number of epochs
    #[arg(long, value_name = "N", conflicts_with = "epochs", help_heading = "Training options")]
    steps: Option<usize>,

    /// Batch size [default: 128]
    #[arg(long, value_name = "N", help_heading = "Training options")]
    batch_size: Option<usize>,

    /// Number of batches in a step: their gradients are added before the parameters are updated, as if the batch were as many times
    /// larger [default: 1]
    #[arg(long, value_name = "N", help_heading = "Training options")]
    accumulate: Option<usize>,

    /// Draw the images of each epoch at random, so that every class is equally likely
    #[arg(long, help_heading = "Training options")]
    balanced_sampling: bool,

    /// Learning rate of all layers but the final one; with --loss-reduction sum, it applies to the summed loss [default: 5e-5, or
    /// 5e-4 from scratch]
    #[arg(long = "lr", value_name = "RATE", help_heading = "Training options")]
    learning_rate: Option<f64>,

    /// Learning rate of the final layer, as a multiple of --lr [default: 10, or 1 from scratch]
    #[arg(long, value_name = "FACTOR", help_heading = "Training options")]
    head_lr_multiplier: Option<f64>,

    /// Learning rate of each of the stem, layer1, layer2 and layer3, as a multiple of that of the stage above it [default: 1]
    #[arg(long, value_name = "FACTOR", help_heading = "Training options")]
    layer_lr_decay: Option<f64>,

    /// Schedule of the learning rates [default: constant]
    #[arg(long, value_name = "NAME", value_parser = schedule_names(), help_heading = "Training options")]
    schedule: Option<String>,

    /// Steps over which the learning rates rise, as a number (50) or a share of all steps (10%) [default: 30% for one-cycle, 0
    /// otherwise]
    #[arg(long, value_name = "STEPS|PERCENT", help_heading = "Training options")]
    warm_up: Option<WarmUp>,

    /// End the run after this many epochs without a better model
    #[arg(long, value_name = "EPOCHS", help_heading = "Training options")]
    patience: Option<usize>,

    /// With --fit-head, try these learning rates on a fifth of the training images, which are held back for that, and train with the
    /// best of them; train no epoch if none is better than the fitted final layer alone
    #[arg(long = "try-lr", value_name = "RATES", value_delimiter = ',', help_heading = "Training options")]
    try_learning_rates: Option<Vec<f64>>,

    /// In tests and predictions, average the outputs for each image and for its mirror image, which takes twice the time
    #[arg(long, help_heading = "Training options")]
    average_mirror: bool,

    /// Divide the outputs of the saved model by a temperature, so that the probabilities agree with how often predictions are right; it
    /// is fitted to the validation images, or to training images that were held back by --fit-head or --try-lr
    #[arg(long, help_heading = "Training options")]
    calibrate: bool,

    /// Save the model of the last epoch, not that of the best epoch
    #[arg(long, help_heading = "Training options")]
    keep_last: bool,

    /// With --keep-last, let validation images choose the epoch all the same, if there are any
    #[arg(long, requires = "keep_last", help_heading = "Training options")]
    validation_chooses: bool,

    /// Evaluate and save an exponential moving average of the weights, with this decay such as 0.99, instead of the weights
    /// themselves [default: off]
    #[arg(long, value_name = "DECAY", help_heading = "Training options")]
    ema: Option<f64>,

    /// Weight decay, as the optimizer defines it [default: 1e-3]
    #[arg(long, value_name = "FACTOR", help_heading = "Training options")]
    weight_decay: Option<f64>,

    /// Optimizer [default: sgd]
    #[arg(long, value_name = "NAME", value_parser = optimizer_names(), help_heading = "Training options")]
    optimizer: Option<String>,

    #[command(flatten)]
    hyperparameters: HyperparameterArguments,

    /// Apply no weight decay to batch norms and biases
    #[arg(long, help_heading = "Training options")]
    no_decay_norm_bias: bool,

    /// Whether the loss of a batch is the sum or the mean of its images' losses [default: sum]
    #[arg(long, value_name = "HOW", value_parser = ["sum", "mean"], help_heading = "Training options")]
    loss_reduction: Option<String>,

    /// Share of the loss that is spread evenly over all classes, from 0 to 1, as in PyTorch [default: 0]
    #[arg(long, value_name = "SHARE", help_heading = "Training options")]
    label_smoothing: Option<f64>,

    /// Weights of the classes in the loss: balanced, for the same share of the loss for every class, or a number for each class in
    /// their order, e.g. 1,2.5 [default: 1 for each]
    #[arg(long, value_name = "WEIGHTS", help_heading = "Training options")]
    class_weights: Option<ClassWeights>,

    /// Mix each training image and its label with another one of its batch (mixup): the share of each image is drawn for each batch from
    /// Beta(ALPHA, ALPHA), e.g. 0.2 [default: off]
    #[arg(long, value_name = "ALPHA", help_heading = "Training options")]
    mixup: Option<f64>,

    /// Replace a rectangle of each training image with that of another one of its batch, and mix the labels by area (CutMix); the area is
    /// drawn as with --mixup, e.g. from 1. With --mixup too, each batch has one of them at random [default: off]
    #[arg(long, value_name = "ALPHA", help_heading = "Training options")]
    cutmix: Option<f64>,

    /// Clip the gradients of all parameters together to this norm [default: off]
    #[arg(long, value_name = "NORM", help_heading = "Training options")]
    clip_gradient_norm: Option<f64>,

    /// Modules to freeze, e.g. conv1,bn1,layer1
    #[arg(long, value_name = "MODULES", value_delimiter = ',', help_heading = "Network options")]
    freeze: Option<Vec<String>>,

    /// Frozen batch norms use their running statistics and do not update them
    #[arg(long, requires = "freeze", help_heading = "Network options")]
    freeze_batch_norm: bool,

    /// Initialise the final layer with these rows of the pretrained one, one per class in order, e.g. 934,713
    #[arg(long, value_name = "ROWS", value_delimiter = ',', help_heading = "Network options")]
    head_from: Option<Vec<usize>>,

    /// Start with a random final layer, even if the weights have one for the same classes
    #[arg(long, help_heading = "Network options")]
    new_head: bool,

    /// Before the first epoch, fit the final layer to the features of the training images and of their mirror images, with the other
    /// layers as they are; cross-validation chooses the penalty on its weights
    #[arg(long, help_heading = "Network options")]
    fit_head: bool,

    /// For --fit-head, the number of randomly augmented copies of each image whose features are used too [default: 0]
    #[arg(long, value_name = "N", help_heading = "Network options")]
    feature_copies: Option<usize>,

    /// Width and height of the images that the network sees [default: that of the weights, or 224]
    #[arg(long, value_name = "PIXELS", help_heading = "Image options")]
    image_size: Option<usize>,

    /// Width and height of training images, if they are to be smaller than --image-size: for example 176 for 224 takes 0.6 times the time
    /// [default: --image-size]
    #[arg(long, value_name = "PIXELS", help_heading = "Image options")]
    train_size: Option<usize>,

    /// How images become squares: crop uses the middle, or in training a random part; squash scales the whole image to a square; pad
    /// scales the longer side and pads the shorter one with black. With squash and pad, training crops the square at random [default:
    /// that of the weights, or crop]
    #[arg(long, value_name = "HOW", value_parser = resize_modes(), help_heading = "Image options")]
    resize: Option<ResizeMode>,

    /// Apply the EXIF orientation of images, which torchvision ignores
    #[arg(long, help_heading = "Image options")]
    exif: bool,

    /// Leave out images that DATA contains more than once, identical or nearly so; one of each is kept, or none if they are in
    /// several classes
    #[arg(long, help_heading = "Image options")]
    drop_duplicates: bool,

    #[arg(long, value_name = "NAME=VALUE", value_delimiter = ',', help_heading = "Image options",
          help = format!("Augmentations of the training images: {}", Augmentation::help()))]
    augment: Option<Vec<Augmentation>>,

    /// Fraction of each class to hold out for testing, if DATA has no test folder
    #[arg(long, value_name = "FRACTION", help_heading = "Image options")]
    test_fraction: Option<f64>,

    /// CSV file with the labels of the images in DATA, if they are not in class folders: its first line names the columns path and
    /// label
    #[arg(long, value_name = "FILE", value_parser = absolute, help_heading = "Image options")]
    labels: Option<String>,

    /// Seed of the order of images, augmentation and new parameters [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training options")]
    seed: Option<u64>,
}

/// The flags, each with the field that it sets in [`RecipeArguments`] and in [`Recipe`], except for the hyperparameters.
macro_rules! for_each_flag {
    ($visit:ident) => {
        $visit! {
            "--from-scratch" from_scratch,
            "--arch" architecture,
            "--width" width,
            "--image-size" image_size,
            "--train-size" train_size,
            "--resize" resize,
            "--epochs" epochs,
            "--steps" steps,
            "--batch-size" batch_size,
            "--accumulate" accumulate,
            "--balanced-sampling" balanced_sampling,
            "--lr" learning_rate,
            "--head-lr-multiplier" head_lr_multiplier,
            "--layer-lr-decay" layer_lr_decay,
            "--schedule" schedule,
            "--warm-up" warm_up,
            "--patience" patience,
            "--try-lr" try_learning_rates,
            "--keep-last" keep_last,
            "--validation-chooses" validation_chooses,
            "--ema" ema,
            "--average-mirror" average_mirror,
            "--calibrate" calibrate,
            "--weight-decay" weight_decay,
            "--no-decay-norm-bias" no_decay_norm_bias,
            "--loss-reduction" loss_reduction,
            "--label-smoothing" label_smoothing,
            "--class-weights" class_weights,
            "--mixup" mixup,
            "--cutmix" cutmix,
            "--clip-gradient-norm" clip_gradient_norm,
            "--freeze" freeze,
            "--freeze-batch-norm" freeze_batch_norm,
            "--head-from" head_from,
            "--new-head" new_head,
            "--fit-head" fit_head,
            "--feature-copies" feature_copies,
            "--augment" augment,
            "--exif" exif,
            "--drop-duplicates" drop_duplicates,
            "--test-fraction" test_fraction,
            "--labels" labels,
            "--seed" seed,
        }
    };
}

impl RecipeArguments {
    /// Whether the network starts from random weights.
    pub fn is_from_scratch(&self) -> bool {
        self.from_scratch
    }

    /// The architecture, if it is given.
    pub fn architecture(&self) -> Option<&str> {
        self.architecture.as_deref()
    }

    /// Channels of the first stage, if they are given.
    pub fn width(&self) -> Option<usize> {
        self.width
    }

    /// The learning rate, if it is given.
    pub fn learning_rate(&self) -> Option<f64> {
        self.learning_rate
    }

    /// The seed, if it is given.
    pub fn seed(&self) -> Option<u64> {
        self.seed
    }

    /// The flags that are given.
    pub fn given(&self) -> Vec<String> {
        let mut given = Vec::new();
        macro_rules! find {
            ($($flag:literal $field:ident),* $(,)?) => {$(
                if self.$field.is_given() {
                    given.push($flag.to_string());
                }
            )*};
        }
        for_each_flag!(find);
        given.extend(self.optimizer.iter().map(|_| "--optimizer".into()));
        given.extend(self.hyperparameters.0.iter().map(|(name, _)| format!("--{name}")));
        given
    }

    /// The same with the flags of `other`, where it has any.
    pub fn replaced_by(&self, other: &Self) -> Self {
        let mut replaced = self.clone();
        macro_rules! replace {
            ($($flag:literal $field:ident),* $(,)?) => {$(
                if other.$field.is_given() {
                    replaced.$field.clone_from(&other.$field);
                }
            )*};
        }
        for_each_flag!(replace);
        if other.optimizer.is_given() {
            replaced.optimizer.clone_from(&other.optimizer);
        }
        for &(name, value) in &other.hyperparameters.0 {
            replaced.hyperparameters.0.retain(|(known, _)| *known != name);
            replaced.hyperparameters.0.push((name, value));
        }
        replaced
    }

    /// A flag that is given and says how to train: not what the images are, and not the seed.
    pub fn given_for_training(&self) -> Option<String> {
        const OF_DATA: [&str; 10] = [
            "--train-size",
            "--average-mirror",
            "--image-size",
            "--resize",
            "--exif",
            "--drop-duplicates",
            "--test-fraction",
            "--labels",
            "--seed",
            "--augment",
        ];
        self.given().into_iter().find(|flag| !OF_DATA.contains(&flag.as_str()))
    }

    /// Puts every given flag into the recipe; `changed` is called with the name of each flag that makes a difference.
    pub fn overlay(&self, recipe: &mut Recipe, mut changed: impl FnMut(&str) -> Result<()>) -> Result<()> {
        if let Some(name) = self.optimizer.as_ref().filter(|name| **name != recipe.optimizer) {
            changed("--optimizer")?;
            recipe.hyperparameters = Hyperparameters(OptimizerKind::find(name)?.defaults());
            recipe.optimizer.clone_from(name);
        }
        for &(name, value) in &self.hyperparameters.0 {
            if recipe.hyperparameter(name) != Some(value) {
                changed(&format!("--{name}"))?;
                recipe.hyperparameters.0.insert(name.into(), value);
            }
        }
        let augment = self.augment.as_deref().map(Augmentation::besides_default);
        let given = Self { augment, ..self.clone() };
        macro_rules! put {
            ($($flag:literal $field:ident),* $(,)?) => {$(
                if given.$field.differs_from(&recipe.$field) {
                    changed($flag)?;
                    given.$field.put(&mut recipe.$field);
                }
            )*};
        }
        for_each_flag!(put);
        if self.epochs.is_some() {
            recipe.steps = None;
        }
        for value in [&mut recipe.mixup, &mut recipe.cutmix, &mut recipe.ema, &mut recipe.clip_gradient_norm] {
            // Zero turns it off.
            *value = value.filter(|value| *value != 0.0);
        }
        Ok(())
    }
}

/// The flags that make `recipe` of `base`.
pub fn recipe_words(recipe: &Recipe, base: &Recipe) -> Vec<String> {
    let mut words = Vec::new();
    macro_rules! add {
        ($($flag:literal $field:ident),* $(,)?) => {$(
            let is_replaced = $flag == "--epochs" && recipe.steps.is_some();
            // Whether it is from scratch decides the base.
            if (recipe.$field != base.$field && !is_replaced) || ($flag == "--from-scratch" && recipe.from_scratch) {
                words.push($flag.to_string());
                words.extend(recipe.$field.value());
            }
        )*};
    }
    for_each_flag!(add);
    if recipe.optimizer != base.optimizer {
        words.extend(["--optimizer".into(), recipe.optimizer.clone()]);
    }
    let defaults = OptimizerKind::find(&recipe.optimizer).map(OptimizerKind::defaults).unwrap_or_default();
    for (name, value) in &recipe.hyperparameters.0 {
        if defaults.get(name) != Some(value) {
            words.extend([format!("--{name}"), value.to_string()]);
        }
    }
    words
}

/// Whether a flag is given.
trait IsGiven {
    fn is_given(&self) -> bool;
}

impl IsGiven for bool {
    fn is_given(&self) -> bool {
        *self
    }
}

impl<T> IsGiven for Option<T> {
    fn is_given(&self) -> bool {
        self.is_some()
    }
}

/// What a flag may give for a field of type `T`.
trait Given<T> {
    /// Whether it gives another value than this.
    fn differs_from(&self, field: &T) -> bool;

    /// Sets the field if it gives a value.
    fn put(&self, field: &mut T);
}

impl Given<bool> for bool {
    fn differs_from(&self, field: &bool) -> bool {
        *self && !field
    }

    fn put(&self, field: &mut bool) {
        *field |= self;
    }
}

impl<T: Clone + PartialEq> Given<T> for Option<T> {
    fn differs_from(&self, field: &T) -> bool {
        self.as_ref().is_some_and(|given| given != field)
    }

    fn put(&self, field: &mut T) {
        if let Some(given) = self {
            field.clone_from(given);
        }
    }
}

impl<T: Clone + PartialEq> Given<Option<T>> for Option<T> {
    fn differs_from(&self, field: &Option<T>) -> bool {
        self.is_some() && self != field
    }

    fn put(&self, field: &mut Option<T>) {
        field.clone_from(self);
    }
}

/// A field of the recipe as the value of its flag.
trait Value {
    /// None for a flag without a value.
    fn value(&self) -> Option<String>;
}

impl Value for bool {
    fn value(&self) -> Option<String> {
        None
    }
}

macro_rules! displayed {
    ($($type:ty),*) => {$(
        impl Value for $type {
            fn value(&self) -> Option<String> {
                Some(self.to_string())
            }
        }
    )*};
}

displayed! { String, usize, u64, f64, Augmentation, ClassWeights, ResizeMode, WarmUp }

impl<T: Value> Value for Option<T> {
    fn value(&self) -> Option<String> {
        self.as_ref().and_then(T::value)
    }
}

impl<T: Value> Value for Vec<T> {
    fn value(&self) -> Option<String> {
        Some(self.iter().filter_map(T::value).collect::<Vec<_>>().join(","))
    }
}

/// A flag for each hyperparameter of the optimisers: names and values of those that are given.
#[derive(Clone, Default)]
struct HyperparameterArguments(Vec<(&'static str, f64)>);

/// All hyperparameters, in the order of the optimisers: each with those that have it.
fn hyperparameters() -> Vec<(&'static str, Vec<(&'static OptimizerKind, &'static Hyperparameter)>)> {
    let mut all: Vec<(&str, Vec<_>)> = Vec::new();
    for kind in OPTIMIZERS {
        for of in kind.hyperparameters {
            match all.iter_mut().find(|(name, _)| *name == of.name) {
                Some((_, kinds)) => kinds.push((kind, of)),
                None => all.push((of.name, vec![(kind, of)])),
            }
        }
    }
    all
}

impl clap::Args for HyperparameterArguments {
    fn augment_args(command: clap::Command) -> clap::Command {
        hyperparameters().into_iter().fold(command, |command, (name, kinds)| {
            let meaning = kinds[0].1.meaning;
            let meaning = format!("{}{}", meaning[..1].to_uppercase(), &meaning[1..]);
            let defaults: Vec<_> = kinds.iter().map(|(kind, of)| format!("{:?} for {kind}", of.default)).collect();
            command.arg(
                clap::Arg::new(name)
                    .long(name)
                    .value_name("NUMBER")
                    .value_parser(clap::value_parser!(f64))
                    .help_heading("Training options")
                    .help(format!("{meaning} [default: {}]", defaults.join(", "))),
            )
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for HyperparameterArguments {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut arguments = Self::default();
        arguments.update_from_arg_matches(matches)?;
        Ok(arguments)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        let given = |(name, _)| Some((name, *matches.get_one::<f64>(name)?));
        self.0 = hyperparameters().into_iter().filter_map(given).collect();
        Ok(())
    }
}

/// The values of `--arch`: the names in the table of architectures.
pub(super) fn architecture_names() -> PossibleValuesParser {
    PossibleValuesParser::new(Architecture::all().map(Architecture::name))
}

/// The values of `--resize`.
pub(super) fn resize_modes() -> impl TypedValueParser<Value = ResizeMode> {
    PossibleValuesParser::new(ResizeMode::ALL.map(ResizeMode::name)).try_map(|name| name.parse::<ResizeMode>())
}

/// The path of a file, so that it is found from another folder too.
fn absolute(path: &str) -> Result<String, String> {
    let absolute = std::path::absolute(path).map_err(|cause| cause.to_string())?;
    absolute.into_os_string().into_string().map_err(|_| "the name of the current folder is not Unicode".into())
}

/// The values of `--schedule`.
fn schedule_names() -> PossibleValuesParser {
    SCHEDULES.iter().map(|kind| PossibleValue::new(kind.name).help(kind.summary)).collect::<Vec<_>>().into()
}

/// The values of `--optimizer`.
fn optimizer_names() -> PossibleValuesParser {
    OPTIMIZERS.iter().map(|kind| PossibleValue::new(kind.name).help(kind.summary)).collect::<Vec<_>>().into()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        recipe: RecipeArguments,
    }

    fn overlaid(mut recipe: Recipe, words: &[String]) -> (Recipe, Vec<String>) {
        let words = std::iter::once("train").chain(words.iter().map(String::as_str));
        let mut changed = Vec::new();
        let arguments = Command::try_parse_from(words).unwrap().recipe;
        let note = |flag: &str| {
            changed.push(flag.to_string());
            Ok(())
        };
        arguments.overlay(&mut recipe, note).unwrap();
        (recipe, changed)
    }

    /// No field has the value of the default recipe.
    fn everything_else() -> Recipe {
        Recipe {
            architecture: "resnet50".into(),
            width: 8,
            from_scratch: true,
            epochs: 7,
            // The epochs are given instead.
            steps: None,
            batch_size: 3,
            accumulate: 4,
            balanced_sampling: true,
            learning_rate: 1.25e-7,
            head_lr_multiplier: 2.5,
            layer_lr_decay: 0.5,
            schedule: "one-cycle".into(),
            warm_up: Some(WarmUp::Share(0.07)),
            // Not a flag: extending a run sets it.
            schedule_from: 0,
            patience: Some(3),
            try_learning_rates: vec![1e-4, 3e-4],
            keep_last: true,
            validation_chooses: true,
            ema: Some(0.9),
            average_mirror: true,
            calibrate: true,
            weight_decay: 0.0,
            no_decay_norm_bias: true,
            optimizer: "adamw".into(),
            hyperparameters: Hyperparameters::from([("beta1", 0.5), ("beta2", 0.75), ("epsilon", 1e-300)]),
            loss_reduction: "mean".into(),
            label_smoothing: 0.1,
            class_weights: Some("1,2.5".parse().unwrap()),
            mixup: Some(0.2),
            cutmix: Some(1.0),
            clip_gradient_norm: Some(0.1),
            freeze: vec!["conv1".into(), "bn1".into()],
            freeze_batch_norm: true,
            head_from: Some(vec![934, 713]),
            new_head: true,
            fit_head: true,
            feature_copies: 2,
            image_size: 96,
            train_size: Some(64),
            resize: ResizeMode::Pad,
            exif: true,
            drop_duplicates: true,
            augment: vec!["horizontal-flip=0".parse().unwrap(), "vertical-flip=0.5".parse().unwrap()],
            test_fraction: Some(0.2),
            labels: Some("/labels.csv".into()),
            seed: u64::MAX,
        }
    }

    #[test]
    fn the_words_of_a_recipe_give_that_recipe() {
        let wanted = everything_else();
        for base in [Recipe::from_scratch(), Recipe::fine_tuning()] {
            assert_eq!(overlaid(base.clone(), &recipe_words(&wanted, &base)).0, wanted);
        }
        assert!(recipe_words(&Recipe::fine_tuning(), &Recipe::fine_tuning()).is_empty());
    }

    #[test]
    fn flags_that_repeat_a_recipe_change_nothing() {
        let recipe = everything_else();
        let (same, changed) = overlaid(recipe.clone(), &recipe_words(&recipe, &Recipe::fine_tuning()));
        assert_eq!((same, changed.as_slice()), (recipe, &[][..]));
        let defaults = "--optimizer sgd --momentum 0 --augment horizontal-flip=0.5 --lr 5e-5 --seed 0";
        let words: Vec<String> = defaults.split(' ').map(String::from).collect();
        assert_eq!(overlaid(Recipe::fine_tuning(), &words), (Recipe::fine_tuning(), Vec::new()));
    }

    #[test]
    fn each_flag_that_differs_is_named() {
        let wanted = everything_else();
        let words = recipe_words(&wanted, &Recipe::fine_tuning());
        let mut flags: Vec<String> = words.iter().filter(|word| word.starts_with("--")).cloned().collect();
        let (_, mut changed) = overlaid(Recipe::fine_tuning(), &words);
        flags.sort();
        changed.sort();
        assert_eq!(changed, flags);
        assert_eq!(flags.len(), 46);
    }

    #[test]
    fn steps_and_epochs_replace_each_other() {
        let overlay = |recipe: Recipe, words: [&str; 2]| overlaid(recipe, &words.map(String::from)).0;
        let by_steps = overlay(Recipe::fine_tuning(), ["--steps", "500"]);
        assert_eq!(by_steps, Recipe { steps: Some(500), ..Recipe::fine_tuning() });
        assert_eq!(recipe_words(&by_steps.clone().for_images(300), &Recipe::fine_tuning()), ["--steps", "500"]);
        assert_eq!(overlay(by_steps, ["--epochs", "5"]), Recipe::fine_tuning());
    }

    #[test]
    fn another_optimizer_has_its_own_defaults() {
        let words = ["--optimizer", "adamw", "--beta1", "0.8"].map(String::from);
        let (recipe, _) = overlaid(Recipe { optimizer: "nesterov".into(), ..Recipe::fine_tuning() }, &words);
        assert_eq!(
            recipe.hyperparameters,
            Hyperparameters::from([("beta1", 0.8), ("beta2", 0.999), ("epsilon", 1e-8)])
        );
    }
}
