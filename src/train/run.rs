//! One training run, from its first step or from a checkpoint to its last.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::average::recompute_statistics;
use super::batch_steps::BatchSteps;
use super::checkpoint::{Best, Choice, Position, save_checkpoint};
use super::data_check::DataCheck;
use super::diagnose::find_not_finite;
use super::evaluate::{batch_shape, evaluate};
use super::events::{Event, Pace, Summary};
use super::features::{Form, features, features_of_forms};
use super::folder::RunFolder;
use super::head_fit::{HeadFit, TrainingFeatures, fit_head};
use super::image_list::ImageList;
use super::metrics::{HeldOut, Metric, MetricsFile, Totals};
use super::model_file::{load_model, save_model, update_recipe};
use super::network::BatchResult;
use super::recipe::Recipe;
use super::temperature::temperature;
use super::trainer::Trainer;
use super::trials::{Division, TrialEvent, Trials, try_learning_rates};
use crate::data::{
    Batches, ImageFolder, ImageStore, InputBatch, Loader, LoaderOptions, Mode, SkippedSample, Splits, Stored,
};
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::model::HEAD;
use crate::ops::LossReduction;
use crate::printable::plain_number;
use crate::tensor::Tensor;
use crate::weights::TensorFile;

/// When a checkpoint is saved, besides at the start and after each epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointEvery {
    /// After this many steps of an epoch.
    Steps(usize),
    /// When the last checkpoint is this old.
    Time(Duration),
}

/// When checkpoints are saved, and how many are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpointing {
    /// The interval.
    pub every: CheckpointEvery,
    /// How many checkpoints are kept, the newest among them.
    pub kept: usize,
}

impl Default for Checkpointing {
    fn default() -> Self {
        Self { every: CheckpointEvery::Time(Duration::from_secs(600)), kept: 1 }
    }
}

/// How a run is carried out. Nothing here changes its results.
pub struct RunOptions<'a> {
    /// The run's folder.
    pub folder: RunFolder,
    /// Threads that decode images.
    pub workers: usize,
    /// Bytes that decoded images may take on a device that keeps them; without a limit, all free memory.
    pub image_memory: Option<usize>,
    /// Whether an unreadable image ends the run.
    pub strict: bool,
    /// Whether the images of a new run are searched for duplicates.
    pub check_data: bool,
    /// When checkpoints are saved, and how many are kept.
    pub checkpointing: Checkpointing,
    /// Set when the user wants to stop; the run then saves a checkpoint and ends.
    pub interrupted: &'a AtomicBool,
}

/// Everything that a run needs; made by [`super::Start::run`].
pub struct Run<'a> {
    /// The trainer, with its initial parameters or those of a checkpoint.
    pub trainer: Trainer,
    /// The recipe.
    pub recipe: Recipe,
    /// The training and test images.
    pub splits: Splits,
    /// The names of those images.
    pub images: ImageList,
    /// What was found in the images before a new run, if they were examined.
    pub data_check: Option<DataCheck>,
    /// How the images differ from those before, if the run continues with other images.
    pub changed: Option<String>,
    /// The position at which to begin.
    pub position: Position,
    /// How it is carried out.
    pub options: RunOptions<'a>,
    /// When it was started, before its images were examined.
    pub started: Instant,
}

/// Images in a batch of a test of the best model: few, as the memory of training is still in use.
const BEST_MODEL_BATCH: usize = 32;

/// The number of the epoch whose augmentation the first copies of images have to which the head is fitted; training never gets there.
const FEATURE_EPOCHS: u64 = 1 << 32;

const STOPPED_AT_TEST: &str = "stopped while testing";

const STOPPED_AT_FIT: &str = "stopped while the final layer was fitted, which a resumed run does again";

/// How often an epoch's progress is recorded, as in the lesson.
const RECORDS_PER_EPOCH: usize = 5;

/// Time spent on each kind of work.
#[derive(Clone, Copy, Default)]
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

    fn add(&mut self, other: Self) {
        self.training += other.training;
        self.waiting += other.waiting;
        self.images += other.images;
        self.batches += other.batches;
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

/// The skipped images.
struct LeftOut {
    /// Those with a line in `metrics.jsonl`, by the name in that file.
    recorded: HashSet<String>,
    told: HashSet<PathBuf>,
    /// Whether a batch shrank to a single image that cannot be trained on.
    told_of_single: bool,
}

impl LeftOut {
    /// The images that the run skipped before it was resumed.
    fn of_earlier(metrics: &MetricsFile) -> Self {
        Self { recorded: metrics.skipped().clone(), told: HashSet::new(), told_of_single: false }
    }

    /// Warns, once, that an image is not trained on because the others of its batch could not be read.
    fn warn_of_single(&mut self, image_size: usize, observe: &mut impl FnMut(Event)) {
        if !std::mem::replace(&mut self.told_of_single, true) {
            observe(Event::Warning(&format!(
                "unreadable images leave a single one in a batch, which is left out: batch norm cannot train on it at \
                 {image_size} x {image_size} pixels"
            )));
        }
    }

    /// Records and reports images that are new.
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

    /// Number of skipped images of the folder.
    fn of(&self, folder: &ImageFolder) -> usize {
        folder.samples.iter().filter(|sample| self.recorded.contains(&*sample.path.to_string_lossy())).count()
    }
}

/// What the epochs of a run share.
struct Session {
    test_batches: Batches,
    metrics: MetricsFile,
    left_out: LeftOut,
    /// The end of the last epoch.
    since: Instant,
}

/// The result of an epoch's training, or of a fitted head.
struct TrainedPart {
    train: Totals,
    clock: Clock,
    /// The temperature of the model if there are no validation images.
    temperature: Option<f64>,
}

/// The results of an epoch.
struct Tested {
    train: Totals,
    /// On the images that choose the model.
    held_out: Totals,
    /// On the test images, after the last epoch, if validation images chose the model.
    test: Option<Totals>,
}

impl RunOptions<'_> {
    /// An error with this message if the user wants to stop.
    pub(super) fn check_interruption(&self, message: &str) -> Result<()> {
        match self.interrupted.load(Ordering::Relaxed) {
            true => Err(Error::interrupted(message)),
            false => Ok(()),
        }
    }
}

impl Run<'_> {
    /// Trains to the end, reporting to `observe`.
    ///
    /// # Errors
    /// When the user interrupts it: a checkpoint has then been saved. When a loss is not finite. When a file cannot be
    /// written; the last checkpoint is then as it was.
    pub fn train(mut self, mut observe: impl FnMut(Event)) -> Result<Summary> {
        self.train_to_the_end(&mut observe).map_err(|error| match error.kind() {
            ErrorKind::NotFinite => {
                let error = self.not_finite(error.message());
                let hint = error.hint_text().map(str::to_string);
                let metric = Metric::Stopped { reason: error.message().into(), hint };
                // The record is for the report; the error itself is more important than one about the record.
                let _ = MetricsFile::append_to(&self.options.folder.metrics(), &metric);
                error
            }
            _ => error,
        })
    }

    fn train_to_the_end(&mut self, observe: &mut impl FnMut(Event)) -> Result<Summary> {
        self.prepare()?;
        self.options.folder.remove_leftovers();
        let store = Rc::new(ImageStore::new(self.trainer.network().shared_device(), self.options.image_memory));
        let mut train_loader = self.loader(&self.splits.train, Mode::Train { seed: self.recipe.seed })?;
        if self.recipe.balanced_sampling {
            train_loader = train_loader.with_balanced_classes();
        }
        let mut train_batches = Batches::new(train_loader, &store)?;
        let test_batches = Batches::new(self.loader(self.splits.choosing(), Mode::Evaluate)?, &store)?;
        let is_new = self.position.is_at_start();
        if is_new {
            self.position = Position::default();
        }
        let metrics = MetricsFile::open(&self.options.folder.metrics(), self.position.metrics_lines)?;
        let left_out = LeftOut::of_earlier(&metrics);
        let mut session = Session { test_batches, metrics, left_out, since: Instant::now() };
        if is_new {
            // From here on the run can be resumed after any failure.
            self.save_checkpoint()?;
        } else {
            // The run may go on with another number of epochs.
            update_recipe(&self.options.folder.model(), &self.recipe)?;
            self.measure_on_changed_images(&mut session, observe)?;
        }
        let mut clock = Clock::default();
        let mut last = None;
        let mut stored = Stored::default();
        if is_new && self.recipe.fit_head {
            let start = self.start_with_fitted_head(&store, &mut train_batches, &mut session, observe)?;
            clock.add(start.clock);
            last = Some(self.finish_epoch(0, start, &mut train_batches, &mut session, observe)?);
        }
        if let Some(Choice::LearningRate(learning_rate)) = self.position.choice {
            let recipe = Recipe { learning_rate, ..self.recipe.clone() };
            self.trainer.set_learning_rates(&recipe.grouping());
        }
        while !self.position.is_over(&self.recipe) {
            let of_epoch = self.train_epoch(&mut train_batches, &mut session, observe)?;
            clock.add(of_epoch);
            let Position { epoch, totals: train, temperature, .. } = self.position;
            let trained = TrainedPart { train, clock: of_epoch, temperature };
            last = Some(self.finish_epoch(epoch + 1, trained, &mut train_batches, &mut session, observe)?);
            if std::mem::replace(&mut stored, store.stored()) != stored {
                observe(Event::Stored(stored, self.splits.train.len() + self.splits.choosing().len()));
            }
        }
        self.options.folder.remove_older_checkpoints(self.options.checkpointing.kept);
        let (Some(Tested { train, held_out, test }), Some(best)) = (last, self.position.best) else {
            return Err(Error::new(format!("the run has no epochs left of its {}", self.recipe.epochs)));
        };
        Ok(Summary {
            train_loss: train.mean_loss(),
            train_acc: train.accuracy(),
            held_out: HeldOut::new(&held_out, self.splits.validation.is_some()),
            test_acc: test.unwrap_or(held_out).accuracy(),
            images_per_second: Metric::images_per_second(session.metrics.epochs()).unwrap_or_default(),
            waiting_share: clock.waiting.as_secs_f64() / clock.training.as_secs_f64().max(1e-9),
            best,
            skipped: session.left_out.of(&self.splits.train),
        })
    }

    /// Evaluates the network after an epoch, or its average, saves it if it is the best so far, and saves a checkpoint. After the last
    /// epoch, tests the best model if validation images chose it.
    fn finish_epoch(
        &mut self,
        epoch: usize,
        of_training: TrainedPart,
        train_batches: &mut Batches,
        session: &mut Session,
        observe: &mut impl FnMut(Event),
    ) -> Result<Tested> {
        let TrainedPart { train, clock: of_epoch, temperature: temperature_of_training } = of_training;
        let Session { test_batches, metrics, left_out, since } = session;
        let batches = test_batches.loader().batch_count();
        let mut batch = 0;
        // Training goes on from what is trained, not from the average.
        let trained = self.trainer.start_average()?;
        let mut measure = || {
            let network = self.trainer.network_mut();
            if trained.is_some() {
                let (of_epoch, image_size) = (self.position.epoch as u64, self.recipe.training_size());
                recompute_statistics(network, train_batches, of_epoch, image_size, |batch, batches| {
                    observe(Event::Averaged { batch, batches });
                    self.options.check_interruption(STOPPED_AT_TEST)
                })?;
            }
            let (held_out, predictions) = evaluate(network, test_batches, self.recipe.testing(), |tested| {
                left_out.note(&tested.skipped, metrics, observe)?;
                batch += 1;
                observe(Event::Tested { batch, batches });
                self.options.check_interruption(STOPPED_AT_TEST)
            })?;
            let metric = Metric::Epoch {
                epoch,
                train_loss: train.mean_loss(),
                train_acc: train.accuracy(),
                held_out: HeldOut::new(&held_out, self.splits.validation.is_some()),
                images_per_second: of_epoch.images_per_second(),
                seconds: of_epoch.training.as_secs_f64(),
                whole_seconds: Some(since.elapsed().as_secs_f64()),
            };
            *since = Instant::now();
            metrics.append(&metric)?;
            let this = Best { epoch, accuracy: held_out.accuracy(), loss: held_out.mean_loss() };
            if self.recipe.keeps_last(self.splits.validation.is_some())
                || self.position.best.is_none_or(|best| this.beats(&best))
            {
                let (path, classes) = (self.options.folder.model(), &self.splits.train.classes);
                let temperature = match (self.recipe.calibrate, &self.splits.validation) {
                    (true, Some(_)) => temperature(&predictions),
                    (true, None) => temperature_of_training,
                    (false, _) => None,
                };
                save_model(&path, network, &self.recipe, classes, epoch, temperature)?;
                self.position.best = Some(this);
            }
            Ok((held_out, metric))
        };
        let measured = measure();
        if let Some(trained) = trained {
            self.trainer.set_weights(&trained)?;
        }
        // A run that is stopped before its first model is complete fits the head again when it is resumed.
        let stopped = |run: &Self, error| if epoch == 0 { error } else { run.stopped(error) };
        let (held_out, metric) = measured.map_err(|error| stopped(self, error))?;
        let mut test = None;
        let is_over = Position { epoch, ..self.position }.is_over(&self.recipe);
        if let Some(best) = self.position.best.filter(|_| is_over)
            && self.splits.validation.is_some()
        {
            let begun = Instant::now();
            let event = |batch, batches| Event::FinalTest { batch, batches };
            let tested = self.classify_with_best_model(&self.splits.test, left_out, metrics, observe, event);
            let tested = tested.map_err(|error| stopped(self, error))?;
            let (test_loss, test_acc) = (tested.mean_loss(), tested.accuracy());
            let seconds = Some(begun.elapsed().as_secs_f64());
            metrics.append(&Metric::Test { epoch: best.epoch, test_loss, test_acc, seconds })?;
            test = Some(tested);
        }
        let metrics_lines = metrics.lines();
        self.position = Position { epoch, batch: 0, totals: Totals::default(), metrics_lines, ..self.position };
        self.save_checkpoint()?;
        observe(Event::Epoch(&metric));
        Ok(Tested { train, held_out, test })
    }

    /// Fits the head to features of the training images, computed with the running statistics of batch norms. Nothing is saved
    /// before it is complete; a run that is interrupted here starts again when it is resumed.
    fn start_with_fitted_head(
        &mut self,
        store: &Rc<ImageStore>,
        train_batches: &mut Batches,
        session: &mut Session,
        observe: &mut impl FnMut(Event),
    ) -> Result<TrainedPart> {
        let started = Instant::now();
        let mut plain_batches = Batches::new(self.loader(&self.splits.train, Mode::Evaluate)?, store)?;
        let of = self.splits.train.len() * self.recipe.features_per_image();
        let image_size = self.recipe.image_size;
        // Copies have each image once, whichever images an epoch draws.
        let each_once =
            || Batches::new(self.loader(&self.splits.train, Mode::Train { seed: self.recipe.seed })?, store);
        let mut copied_batches = self.recipe.balanced_sampling.then(each_once).transpose()?;
        let copied_batches = copied_batches.as_mut().unwrap_or(train_batches);
        let (options, network) = (&self.options, self.trainer.network_mut());
        let Session { metrics, left_out, .. } = session;
        let mut images = 0;
        let mut see = |batch: &InputBatch, forms: usize| {
            left_out.note(&batch.skipped, metrics, observe)?;
            images += forms * (batch.targets.len() + batch.skipped.len());
            observe(Event::Features { images, of });
            options.check_interruption(STOPPED_AT_FIT)
        };
        let mut copies = Vec::new();
        let plain = match self.recipe.mirrors() {
            true => {
                let forms = [Form::Upright, Form::Mirrored];
                let found = features_of_forms(network, &mut plain_batches, 0, image_size, forms, |batch| see(batch, 2));
                let [plain, mirrored] = found?;
                copies.push(mirrored);
                plain
            }
            false => features(network, &mut plain_batches, 0, image_size, |batch| see(batch, 1))?,
        };
        if plain.targets.is_empty() {
            return Err(Error::new("none of the training images could be read"));
        }
        let training_size = self.recipe.training_size();
        for copy in 0..self.recipe.feature_copies as u64 {
            let epoch = FEATURE_EPOCHS + copy;
            copies.push(features(network, copied_batches, epoch, training_size, |batch| see(batch, 1))?);
        }
        let rows = plain.targets.len() * (1 + copies.len());
        let clock = Clock { training: started.elapsed(), images: rows as u64, ..Clock::default() };

        let class_weights = self.recipe.class_weights_for(&self.splits.train)?;
        let training = TrainingFeatures {
            dimension: network.resnet().features(),
            class_weights: class_weights.unwrap_or_else(|| vec![1.0; self.splits.train.classes.len()]),
            groups: self.groups_of_duplicates(),
            average_mirror: self.recipe.average_mirror && self.recipe.mirrors(),
            plain,
            copies,
        };
        let before_trials = Instant::now();
        if !self.recipe.try_learning_rates.is_empty() {
            self.try_learning_rates(&training, session, observe)?;
        }
        let of_trials = before_trials.elapsed();
        let fit = self.fit_head(&training, observe)?;
        let Session { metrics, .. } = session;
        let (penalty, tried) = (fit.penalty, fit.tried);
        let seconds = (started.elapsed() - of_trials).as_secs_f64();
        metrics.append(&Metric::Head { penalty, tried, seconds })?;
        let images = training.plain.targets.len() as u64;
        let totals =
            Totals { loss: fit.loss * images as f64, correct: (fit.accuracy * images as f64).round() as u64, images };
        Ok(TrainedPart { train: totals, clock, temperature: temperature(&fit.held_out) })
    }

    /// Fits the head to these features, and writes it into the network.
    fn fit_head(&mut self, training: &TrainingFeatures, observe: &mut impl FnMut(Event)) -> Result<HeadFit> {
        let fit = fit_head(training, self.recipe.seed, |fit, of| {
            observe(Event::Fitting { fit, of });
            self.options.check_interruption(STOPPED_AT_FIT)
        })?;
        let network = self.trainer.network_mut();
        network.write(&format!("{HEAD}.weight"), &fit.layer.weight)?;
        network.write(&format!("{HEAD}.bias"), &fit.layer.bias)?;
        Ok(fit)
    }

    /// Chooses the learning rate by trials on held-back training images, from a head that was fitted without them.
    fn try_learning_rates(
        &mut self,
        training: &TrainingFeatures,
        session: &mut Session,
        observe: &mut impl FnMut(Event),
    ) -> Result<()> {
        let started = Instant::now();
        let division = Division::new(&self.splits.train, &training.groups, self.recipe.seed);
        self.fit_head(&training.part(|index| !division.is_held_back[index]), observe)?;
        let device = self.trainer.network().shared_device();
        // Its own, so that the images of the trials are not kept afterwards.
        let store = Rc::new(ImageStore::new(device, self.options.image_memory));
        let options = self.loader_options(Mode::Evaluate);
        let Session { metrics, left_out, .. } = session;
        let see = |event: TrialEvent| {
            match event {
                TrialEvent::Skipped(skipped) => left_out.note(skipped, metrics, observe)?,
                TrialEvent::Batch { batch, of } => observe(Event::Trying { batch, of }),
            }
            self.options.check_interruption("stopped while learning rates were tried, which a resumed run does again")
        };
        let tried =
            try_learning_rates(&mut self.trainer, &self.recipe, &self.splits.train, &division, options, &store, see)?;
        let choice = tried.choice();
        self.position.choice = Some(choice);
        self.position.temperature = tried.temperature().filter(|_| self.recipe.calibrate);
        let chosen = match choice {
            Choice::FixedBody => None,
            Choice::LearningRate(rate) => Some(rate),
        };
        let Trials { held_back, epochs, trials, .. } = tried;
        let metric = Metric::Trials { held_back, epochs, trials, chosen, seconds: started.elapsed().as_secs_f64() };
        metrics.append(&metric)?;
        observe(Event::Recorded(&metric));
        Ok(())
    }

    /// For each training image, the number of the first one that looks the same.
    fn groups_of_duplicates(&self) -> Vec<usize> {
        let folder = &self.splits.train;
        let mut groups: Vec<usize> = (0..folder.len()).collect();
        let saved = || DataCheck::open(&self.options.folder.data_check()).ok();
        let Some(check) = self.data_check.clone().or_else(saved) else { return groups };
        let names: HashMap<String, usize> =
            folder.samples.iter().enumerate().map(|(index, sample)| (folder.name_of(&sample.path), index)).collect();
        for group in check.training_duplicates() {
            let members: Vec<usize> = group.iter().filter_map(|&path| names.get(path).copied()).collect();
            let first = members.iter().copied().min();
            members.iter().for_each(|&index| groups[index] = first.unwrap_or(index));
        }
        groups
    }

    /// The error of work that was interrupted, after saving a checkpoint; other errors are left as they are.
    fn stopped(&self, error: Error) -> Error {
        match error.kind() {
            ErrorKind::Interrupted => self.stop(self.splits.train.len().div_ceil(self.recipe.batch_size)),
            _ => error,
        }
    }

    /// If the run continues with other images: measures the best model so far again, on those that choose the model now.
    fn measure_on_changed_images(&mut self, session: &mut Session, observe: &mut impl FnMut(Event)) -> Result<()> {
        let (Some(reason), Some(best)) = (self.changed.take(), self.position.best) else { return Ok(()) };
        let Session { metrics, left_out, .. } = session;
        let event = |batch, batches| Event::Tested { batch, batches };
        let totals = self.classify_with_best_model(self.splits.choosing(), left_out, metrics, observe, event)?;
        let held_out = HeldOut::new(&totals, self.splits.validation.is_some());
        let model = match best.epoch {
            0 => "with the fitted final layer".to_string(),
            epoch => format!("of epoch {epoch}"),
        };
        let (correct, name) = (100.0 * held_out.accuracy(), held_out.name());
        observe(Event::Notice(&format!(
            "the best model so far, {model}, classifies {correct:.1} % of the present {name} images correctly"
        )));
        metrics.append(&Metric::Changed { epoch: best.epoch, held_out, reason })?;
        self.position.best = Some(Best { accuracy: totals.accuracy(), loss: totals.mean_loss(), ..best });
        Ok(())
    }

    /// Classifies images with the best model; each batch makes an event of its number and the number of batches.
    fn classify_with_best_model(
        &self,
        images: &ImageFolder,
        left_out: &mut LeftOut,
        metrics: &mut MetricsFile,
        observe: &mut impl FnMut(Event),
        event: fn(usize, usize) -> Event<'static>,
    ) -> Result<Totals> {
        let device = self.trainer.network().shared_device();
        let (mut network, model) = load_model(device.clone(), &TensorFile::open(&self.options.folder.model())?)?;
        let options = LoaderOptions { batch_size: BEST_MODEL_BATCH, ..self.loader_options(Mode::Evaluate) };
        let loader = Loader::new(Arc::new(images.clone()), options)?;
        // Every image is needed once, so none is kept.
        let mut test_batches = Batches::new(loader, &Rc::new(ImageStore::new(device, Some(0))))?;
        let batches = test_batches.loader().batch_count();
        let mut batch = 0;
        let (totals, _) = evaluate(&mut network, &mut test_batches, model.testing(), |tested| {
            left_out.note(&tested.skipped, metrics, observe)?;
            batch += 1;
            observe(event(batch, batches));
            self.options.check_interruption(STOPPED_AT_TEST)
        })?;
        Ok(totals)
    }

    fn train_epoch(
        &mut self,
        train_batches: &mut Batches,
        session: &mut Session,
        observe: &mut impl FnMut(Event),
    ) -> Result<Clock> {
        let Session { metrics, left_out, .. } = session;
        let batches = train_batches.loader().batch_count();
        let recorded_every = (batches / RECORDS_PER_EPOCH).max(1);
        let steps = BatchSteps::new(&self.recipe, batches, &self.trainer)?;
        let mut clock = Clock::default();
        let mut saved = Instant::now();
        let mut epoch = train_batches.epoch_from(self.position.epoch as u64, self.position.batch);
        loop {
            let started = Instant::now();
            let Some(batch) = epoch.next_batch() else { break };
            let batch = batch?;
            clock.waiting += started.elapsed();
            left_out.note(&batch.skipped, metrics, observe)?;
            let mut images = batch.targets.len();
            if images > 0 && steps.leaves_out(images) {
                images = 0;
                left_out.warn_of_single(self.recipe.training_size(), observe);
            }
            let Position { epoch: of_epoch, batch: number, .. } = self.position;
            if let Some(result) = steps.train(&mut self.trainer, of_epoch, number, &batch)? {
                if !result.loss.is_finite() || result.gradient_norm.is_some_and(|norm| !norm.is_finite()) {
                    let shape = batch_shape(&batch, self.recipe.training_size());
                    let write = |device: &dyn Device, input: &Tensor| batch.write(device, input);
                    let place = find_not_finite(&self.trainer, shape, write, &batch.targets)?;
                    return Err(Error::not_finite(describe_not_finite(result, number, place)));
                }
                let loss = match self.recipe.reduction()? {
                    LossReduction::Sum => f64::from(result.loss),
                    LossReduction::Mean => f64::from(result.loss) * images as f64,
                };
                self.position.totals.add(Totals { loss, correct: result.correct as u64, images: images as u64 });
            }
            self.position.batch += 1;
            let norm = steps.end(&mut self.trainer, self.position.batch)?;
            if let Some(norm) = norm.filter(|norm| !norm.is_finite()) {
                let what = format!("the norm of the gradients became {norm} in batch {}", self.position.batch);
                return Err(Error::not_finite(what));
            }
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
            // The gradients of an unfinished step are not in a checkpoint.
            if !steps.ends_with(self.position.batch) {
                continue;
            }
            if self.options.interrupted.load(Ordering::Relaxed) {
                return Err(self.stop(batches));
            }
            let is_due = match self.options.checkpointing.every {
                CheckpointEvery::Steps(steps) => {
                    self.position.batch.div_ceil(self.recipe.accumulate).is_multiple_of(steps)
                }
                CheckpointEvery::Time(time) => saved.elapsed() >= time,
            };
            if is_due && self.position.batch < batches {
                self.save_checkpoint()?;
                saved = Instant::now();
            }
        }
        match self.position.totals.images {
            0 if left_out.told_of_single => {
                Err(Error::new("no batch has two training images that can be read").hint("use a larger --batch-size"))
            }
            0 => Err(Error::new("none of the training images could be read")),
            _ => Ok(clock),
        }
    }

    /// The error of a run whose numbers are no longer finite. The loaded weights were finite, so the learning rate is the likely
    /// cause once it has had an effect.
    fn not_finite(&self, what: &str) -> Error {
        let Position { epoch, batch, .. } = self.position;
        let learning_rate = match self.position.choice {
            Some(Choice::LearningRate(rate)) => rate,
            _ => self.recipe.learning_rate,
        };
        let hint = match (epoch, batch) {
            (0, 0) => "no update was made yet, so the learning rate is not the cause: start from other weights",
            _ => "use a smaller learning rate, or --clip-gradient-norm 1",
        };
        let rate = plain_number(learning_rate);
        let message = format!("in epoch {}, at a learning rate of {rate}, {what}", epoch + 1);
        Error::not_finite(format!("{message}; the last checkpoint is unchanged")).hint(hint)
    }

    /// Saves a checkpoint; returns the error of an interrupted run.
    fn stop(&self, batches: usize) -> Error {
        let (epoch, batch) = (self.position.epoch + 1, self.position.batch);
        match self.save_checkpoint() {
            Ok(()) => Error::interrupted(format!(
                "stopped in epoch {epoch} after batch {batch} of {batches}; everything is saved in {}",
                self.options.folder.checkpoint().display()
            )),
            Err(error) => error,
        }
    }

    fn save_checkpoint(&self) -> Result<()> {
        self.options.folder.keep_checkpoint(self.options.checkpointing.kept)?;
        save_checkpoint(
            &self.options.folder.checkpoint(),
            &self.trainer,
            &self.recipe,
            &self.splits.train.classes,
            self.images.digest(),
            &self.position,
        )
    }

    fn loader(&self, folder: &ImageFolder, mode: Mode) -> Result<Loader> {
        let loader = Loader::new(Arc::new(folder.clone()), self.loader_options(mode))?;
        Ok(loader.with_augmentations(&self.recipe.augment))
    }

    pub(super) fn loader_options(&self, mode: Mode) -> LoaderOptions {
        LoaderOptions {
            batch_size: self.recipe.batch_size,
            image_size: self.recipe.size_of(mode) as u32,
            resize: self.recipe.resize,
            mode,
            workers: self.options.workers,
            strict: self.options.strict,
        }
    }
}

/// What is wrong with the training step of a batch.
fn describe_not_finite(result: BatchResult, batch: usize, place: Option<String>) -> String {
    let what = match result.loss.is_finite() {
        true => format!("the norm of the gradients became {}", result.gradient_norm.unwrap_or(f32::NAN)),
        false => format!("the loss became {}", result.loss),
    };
    let place = place.map_or(String::new(), |place| format!("; the first value that is not finite is in {place}"));
    format!("{what} in batch {}{place}", batch + 1)
}
