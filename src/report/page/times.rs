//! When a run took place, how long it took, and the results of every epoch.

use maud::{Markup, html};

use super::super::record::RunRecord;
use super::text::{duration, percent};
use crate::train::Metric;

/// A longer run shows about as many of its epochs, evenly spaced.
const MOST_EPOCHS: usize = 200;

/// The times of a run, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Times {
    /// The mean time of an epoch.
    pub epoch: f64,
    /// All epochs and the test at the end.
    pub whole: f64,
    /// The part of it that was spent on training.
    pub training: f64,
    /// The part of it that was spent on trials of learning rates.
    pub trials: f64,
    /// Whether the whole is that of training alone, as earlier versions recorded it.
    pub is_training_only: bool,
}

/// None before the end of the first epoch.
pub(super) fn times(metrics: &[Metric]) -> Option<Times> {
    let (mut epochs, mut whole, mut training, mut is_training_only) = (0, 0.0, 0.0, false);
    let (mut test, mut trials) = (0.0, 0.0);
    for metric in metrics {
        match *metric {
            Metric::Epoch { seconds, whole_seconds, .. } => {
                epochs += 1;
                training += seconds;
                whole += whole_seconds.unwrap_or(seconds);
                is_training_only |= whole_seconds.is_none();
            }
            // A run that is continued is tested again.
            Metric::Test { seconds, .. } => test += seconds.unwrap_or(0.0),
            Metric::Trials { seconds, .. } => trials += seconds,
            _ => {}
        }
    }
    let epoch = (whole - trials) / f64::from(epochs.max(1));
    (epochs > 0).then_some(Times { epoch, whole: whole + test, training, trials, is_training_only })
}

/// `2026-11-29 10:53 UTC`
pub(super) fn started(run: &RunRecord) -> Option<String> {
    let (date, time) = run.config.started.as_deref()?.split_once('T')?;
    let minutes = time.get(..5)?;
    Some(format!("{date} {minutes} UTC"))
}

/// A paragraph about the whole run.
pub(super) fn summary(run: &RunRecord) -> Markup {
    let started = started(run);
    let times = times(&run.metrics);
    html! {
        p {
            @match &started {
                Some(started) => { "The run was started on " (started) ". " }
                None => { "The date of the run is not known: it was made by an earlier version, which did not record it. " }
            }
            @if let Some(Times { epoch, whole, training, trials, is_training_only }) = times {
                @if is_training_only {
                    "Training took " (duration(training)) ", " (duration(epoch)) " per epoch; an earlier version did not record the \
                     time of testing."
                } @else {
                    "It took " (duration(whole)) @if !run.has_fixed_body() { ", " (duration(epoch)) " per epoch" } ", of which "
                    @if trials > 0.0 { "the trials of learning rates were " (percent(trials / whole)) " and " }
                    "testing and saving were " (percent(1.0 - (training + trials) / whole)) "."
                }
            }
        }
    }
}

/// A folded table of all epochs.
pub(super) fn epochs(run: &RunRecord) -> Markup {
    let all: Vec<&Metric> = run.epochs().collect();
    let Some(Metric::Epoch { epoch: 1.., held_out, .. }) = all.last() else { return html! {} };
    let every = all.len().div_ceil(MOST_EPOCHS);
    let shown = all.iter().enumerate().filter(|(index, _)| (index + 1) % every == 0 || index + 1 == all.len());
    let name = held_out.name();
    html! {
        details {
            summary { "Results of every " @if every > 1 { (every) " epochs" } @else { "epoch" } }
            div.scroll {
                table {
                    thead {
                        tr {
                            th.number { "epoch" } th.number { "training loss" } th.number { "training accuracy" }
                            th.number { (name) " loss" } th.number { (name) " accuracy" } th.number { "time" }
                        }
                    }
                    tbody {
                        @for (_, metric) in shown {
                            @if let Metric::Epoch { epoch, train_loss, train_acc, held_out, seconds, whole_seconds, .. } = metric {
                                tr {
                                    td.number { @if *epoch == 0 { "final layer" } @else { (epoch) } }
                                    td.number { (format!("{train_loss:.3}")) }
                                    td.number { (percent(*train_acc)) }
                                    td.number { (format!("{:.3}", held_out.loss())) }
                                    td.number { (percent(held_out.accuracy())) }
                                    td.number { (duration(whole_seconds.unwrap_or(*seconds))) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::HeldOut;

    fn epoch(seconds: f64, whole_seconds: Option<f64>) -> Metric {
        let held_out = HeldOut::Test { test_loss: 0.5, test_acc: 0.5 };
        Metric::Epoch {
            epoch: 1,
            train_loss: 0.5,
            train_acc: 0.5,
            held_out,
            images_per_second: 1.0,
            seconds,
            whole_seconds,
        }
    }

    #[test]
    fn the_time_of_a_run_is_that_of_its_epochs_and_its_test() {
        let test = Metric::Test { epoch: 1, test_loss: 0.5, test_acc: 0.5, seconds: Some(3.0) };
        let found = times(&[epoch(2.0, Some(4.0)), test.clone(), epoch(3.0, Some(6.0)), test]).unwrap();
        assert_eq!(found, Times { epoch: 5.0, whole: 16.0, training: 5.0, trials: 0.0, is_training_only: false });
        let earlier = times(&[epoch(2.0, None), epoch(4.0, None)]).unwrap();
        assert_eq!(earlier, Times { epoch: 3.0, whole: 6.0, training: 6.0, trials: 0.0, is_training_only: true });
        let trials = Metric::Trials { held_back: 9, epochs: 1, trials: Vec::new(), chosen: None, seconds: 5.0 };
        let tried = times(&[trials, epoch(2.0, Some(8.0))]).unwrap();
        assert_eq!(tried, Times { epoch: 3.0, whole: 8.0, training: 2.0, trials: 5.0, is_training_only: false });
        assert_eq!(times(&[]), None);
    }
}
