//! The purposes of the parts of a data set, and the names that folders and tables give them.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

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
const ENDINGS: [&str; 11] =
    ["", "set", "_set", "_data", "_images", "_imgs", "_split", "dir", "_dir", "folder", "_folder"];

/// Other words for parts of a data set, in lower case. A folder may have them for another reason.
const PARTS: [&str; 10] = ["tr", "trn", "te", "tst", "vld", "fold", "split", "part", "cv", "partition"];

impl Role {
    /// The role of a folder with this name, in any case.
    pub fn of(name: &OsStr) -> Option<Self> {
        let name = name.to_str()?.trim().to_lowercase().replace(['-', ' '], "_");
        let is_one = |known: &&str| name.strip_prefix(*known).is_some_and(|ending| ENDINGS.contains(&ending));
        SPLIT_NAMES.iter().find(|(_, names)| names.iter().any(&is_one)).map(|(role, _)| *role)
    }

    /// The roles of folders side by side that have the name of a split within a common one, such as `seg_train` and `seg_test` or `train2017`
    /// and `val2017`: for each common name, the role of each folder that has it. There are training images among them, and others.
    pub fn within_common_names(names: &[OsString]) -> Vec<Vec<Option<Self>>> {
        let names: Vec<Vec<String>> = names.iter().map(|name| name.to_str().map_or(Vec::new(), words)).collect();
        let mut common = BTreeSet::new();
        for words in &names {
            let ranges = (0..words.len()).flat_map(|start| (start + 1..=words.len()).map(move |end| start..end));
            let ranges = ranges
                .filter(|range| range.len() < words.len() && of_words(&words[range.clone()]) == Some(Self::Train));
            common.extend(ranges.map(|range| (&words[..range.start], &words[range.end..])));
        }
        let roles = common.into_iter().map(|(before, after)| {
            let within = |words: &Vec<String>| of_words(words.strip_prefix(before)?.strip_suffix(after)?);
            names.iter().map(within).collect::<Vec<Option<Self>>>()
        });
        roles.filter(|roles| roles.iter().flatten().any(|role| *role != Self::Train)).collect()
    }

    /// Which of these folders side by side are parts of a data set rather than classes, if what they contain allows both: those whose
    /// names have a word of a part, such as `1_train` and `trn`, or all if they differ in a number only, such as `set1` and `set2`.
    pub fn parts_among(names: &[String]) -> Vec<bool> {
        let names: Vec<Vec<String>> = names.iter().map(|name| words(name)).collect();
        let is_part = |word: &String| of_words(std::slice::from_ref(word)).is_some() || PARTS.contains(&word.as_str());
        let without_numbers = |words: &[String]| {
            words.iter().filter(|word| !word.chars().all(char::is_numeric)).cloned().collect::<Vec<_>>()
        };
        let differ_in_number = || {
            let first = without_numbers(&names[0]);
            !first.is_empty() && names.iter().all(|words| words.len() > first.len() && without_numbers(words) == first)
        };
        let named: Vec<bool> = names.iter().map(|words| words.iter().any(is_part)).collect();
        match named.iter().filter(|is_part| **is_part).count() {
            2.. => named,
            _ => vec![names.len() > 1 && differ_in_number(); names.len()],
        }
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

/// The role of the name of a split without an ending, given in words.
fn of_words(words: &[String]) -> Option<Role> {
    let name = words.join("_");
    SPLIT_NAMES.iter().find(|(_, names)| names.contains(&name.as_str())).map(|(role, _)| *role)
}

/// The words and numbers of a name in lower case: `Train2017-images` is `train`, `2017` and `images`.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for letter in name.chars() {
        let is_start = letter.is_numeric() != before.is_numeric() || (letter.is_uppercase() && before.is_lowercase());
        if !letter.is_alphanumeric() || is_start {
            words.push(String::new());
        }
        if let (true, Some(word)) = (letter.is_alphanumeric(), words.last_mut()) {
            word.extend(letter.to_lowercase());
        }
        before = letter;
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The roles by the first letter, `-` for none.
    fn found(names: &[&str]) -> Vec<String> {
        let names: Vec<OsString> = names.iter().map(OsString::from).collect();
        let letter = |role: &Option<Role>| role.map_or("-", |role| &role.name()[..1]);
        Role::within_common_names(&names).iter().map(|roles| roles.iter().map(letter).collect()).collect()
    }

    #[test]
    fn splits_are_found_within_a_common_name() {
        for (names, expected) in [
            (vec!["seg_pred", "seg_test", "seg_train"], "-tt"),
            (vec!["train2017", "val2017"], "tv"),
            (vec!["FlowersTrain", "FlowersValid", "FlowersTest"], "tvt"),
            (vec!["data-training", "data-holdout"], "tt"),
            (vec!["my hold_out photos", "my train photos"], "tt"),
            (vec!["test_256", "train_256", "readme"], "tt-"),
            (vec!["TrainImages", "TestImages"], "tt"),
            (vec!["pets (train)", "pets (test)"], "tt"),
            (vec!["bild_träin", "x_train_é", "x_dev_é"], "-tv"),
        ] {
            assert_eq!(found(&names), [expected], "{names:?}");
        }
        assert_eq!(found(&["1_test", "1_train", "2_test", "2_train"]), ["tt--", "--tt"]);
    }

    #[test]
    fn names_of_splits_are_read_whatever_is_around_them() {
        for (name, role) in [
            ("train ", Some(Role::Train)),
            (" Test", Some(Role::Test)),
            ("traindir", Some(Role::Train)),
            ("val_folder", Some(Role::Validation)),
            ("trainer", None),
            ("1_train", None),
        ] {
            assert_eq!(Role::of(OsStr::new(name)), role, "{name}");
        }
    }

    #[test]
    fn some_names_are_rather_those_of_splits() {
        let parts = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
            Role::parts_among(&names).iter().map(|is_part| if *is_part { '+' } else { '-' }).collect::<String>()
        };
        for (names, expected) in [
            (&["trn", "tst"][..], "++"),
            (&["1_train", "2_test"], "++"),
            (&["fold1", "fold2", "fold3"], "+++"),
            (&["set 1", "set 2"], "++"),
            (&["Part-A", "Part-B"], "++"),
            (&["extras", "trn", "tst"], "-++"),
            (&["cat", "dog"], "--"),
            (&["train", "bus"], "--"),
            (&["2019", "2020"], "--"),
            (&["cat1", "dog2"], "--"),
            (&["cat", "cat2"], "--"),
            (&["trn"], "-"),
            (&[], ""),
        ] {
            assert_eq!(parts(names), expected, "{names:?}");
        }
    }

    #[test]
    fn classes_are_no_splits() {
        for names in [
            &["bus", "train"][..],
            &["toy_train", "toy_bus", "toy_plane"],
            &["steam_train", "crash_test"],
            &["test_tube", "train_station"],
            &["trainer", "tester"],
            &["red_trainer", "red_tester"],
            &["train1", "train2"],
            &["seg_test", "seg_val"],
            &["constrain", "contest"],
            &["train", "test"],
            &["train", "test_tube"],
            &[],
            &["", "_", "train_"],
        ] {
            assert_eq!(found(names), [""; 0], "{names:?}");
        }
    }
}
