//! How a training run is shown: one live line and a line for each epoch, or plain lines if standard error is not a
//! terminal.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::progress::{Progress, duration};
use super::{GlobalArguments, size};
use crate::train::{Event, Metric, Pace, Position};

/// A training image takes about three times the work of a test image.
const TRAINING_WORK: usize = 3;

/// If standard error is not a terminal: the least time between two lines within an epoch.
const SILENCE: Duration = Duration::from_secs(20);

/// Waiting for images is shown if it takes more than this fraction of the time.
const NOTABLE_WAITING: f64 = 0.1;

/// The number of batches of a run.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    pub epochs: usize,
    /// Batches per epoch.
    pub train_batches: usize,
    /// Batches of the test set.
    pub test_batches: usize,
}

impl Workload {
    fn of_epoch(&self) -> usize {
        TRAINING_WORK * self.train_batches + self.test_batches
    }

    fn done(&self, epochs: usize, train_batches: usize, test_batches: usize) -> u64 {
        (epochs * self.of_epoch() + TRAINING_WORK * train_batches + test_batches) as u64
    }
}

/// Shows a run.
pub struct TrainingDisplay {
    progress: Progress,
    workload: Workload,
    device: String,
    plain: bool,
    quiet: bool,
    begun: Instant,
    begun_at: u64,
    last_line: Instant,
    epoch: usize,
    skipped: Vec<PathBuf>,
}

impl TrainingDisplay {
    /// Shows a run that starts at `position` on the device with this name.
    pub fn new(global: &GlobalArguments, workload: Workload, position: &Position, device: String) -> Self {
        let progress = Progress::of_work(global, workload.done(workload.epochs, 0, 0));
        let begun_at = workload.done(position.epoch, position.batch, 0);
        progress.begin_at(begun_at);
        Self {
            progress,
            workload,
            device,
            plain: !global.shows_progress(),
            quiet: global.quiet,
            begun: Instant::now(),
            begun_at,
            last_line: Instant::now(),
            epoch: position.epoch + 1,
            skipped: Vec::new(),
        }
    }

    /// Shows an event.
    pub fn observe(&mut self, event: Event) {
        match event {
            Event::Step { epoch, batch, batches, totals, pace } => {
                self.epoch = epoch;
                let state = format!(
                    "{batch}/{batches}  loss {:.3}  acc {:.3}  {}",
                    totals.mean_loss(),
                    totals.accuracy(),
                    describe(&pace)
                );
                self.show(self.workload.done(epoch - 1, batch, 0), state);
            }
            Event::Tested { batch, batches } => {
                let done = self.workload.done(self.epoch - 1, self.workload.train_batches, batch);
                self.show(done, format!("testing {batch}/{batches}"));
            }
            Event::FinalTest { batch, batches } => {
                self.progress.message(format!("testing the best model {batch}/{batches}"));
            }
            Event::Recorded(_) | Event::Notice(_) => {}
            Event::Epoch(metric) => self.epoch_line(metric),
            Event::Stored(stored, of) => self.line(&format!(
                "{} of {of} decoded images are kept on {}: {}",
                stored.images,
                self.device,
                size(stored.bytes)
            )),
            Event::Skipped(sample) => {
                self.progress.warn(&format!("skipped: {}", sample.reason));
                self.skipped.push(sample.path.clone());
            }
        }
    }

    fn show(&mut self, done: u64, state: String) {
        self.progress.position(done);
        if self.plain && !self.quiet && self.last_line.elapsed() >= SILENCE {
            let share =
                (done - self.begun_at) as f64 / (self.workload.done(self.workload.epochs, 0, 0) - self.begun_at) as f64;
            let left = self.begun.elapsed().mul_f64((1.0 - share) / share.max(1e-9));
            self.line(&format!("epoch {}/{}  {state}  {} left", self.epoch, self.workload.epochs, duration(left)));
        }
        self.progress.prefix(format!("epoch {}/{}", self.epoch, self.workload.epochs));
        self.progress.message(state);
    }

    fn epoch_line(&mut self, metric: &Metric) {
        if let Metric::Epoch { epoch, train_loss, train_acc, held_out, images_per_second, .. } = metric {
            let (name, loss, accuracy) = (held_out.short_name(), held_out.loss(), held_out.accuracy());
            self.line(&format!(
                "epoch {epoch}: train loss {train_loss:.3}, train acc {train_acc:.3}, {name} loss {loss:.3}, \
                 {name} acc {accuracy:.3}; {images_per_second:.1} examples/sec"
            ));
        }
    }

    fn line(&mut self, text: &str) {
        if !self.quiet {
            self.progress.line(text);
        }
        self.last_line = Instant::now();
    }

    /// Prints a warning above the live line.
    pub fn warn(&self, text: &str) {
        self.progress.warn(text);
    }

    /// Removes the live line. Returns the images that could not be read.
    pub fn finish(self) -> Vec<PathBuf> {
        self.progress.finish();
        self.skipped
    }
}

fn describe(pace: &Pace) -> String {
    let rate = format!("{:.1} images/s", pace.images_per_second);
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    let (data, compute) = (milliseconds(pace.data), milliseconds(pace.compute));
    if data <= NOTABLE_WAITING * (data + compute) {
        return rate;
    }
    format!("{rate}  data {data:.0} + compute {compute:.0} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_data_is_told_where_it_matters() {
        let pace = |data, compute| Pace {
            images_per_second: 100.0,
            data: Duration::from_millis(data),
            compute: Duration::from_millis(compute),
        };
        assert_eq!(describe(&pace(1, 20)), "100.0 images/s");
        assert_eq!(describe(&pace(61, 40)), "100.0 images/s  data 61 + compute 40 ms");
    }

    #[test]
    fn work_counts_tests_as_a_third() {
        let workload = Workload { epochs: 2, train_batches: 10, test_batches: 6 };
        assert_eq!(workload.done(2, 0, 0), 72);
        assert_eq!(workload.done(1, 0, 0), workload.done(0, 10, 6));
        assert_eq!(workload.done(0, 1, 0), workload.done(0, 0, 3));
    }
}
