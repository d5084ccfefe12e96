//! Several runs by their accuracy: which is best, as far as that can be told, and by how much.

use maud::{Markup, html};

use super::super::curves::{COLOURS, accuracy_ticks, decimals};
use super::super::findings::leak;
use super::super::measures::interval;
use super::super::record::RunRecord;
use super::results::best_accuracy;
use super::text::{duration, percent};
use super::times::{started, times};
use crate::train::{HeldOut, Metric};

/// The accuracy of a run's saved model on its test images.
#[derive(Debug, Clone, PartialEq)]
struct Score {
    name: String,
    accuracy: f64,
    /// The 95 % interval.
    interval: [f64; 2],
}

impl Score {
    fn new(name: &str, accuracy: f64, images: usize) -> Self {
        let correct = (accuracy * images as f64).round() as usize;
        Self { name: name.into(), accuracy, interval: interval(correct.min(images), images) }
    }

    /// That of a run whose test images were classified.
    fn of(run: &RunRecord) -> Option<Self> {
        let is_tested = match run.epochs().last()? {
            Metric::Epoch { held_out: HeldOut::Validation { .. }, .. } => run.final_test().is_some(),
            _ => true,
        };
        let images = run.config.test_images.max(1);
        is_tested.then(|| Self::new(&run.name, best_accuracy(run), images))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.interval[0] <= other.interval[1] && other.interval[0] <= self.interval[1]
    }

    fn range(&self) -> String {
        format!("{} to {}", percent(self.interval[0]), percent(self.interval[1]))
    }
}

/// The runs with the best first; those that were not tested last. Equal ones keep their order.
pub(super) fn sorted<'a>(runs: &[&'a RunRecord]) -> Vec<&'a RunRecord> {
    let mut runs = runs.to_vec();
    let accuracy = |run: &RunRecord| Score::of(run).map_or(-1.0, |score| score.accuracy);
    runs.sort_by(|a, b| accuracy(b).total_cmp(&accuracy(a)));
    runs
}

/// The sentences that name the winner, say how certain that is, why other runs have no accuracy, and which tests have copies of images
/// that the run has seen; none for a single run.
pub(super) fn verdict_of(runs: &[&RunRecord]) -> Option<String> {
    let runs = sorted(runs);
    let (mut scores, mut tested, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for run in runs.iter().copied() {
        let is_stopped = run.metrics.iter().any(|metric| matches!(metric, Metric::Stopped { .. }));
        match (Score::of(run), is_stopped) {
            (score, true) => {
                others.push(format!("{} ended early, because its numbers were no longer finite.", run.name));
                scores.extend(score);
            }
            (None, false) => others.push(format!("{} has not been tested yet.", run.name)),
            (Some(score), false) => scores.push(score),
        }
        tested.extend(Score::of(run).is_some().then_some(run));
    }
    others.extend(leaks(&runs));
    let first = (runs.len() > 1).then(|| verdict(&scores, have_same_tests(&tested)))?;
    Some([vec![first], others].concat().join(" "))
}

/// A sentence for runs whose test images are also among those that they have seen.
fn leaks(runs: &[&RunRecord]) -> Vec<String> {
    let mut found: Vec<(String, Vec<&str>)> = Vec::new();
    for run in runs {
        let check = run.data_check.as_ref();
        let Some((_, text)) = check.and_then(|check| leak(check, run.config.test_images)) else { continue };
        match found.iter_mut().find(|(known, _)| *known == text) {
            Some((_, names)) => names.push(&run.name),
            None => found.push((text, vec![&run.name])),
        }
    }
    let sentence = |(text, names): (String, Vec<&str>)| {
        let accuracies = if names.len() == 1 { "its test accuracy is" } else { "their test accuracies are" };
        format!("In {}, {text}: {accuracies} too optimistic.", listed(&names))
    };
    found.into_iter().map(sentence).collect()
}

/// The winner, or why there is none. `scores` are sorted, and `is_same` says whether all have the same test images, if it is known.
fn verdict(scores: &[Score], is_same: Option<bool>) -> String {
    let (first, second) = match scores {
        [] => return "None of the runs has been tested.".into(),
        [only] => {
            return format!(
                "Only {} has been tested: it classifies {} of its test images correctly.",
                only.name,
                percent(only.accuracy)
            );
        }
        [first, second, ..] => (first, second),
    };
    let tied: Vec<&str> = scores
        .iter()
        .filter(|score| score.accuracy >= first.accuracy - 1e-12)
        .map(|score| score.name.as_str())
        .collect();
    let mut text = if tied.len() > 1 {
        format!(
            "{} are equally good: each classifies {} of its test images correctly.",
            listed(&tied),
            percent(first.accuracy)
        )
    } else {
        let rivals: Vec<&str> =
            scores[1..].iter().filter(|score| score.overlaps(first)).map(|score| score.name.as_str()).collect();
        let lead = format!(
            "{} is best: it classifies {} of the test images correctly, {:.1} percentage points more than {}.",
            first.name,
            percent(first.accuracy),
            100.0 * (first.accuracy - second.accuracy),
            second.name
        );
        let certainty = match rivals.as_slice() {
            [] if scores.len() == 2 => {
                format!(
                    " The 95 % intervals do not overlap ({} and {}): the difference is hardly by chance.",
                    first.range(),
                    second.range()
                )
            }
            [] => " Its 95 % interval overlaps with that of no other run: the difference is hardly by chance.".into(),
            [only] => format!(
                " But its 95 % interval, {}, overlaps with that of {only}: with so few test images, the difference may be chance.",
                first.range()
            ),
            several => format!(
                " But its 95 % interval, {}, overlaps with those of {}: with so few test images, the differences may be chance.",
                first.range(),
                listed(several)
            ),
        };
        lead + &certainty
    };
    match is_same {
        Some(true) => {}
        Some(false) => {
            text.push_str(" The runs were tested on different images, so their figures are not strictly comparable.")
        }
        None => text.push_str(" Whether the runs were tested on the same images is not known."),
    }
    text
}

/// `a, b and c`
fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).into(),
        [before @ .., last] => format!("{} and {last}", before.join(", ")),
    }
}

/// Whether all runs were tested on the same images, if all have a record of them.
fn have_same_tests(runs: &[&RunRecord]) -> Option<bool> {
    let [first, others @ ..] = runs else { return None };
    let same: Vec<Option<bool>> = others.iter().map(|run| first.has_test_images_of(run)).collect();
    if same.contains(&Some(false)) {
        return Some(false);
    }
    same.into_iter().collect::<Option<Vec<bool>>>().map(|_| true)
}

/// The section of runs that are sorted.
pub(super) fn comparison(runs: &[&RunRecord]) -> Markup {
    let scores: Vec<Option<Score>> = runs.iter().map(|run| Score::of(run)).collect();
    let known: Vec<Score> = scores.iter().flatten().cloned().collect();
    let ticks = accuracy_ticks(known.iter().flat_map(|score| score.interval));
    let (low, high) = (ticks[0], ticks[ticks.len() - 1]);
    let place = |accuracy: f64| 100.0 * (accuracy - low) / (high - low);
    let decimals = decimals(&ticks.iter().map(|tick| 100.0 * tick).collect::<Vec<f64>>());
    html! {
        section {
            h2 { "Test accuracy" }
            @if let Some(verdict) = verdict_of(runs) { p.verdict { (verdict) } }
            @if !known.is_empty() {
                div.bars {
                    @for (index, (run, score)) in runs.iter().zip(&scores).enumerate() {
                        @if let Some(score) = score {
                            div.bar {
                                span.name { (run.name) }
                                span class=(format!("track f{}", index % COLOURS)) {
                                    span.range style=(format!("left:{:.2}%;width:{:.2}%", place(score.interval[0]), place(score.interval[1]) - place(score.interval[0]))) {}
                                    span.point style=(format!("left:{:.2}%", place(score.accuracy))) {}
                                }
                                span.value { (percent(score.accuracy)) }
                            }
                        }
                    }
                    div.axis {
                        span.track {
                            @for &tick in &ticks { span.tick style=(format!("left:{:.2}%", place(tick))) { (format!("{:.decimals$} %", 100.0 * tick)) } }
                        }
                    }
                }
                p.note {
                    "The share of test images that the saved model classifies correctly. The lines are 95 % intervals (Wilson)."
                    @if runs.iter().any(|run| !run.keeps_last()) {
                        " Where images chose the epoch, it is the one with the best accuracy on the validation images or, without these, on \
                         the test images, which flatters it a little."
                    }
                    @if low > 0.0 { " The axis does not begin at zero." }
                }
            }
            div.scroll {
                table {
                    thead {
                        tr {
                            th { "run" } th.number { "test accuracy" } th.number { "95 % interval" } th.number { "after the last epoch" }
                            th.number { "training accuracy" } th.number { "training loss" } th.number { "epochs" } th.number { "time" } th { "started (UTC)" }
                        }
                    }
                    tbody {
                        @for (run, score) in runs.iter().zip(&scores) {
                            @match run.epochs().last() {
                                Some(Metric::Epoch { epoch, train_loss, train_acc, held_out, .. }) => tr {
                                    td { (run.name) }
                                    @match score {
                                        Some(score) => {
                                            td.number { (percent(score.accuracy)) }
                                            td.number { (format!("{:.1} – {:.1} %", 100.0 * score.interval[0], 100.0 * score.interval[1])) }
                                            td.number {
                                                @match held_out {
                                                    HeldOut::Test { test_acc, .. } => (percent(*test_acc)),
                                                    HeldOut::Validation { .. } => "–",
                                                }
                                            }
                                        }
                                        None => td colspan="3" { "not tested yet" },
                                    }
                                    td.number { (percent(*train_acc)) }
                                    td.number { (format!("{train_loss:.3}")) }
                                    td.number { (epoch) }
                                    td.number { (times(&run.metrics).map_or("–".into(), |times| duration(times.whole))) }
                                    td.date { (started(run).map_or("–".into(), |time| time.trim_end_matches(" UTC").to_string())) }
                                },
                                _ => tr { td { (run.name) } td colspan="8" { "no epoch finished yet" } },
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

    #[test]
    fn a_winner_is_named_with_the_uncertainty() {
        let scores = |all: &[(&str, f64, usize)]| {
            all.iter().map(|&(name, accuracy, images)| Score::new(name, accuracy, images)).collect::<Vec<Score>>()
        };
        let clear = verdict(&scores(&[("a", 0.9, 500), ("b", 0.7, 500)]), Some(true));
        assert_eq!(
            clear,
            "a is best: it classifies 90.0 % of the test images correctly, 20.0 percentage points more than b. The 95 % intervals do \
             not overlap (87.1 % to 92.3 % and 65.8 % to 73.9 %): the difference is hardly by chance."
        );
        let unclear = verdict(&scores(&[("a", 0.9, 50), ("b", 0.86, 50), ("c", 0.84, 50), ("d", 0.2, 50)]), Some(true));
        assert!(unclear.starts_with("a is best: it classifies 90.0 %"), "{unclear}");
        assert!(unclear.contains("overlaps with those of b and c: ") && !unclear.contains("hardly"), "{unclear}");
        let tied = verdict(&scores(&[("a", 0.9, 50), ("b", 0.9, 50), ("c", 0.9, 50), ("d", 0.2, 50)]), Some(true));
        assert_eq!(tied, "a, b and c are equally good: each classifies 90.0 % of its test images correctly.");
        let other = verdict(&scores(&[("a", 0.9, 500), ("b", 0.7, 500)]), Some(false));
        assert!(
            other.ends_with("tested on different images, so their figures are not strictly comparable."),
            "{other}"
        );
        assert!(verdict(&scores(&[("a", 0.9, 5), ("b", 0.7, 5)]), None).ends_with("is not known."));
        let only = verdict(&scores(&[("a", 0.9, 500)]), None);
        assert_eq!(only, "Only a has been tested: it classifies 90.0 % of its test images correctly.");
        assert_eq!(verdict(&[], None), "None of the runs has been tested.");
    }
}
