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
            Metric::Test { .. } | Metric::Skipped { .. } => {}
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

/// About `count` round numbers from 0 to at least `largest`.
fn ticks(largest: f64, count: f64) -> Vec<f64> {
    let rough = (largest / count).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|&step| step >= rough);
    let step = step.unwrap_or(rough);
    let steps = (largest / step - 1e-9).ceil().max(1.0) as usize;
    (0..=steps).map(|index| index as f64 * step).collect()
}

fn plot(quantity: Quantity, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let last = points().map(|point| point.0).fold(1.0, f64::max);
    let largest = points().map(|point| point.1).fold(0.0, f64::max);
    let epochs: Vec<f64> = ticks(last, 6.0).into_iter().filter(|tick| tick.fract() == 0.0 && *tick <= last).collect();
    let (title, values) = match quantity {
        Quantity::Loss => ("Loss", ticks(largest.max(0.1), 5.0)),
        Quantity::Accuracy => ("Accuracy", ticks(1.0, 5.0)),
    };
    let top_value = values.last().copied().unwrap_or(1.0);
    let x = |epoch: f64| LEFT + epoch / last * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / top_value * (HEIGHT - TOP - BOTTOM);
    let decimals = if top_value > 20.0 { 0 } else { 1 + usize::from(top_value < 0.5) };
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
        for (index, &(epoch, value)) in line.points.iter().enumerate() {
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
        assert_eq!(ticks(1.0, 5.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(5.0, 6.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        for largest in [0.03, 0.7, 2.897, 55.0, 1234.5] {
            let found = ticks(largest, 5.0);
            assert!(found.len() >= 3 && found.len() <= 8, "{found:?}");
            assert!(found[found.len() - 1] >= largest && found[found.len() - 2] < largest, "{found:?}");
        }
    }
}
