//! The events and the results that a run reports.

use std::time::Duration;

use super::checkpoint::Best;
use super::metrics::{HeldOut, Metric, Totals};
use crate::data::{SkippedSample, Stored};

/// An event that a run reports.
#[derive(Debug)]
pub enum Event<'a> {
    /// The features of training images were computed, to which the head will be fitted.
    Features {
        /// How many so far.
        images: usize,
        /// How many in all, with augmented copies.
        of: usize,
    },
    /// The head is being fitted to features.
    Fitting {
        /// How many fits are complete.
        fit: usize,
        /// How many there are.
        of: usize,
    },
    /// A batch of a trial of a learning rate was trained on.
    Trying {
        /// Batches of all trials so far.
        batch: usize,
        /// Batches of all trials.
        of: usize,
    },
    /// A step was completed.
    Step {
        /// Counted from 1.
        epoch: usize,
        /// Completed batches of this epoch.
        batch: usize,
        /// Batches of an epoch.
        batches: usize,
        /// Metrics of the epoch so far.
        totals: Totals,
        /// The speed of this epoch so far.
        pace: Pace,
    },
    /// The metrics of a part of an epoch, or the trials of learning rates, were recorded.
    Recorded(&'a Metric),
    /// A batch was used for the running statistics of the averaged network.
    Averaged {
        /// How many batches so far.
        batch: usize,
        /// How many in all.
        batches: usize,
    },
    /// A batch of test images was classified.
    Tested {
        /// The number of classified batches.
        batch: usize,
        /// Batches of the test set.
        batches: usize,
    },
    /// At the end, a batch of test images was classified with the model that the validation images chose.
    FinalTest {
        /// How many batches so far.
        batch: usize,
        /// Batches of the test set.
        batches: usize,
    },
    /// An epoch was completed and saved.
    Epoch(&'a Metric),
    /// From here on, decoded images stay in the device's memory; the number is that of all images.
    Stored(Stored, usize),
    /// An image could not be read and was skipped; reported once per image.
    Skipped(&'a SkippedSample),
    /// Before the run starts, images were examined.
    Examined {
        /// How many so far.
        images: usize,
        /// Images of the data set.
        of: usize,
    },
    /// Something that a user should know before the run starts.
    Notice(&'a str),
    /// A problem that does not end the run.
    Warning(&'a str),
}

/// The speed of an epoch so far; of a resumed epoch, since it was resumed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Training images per second.
    pub images_per_second: f64,
    /// Average time that a batch waits for its images.
    pub data: Duration,
    /// Average time of a step after that.
    pub compute: Duration,
}

/// The results of a completed run.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Mean loss per training image, over the last epoch.
    pub train_loss: f64,
    /// Share of correct training images, over the last epoch.
    pub train_acc: f64,
    /// After the last epoch, on the images that choose the model.
    pub held_out: HeldOut,
    /// Share of correct test images: after the last epoch, or of the best model where validation images chose it.
    pub test_acc: f64,
    /// Training images per second over all epochs, as [`Metric::images_per_second`] computes it.
    pub images_per_second: f64,
    /// The share of the training time that was spent waiting for images, since the run started or was resumed.
    pub waiting_share: f64,
    /// The epoch whose model was kept.
    pub best: Best,
    /// Training images that could not be read.
    pub skipped: usize,
}
