//! Checkpoints: every parameter, the optimiser's state, and the position in the run.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::metrics::Totals;
use super::recipe::Recipe;
use super::state_dict::{load_state_dict_named, state_dict};
use super::trainer::Trainer;
use crate::device::{Precision, read_f32, write_f32};
use crate::error::{Context, Error, Result};
use crate::weights::layout::{from_torch, to_torch};
use crate::weights::{OutputTensor, TensorFile, save};

/// The format of checkpoints of any version.
const ANY_FORMAT: &str = "retune-checkpoint-";
const FORMAT: &str = "retune-checkpoint-1";
/// The metadata field with the number of steps, if the optimiser depends on it.
const STEPS: &str = "optimizer_steps";

/// The metadata field with the digest of the list of images.
const IMAGES: &str = "images";

/// The best model so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Best {
    /// Counted from 1.
    pub epoch: usize,
    /// Share of correct images of those that choose the model.
    pub accuracy: f64,
    /// Their mean loss.
    pub loss: f64,
}

impl Best {
    /// Whether it is better: more correct images, or as many with a lower loss.
    pub fn beats(&self, other: &Best) -> bool {
        self.accuracy > other.accuracy || (self.accuracy == other.accuracy && self.loss < other.loss)
    }
}

/// What trials of learning rates on held-back images chose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// The fitted head with the body as it was: no learning rate was better.
    FixedBody,
    /// This learning rate.
    LearningRate(f64),
}

/// The position of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Position {
    /// Completed epochs.
    pub epoch: usize,
    /// Completed batches of the current epoch.
    pub batch: usize,
    /// Sums over those batches.
    pub totals: Totals,
    /// Lines of `metrics.jsonl` that belong to this position.
    pub metrics_lines: usize,
    /// The best model so far.
    pub best: Option<Best>,
    /// The choice of the learning rate, if some were tried.
    pub choice: Option<Choice>,
    /// The temperature of the models of the epochs, if training images that were held back determined it.
    pub temperature: Option<f64>,
}

impl Position {
    /// Whether the run has yet to begin, or was stopped before the first model was complete: a fitted head is fitted again.
    pub fn is_at_start(&self) -> bool {
        self.epoch == 0 && self.batch == 0 && self.best.is_none()
    }

    /// Whether a run at this position, at the end of an epoch, has no epoch left: it has trained all of them, trials found nothing
    /// better than the fitted head alone, or the patience is at its end.
    pub fn is_over(&self, recipe: &Recipe) -> bool {
        if self.is_at_start() {
            return false;
        }
        let is_fixed = self.choice == Some(Choice::FixedBody) && recipe.schedule_from == 0;
        self.epoch >= recipe.epochs || is_fixed || self.is_out_of_patience(recipe)
    }

    /// Whether as many epochs as the recipe allows have gone by without a better model.
    pub fn is_out_of_patience(&self, recipe: &Recipe) -> bool {
        let improved = self.best.map_or(0, |best| best.epoch).max(recipe.schedule_from);
        recipe.patience.is_some_and(|patience| self.epoch >= improved + patience)
    }
}

/// Stores floats as bits, so that reading restores exactly what was written.
#[derive(Serialize, Deserialize)]
struct StoredPosition {
    epoch: usize,
    batch: usize,
    loss_bits: u64,
    correct: u64,
    images: u64,
    metrics_lines: usize,
    best: Option<(usize, u64, u64)>,
    /// The learning rate, or 0 for a fixed body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    choice: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    temperature: Option<u64>,
}

impl From<&Position> for StoredPosition {
    fn from(position: &Position) -> Self {
        Self {
            epoch: position.epoch,
            batch: position.batch,
            loss_bits: position.totals.loss.to_bits(),
            correct: position.totals.correct,
            images: position.totals.images,
            metrics_lines: position.metrics_lines,
            best: position.best.map(|best| (best.epoch, best.accuracy.to_bits(), best.loss.to_bits())),
            choice: position.choice.map(|choice| match choice {
                Choice::FixedBody => 0,
                Choice::LearningRate(rate) => rate.to_bits(),
            }),
            temperature: position.temperature.map(f64::to_bits),
        }
    }
}

impl From<StoredPosition> for Position {
    fn from(stored: StoredPosition) -> Self {
        let totals = Totals { loss: f64::from_bits(stored.loss_bits), correct: stored.correct, images: stored.images };
        let best = stored.best.map(|(epoch, accuracy, loss)| Best {
            epoch,
            accuracy: f64::from_bits(accuracy),
            loss: f64::from_bits(loss),
        });
        let choice = stored.choice.map(|bits| match f64::from_bits(bits) {
            0.0 => Choice::FixedBody,
            rate => Choice::LearningRate(rate),
        });
        Self {
            epoch: stored.epoch,
            batch: stored.batch,
            totals,
            metrics_lines: stored.metrics_lines,
            best,
            choice,
            temperature: stored.temperature.map(f64::from_bits),
        }
    }
}

/// Writes a checkpoint atomically.
pub fn save_checkpoint(
    path: &Path,
    trainer: &Trainer,
    recipe: &Recipe,
    classes: &[String],
    images: &str,
    position: &Position,
) -> Result<()> {
    let network = trainer.network();
    let mut tensors = state_dict(network)?;
    tensors.iter_mut().for_each(|tensor| tensor.name.insert_str(0, "param/"));
    for specification in network.parameters().specifications() {
        for (slot, tensor) in network.parameters().slots_of(&specification.name)? {
            let shape = specification.torch_shape();
            let values = to_torch(read_f32(network.device(), tensor)?, &shape);
            tensors.push(OutputTensor::f32(format!("{slot}/{}", specification.name), &shape, values));
        }
    }
    let json = |value: serde_json::Result<String>| value.context(|| "cannot write a checkpoint's metadata");
    let mut metadata = BTreeMap::from([
        ("format".to_string(), FORMAT.to_string()),
        ("recipe".to_string(), json(serde_json::to_string(recipe))?),
        ("classes".to_string(), json(serde_json::to_string(classes))?),
        ("position".to_string(), json(serde_json::to_string(&StoredPosition::from(position)))?),
        (IMAGES.to_string(), images.to_string()),
        ("precision".to_string(), network.device().precision().to_string()),
    ]);
    if let Some(steps) = trainer.updater().counted_steps() {
        metadata.insert(STEPS.to_string(), steps.to_string());
    }
    save(path, &tensors, &metadata)
}

/// A checkpoint whose header has been read.
pub struct Checkpoint {
    file: TensorFile,
    /// The recipe of the run.
    pub recipe: Recipe,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// The digest of the list of images; earlier versions stored none.
    pub images: Option<String>,
    /// The position.
    pub position: Position,
    /// The precision of the run's device. The stored tensors are float32 in every precision.
    pub precision: Precision,
}

impl Checkpoint {
    /// Whether a file says that it is a checkpoint.
    pub fn is(file: &TensorFile) -> bool {
        file.metadata().get("format").is_some_and(|format| format.starts_with(ANY_FORMAT))
    }

    /// Reads the header.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_file(TensorFile::open(path)?)
    }

    /// Like [`Checkpoint::open`], for a file whose header has been read.
    pub fn from_file(file: TensorFile) -> Result<Self> {
        let path = file.path();
        let field = |name: &str| {
            file.metadata().get(name).ok_or_else(|| {
                Error::new(format!("{}: not a checkpoint of retune: its metadata has no `{name}`", path.display()))
                    .hint("give the checkpoint.safetensors of a run")
            })
        };
        if field("format")? != FORMAT {
            return Err(Error::new(format!(
                "{}: expected format {FORMAT}, found {:?}",
                path.display(),
                field("format")?
            )));
        }
        let unreadable = |name: &str| format!("{}: unreadable `{name}` in the metadata", path.display());
        let recipe = serde_json::from_str(field("recipe")?).context(|| unreadable("recipe"))?;
        let classes = serde_json::from_str(field("classes")?).context(|| unreadable("classes"))?;
        let position: StoredPosition = serde_json::from_str(field("position")?).context(|| unreadable("position"))?;
        let precision = file.metadata().get("precision").map_or(Ok(Precision::Fp32), |name| name.parse());
        let precision = precision.context(|| unreadable("precision"))?;
        let images = file.metadata().get(IMAGES).cloned();
        Ok(Self { recipe, classes, images, position: position.into(), precision, file })
    }

    /// Restores parameters, running statistics and the optimiser's state.
    ///
    /// # Errors
    /// When the file lacks something or belongs to another network.
    pub fn restore(&self, trainer: &mut Trainer) -> Result<()> {
        load_state_dict_named(trainer.network_mut(), &self.file, "param/")?;
        let network = trainer.network();
        for specification in network.parameters().specifications() {
            for (slot, tensor) in network.parameters().slots_of(&specification.name)? {
                let values = self.file.read_finite_f32(&format!("{slot}/{}", specification.name))?;
                write_f32(network.device(), &from_torch(values, &specification.torch_shape()), tensor)?;
            }
        }
        if trainer.updater().counted_steps().is_some() {
            let steps = self.file.metadata().get(STEPS).and_then(|steps| steps.parse().ok());
            let unreadable = || Error::new(format!("{}: unreadable `{STEPS}`", self.file.path().display()));
            trainer.updater_mut().set_steps(steps.ok_or_else(unreadable)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_written() {
        let position = Position {
            epoch: 3,
            batch: 2,
            totals: Totals { loss: 0.1, correct: 4, images: 9 },
            metrics_lines: 7,
            best: Some(Best { epoch: 1, accuracy: 1.0 / 3.0, loss: 0.7 }),
            choice: Some(Choice::LearningRate(3e-5)),
            temperature: Some(1.0 / 3.0),
        };
        for position in [position, Position { choice: Some(Choice::FixedBody), ..position }, Position::default()] {
            let text = serde_json::to_string(&StoredPosition::from(&position)).unwrap();
            assert_eq!(Position::from(serde_json::from_str::<StoredPosition>(&text).unwrap()), position);
        }
    }
}
