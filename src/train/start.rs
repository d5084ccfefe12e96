//! How a run begins: from trained weights, from random ones, or where a checkpoint left it.

use std::path::Path;
use std::rc::Rc;

use super::checkpoint::{Checkpoint, Position};
use super::config::RunConfig;
use super::events::Event;
use super::recipe::Recipe;
use super::run::{Run, RunOptions};
use super::state_dict::{copy_head, initialise, load_state_dict, new_head};
use super::trainer::Trainer;
use crate::data::{Splits, open_dataset};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{Recognised, ResNet};
use crate::weights::{Found, HeadPolicy};

/// What a run begins with.
pub enum Start {
    /// Trained weights, with a new head: random, or rows of the old one where [`Recipe::head_from`] names some.
    FineTune(Box<Found<Recognised>>),
    /// Random weights.
    FromScratch,
    /// All that an interrupted run had.
    Resume(Box<Checkpoint>),
}

impl Start {
    /// Opens the data set in `data`, builds the network on `device` and fills its parameters. `observe` is told, as
    /// [`Event::Notice`], what a user should know even if all goes well. Writes no file.
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
        if let Self::Resume(checkpoint) = &self {
            check_continuation(checkpoint, &recipe, &options)?;
        }
        let splits = open_dataset(data, recipe.test_fraction, recipe.seed)?.decoded_with(recipe.decoding());
        if let Self::Resume(checkpoint) = &self {
            check_data_set(checkpoint, &splits, data, &options, device.as_ref(), observe)?;
        }
        let classes = splits.train.classes.len();
        let resnet = ResNet { architecture: recipe.architecture.parse()?, width: recipe.width, classes };
        let mut trainer = Trainer::new(device, resnet, recipe.trainable()?)?;
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
                match &recipe.head_from {
                    Some(rows) => {
                        copy_head(network, &file, &report, rows)?;
                        observe(Event::Notice(&format!(
                            "the new final layer starts with rows {rows:?} of the old one"
                        )));
                    }
                    None => {
                        if report.replaced_head.is_none() {
                            observe(Event::Notice(&format!(
                                "new final layer for {classes} classes (that of the weights has {classes} as well, and is \
                                 not used)"
                            )));
                        }
                        new_head(network, recipe.seed)?;
                    }
                }
                Position::default()
            }
            Self::Resume(checkpoint) => {
                checkpoint.restore(&mut trainer)?;
                checkpoint.position
            }
        };
        Ok(Run { trainer, recipe, splits, position, options })
    }
}

/// Whether a run can go on from `checkpoint` by `recipe`: only the number of epochs may be another one.
fn check_continuation(checkpoint: &Checkpoint, recipe: &Recipe, options: &RunOptions) -> Result<()> {
    let out = options.folder.path.display();
    if checkpoint.recipe != (Recipe { epochs: checkpoint.recipe.epochs, ..recipe.clone() }) {
        return Err(Error::new(format!("the recipe differs from that of the run in {out}")));
    }
    let (done, wanted) = (checkpoint.position.epoch, recipe.epochs);
    if done >= wanted {
        let epochs = if done == 1 { "1 epoch".to_string() } else { format!("{done} epochs") };
        return Err(Error::new(format!("the run in {out} is finished: it has done {epochs} of {wanted}"))
            .hint("give a larger --epochs to train longer, or another --out to start another run"));
    }
    Ok(())
}

/// Refuses other classes, and tells of what makes a resumed run differ from an uninterrupted one.
fn check_data_set(
    checkpoint: &Checkpoint,
    splits: &Splits,
    data: &Path,
    options: &RunOptions,
    device: &dyn Device,
    observe: &mut dyn FnMut(Event),
) -> Result<()> {
    let folder = &options.folder;
    if splits.train.classes != checkpoint.classes {
        return Err(Error::new(format!(
            "{} has the classes {}, but the run in {} was trained on {}",
            data.display(),
            splits.train.classes.join(", "),
            folder.path.display(),
            checkpoint.classes.join(", ")
        )));
    }
    if let Ok(config) = RunConfig::open(folder) {
        let (before, now) = ([config.train_images, config.test_images], [splits.train.len(), splits.test.len()]);
        if before != now {
            observe(Event::Notice(&format!(
                "the run started with {} training and {} test images, now there are {} and {}: results will differ from \
                 an uninterrupted run",
                before[0], before[1], now[0], now[1]
            )));
        }
    }
    let (before, now) = (checkpoint.precision, device.precision());
    if before != now {
        observe(Event::Notice(&format!(
            "the run used {before} so far and continues in {now}: results will differ from a run in either"
        )));
    }
    Ok(())
}
