//! The live progress line on standard error, shown only on a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{GlobalArguments, say, warn};

/// A progress line; hidden with `--quiet` or when standard error is not a terminal.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Progress in steps.
    pub fn new(global: &GlobalArguments, steps: u64, unit: &str) -> Self {
        let template = format!("[{{bar:24.green}}] {{pos}}/{{len}} {unit}  {{eta}} left");
        Self::with_template(global, steps, &template)
    }

    /// Progress in units that are not shown.
    pub fn of_work(global: &GlobalArguments, work: u64) -> Self {
        Self::with_template(global, work, "{prefix:.bold} [{bar:10.green}] {eta} left  {wide_msg}")
    }

    /// Progress of a download.
    pub fn of_bytes(global: &GlobalArguments) -> Self {
        let template = "[{bar:24.green}] {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
        Self::with_template(global, 1, template)
    }

    /// Sets the bytes received and their total, if known.
    pub fn bytes(&self, done: u64, total: Option<u64>) {
        self.bar.set_length(total.unwrap_or(done.max(1)));
        self.bar.set_position(done);
    }

    fn with_template(global: &GlobalArguments, length: u64, template: &str) -> Self {
        let target = if global.shows_progress() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(length), target);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar }
    }

    /// Sets the text before the bar.
    pub fn prefix(&self, text: String) {
        self.bar.set_prefix(text);
    }

    /// Sets the text after the bar.
    pub fn message(&self, text: String) {
        self.bar.set_message(text);
    }

    /// Sets the number of steps.
    pub fn length(&self, steps: u64) {
        self.bar.set_length(steps);
    }

    /// Sets the number of finished steps.
    pub fn position(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Counts one more finished step.
    pub fn advance(&self) {
        self.bar.inc(1);
    }

    /// Sets the number of steps that finished before this process started, which do not count towards its speed.
    pub fn begin_at(&self, done: u64) {
        self.bar.set_position(done);
        self.bar.reset_eta();
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        self.bar.suspend(|| say(text));
    }

    /// Prints a warning above the bar.
    pub fn warn(&self, text: &str) {
        self.bar.suspend(|| warn(text));
    }

    /// Removes the line.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A duration in one or two units: `8s`, `3m 20s`, `2h 5m`.
pub fn duration(duration: Duration) -> String {
    match duration.as_secs_f64().round() as u64 {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        seconds => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
    }
}
