//! The start of a run: from trained weights, from random ones, or from a checkpoint.

use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::checkpoint::{Checkpoint, Choice, Position};
use super::config::RunConfig;
use super::data_check::{DataCheck, EarlierImages, check_of_run, open_data_of_run};
use super::events::Event;
use super::image_list::ImageList;
use super::model_file::class_names;
use super::network::Network;
use super::recipe::Recipe;
use super::run::{Run, RunOptions};
use super::state_dict::{copy_head, initialise, load_state_dict, new_head};
use super::trainer::Trainer;
use crate::data::{Splits, counted, first_names};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{Recognised, ResNet};
use crate::optim::ScheduleKind;
use crate::weights::{Found, HeadPolicy, MatchReport, TensorFile};

/// The initial state of a run.
pub enum Start {
    /// Trained weights, with a new head: random, or rows of the old one if [`Recipe::head_from`] names some.
    FineTune(Box<Found<Recognised>>),
    /// Random weights.
    FromScratch,
    /// The state of an interrupted run.
    Resume {
        /// The checkpoint of the run.
        checkpoint: Box<Checkpoint>,
        /// Whether it may continue with other images than it started with.
        allow_changed_data: bool,
    },
}

impl Start {
    /// Opens the data set in `data`, builds the network on `device` and fills its parameters. `observe` receives, as
    /// [`Event::Notice`], notices for the user. Writes no file.
    ///
    /// # Errors
    /// When the data set cannot be read, the weights do not fit, the recipe freezes what the network does not have, or a
    /// checkpoint belongs to another recipe or data set, or to a run that is finished.
    pub fn run<'a>(
        self,
        device: Rc<dyn Device>,
        recipe: Recipe,
        data: &Path,
        options: RunOptions<'a>,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Run<'a>> {
        let started = Instant::now();
        if let Self::Resume { checkpoint, .. } = &self {
            check_continuation(checkpoint, &recipe, &options)?;
        }
        let (mut splits, mut data_check) = match &self {
            Self::Resume { .. } => (open_data_of_run(&recipe, data, &options.folder)?, None),
            _ => {
                let mut splits = recipe.open_data(data)?;
                let check = check_data(&mut splits, &recipe, &EarlierImages::default(), &options, observe)?;
                (splits, Some(check))
            }
        };
        let recipe = match &self {
            Self::Resume { .. } => recipe,
            _ => recipe.for_images(splits.train.len()),
        };
        let mut images = ImageList::of(&splits);
        let mut changed = None;
        if let Self::Resume { checkpoint, allow_changed_data } = &self {
            check_classes(checkpoint, &splits, data, &options)?;
            let mut notice = check_images(checkpoint, &splits, &images, data, &options, *allow_changed_data)?;
            if notice.is_some() && checkpoint.images.is_some() {
                let changed = with_new_images(&recipe, data, &images, &splits, &options, observe)?;
                if let Some((with_new, check)) = changed {
                    (images, splits, data_check) = (ImageList::of(&with_new), with_new, Some(check));
                    // What is new may have got another split.
                    notice = check_images(checkpoint, &splits, &images, data, &options, true)?;
                }
            }
            notice.iter().for_each(|notice| observe(Event::Notice(notice)));
            changed = notice;
            let untested = splits.test.empty_classes();
            if splits.is_drawn() && !untested.is_empty() {
                let classes = if untested.len() == 1 { "class" } else { "classes" };
                let names = first_names(&untested);
                observe(Event::Notice(&format!(
                    "no test image of the {classes} {names} is left, so no figure counts them"
                )));
            }
            let before = RunConfig::open(&options.folder).map_or_else(|_| device.name(), |config| config.device);
            for (before, now) in
                [(before, device.name()), (checkpoint.precision.to_string(), device.precision().to_string())]
            {
                if before != now {
                    observe(Event::Notice(&format!(
                        "the run used {before} so far and continues with {now}: results will differ from those of either"
                    )));
                }
            }
        }
        if recipe.calibrate && splits.validation.is_none() && !recipe.holds_back() {
            return Err(Error::usage("--calibrate: there are no images to which a temperature could be fitted").hint(
                "add a folder val, or --fit-head with --try-lr, which hold training images back, or use --head-only",
            ));
        }
        if options.strict {
            splits.not_read().require_all_used()?;
        }
        splits.notices.iter().for_each(|notice| observe(Event::Notice(notice)));
        let classes = splits.train.classes.len();
        let resnet = ResNet { architecture: recipe.architecture.parse()?, width: recipe.width, classes };
        let mut trainer = Trainer::new(device, resnet, recipe.trainable(recipe.class_weights_for(&splits.train)?)?)?;
        let network = trainer.network_mut();
        let position = match self {
            Self::FromScratch => {
                initialise(network, recipe.seed)?;
                Position::default()
            }
            Self::FineTune(found) => {
                let Found { weights: file, notices, .. } = *found;
                notices.iter().for_each(|notice| observe(Event::Notice(notice)));
                let report = load_state_dict(network, &file, HeadPolicy::Replace)?;
                report.notices().iter().for_each(|notice| observe(Event::Notice(notice)));
                start_head(network, &file, &report, &recipe, &splits.train.classes, observe)?;
                Position::default()
            }
            Self::Resume { checkpoint, .. } => {
                checkpoint.restore(&mut trainer)?;
                checkpoint.position
            }
        };
        Ok(Run { trainer, recipe, splits, images, data_check, changed, position, options, started })
    }
}

/// Examines the images of a new run, or of one that continues with other images than `earlier`, and removes duplicates if the recipe says
/// so.
fn check_data(
    splits: &mut Splits,
    recipe: &Recipe,
    earlier: &EarlierImages,
    options: &RunOptions,
    observe: &mut dyn FnMut(Event),
) -> Result<DataCheck> {
    let mut check = DataCheck::default();
    if options.check_data {
        let found = splits.examine(options.workers, |images, of| {
            observe(Event::Examined { images, of });
            match options.interrupted.load(Ordering::Relaxed) {
                true => Err(Error::interrupted("stopped while the images were examined; no file was written")),
                false => Ok(()),
            }
        })?;
        check = DataCheck::new(splits, &found, recipe, earlier);
        check.apply(splits, earlier)?;
        check.require_readable(splits, &found)?;
    }
    check.add_cautions(splits);
    Ok(check)
}

/// The data set of a run that continues with changed images, if `images` has some that the run has not seen: they are searched for copies,
/// and copies of test images stay out of training. `splits` are the images without that search.
///
/// # Errors
/// Those of [`check_data`]; when the run's list of images is needed and cannot be read.
fn with_new_images(
    recipe: &Recipe,
    data: &Path,
    images: &ImageList,
    splits: &Splits,
    options: &RunOptions,
    observe: &mut dyn FnMut(Event),
) -> Result<Option<(Splits, DataCheck)>> {
    let path = options.folder.images();
    let list = match ImageList::open(&path) {
        Ok(list) => list,
        // Without the list, which images were drawn for the test is not known.
        Err(error) if splits.is_drawn() => {
            return Err(
                error.hint("restore the images that the run began with, or start another run with another --out")
            );
        }
        Err(_) => ImageList::default(),
    };
    if !options.check_data || !images.has_new_images(&list) {
        return Ok(None);
    }
    let earlier = EarlierImages::new(&list, &check_of_run(recipe, splits, &options.folder)?);
    let mut splits = recipe.open_data(data)?;
    let check = check_data(&mut splits, recipe, &earlier, options, observe)?;
    Ok(Some((splits, check)))
}

/// Initialises the head: with rows of the old one if the recipe names some or the classes are the same, otherwise randomly.
fn start_head(
    network: &mut Network,
    file: &TensorFile,
    report: &MatchReport,
    recipe: &Recipe,
    classes: &[String],
    observe: &mut dyn FnMut(Event),
) -> Result<()> {
    if let Some(rows) = &recipe.head_from {
        copy_head(network, file, report, rows)?;
        observe(Event::Notice(&format!("the new final layer starts with rows {rows:?} of the old one")));
        return Ok(());
    }
    let count = classes.len();
    let has_as_many = report.replaced_head.is_none() && !recipe.new_head;
    if has_as_many && let Some(rows) = rows_of_classes(classes, file)? {
        copy_head(network, file, report, &rows)?;
        observe(Event::Notice(&format!(
            "kept the final layer of the weights, which has the same {count} classes; --new-head starts with a random one"
        )));
        return Ok(());
    }
    if report.replaced_head.is_none() {
        observe(Event::Notice(&format!(
            "new final layer for {count} classes (that of the weights has {count} as well, and is not used)"
        )));
    }
    new_head(network, recipe.seed)
}

/// The row of the file's head for each class, if the file names the same classes in any order.
fn rows_of_classes(classes: &[String], file: &TensorFile) -> Result<Option<Vec<usize>>> {
    let Some(names) = class_names(file)?.filter(|names| names.len() == classes.len()) else { return Ok(None) };
    Ok(classes.iter().map(|class| names.iter().position(|name| name == class)).collect())
}

/// Checks that a run can continue from `checkpoint` with `recipe`: only the number of epochs and the start of the schedule may differ.
fn check_continuation(checkpoint: &Checkpoint, recipe: &Recipe, options: &RunOptions) -> Result<()> {
    let out = options.folder.path.display();
    let Recipe { epochs, steps, schedule_from, .. } = checkpoint.recipe;
    if checkpoint.recipe != (Recipe { epochs, steps, schedule_from, ..recipe.clone() }) {
        return Err(Error::new(format!("the recipe differs from that of the run in {out}")));
    }
    let position = &checkpoint.position;
    if position.is_over(recipe) {
        let (done, wanted) = (position.epoch, recipe.epochs);
        let what = match (done, position.choice) {
            (0, Some(Choice::FixedBody)) => "no epoch was better than its fitted final layer".to_string(),
            (0, _) => "it has completed the fit of its final layer".into(),
            _ if done < wanted => {
                format!(
                    "it stopped after {} without a better model",
                    counted(recipe.patience.unwrap_or(0), "epoch", "epochs")
                )
            }
            _ => format!("it has completed {}", counted(done, "epoch", "epochs")),
        };
        let schedule = ScheduleKind::find(&recipe.schedule)?;
        let more = if done > wanted { format!(", more than --epochs {wanted}") } else { String::new() };
        let longer = match position.choice {
            Some(Choice::FixedBody) => "give",
            _ if schedule.has_end || done < wanted => "add --extend EPOCHS to train longer, with a new schedule, or",
            _ => "give a larger --epochs to train longer, or",
        };
        return Err(Error::new(format!("the run in {out} is finished: {what}{more}"))
            .hint(format!("{longer} another --out to start another run")));
    }
    if recipe.epochs != epochs && recipe.schedule_from == schedule_from && ScheduleKind::find(&recipe.schedule)?.has_end
    {
        let (schedule, given) = (&recipe.schedule, recipe.epochs);
        return Err(Error::usage(format!(
            "--epochs {given}: the {schedule} schedule of the run in {out} is for {epochs} epochs"
        ))
        .hint(match position.is_over(&checkpoint.recipe) {
            true => "add --extend EPOCHS to train longer, with a new schedule",
            false => {
                "leave --epochs out to finish the run; then add --extend EPOCHS to train longer, with a new schedule"
            }
        }));
    }
    Ok(())
}

/// Rejects classes that differ from those of the run.
fn check_classes(checkpoint: &Checkpoint, splits: &Splits, data: &Path, options: &RunOptions) -> Result<()> {
    if splits.train.classes == checkpoint.classes {
        return Ok(());
    }
    Err(Error::new(format!(
        "{} has the classes {}, but the run in {} was trained on {}",
        data.display(),
        splits.train.classes.join(", "),
        options.folder.path.display(),
        checkpoint.classes.join(", ")
    )))
}

/// Rejects images that differ from those at the start of the run or, if they are allowed, returns a notice about them. For a checkpoint of
/// an earlier version, only their numbers can be compared.
fn check_images(
    checkpoint: &Checkpoint,
    splits: &Splits,
    images: &ImageList,
    data: &Path,
    options: &RunOptions,
    allow_changed_data: bool,
) -> Result<Option<String>> {
    const CONSEQUENCE: &str = "results will differ from an uninterrupted run";
    let folder = &options.folder;
    let Some(earlier) = &checkpoint.images else {
        let Ok(config) = RunConfig::open(folder) else { return Ok(None) };
        let (before, now) = ([config.train_images, config.test_images], [splits.train.len(), splits.test.len()]);
        if before != now && splits.is_drawn() {
            return Err(Error::new(format!(
                "{} has {}, the run in {} began with {}, and has no list of those that it tests on",
                data.display(),
                counted(now.iter().sum(), "image", "images"),
                folder.path.display(),
                before.iter().sum::<usize>()
            ))
            .hint("restore the images that the run began with, or start another run with another --out"));
        }
        return Ok((before != now).then(|| {
            format!(
                "the run started with {} training and {} test images, now there are {} and {}: {CONSEQUENCE}",
                before[0], before[1], now[0], now[1]
            )
        }));
    };
    let Some(difference) = images.difference_from(earlier, &folder.images()) else { return Ok(None) };
    let message = format!(
        "the images in {} differ from those at the start of the run in {}: {difference}",
        data.display(),
        folder.path.display()
    );
    match allow_changed_data {
        true => Ok(Some(format!("{message}; {CONSEQUENCE}"))),
        false => Err(Error::new(message).hint(format!(
            "restore the images, or resume with the new ones by adding --allow-changed-data: {CONSEQUENCE}"
        ))),
    }
}
