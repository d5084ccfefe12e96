//! The one error type: what is wrong with which file or flag, and how to mend it.

use std::fmt;

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How a program that meets the error should end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The work could not be done (exit status 1).
    Failure,
    /// The request itself was wrong: a flag, or flags that contradict each other (exit status 2).
    Usage,
    /// The user stopped it (exit status 130).
    Interrupted,
}

/// A message of one line, and optionally a hint that tells the mend.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    details: Option<String>,
    shortage: Option<MemoryShortage>,
}

/// Memory that a device did not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryShortage {
    /// Bytes that were asked for.
    pub asked: usize,
    /// Bytes that were free, where the device tells.
    pub free: Option<usize>,
}

impl Error {
    /// A failure: the message names the file or value, what was expected and what was found. What a name or a file's
    /// content brings along that would move a terminal's cursor, or end the line, is replaced.
    pub fn new(message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.contains(char::is_control) {
            message = message.replace(char::is_control, "\u{fffd}");
        }
        Self { kind: ErrorKind::Failure, message, hint: None, details: None, shortage: None }
    }

    /// A wrong request.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Usage, ..Self::new(message) }
    }

    /// The user asked to stop.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Interrupted, ..Self::new(message) }
    }

    /// A device without enough memory.
    pub fn out_of_memory(device: &str, asked: usize, free: Option<usize>) -> Self {
        let size = |bytes: usize| format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64);
        let there = free.map_or(String::new(), |free| format!(", {} are free", size(free)));
        let message = format!("{device}: out of memory: {} are needed{there}", size(asked));
        let error = Self::new(message).hint("a smaller batch or smaller pictures need less");
        Self { shortage: Some(MemoryShortage { asked, free }), ..error }
    }

    /// How much memory was missing, where that was the failure.
    pub fn shortage(&self) -> Option<MemoryShortage> {
        self.shortage
    }

    /// Adds the mend, printed on a line of its own as `hint: ...`.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says first what the error is about: the flag that named a value, say.
    pub fn about(self, subject: &str) -> Self {
        Self { message: format!("{subject}: {}", self.message), ..self }
    }

    /// Adds a long report, for those who ask for it.
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = Some(details.into());
        self
    }

    /// The long report, if there is one.
    pub fn details(&self) -> Option<&str> {
        self.details.as_deref()
    }

    /// How the program should end.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The mend, where there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The message without its hint.
    pub fn message(&self) -> &str {
        &self.message
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

/// Turns any error into [`Error`], saying what was being done.
pub trait Context<T> {
    /// `doing` reads like `cannot read photos/a.jpg`; the cause follows after a colon.
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| Error::new(format!("{}: {cause}", doing().into())))
    }
}
