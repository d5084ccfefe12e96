//! The purposes of the parts of a data set, and the names that folders and tables give them.

use std::ffi::OsStr;

/// The purpose of the images of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Training.
    Train,
    /// Choosing the epoch whose model is kept.
    Validation,
    /// Measuring the accuracy of the model.
    Test,
}

/// Names of splits, in lower case. A name may have one of [`ENDINGS`].
const SPLIT_NAMES: [(Role, &[&str]); 3] = [
    (Role::Train, &["train", "training"]),
    (Role::Validation, &["val", "valid", "validation", "validate", "dev", "development"]),
    (Role::Test, &["test", "testing", "eval", "evaluation", "holdout", "hold_out"]),
];

/// `train_set` is `train`.
const ENDINGS: [&str; 7] = ["", "set", "_set", "_data", "_images", "_imgs", "_split"];

impl Role {
    /// The role of a folder with this name, in any case.
    pub fn of(name: &OsStr) -> Option<Self> {
        let name = name.to_str()?.to_lowercase().replace(['-', ' '], "_");
        let is_one = |known: &&str| name.strip_prefix(*known).is_some_and(|ending| ENDINGS.contains(&ending));
        SPLIT_NAMES.iter().find(|(_, names)| names.iter().any(&is_one)).map(|(role, _)| *role)
    }

    /// `train`, `validation` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }

    /// The word before `images`: `training`, `validation` or `test`.
    pub fn adjective(self) -> &'static str {
        match self {
            Self::Train => "training",
            other => other.name(),
        }
    }
}
