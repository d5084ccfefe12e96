//! The runs of a sweep by their settings: how accurate each combination is on average, and how far it differs from the first.

use std::path::Path;

use serde_json::{Value, json};

use super::page::results::{best_accuracy, best_held_out};
use super::page::text::percent;
use super::record::RunRecord;
use super::student::Sample;
use crate::data::counted;
use crate::error::Result;
use crate::printable::printable;
use crate::train::{HeldOut, Metric, RunState, Sweep};

/// A sweep as a report shows it.
#[derive(Debug, Clone)]
pub struct SweepRecord {
    /// Its name.
    pub name: String,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// The combinations of settings, in the order in which they were given.
    pub combinations: Vec<Combination>,
}

/// A combination of settings.
#[derive(Debug, Clone)]
pub struct Combination {
    /// Its settings, or a name for all runs of a sweep that tries none.
    pub name: String,
    /// A run for each seed, in the same order.
    pub runs: Vec<SweptRun>,
}

/// A run of a sweep.
#[derive(Debug, Clone)]
pub struct SweptRun {
    /// The name of its folder.
    pub name: String,
    /// Its files; none if it has not begun.
    pub record: Option<RunRecord>,
    /// Its results; none if it has not ended.
    pub scores: Option<Scores>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

/// The accuracies of a run's saved model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// On the validation images, if there are any.
    pub validation: Option<f64>,
    /// On the test images.
    pub test: f64,
}

impl Scores {
    /// The accuracy by which combinations are compared: that on the images that may choose.
    pub fn ranking(&self) -> f64 {
        self.validation.unwrap_or(self.test)
    }
}

impl Combination {
    /// Statistics of a score over the runs that ended.
    pub fn sample(&self, score: fn(&Scores) -> f64) -> Option<Sample> {
        Sample::of(&self.runs.iter().filter_map(|run| run.scores.as_ref()).map(score).collect::<Vec<f64>>())
    }

    /// Statistics of the differences of a score to that of another combination with the same seed.
    pub fn difference(&self, other: &Self, score: fn(&Scores) -> f64) -> Option<Sample> {
        let pairs = self.runs.iter().zip(&other.runs);
        let both = pairs.filter_map(|(this, other)| Some((this.scores.as_ref()?, other.scores.as_ref()?)));
        Sample::of(&both.map(|(this, other)| score(this) - score(other)).collect::<Vec<f64>>())
    }

    /// How many of its runs failed.
    pub fn failed(&self) -> usize {
        self.runs.iter().filter(|run| run.failure.is_some()).count()
    }
}

/// What a mean difference tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Certainty {
    /// The interval does not contain zero.
    Larger,
    /// The interval contains zero.
    Smaller,
    /// It was the same with all of several seeds.
    Constant,
    /// There is only one pair of runs.
    Unknown,
}

impl Certainty {
    fn of(difference: &Sample) -> Self {
        match difference.interval() {
            Some([low, high]) if low > 0.0 || high < 0.0 => Self::Larger,
            Some(_) => Self::Smaller,
            None if difference.count > 1 => Self::Constant,
            None => Self::Unknown,
        }
    }
}

impl SweepRecord {
    /// Reads the runs of the sweep in a folder, without their images.
    ///
    /// # Errors
    /// When a run cannot be read.
    pub fn open(sweep: &Sweep, folder: &Path) -> Result<Self> {
        let mut combinations = Vec::new();
        for (name, runs) in sweep.combinations() {
            let mut swept = Vec::new();
            for run in runs {
                let run_folder = sweep.folder_of(folder, run);
                let state = run_folder.state(&run.recipe)?;
                let mut record = match run_folder.config().exists() {
                    true => Some(RunRecord::open(&run_folder)?),
                    false => None,
                };
                let failure = match &state {
                    RunState::Failed(reason) => Some(printable(reason).into_owned()),
                    _ => None,
                };
                let scores = record.as_ref().filter(|_| state == RunState::Finished).and_then(scores);
                let name = sweep.name(run);
                if let Some(record) = &mut record {
                    record.name.clone_from(&name);
                }
                swept.push(SweptRun { name, record, scores, failure });
            }
            let name = if name.is_empty() { "all runs".to_string() } else { name };
            combinations.push(Combination { name, runs: swept });
        }
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
        Ok(Self { name: printable(&name).into_owned(), seeds: sweep.seeds(), combinations })
    }

    /// All runs.
    pub fn runs(&self) -> impl Iterator<Item = &SweptRun> {
        self.combinations.iter().flat_map(|combination| &combination.runs)
    }

    /// The runs that failed.
    pub fn failed(&self) -> impl Iterator<Item = &SweptRun> {
        self.runs().filter(|run| run.failure.is_some())
    }

    /// Whether validation images, and not the test images, rank the combinations.
    pub fn has_validation(&self) -> bool {
        self.runs().filter_map(|run| run.scores).any(|scores| scores.validation.is_some())
    }

    /// `validation` or `test`: the images that rank the combinations.
    pub fn ranked_by(&self) -> &'static str {
        if self.has_validation() { "validation" } else { "test" }
    }

    /// The combinations with the best mean first; those without a finished run last.
    pub fn ranked(&self) -> Vec<&Combination> {
        let mut ranked: Vec<&Combination> = self.combinations.iter().collect();
        let mean = |combination: &Combination| combination.sample(Scores::ranking).map_or(-1.0, |sample| sample.mean);
        ranked.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        ranked
    }

    /// The sentences that say which combination is best and how far that is certain.
    pub fn verdict(&self) -> String {
        let mut sentences = vec![self.first_sentences()];
        if let (true, false) = (self.combinations.len() > 1, self.has_validation()) {
            sentences.push(
                "The test images rank the combinations, so the accuracy of the best one is flattering: it is partly best by chance on \
                 these images. A folder val/ beside train/ and test/ avoids that."
                    .into(),
            );
        }
        let failed: Vec<&str> = self.failed().map(|run| run.name.as_str()).collect();
        if !failed.is_empty() {
            let count = counted(failed.len(), "run", "runs");
            sentences.push(format!(
                "{count} failed and {} left out: {}.",
                if failed.len() == 1 { "is" } else { "are" },
                failed.join("; ")
            ));
        }
        sentences.join(" ")
    }

    fn first_sentences(&self) -> String {
        let (ranked, images) = (self.ranked(), self.ranked_by());
        let Some(first) = self.combinations.first() else { return String::new() };
        let Some((best, best_sample)) = ranked.first().and_then(|best| Some((*best, best.sample(Scores::ranking)?)))
        else {
            return "No run has ended with a result.".into();
        };
        if self.combinations.len() == 1 {
            let mean = percent(best_sample.mean);
            return match best_sample.deviation {
                Some(deviation) => format!(
                    "Over {} seeds, the mean {images} accuracy is {mean}, with a standard deviation of {} percentage points. So much do \
                     runs differ that have the same settings and different seeds.",
                    best_sample.count,
                    points(deviation)
                ),
                None => format!("The {images} accuracy of the only run with a result is {mean}."),
            };
        }
        // Of equal ones, the first is the best.
        if std::ptr::eq(best, first) {
            let lead = format!(
                "{}, the first combination, has the highest mean {images} accuracy: {}.",
                first.name,
                percent(best_sample.mean)
            );
            let Some(second) = ranked.get(1) else { return lead };
            let Some(difference) = second.difference(first, Scores::ranking) else {
                return format!("{lead} No other combination has a run with the same seed to compare it with.");
            };
            let middle =
                format!(" The next is {}, by {} percentage points lower: ", second.name, points(-difference.mean));
            return lead + &middle + &explained(&difference);
        }
        let lead = format!("{} has the highest mean {images} accuracy: {}.", best.name, percent(best_sample.mean));
        match best.difference(first, Scores::ranking) {
            None => format!(
                "{lead} The first combination, {}, has no run with the same seed to compare it with.",
                first.name
            ),
            Some(difference) => format!(
                "{lead} With the same seeds, that is {} percentage points {} than {}, the first combination: {}",
                points(difference.mean.abs()),
                if difference.mean < 0.0 { "less" } else { "more" },
                first.name,
                explained(&difference)
            ),
        }
    }

    /// The comparison as JSON: accuracies and differences are shares from 0 to 1.
    pub fn json(&self) -> Value {
        let score_json = |sample: Option<Sample>| match sample {
            None => Value::Null,
            Some(sample) => json!({ "mean": sample.mean, "deviation": sample.deviation, "runs": sample.count }),
        };
        let validation = |scores: &Scores| scores.validation.unwrap_or(f64::NAN);
        let first = self.combinations.first();
        let combinations: Vec<Value> = self
            .ranked()
            .into_iter()
            .map(|combination| {
                let difference = first
                    .filter(|first| !std::ptr::eq(*first, combination))
                    .and_then(|first| combination.difference(first, Scores::ranking));
                let runs: Vec<Value> = combination
                    .runs
                    .iter()
                    .map(|run| {
                        json!({
                            "run": run.name,
                            "val_acc": run.scores.and_then(|scores| scores.validation),
                            "test_acc": run.scores.map(|scores| scores.test),
                            "failure": run.failure,
                        })
                    })
                    .collect();
                json!({
                    "combination": combination.name,
                    "val_acc": if self.has_validation() { score_json(combination.sample(validation)) } else { Value::Null },
                    "test_acc": score_json(combination.sample(|scores| scores.test)),
                    "difference": difference.map(|difference| json!({
                        "mean": difference.mean,
                        "deviation": difference.deviation,
                        "interval": difference.interval(),
                        "pairs": difference.count,
                    })),
                    "runs": runs,
                })
            })
            .collect();
        json!({
            "ranked_by": self.ranked_by(),
            "first": first.map(|first| &first.name),
            "seeds": self.seeds,
            "combinations": combinations,
            "verdict": self.verdict(),
        })
    }
}

/// The results of a run that has ended.
fn scores(run: &RunRecord) -> Option<Scores> {
    match run.epochs().last()? {
        Metric::Epoch { held_out: HeldOut::Validation { .. }, .. } => {
            let (_, test) = run.final_test()?;
            Some(Scores { validation: Some(best_held_out(run)), test })
        }
        _ => Some(Scores { validation: None, test: best_accuracy(run) }),
    }
}

/// What a difference is worth, as the end of a sentence.
fn explained(difference: &Sample) -> String {
    match (Certainty::of(difference), difference.interval()) {
        (Certainty::Larger, Some(interval)) => format!(
            "this is more than its uncertainty (95 % interval {}), so it is hardly by chance.",
            range(interval, difference.count)
        ),
        (Certainty::Smaller, Some(interval)) => format!(
            "this is less than its uncertainty (95 % interval {}), so it may be chance. More seeds would tell more.",
            range(interval, difference.count)
        ),
        (Certainty::Constant, _) => "it is the same with every seed, so its uncertainty is not known.".into(),
        _ => "there is one pair of runs only, so whether this is chance is not known. `--seeds 5` would tell.".into(),
    }
}

fn range([low, high]: [f64; 2], pairs: usize) -> String {
    format!("{} to {} over {pairs} seeds", signed(low), signed(high))
}

/// In a few words, whether a difference to the first combination is larger than its uncertainty.
pub(super) fn in_short(difference: &Sample) -> &'static str {
    match Certainty::of(difference) {
        Certainty::Larger if difference.mean > 0.0 => "better, hardly by chance",
        Certainty::Larger => "worse, hardly by chance",
        Certainty::Smaller => "may be chance",
        Certainty::Constant => "the same with every seed",
        Certainty::Unknown => "not known",
    }
}

/// A share in percentage points.
pub(super) fn points(share: f64) -> String {
    // Not "-0.0".
    format!("{:.1}", 100.0 * share + 0.0)
}

/// A difference of shares in percentage points, with its sign.
pub(super) fn signed(share: f64) -> String {
    match points(share).as_str() {
        "0.0" | "-0.0" => "0.0".into(),
        text if text.starts_with('-') => text.into(),
        text => format!("+{text}"),
    }
}

/// The table of the combinations, the best first, as lines of text with a first line of headings.
pub fn sweep_table(sweep: &SweepRecord) -> Vec<String> {
    let validated = sweep.has_validation();
    let first = sweep.combinations.first();
    let single = sweep.combinations.len() == 1;
    let mut rows = vec![vec!["combination".to_string(), format!("{} accuracy", sweep.ranked_by()), "deviation".into()]];
    if let (Some(first), false) = (first, single) {
        rows[0].push(format!("difference to {}", first.name));
    }
    if validated {
        rows[0].push("test accuracy".into());
    }
    let dash = || "–".to_string();
    for combination in sweep.ranked() {
        let sample = combination.sample(Scores::ranking);
        let failed = match combination.failed() {
            0 => String::new(),
            failed => format!(" ({failed} of {} failed)", combination.runs.len()),
        };
        let mut row = vec![
            format!("{}{failed}", combination.name),
            sample.map_or_else(dash, |sample| percent(sample.mean)),
            sample.and_then(|sample| sample.deviation).map_or_else(dash, points),
        ];
        if let (Some(first), false) = (first, single) {
            let difference =
                (!std::ptr::eq(first, combination)).then(|| combination.difference(first, Scores::ranking));
            row.push(difference.flatten().map_or_else(dash, |difference| match difference.interval() {
                Some([low, high]) => {
                    format!("{} ({} to {})", signed(difference.mean), signed(low), signed(high))
                }
                None => signed(difference.mean),
            }));
        }
        if validated {
            row.push(combination.sample(|scores| scores.test).map_or_else(dash, |sample| percent(sample.mean)));
        }
        rows.push(row);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(combinations: &[(&str, &[Option<(Option<f64>, f64)>])]) -> SweepRecord {
        let run = |scores: &Option<(Option<f64>, f64)>| SweptRun {
            name: "run".into(),
            record: None,
            scores: scores.map(|(validation, test)| Scores { validation, test }),
            failure: scores.is_none().then(|| "the loss is not finite".into()),
        };
        let combinations: Vec<Combination> = combinations
            .iter()
            .map(|(name, runs)| Combination { name: (*name).into(), runs: runs.iter().map(run).collect() })
            .collect();
        SweepRecord { name: "sweep".into(), seeds: (0..combinations[0].runs.len() as u64).collect(), combinations }
    }

    fn tested(accuracies: &[f64]) -> Vec<Option<(Option<f64>, f64)>> {
        accuracies.iter().map(|&accuracy| Some((None, accuracy))).collect()
    }

    #[test]
    fn differences_are_those_of_runs_with_the_same_seed() {
        // The seeds differ by much more than the combinations do.
        let (first, second) = (tested(&[0.60, 0.70, 0.80]), tested(&[0.62, 0.73, 0.81]));
        let sweep = record(&[("lr=1e-3", &first), ("lr=3e-3", &second)]);
        let difference = sweep.combinations[1].difference(&sweep.combinations[0], Scores::ranking).unwrap();
        assert!((difference.mean - 0.02).abs() < 1e-12 && (difference.deviation.unwrap() - 0.01).abs() < 1e-12);
        // 4.303 * 0.01 / sqrt(3)
        let [low, high] = difference.interval().unwrap();
        assert!((low + 0.00484).abs() < 1e-4 && (high - 0.04484).abs() < 1e-4, "{low} {high}");
        let verdict = sweep.verdict();
        assert!(
            verdict.starts_with(
                "lr=3e-3 has the highest mean test accuracy: 72.0 %. With the same seeds, that is 2.0 percentage points more than \
                 lr=1e-3, the first combination: this is less than its uncertainty (95 % interval -0.5 to +4.5 over 3 seeds), so it \
                 may be chance. More seeds would tell more. The test images rank the combinations"
            ),
            "{verdict}"
        );
        let second = tested(&[0.62, 0.725, 0.82]);
        let verdict = record(&[("lr=1e-3", &first), ("lr=3e-3", &second)]).verdict();
        assert!(
            verdict.contains("this is more than its uncertainty (95 % interval +1.4 to +2.9 over 3 seeds)"),
            "{verdict}"
        );
        assert_eq!(
            sweep_table(&sweep),
            [
                "combination  test accuracy  deviation  difference to lr=1e-3",
                "lr=3e-3             72.0 %        9.5    +2.0 (-0.5 to +4.5)",
                "lr=1e-3             70.0 %       10.0                      –",
            ]
        );
    }

    #[test]
    fn a_single_seed_claims_nothing() {
        let sweep = record(&[("a", &tested(&[0.5])), ("b", &tested(&[0.9]))]);
        assert_eq!(
            sweep_table(&sweep),
            [
                "combination  test accuracy  deviation  difference to a",
                "b                   90.0 %          –            +40.0",
                "a                   50.0 %          –                –"
            ]
        );
        let verdict = sweep.verdict();
        assert!(verdict.contains("whether this is chance is not known"), "{verdict}");
        // Nor do several seeds whose differences are all the same.
        let same = record(&[("a", &tested(&[0.5, 0.6])), ("b", &tested(&[0.75, 0.85]))]).verdict();
        assert!(same.contains("it is the same with every seed, so its uncertainty is not known."), "{same}");
    }

    #[test]
    fn validation_images_rank_where_there_are_some() {
        let of = |all: &[(f64, f64)]| all.iter().map(|&(val, test)| Some((Some(val), test))).collect::<Vec<_>>();
        let (first, second) = (of(&[(0.9, 0.5), (0.8, 0.5)]), of(&[(0.7, 0.9), (0.65, 0.9)]));
        let sweep = record(&[("a", &first), ("b", &second)]);
        assert_eq!(sweep.ranked()[0].name, "a");
        assert!(
            sweep.verdict().starts_with(
                "a, the first combination, has the highest mean validation accuracy: 85.0 %. The next is b"
            )
        );
        assert!(!sweep.verdict().contains("flattering"));
        assert!(sweep_table(&sweep)[0].ends_with("difference to a  test accuracy"), "{:?}", sweep_table(&sweep));
    }

    #[test]
    fn failed_runs_are_left_out_and_named() {
        let sweep = record(&[
            ("a", &[Some((None, 0.5)), Some((None, 0.6)), Some((None, 0.7))]),
            ("b", &[Some((None, 0.6)), None, Some((None, 0.7))]),
            ("c", &[None, None, None]),
        ]);
        let difference = sweep.combinations[1].difference(&sweep.combinations[0], Scores::ranking).unwrap();
        assert_eq!(difference.count, 2);
        assert!(sweep.verdict().contains("4 runs failed and are left out: run; run; run; run."), "{}", sweep.verdict());
        let table = sweep_table(&sweep);
        assert!(table[1].starts_with("b (1 of 3 failed)          65.0 %"), "{table:?}");
        assert!(table[3].starts_with("c (3 of 3 failed)"), "{table:?}");
        let none = record(&[("a", &[None]), ("b", &[None])]);
        assert!(none.verdict().starts_with("No run has ended with a result."));
    }

    #[test]
    fn runs_that_differ_in_their_seeds_only_show_how_much_they_vary() {
        let sweep = record(&[("all runs", &tested(&[0.9, 0.92, 0.94]))]);
        assert_eq!(
            sweep.verdict(),
            "Over 3 seeds, the mean test accuracy is 92.0 %, with a standard deviation of 2.0 percentage points. So much do runs differ \
             that have the same settings and different seeds."
        );
        assert_eq!(sweep_table(&sweep)[0], "combination  test accuracy  deviation");
    }
}
