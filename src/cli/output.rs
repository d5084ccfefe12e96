//! What the commands print: results to stdout, everything else to stderr.

use std::io::Write;

use console::Color;

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
    print_bytes(format!("{}\n", printable(line)).as_bytes())
}

/// Prints a result. A closed pipe (`retune inspect ... | head`) is not an error.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<()> {
    match std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a result as one line of JSON. Names are as they are, with JSON's escapes for hidden characters.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<()> {
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
    print_bytes(format!("{escaped}\n").as_bytes())
}
