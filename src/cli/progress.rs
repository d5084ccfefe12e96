//! The live progress line on standard error, or plain lines where that is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{GlobalArguments, say};

/// A line that is drawn over and over; nothing at all when quiet or when standard error is no terminal.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A line of so many steps.
    pub fn new(global: &GlobalArguments, steps: u64, unit: &str) -> Self {
        let target = if global.shows_progress() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        let template = format!("{{prefix}} [{{bar:24}}] {{pos}}/{{len}} {unit}  {{msg}}  {{eta}} left");
        if let Ok(style) = ProgressStyle::with_template(&template) {
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

    /// Steps that are done.
    pub fn position(&self, done: u64) {
        self.bar.set_position(done);
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

    /// Takes the line away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
