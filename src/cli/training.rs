//! Code that the training commands share: a run from its preparation to its report, with its progress.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::progress::Progress;
use super::training_display::{TrainingDisplay, Workload};
use super::{GlobalArguments, report, shell, size, warn, warn_of_skipped};
use crate::data::counted;
use crate::error::{Error, ErrorKind, Result};
use crate::file::write_atomically;
use crate::printable::plain_number;
use crate::report::{Finding, RunRecord, divergence};
use crate::train::{
    Choice, DataCheck, Event, FolderLock, HeldOut, Position, Recipe, Run, RunConfig, RunFolder, Summary, TensorBoard,
    few_steps, recipe_text,
};

/// The optional outputs of a run, and its entries in `config.json`.
pub struct Training<'a> {
    /// The folder of the data set.
    pub data: &'a Path,
    /// The weights that it starts from, as the user named them.
    pub weights: Option<&'a Path>,
    /// The time in which a new run is to end.
    pub budget: Option<Duration>,
    /// The folder to which the run writes.
    pub place: Place,
    /// Whether event files for TensorBoard are written.
    pub tensorboard: bool,
    /// Whether `report.html` and the curves are written.
    pub report: bool,
}

/// The choice of a run's folder.
pub enum Place {
    /// The next of `runs/1`, `runs/2`, ...
    Numbered,
    /// A named folder, which is already locked if it existed.
    Named(Option<FolderLock>),
    /// The folder of a run that is resumed.
    Resumed(FolderLock),
}

/// The results of a finished run.
pub struct Trained {
    /// The run's folder.
    pub folder: RunFolder,
    /// The metrics of the last epoch and of the best.
    pub summary: Summary,
    /// The device's name.
    pub device: String,
    /// Images that could not be read.
    pub skipped: Vec<PathBuf>,
}

impl Trained {
    /// The results in the form of the last line of output in the lesson.
    pub fn line(&self) -> String {
        let Summary { train_loss, train_acc, test_acc, images_per_second, .. } = self.summary;
        format!(
            "loss {train_loss:.3}, train acc {train_acc:.3}, test acc {test_acc:.3}; {images_per_second:.1} \
             examples/sec on {}",
            self.device
        )
    }
}

impl Training<'_> {
    /// Trains `run` to its end.
    pub fn complete(self, global: &GlobalArguments, mut run: Run) -> Result<Trained> {
        prepare(&mut run)?;
        run.options.folder.require_apart(self.data, &run.splits)?;
        if let Some(budget) = self.budget {
            match run.position == Position::default() {
                true => global.note(&run.fit_into(budget)?),
                false => global.note("--budget has no effect: the run keeps its number of epochs"),
            }
        }
        // Created this late so that a run that is rejected or does not fit into memory leaves no folder.
        let lock = occupy(self.place, &mut run.options.folder)?;
        if let Some(notice) = lock.notice() {
            warn(&notice);
        }
        let folder = run.options.folder.clone();
        record_origin(&run, self.data, self.weights)?;
        describe(global, &run)?;
        // The same lines are on the page.
        if !global.quiet {
            let mut warnings: Vec<String> = run.data_check.iter().flat_map(DataCheck::warnings).collect();
            if run.position == Position::default() {
                warnings.extend(few_steps(&run.recipe, run.splits.train.len()));
            }
            warnings.iter().for_each(|warning| warn(warning));
        }

        let keeps_last = run.recipe.keeps_last(run.splits.validation.is_some());
        let shared = run.trainer.network().shared_device();
        let device = shared.name();
        let batches = run.splits.train.len().div_ceil(run.recipe.batch_size);
        let workload = Workload {
            epochs: run.recipe.epochs,
            features: if run.recipe.fit_head { run.splits.train.len() * run.recipe.features_per_image() } else { 0 },
            trials: run.recipe.images_of_trials(run.splits.train.len()),
            training: run.splits.train.len(),
            choosing: run.splits.choosing().len(),
            final_test: run.splits.validation.as_ref().map_or(0, |_| run.splits.test.len()),
        };
        let mut display = TrainingDisplay::new(global, workload, &run.position, batches, device.clone());
        let mut board = match self.tensorboard {
            true => Some(TensorBoard::create(&folder.path, batches)?),
            false => None,
        };
        let train_counts = run.splits.train.class_counts();
        let result = run.train(|event| {
            if let (Some(open), Event::Recorded(metric) | Event::Epoch(metric)) = (&mut board, &event)
                && let Err(error) = open.add(metric)
            {
                // A failed plot must not end the run.
                display.warn(&format!("no more TensorBoard events: {}", error.message()));
                board = None;
            }
            display.observe(event);
        });
        let skipped = display.finish();
        let summary = result.map_err(|error| match error.kind() {
            ErrorKind::Interrupted => {
                let [data, out] = [self.data, &folder.path].map(|path| path.display().to_string());
                let words = ["train".into(), data, "--resume".into(), "--out".into(), out];
                let command = shell::command(words.into_iter().chain(global.device_words()));
                error.hint(format!("to continue: {command}"))
            }
            _ => error,
        })?;
        if !skipped.is_empty() {
            warn_of_skipped(skipped.len());
        }
        if summary.waiting_share > 0.1 {
            let share = summary.waiting_share * 100.0;
            global.note(&format!("{share:.0} % of the training time was spent waiting for images to be decoded"));
        }
        let best = summary.best;
        let place = match best.epoch {
            0 => "with the fitted final layer".to_string(),
            epoch => format!("in epoch {epoch}"),
        };
        let (name, accuracy) = (summary.held_out.name(), best.accuracy);
        let best = if keeps_last { "" } else { "best " };
        global.note(&format!("{best}{name} accuracy {accuracy:.3} {place}: {}", folder.model().display()));
        if let HeldOut::Validation { .. } = summary.held_out {
            global.note(&format!("test accuracy of that model {:.3}", summary.test_acc));
        }
        // A record that cannot be read is told by the report.
        let record = RunRecord::open(&folder).ok();
        if let Some(Finding { title, evidence, advice }) =
            record.and_then(|record| divergence(&record, Some(&train_counts)))
        {
            warn(&format!("{}. {evidence} {advice}", title.replacen("The", "the", 1)));
        }
        if self.report {
            report::after_training(global, &folder, self.data, &shared);
        }
        Ok(Trained { folder, summary, device, skipped })
    }
}

/// Allocates the memory of a run. An error because there is too little names a batch size that fits.
pub fn prepare(run: &mut Run) -> Result<()> {
    run.prepare().map_err(|error| with_fitting_batch(error, run))
}

/// Shows what happens before a run starts.
pub fn tell(global: &GlobalArguments) -> impl FnMut(Event) {
    let mut progress = None;
    move |event| match event {
        Event::Notice(text) => global.note(text),
        Event::Examined { images, of } => {
            let shown = progress.get_or_insert_with(|| Progress::new(global, of as u64, "images examined"));
            shown.position(images as u64);
            if images == of {
                shown.finish();
                progress = None;
            }
        }
        _ => {}
    }
}

/// Creates the folder of a run if it does not exist, and locks it.
fn occupy(place: Place, folder: &mut RunFolder) -> Result<FolderLock> {
    match place {
        Place::Resumed(lock) => return Ok(lock),
        Place::Numbered => *folder = RunFolder::numbered()?,
        Place::Named(_) => folder.create()?,
    }
    let lock = match place {
        Place::Named(Some(lock)) => lock,
        _ => FolderLock::acquire(&folder.path)?,
    };
    // Another run may have started and ended before this one locked the folder.
    folder.require_free()?;
    Ok(lock)
}

/// Writes the settings with which the run was started; for a resumed run, only if the images in its data set have changed.
fn record_origin(run: &Run, data: &Path, weights: Option<&Path>) -> Result<()> {
    let folder = &run.options.folder;
    let mut config = RunConfig::new(run, data, weights);
    // Unlike the configuration, which says how the run was started, the recipe is the one by which it goes on.
    let recipe = recipe_text(&run.recipe)?;
    if fs::read_to_string(folder.recipe()).ok().as_ref() != Some(&recipe) {
        write_atomically(&folder.recipe(), |writer| writer.write_all(recipe.as_bytes()))?;
    }
    // The configuration of a run of an earlier version may be unreadable.
    if let (true, Ok(earlier)) = (run.position != Position::default(), RunConfig::open(folder)) {
        if earlier.images == config.images && run.data_check.is_none() {
            return Ok(());
        }
        config = RunConfig {
            train_images: config.train_images,
            test_images: config.test_images,
            images: config.images,
            data: config.data,
            ..earlier
        };
    }
    run.images.save(&folder.images())?;
    if let Some(check) = &run.data_check {
        check.save(&folder.data_check())?;
    }
    config.save(folder)
}

/// Adds the largest batch size that would fit to an out-of-memory error.
fn with_fitting_batch(error: Error, run: &Run) -> Error {
    // Devices allocate whole pages of at most 2 MiB.
    let free = error.shortage().and_then(|shortage| shortage.free).map(|free| free.saturating_sub(2 << 20));
    match free.map(|free| run.largest_batch_within(free)) {
        Some(Ok(Some(batch))) => error.hint(format!("--batch-size {batch} fits")),
        Some(Ok(None)) => error.hint("use a smaller --image-size, or --device cpu: not even --batch-size 1 fits"),
        // The device's own message is enough.
        Some(Err(_)) | None => error,
    }
}

fn describe(global: &GlobalArguments, run: &Run) -> Result<()> {
    let Recipe { architecture, width, epochs, batch_size, learning_rate, head_lr_multiplier, .. } = &run.recipe;
    let memory = run.memory(*batch_size)?;
    let width = if *width == 64 { String::new() } else { format!(" of width {width}") };
    let device = run.trainer.network().device();
    let validation =
        run.splits.validation.as_ref().map_or(String::new(), |images| format!(", {} validation", images.len()));
    global.note(&format!(
        "{architecture}{width} on {} ({}); {} training{validation} and {} test images in {}",
        device.name(),
        device.description(),
        run.splits.train.len(),
        run.splits.test.len(),
        counted(run.splits.train.classes.len(), "class", "classes")
    ));
    if run.recipe.fit_head {
        global.note(&format!("the final layer is fitted to the features of {}", run.recipe.fitted_to()));
    }
    if *epochs == 0 {
        global.note(&format!("batch size {batch_size}, {} of memory", size(memory.on_device())));
        return Ok(());
    }
    let rates = match (run.position.choice, run.recipe.try_learning_rates.as_slice()) {
        (None, rates @ [_, ..]) => rates.to_vec(),
        (Some(Choice::LearningRate(rate)), _) => vec![rate],
        _ => vec![*learning_rate],
    };
    let listed = |factor: f64| {
        let rates: Vec<String> = rates.iter().map(|rate| plain_number(rate * factor)).collect();
        match rates.split_last() {
            Some((last, others @ [_, ..])) => format!("{} or {last}", others.join(", ")),
            _ => rates.concat(),
        }
    };
    global.note(&format!(
        "{}, batch size {batch_size}, learning rate {} (head {}), {} of memory, {} of it for activations",
        counted(*epochs, "epoch", "epochs"),
        listed(1.0),
        listed(*head_lr_multiplier),
        size(memory.on_device()),
        size(memory.activations)
    ));
    if run.position != Position::default() {
        global.note(&format!("resuming in epoch {} after batch {}", run.position.epoch + 1, run.position.batch));
    }
    Ok(())
}
