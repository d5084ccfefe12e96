//! `retune train`

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::progress::Progress;
use super::training_display::{TrainingDisplay, Workload};
use super::{GlobalArguments, architecture_names, print_json, print_result, say, size, warn_of_skipped};
use super::{fetch, report};
use crate::data::open_dataset;
use crate::device::Device;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::file::write_atomically;
use crate::model::ResNet;
use crate::report::RunRecord;
use crate::train::{
    Checkpoint, CheckpointEvery, Checkpointing, Event, LARGEST_IMAGE_SIZE, LARGEST_WIDTH, ModelFile, Position, Recipe,
    Run, RunFolder, Summary, TensorBoard, Trainer, copy_head, initialise, load_state_dict, new_head, recognise,
};
use crate::weights::{HeadPolicy, TensorFile};

const EXAMPLES: &str = "\
Examples:
  Fine-tune torchvision's ResNet-18:
    retune fetch resnet18
    retune train photos --weights weights/resnet18-f37072fd.pth
  Freeze the lower layers for a small data set, and hold out a fifth of it for testing:
    retune train photos --weights FILE --freeze conv1,bn1,layer1,layer2 --test-fraction 0.2
  Train a small network from random weights:
    retune train photos --from-scratch --width 16 --image-size 64 --epochs 20
  Resume an interrupted run, or train for more epochs:
    retune train photos --resume --out runs/1 --epochs 10";

/// Fine-tune a network on a folder of images
///
/// DATA contains the folders `train` and `test` (or `val`), each with one folder of images per class. If it contains only the
/// class folders, --test-fraction holds out part of each class for testing. The default settings are those of the fine-tuning
/// chapter of Dive into Deep Learning: 5 epochs, batch size 128, summed loss, learning rate 5e-5, and ten times that for the
/// final layer.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct TrainArguments {
    /// Folder of images
    data: PathBuf,

    /// Pretrained weights: a safetensors or PyTorch .pth file with the key names of torchvision or Hugging Face transformers, or
    /// a model on the Hugging Face Hub such as timm/resnet18.tv_in1k
    #[arg(long, value_name = "FILE|OWNER/NAME", conflicts_with = "from_scratch", help_heading = "Network options")]
    weights: Option<PathBuf>,

    /// Start from random weights; the default learning rate is then 5e-4 for all layers
    #[arg(long, help_heading = "Network options")]
    from_scratch: bool,

    /// Folder to write the model, checkpoints and metrics to [default: the next of runs/1, runs/2, ...]
    #[arg(long, value_name = "FOLDER", help_heading = "Run options")]
    out: Option<PathBuf>,

    /// Resume the run in --out from its checkpoint, with its settings. If there is no checkpoint yet and --weights or
    /// --from-scratch is given, start the run, so that the same command starts and resumes it
    #[arg(long, help_heading = "Run options")]
    resume: bool,

    /// Interval of checkpoints, in steps (500) or time (90s, 10m, 2h); a checkpoint is also saved after every epoch
    #[arg(long, value_name = "INTERVAL", default_value = "10m", value_parser = checkpoint_every, help_heading = "Run options")]
    checkpoint_every: CheckpointEvery,

    /// Write TensorBoard event files to the run's folder
    #[arg(long, help_heading = "Run options")]
    tensorboard: bool,

    /// Train this many steps twice with different numbers of workers, check that the results are identical, and write nothing
    #[arg(long, value_name = "STEPS", num_args = 0..=1, default_missing_value = "10", conflicts_with = "resume",
          value_parser = clap::value_parser!(u64).range(1..), help_heading = "Run options")]
    verify_determinism: Option<u64>,

    /// Do not write report.html, curves.svg and curves.png at the end
    #[arg(long, help_heading = "Run options")]
    no_report: bool,

    /// Number of checkpoints to keep; older ones are named checkpoint-EPOCH-BATCH.safetensors
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Run options")]
    keep_checkpoints: usize,

    /// Architecture of a network trained from scratch; otherwise the weights decide [default: resnet18]
    #[arg(long, value_name = "NAME", value_parser = architecture_names(), help_heading = "Network options")]
    arch: Option<String>,

    /// Number of channels of the first stage of a network trained from scratch [default: 64]
    #[arg(long, value_name = "N", help_heading = "Network options")]
    width: Option<usize>,

    /// Number of passes over the training images [default: 5]
    #[arg(long, value_name = "N", help_heading = "Training options")]
    epochs: Option<usize>,

    /// Batch size [default: 128]
    #[arg(long, value_name = "N", help_heading = "Training options")]
    batch_size: Option<usize>,

    /// Learning rate of all layers but the final one; with --loss-reduction sum, it applies to the summed loss [default: 5e-5, or
    /// 5e-4 from scratch]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = "Training options")]
    lr: Option<f64>,

    /// Learning rate of the final layer, as a multiple of --lr [default: 10, or 1 from scratch]
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true, help_heading = "Training options")]
    head_lr_multiplier: Option<f64>,

    /// Weight decay (L2 penalty) [default: 1e-3]
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true, help_heading = "Training options")]
    weight_decay: Option<f64>,

    /// Momentum [default: 0]
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true, help_heading = "Training options")]
    momentum: Option<f64>,

    /// Whether the loss of a batch is the sum or the mean of its images' losses [default: sum]
    #[arg(long, value_name = "sum|mean", help_heading = "Training options")]
    loss_reduction: Option<String>,

    /// Clip the gradients of all parameters together to this norm [default: off]
    #[arg(long, value_name = "NORM", allow_negative_numbers = true, help_heading = "Training options")]
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

    /// Width and height of the images that the network sees [default: that of the weights, or 224]
    #[arg(long, value_name = "PIXELS", help_heading = "Image options")]
    image_size: Option<usize>,

    /// Apply the EXIF orientation of images, which torchvision ignores
    #[arg(long, help_heading = "Image options")]
    exif: bool,

    /// Fraction of each class to hold out for testing, if DATA has no test folder
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true, help_heading = "Image options")]
    test_fraction: Option<f64>,

    /// Seed of the order of images, augmentation and new parameters [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Training options")]
    seed: Option<u64>,

    /// Number of threads that decode images; it does not affect the result [default: one per core]
    #[arg(long, value_name = "N", help_heading = "Image options")]
    workers: Option<usize>,

    /// GPU memory for caching decoded images, in MiB; images that do not fit are decoded again in every epoch [default: all
    /// free memory]
    #[arg(long = "image-memory", alias = "picture-memory", value_name = "MIB", help_heading = "Image options")]
    picture_memory: Option<usize>,

    /// Stop at an unreadable image instead of skipping it with a warning
    #[arg(long, help_heading = "Image options")]
    strict: bool,
}

impl TrainArguments {
    /// The recipe that the flags ask for, with the network and the picture size of the weights.
    fn recipe(&self, weights: Option<&TensorFile>) -> Result<Recipe> {
        let mut recipe = if self.from_scratch { Recipe::from_scratch() } else { Recipe::fine_tuning() };
        if let Some(file) = weights {
            let resnet = recognise(file)?;
            let found = resnet.architecture.to_string();
            if self.arch.as_ref().is_some_and(|arch| *arch != found) {
                return Err(Error::usage(format!("--arch {}: the weights are those of a {found}", self.given_arch())));
            }
            if self.width.is_some_and(|width| width != resnet.width) {
                return Err(Error::usage(format!("--width: the weights have a width of {}", resnet.width)));
            }
            (recipe.architecture, recipe.width) = (found, resnet.width);
            if let Ok(model) = ModelFile::describe(file) {
                recipe.image_size = model.image_size;
            }
        }
        self.overlay(&mut recipe, |_| Ok(()))?;
        check(&recipe)?;
        Ok(recipe)
    }

    /// In bytes.
    fn picture_memory(&self) -> Option<usize> {
        self.picture_memory.map(|mebibytes| mebibytes.saturating_mul(1 << 20))
    }

    /// Whether --resume names a run that never came to its first checkpoint, and says all that beginning it takes.
    fn begins_anew(&self) -> bool {
        let is_there = |path: &PathBuf| RunFolder { path: path.clone() }.checkpoint().exists();
        (self.weights.is_some() || self.from_scratch) && self.out.as_ref().is_some_and(|out| !is_there(out))
    }

    /// Whether there is a run to go on with.
    fn resumes(&self) -> bool {
        self.resume && !self.begins_anew()
    }

    fn checkpointing(&self) -> Result<Checkpointing> {
        match self.keep_checkpoints {
            0 => Err(Error::usage("--keep-checkpoints 0: expected at least 1")),
            kept => Ok(Checkpointing { every: self.checkpoint_every, kept }),
        }
    }

    fn given_arch(&self) -> &str {
        self.arch.as_deref().unwrap_or_default()
    }

    /// Puts every given flag into the recipe; `changed` hears the name of each flag that makes a difference.
    fn overlay(&self, recipe: &mut Recipe, mut changed: impl FnMut(&'static str) -> Result<()>) -> Result<()> {
        let mut set = |flag, differs: bool| if differs { changed(flag) } else { Ok(()) };
        macro_rules! overlay {
            ($($flag:literal $given:expr => $field:ident),* $(,)?) => {$(
                if let Some(given) = $given.clone() {
                    set($flag, recipe.$field != given)?;
                    recipe.$field = given;
                }
            )*};
        }
        overlay! {
            "--from-scratch" self.from_scratch.then_some(true) => from_scratch,
            "--arch" self.arch => architecture,
            "--width" self.width => width,
            "--epochs" self.epochs => epochs,
            "--batch-size" self.batch_size => batch_size,
            "--lr" self.lr => learning_rate,
            "--head-lr-multiplier" self.head_lr_multiplier => head_lr_multiplier,
            "--weight-decay" self.weight_decay => weight_decay,
            "--momentum" self.momentum => momentum,
            "--loss-reduction" self.loss_reduction => loss_reduction,
            "--clip-gradient-norm" self.clip_gradient_norm.map(Some) => clip_gradient_norm,
            "--freeze" self.freeze => freeze,
            "--freeze-batch-norm" self.freeze_batch_norm.then_some(true) => freeze_batch_norm,
            "--head-from" self.head_from.clone().map(Some) => head_from,
            "--exif" self.exif.then_some(true) => exif,
            "--image-size" self.image_size => image_size,
            "--test-fraction" self.test_fraction.map(Some) => test_fraction,
            "--seed" self.seed => seed,
        }
        Ok(())
    }
}

/// `500` steps, `90s`, `10m`, `2h`.
fn checkpoint_every(text: &str) -> Result<CheckpointEvery, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = |factor: u64| number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    let time = |factor| seconds(factor).map(|seconds| CheckpointEvery::Time(Duration::from_secs(seconds)));
    let every = match unit {
        "" => number.parse().ok().filter(|&steps| steps > 0).map(CheckpointEvery::Steps),
        "s" => time(1),
        "m" => time(60),
        "h" => time(3600),
        _ => None,
    };
    every.ok_or_else(|| "expected a number of steps, or a time such as 90s, 10m or 2h".into())
}

/// What a finished run left.
pub struct Trained {
    /// Where.
    pub folder: RunFolder,
    /// Its last figures, and the best.
    pub summary: Summary,
    /// The device's name.
    pub device: String,
    /// Pictures that could not be read.
    pub skipped: Vec<PathBuf>,
}

impl Trained {
    /// The lesson's last line.
    pub fn line(&self) -> String {
        let Summary { train_loss, train_acc, test_acc, images_per_second, .. } = self.summary;
        format!(
            "loss {train_loss:.3}, train acc {train_acc:.3}, test acc {test_acc:.3}; {images_per_second:.1} \
             examples/sec on {}",
            self.device
        )
    }
}

pub fn run(global: &GlobalArguments, arguments: &TrainArguments) -> Result<ExitCode> {
    if let Some(steps) = arguments.verify_determinism {
        return verify_determinism(global, arguments, steps);
    }
    let trained = train(global, arguments, open_device(global, arguments)?, interruption()?)?;
    if global.json {
        let Trained { folder, summary, device, skipped } = &trained;
        print_json(&serde_json::json!({
            "train_loss": summary.train_loss,
            "train_acc": summary.train_acc,
            "test_acc": summary.test_acc,
            "images_per_second": summary.images_per_second,
            "device": device,
            "best": {
                "epoch": summary.best.epoch,
                "test_acc": summary.best.test_acc,
                "test_loss": summary.best.test_loss,
            },
            "skipped": skipped.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
            "model": folder.model().to_string_lossy(),
        }))?;
    } else {
        print_result(&trained.line())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The device, in the precision that was asked for, or else in that of the run that is resumed.
fn open_device(global: &GlobalArguments, arguments: &TrainArguments) -> Result<Rc<dyn Device>> {
    if !arguments.resumes() || global.precision.is_some() {
        return global.open_device();
    }
    let checkpoint = Checkpoint::open(&resumed_folder(arguments)?.checkpoint())?;
    global.open_device_in(checkpoint.precision)
}

/// Trains as the arguments say, and tells about it.
pub fn train(
    global: &GlobalArguments,
    arguments: &TrainArguments,
    device: Rc<dyn Device>,
    interrupted: &AtomicBool,
) -> Result<Trained> {
    let resumes = arguments.resumes();
    if arguments.resume && !resumes {
        global.note("there is nothing to resume yet: the run begins");
    }
    let shared = device.clone();
    let mut run = if resumes {
        resume(global, device, arguments, interrupted)?
    } else {
        begin(global, device, arguments, interrupted)?
    };
    run.prepare().map_err(|error| with_fitting_batch(error, &run))?;
    if !resumes {
        // Only now: what is refused or does not fit into memory leaves no folder behind.
        create(&run.folder)?;
        write_config(arguments, &run)?;
    }
    describe(global, &run)?;

    let folder = run.folder.clone();
    let device = run.trainer.network().device().name();
    let batches = |pictures: usize| pictures.div_ceil(run.recipe.batch_size);
    let workload = Workload {
        epochs: run.recipe.epochs,
        train_batches: batches(run.splits.train.len()),
        test_batches: batches(run.splits.test.len()),
    };
    let mut display = TrainingDisplay::new(global, workload, &run.position, device.clone());
    let mut board = match arguments.tensorboard {
        true => Some(TensorBoard::create(&folder.path, workload.train_batches)?),
        false => None,
    };
    let result = run.train(|event| {
        if let (Some(open), Event::Recorded(metric) | Event::Epoch(metric)) = (&mut board, &event)
            && let Err(error) = open.add(metric)
        {
            // Pictures of the run must not end it.
            display.warn(&format!("no more TensorBoard events: {}", error.message()));
            board = None;
        }
        display.observe(event);
    });
    let skipped = display.finish();
    let summary = result.map_err(|error| match error.kind() {
        ErrorKind::Interrupted => {
            let device = if global.device == "auto" { String::new() } else { format!(" --device {}", global.device) };
            let (data, out) = (arguments.data.display(), folder.path.display());
            error.hint(format!("to go on: retune train {data} --resume --out {out}{device}"))
        }
        _ => error,
    })?;
    if !skipped.is_empty() {
        warn_of_skipped(skipped.len());
    }
    if summary.waiting_share > 0.1 {
        let share = summary.waiting_share * 100.0;
        global.note(&format!("{share:.0} % of the training time was spent waiting for pictures to be decoded"));
    }
    let best = summary.best;
    global.note(&format!(
        "best test accuracy {:.3} in epoch {}: {}",
        best.test_acc,
        best.epoch,
        folder.model().display()
    ));
    if !arguments.no_report {
        report::after_training(global, &folder, &arguments.data, &shared);
    }
    Ok(Trained { folder, summary, device, skipped })
}

/// Trains a few steps twice and compares what a checkpoint would hold.
fn verify_determinism(global: &GlobalArguments, arguments: &TrainArguments, steps: u64) -> Result<ExitCode> {
    let device = global.open_device()?;
    let interrupted = interruption()?;
    let folders = [(); 2].map(|()| tempfile::tempdir());
    let mut checkpoints = Vec::new();
    for (number, folder) in folders.iter().enumerate() {
        let folder =
            folder.as_ref().map_err(|cause| Error::new(format!("cannot create a temporary folder: {cause}")))?;
        let stop = AtomicBool::new(false);
        let mut run = begin(global, device.clone(), arguments, &stop)?;
        run.folder = RunFolder { path: folder.path().to_path_buf() };
        run.workers = if number == 0 { 1 } else { run.workers.max(2) };
        run.checkpointing = Checkpointing { every: CheckpointEvery::Steps(usize::MAX), kept: 1 };
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
            _ if interrupted.load(Ordering::Relaxed) => return Err(Error::interrupted("stopped; nothing was written")),
            _ => checkpoints.push((TensorFile::open(&RunFolder { path: folder.path().into() }.checkpoint())?, done)),
        }
    }
    let [(first, steps), (second, _)] = checkpoints.as_slice() else { unreachable!("two runs were made") };
    for name in first.names() {
        if first.bytes(name)? != second.bytes(name)? {
            return Err(Error::new(format!("after {steps} steps, {name} is not the same in both runs"))
                .hint("this is a fault of the program or of the machine: please report it, with the device"));
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

/// A flag that the first Ctrl-C (or SIGTERM) sets; the second ends the program at once.
pub fn interruption() -> Result<&'static AtomicBool> {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        say("\nstopping after this step; once more to stop at once");
    })
    .context(|| "cannot listen for Ctrl-C")?;
    Ok(&INTERRUPTED)
}

fn workers(arguments: &TrainArguments) -> Result<usize> {
    match arguments.workers {
        Some(0) => Err(Error::usage("--workers 0: expected at least 1")),
        Some(workers) => Ok(workers),
        None => Ok(std::thread::available_parallelism().map_or(1, NonZeroUsize::get)),
    }
}

fn begin<'a>(
    global: &GlobalArguments,
    device: Rc<dyn Device>,
    arguments: &TrainArguments,
    interrupted: &'a AtomicBool,
) -> Result<Run<'a>> {
    let workers = workers(arguments)?;
    if arguments.weights.is_none() && !arguments.from_scratch {
        return Err(Error::usage("there is nothing to begin with: neither --weights nor --from-scratch is given")
            .hint("give --weights FILE to fine-tune a trained network, or --from-scratch to train a new one"));
    }
    let folder = match &arguments.out {
        Some(path) => RunFolder { path: path.clone() },
        None => numbered_folders().find(|folder| !is_taken(folder)).ok_or_else(|| Error::new("runs/ is full"))?,
    };
    require_free(&folder)?;
    let weights = arguments.weights.as_deref().map(|weights| fetch::resolve(global, weights)).transpose()?;
    let file = weights.as_deref().map(TensorFile::open).transpose()?;
    if let Some(origin) = file.as_ref().and_then(TensorFile::origin) {
        global.note(&format!("the weights are {origin}"));
    }
    let recipe = arguments.recipe(file.as_ref())?;
    let splits = open_dataset(&arguments.data, recipe.test_fraction, recipe.seed)?.decoded_with(recipe.decoding());
    let classes = splits.train.classes.len();
    let resnet = ResNet { architecture: recipe.architecture.parse()?, width: recipe.width, classes };
    let trainable = recipe.trainable()?;
    trainable.freezing.check(&resnet.specification()).map_err(|error| error.about("--freeze"))?;
    let mut trainer = Trainer::new(device, resnet, trainable)?;
    let network = trainer.network_mut();
    match &file {
        Some(file) => {
            let report = load_state_dict(network, file, HeadPolicy::Replace)?;
            report.notices().iter().for_each(|notice| global.note(notice));
            match &recipe.head_from {
                Some(rows) => {
                    copy_head(network, file, &report, rows)?;
                    global.note(&format!("the new head begins with rows {rows:?} of the old one"));
                }
                None => {
                    if report.replaced_head.is_none() {
                        global
                            .note(&format!("the head was replaced by a new one, though it had {classes} rows as well"));
                    }
                    new_head(network, recipe.seed)?;
                }
            }
        }
        None => initialise(network, recipe.seed)?,
    }
    let position = Position::default();
    let picture_memory = arguments.picture_memory();
    let strict = arguments.strict;
    let checkpointing = arguments.checkpointing()?;
    Ok(Run { trainer, recipe, splits, folder, position, workers, picture_memory, strict, checkpointing, interrupted })
}

/// Where the run is that is resumed.
fn resumed_folder(arguments: &TrainArguments) -> Result<RunFolder> {
    let folder = match &arguments.out {
        Some(path) => RunFolder { path: path.clone() },
        None => {
            let last = numbered_folders().take_while(is_taken).last();
            let none = || Error::new("--resume: there is no numbered run in runs/").hint("name its folder with --out");
            last.ok_or_else(none)?
        }
    };
    if !folder.checkpoint().exists() {
        let message = format!("--resume: there is no {}", folder.checkpoint().display());
        return Err(Error::new(message).hint("leave --resume out to begin a run there, or name its folder with --out"));
    }
    Ok(folder)
}

fn resume<'a>(
    global: &GlobalArguments,
    device: Rc<dyn Device>,
    arguments: &TrainArguments,
    interrupted: &'a AtomicBool,
) -> Result<Run<'a>> {
    let workers = workers(arguments)?;
    let folder = resumed_folder(arguments)?;
    let checkpoint = Checkpoint::open(&folder.checkpoint())?;
    let mut recipe = checkpoint.recipe.clone();
    if arguments.weights.is_some() && recipe.from_scratch {
        return Err(Error::usage(format!("--weights: the run in {} was begun from scratch", folder.path.display()))
            .hint("leave it out to resume, or begin another run with another --out"));
    }
    arguments.overlay(&mut recipe, |flag| match flag {
        "--epochs" => Ok(()),
        _ => Err(Error::usage(format!("{flag} differs from the recipe of the run in {}", folder.path.display()))
            .hint("leave it out to resume, or begin another run with another --out")),
    })?;
    check(&recipe)?;
    let (done, wanted) = (checkpoint.position.epoch, recipe.epochs);
    if done >= wanted {
        let epochs = if done == 1 { "1 epoch".to_string() } else { format!("{done} epochs") };
        return Err(Error::new(format!("the run in {} has done {epochs}, of {wanted}", folder.path.display()))
            .hint("give a larger --epochs to go on, or another --out to begin another run"));
    }
    let splits = open_dataset(&arguments.data, recipe.test_fraction, recipe.seed)?.decoded_with(recipe.decoding());
    if splits.train.classes != checkpoint.classes {
        return Err(Error::new(format!(
            "{} has the classes {}, but the run in {} was about {}",
            arguments.data.display(),
            splits.train.classes.join(", "),
            folder.path.display(),
            checkpoint.classes.join(", ")
        )));
    }
    if let Ok(RunRecord { config, .. }) = RunRecord::open(&folder) {
        let (before, now) = ([config.train_images, config.test_images], [splits.train.len(), splits.test.len()]);
        if before != now {
            global.note(&format!(
                "the run began with {} training and {} test pictures, now there are {} and {}: its bits will not be those of \
                 a run that was not interrupted",
                before[0], before[1], now[0], now[1]
            ));
        }
    }
    let (before, now) = (checkpoint.precision, device.precision());
    if before != now {
        global.note(&format!(
            "the run was in {before} until here and goes on in {now}: its bits will be those of neither"
        ));
    }
    let resnet =
        ResNet { architecture: recipe.architecture.parse()?, width: recipe.width, classes: checkpoint.classes.len() };
    let mut trainer = Trainer::new(device, resnet, recipe.trainable()?)?;
    checkpoint.restore(trainer.network_mut())?;
    let position = checkpoint.position;
    let picture_memory = arguments.picture_memory();
    let strict = arguments.strict;
    let checkpointing = arguments.checkpointing()?;
    Ok(Run { trainer, recipe, splits, folder, position, workers, picture_memory, strict, checkpointing, interrupted })
}

/// Adds to a shortage of memory the batch that would fit.
fn with_fitting_batch(error: Error, run: &Run) -> Error {
    // Devices hand out whole pages, of 2 MiB at most.
    let free = error.shortage().and_then(|shortage| shortage.free).map(|free| free.saturating_sub(2 << 20));
    match free.map(|free| run.largest_batch_within(free)) {
        Some(Ok(Some(batch))) => error.hint(format!("--batch-size {batch} fits")),
        Some(Ok(None)) => error.hint("not even --batch-size 1 fits: give a smaller --image-size, or --device cpu"),
        // What the device told stands by itself.
        Some(Err(_)) | None => error,
    }
}

/// `runs/1`, `runs/2`, ...
fn numbered_folders() -> impl Iterator<Item = RunFolder> {
    (1..100_000).map(|number| RunFolder { path: PathBuf::from(format!("runs/{number}")) })
}

/// Whether a run has left something to lose.
fn is_taken(folder: &RunFolder) -> bool {
    folder.checkpoint().exists() || folder.model().exists()
}

fn write_config(arguments: &TrainArguments, run: &Run) -> Result<()> {
    let Run { recipe, splits, folder, .. } = run;
    let config = serde_json::json!({
        "retune": env!("CARGO_PKG_VERSION"),
        "data": arguments.data.to_string_lossy(),
        "weights": arguments.weights.as_ref().map(|weights| weights.to_string_lossy()),
        "device": run.trainer.network().device().name(),
        "precision": run.trainer.network().device().precision().to_string(),
        "classes": splits.train.classes,
        "train_images": splits.train.len(),
        "test_images": splits.test.len(),
        "recipe": recipe,
    });
    let text = serde_json::to_string_pretty(&config).context(|| "cannot write config.json")? + "\n";
    write_atomically(&folder.config(), |writer| std::io::Write::write_all(writer, text.as_bytes()))
}

fn describe(global: &GlobalArguments, run: &Run) -> Result<()> {
    let Recipe { architecture, width, epochs, batch_size, learning_rate, head_lr_multiplier, .. } = &run.recipe;
    let memory = run.memory(*batch_size)?;
    let width = if *width == 64 { String::new() } else { format!(" of width {width}") };
    global.note(&format!(
        "{architecture}{width} on {} ({}); {} training and {} test pictures of {} classes",
        run.trainer.network().device().name(),
        run.trainer.network().device().description(),
        run.splits.train.len(),
        run.splits.test.len(),
        run.splits.train.classes.len()
    ));
    global.note(&format!(
        "{epochs} {}, batch {batch_size}, lr {learning_rate:e} (head {:e}), {} of memory, {} of it for activations",
        if *epochs == 1 { "epoch" } else { "epochs" },
        learning_rate * head_lr_multiplier,
        size(memory.on_device()),
        size(memory.activations)
    ));
    if run.position != Position::default() {
        global.note(&format!("resuming in epoch {} after batch {}", run.position.epoch + 1, run.position.batch));
    }
    Ok(())
}

/// Refuses values that no run can have.
fn check(recipe: &Recipe) -> Result<()> {
    for (flag, value) in [("--batch-size", recipe.batch_size), ("--epochs", recipe.epochs)] {
        if value == 0 {
            return Err(Error::usage(format!("{flag} 0: expected at least 1")));
        }
    }
    let limited = [("--image-size", recipe.image_size, LARGEST_IMAGE_SIZE), ("--width", recipe.width, LARGEST_WIDTH)];
    for (flag, value, largest) in limited {
        if !(1..=largest).contains(&value) {
            return Err(Error::usage(format!("{flag} {value}: expected 1 to {largest}")));
        }
    }
    let not_negative = [
        ("--lr", recipe.learning_rate),
        ("--head-lr-multiplier", recipe.head_lr_multiplier),
        ("--weight-decay", recipe.weight_decay),
        ("--momentum", recipe.momentum),
    ];
    for (flag, value) in not_negative {
        if !(value.is_finite() && value >= 0.0) {
            return Err(Error::usage(format!("{flag} {value}: expected a number that is not negative")));
        }
    }
    if let Some(norm) = recipe.clip_gradient_norm
        && !(norm.is_finite() && norm > 0.0)
    {
        return Err(Error::usage(format!("--clip-gradient-norm {norm}: expected a number above 0")));
    }
    if recipe.from_scratch && recipe.head_from.is_some() {
        return Err(Error::usage("--head-from: a network from scratch has no old head")
            .hint("leave --from-scratch or --head-from out"));
    }
    match recipe.loss_reduction.as_str() {
        "sum" | "mean" => Ok(()),
        other => Err(Error::usage(format!("--loss-reduction {other}: expected sum or mean"))),
    }
}

/// Refuses a folder in which a run has left something to lose. The notes of one that never came to its first checkpoint
/// are nothing.
fn require_free(folder: &RunFolder) -> Result<()> {
    let out = folder.path.display();
    let has_begun =
        || Checkpoint::open(&folder.checkpoint()).map_or(true, |checkpoint| checkpoint.position != Position::default());
    if folder.checkpoint().exists() && has_begun() {
        return Err(Error::new(format!("--out {out}: another run is there"))
            .hint("give --resume to go on with it, or another folder"));
    }
    if folder.model().exists() {
        return Err(Error::new(format!("--out {out}: another model is there")).hint("give another folder"));
    }
    Ok(())
}

/// Creates the folder of a new run.
fn create(folder: &RunFolder) -> Result<()> {
    require_free(folder)?;
    std::fs::create_dir_all(&folder.path).map_err(|cause| {
        Error::new(format!("--out {}: cannot create the folder: {cause}", folder.path.display()))
            .hint("name a folder that can be made and written")
    })
}
