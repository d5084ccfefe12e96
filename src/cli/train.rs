//! `retune train`

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::interruption::interruption;
use super::progress::Progress;
use super::recipe_arguments::{RecipeArguments, recipe_words};
use super::recipes::recipe_names;
use super::training::{Place, Trained, Training, tell};
use super::weights::WeightsKey;
use super::{GlobalArguments, check_batch_size, check_threads, print_json, print_result};
use crate::data::require_folder;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Recognised, ResNet};
use crate::optim::ScheduleKind;
use crate::printable::plain_number;
use crate::train::{
    Checkpoint, CheckpointEvery, Checkpointing, Choice, Event, FolderLock, HeldOut, LARGEST_IMAGE_SIZE, LARGEST_WIDTH,
    NamedRecipe, RECIPES, Recipe, Run, RunFolder, RunOptions, SMALLEST_IMAGE_SIZE, Start, find_network, read_recipe,
};
use crate::weights::{Found, TensorFile};

const EXAMPLES: &str = "\
Examples:
  Fine-tune ResNet-18 from its ImageNet weights, which are downloaded the first time:
    retune train photos
  Train as in Dive into Deep Learning:
    retune train photos --recipe lesson
  Freeze the lower layers for a small data set, and hold out a fifth of it for testing:
    retune train photos --freeze conv1,bn1,layer1,layer2 --test-fraction 0.2
  Fit only the final layer, which takes seconds to minutes, and is often enough:
    retune train photos --head-only
  Train a small network from random weights:
    retune train photos --from-scratch --width 16 --image-size 64 --epochs 20
  Compare two learning rates, each with five seeds:
    retune train photos --recipe lesson --try lr=5e-5,2e-4 --seeds 5
  Resume an interrupted run, or train for more epochs:
    retune train photos --resume --out runs/1 --epochs 10";

/// Far more than any training takes, and few enough to compute with.
const MOST_EPOCHS: usize = 1_000_000;
const MOST_STEPS: usize = 1_000_000_000;

/// Fine-tune a network on a folder of images
///
/// DATA contains the folders `train` and `test` (or `val`), each with one folder of images per class. With `val` and `test`, the
/// first chooses the epoch and the second is used once, at the end. If DATA contains only the class folders, --test-fraction
/// holds out part of each class for testing. If it contains images whose classes are in a CSV file, give that file with --labels.
/// Without flags that say how to train, the recipe `best` is used: it fits the final layer, tries learning rates on held-back
/// training images, and trains all layers if that helps. The recipe `lesson` is that of the fine-tuning chapter of Dive into Deep
/// Learning, and flags that say how to train change that one: 5 epochs, batch size 128, summed loss, learning rate 5e-5, and ten
/// times that for the final layer.
#[derive(Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct TrainArguments {
    /// Folder of images
    pub(super) data: PathBuf,

    /// Pretrained weights: a safetensors or PyTorch .pth file, the folder of a run, the name of an architecture such as resnet50
    /// for its ImageNet weights, or a model on the Hugging Face Hub such as timm/resnet18.tv_in1k [default: resnet18, or that of
    /// --arch]
    #[arg(long, value_name = "FILE|OWNER/NAME", conflicts_with = "from_scratch", help_heading = "Network options")]
    pub(super) weights: Option<PathBuf>,

    #[command(flatten, next_help_heading = "Network options")]
    pub(super) weights_key: WeightsKey,

    /// Folder to write the model, checkpoints and metrics to [default: the next of runs/1, runs/2, ...]
    #[arg(long, value_name = "FOLDER", help_heading = "Run options")]
    pub(super) out: Option<PathBuf>,

    /// Resume the run in --out from its checkpoint, with its settings. If there is no checkpoint yet and --weights or
    /// --from-scratch is given, start the run, so that the same command starts and resumes it
    #[arg(long, help_heading = "Run options")]
    pub(super) resume: bool,

    /// Train a finished run for this many more epochs, with a new schedule for them
    #[arg(long, value_name = "EPOCHS", requires = "resume", conflicts_with_all = ["epochs", "steps"], help_heading = "Run options",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) extend: Option<u32>,

    /// Resume even if images were added, removed or changed since the run began
    #[arg(long, requires = "resume", help_heading = "Run options")]
    pub(super) allow_changed_data: bool,

    /// Interval of checkpoints, in steps (500) or time (90s, 10m, 2h); a checkpoint is also saved after every epoch
    #[arg(long, value_name = "INTERVAL", default_value = "10m", value_parser = checkpoint_every, help_heading = "Run options")]
    checkpoint_every: CheckpointEvery,

    /// Write TensorBoard event files to the run's folder
    #[arg(long, help_heading = "Run options")]
    pub(super) tensorboard: bool,

    /// Train this many steps twice with different numbers of workers, check that the results are identical, and write nothing
    #[arg(long, value_name = "STEPS", num_args = 0..=1, default_missing_value = "10", conflicts_with = "resume",
          value_parser = clap::value_parser!(u64).range(1..), help_heading = "Run options")]
    pub(super) verify_determinism: Option<u64>,

    /// Train fewer epochs if the run would take longer than this, e.g. 90s, 10m or 2h; the schedule covers the epochs that remain
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Training options",
          conflicts_with_all = ["head_only", "extend", "verify_determinism"])]
    pub(super) budget: Option<Duration>,

    /// Fit only the final layer, in one pass over the images: the same as --fit-head --epochs 0
    #[arg(long, conflicts_with_all = ["epochs", "steps", "from_scratch"], help_heading = "Network options")]
    pub(super) head_only: bool,

    /// Do not write report.html, curves.svg and curves.png at the end
    #[arg(long, help_heading = "Run options")]
    pub(super) no_report: bool,

    /// Number of checkpoints to keep; older ones are named checkpoint-EPOCH-BATCH.safetensors
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Run options")]
    keep_checkpoints: usize,

    /// Train by this recipe; other flags change it [default: best, or lesson if flags of training or network options are given]
    #[arg(long = "recipe", value_name = "NAME", value_parser = recipe_names(), conflicts_with = "config",
          help_heading = "Training options")]
    pub(super) named: Option<String>,

    /// Train by the recipe in this file, such as the recipe.toml of a run; other flags change it
    #[arg(long, value_name = "FILE", help_heading = "Training options")]
    pub(super) config: Option<PathBuf>,

    #[command(flatten)]
    pub(super) recipe: RecipeArguments,

    /// Train with this many seeds in turn, from --seed on, each run into a folder of its own in --out, and compare the runs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Sweep options")]
    pub(super) seeds: Option<u32>,

    /// Train with each of these values of a flag in turn, e.g. lr=1e-3,3e-3 or recipe=best,lesson, and compare the runs; several
    /// --try give all combinations
    #[arg(long = "try", value_name = "NAME=VALUES", action = clap::ArgAction::Append, help_heading = "Sweep options")]
    pub(super) tries: Vec<String>,

    /// Number of threads that decode images; it does not affect the result [default: one per core]
    #[arg(long, value_name = "N", help_heading = "Image options")]
    workers: Option<usize>,

    /// GPU memory for caching decoded images, in MiB; images that do not fit are decoded again in every epoch [default: all
    /// free memory]
    #[arg(long, value_name = "MIB", help_heading = "Image options")]
    image_memory: Option<usize>,

    /// Do not search the images for duplicates before training, which decodes each of them once
    #[arg(long, conflicts_with = "drop_duplicates", help_heading = "Image options")]
    no_data_check: bool,

    /// Stop at an unreadable image, or at one of an unsupported type or outside of the class folders, instead of skipping it with
    /// a warning
    #[arg(long, help_heading = "Image options")]
    strict: bool,
}

impl TrainArguments {
    /// The recipe that the flags ask for, with the network and the image size of the weights.
    pub(super) fn recipe(&self, weights: Option<&Found<Recognised>>) -> Result<Recipe> {
        let file = self.config.as_deref().map(read_recipe).transpose()?;
        let base = file.as_ref().map_or_else(|| self.base_recipe(), |file| Ok(file.recipe.clone()))?;
        let mut recipe = base.clone();
        if let Some(found) = weights {
            recipe = recipe.for_weights(found);
            let in_file = |field: &str| file.as_ref().is_some_and(|file| file.sets(field));
            let architecture = in_file("architecture").then_some(base.architecture.as_str());
            let architecture = self.recipe.architecture().or(architecture);
            if let Some(arch) = architecture.filter(|arch| *arch != recipe.architecture) {
                let found = &recipe.architecture;
                return Err(Error::usage(format!("--arch {arch}: the weights are those of a {found}")));
            }
            let width = self.recipe.width().or(in_file("width").then_some(base.width));
            if width.is_some_and(|width| width != recipe.width) {
                return Err(Error::usage(format!("--width: the weights have a width of {}", recipe.width)));
            }
            if in_file("image_size") {
                recipe.image_size = base.image_size;
                // A file leaves the default out.
                recipe.resize = base.resize;
            }
        }
        self.recipe.overlay(&mut recipe, |_| Ok(()))?;
        if let (Some(rate), false) = (self.recipe.learning_rate(), recipe.try_learning_rates.is_empty()) {
            return Err(Error::usage(format!(
                "--lr {rate}: the recipe chooses the learning rate from those of --try-lr"
            ))
            .hint("leave --lr out, or give the learning rates to choose from with --try-lr"));
        }
        if self.head_only {
            recipe = Recipe { fit_head: true, epochs: 0, steps: None, ..recipe };
        }
        check(&recipe)?;
        Ok(recipe)
    }

    /// The recipe that the other flags change.
    pub(super) fn base_recipe(&self) -> Result<Recipe> {
        if let (true, true) = (self.recipe.is_from_scratch(), self.config.is_some() || self.named.is_some()) {
            return Err(Error::usage("--from-scratch: the recipe that is given says what a run starts from").hint(
                "leave --recipe or --config out: --from-scratch has a recipe of its own, which other flags change",
            ));
        }
        match (&self.config, &self.named) {
            (Some(file), _) => Ok(read_recipe(file)?.recipe),
            (None, Some(name)) => NamedRecipe::find(name)?.recipe(),
            (None, None) if self.recipe.is_from_scratch() => Ok(Recipe::from_scratch()),
            (None, None) => match self.asks_for_training() {
                Some(_) => Ok(Recipe::fine_tuning()),
                None => RECIPES[0].recipe(),
            },
        }
    }

    /// Whether the network starts from random weights.
    fn is_from_scratch(&self) -> Result<bool> {
        Ok(self.base_recipe()?.from_scratch)
    }

    /// Refuses a named recipe, or one in a file, that is not the one of the run.
    pub(super) fn require_recipe_of(&self, recipe: &Recipe, out: &Path) -> Result<()> {
        let flag = match (&self.config, &self.named) {
            (Some(file), _) => format!("--config {}", file.display()),
            (None, Some(name)) => format!("--recipe {name}"),
            (None, None) => return Ok(()),
        };
        let mut wanted = self.base_recipe()?;
        self.recipe.overlay(&mut wanted, |_| Ok(()))?;
        // The weights decide what a network is; the rest says how far a run goes.
        let Recipe { architecture, width, image_size, epochs, steps, schedule_from, .. } = recipe.clone();
        if (Recipe { architecture, width, image_size, epochs, steps, schedule_from, ..wanted }) == *recipe {
            return Ok(());
        }
        Err(Error::usage(format!("{flag} differs from the recipe of the run in {}", out.display()))
            .hint("leave it out to resume, or start another run with another --out"))
    }

    /// A flag that says how to train, so that the lesson's recipe is changed and not replaced by the best one.
    fn asks_for_training(&self) -> Option<String> {
        let head_only = self.head_only.then(|| "--head-only".to_string());
        head_only.or_else(|| self.recipe.given_for_training())
    }

    /// Says which recipe is used where none is named.
    fn describe_recipe(&self, global: &GlobalArguments) {
        if self.config.is_some() || self.named.is_some() || self.recipe.is_from_scratch() {
            return;
        }
        match self.asks_for_training() {
            Some(_) if self.head_only => {}
            Some(flag) => describe_lesson(global, &flag),
            None => global.note("recipe best; --recipe lesson trains as Dive into Deep Learning does"),
        }
    }

    /// Says which recipe is used where none is named, for a sweep that tries these flags.
    pub(super) fn describe_recipe_of_sweep<'a>(
        &self,
        global: &GlobalArguments,
        mut tried: impl Iterator<Item = &'a str>,
    ) {
        match tried.next() {
            Some("recipe") => {}
            Some(flag) if self.config.is_none() && self.named.is_none() && !self.recipe.is_from_scratch() => {
                describe_lesson(global, &format!("--try {flag}"));
            }
            _ => self.describe_recipe(global),
        }
    }

    /// The weights that a new run starts from: the given ones, or else the ImageNet weights of its architecture. None stands for random
    /// ones.
    ///
    /// # Errors
    /// When weights are given, and the recipe starts from random ones.
    pub(super) fn initial_weights(&self) -> Result<Option<PathBuf>> {
        match (&self.weights, self.is_from_scratch()?) {
            (Some(_), true) => Err(Error::usage("--weights: the recipe starts from random weights")
                .hint("leave --weights out, or use another recipe")),
            (None, true) => Ok(None),
            (Some(given), false) => Ok(Some(given.clone())),
            (None, false) => {
                let given = self.recipe.architecture().map(String::from);
                Ok(Some(given.map_or_else(|| Ok(self.base_recipe()?.architecture), Ok)?.into()))
            }
        }
    }

    /// Says which weights are used where none are named.
    pub(super) fn describe_weights(&self, global: &GlobalArguments, initial: Option<&Path>) {
        if let (None, Some(name)) = (&self.weights, initial) {
            let name = name.display();
            global.note(&format!(
                "ImageNet weights of {name}; --weights names others, --from-scratch starts from random ones"
            ));
        }
    }

    /// Whether --resume names a run without a checkpoint, and the flags are enough to start it.
    fn starts_anew(&self) -> bool {
        let is_there = |path: &PathBuf| RunFolder { path: path.clone() }.checkpoint().exists();
        let can_start = self.weights.is_some() || self.is_from_scratch().unwrap_or(false);
        can_start && self.out.as_ref().is_some_and(|out| !is_there(out))
    }

    /// Whether there is a run to resume.
    fn resumes(&self) -> bool {
        self.resume && !self.starts_anew()
    }

    pub(super) fn options<'a>(&self, folder: RunFolder, interrupted: &'a AtomicBool) -> Result<RunOptions<'a>> {
        let workers = match self.workers {
            Some(workers) => {
                check_threads("--workers", workers)?;
                workers
            }
            None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        };
        let checkpointing = match self.keep_checkpoints {
            0 => return Err(Error::usage("--keep-checkpoints 0: expected at least 1")),
            kept => Checkpointing { every: self.checkpoint_every, kept },
        };
        let image_memory = self.image_memory.map(|mebibytes| mebibytes.saturating_mul(1 << 20));
        Ok(RunOptions {
            folder,
            workers,
            image_memory,
            strict: self.strict,
            check_data: !self.no_data_check,
            checkpointing,
            interrupted,
        })
    }
}

fn describe_lesson(global: &GlobalArguments, flag: &str) {
    global.note(&format!("recipe lesson, because {flag} is given; --recipe best changes the best one instead"));
}

/// The arguments that train by `recipe`; `base` is the recipe without any flag.
pub fn command_words(recipe: &Recipe, base: &Recipe, data: &Path, weights: Option<&Path>, out: &Path) -> Vec<String> {
    let mut words = vec!["train".to_string(), data.display().to_string()];
    if let Some(weights) = weights {
        words.extend(["--weights".into(), weights.display().to_string()]);
    }
    words.extend(recipe_words(recipe, base));
    words.extend(["--out".into(), out.display().to_string()]);
    words
}

/// `500` steps, `90s`, `10m`, `2h`.
fn checkpoint_every(text: &str) -> Result<CheckpointEvery, String> {
    let steps = || text.parse().ok().filter(|&steps| steps > 0).map(CheckpointEvery::Steps);
    let every = duration(text).ok().map(CheckpointEvery::Time).or_else(steps);
    every.ok_or_else(|| "expected a number of steps, or a time such as 90s, 10m or 2h".into())
}

/// `90s`, `10m`, `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = [("s", 1), ("m", 60), ("h", 3600)].iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let seconds = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    seconds.map(Duration::from_secs).ok_or_else(|| "expected a time such as 90s, 10m or 2h".into())
}

pub fn run(global: &GlobalArguments, arguments: &TrainArguments) -> Result<ExitCode> {
    if let Some(steps) = arguments.verify_determinism {
        return verify_determinism(global, arguments, steps);
    }
    let trained = train(global, arguments)?;
    if global.json {
        print_json(&result_json(&trained))?;
    } else {
        print_result(&trained.line())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The results of a run as JSON.
pub(super) fn result_json(trained: &Trained) -> serde_json::Value {
    let Trained { folder, summary, device, skipped } = trained;
    let best = match summary.held_out {
        HeldOut::Test { .. } => serde_json::json!({
            "epoch": summary.best.epoch,
            "test_acc": summary.best.accuracy,
            "test_loss": summary.best.loss,
        }),
        HeldOut::Validation { .. } => serde_json::json!({
            "epoch": summary.best.epoch,
            "val_acc": summary.best.accuracy,
            "val_loss": summary.best.loss,
        }),
    };
    serde_json::json!({
        "train_loss": summary.train_loss,
        "train_acc": summary.train_acc,
        "test_acc": summary.test_acc,
        "images_per_second": summary.images_per_second,
        "device": device,
        "best": best,
        "skipped": skipped.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
        "model": folder.model().to_string_lossy(),
    })
}

fn train(global: &GlobalArguments, arguments: &TrainArguments) -> Result<Trained> {
    arguments.weights_key.require_weights(arguments.weights.as_deref())?;
    let device = open_device(global, arguments)?;
    let interrupted = interruption()?;
    let resumes = arguments.resumes();
    if arguments.resume && !resumes {
        global.note("there is nothing to resume yet: the run starts");
    }
    let mut weights = arguments.weights.clone();
    let (place, run) = if resumes {
        let folder = resumed_folder(arguments)?;
        // Before anything is read that another process may be writing.
        let lock = FolderLock::acquire(&folder.path)?;
        (Place::Resumed(lock), resume(global, device, arguments, folder, interrupted)?)
    } else {
        weights = arguments.initial_weights()?;
        let place = match &arguments.out {
            Some(path) if path.is_dir() => Place::Named(Some(FolderLock::acquire(path)?)),
            Some(_) => Place::Named(None),
            None => Place::Numbered,
        };
        // A folder with a number gets it when the run begins.
        let folder = RunFolder { path: arguments.out.clone().unwrap_or_else(|| RunFolder::NUMBERED.into()) };
        (place, begin(global, device, arguments, weights.as_deref(), folder, interrupted)?)
    };
    let training = Training {
        data: &arguments.data,
        weights: weights.as_deref(),
        budget: arguments.budget,
        place,
        tensorboard: arguments.tensorboard,
        report: !arguments.no_report,
    };
    training.complete(global, run)
}

/// The device, in the precision that was asked for, or else in that of the run that is resumed.
fn open_device(global: &GlobalArguments, arguments: &TrainArguments) -> Result<Rc<dyn Device>> {
    if !arguments.resumes() || global.precision.is_some() {
        return global.open_device();
    }
    let checkpoint = Checkpoint::open(&resumed_folder(arguments)?.checkpoint())?;
    global.open_device_in(checkpoint.precision)
}

fn begin<'a>(
    global: &GlobalArguments,
    device: Rc<dyn Device>,
    arguments: &TrainArguments,
    weights: Option<&Path>,
    folder: RunFolder,
    interrupted: &'a AtomicBool,
) -> Result<Run<'a>> {
    let options = arguments.options(folder, interrupted)?;
    options.folder.require_free()?;
    // Faults of the flags and of the data set's path come before what is said of the weights, and before a download.
    arguments.recipe(None)?;
    require_folder(&arguments.data)?;
    arguments.describe_weights(global, weights);
    let weights_key = &arguments.weights_key;
    let file = weights.map(|weights| weights_key.open(global, weights)).transpose()?;
    if let Some(origin) = file.as_ref().and_then(TensorFile::origin) {
        global.note(&format!("the weights are {origin}"));
    }
    let found = file.as_ref().map(find_network).transpose()?;
    let recipe = arguments.recipe(found.as_ref())?;
    check_freezing(&recipe)?;
    let start = found.map_or(Start::FromScratch, |found| Start::FineTune(Box::new(found)));
    let run = start.run(device, recipe, &arguments.data, options, &mut tell(global))?;
    arguments.describe_recipe(global);
    Ok(run)
}

/// The folder of the run to resume.
fn resumed_folder(arguments: &TrainArguments) -> Result<RunFolder> {
    let folder = match &arguments.out {
        Some(path) => RunFolder { path: path.clone() },
        None => {
            let none = || Error::new("--resume: there is no numbered run in runs/").hint("name its folder with --out");
            RunFolder::last_numbered().ok_or_else(none)?
        }
    };
    if !folder.checkpoint().exists() {
        let message = format!("--resume: there is no {}", folder.checkpoint().display());
        return Err(Error::new(message).hint("leave --resume out to start a run there, or name its folder with --out"));
    }
    Ok(folder)
}

fn resume<'a>(
    global: &GlobalArguments,
    device: Rc<dyn Device>,
    arguments: &TrainArguments,
    folder: RunFolder,
    interrupted: &'a AtomicBool,
) -> Result<Run<'a>> {
    let options = arguments.options(folder, interrupted)?;
    let checkpoint = Checkpoint::open(&options.folder.checkpoint())?;
    let out = options.folder.path.display();
    const WAY_OUT: &str = "leave it out to resume, or start another run with another --out";
    let mut recipe = checkpoint.recipe.clone();
    if arguments.weights.is_some() && recipe.from_scratch {
        return Err(Error::usage(format!("--weights: the run in {out} was started from scratch")).hint(WAY_OUT));
    }
    arguments.recipe.overlay(&mut recipe, |flag| match flag {
        "--epochs" => Ok(()),
        _ => Err(Error::usage(format!("{flag} differs from the recipe of the run in {out}")).hint(WAY_OUT)),
    })?;
    arguments.require_recipe_of(&recipe, &options.folder.path)?;
    if arguments.head_only && !recipe.fit_head {
        return Err(Error::usage(format!("--head-only differs from the recipe of the run in {out}")).hint(WAY_OUT));
    }
    if let Some(more) = arguments.extend {
        if !checkpoint.position.is_over(&recipe) {
            return Err(Error::usage(format!("--extend {more}: the run in {out} is not finished"))
                .hint("leave --extend out to finish it first"));
        }
        if checkpoint.position.choice == Some(Choice::FixedBody) {
            let what = "is finished: no epoch was better than its fitted final layer";
            return Err(Error::usage(format!("--extend {more}: the run in {out} {what}"))
                .hint("give another --out to start another run"));
        }
        recipe.schedule_from = checkpoint.position.epoch;
        recipe.epochs = recipe.schedule_from + more as usize;
        recipe.steps = None;
    }
    check(&recipe)?;
    let start = Start::Resume { checkpoint: Box::new(checkpoint), allow_changed_data: arguments.allow_changed_data };
    start.run(device, recipe, &arguments.data, options, &mut tell(global))
}

/// Refuses a `--freeze` that the network cannot follow.
pub(super) fn check_freezing(recipe: &Recipe) -> Result<()> {
    let resnet = ResNet { architecture: recipe.architecture.parse()?, width: recipe.width, classes: 1 };
    let freezing = recipe.trainable(None)?.freezing;
    resnet.specification().check_freezing(&freezing).map_err(|error| error.about("--freeze"))
}

/// Trains a few steps twice and compares the checkpoints.
fn verify_determinism(global: &GlobalArguments, arguments: &TrainArguments, steps: u64) -> Result<ExitCode> {
    let device = global.open_device()?;
    let interrupted = interruption()?;
    let weights = arguments.initial_weights()?;
    let folders = [(); 2].map(|()| tempfile::tempdir());
    let mut checkpoints = Vec::new();
    for (number, folder) in folders.iter().enumerate() {
        let folder =
            folder.as_ref().map_err(|cause| Error::new(format!("cannot create a temporary folder: {cause}")))?;
        let stop = AtomicBool::new(false);
        let folder_of_run = RunFolder { path: folder.path().to_path_buf() };
        let global = &GlobalArguments { quiet: global.quiet || number > 0, ..global.clone() };
        let mut run = begin(global, device.clone(), arguments, weights.as_deref(), folder_of_run, &stop)?;
        let options = &mut run.options;
        options.workers = if number == 0 { 1 } else { options.workers.max(2) };
        options.checkpointing = Checkpointing { every: CheckpointEvery::Steps(usize::MAX), kept: 1 };
        let progress = Progress::new(global, steps, "steps");
        let mut done = 0;
        let result = run.train(|event| {
            if let Event::Step { .. } = event {
                done += 1;
                progress.position(done);
            }
            if done >= steps || interrupted.load(Ordering::Relaxed) {
                stop.store(true, Ordering::Relaxed);
            }
        });
        progress.finish();
        match result {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ if interrupted.load(Ordering::Relaxed) => return Err(Error::interrupted("stopped; no file was written")),
            _ => checkpoints.push((TensorFile::open(&RunFolder { path: folder.path().into() }.checkpoint())?, done)),
        }
    }
    let [(first, steps), (second, _)] = checkpoints.as_slice() else { unreachable!("two runs were made") };
    for name in first.names() {
        if first.bytes(name)? != second.bytes(name)? {
            return Err(Error::new(format!("after {steps} steps, {name} differs between the two runs"))
                .hint("this is a bug in the program or a fault of the machine: please report it, with the device"));
        }
    }
    let (tensors, device) = (first.entries().len(), device.name());
    if global.json {
        print_json(&serde_json::json!({ "steps": steps, "tensors": tensors, "device": device, "same": true }))?;
    } else {
        print_result(&format!("{steps} steps twice on {device}: all bits of {tensors} tensors are the same"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The upper limit of `--feature-copies`.
const MOST_FEATURE_COPIES: usize = 100;

/// Refuses values that no run can have.
fn check(recipe: &Recipe) -> Result<()> {
    check_batch_size(recipe.batch_size)?;
    if recipe.accumulate == 0 {
        return Err(Error::usage("--accumulate 0: expected at least 1"));
    }
    if recipe.epochs == 0 && !recipe.fit_head {
        return Err(
            Error::usage("--epochs 0: expected at least 1").hint("--head-only fits the final layer without epochs")
        );
    }
    if !recipe.try_learning_rates.is_empty() && !recipe.fit_head {
        return Err(Error::usage("--try-lr: the final layer is not fitted, so there is nothing to compare with")
            .hint("add --fit-head"));
    }
    if recipe.steps == Some(0) {
        return Err(Error::usage("--steps 0: expected at least 1"));
    }
    let lengths = [("--epochs", Some(recipe.epochs), MOST_EPOCHS), ("--steps", recipe.steps, MOST_STEPS)];
    for (flag, value, most) in lengths {
        if let Some(value) = value.filter(|value| *value > most) {
            return Err(Error::usage(format!("{flag} {value}: expected at most {most}")));
        }
    }
    if recipe.patience == Some(0) {
        return Err(Error::usage("--patience 0: expected at least 1"));
    }
    if recipe.patience.is_some() && recipe.keep_last {
        return Err(Error::usage("--patience: no epoch is the best, because --keep-last saves the last one")
            .hint("leave --patience or --keep-last out"));
    }
    ScheduleKind::find(&recipe.schedule)?;
    if recipe.feature_copies > MOST_FEATURE_COPIES {
        let copies = recipe.feature_copies;
        return Err(Error::usage(format!("--feature-copies {copies}: expected at most {MOST_FEATURE_COPIES}")));
    }
    for (flag, given) in [("--head-from", recipe.head_from.is_some()), ("--new-head", recipe.new_head)] {
        if recipe.fit_head && given {
            return Err(Error::usage(format!(
                "{flag}: the final layer is fitted, so its initial values have no effect"
            ))
            .hint(format!("leave {flag} out, or --fit-head and --head-only")));
        }
    }
    let limited = [
        ("--image-size", recipe.image_size, SMALLEST_IMAGE_SIZE, LARGEST_IMAGE_SIZE),
        ("--width", recipe.width, 1, LARGEST_WIDTH),
    ];
    for (flag, value, smallest, largest) in limited {
        if !(smallest..=largest).contains(&value) {
            return Err(Error::usage(format!("{flag} {value}: expected {smallest} to {largest}")));
        }
    }
    if let Some(size) = recipe.train_size
        && !(SMALLEST_IMAGE_SIZE..=LARGEST_IMAGE_SIZE).contains(&size)
    {
        let message = format!("--train-size {size}: expected {SMALLEST_IMAGE_SIZE} to {LARGEST_IMAGE_SIZE}");
        return Err(Error::usage(message));
    }
    let rates = [("--lr", std::slice::from_ref(&recipe.learning_rate)), ("--try-lr", &recipe.try_learning_rates)];
    for (flag, rates) in rates {
        if let Some(rate) = rates.iter().find(|rate| !(rate.is_finite() && **rate > 0.0)) {
            return Err(Error::usage(format!("{flag} {rate}: expected a number above 0")));
        }
    }
    let decay = recipe.layer_lr_decay;
    if !(decay > 0.0 && decay <= 1.0) {
        return Err(Error::usage(format!("--layer-lr-decay {decay}: expected a number above 0 and at most 1")));
    }
    let not_negative = [("--head-lr-multiplier", recipe.head_lr_multiplier), ("--weight-decay", recipe.weight_decay)];
    for (flag, value) in not_negative {
        if !(value.is_finite() && value >= 0.0) {
            return Err(Error::usage(format!("{flag} {value}: expected a number that is not negative")));
        }
    }
    if let Some(decay) = recipe.ema
        && !(decay > 0.0 && decay < 1.0)
    {
        return Err(Error::usage(format!("--ema {decay}: expected a number above 0 and below 1")));
    }
    if let Some(norm) = recipe.clip_gradient_norm
        && !(norm.is_finite() && norm > 0.0)
    {
        return Err(Error::usage(format!("--clip-gradient-norm {norm}: expected a number above 0")));
    }
    for (flag, alpha) in [("--mixup", recipe.mixup), ("--cutmix", recipe.cutmix)] {
        let Some(alpha) = alpha else { continue };
        if !(alpha.is_normal() && alpha > 0.0) {
            let alpha = plain_number(alpha);
            return Err(Error::usage(format!("{flag} {alpha}: expected a number above 0, or 0 to turn it off")));
        }
        if recipe.epochs == 0 {
            return Err(Error::usage(format!(
                "{flag}: only the final layer is fitted, to features of single images, so no images are mixed"
            ))
            .hint(format!("leave {flag} out, or train at least one epoch: --fit-head in place of --head-only")));
        }
    }
    if recipe.from_scratch && recipe.head_from.is_some() {
        return Err(Error::usage("--head-from: a network from scratch has no old head")
            .hint("leave --from-scratch or --head-from out"));
    }
    if recipe.new_head && recipe.head_from.is_some() {
        return Err(Error::usage("--new-head: --head-from starts with rows of the old head")
            .hint("leave --new-head or --head-from out"));
    }
    let smoothing = recipe.label_smoothing;
    if !(0.0..1.0).contains(&smoothing) {
        return Err(Error::usage(format!("--label-smoothing {smoothing}: expected a number from 0 to less than 1")));
    }
    recipe.optimizer()?;
    match recipe.loss_reduction.as_str() {
        "sum" | "mean" => Ok(()),
        other => Err(Error::usage(format!("--loss-reduction {other}: expected sum or mean"))),
    }
}
