//! How sure the model is of its predictions, and whether it is right as often as it says.

use maud::{Markup, html};

use super::super::calibration::{Bin, Calibration};
use super::super::curves::{decimals, ticks};
use super::super::measures::interval;
use super::super::record::{RunRecord, TestRecord};
use super::text::percent;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 44.0;

/// The smallest and the largest dot of the calibration diagram.
const RADII: (f64, f64) = (2.5, 8.0);

pub(super) fn confidence(run: &RunRecord) -> Markup {
    let Ok(test) = &run.test else { return html! {} };
    html! {
        section {
            h2 { "Confidence" }
            div.plots { (histogram(&test.calibration)) (diagram(&test.calibration)) }
            p { (verdict(test)) }
            p.note {
                "Left: test images by the probability of the predicted class. Right: the share of correct predictions among images \
                 of similar probability, with its 95 % interval; larger dots stand for more images. On the dashed line, a prediction \
                 of 80 % is right for 80 of 100 images. Dots below it mean that the model is too sure, dots above it that it is too \
                 cautious."
            }
        }
    }
}

/// If the accuracy is less certain than this, it fits almost any mean probability.
const WIDEST_INTERVAL: f64 = 0.1;

/// Whether the mean probability fits the accuracy, given the uncertainty of the latter.
fn verdict(test: &TestRecord) -> String {
    let [low, high] = test.measures.accuracy_interval;
    let accuracy = test.totals.accuracy();
    let confidence = accuracy + test.calibration.excess();
    let numbers = format!(
        "its predictions have a mean probability of {} and {} of them are correct",
        percent(confidence),
        percent(accuracy)
    );
    if confidence > high {
        format!("The model is too sure of itself: {numbers}.")
    } else if confidence < low {
        format!("The model is too cautious: {numbers}.")
    } else if high - low > WIDEST_INTERVAL {
        format!(
            "Whether the model is as sure as it is right cannot be told from so few test images: {numbers}, and an accuracy \
             between {} and {} on other images would be no surprise.",
            percent(low),
            percent(high)
        )
    } else {
        format!("On average, the model is about as sure as it is right: {numbers}.")
    }
}

fn x(probability: f64) -> f64 {
    LEFT + probability * (WIDTH - LEFT - RIGHT)
}

/// The place of a value between 0 and `top`.
fn y(value: f64, top: f64) -> f64 {
    HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)
}

/// Title, grid and axes.
fn frame(title: &str, values: &[f64]) -> Markup {
    let top = values.last().copied().unwrap_or(1.0);
    let decimals = decimals(values);
    html! {
        text.title x=(LEFT) y="18" { (title) }
        @for &value in values {
            path.grid d=(format!("M{LEFT} {:.1}H{:.1}", y(value, top), WIDTH - RIGHT)) {}
            text.tick x=(LEFT - 8.0) y=(format!("{:.1}", y(value, top) + 4.0)) text-anchor="end" { (format!("{value:.decimals$}")) }
        }
        @for tick in 0..=5 {
            text.tick x=(format!("{:.1}", x(f64::from(tick) / 5.0))) y=(HEIGHT - BOTTOM + 18.0) text-anchor="middle" {
                (format!("{:.1}", f64::from(tick) / 5.0))
            }
        }
        text.tick x=(x(0.5)) y=(HEIGHT - 6.0) text-anchor="middle" { "probability of the predicted class" }
    }
}

/// Test images by probability, correct ones below wrong ones.
fn histogram(calibration: &Calibration) -> Markup {
    let bins = calibration.bins();
    let most = bins.iter().map(|bin| bin.images).max().unwrap_or(0).max(1);
    // Counts are whole numbers.
    let values: Vec<f64> = ticks(0.0, most as f64, 5.0).into_iter().filter(|tick| tick.fract() == 0.0).collect();
    let values = if values.last().is_some_and(|&last| last >= most as f64) { values } else { vec![0.0, most as f64] };
    let top = values.last().copied().unwrap_or(1.0);
    let width = x(1.0 / bins.len() as f64) - LEFT - 2.0;
    let part = |index: usize, from: usize, to: usize, class: &str| {
        let (left, upper, lower) = (x(index as f64 / bins.len() as f64) + 1.0, y(to as f64, top), y(from as f64, top));
        html! {
            @if to > from {
                rect class=(class) x=(format!("{left:.1}")) y=(format!("{upper:.1}")) width=(format!("{width:.1}"))
                    height=(format!("{:.1}", lower - upper)) {}
            }
        }
    };
    let (images, correct) =
        bins.iter().fold((0, 0), |(images, correct), bin| (images + bin.images, correct + bin.correct));
    let description =
        format!("histogram of the probabilities of {correct} correct and {} wrong predictions", images - correct);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(description) {
            (frame("Test images", &values))
            @for (index, bin) in bins.iter().enumerate() {
                (part(index, 0, bin.correct, "right"))
                (part(index, bin.correct, bin.images, "wrong"))
            }
            rect.right x=(WIDTH - 142.0) y="8" width="11" height="11" {}
            text x=(WIDTH - 126.0) y="18" { "correct" }
            rect.wrong x=(WIDTH - 70.0) y="8" width="11" height="11" {}
            text x=(WIDTH - 54.0) y="18" { "wrong" }
        }
    }
}

/// The share of correct predictions by probability.
fn diagram(calibration: &Calibration) -> Markup {
    let bins = calibration.bins();
    let most = bins.iter().map(|bin| bin.images).max().unwrap_or(0).max(1) as f64;
    let radius = |bin: &Bin| RADII.0 + (RADII.1 - RADII.0) * (bin.images as f64 / most).sqrt();
    let dots: Vec<(&Bin, f64, f64)> =
        bins.iter().filter_map(|bin| Some((bin, x(bin.confidence()?), y(bin.accuracy()?, 1.0)))).collect();
    let points: Vec<String> = dots
        .iter()
        .filter_map(|(bin, ..)| Some(format!("{} at {}", percent(bin.accuracy()?), percent(bin.confidence()?))))
        .collect();
    let description = format!("calibration: share of correct predictions by probability: {}", points.join(", "));
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(description) {
            (frame("Share of correct predictions", &ticks(0.0, 1.0, 5.0)))
            path.line.dashed.ideal d=(format!("M{:.1} {:.1}L{:.1} {:.1}", x(0.0), y(0.0, 1.0), x(1.0), y(1.0, 1.0))) {}
            @for (bin, across, down) in &dots {
                @let [low, high] = interval(bin.correct, bin.images);
                path.whisker d=(format!("M{across:.1} {:.1}V{:.1}", y(low, 1.0), y(high, 1.0))) {}
                circle.measured cx=(format!("{across:.1}")) cy=(format!("{down:.1}")) r=(format!("{:.1}", radius(bin))) {}
            }
        }
    }
}
