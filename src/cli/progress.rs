//! The live progress line on standard error, shown only on a terminal.

use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::{GlobalArguments, say, warn};

/// A progress line; hidden with `--quiet` or when standard error is not a terminal.
pub struct Progress {
    bar: ProgressBar,
    shown: Arc<Mutex<Shown>>,
}

/// What the line shows beside the bar.
#[derive(Debug)]
struct Shown {
    estimate: Estimate,
    prefix: String,
    /// The most important first.
    parts: Vec<String>,
}

impl Shown {
    fn left(&self) -> String {
        let left = self.estimate.left(Instant::now());
        left.map_or(String::new(), |left| format!("  {} left", duration(left)))
    }

    /// As many parts as fit beside the rest of a line of this width.
    fn fitting_parts(&self, columns: usize) -> String {
        let mut text = self.left();
        for part in &self.parts {
            if self.prefix.len() + " [] ".len() + BAR + text.len() + part.len() + 1 > columns {
                break;
            }
            text += "  ";
            text += part;
        }
        text
    }
}

/// The width of the bar of a run.
const BAR: usize = 10;

/// What the time left is estimated from.
#[derive(Debug)]
struct Estimate {
    begun: Instant,
    /// Steps that were finished before.
    begun_at: u64,
    steps: u64,
    done: u64,
    /// When the last of them was finished.
    at: Instant,
}

impl Estimate {
    /// The time left, from the average speed up to the last finished step. Until the next one is finished, it only decreases. `None`
    /// before the first.
    fn left(&self, now: Instant) -> Option<Duration> {
        let done = self.done.saturating_sub(self.begun_at);
        let left = self.steps.saturating_sub(self.done);
        let took = self.at.duration_since(self.begun);
        (done > 0).then(|| took.mul_f64(left as f64 / done as f64).saturating_sub(now.duration_since(self.at)))
    }
}

impl Progress {
    /// Progress in steps.
    pub fn new(global: &GlobalArguments, steps: u64, unit: &str) -> Self {
        Self::with_template(global, steps, &format!("[{{bar:24.green}}] {{pos}}/{{len}} {unit}{{left}}"))
    }

    /// Progress in steps whose number is not known.
    pub fn of_any_number(global: &GlobalArguments, unit: &str) -> Self {
        Self::with_template(global, 0, &format!("{{pos}} {unit}"))
    }

    /// Progress in units that are not shown, of which `done` were finished before this process started.
    pub fn of_work(global: &GlobalArguments, work: u64, done: u64) -> Self {
        let progress = Self::with_template(global, work, &format!("{{prefix:.bold}} [{{bar:{BAR}.green}}]{{parts}}"));
        progress.begin_at(done);
        progress
    }

    /// Progress of a download.
    pub fn of_bytes(global: &GlobalArguments) -> Self {
        Self::with_template(global, 0, "[{bar:24.green}] {bytes}/{total_bytes}  {bytes_per_sec}{left}")
    }

    /// Sets the bytes received and their total, if known.
    pub fn bytes(&self, done: u64, total: Option<u64>) {
        let is_first = self.shown().estimate.steps == 0;
        self.length(total.unwrap_or(done.max(1)));
        if is_first {
            // Some may be of an earlier attempt.
            self.begin_at(done);
        } else {
            self.position(done);
        }
    }

    fn with_template(global: &GlobalArguments, steps: u64, template: &str) -> Self {
        let now = Instant::now();
        let estimate = Estimate { begun: now, begun_at: 0, steps, done: 0, at: now };
        let shown = Arc::new(Mutex::new(Shown { estimate, prefix: String::new(), parts: Vec::new() }));
        let target = if global.shows_progress() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        if let Ok(style) = ProgressStyle::with_template(template) {
            // The estimate of `indicatif` increases while a step takes longer than usual.
            let (for_left, for_parts) = (shown.clone(), shown.clone());
            let left = move |_: &ProgressState, text: &mut dyn Write| {
                let _ = text.write_str(&lock(&for_left).left());
            };
            let parts = move |_: &ProgressState, text: &mut dyn Write| {
                let columns = console::Term::stderr().size().1;
                let _ = text.write_str(&lock(&for_parts).fitting_parts(columns.into()));
            };
            bar.set_style(style.progress_chars("=> ").with_key("left", left).with_key("parts", parts));
        }
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar, shown }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        lock(&self.shown)
    }

    /// The estimated time left; `None` before the first finished step.
    pub fn left(&self) -> Option<Duration> {
        self.shown().estimate.left(Instant::now())
    }

    /// Sets the text before the bar, and what follows it as far as there is room.
    pub fn texts(&self, prefix: String, parts: Vec<String>) {
        {
            let mut shown = self.shown();
            shown.prefix.clone_from(&prefix);
            shown.parts = parts;
        }
        self.bar.set_prefix(prefix);
    }

    /// Sets the number of steps.
    pub fn length(&self, steps: u64) {
        self.shown().estimate.steps = steps;
        self.bar.set_length(steps);
    }

    /// Sets the number of finished steps.
    pub fn position(&self, done: u64) {
        {
            let mut shown = self.shown();
            (shown.estimate.done, shown.estimate.at) = (done, Instant::now());
        }
        self.bar.set_position(done);
    }

    /// Counts one more finished step.
    pub fn advance(&self) {
        let done = self.shown().estimate.done + 1;
        self.position(done);
    }

    /// Sets the number of steps that finished before this process started, which do not count towards its speed.
    fn begin_at(&self, done: u64) {
        {
            let mut shown = self.shown();
            let now = Instant::now();
            shown.estimate = Estimate { begun: now, begun_at: done, done, at: now, ..shown.estimate };
        }
        self.bar.set_position(done);
        self.bar.reset_eta();
    }

    /// Prints something above the bar.
    pub fn above<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        self.above(|| say(text));
    }

    /// Prints a warning above the bar.
    pub fn warn(&self, text: &str) {
        self.above(|| warn(text));
    }

    /// Removes the line.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn lock(shown: &Mutex<Shown>) -> MutexGuard<'_, Shown> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A duration in one or two units: `8s`, `3m 20s`, `2h 5m`.
pub fn duration(duration: Duration) -> String {
    match duration.as_secs_f64().round() as u64 {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        seconds => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_do_not_fit_are_left_out_as_a_whole() {
        let now = Instant::now();
        let estimate = Estimate { begun: now, begun_at: 0, steps: 10, done: 0, at: now };
        let parts = ["3/40", "loss 0.700"].map(String::from).to_vec();
        let shown = Shown { estimate, prefix: "epoch 1/5".into(), parts };
        assert_eq!(shown.fitting_parts(80), "  3/40  loss 0.700");
        let width = "epoch 1/5 [          ]  3/40  loss 0.700".len();
        assert_eq!(shown.fitting_parts(width), "  3/40  loss 0.700");
        assert_eq!(shown.fitting_parts(width - 1), "  3/40");
        assert_eq!(shown.fitting_parts(20), "");
    }

    #[test]
    fn the_time_left_is_estimated_from_the_first_step_on_and_never_increases_within_a_step() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut estimate = Estimate { begun, begun_at: 20, steps: 100, done: 20, at: begun };
        assert_eq!(estimate.left(after(60)), None, "before the first step");
        // The steps that were finished before say nothing about the speed.
        (estimate.done, estimate.at) = (30, after(50));
        assert_eq!(estimate.left(after(50)), Some(Duration::from_secs(350)));
        let within: Vec<_> = (50..1000).map(|second| estimate.left(after(second)).unwrap()).collect();
        assert!(within.is_sorted_by(|earlier, later| earlier >= later));
        assert_eq!(within[10], Duration::from_secs(340));
        assert_eq!(within.last(), Some(&Duration::ZERO));
        (estimate.done, estimate.at) = (100, after(1000));
        assert_eq!(estimate.left(after(1000)), Some(Duration::ZERO));
    }
}
