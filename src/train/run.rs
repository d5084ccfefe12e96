//! One training run, from its first step or from a checkpoint to its last.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::checkpoint::{Best, Checkpoint, Position, save_checkpoint};
use super::diagnose::find_not_finite;
use super::evaluate::{batch_shape, evaluate};
use super::metrics::{Metric, MetricsFile, Totals};
use super::model_file::save_model;
use super::network::{BatchResult, Purpose};
use super::recipe::Recipe;
use super::trainer::Trainer;
use crate::data::{Batches, ImageFolder, Loader, LoaderOptions, Mode, PictureStore, SkippedSample, Splits, Stored};
use crate::device::Device;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::file::write_atomically;
use crate::model::BatchShape;
use crate::ops::LossReduction;
use crate::tensor::Tensor;

/// The files of a run's folder.
#[derive(Debug, Clone)]
pub struct RunFolder {
    /// The folder itself.
    pub path: PathBuf,
}

impl RunFolder {
    /// The best model.
    pub fn model(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// All that resuming needs.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint.safetensors")
    }

    /// The recipe and where everything came from.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// What was measured, one JSON object a line.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Gives the newest checkpoint a second name, `checkpoint-EPOCH-BATCH.safetensors` after its position, so that it
    /// survives the next; and removes older ones until, with the next, `kept` are there.
    fn keep_checkpoint(&self, kept: usize) -> Result<()> {
        let newest = self.checkpoint();
        if kept > 1 && newest.exists() {
            let Position { epoch, batch, .. } = Checkpoint::open(&newest)?.position;
            let name = self.path.join(format!("checkpoint-{epoch:05}-{batch:06}.safetensors"));
            // Some file systems know no hard links. The copy is only a copy: the checkpoint itself stays where it is.
            if !name.exists() && fs::hard_link(&newest, &name).is_err() {
                let bytes = fs::read(&newest).context(|| format!("cannot read {}", newest.display()))?;
                write_atomically(&name, |writer| writer.write_all(&bytes))?;
            }
        }
        self.remove_older_checkpoints(kept);
        Ok(())
    }

    /// Leaves, with the newest, `kept` checkpoints.
    fn remove_older_checkpoints(&self, kept: usize) {
        let mut older = self.older_checkpoints();
        older.truncate(older.len().saturating_sub(kept.saturating_sub(1)));
        for path in older {
            // One that cannot be removed only takes room, and the next time may be luckier.
            let _ = fs::remove_file(path);
        }
    }

    /// The checkpoints before the newest, the oldest first.
    pub fn older_checkpoints(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Vec::new() };
        let is_older = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let position = name.strip_prefix("checkpoint-").and_then(|name| name.strip_suffix(".safetensors"));
            position.is_some_and(|position| position.chars().all(|c| c.is_ascii_digit() || c == '-'))
        };
        let mut older: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_older).collect();
        older.sort();
        older
    }

    /// Removes the temporary files of a run that was killed while it wrote.
    pub fn remove_leftovers(&self) {
        const OURS: [&str; 6] =
            [".model.safetensors.", ".checkpoint", ".config.json.", ".metrics.jsonl.", ".report.html.", ".curves."];
        let Ok(entries) = fs::read_dir(&self.path) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".tmp") && OURS.iter().any(|ours| name.starts_with(ours)) {
                // One that cannot be removed only takes room.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// What a run tells while it goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// A step was made.
    Step {
        /// Counted from 1.
        epoch: usize,
        /// Batches done in this epoch, of how many.
        batch: usize,
        /// Batches of an epoch.
        batches: usize,
        /// Over the epoch so far.
        totals: Totals,
        /// How fast it goes.
        pace: Pace,
    },
    /// A part of an epoch was recorded.
    Recorded(&'a Metric),
    /// A batch of test pictures was classified.
    Tested {
        /// How many batches so far.
        batch: usize,
        /// Batches of the test set.
        batches: usize,
    },
    /// An epoch was completed and saved.
    Epoch(&'a Metric),
    /// Pictures stay in the device's memory from here on, of so many in all.
    Stored(Stored, usize),
    /// A picture could not be read and was left out; told once a picture.
    Skipped(&'a SkippedSample),
}

/// How fast a run goes, since it began or resumed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Training pictures a second.
    pub images_per_second: f64,
    /// How long a batch waits for its pictures, on average.
    pub data: Duration,
    /// How long a step then takes, on average.
    pub compute: Duration,
}

/// What a completed run ends with.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Mean loss a training picture, over the last epoch.
    pub train_loss: f64,
    /// Share of correct training pictures, over the last epoch.
    pub train_acc: f64,
    /// Share of correct test pictures, after the last epoch.
    pub test_acc: f64,
    /// Training pictures a second.
    pub images_per_second: f64,
    /// Of that, the share of time that was spent waiting for pictures.
    pub waiting_share: f64,
    /// The epoch whose model was kept.
    pub best: Best,
    /// Training pictures that could not be read.
    pub skipped: usize,
}

/// When a checkpoint is written, besides at the beginning and after each epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointEvery {
    /// After so many steps of an epoch, and so many more.
    Steps(usize),
    /// When the last one is this old.
    Time(Duration),
}

/// What is saved of a run while it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpointing {
    /// How often.
    pub every: CheckpointEvery,
    /// How many checkpoints are kept, the newest among them.
    pub kept: usize,
}

impl Default for Checkpointing {
    fn default() -> Self {
        Self { every: CheckpointEvery::Time(Duration::from_secs(600)), kept: 1 }
    }
}

/// Everything that a run needs.
pub struct Run<'a> {
    /// With its initial parameters, or as a checkpoint left it.
    pub trainer: Trainer,
    /// How to train.
    pub recipe: Recipe,
    /// What to train on and what to test on.
    pub splits: Splits,
    /// Where to write.
    pub folder: RunFolder,
    /// Where to begin.
    pub position: Position,
    /// Threads that decode pictures.
    pub workers: usize,
    /// Bytes that decoded pictures may take on a device that keeps them; without a limit, what is free.
    pub picture_memory: Option<usize>,
    /// Whether an unreadable picture ends the run.
    pub strict: bool,
    /// What is saved on the way.
    pub checkpointing: Checkpointing,
    /// Set when the user wants to stop; the run saves a checkpoint and ends.
    pub interrupted: &'a AtomicBool,
}

/// What a run takes at its peak, in bytes, as it is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// On the device: the arena of activations, their gradients and workspaces.
    pub activations: usize,
    /// On the device: parameters, their gradients, velocities.
    pub parameters: usize,
    /// On the host: batches that wait, pictures that are being decoded, a checkpoint that is being written, the program.
    pub host: usize,
    /// Whether the device computes in the host's memory, so that all of it has to fit there together.
    pub is_shared: bool,
}

impl MemoryPlan {
    /// What the device's memory has to hold.
    pub fn on_device(&self) -> usize {
        let shared = if self.is_shared { self.host } else { 0 };
        self.activations.saturating_add(self.parameters).saturating_add(shared)
    }
}

/// What the program itself takes: its code, threads, tables.
const PROGRAM_BYTES: usize = 16 << 20;

/// What a worker takes for a photo while it decodes it.
const WORKER_BYTES: usize = 4 << 20;

/// How often an epoch's progress is recorded, as in the lesson.
const RECORDS_PER_EPOCH: usize = 5;

/// What took how long, since the run began or resumed.
#[derive(Default)]
struct Clock {
    training: Duration,
    waiting: Duration,
    images: u64,
    batches: u32,
}

impl Clock {
    fn images_per_second(&self) -> f64 {
        self.images as f64 / self.training.as_secs_f64().max(1e-9)
    }

    fn pace(&self) -> Pace {
        let batches = self.batches.max(1);
        Pace {
            images_per_second: self.images_per_second(),
            data: self.waiting / batches,
            compute: self.training.saturating_sub(self.waiting) / batches,
        }
    }
}

/// Pictures that were left out.
struct LeftOut {
    /// Those that have their line in `metrics.jsonl`, by the name that they have there.
    recorded: HashSet<String>,
    told: HashSet<PathBuf>,
}

impl LeftOut {
    /// Those of the part of the run that is resumed.
    fn of_earlier(metrics: &MetricsFile) -> Self {
        Self { recorded: metrics.skipped().clone(), told: HashSet::new() }
    }

    /// Records and tells what is new of them.
    fn note(
        &mut self,
        samples: &[SkippedSample],
        metrics: &mut MetricsFile,
        observe: &mut impl FnMut(Event),
    ) -> Result<()> {
        for sample in samples {
            if self.recorded.insert(sample.path.to_string_lossy().into_owned()) {
                metrics.append(&sample.into())?;
            }
            if self.told.insert(sample.path.clone()) {
                observe(Event::Skipped(sample));
            }
        }
        Ok(())
    }

    /// How many of these pictures.
    fn of(&self, folder: &ImageFolder) -> usize {
        folder.samples.iter().filter(|sample| self.recorded.contains(&*sample.path.to_string_lossy())).count()
    }
}

impl Run<'_> {
    /// What the run takes with batches of this size. Allocates nothing.
    pub fn memory(&self, batch_size: usize) -> Result<MemoryPlan> {
        let network = self.trainer.network();
        let activations = |images: usize, purpose| {
            let (batch, size) = (images.min(batch_size), self.recipe.image_size);
            match batch {
                0 => Ok(0),
                _ => network.arena_bytes_of(BatchShape { batch, height: size, width: size }, purpose),
            }
        };
        let Splits { train, test } = &self.splits;
        let batches = LoaderOptions { batch_size, ..self.loader_options(Mode::Evaluate) }
            .bytes_at_once(train.len().max(test.len()));
        let state =
            network.parameters().specifications().map(|specification| specification.shape.len() * 4).sum::<usize>();
        let with_velocities = state * if self.recipe.momentum > 0.0 { 2 } else { 1 };
        Ok(MemoryPlan {
            activations: activations(train.len(), Purpose::Training)?
                .max(activations(test.len(), Purpose::Evaluation)?),
            parameters: network.parameters().bytes(),
            host: batches.saturating_add(with_velocities + self.workers * WORKER_BYTES + PROGRAM_BYTES),
            is_shared: !network.device().has_augment(),
        })
    }

    /// Plans every batch shape that the run will meet, so that the memory for it is there before anything starts.
    ///
    /// # Errors
    /// When the device has not the memory that it takes.
    pub fn prepare(&mut self) -> Result<()> {
        let Recipe { batch_size, image_size, .. } = self.recipe;
        let plan = self.memory(batch_size)?;
        // The parameters are there already, and where this was asked before the arena too.
        let asked = (plan.on_device() - plan.parameters).saturating_sub(self.trainer.network().arena_bytes());
        if let Some(free) = self.trainer.network().device().free_bytes()?.filter(|&free| free < asked) {
            return Err(Error::out_of_memory(&self.trainer.network().device().name(), asked, Some(free)));
        }
        let shape = |batch| BatchShape { batch, height: image_size, width: image_size };
        for (images, purpose) in
            [(self.splits.train.len(), Purpose::Training), (self.splits.test.len(), Purpose::Evaluation)]
        {
            for batch in [images.min(batch_size), images % batch_size] {
                if batch > 0 {
                    self.trainer.network_mut().prepare(shape(batch), purpose)?;
                }
            }
        }
        Ok(())
    }

    /// The largest batch, below the recipe's, for which `bytes` more are enough; none where a single picture takes more.
    pub fn largest_batch_within(&self, bytes: usize) -> Result<Option<usize>> {
        let takes = |batch| self.memory(batch).map(|plan| plan.on_device() - plan.parameters);
        let (mut fits, mut too_many) = (0, self.recipe.batch_size.min(self.splits.train.len()));
        while too_many - fits > 1 {
            let batch = fits + (too_many - fits) / 2;
            if takes(batch)? <= bytes { fits = batch } else { too_many = batch }
        }
        Ok((fits > 0).then_some(fits))
    }

    /// Trains to the end, telling `observe` about it.
    ///
    /// # Errors
    /// When the user interrupts it: a checkpoint has then been saved. When a loss is not finite. When a file cannot be
    /// written; the last checkpoint is then as it was.
    pub fn train(mut self, mut observe: impl FnMut(Event)) -> Result<Summary> {
        self.prepare()?;
        self.folder.remove_leftovers();
        let store = Rc::new(PictureStore::new(self.trainer.network().shared_device(), self.picture_memory));
        let train_loader = self.loader(&self.splits.train, Mode::Train { seed: self.recipe.seed })?;
        let mut train_batches = Batches::new(train_loader, &store)?;
        let mut test_batches = Batches::new(self.loader(&self.splits.test, Mode::Evaluate)?, &store)?;
        let mut metrics = MetricsFile::open(&self.folder.metrics(), self.position.metrics_lines)?;
        let mut left_out = LeftOut::of_earlier(&metrics);
        if self.position == Position::default() {
            // From here on a run can be resumed, whatever happens to it.
            self.save_checkpoint()?;
        }
        let mut clock = Clock::default();
        let mut last = None;
        let mut stored = Stored::default();
        while self.position.epoch < self.recipe.epochs {
            let before = (clock.images, clock.training);
            self.train_epoch(&mut train_batches, &mut metrics, &mut clock, &mut left_out, &mut observe)?;
            let (images, training) = (clock.images - before.0, clock.training - before.1);

            let batches = test_batches.loader().batch_count();
            let mut batch = 0;
            let tested = evaluate(self.trainer.network_mut(), &mut test_batches, self.recipe.image_size, |tested| {
                left_out.note(&tested.skipped, &mut metrics, &mut observe)?;
                batch += 1;
                observe(Event::Tested { batch, batches });
                match self.interrupted.load(Ordering::Relaxed) {
                    true => Err(Error::interrupted("stopped while testing")),
                    false => Ok(()),
                }
            });
            let (test, _) = match tested {
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    return Err(self.stop(train_batches.loader().batch_count()));
                }
                tested => tested?,
            };
            let train = self.position.totals;
            let epoch = self.position.epoch + 1;
            let metric = Metric::Epoch {
                epoch,
                train_loss: train.mean_loss(),
                train_acc: train.accuracy(),
                test_loss: test.mean_loss(),
                test_acc: test.accuracy(),
                images_per_second: images as f64 / training.as_secs_f64().max(1e-9),
                seconds: training.as_secs_f64(),
            };
            metrics.append(&metric)?;
            let this = Best { epoch, test_acc: test.accuracy(), test_loss: test.mean_loss() };
            if self.position.best.is_none_or(|best| this.beats(&best)) {
                // What leads to this model: it does not depend on the epochs that may follow.
                let recipe = Recipe { epochs: epoch, ..self.recipe.clone() };
                save_model(&self.folder.model(), self.trainer.network(), &recipe, &self.splits.train.classes)?;
                self.position.best = Some(this);
            }
            self.position =
                Position { epoch, metrics_lines: metrics.lines(), best: self.position.best, ..Position::default() };
            self.save_checkpoint()?;
            observe(Event::Epoch(&metric));
            if std::mem::replace(&mut stored, store.stored()) != stored {
                observe(Event::Stored(stored, self.splits.train.len() + self.splits.test.len()));
            }
            last = Some((train, test));
        }
        self.folder.remove_older_checkpoints(self.checkpointing.kept);
        let (Some((train, test)), Some(best)) = (last, self.position.best) else {
            return Err(Error::new(format!("no epoch is left of the run's {}", self.recipe.epochs)));
        };
        Ok(Summary {
            train_loss: train.mean_loss(),
            train_acc: train.accuracy(),
            test_acc: test.accuracy(),
            images_per_second: clock.images_per_second(),
            waiting_share: clock.waiting.as_secs_f64() / clock.training.as_secs_f64().max(1e-9),
            best,
            skipped: left_out.of(&self.splits.train),
        })
    }

    fn train_epoch(
        &mut self,
        train_batches: &mut Batches,
        metrics: &mut MetricsFile,
        clock: &mut Clock,
        left_out: &mut LeftOut,
        observe: &mut impl FnMut(Event),
    ) -> Result<()> {
        let batches = train_batches.loader().batch_count();
        let recorded_every = (batches / RECORDS_PER_EPOCH).max(1);
        let mut saved = Instant::now();
        let mut epoch = train_batches.epoch_from(self.position.epoch as u64, self.position.batch);
        loop {
            let started = Instant::now();
            let Some(batch) = epoch.next_batch() else { break };
            let batch = batch?;
            clock.waiting += started.elapsed();
            left_out.note(&batch.skipped, metrics, observe)?;
            let images = batch.targets.len();
            if images > 0 {
                let shape = batch_shape(&batch, self.recipe.image_size);
                let write = |device: &dyn Device, input: &Tensor| batch.write(device, input);
                let result = self.trainer.step_by(shape, write, &batch.targets)?;
                if !result.loss.is_finite() || result.gradient_norm.is_some_and(|norm| !norm.is_finite()) {
                    let place = find_not_finite(&self.trainer, shape, write, &batch.targets)?;
                    return Err(self.not_finite(result, place));
                }
                let loss = match self.recipe.reduction()? {
                    LossReduction::Sum => f64::from(result.loss),
                    LossReduction::Mean => f64::from(result.loss) * images as f64,
                };
                self.position.totals.add(Totals { loss, correct: result.correct as u64, images: images as u64 });
            }
            self.position.batch += 1;
            clock.images += images as u64;
            clock.batches += 1;
            clock.training += started.elapsed();
            let totals = self.position.totals;
            observe(Event::Step {
                epoch: self.position.epoch + 1,
                batch: self.position.batch,
                batches,
                totals,
                pace: clock.pace(),
            });
            if self.position.batch.is_multiple_of(recorded_every) || self.position.batch == batches {
                let metric = Metric::Progress {
                    epoch: self.position.epoch as f64 + self.position.batch as f64 / batches as f64,
                    train_loss: totals.mean_loss(),
                    train_acc: totals.accuracy(),
                };
                metrics.append(&metric)?;
                observe(Event::Recorded(&metric));
            }
            self.position.metrics_lines = metrics.lines();
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(self.stop(batches));
            }
            let is_due = match self.checkpointing.every {
                CheckpointEvery::Steps(steps) => self.position.batch.is_multiple_of(steps),
                CheckpointEvery::Time(time) => saved.elapsed() >= time,
            };
            if is_due && self.position.batch < batches {
                self.save_checkpoint()?;
                saved = Instant::now();
            }
        }
        if self.position.totals.images == 0 {
            return Err(Error::new("not one of the training pictures could be read"));
        }
        Ok(())
    }

    /// What is told when numbers ran away.
    fn not_finite(&self, result: BatchResult, place: Option<String>) -> Error {
        let what = match result.loss.is_finite() {
            true => format!("the norm of the gradients became {}", result.gradient_norm.unwrap_or(f32::NAN)),
            false => format!("the loss became {}", result.loss),
        };
        let place = place.map_or(String::new(), |place| format!("; the first value that is not finite is in {place}"));
        let Recipe { learning_rate, .. } = self.recipe;
        Error::new(format!(
            "{what} in epoch {}, batch {}, at a learning rate of {learning_rate:e}{place}; the last checkpoint is as it was",
            self.position.epoch + 1,
            self.position.batch + 1
        ))
        .hint("use a smaller learning rate, or --clip-gradient-norm 1")
    }

    /// Saves where the run is, and tells how to go on.
    fn stop(&self, batches: usize) -> Error {
        let (epoch, batch) = (self.position.epoch + 1, self.position.batch);
        match self.save_checkpoint() {
            Ok(()) => Error::interrupted(format!(
                "stopped in epoch {epoch} after batch {batch} of {batches}; {} holds everything",
                self.folder.checkpoint().display()
            )),
            Err(error) => error,
        }
    }

    fn save_checkpoint(&self) -> Result<()> {
        let (network, recipe) = (self.trainer.network(), &self.recipe);
        self.folder.keep_checkpoint(self.checkpointing.kept)?;
        save_checkpoint(&self.folder.checkpoint(), network, recipe, &self.splits.train.classes, &self.position)
    }

    fn loader(&self, folder: &ImageFolder, mode: Mode) -> Result<Loader> {
        Loader::new(Arc::new(folder.clone()), self.loader_options(mode))
    }

    fn loader_options(&self, mode: Mode) -> LoaderOptions {
        LoaderOptions {
            batch_size: self.recipe.batch_size,
            image_size: self.recipe.image_size as u32,
            mode,
            workers: self.workers,
            strict: self.strict,
        }
    }
}
