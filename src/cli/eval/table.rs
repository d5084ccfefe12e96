//! The results of an evaluation as text for people.

use std::collections::HashSet;

use textwrap::core::display_width;

use super::result::EvalResult;
use crate::data::counted;
use crate::printable::printable;
use crate::report::{ClassResult, Confusion, Measures, Pair};

/// The room for a confusion matrix where standard output is no terminal.
const USUAL_WIDTH: usize = 80;
/// The longest name before a row of numbers, if not all of them fit.
const LONGEST_LABEL: usize = 24;
/// Widths of a column of the confusion matrix.
const COLUMN: (usize, usize) = (5, 14);
/// The narrowest column in which a shortened name says anything.
const NARROWEST_NAME: usize = 3;
const GAP: &str = "  ";
/// If more classes than this have no images, they are not listed.
const MOST_EMPTY: usize = 10;
/// The number of pairs of classes that are listed in place of a matrix.
const MOST_PAIRS: usize = 10;

/// All lines, for a terminal of this width, if it is one.
pub fn lines(result: &EvalResult, confusion: &Confusion, width: Option<usize>) -> Vec<String> {
    let names: Vec<String> = result.classes.iter().map(|class| printable(&class.class).into_owned()).collect();
    let mut lines = classes(&names, &result.classes, width);
    lines.push(String::new());
    let room = width.unwrap_or(USUAL_WIDTH);
    lines.extend(matrix(&names, confusion.rows(), room).unwrap_or_else(|| pairs(&names, &confusion.pairs())));
    lines.push(String::new());
    if let Some((class, probability)) = &result.threshold {
        lines.push(format!("{} is predicted from a probability of {probability} on", printable(class)));
    }
    lines.extend(summary(result));
    lines
}

/// A table with a line per class. Of a thousand classes, most may have no images.
fn classes(names: &[String], results: &[ClassResult], width: Option<usize>) -> Vec<String> {
    let number = |value: Option<f64>| value.map_or("–".to_string(), |value| format!("{value:.3}"));
    let numbers = |images: &str, recall: &str, precision: &str, f1: &str| {
        format!("{GAP}{images:>6}{GAP}{recall:>6}{GAP}{precision:>9}{GAP}{f1:>6}")
    };
    let header = numbers("images", "recall", "precision", "f1");
    let room = width.map_or(usize::MAX, |width| width.saturating_sub(header.len()).max(LONGEST_LABEL));
    let empty = results.iter().filter(|class| class.images == 0).count();
    let is_listed = |class: &ClassResult| class.images > 0 || empty <= MOST_EMPTY;
    let listed = || names.iter().zip(results).filter(|(_, class)| is_listed(class));
    let label = longest(listed().map(|(name, _)| name)).min(room);
    let rows = listed().map(|(name, ClassResult { images, recall, precision, f1, .. })| {
        padded(name, label) + &numbers(&images.to_string(), &number(*recall), &number(*precision), &number(*f1))
    });
    let rest = (empty > MOST_EMPTY).then(|| format!("{empty} other classes have no images"));
    std::iter::once(padded("class", label) + &header).chain(rows).chain(rest).collect()
}

/// The confusion matrix, if it fits.
fn matrix(names: &[String], rows: &[Vec<usize>], room: usize) -> Option<Vec<String>> {
    let digits = rows.iter().flatten().max().map_or(1, |count| count.to_string().len());
    let most = |label: usize| (room.checked_sub(label)? / names.len().max(1)).checked_sub(GAP.len());
    let longest = longest(names);
    let shortened_to = |cell: usize| names.iter().map(|name| shortened(name, cell)).collect::<Vec<String>>();
    let label = longest.max("actual".len()).min(LONGEST_LABEL);
    let cell = longest.clamp(COLUMN.0, COLUMN.1).min(most(label)?).max(digits);
    let by_name = shortened_to(cell);
    let is_distinct = by_name.iter().collect::<HashSet<_>>().len() == names.len();
    let (headers, labels, cell) = match is_distinct && (cell >= NARROWEST_NAME || cell >= longest) {
        true => (by_name, names.to_vec(), cell),
        // Numbers stand for names that would be the same when they are shortened.
        false => {
            let headers: Vec<String> = (1..=names.len()).map(|number| number.to_string()).collect();
            let labels = headers.iter().zip(names).map(|(number, name)| format!("{number} {name}")).collect();
            let cell = digits.max(headers.last().map_or(1, String::len));
            (headers, labels, cell)
        }
    };
    let label = self::longest(&labels).max("actual".len()).min(LONGEST_LABEL);
    if most(label)? < cell {
        return None;
    }
    let line = |first: &str, cells: Vec<String>| {
        let cells: String = cells
            .iter()
            .map(|text| format!("{GAP}{}{text}", " ".repeat(cell.saturating_sub(display_width(text)))))
            .collect();
        padded(first, label) + &cells
    };
    let mut lines = vec!["Confusion matrix".into(), padded("", label) + GAP + "predicted", line("actual", headers)];
    for (name, row) in labels.iter().zip(rows) {
        lines.push(line(name, row.iter().map(usize::to_string).collect()));
    }
    Some(lines)
}

/// The classes that are confused most.
fn pairs(names: &[String], pairs: &[Pair]) -> Vec<String> {
    if pairs.is_empty() {
        return vec!["No image was taken for one of another class".into()];
    }
    let mut lines = vec!["Most confused classes".to_string()];
    for Pair { actual, predicted, images, of } in pairs.iter().take(MOST_PAIRS) {
        lines.push(format!(
            "{images} of {} of {} predicted as {}",
            counted(*of, "image", "images"),
            names[*actual],
            names[*predicted]
        ));
    }
    match pairs.len().saturating_sub(MOST_PAIRS) {
        0 => {}
        more => lines.push(format!("and {}", counted(more, "pair of classes", "pairs of classes"))),
    }
    lines
}

fn summary(result: &EvalResult) -> [String; 2] {
    let Measures { accuracy_interval: [low, high], balanced_accuracy, top5_accuracy, calibration_error } =
        result.measures;
    let top5 = top5_accuracy.map_or(String::new(), |share| format!("top-5 accuracy {share:.3}, "));
    let calibration = calibration_error.map_or("too few images for a calibration error".into(), |error| {
        format!("expected calibration error {error:.3}")
    });
    let kind = result.split.map_or(String::new(), |split| format!("{split} "));
    let images = counted(result.images as usize, &format!("{kind}image"), &format!("{kind}images"));
    [
        format!("{top5}balanced accuracy {balanced_accuracy:.3}, {calibration}"),
        format!(
            "loss {:.3}, accuracy {:.3} (95 % interval {low:.3} to {high:.3}) over {images} in {}",
            result.loss, result.accuracy, result.folder
        ),
    ]
}

fn longest<'a>(names: impl IntoIterator<Item = &'a String>) -> usize {
    names.into_iter().map(|name| display_width(name)).max().unwrap_or(0).max("class".len())
}

/// The beginning of a name that takes at most so many columns.
fn shortened(name: &str, columns: usize) -> String {
    if display_width(name) <= columns {
        return name.into();
    }
    let mut short = String::new();
    for letter in name.chars() {
        if display_width(&short) + display_width(letter.encode_utf8(&mut [0; 4])) + 1 > columns {
            break;
        }
        short.push(letter);
    }
    short + "…"
}

/// The name in so many columns, followed by spaces or shortened.
fn padded(name: &str, columns: usize) -> String {
    let name = shortened(name, columns);
    let spaces = columns.saturating_sub(display_width(&name));
    name + &" ".repeat(spaces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    fn diagonal(classes: usize, count: usize) -> Vec<Vec<usize>> {
        (0..classes).map(|row| (0..classes).map(|column| if row == column { count } else { 0 }).collect()).collect()
    }

    #[test]
    fn a_matrix_fits_the_width_or_is_a_list() {
        let alike: Vec<String> = (0..9).map(|class| format!("a class with a long name {class}")).collect();
        let different: Vec<String> = ('a'..='i').map(|letter| format!("{letter} class with a long name")).collect();
        for names in [&alike, &different] {
            for width in 20..120 {
                match matrix(names, &diagonal(9, 12), width) {
                    Some(lines) => {
                        let longest = lines.iter().map(|line| display_width(line)).max().unwrap();
                        assert!(longest <= width, "{width}: {longest}\n{}", lines.join("\n"));
                    }
                    None => assert!(width < 60, "{width}"),
                }
            }
        }
        let lines = matrix(&alike, &diagonal(9, 12), 80).unwrap();
        assert_eq!(lines[2], "actual                     1   2   3   4   5   6   7   8   9");
        assert_eq!(lines[3], "1 a class with a long n…  12   0   0   0   0   0   0   0   0");
        let lines = matrix(&different, &diagonal(9, 12), 80).unwrap();
        assert!(lines[2].starts_with("actual                    a c…  b c…"), "{}", lines[2]);
        assert_eq!(matrix(&alike, &diagonal(9, 12), 40), None);
        assert_eq!(matrix(&names(&["red"]), &diagonal(1, 3), 2), None);
        // Wide letters take two columns each.
        let lines = matrix(&names(&["\u{732b}\u{732b}\u{732b}", "dog"]), &diagonal(2, 3), 80).unwrap();
        assert!(lines[1..].iter().all(|line| display_width(line.trim_end()) <= 6 + 2 * 8), "{lines:?}");
    }

    #[test]
    fn confused_classes_are_listed() {
        let names = names(&["ant", "bee"]);
        let pair = |images| Pair { actual: 0, predicted: 1, images, of: 7 };
        let few = pairs(&names, &[pair(2)]);
        assert_eq!(few, ["Most confused classes", "2 of 7 images of ant predicted as bee"]);
        let many = pairs(&names, &[pair(2); 12]);
        assert_eq!((many.len(), &*many[11]), (12, "and 2 pairs of classes"));
        assert_eq!(pairs(&names, &[]).len(), 1);
    }

    #[test]
    fn a_class_without_images_has_dashes() {
        let class = |images, recall| ClassResult { class: "ant".into(), images, recall, precision: recall, f1: recall };
        let found = classes(&names(&["ant", "bee"]), &[class(4, Some(0.5)), class(0, None)], Some(80));
        assert_eq!(
            found,
            [
                "class  images  recall  precision      f1",
                "ant         4   0.500      0.500   0.500",
                "bee         0       –          –       –"
            ]
        );
        let many: Vec<String> = (0..1000).map(|class| format!("class {class}")).collect();
        let results: Vec<ClassResult> = (0..1000).map(|index| class(usize::from(index == 7), Some(1.0))).collect();
        let found = classes(&many, &results, None);
        assert_eq!(found[1..], ["class 7       1   1.000      1.000   1.000", "999 other classes have no images"]);
    }
}
