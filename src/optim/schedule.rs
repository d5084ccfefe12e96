//! Schedules: how the learning rate and the momentum change over the steps of a run.
//!
//! A schedule is a row of [`SCHEDULES`]. It says, for each step, by what factor the learning rates of all groups are multiplied. The
//! values of `--schedule` and the recipes follow from that table.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a schedule makes of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepFactors {
    /// The factor of every learning rate.
    pub learning_rate: f64,
    /// What is subtracted from the momentum, as a share of [`LOWERED_MOMENTUM`].
    pub lowered_momentum: f64,
}

impl Default for StepFactors {
    fn default() -> Self {
        Self { learning_rate: 1.0, lowered_momentum: 0.0 }
    }
}

/// By how much [`StepFactors::lowered_momentum`] lowers the momentum at most, as the default of torch's `OneCycleLR`: from 0.95 to 0.85.
pub const LOWERED_MOMENTUM: f64 = 0.1;

/// A row of [`SCHEDULES`].
#[derive(Debug)]
pub struct ScheduleKind {
    /// The value of `--schedule`.
    pub name: &'static str,
    /// One line for the help.
    pub summary: &'static str,
    /// The warm-up where none is given.
    pub warm_up: WarmUp,
    /// Whether it depends on the number of steps, so that a run that is to train longer needs another schedule.
    pub has_end: bool,
    /// Of step number `step`, counted from 0, of `steps`, after this many steps of warm-up.
    at: fn(step: f64, warm_up: f64, steps: f64) -> StepFactors,
}

/// All schedules; the first is the default.
pub static SCHEDULES: [ScheduleKind; 3] = [
    ScheduleKind {
        name: "constant",
        summary: "the same learning rate after the warm-up",
        warm_up: WarmUp::Steps(0),
        has_end: false,
        at: |step, warm_up, _| StepFactors { learning_rate: ramp(step, warm_up), ..StepFactors::default() },
    },
    ScheduleKind {
        name: "cosine",
        summary: "falls to zero along half a cosine after the warm-up",
        warm_up: WarmUp::Steps(0),
        has_end: true,
        at: |step, warm_up, steps| {
            let learning_rate = match step < warm_up {
                true => ramp(step, warm_up),
                false => between(1.0, 0.0, (step - warm_up) / (steps - warm_up).max(1.0)),
            };
            StepFactors { learning_rate, ..StepFactors::default() }
        },
    },
    ScheduleKind {
        name: "one-cycle",
        summary: "rises from a 25th and falls to nearly zero, while the momentum falls by 0.1 and rises again",
        warm_up: WarmUp::Share(0.3),
        has_end: true,
        at: one_cycle,
    },
];

/// torch's `CosineAnnealingLR` and `OneCycleLR` move between two values like this; `share` is from 0 to 1.
fn between(from: f64, to: f64, share: f64) -> f64 {
    to + (from - to) / 2.0 * (1.0 + (PI * share).cos())
}

/// Rises by equal steps, and reaches 1 after `warm_up` steps.
fn ramp(step: f64, warm_up: f64) -> f64 {
    if step < warm_up { (step + 1.0) / (warm_up + 1.0) } else { 1.0 }
}

/// torch's `OneCycleLR(total_steps=steps, pct_start=warm_up / steps)` with its other defaults.
fn one_cycle(step: f64, warm_up: f64, steps: f64) -> StepFactors {
    const FIRST: f64 = 1.0 / 25.0;
    const LAST: f64 = FIRST / 1e4;
    let (top, end) = (warm_up - 1.0, steps - 1.0);
    if step <= top && top > 0.0 {
        let share = step / top;
        StepFactors { learning_rate: between(FIRST, 1.0, share), lowered_momentum: between(0.0, 1.0, share) }
    } else if end > top {
        let share = (step - top) / (end - top);
        StepFactors { learning_rate: between(1.0, LAST, share), lowered_momentum: between(1.0, 0.0, share) }
    } else {
        StepFactors::default()
    }
}

/// The steps over which the learning rate rises: `50`, or `10%` of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub enum WarmUp {
    /// A number of steps.
    Steps(u64),
    /// A share of all steps, from 0 to less than 1.
    Share(f64),
}

impl WarmUp {
    /// Steps in a run of `steps`.
    fn steps_of(self, steps: u64) -> f64 {
        match self {
            Self::Steps(warm_up) => warm_up as f64,
            Self::Share(share) => share * steps as f64,
        }
    }
}

impl fmt::Display for WarmUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steps(steps) => write!(f, "{steps}"),
            // Rounded so that 0.07 is 7 % and not 7.000000000000001 %.
            Self::Share(share) => write!(f, "{}%", (share * 1e12).round() / 1e10),
        }
    }
}

impl FromStr for WarmUp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let warm_up = match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse().ok().map(|percent: f64| Self::Share(percent / 100.0)),
            None => text.parse().ok().map(Self::Steps),
        };
        let is_valid = |warm_up: &Self| !matches!(warm_up, Self::Share(share) if !(0.0..1.0).contains(share));
        warm_up.filter(is_valid).ok_or_else(|| {
            Error::usage(format!("warm-up {text:?}: expected a number of steps, or a percentage below 100 such as 10%"))
        })
    }
}

/// A warm-up in a file: `50`, `"50"` or `"10%"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Steps(u64),
    Text(String),
}

impl TryFrom<Written> for WarmUp {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        match written {
            Written::Steps(steps) => Ok(Self::Steps(steps)),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<WarmUp> for String {
    fn from(warm_up: WarmUp) -> Self {
        warm_up.to_string()
    }
}

impl ScheduleKind {
    /// The row with this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(name: &str) -> Result<&'static Self> {
        SCHEDULES.iter().find(|kind| kind.name == name).ok_or_else(|| {
            let names: Vec<&str> = SCHEDULES.iter().map(|kind| kind.name).collect();
            Error::usage(format!("schedule {name:?}: expected {}", names.join(" or ")))
        })
    }
}

/// A schedule for a run of a certain number of steps.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    kind: &'static ScheduleKind,
    warm_up: f64,
    steps: u64,
}

impl Schedule {
    /// The schedule `kind` of a run of `steps` steps; without `warm_up`, it has its default.
    ///
    /// # Errors
    /// When the warm-up does not end before the run.
    pub fn new(kind: &'static ScheduleKind, warm_up: Option<WarmUp>, steps: u64) -> Result<Self> {
        let warm_up = warm_up.unwrap_or(kind.warm_up);
        if let WarmUp::Steps(warm_up) = warm_up
            && warm_up > 0
            && warm_up >= steps
        {
            return Err(Error::usage(format!("--warm-up {warm_up}: the run has {steps} steps in all"))
                .hint("use a shorter warm-up, more epochs or a smaller batch size"));
        }
        Ok(Self { kind, warm_up: warm_up.steps_of(steps), steps })
    }

    /// What it makes of step number `step`, counted from 0. After the last step, it stays at its end.
    pub fn at(&self, step: u64) -> StepFactors {
        let last = self.steps.saturating_sub(1);
        (self.kind.at)(step.min(last) as f64, self.warm_up, self.steps as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(name: &str, warm_up: Option<WarmUp>, steps: u64) -> Vec<StepFactors> {
        let schedule = Schedule::new(ScheduleKind::find(name).unwrap(), warm_up, steps).unwrap();
        (0..steps).map(|step| schedule.at(step)).collect()
    }

    fn assert_near(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found:?}, expected {expected:?}");
        }
    }

    fn rates(found: &[StepFactors]) -> Vec<f64> {
        found.iter().map(|step| step.learning_rate).collect()
    }

    #[test]
    fn constant_and_cosine() {
        assert_eq!(rates(&factors("constant", None, 3)), [1.0; 3]);
        assert_near(&rates(&factors("constant", Some(WarmUp::Steps(3)), 5)), &[0.25, 0.5, 0.75, 1.0, 1.0]);
        // torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4) with a learning rate of 1.
        assert_near(&rates(&factors("cosine", None, 4)), &[1.0, 0.8535533905932737, 0.5, 0.14644660940672627]);
        let warmed = factors("cosine", Some(WarmUp::Share(0.2)), 5);
        assert_near(&rates(&warmed), &[0.5, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627]);
        assert!(warmed.iter().all(|step| step.lowered_momentum == 0.0));
    }

    #[test]
    fn one_cycle_is_that_of_torch() {
        // Of OneCycleLR(SGD(lr=1, momentum=0.9), max_lr=1, total_steps, pct_start): the learning rate, and (0.95 - momentum) / 0.1.
        let expected: [(u64, f64, &[f64], &[f64]); 3] = [
            (
                10,
                0.3,
                &[
                    0.040000000000000036,
                    0.52,
                    1.0,
                    0.9504846320134737,
                    0.8117456539497631,
                    0.6112620219362893,
                    0.38874197806371075,
                    0.18825834605023697,
                    0.049519367986526286,
                    4e-06,
                ],
                &[
                    0.0,
                    0.5,
                    1.0,
                    0.9504844339512097,
                    0.8117449009293665,
                    0.6112604669781574,
                    0.3887395330218424,
                    0.1882550990706333,
                    0.04951556604879004,
                    0.0,
                ],
            ),
            (
                7,
                0.25,
                &[
                    0.040000000000000036,
                    0.9944154354509117,
                    0.8665264698111694,
                    0.6112620219362893,
                    0.31733221849885124,
                    0.08688426531955129,
                    4e-06,
                ],
                &[
                    0.0,
                    0.9944154131125638,
                    0.8665259359149124,
                    0.6112604669781574,
                    0.31732948781680204,
                    0.08688061284200299,
                    0.0,
                ],
            ),
            (
                6,
                0.1,
                &[
                    0.9865224892001707,
                    0.8431214464510911,
                    0.58682574153711,
                    0.3019629091399539,
                    0.08225976526915453,
                    4e-06,
                ],
                &[
                    0.9865224352899116,
                    0.8431208189343664,
                    0.5868240888334653,
                    0.301960116980422,
                    0.08225609429353131,
                    0.0,
                ],
            ),
        ];
        for (steps, share, rates_of_torch, lowered) in expected {
            let found = factors("one-cycle", Some(WarmUp::Share(share)), steps);
            assert_near(&rates(&found), rates_of_torch);
            assert_near(&found.iter().map(|step| step.lowered_momentum).collect::<Vec<_>>(), lowered);
        }
    }

    #[test]
    fn a_schedule_stays_at_its_end_and_one_step_is_enough() {
        for kind in &SCHEDULES {
            for steps in [1, 2, 3, 10] {
                let schedule = Schedule::new(ScheduleKind::find(kind.name).unwrap(), None, steps).unwrap();
                assert_eq!(schedule.at(steps - 1), schedule.at(steps + 5));
                let factors: Vec<f64> = (0..steps).map(|step| schedule.at(step).learning_rate).collect();
                assert!(factors.iter().all(|factor| (0.0..=1.0).contains(factor)), "{factors:?}");
                assert!(factors[0] > 0.0, "{}: {factors:?}", kind.name);
            }
        }
    }

    #[test]
    fn warm_up_is_read_and_written() {
        for text in ["0", "50", "10%", "7%", "0.5%", "33.3%", "0%"] {
            assert_eq!(text.parse::<WarmUp>().unwrap().to_string(), text);
        }
        for text in ["", "-1", "100%", "x", "%", "nan%", "-1%", "1.5"] {
            assert!(text.parse::<WarmUp>().is_err(), "{text}");
        }
        for (json, expected) in [("50", "50"), ("\"50\"", "50"), ("\"10%\"", "10%")] {
            assert_eq!(serde_json::from_str::<WarmUp>(json).unwrap().to_string(), expected);
        }
        let cosine = ScheduleKind::find("cosine").unwrap();
        assert!(Schedule::new(cosine, Some(WarmUp::Steps(10)), 10).is_err());
        assert!(Schedule::new(cosine, Some(WarmUp::Steps(0)), 0).is_ok());
    }
}
