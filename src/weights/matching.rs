//! Compares the keys of a file with those of a network: a complete report, then a decision.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use super::find::no_tensor;
use super::key_names::{self, HEAD};
use super::state_dict::{TensorEntry, TensorFile, printable};
use crate::error::{Error, Result};

const COUNTER: &str = "num_batches_tracked";
/// How many keys of each kind an error names; the report names all.
const NAMED_IN_ERROR: usize = 2;

/// A key and its shape, in torch's layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedShape {
    /// The key, by torchvision's name.
    pub name: String,
    /// The shape; empty for a single number.
    pub shape: Vec<usize>,
}

/// A key whose shape in the file is not the network's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// The key, by torchvision's name.
    pub name: String,
    /// The network's shape, in torch's layout.
    pub expected: Vec<usize>,
    /// The file's shape.
    pub found: Vec<usize>,
}

/// What to do with the final layer, the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadPolicy {
    /// It has to fit like any other key: for evaluation and prediction.
    Exact,
    /// The network keeps its own if the file's does not fit: for fine-tuning. The file's head is then ignored.
    Replace,
}

/// The result of the comparison. `Display` prints all of it, with every key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchReport {
    /// The file.
    pub path: PathBuf,
    /// How many keys fit.
    pub matched: usize,
    /// Keys of the network that the file lacks.
    pub missing: Vec<NamedShape>,
    /// Keys of the file that the network lacks.
    pub unexpected: Vec<NamedShape>,
    /// Keys of both, with different shapes.
    pub wrong_shape: Vec<ShapeMismatch>,
    /// `num_batches_tracked` counters that the file lacks, as old files do; they start at 0.
    pub absent_counters: Vec<String>,
    /// The head of the file, if the network keeps its own instead; empty if the file has none.
    pub replaced_head: Option<Vec<NamedShape>>,
    /// The head of the network.
    pub expected_head: Vec<NamedShape>,
    /// Missing keys that are in the file with something else than a tensor, and the name of the Python object that it depends on.
    pub placeholders: Vec<(String, String)>,
}

/// Compares a network's state dict, in its order, with the weights that [`find`](super::find()) found in a file.
pub fn match_state_dict(expected: &[NamedShape], file: &TensorFile, head: HeadPolicy) -> MatchReport {
    let named = |entry: &TensorEntry| NamedShape { name: entry.name.clone(), shape: entry.shape.clone() };
    let in_head = |entry: &&NamedShape| key_names::is_head(&entry.name);
    let found_head: Vec<NamedShape> = file.entries().iter().map(named).filter(|key| in_head(&key)).collect();
    let expected_head: Vec<NamedShape> = expected.iter().filter(in_head).cloned().collect();
    let head_fits = found_head.len() == expected_head.len() && expected_head.iter().all(|key| found_head.contains(key));
    let replaced = head == HeadPolicy::Replace && !head_fits;

    let mut report = MatchReport {
        path: file.path().to_path_buf(),
        matched: 0,
        missing: Vec::new(),
        unexpected: Vec::new(),
        wrong_shape: Vec::new(),
        absent_counters: Vec::new(),
        replaced_head: replaced.then_some(found_head),
        expected_head,
        placeholders: Vec::new(),
    };
    for key in expected.iter().filter(|key| !(replaced && in_head(key))) {
        match file.get(&key.name) {
            Some(entry) if fits(&key.shape, &entry.shape) => report.matched += 1,
            Some(entry) => report.wrong_shape.push(ShapeMismatch {
                name: key.name.clone(),
                expected: key.shape.clone(),
                found: entry.shape.clone(),
            }),
            None if key.name.ends_with(COUNTER) => report.absent_counters.push(key.name.clone()),
            None => {
                report.placeholders.extend(file.placeholders().iter().find(|(name, _)| *name == key.name).cloned());
                report.missing.push(key.clone());
            }
        }
    }
    let known: HashSet<&str> = expected.iter().map(|key| key.name.as_str()).collect();
    let accounted = |key: &NamedShape| known.contains(key.name.as_str()) || (replaced && in_head(&key));
    report.unexpected = file.entries().iter().map(named).filter(|key| !accounted(key)).collect();
    // Files store counters first; a convolution's name is more informative.
    report.unexpected.sort_by_key(|key| key.name.ends_with(COUNTER));
    report
}

/// Torch's rule: shapes are equal, but a single number may have been saved with one dimension.
fn fits(expected: &[usize], found: &[usize]) -> bool {
    expected == found || (expected.is_empty() && found == [1])
}

impl MatchReport {
    /// Whether every key is accounted for.
    pub fn fits(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.wrong_shape.is_empty()
    }

    /// Notices for the user even if every key fits: a replaced head, absent counters.
    pub fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        if let Some(found) = &self.replaced_head {
            let weight = format!("{HEAD}.weight");
            let classes = |keys: &[NamedShape]| keys.iter().find(|key| key.name == weight)?.shape.first().copied();
            let new = classes(&self.expected_head).map_or(String::new(), |classes| format!(" for {classes} classes"));
            notices.push(match (classes(found), found.as_slice()) {
                (Some(old), _) => format!("new final layer{new} (the weights had {old})"),
                (None, []) => format!("new final layer{new} (the weights had none)"),
                (None, found) => format!("new final layer{new} (ignored {})", list_shapes(found)),
            });
        }
        if !self.absent_counters.is_empty() {
            notices.push(format!("{} {COUNTER} counters are absent and start at 0", self.absent_counters.len()));
        }
        notices
    }

    /// Passes if every key is accounted for.
    ///
    /// # Errors
    /// When a key is missing, unexpected or wrongly shaped: the message has the counts and the first names.
    pub fn check(&self, network: &str) -> Result<()> {
        if self.fits() {
            return Ok(());
        }
        let mut problems = Vec::new();
        let names = |keys: &[NamedShape]| first(keys.iter().map(|key| printable(&key.name)));
        if !self.missing.is_empty() {
            problems.push(format!("{} missing ({})", self.missing.len(), names(&self.missing)));
        }
        if !self.unexpected.is_empty() {
            problems.push(format!("{} unexpected ({})", self.unexpected.len(), names(&self.unexpected)));
        }
        if !self.wrong_shape.is_empty() {
            let shapes = self
                .wrong_shape
                .iter()
                .map(|key| format!("{}: expected {:?}, found {:?}", printable(&key.name), key.expected, key.found));
            problems.push(format!("{} wrongly shaped ({})", self.wrong_shape.len(), first(shapes)));
        }
        let error = Error::new(format!("{} does not fit {network}: {}", self.path.display(), problems.join(", ")));
        let is_statistic = |key: &NamedShape| key.name.contains(".running_");
        Err(error.hint(match self.placeholders.as_slice() {
            [] if problems.len() == 1 && !self.missing.is_empty() && self.missing.iter().all(is_statistic) => {
                "its batch norms lack their running statistics: save model.state_dict(), not model.parameters() alone"
                    .into()
            }
            [] => format!("expected a state dict of torchvision's {network}"),
            [(key, object), ..] => no_tensor(key, object),
        }))
    }
}

fn first(mut items: impl ExactSizeIterator<Item = String>) -> String {
    let total = items.len();
    let named: Vec<String> = items.by_ref().take(NAMED_IN_ERROR).collect();
    let more = if total > NAMED_IN_ERROR { ", ..." } else { "" };
    format!("{}{more}", named.join(", "))
}

fn list_shapes(keys: &[NamedShape]) -> String {
    keys.iter().map(|key| format!("{} {:?}", printable(&key.name), key.shape)).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for MatchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} keys fit", self.path.display(), self.matched)?;
        for notice in self.notices() {
            writeln!(f, "  {notice}")?;
        }
        let plain = |key: &NamedShape| format!("{} {:?}", printable(&key.name), key.shape);
        group(f, "missing", self.missing.iter().map(plain))?;
        group(f, "unexpected", self.unexpected.iter().map(plain))?;
        let mismatch = |key: &ShapeMismatch| {
            format!("{}: expected {:?}, found {:?}", printable(&key.name), key.expected, key.found)
        };
        group(f, "wrongly shaped", self.wrong_shape.iter().map(mismatch))?;
        group(f, "absent counters", self.absent_counters.iter().cloned())
    }
}

fn group(f: &mut fmt::Formatter<'_>, title: &str, keys: impl ExactSizeIterator<Item = String>) -> fmt::Result {
    if keys.len() > 0 {
        writeln!(f, "  {title} ({}):", keys.len())?;
    }
    for key in keys {
        writeln!(f, "    {key}")?;
    }
    Ok(())
}
