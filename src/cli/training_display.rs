//! How a training run is shown: one live line and a line for each epoch, or plain lines if standard error is not a
//! terminal.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::progress::{Progress, duration};
use super::{GlobalArguments, size};
use crate::printable::plain_number;
use crate::train::{Event, Metric, Pace, Position};

/// A training image takes about three times the work of a test image.
const TRAINING_WORK: usize = 3;

/// If standard error is not a terminal: the least time between two lines within an epoch.
const SILENCE: Duration = Duration::from_secs(20);

/// Waiting for images is shown if it takes more than this fraction of the time.
const NOTABLE_WAITING: f64 = 0.1;

/// The number of images of a run.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    pub epochs: usize,
    /// Images whose features are computed before the first epoch, with augmented copies.
    pub features: usize,
    /// Images that are trained on while learning rates are tried.
    pub trials: usize,
    /// Images that are trained on in an epoch.
    pub training: usize,
    /// Images that are classified after every epoch.
    pub choosing: usize,
    /// Images that are classified once, at the end.
    pub final_test: usize,
}

impl Workload {
    /// After the head was fitted, if it was, and this many epochs.
    fn of_epochs(&self, epochs: usize) -> usize {
        let fitting = if self.features > 0 { self.tried(1, 1) as usize + self.choosing } else { 0 };
        fitting + epochs * (TRAINING_WORK * self.training + self.choosing)
    }

    fn all(&self) -> u64 {
        (self.of_epochs(self.epochs) + self.final_test) as u64
    }

    /// After some batches of training in the epoch that follows `epochs` complete ones.
    fn trained(&self, epochs: usize, batch: usize, batches: usize) -> u64 {
        (self.of_epochs(epochs) + TRAINING_WORK * self.training * batch / batches.max(1)) as u64
    }

    /// After some batches of the test in that epoch.
    fn tested(&self, epochs: usize, batch: usize, batches: usize) -> u64 {
        self.trained(epochs, 1, 1) + (self.choosing * batch / batches.max(1)) as u64
    }

    /// After some batches of the trials of learning rates.
    fn tried(&self, batch: usize, of: usize) -> u64 {
        (self.features + TRAINING_WORK * self.trials * batch / of.max(1)) as u64
    }

    /// After some batches of the test of the fitted head.
    fn tested_head(&self, batch: usize, batches: usize) -> u64 {
        self.tried(1, 1) + (self.choosing * batch / batches.max(1)) as u64
    }

    /// After some batches of the test at the end.
    fn tested_finally(&self, batch: usize, batches: usize) -> u64 {
        (self.of_epochs(self.epochs) + self.final_test * batch / batches.max(1)) as u64
    }
}

/// Shows a run.
pub struct TrainingDisplay {
    progress: Progress,
    workload: Workload,
    device: String,
    plain: bool,
    quiet: bool,
    last_line: Instant,
    /// 0 while the head is fitted.
    epoch: usize,
    skipped: Vec<PathBuf>,
}

impl TrainingDisplay {
    /// Shows a run that starts at `position`, in an epoch of so many batches, on the device with this name.
    pub fn new(
        global: &GlobalArguments,
        workload: Workload,
        position: &Position,
        batches: usize,
        device: String,
    ) -> Self {
        let fits_head = workload.features > 0 && *position == Position::default();
        let begun_at = if fits_head { 0 } else { workload.trained(position.epoch, position.batch, batches) };
        let display = Self {
            progress: Progress::of_work(global, workload.all(), begun_at),
            workload,
            device,
            plain: !global.shows_progress(),
            quiet: global.quiet,
            last_line: Instant::now(),
            epoch: if fits_head { 0 } else { position.epoch + 1 },
            skipped: Vec::new(),
        };
        display.progress.texts(display.phase(), Vec::new());
        display
    }

    fn phase(&self) -> String {
        match self.epoch {
            0 => "final layer".into(),
            epoch => format!("epoch {epoch}/{}", self.workload.epochs),
        }
    }

    /// Shows an event.
    pub fn observe(&mut self, event: Event) {
        match event {
            Event::Features { images, of } => {
                self.show(images as u64, vec![format!("features of {images}/{of} images")])
            }
            Event::Fitting { fit, of } => {
                self.show(self.workload.features as u64, vec![format!("fit {}/{of}", fit + 1)])
            }
            Event::Trying { batch, of } => {
                self.show(self.workload.tried(batch, of), vec![format!("trying learning rates {batch}/{of}")]);
            }
            Event::Step { epoch, batch, batches, totals, pace } => {
                self.epoch = epoch;
                let mut parts = vec![
                    format!("{batch}/{batches}"),
                    format!("loss {:.3}", totals.mean_loss()),
                    format!("acc {:.3}", totals.accuracy()),
                ];
                parts.extend(describe(&pace));
                self.show(self.workload.trained(epoch - 1, batch, batches), parts);
            }
            Event::Averaged { batch, batches } => {
                let done = self.workload.trained(self.epoch.saturating_sub(1), 1, 1);
                self.show(done, vec![format!("statistics of the averaged network {batch}/{batches}")]);
            }
            Event::Tested { batch, batches } => {
                let done = match self.epoch {
                    0 => self.workload.tested_head(batch, batches),
                    epoch => self.workload.tested(epoch - 1, batch, batches),
                };
                self.show(done, vec![format!("testing {batch}/{batches}")]);
            }
            Event::FinalTest { batch, batches } => {
                let done = self.workload.tested_finally(batch, batches);
                self.show(done, vec![format!("testing the best model {batch}/{batches}")]);
            }
            Event::Recorded(metric @ Metric::Trials { .. }) => self.trial_lines(metric),
            Event::Recorded(_) | Event::Examined { .. } => {}
            Event::Notice(text) => self.line(text),
            Event::Warning(text) => self.progress.warn(text),
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

    fn show(&mut self, done: u64, parts: Vec<String>) {
        self.progress.position(done);
        if self.plain && !self.quiet && self.last_line.elapsed() >= SILENCE {
            let left = self.progress.left().map_or(String::new(), |left| format!("  {} left", duration(left)));
            self.line(&format!("{}  {}{left}", self.phase(), parts.join("  ")));
        }
        self.progress.texts(self.phase(), parts);
    }

    fn epoch_line(&mut self, metric: &Metric) {
        if let Metric::Epoch { epoch, train_loss, train_acc, held_out, .. } = metric {
            let (name, loss, accuracy) = (held_out.short_name(), held_out.loss(), held_out.accuracy());
            // Nothing was trained if the epoch was resumed after its last batch.
            let speed = Metric::images_per_second([metric]).map_or(String::new(), |rate| format!("; {}", speed(rate)));
            let what = if *epoch == 0 { "final layer".to_string() } else { format!("epoch {epoch}") };
            self.line(&format!(
                "{what}: train loss {train_loss:.3}, train acc {train_acc:.3}, {name} loss {loss:.3}, \
                 {name} acc {accuracy:.3}{speed}"
            ));
        }
    }

    /// A line for each learning rate that was tried.
    fn trial_lines(&mut self, metric: &Metric) {
        let Metric::Trials { held_back, trials, chosen, .. } = metric else { return };
        for trial in trials {
            let what = match trial.learning_rate {
                None => "fitted final layer alone".into(),
                Some(rate) => format!("learning rate {}", plain_number(rate)),
            };
            let loss = trial.loss.map_or("no finite number".into(), |loss| format!("{loss:.3}"));
            let mark = if trial.learning_rate == *chosen { " (chosen)" } else { "" };
            self.line(&format!("{what}: loss {loss}, acc {:.3} on {held_back} held-back images{mark}", trial.accuracy));
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

fn speed(images_per_second: f64) -> String {
    format!("{images_per_second:.1} images/s")
}

fn describe(pace: &Pace) -> Vec<String> {
    let rate = speed(pace.images_per_second);
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    let (data, compute) = (milliseconds(pace.data), milliseconds(pace.compute));
    if data <= NOTABLE_WAITING * (data + compute) {
        return vec![rate];
    }
    vec![rate, format!("data {data:.0} + compute {compute:.0} ms")]
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
        assert_eq!(describe(&pace(1, 20)), ["100.0 images/s"]);
        assert_eq!(describe(&pace(61, 40)), ["100.0 images/s", "data 61 + compute 40 ms"]);
    }

    #[test]
    fn work_counts_tests_as_a_third() {
        let workload = Workload { epochs: 2, features: 0, trials: 0, training: 100, choosing: 60, final_test: 40 };
        assert_eq!(workload.all(), 2 * 360 + 40);
        assert_eq!(workload.trained(1, 0, 10), workload.tested(0, 6, 6));
        assert_eq!(workload.trained(0, 1, 10), 30);
        assert_eq!(workload.tested(0, 3, 6) - workload.trained(0, 10, 10), 30);
        assert_eq!(workload.tested(1, 6, 6), workload.tested_finally(0, 2));
        assert_eq!(workload.tested_finally(2, 2), workload.all());
    }
}
