//! The metrics of a run, one JSON object per line.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::SkippedSample;
use crate::error::{Context, Result};
use crate::file::write_atomically;

/// Sums over the images of (a part of) an epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Sum of the images' losses.
    pub loss: f64,
    /// Images that were classified correctly.
    pub correct: u64,
    /// Images.
    pub images: u64,
}

impl Totals {
    /// Adds the sums of another part.
    pub fn add(&mut self, other: Totals) {
        self.loss += other.loss;
        self.correct += other.correct;
        self.images += other.images;
    }

    /// Mean loss per image.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.images.max(1) as f64
    }

    /// Share of correct images.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.images.max(1) as f64
    }
}

/// The results on images that are not trained on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HeldOut {
    /// On the test images, where there are no others.
    Test {
        /// Mean loss an image.
        test_loss: f64,
        /// Share of correct images.
        test_acc: f64,
    },
    /// On the validation images; the test images then wait for the end.
    Validation {
        /// Mean loss an image.
        val_loss: f64,
        /// Share of correct images.
        val_acc: f64,
    },
}

impl HeldOut {
    /// These results, on validation images or on test images.
    pub fn new(totals: &Totals, is_validation: bool) -> Self {
        let (loss, accuracy) = (totals.mean_loss(), totals.accuracy());
        match is_validation {
            true => Self::Validation { val_loss: loss, val_acc: accuracy },
            false => Self::Test { test_loss: loss, test_acc: accuracy },
        }
    }

    /// Mean loss an image.
    pub fn loss(&self) -> f64 {
        match *self {
            Self::Test { test_loss: loss, .. } | Self::Validation { val_loss: loss, .. } => loss,
        }
    }

    /// Share of correct images.
    pub fn accuracy(&self) -> f64 {
        match *self {
            Self::Test { test_acc: accuracy, .. } | Self::Validation { val_acc: accuracy, .. } => accuracy,
        }
    }

    /// `test` or `val`, as in the names of the fields.
    pub fn short_name(&self) -> &'static str {
        match self {
            Self::Test { .. } => "test",
            Self::Validation { .. } => "val",
        }
    }

    /// `test` or `validation`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Test { .. } => "test",
            Self::Validation { .. } => "validation",
        }
    }
}

/// What one penalty on the weights of a fitted head achieved on images that were held out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TriedPenalty {
    /// See [`super::Regression::fit`].
    pub penalty: f64,
    /// Mean loss per held-out image.
    pub loss: f64,
    /// Share of held-out images that were classified correctly.
    pub accuracy: f64,
}

/// What a run with one learning rate achieved on held-back training images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The learning rate; none for the fitted head alone.
    pub learning_rate: Option<f64>,
    /// Mean loss per held-back image; none if the numbers were no longer finite.
    pub loss: Option<f64>,
    /// Standard error of the mean difference of its losses and those of the fitted head alone, image by image; none for the fitted head
    /// alone, if the numbers were no longer finite, and in runs of earlier versions.
    #[serde(default)]
    pub standard_error: Option<f64>,
    /// Share of held-back images that were classified correctly.
    pub accuracy: f64,
    /// Held-back images that it classifies correctly and the fitted head alone does not.
    pub gained: usize,
    /// Held-back images that the fitted head alone classifies correctly and it does not.
    pub lost: usize,
}

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Metric {
    /// About five times per epoch: averages since the start of the epoch, while the weights changed.
    Progress {
        /// Completed epochs, with the fraction of the current one.
        epoch: f64,
        /// Mean loss per image.
        train_loss: f64,
        /// Share of correct images.
        train_acc: f64,
    },
    /// The head was fitted to features before the first epoch.
    Head {
        /// The penalty on its weights.
        penalty: f64,
        /// What was tried.
        tried: Vec<TriedPenalty>,
        /// Seconds that it took, with the computation of features.
        seconds: f64,
    },
    /// Learning rates were tried on held-back training images.
    Trials {
        /// Number of held-back images.
        held_back: usize,
        /// Epochs of each trial.
        epochs: usize,
        /// The trials; that of the fitted head alone is the first.
        trials: Vec<Trial>,
        /// The learning rate that was chosen; none if no epoch is to be trained.
        chosen: Option<f64>,
        /// Seconds that they took.
        seconds: f64,
    },
    /// At the end of each epoch.
    Epoch {
        /// Counted from 1; 0 after the head was fitted.
        epoch: usize,
        /// Mean loss per training image, over the epoch.
        train_loss: f64,
        /// Share of correct training images, over the epoch.
        train_acc: f64,
        /// After the epoch, on the images that choose the model.
        #[serde(flatten)]
        held_out: HeldOut,
        /// Training images per second, without testing and saving; of a resumed epoch, since it was resumed.
        images_per_second: f64,
        /// Seconds of training that this is measured over.
        seconds: f64,
        /// Seconds since the end of the previous epoch, with testing and saving; earlier versions recorded none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        whole_seconds: Option<f64>,
    },
    /// At the end, where validation images chose the model: its results on the test images.
    Test {
        /// The epoch of the model, counted from 1.
        epoch: usize,
        /// Mean loss a test image.
        test_loss: f64,
        /// Share of correct test images.
        test_acc: f64,
        /// Seconds of this test; earlier versions recorded none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<f64>,
    },
    /// The run continued with other images: the results of the saved model on those that now choose the model.
    Changed {
        /// The epoch of the model, counted from 1; 0 after the head was fitted.
        epoch: usize,
        /// Its results.
        #[serde(flatten)]
        held_out: HeldOut,
        /// The difference of the images.
        reason: String,
    },
    /// The run ended early because its numbers were no longer finite. Resuming removes this line.
    Stopped {
        /// What was not finite, and where.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
    /// An image that could not be read and was skipped, recorded once.
    Skipped {
        /// The file, with replacement characters for what is not Unicode in its name.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Metric {
    /// The speed of a run: training images per second over all of these epochs, without testing and saving; if only the head was fitted,
    /// images per second whose features were computed. `None` if nothing was measured.
    pub fn images_per_second<'a>(metrics: impl IntoIterator<Item = &'a Self>) -> Option<f64> {
        // Of training steps, and of computing features.
        let mut sums = [(0.0, 0.0); 2];
        for metric in metrics {
            if let Self::Epoch { epoch, images_per_second, seconds, .. } = metric {
                let (images, all_seconds) = &mut sums[usize::from(*epoch == 0)];
                *images += images_per_second * seconds;
                *all_seconds += seconds;
            }
        }
        sums.into_iter().find(|(_, seconds)| *seconds > 0.0).map(|(images, seconds)| images / seconds)
    }
}

impl From<&SkippedSample> for Metric {
    fn from(sample: &SkippedSample) -> Self {
        Self::Skipped { path: sample.path.to_string_lossy().into_owned(), reason: sample.reason.clone() }
    }
}

/// `metrics.jsonl`, open for appending.
pub struct MetricsFile {
    path: PathBuf,
    file: File,
    lines: usize,
    skipped: HashSet<String>,
    epochs: Vec<Metric>,
}

impl MetricsFile {
    /// Opens the file and keeps its first `lines` lines; the run writes again what followed its last checkpoint.
    pub fn open(path: &Path, lines: usize) -> Result<Self> {
        let text = if lines == 0 { String::new() } else { fs::read_to_string(path).unwrap_or_default() };
        let kept: String = text.split_inclusive('\n').take(lines).collect();
        write_atomically(path, |writer| writer.write_all(kept.as_bytes()))?;
        let file = OpenOptions::new().append(true).open(path);
        let file = file.context(|| format!("cannot open {}", path.display()))?;
        let (mut skipped, mut epochs) = (HashSet::new(), Vec::new());
        for line in kept.lines() {
            match serde_json::from_str(line) {
                Ok(Metric::Skipped { path, .. }) => drop(skipped.insert(path)),
                Ok(epoch @ Metric::Epoch { .. }) => epochs.push(epoch),
                // Lines of other kinds are only kept, and those of a later version may be unknown.
                _ => {}
            }
        }
        Ok(Self { path: path.to_path_buf(), file, lines: kept.lines().count(), skipped, epochs })
    }

    /// The images that the kept lines record as skipped.
    pub fn skipped(&self) -> &HashSet<String> {
        &self.skipped
    }

    /// The lines of completed epochs.
    pub fn epochs(&self) -> &[Metric] {
        &self.epochs
    }

    /// Number of lines.
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Appends a line to the file of a run that has ended.
    pub(super) fn append_to(path: &Path, metric: &Metric) -> Result<()> {
        let file = OpenOptions::new().append(true).open(path);
        let file = file.context(|| format!("cannot open {}", path.display()))?;
        let mut file = Self { path: path.to_path_buf(), file, lines: 0, skipped: HashSet::new(), epochs: Vec::new() };
        file.append(metric)
    }

    /// Appends a line, in one write.
    pub fn append(&mut self, metric: &Metric) -> Result<()> {
        let doing = || format!("cannot write {}", self.path.display());
        let line = serde_json::to_string(metric).context(doing)? + "\n";
        self.file.write_all(line.as_bytes()).context(doing)?;
        self.lines += 1;
        if let Metric::Epoch { .. } = metric {
            self.epochs.push(metric.clone());
        }
        Ok(())
    }
}
