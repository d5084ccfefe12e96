//! Training curves: loss and accuracy over the epochs, of one run or of several.
//!
//! The SVG markup names CSS classes only; the page, the SVG file and the PNG each add rules with their colours.

use std::fmt::Write;

use super::contact_sheet::shortened;
use super::raster::{self, FONT_FAMILY, escape};
use super::record::RunRecord;
use crate::error::Result;
use crate::train::Metric;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 140.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 40.0;
const LABEL_GAP: f64 = 16.0;

/// Number of colours; further runs start again with the first.
pub(super) const COLOURS: usize = 6;

const LIGHT: [&str; COLOURS] = ["#c2410c", "#1d4ed8", "#047857", "#7e22ce", "#a16207", "#be185d"];
const DARK: [&str; COLOURS] = ["#fb923c", "#7cb0ff", "#4ade80", "#c99bff", "#facc15", "#f78fc0"];

/// A line of a plot.
struct Line {
    label: String,
    colour: usize,
    dashed: bool,
    points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quantity {
    Loss,
    Accuracy,
}

/// The plots of loss and accuracy, as SVG fragments.
pub(super) fn plots(runs: &[&RunRecord]) -> [String; 2] {
    [Quantity::Loss, Quantity::Accuracy].map(|quantity| {
        let mut lines = Vec::new();
        for (index, run) in runs.iter().enumerate() {
            lines.extend(lines_of(run, quantity, runs.len() > 1, index));
        }
        plot(quantity, &lines)
    })
}

fn lines_of(run: &RunRecord, quantity: Quantity, several: bool, index: usize) -> Vec<Line> {
    let pick = |loss: f64, accuracy: f64| if quantity == Quantity::Loss { loss } else { accuracy };
    let (mut train, mut test, mut name) = (Vec::new(), Vec::new(), "test");
    for metric in &run.metrics {
        match *metric {
            Metric::Progress { epoch, train_loss, train_acc } => train.push((epoch, pick(train_loss, train_acc))),
            Metric::Epoch { epoch, held_out, .. } => {
                name = held_out.short_name();
                test.push((epoch as f64, pick(held_out.loss(), held_out.accuracy())));
            }
            Metric::Head { .. }
            | Metric::Trials { .. }
            | Metric::Test { .. }
            | Metric::Changed { .. }
            | Metric::Stopped { .. }
            | Metric::Skipped { .. } => {}
        }
    }
    let colour = |role: usize| (if several { index } else { role }) % COLOURS;
    let lines = [
        // With several runs, only the test line is labelled.
        Line {
            label: if several { String::new() } else { "train".into() },
            colour: colour(1),
            dashed: true,
            points: train,
        },
        Line {
            label: if several { shortened(&run.name, 12) } else { name.into() },
            colour: colour(0),
            dashed: false,
            points: test,
        },
    ];
    let is_number = |point: &(f64, f64)| point.0.is_finite() && point.1.is_finite();
    let lines = lines.into_iter().map(|mut line| {
        line.points.retain(is_number);
        line
    });
    lines.filter(|line| !line.points.is_empty()).collect()
}

/// About `count` round numbers from at most `lowest` to at least `largest`.
pub(super) fn ticks(lowest: f64, largest: f64, count: f64) -> Vec<f64> {
    let rough = ((largest - lowest) / count).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|&step| step >= rough * (1.0 - 1e-9));
    let step = step.unwrap_or(rough);
    let first = (lowest / step + 1e-9).floor();
    let steps = (largest / step - first - 1e-9).ceil().max(1.0) as usize;
    (0..=steps).map(|index| (first + index as f64) * step).collect()
}

/// The narrowest range of an axis of accuracies; a narrower one would make differences look large that are not.
const NARROWEST: f64 = 0.1;

/// The ticks of an axis that shows these accuracies and not much more.
pub(super) fn accuracy_ticks(accuracies: impl Iterator<Item = f64>) -> Vec<f64> {
    let (lowest, largest) = accuracies.fold((1.0f64, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
    let lowest = lowest.min((largest - NARROWEST).max(0.0));
    let largest = largest.max(lowest + NARROWEST).min(1.0);
    // Rounding may have put the last tick beyond 1.
    ticks(lowest, largest, 5.0).into_iter().filter(|tick| *tick < 1.0 + 1e-9).collect()
}

/// The number of decimals with which these ticks differ.
pub(super) fn decimals(ticks: &[f64]) -> usize {
    let is_exact = |decimals: i32| {
        ticks.iter().all(|tick| (tick * 10f64.powi(decimals) - (tick * 10f64.powi(decimals)).round()).abs() < 1e-6)
    };
    (0..6).find(|&decimals| is_exact(decimals)).unwrap_or(6) as usize
}

fn plot(quantity: Quantity, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let latest = points().map(|point| point.0).fold(0.0, f64::max);
    let last = latest.max(1.0);
    let largest = points().map(|point| point.1).fold(0.0, f64::max);
    let epochs: Vec<f64> =
        ticks(0.0, last, 6.0).into_iter().filter(|tick| tick.fract() == 0.0 && *tick <= last).collect();
    let (title, values) = match quantity {
        Quantity::Loss => ("Loss", ticks(0.0, largest.max(0.1), 5.0)),
        // Before the end of the first epoch, accuracy may be so low that the rest would be a flat line.
        Quantity::Accuracy => {
            let is_late = |point: &&(f64, f64)| point.0 >= 1.0 || latest < 1.0;
            ("Accuracy", accuracy_ticks(points().filter(is_late).map(|point| point.1)))
        }
    };
    let (bottom, top) = (values.first().copied().unwrap_or(0.0), values.last().copied().unwrap_or(1.0));
    let x = |epoch: f64| LEFT + epoch / last * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - (value - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM);
    let decimals = decimals(&values).max(usize::from(top <= 20.0));
    let mut svg = String::new();
    let mut put = |text: String| svg.push_str(&text);
    put(format!(r#"<text class="title" x="{LEFT}" y="18">{title}</text>"#));
    for &value in &values {
        let at = y(value);
        put(format!(r#"<path class="grid" d="M{LEFT} {at:.1}H{:.1}"/>"#, WIDTH - RIGHT));
        put(format!(
            r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{value:.decimals$}</text>"#,
            LEFT - 8.0,
            at + 4.0
        ));
    }
    for &epoch in &epochs {
        put(format!(
            r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="middle">{epoch}</text>"#,
            x(epoch),
            HEIGHT - BOTTOM + 18.0
        ));
    }
    put(format!(
        r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="middle">epoch</text>"#,
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 4.0
    ));
    for line in lines {
        let mut path = String::new();
        let shown = line.points.iter().filter(|point| point.1 >= bottom - 1e-9);
        for (index, &(epoch, value)) in shown.enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if index == 0 { "M" } else { "L" }, x(epoch), y(value));
        }
        let dash = if line.dashed { " dashed" } else { "" };
        put(format!(r#"<path class="line s{}{dash}" d="{path}"/>"#, line.colour));
        let dots = if line.dashed && line.points.len() > 1 { &[] } else { line.points.as_slice() };
        for &(epoch, value) in dots {
            put(format!(r#"<circle class="dot f{}" cx="{:.1}" cy="{:.1}" r="3"/>"#, line.colour, x(epoch), y(value)));
        }
    }
    // A label with the last value stands at the end of each line; labels that would overlap are moved apart.
    let named = lines.iter().filter(|line| !line.label.is_empty());
    let mut labels: Vec<(f64, &Line)> = named.map(|line| (y(line.points[line.points.len() - 1].1), line)).collect();
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut lowest = TOP - LABEL_GAP;
    for (at, _) in &mut labels {
        *at = at.max(lowest + LABEL_GAP);
        lowest = *at;
    }
    let overflow = (lowest - (HEIGHT - BOTTOM)).max(0.0);
    for (at, line) in labels {
        let value = line.points[line.points.len() - 1].1;
        put(format!(
            r#"<text class="name f{}" x="{:.1}" y="{:.1}">{} {value:.3}</text>"#,
            line.colour,
            WIDTH - RIGHT + 8.0,
            at - overflow + 4.0,
            escape(&line.label)
        ));
    }
    svg
}

/// An SVG element for a page that has the rules.
pub(super) fn inline(plot: &str, description: &str) -> String {
    format!(r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}">{plot}</svg>"#, escape(description))
}

fn rules(ink: &str, faint: &str, colours: &[&str]) -> String {
    let mut rules = format!(
        "text{{font-family:{FONT_FAMILY},system-ui,sans-serif;font-size:12px;fill:{ink}}}.title{{font-size:15px}}\
         .tick{{fill:{ink}}}.grid{{stroke:{faint};stroke-width:1;fill:none}}.line{{stroke-width:2;fill:none}}\
         .dashed{{stroke-dasharray:5 3;stroke-width:1.5}}"
    );
    for (index, colour) in colours.iter().enumerate() {
        let _ = write!(rules, ".s{index}{{stroke:{colour}}}.f{index}{{fill:{colour};color:{colour}}}");
    }
    rules
}

/// The CSS rules of the light and the dark theme.
pub(super) fn themed_rules() -> String {
    format!(
        "{}@media (prefers-color-scheme:dark){{{}}}",
        rules("#3f3f46", "#e4e4e7", &LIGHT),
        rules("#d4d4d8", "#3f3f46", &DARK)
    )
}

fn drawing(runs: &[&RunRecord], style: &str, paper: &str) -> String {
    let [loss, accuracy] = plots(runs);
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{HEIGHT}" viewBox="0 0 {0} {HEIGHT}"><style>{style}</style>{paper}<g>{loss}</g><g transform="translate({WIDTH} 0)">{accuracy}</g></svg>"#,
        2.0 * WIDTH
    )
}

/// Loss and accuracy side by side, as an SVG file that follows the viewer's light or dark theme.
pub fn curves_svg(runs: &[&RunRecord]) -> String {
    let paper =
        format!(".paper{{fill:#ffffff}}{}@media (prefers-color-scheme:dark){{.paper{{fill:#18181b}}}}", themed_rules());
    drawing(runs, &paper, r#"<rect class="paper" width="100%" height="100%"/>"#) + "\n"
}

/// Loss and accuracy side by side, as a PNG file with a white background.
pub fn curves_png(runs: &[&RunRecord]) -> Result<Vec<u8>> {
    let style = rules("#3f3f46", "#e4e4e7", &LIGHT);
    raster::png(&drawing(runs, &style, r##"<rect width="100%" height="100%" fill="#ffffff"/>"##), 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_beyond() {
        assert_eq!(ticks(0.0, 1.0, 5.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(0.0, 5.0, 6.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        for largest in [0.03, 0.7, 2.897, 55.0, 1234.5] {
            let found = ticks(0.0, largest, 5.0);
            assert!(found.len() >= 3 && found.len() <= 8, "{found:?}");
            assert!(found[found.len() - 1] >= largest && found[found.len() - 2] < largest, "{found:?}");
        }
    }

    #[test]
    fn an_axis_of_accuracies_shows_their_range() {
        let of = |accuracies: &[f64]| {
            let ticks = accuracy_ticks(accuracies.iter().copied());
            let decimals = decimals(&ticks);
            ticks.iter().map(|tick| format!("{tick:.decimals$}")).collect::<Vec<_>>()
        };
        assert_eq!(of(&[0.84, 0.91]), ["0.80", "0.82", "0.84", "0.86", "0.88", "0.90", "0.92"]);
        assert_eq!(of(&[0.31, 0.97, 0.5]), ["0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(of(&[1.0]), ["0.90", "0.92", "0.94", "0.96", "0.98", "1.00"]);
        assert_eq!(of(&[0.0]), ["0.00", "0.02", "0.04", "0.06", "0.08", "0.10"]);
        assert_eq!(of(&[]).len(), 6);
        for (low, high) in [(0.5, 0.51), (0.123, 0.987), (0.0, 1.0), (0.995, 0.999), (0.333, 0.334)] {
            let ticks = accuracy_ticks([low, high].into_iter());
            let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
            assert!(first <= low + 1e-9 && last >= high - 1e-9 && last < 1.0 + 1e-9 && first > -1e-9, "{ticks:?}");
            assert!((3..=8).contains(&ticks.len()), "{ticks:?}");
        }
    }
}
