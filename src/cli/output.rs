//! What the commands print: results to stdout, everything else to stderr. In a terminal, lines are wrapped at spaces.

use std::borrow::Cow;
use std::io::Write;

use console::{Color, Term};
use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm};

use crate::error::{Context, Error, Result};
use crate::printable::{is_hidden, printable};

/// Prints a warning: a problem that does not stop the command.
pub(super) fn warn(text: &str) {
    say(&format!("warning: {text}"));
}

/// Warns about images that a command skipped.
pub(super) fn warn_of_skipped(images: usize) {
    warn(&match images {
        1 => "1 unreadable image was skipped".to_string(),
        _ => format!("{images} unreadable images were skipped"),
    });
}

/// Writes a line to standard error; what names in it hide is shown. `eprintln!` would panic where standard error is closed or full.
pub(super) fn say(text: &str) {
    let text = printable(text);
    let text = wrapped(&text, width(&Term::stderr()));
    let text = if console::colors_enabled_stderr() { coloured(&text).into() } else { text };
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Colours the word that a line starts with, such as `error:`.
fn coloured(line: &str) -> String {
    let words = [("error:", Color::Red), ("warning:", Color::Yellow), ("hint:", Color::Cyan)];
    match words.iter().find_map(|&(word, colour)| Some((word, colour, line.strip_prefix(word)?))) {
        Some((word, colour, rest)) => format!("{}{rest}", console::style(word).fg(colour).bold().for_stderr()),
        None => line.into(),
    }
}

/// A size in the unit that suits it.
pub(super) fn size(bytes: usize) -> String {
    match bytes >> 20 {
        0 => format!("{} KiB", bytes >> 10),
        mebibytes @ 0..1024 => format!("{mebibytes} MiB"),
        _ => format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64),
    }
}

/// Prints a line of a result. Whatever names are in it, it is one line, and what they hide is shown.
pub(super) fn print_result(line: &str) -> Result<()> {
    print_bytes(result_line(line).as_bytes())
}

/// A line of a result with its end.
pub(super) fn result_line(line: &str) -> String {
    format!("{}\n", wrapped(&printable(line), width(&Term::stdout())))
}

/// The width of the terminal that standard output is; `None` for files and pipes.
pub(super) fn result_width() -> Option<usize> {
    width(&Term::stdout())
}

/// The width of a terminal; `None` for files and pipes.
fn width(terminal: &Term) -> Option<usize> {
    let (_, columns) = terminal.size_checked().filter(|_| terminal.is_term())?;
    Some(columns.into())
}

/// The text with line breaks between words, where it has to be broken. Further lines are indented; those of a command continue it.
fn wrapped(text: &str, width: Option<usize>) -> Cow<'_, str> {
    let Some(width) = width.filter(|&width| textwrap::core::display_width(text) > width) else { return text.into() };
    let is_command = text.starts_with("$ ") || text.trim_start().starts_with("retune ");
    let (room, end) = if is_command { (width.saturating_sub(2), " \\\n") } else { (width, "\n") };
    let indent = " ".repeat(text.len() - text.trim_start().len() + 2);
    // Only spaces separate words: a command with an option or a path that is broken could not be copied.
    let options = Options::new(room)
        .break_words(false)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit)
        .subsequent_indent(&indent);
    textwrap::wrap(text, options).join(end).into()
}

/// Prints a result. A closed pipe (`retune inspect ... | head`) is not an error.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<()> {
    print_while_open(bytes).map(|_| ())
}

/// Prints a part of a result. Returns whether anyone still reads it.
pub(super) fn print_while_open(bytes: &[u8]) -> Result<bool> {
    match std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::new(format!("cannot write to standard output: {error}"))),
    }
}

/// A line of a CSV table with its end. Whatever names are in its fields, it is one line, and what they hide is shown.
pub(super) fn csv_line(fields: impl Iterator<Item = String>) -> Result<String> {
    let doing = || "cannot write a line of the table";
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(fields.map(|field| printable(&field).into_owned())).context(doing)?;
    let line = writer.into_inner().context(doing)?;
    String::from_utf8(line).context(doing)
}

/// Prints a result as one line of JSON.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print_bytes(format!("{}\n", json(value)?).as_bytes())
}

/// One line of JSON. Names are as they are, with JSON's escapes for hidden characters.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String> {
    let text = serde_json::to_string(value).context(|| "cannot write JSON")?;
    // Outside strings, JSON has no hidden characters but those that it escapes itself.
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}")));
        } else {
            escaped.push(c);
        }
    }
    Ok(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_wrapped_between_words() {
        let text = "error: cannot decode photos/a-very-long-name-of-an-image.png: expected a JPEG";
        assert_eq!(wrapped(text, None), text);
        assert_eq!(wrapped(text, Some(80)), text);
        assert_eq!(
            wrapped(text, Some(40)),
            "error: cannot decode\n  photos/a-very-long-name-of-an-image.png:\n  expected a JPEG"
        );
        assert_eq!(wrapped("  --batch-size 32 is enough", Some(22)), "  --batch-size 32 is\n    enough");
        assert_eq!(wrapped("name      12.5  ok", Some(14)), "name      12.5\n  ok", "a table");
        assert_eq!(wrapped("\u{732b}\u{732b} \u{732b}", Some(6)), "\u{732b}\u{732b}\n  \u{732b}", "wide characters");
        assert_eq!(
            wrapped("$ retune train data --out run", Some(22)),
            "$ retune train data \\\n  --out run",
            "a command remains one"
        );
    }
}
