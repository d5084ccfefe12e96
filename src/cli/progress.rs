//! The live progress line on standard error; nothing where that is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{GlobalArguments, say, warn};

/// A line that is drawn over and over; nothing at all when quiet or when standard error is no terminal.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A line of so many steps.
    pub fn new(global: &GlobalArguments, steps: u64, unit: &str) -> Self {
        let template = format!("[{{bar:24.green}}] {{pos}}/{{len}} {unit}  {{eta}} left");
        Self::with_template(global, steps, &template)
    }

    /// A line of so much work, whose units mean nothing to a reader.
    pub fn of_work(global: &GlobalArguments, work: u64) -> Self {
        Self::with_template(global, work, "{prefix:.bold} [{bar:10.green}] {eta} left  {wide_msg}")
    }

    /// A line of bytes that arrive.
    pub fn of_bytes(global: &GlobalArguments) -> Self {
        let template = "[{bar:24.green}] {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
        Self::with_template(global, 1, template)
    }

    /// Bytes that are there, of how many.
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

    /// What comes before the bar.
    pub fn prefix(&self, text: String) {
        self.bar.set_prefix(text);
    }

    /// What comes behind the bar.
    pub fn message(&self, text: String) {
        self.bar.set_message(text);
    }

    /// How many steps there are, where that is known only later.
    pub fn length(&self, steps: u64) {
        self.bar.set_length(steps);
    }

    /// Steps that are done.
    pub fn position(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// One more step is done.
    pub fn advance(&self) {
        self.bar.inc(1);
    }

    /// Steps that were done before this process began: they say nothing about its speed.
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

    /// Takes the line away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A time as people say it: `8s`, `3m 20s`, `2h 5m`.
pub fn duration(duration: Duration) -> String {
    match duration.as_secs_f64().round() as u64 {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        seconds => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
    }
}
