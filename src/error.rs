//! The crate's error type: what is wrong with which file or flag, and a hint with the fix.

use std::borrow::Cow;
use std::fmt;

use crate::printable::printable;

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of an error, which decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The command failed (exit status 1).
    Failure,
    /// Numbers of a network are no longer finite (exit status 1).
    NotFinite,
    /// The command line is wrong: an invalid value, or flags that contradict each other (exit status 2).
    Usage,
    /// A signal interrupted the command (exit status 130 after Ctrl-C).
    Interrupted,
}

/// A message of one line, and optionally a hint with the fix.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    details: Option<String>,
    shortage: Option<MemoryShortage>,
}

/// An allocation that failed for lack of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryShortage {
    /// Requested bytes.
    pub asked: usize,
    /// Free bytes, if the device reports them.
    pub free: Option<usize>,
}

impl Error {
    /// A failure. The message names the file or value, what was expected and what was found. It stays on one line, and hidden
    /// characters, which may come from file names and file contents, are shown as escapes.
    pub fn new(message: impl Into<String>) -> Self {
        let message = one_line(message.into());
        Self { kind: ErrorKind::Failure, message, hint: None, details: None, shortage: None }
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Usage, ..Self::new(message) }
    }

    /// Numbers of a network that are not finite.
    pub fn not_finite(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::NotFinite, ..Self::new(message) }
    }

    /// An interruption by the user.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Interrupted, ..Self::new(message) }
    }

    /// A failed allocation: bytes requested, and bytes free if known.
    pub fn out_of_memory(device: &str, asked: usize, free: Option<usize>) -> Self {
        let size = |bytes: usize| format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64);
        let available = free.map_or(String::new(), |free| format!(", {} is free", size(free)));
        let message = format!("{device}: out of memory: {} is needed{available}", size(asked));
        let error = Self::new(message).hint("use a smaller batch size or image size");
        Self { shortage: Some(MemoryShortage { asked, free }), ..error }
    }

    /// The failed allocation, if that is the error.
    pub fn shortage(&self) -> Option<MemoryShortage> {
        self.shortage
    }

    /// Adds a hint with the fix, printed on its own line as `hint: ...`.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(one_line(hint.into()));
        self
    }

    /// Puts the subject in front of the message, such as the flag that an invalid value belongs to.
    pub fn about(self, subject: &str) -> Self {
        Self { message: format!("{subject}: {}", self.message), ..self }
    }

    /// Adds a long report, shown with `--verbose`.
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = Some(details.into());
        self
    }

    /// The long report, if there is one.
    pub fn details(&self) -> Option<&str> {
        self.details.as_deref()
    }

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The message without its hint.
    pub fn message(&self) -> &str {
        &self.message
    }
}

fn one_line(text: String) -> String {
    match printable(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(shown) => shown,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Converts any error into [`Error`] and adds what was attempted.
pub trait Context<T> {
    /// `doing` reads like `cannot read photos/a.jpg`; the cause follows a colon.
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| Error::new(format!("{}: {cause}", doing().into())))
    }
}
