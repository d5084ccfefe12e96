//! Makes text from other sources, such as names of files and classes, safe to print.
//!
//! A name may contain escape sequences, which a terminal would execute, line breaks, which would split a record, and marks that reverse
//! or hide the text around them. All of them are shown as escapes.

use std::borrow::Cow;

/// The text on one line, with escapes such as `\n`, `\u{1b}` and `\u{202e}` in place of every invisible character.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            // `\n`, `\r` and `\t` have their own escapes.
            '\n' | '\r' | '\t' => shown.extend(c.escape_default()),
            c if is_hidden(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown.into()
}

/// A number as people write it: `30`, `0.01`, `5e-5`.
pub fn plain_number(value: f64) -> String {
    // More digits are an artefact of the arithmetic.
    let value = format!("{value:.8e}").parse().unwrap_or(value);
    match value {
        0.0 => "0".into(),
        _ if (1e-3..1e6).contains(&value.abs()) => value.to_string(),
        _ => format!("{value:e}"),
    }
}

/// Whether a character is invisible, or changes how others are displayed. The joiners U+200C and U+200D are not among them: words and
/// emojis need them.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}'
            | '\u{200b}' | '\u{200e}' | '\u{200f}'
            // Separators of lines and paragraphs; embeddings, overrides and isolates of direction.
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_an_exponent_only_where_it_helps() {
        for (value, expected) in [
            (0.0, "0"),
            (30.0, "30"),
            (0.001, "0.001"),
            (5e-5, "5e-5"),
            (5e-5 * 10.0, "5e-4"),
            (0.1 * 3.0, "0.3"),
            (-2.5, "-2.5"),
            (1e30, "1e30"),
            (999_999.0, "999999"),
            (1_000_000.0, "1e6"),
        ] {
            assert_eq!(plain_number(value), expected);
        }
    }

    #[test]
    fn names_stay_on_one_line_and_hide_nothing() {
        for (name, expected) in [
            ("caf\u{e9} \u{732b} a'b\"c\\d", "caf\u{e9} \u{732b} a'b\"c\\d"),
            ("\u{1b}[31mred\u{1b}[0m", "\\u{1b}[31mred\\u{1b}[0m"),
            ("a\nb\r\tc\0\u{7f}", "a\\nb\\r\\tc\\u{0}\\u{7f}"),
            ("\u{9b}31m \u{85}", "\\u{9b}31m \\u{85}"),
            ("gpj\u{202e}.exe \u{2066}x\u{2069}", "gpj\\u{202e}.exe \\u{2066}x\\u{2069}"),
            ("a\u{200b}b\u{feff}\u{2028}\u{2029}", "a\\u{200b}b\\u{feff}\\u{2028}\\u{2029}"),
            ("\u{1f468}\u{200d}\u{1f469} \u{645}\u{200c}\u{6cc}", "\u{1f468}\u{200d}\u{1f469} \u{645}\u{200c}\u{6cc}"),
        ] {
            assert_eq!(printable(name), expected);
            assert_eq!(printable(expected), expected, "printable text does not change");
        }
    }
}
