//! What a run reports while it goes on, and at its end.

use std::time::Duration;

use super::checkpoint::Best;
use super::metrics::{Metric, Totals};
use crate::data::{SkippedSample, Stored};

/// What a run reports while it goes on.
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
    /// A batch of test images was classified.
    Tested {
        /// How many batches so far.
        batch: usize,
        /// Batches of the test set.
        batches: usize,
    },
    /// An epoch was completed and saved.
    Epoch(&'a Metric),
    /// Images stay in the device's memory from here on; the number is that of all images.
    Stored(Stored, usize),
    /// An image could not be read and was left out; reported once per image.
    Skipped(&'a SkippedSample),
    /// Something that a user should know before the run starts.
    Notice(&'a str),
}

/// How fast a run goes, since it began or resumed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Training images a second.
    pub images_per_second: f64,
    /// How long a batch waits for its images, on average.
    pub data: Duration,
    /// How long a step then takes, on average.
    pub compute: Duration,
}

/// What a completed run ends with.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Mean loss a training image, over the last epoch.
    pub train_loss: f64,
    /// Share of correct training images, over the last epoch.
    pub train_acc: f64,
    /// Share of correct test images, after the last epoch.
    pub test_acc: f64,
    /// Training images a second.
    pub images_per_second: f64,
    /// Of that, the share of time that was spent waiting for images.
    pub waiting_share: f64,
    /// The epoch whose model was kept.
    pub best: Best,
    /// Training images that could not be read.
    pub skipped: usize,
}
