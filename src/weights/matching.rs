//! Which keys of a file fit a network: a complete report, then a decision.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use super::network::{self, HEAD_PREFIX};
use super::state_dict::{TensorEntry, TensorFile, printable};
use crate::error::{Error, Result};

/// Wrappers that training scripts leave around every key: DataParallel, Lightning, checkpoints, `torch.compile`.
const WRAPPERS: [&str; 4] = ["module.", "model.", "state_dict.", "_orig_mod."];
const COUNTER: &str = "num_batches_tracked";
/// How many keys of each kind an error names; the report names all.
const NAMED_IN_ERROR: usize = 2;

/// A key and its shape, in torch's layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedShape {
    /// The key, without any wrapper.
    pub name: String,
    /// The shape; empty for a single number.
    pub shape: Vec<usize>,
}

/// A key that is there with another shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// The key, without any wrapper.
    pub name: String,
    /// The network's shape, in torch's layout.
    pub expected: Vec<usize>,
    /// The file's shape.
    pub found: Vec<usize>,
}

/// What to do with a head (`fc`) that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadPolicy {
    /// It counts as any other key: for evaluating, predicting and resuming.
    Exact,
    /// The network keeps a head of its own: for fine-tuning. Every `fc.` key of the file is then set aside.
    Replace,
}

/// How the keys of a file and those of a network meet. `Display` gives the whole of it, every key named.
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
    /// `num_batches_tracked` counters that the file lacks, as old files do; they begin at 0.
    pub absent_counters: Vec<String>,
    /// The wrapper, such as `module.`, that stood before every key of the file.
    pub prefix: Option<String>,
    /// The head of the file, where the network keeps its own instead; empty if the file has none.
    pub replaced_head: Option<Vec<NamedShape>>,
    /// The head of the network.
    pub expected_head: Vec<NamedShape>,
    /// The network that the file's keys belong to, where they tell.
    pub recognised: Option<String>,
}

/// Compares a network's state dict, in its order, with a file.
pub fn match_state_dict(expected: &[NamedShape], file: &TensorFile, head: HeadPolicy) -> MatchReport {
    let prefix = wrapper(expected, file);
    let bare = |entry: &TensorEntry| NamedShape {
        name: entry.name.get(prefix.len()..).unwrap_or_default().to_owned(),
        shape: entry.shape.clone(),
    };
    let in_head = |entry: &&NamedShape| entry.name.starts_with(HEAD_PREFIX);
    let found_head: Vec<NamedShape> = file.entries().iter().map(bare).filter(|key| in_head(&key)).collect();
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
        prefix: (!prefix.is_empty()).then(|| prefix.clone()),
        replaced_head: replaced.then_some(found_head),
        expected_head,
        recognised: network::recognise(file.entries().iter().map(bare)),
    };
    for key in expected.iter().filter(|key| !(replaced && in_head(key))) {
        match file.get(&format!("{prefix}{}", key.name)) {
            Some(entry) if fits(&key.shape, &entry.shape) => report.matched += 1,
            Some(entry) => report.wrong_shape.push(ShapeMismatch {
                name: key.name.clone(),
                expected: key.shape.clone(),
                found: entry.shape.clone(),
            }),
            None if key.name.ends_with(COUNTER) => report.absent_counters.push(key.name.clone()),
            None => report.missing.push(key.clone()),
        }
    }
    let known: HashSet<&str> = expected.iter().map(|key| key.name.as_str()).collect();
    let accounted = |key: &NamedShape| known.contains(key.name.as_str()) || (replaced && in_head(&key));
    report.unexpected = file.entries().iter().map(bare).filter(|key| !accounted(key)).collect();
    // Files put counters first; a convolution's name tells a reader more.
    report.unexpected.sort_by_key(|key| key.name.ends_with(COUNTER));
    report
}

/// Torch's rule: shapes are equal, but a single number may have been saved with one dimension.
fn fits(expected: &[usize], found: &[usize]) -> bool {
    expected == found || (expected.is_empty() && found == [1])
}

/// The wrappers that stand before every key of the file and before no key of the network.
fn wrapper(expected: &[NamedShape], file: &TensorFile) -> String {
    let mut prefix = String::new();
    while let Some(next) = WRAPPERS.into_iter().map(|wrapper| format!("{prefix}{wrapper}")).find(|longer| {
        !file.entries().is_empty()
            && file.names().all(|name| name.starts_with(longer.as_str()))
            && !expected.iter().any(|key| key.name.starts_with(longer.as_str()))
    }) {
        prefix = next;
    }
    prefix
}

impl MatchReport {
    /// Whether every key is accounted for.
    pub fn fits(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.wrong_shape.is_empty()
    }

    /// The name under which the file holds a key of the network.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix.as_deref().unwrap_or_default())
    }

    /// What a user should hear even if all went well: a stripped wrapper, a replaced head, absent counters.
    pub fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        if let Some(prefix) = &self.prefix {
            notices.push(format!("every key is wrapped in `{}`, which was stripped", printable(prefix)));
        }
        if let Some(found) = &self.replaced_head {
            let old = list_shapes(found);
            let new = list_shapes(&self.expected_head);
            notices.push(if found.is_empty() {
                format!("the file has no head; the network keeps a new one: {new}")
            } else {
                format!("the head was replaced: {new} instead of {old}")
            });
        }
        if !self.absent_counters.is_empty() {
            notices.push(format!("{} {COUNTER} counters are absent and begin at 0", self.absent_counters.len()));
        }
        notices
    }

    /// Passes if every key is accounted for.
    ///
    /// # Errors
    /// Otherwise: a line with the counts and first names, and a hint that tells what the file holds.
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
        Err(match &self.recognised {
            Some(recognised) => error.hint(format!("its keys are those of {recognised}")),
            None => error.hint(format!("give a state dict of torchvision's {network}")),
        })
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
        if let Some(recognised) = &self.recognised {
            writeln!(f, "  its keys are those of {recognised}")?;
        }
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
