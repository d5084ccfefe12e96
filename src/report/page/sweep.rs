//! The page of a sweep: the mean accuracy of each combination of settings, and all its runs.

use maud::{Markup, html};

use super::super::curves::{COLOURS, accuracy_ticks, decimals};
use super::super::measures::interval;
use super::super::record::RunRecord;
use super::super::student::Sample;
use super::super::sweep::{Combination, Scores, SweepRecord, SweptRun, in_short, points, signed};
use super::text::{counted, duration, percent};
use super::times::times;
use super::{results, settings};

/// The title of the page of a sweep, the runs that it shows, and the page itself.
pub(super) fn content(sweep: &SweepRecord) -> (String, Vec<RunRecord>, Markup) {
    // One run of each combination stands for it: the first that has begun.
    let begun = |run: &SweptRun| run.record.as_ref().map(RunRecord::with_printable_names);
    let mut shown: Vec<RunRecord> = Vec::new();
    for combination in &sweep.combinations {
        if let Some(mut record) = combination.runs.iter().find_map(begun) {
            record.name.clone_from(&combination.name);
            shown.push(record);
        }
    }
    let references: Vec<&RunRecord> = shown.iter().collect();
    let title = format!("Sweep {}: {}", sweep.name, counted(sweep.runs().count(), "run", "runs"));
    let body = html! {
        header {
            p.eyebrow { "retune" }
            h1 { (title) }
            p.lead { (lead(sweep, references.first().copied())) }
        }
        (comparison(sweep, references.first().copied()))
        (runs(sweep))
        (results::curves(&references))
        @if references.len() > 1 { (settings::differences(&references)) }
        @if let [only] = references.as_slice() { (settings::settings(only)) }
    };
    (title, shown, body)
}

fn lead(sweep: &SweepRecord, run: Option<&RunRecord>) -> String {
    let seeds = match sweep.seeds.as_slice() {
        [only] => format!("seed {only}"),
        [first, .., last] => format!("the seeds {first} to {last}"),
        [] => String::new(),
    };
    let what = match sweep.combinations.as_slice() {
        [_] => format!("The same settings with {seeds}."),
        several => format!("{} of settings, each with {seeds}.", counted(several.len(), "combination", "combinations")),
    };
    format!("{what} {}", run.map(results::lead).unwrap_or_default())
}

/// The combinations on a common axis and in a table, with what follows from them.
fn comparison(sweep: &SweepRecord, run: Option<&RunRecord>) -> Markup {
    let name = sweep.ranked_by();
    let ranked = sweep.ranked();
    let scores = |combination: &Combination| -> Vec<f64> {
        combination.runs.iter().filter_map(|run| run.scores).map(|scores| scores.ranking()).collect()
    };
    let ticks = accuracy_ticks(ranked.iter().flat_map(|combination| scores(combination)));
    let (low, high) = (ticks[0], ticks[ticks.len() - 1]);
    let place = |accuracy: f64| 100.0 * (accuracy - low) / (high - low);
    let decimals = decimals(&ticks.iter().map(|tick| 100.0 * tick).collect::<Vec<f64>>());
    let colour = |combination: &Combination| {
        sweep.combinations.iter().position(|other| std::ptr::eq(other, combination)).unwrap_or(0) % COLOURS
    };
    let has_scores = sweep.runs().any(|run| run.scores.is_some());
    let several = sweep.combinations.len() > 1;
    html! {
        section {
            h2 { @if name == "test" { "Test accuracy" } @else { "Validation accuracy" } }
            p.verdict { (sweep.verdict()) }
            @if has_scores {
                div.bars {
                    @for combination in &ranked {
                        @if let Some(sample) = combination.sample(Scores::ranking) {
                            @let values = scores(combination);
                            @let (least, most) = values.iter().fold((1.0f64, 0.0f64), |(low, high), &value| (low.min(value), high.max(value)));
                            div.bar {
                                span.name { (combination.name) }
                                span class=(format!("track f{}", colour(combination))) {
                                    span.range style=(format!("left:{:.2}%;width:{:.2}%", place(least), place(most) - place(least))) {}
                                    @for value in &values { span.run style=(format!("left:{:.2}%", place(*value))) {} }
                                    span.point style=(format!("left:{:.2}%", place(sample.mean))) {}
                                }
                                span.value { (percent(sample.mean)) }
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
                    "Large dots: means. Thin lines: single runs."
                    @if low > 0.0 { " The axis does not begin at zero." }
                }
                (table(sweep, &ranked))
                p.note {
                    "Deviation: the standard deviation of the runs, in percentage points. "
                    @if several {
                        "Difference: the mean difference in " (name) " accuracy between runs with the same seed, in percentage points. \
                         Interval: its 95 % interval by Student's t distribution; if zero is not in it, the difference is larger than its \
                         uncertainty. "
                        @if sweep.combinations.len() > 2 {
                            "Of combinations that are equally good, about one in twenty will seem to differ. "
                        }
                    }
                    @if run.is_some_and(|run| run.config.recipe.test_fraction.is_some()) && sweep.seeds.len() > 1 {
                        "Each seed draws test images of its own (--test-fraction), so the deviation contains the choice of training and test \
                         images, but a single test set is still a sample: "
                    } @else {
                        "The seeds show how much the chances of training matter, not how much the choice of images does: "
                    }
                    (of_images(&ranked, name, run))
                }
            }
        }
    }
}

/// How much a figure depends on the choice of images.
fn of_images(ranked: &[&Combination], name: &str, run: Option<&RunRecord>) -> String {
    let images = run.map_or(0, |run| match name {
        "test" => run.config.test_images,
        _ => run.config.validation_images.unwrap_or(0),
    });
    match ranked.first().and_then(|best| best.sample(Scores::ranking)) {
        Some(sample) if images > 0 => {
            let [low, high] = interval((sample.mean * images as f64).round() as usize, images);
            format!(
                "with {}, an accuracy of {} has a 95 % interval of {} to {} (Wilson).",
                counted(images, &format!("{name} image"), &format!("{name} images")),
                percent(sample.mean),
                percent(low),
                percent(high)
            )
        }
        _ => "other images would give other figures.".into(),
    }
}

fn table(sweep: &SweepRecord, ranked: &[&Combination]) -> Markup {
    let name = sweep.ranked_by();
    let first = sweep.combinations.first();
    let several = sweep.combinations.len() > 1;
    let dash = || "–".to_string();
    let mean = |sample: Option<Sample>| sample.map_or_else(dash, |sample| percent(sample.mean));
    let deviation = |sample: Option<Sample>| sample.and_then(|sample| sample.deviation).map_or_else(dash, points);
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th { "combination" } th.number { "runs" } th.number { "mean " (name) " accuracy" } th.number { "deviation" }
                        @if several {
                            th.number { "difference to " (first.map_or("", |first| first.name.as_str())) } th.number { "95 % interval" } th { "difference" }
                        }
                        @if sweep.has_validation() { th.number { "mean test accuracy" } th.number { "deviation" } }
                    }
                }
                tbody {
                    @for combination in ranked {
                        @let sample = combination.sample(Scores::ranking);
                        @let difference = first.filter(|first| !std::ptr::eq(*first, *combination)).and_then(|first| combination.difference(first, Scores::ranking));
                        tr {
                            td { (combination.name) }
                            td.number {
                                (sample.map_or(0, |sample| sample.count))
                                @if combination.failed() > 0 { " (" (combination.failed()) " failed)" }
                            }
                            td.number { (mean(sample)) }
                            td.number { (deviation(sample)) }
                            @if several {
                                td.number { (difference.map_or_else(dash, |difference| signed(difference.mean))) }
                                td.number {
                                    (difference.and_then(|difference| difference.interval())
                                        .map_or_else(dash, |[low, high]| format!("{} to {}", signed(low), signed(high))))
                                }
                                td { (difference.map_or("–", |difference| in_short(&difference))) }
                            }
                            @if sweep.has_validation() {
                                @let tested = combination.sample(|scores| scores.test);
                                td.number { (mean(tested)) } td.number { (deviation(tested)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// All runs, with their pages.
fn runs(sweep: &SweepRecord) -> Markup {
    html! {
        section {
            h2 { "Runs" }
            div.scroll {
                table {
                    thead {
                        tr {
                            th { "run" }
                            @if sweep.has_validation() { th.number { "validation accuracy" } }
                            th.number { "test accuracy" } th.number { "time" } th { "report" }
                        }
                    }
                    tbody {
                        @for run in sweep.runs() {
                            tr {
                                td { (run.name) }
                                @match (&run.scores, &run.failure) {
                                    (Some(scores), _) => {
                                        @if sweep.has_validation() { td.number { (scores.validation.map_or("–".into(), percent)) } }
                                        td.number { (percent(scores.test)) }
                                        td.number { (run.record.as_ref().and_then(|record| times(&record.metrics)).map_or("–".into(), |times| duration(times.whole))) }
                                    }
                                    (None, Some(reason)) => td colspan=(if sweep.has_validation() { 3 } else { 2 }) { "failed: " (reason) },
                                    (None, None) => td colspan=(if sweep.has_validation() { 3 } else { 2 }) { "not finished yet" },
                                }
                                td {
                                    @if run.record.as_ref().is_some_and(|record| record.folder.join("report.html").exists()) {
                                        a href=(format!("{}/report.html", encoded(&run.name))) { "report" }
                                    } @else { "–" }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A name as a part of the address of a page.
fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_encoded() {
        assert_eq!(encoded("lr=1e-3,warm-up=10%"), "lr%3D1e-3%2Cwarm-up%3D10%25");
    }
}
