//! Finds a network in a file: in any nested dictionary, with any prefix, in any of the known naming schemes.
//!
//! A file may hold one network or several, and tensors that belong to none: optimizer state, a loss with weights, a counter. A
//! network is a prefix `P` and a naming scheme under which the caller's recogniser accepts the keys `P` + `conv1.weight`, ...
//! Its keys are those of its body and its head; other modules under the same prefix are ignored like those elsewhere. If there are
//! several networks, the first of this order is taken:
//!
//! 1. networks that have running statistics, before gradients and optimizer state under the same names, which have none;
//! 2. weights that were trained directly, before copies of them: averages (`ema`, `swa`), `teacher`, MoCo's `encoder_k`;
//! 3. networks that have a final layer, before those that have none;
//! 4. the one with the fewest names in its prefix;
//! 5. the first one in the file.

use std::collections::HashMap;

use super::key_names::{self, HEAD, Naming, Part};
use super::relatives::{self, SUPPORTED};
use super::state_dict::{TensorEntry, TensorFile, listed, printable};
use crate::data::counted;
use crate::error::{Error, Result};

/// Parts of a name that mark a copy of the weights that were trained.
const COPIES: [&str; 9] =
    ["ema", "swa", "averaged", "teacher", "target", "momentum_encoder", "encoder_k", "encoder_momentum", "model_k"];
/// A limit for hostile files: no more prefixes are tried.
const MOST_CANDIDATES: usize = 64;

/// A network in a file.
#[derive(Debug)]
pub struct Found<T> {
    /// The recogniser's result.
    pub network: T,
    /// The tensors of its body and its head, under torchvision's names where it has one. Metadata and path are those of the file.
    pub weights: TensorFile,
    /// The prefix of its keys in the file, which may be empty.
    pub prefix: String,
    /// Notices for the user: where the weights were found and what was ignored.
    pub notices: Vec<String>,
    /// The modules of a head that is not a single linear layer, as the file names them; empty if it is one, or if there is none.
    pub other_head: Vec<String>,
    /// The tensors of the file that belong to no network.
    pub ignored: Vec<String>,
}

/// Keys that may be those of a network, by position in the file.
struct Candidate {
    prefix: String,
    naming: Naming,
    keys: Vec<(usize, String)>,
    /// A head that was given torchvision's name, as the file names it.
    renamed_head: Option<String>,
    /// See [`Found::other_head`].
    other_head: Vec<String>,
}

/// Finds the network of a file, or the best one under the prefix of [`TensorFile::choosing`]. `recognise` receives a function from
/// torchvision's key names to shapes (in torch's layout), and returns what network has them, or the reason why none does.
///
/// # Errors
/// When `recognise` accepts no part of the file. The message names a reason or the first keys of the file.
pub fn find<T>(
    file: &TensorFile,
    recognise: impl for<'a> Fn(&dyn Fn(&str) -> Option<&'a [usize]>) -> std::result::Result<T, String>,
) -> Result<Found<T>> {
    let mut refused = Vec::new();
    let mut accepted = Vec::new();
    for candidate in candidates(file) {
        let entries = file.entries();
        let shapes: HashMap<&str, &[usize]> =
            candidate.keys.iter().map(|(entry, name)| (name.as_str(), entries[*entry].shape.as_slice())).collect();
        let body = shapes.iter().filter(|(name, _)| !key_names::is_head(name));
        let recognised = match relatives::difference(&body.map(|(name, shape)| (*name, *shape)).collect()) {
            Some(difference) => Err(difference.to_owned()),
            None => recognise(&|name| shapes.get(name).copied()),
        };
        match recognised {
            Ok(network) => accepted.push((candidate, network)),
            Err(reason) => refused.push((candidate.prefix, reason)),
        }
    }
    let is_excluded = |candidate: &Candidate| file.chosen_prefix().is_some_and(|prefix| !candidate.is_behind(prefix));
    if !accepted.is_empty() && accepted.iter().all(|(candidate, _)| is_excluded(candidate)) {
        return Err(no_such_network(file, accepted.iter().map(|(candidate, _)| candidate)));
    }
    // The sort is stable: what is equal stays in the order of the file.
    accepted.sort_by_key(|(candidate, _)| (is_excluded(candidate), candidate.rank()));
    let mut accepted = accepted.into_iter();
    let Some((chosen, network)) = accepted.next() else { return Err(nothing_found(file, &refused)) };
    let others: Vec<Candidate> = accepted.map(|(candidate, _)| candidate).collect();
    let ignored = ignored(file, &chosen, &others);
    let notices = notices(file, &chosen, &others, &ignored);
    let placeholders = chosen.placeholders(file);
    let Candidate { prefix, keys, other_head, .. } = chosen;
    Ok(Found { network, weights: file.with_entries(keys, placeholders), prefix, notices, other_head, ignored })
}

impl Candidate {
    fn rank(&self) -> (bool, bool, bool, usize) {
        let (statistics, final_layer) = (self.has("bn1.running_var"), self.has("fc.weight"));
        (!statistics, self.is_copy(), !final_layer, self.prefix.split('.').count())
    }

    fn is_behind(&self, prefix: &str) -> bool {
        self.prefix.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.') || prefix.is_empty())
    }

    fn is_copy(&self) -> bool {
        self.prefix.split('.').any(|part| {
            COPIES.iter().any(|copy| {
                part == *copy || part.ends_with(&format!("_{copy}")) || part.starts_with(&format!("{copy}_"))
            })
        })
    }

    fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|(_, name)| name == key)
    }

    /// The objects of a `.pth` in place of its tensors, by torchvision's names.
    fn placeholders(&self, file: &TensorFile) -> Vec<(String, String)> {
        let placeholders = file.placeholders().iter().filter_map(|(key, object)| {
            let rest = key.strip_prefix(&self.prefix)?;
            let name = match self.naming.part(rest) {
                Part::Body(name) => name,
                Part::Head => rest.to_owned(),
                Part::Other => return None,
            };
            Some((name, object.clone()))
        });
        placeholders.collect()
    }
}

fn candidates(file: &TensorFile) -> Vec<Candidate> {
    let mut found = Vec::new();
    for entry in file.entries() {
        for naming in Naming::ALL {
            let Some(prefix) = entry.name.strip_suffix(naming.first_key()) else { continue };
            if !is_prefix(prefix) || !file.contains(&format!("{prefix}{}", naming.late_key())) {
                continue;
            }
            found.push(candidate(file, entry, prefix, naming));
            if found.len() == MOST_CANDIDATES {
                return found;
            }
        }
    }
    found
}

/// Everything in the dictionary of the stem `first` that begins with `prefix`; and a head beside it, if there is none inside.
fn candidate(file: &TensorFile, first: &TensorEntry, prefix: &str, naming: Naming) -> Candidate {
    let in_dictionary = |entry: &TensorEntry| entry.nesting() == first.nesting();
    let mut keys = Vec::new();
    let mut head = Vec::new();
    for (position, entry) in file.entries().iter().enumerate().filter(|(_, entry)| in_dictionary(entry)) {
        let Some(rest) = entry.name.strip_prefix(prefix) else { continue };
        match naming.part(rest) {
            Part::Body(name) => keys.push((position, name)),
            Part::Head => head.push((position, rest.to_owned())),
            Part::Other => {}
        }
    }
    let parent = prefix.strip_suffix('.').map(|prefix| prefix.rfind('.').map_or("", |dot| &prefix[..=dot]));
    if let (true, Some(parent)) = (head.is_empty(), parent.filter(|parent| parent.len() >= first.nesting().len())) {
        let beside = file.entries().iter().enumerate().filter(|(_, entry)| in_dictionary(entry));
        let beside = beside.filter_map(|(position, entry)| Some((position, entry.name.strip_prefix(parent)?)));
        head.extend(
            beside.filter(|(_, rest)| key_names::is_head(rest)).map(|(position, rest)| (position, rest.to_owned())),
        );
    }
    // Beside a classifier, the head of an earlier self-supervised training is of no use.
    if head.iter().any(|(_, name)| !key_names::is_projector(name)) {
        head.retain(|(_, name)| !key_names::is_projector(name));
    }
    let linear_layer = linear_layer(file, &keys, &head);
    let mut other_head = Vec::new();
    if linear_layer.is_none() {
        other_head = head
            .iter()
            .map(|(_, name)| name.rsplit_once('.').map_or(&**name, |(module, _)| module).to_owned())
            .collect();
        other_head.dedup();
    }
    let renamed_head = linear_layer.filter(|module| module != HEAD);
    if let Some(module) = &renamed_head {
        head.iter_mut().for_each(|(_, name)| *name = format!("{HEAD}{}", &name[module.len()..]));
    }
    keys.extend(head);
    keys.sort_by_key(|&(position, _)| position);
    Candidate { prefix: prefix.to_owned(), naming, keys, renamed_head, other_head }
}

/// The name of the module, if the head is a single linear layer on the features of the body.
fn linear_layer(file: &TensorFile, body: &[(usize, String)], head: &[(usize, String)]) -> Option<String> {
    let shape = |position: usize| file.entries()[position].shape.as_slice();
    let features = body.iter().filter(|(_, name)| name.starts_with("layer4."));
    let features = features.filter_map(|&(position, _)| match shape(position) {
        &[channels] => Some(channels),
        _ => None,
    });
    let features = features.max()?;
    let [(one, first), (other, second)] = head else { return None };
    let (weight, name, bias) = match (first.strip_suffix(".weight"), second.strip_suffix(".weight")) {
        (Some(name), None) if *second == format!("{name}.bias") => (*one, name, *other),
        (None, Some(name)) if *first == format!("{name}.bias") => (*other, name, *one),
        _ => return None,
    };
    match (shape(weight), shape(bias)) {
        (&[classes, inputs], &[biases]) if classes == biases && inputs == features => {
            (!key_names::is_projector(name)).then(|| name.to_owned())
        }
        _ => None,
    }
}

/// The tensors that belong to no network.
fn ignored(file: &TensorFile, chosen: &Candidate, others: &[Candidate]) -> Vec<String> {
    let mut used = vec![false; file.entries().len()];
    let keys = std::iter::once(chosen).chain(others).flat_map(|network| &network.keys);
    keys.for_each(|&(position, _)| used[position] = true);
    file.names().zip(used).filter(|(_, used)| !used).map(|(name, _)| name.to_owned()).collect()
}

fn notices(file: &TensorFile, chosen: &Candidate, others: &[Candidate], ignored: &[String]) -> Vec<String> {
    let mut notices = Vec::new();
    let kind = if chosen.is_copy() { "averaged or copied weights (such as EMA)" } else { "weights" };
    if !chosen.prefix.is_empty() {
        notices.push(format!("{kind} found under `{}`", printable(&chosen.prefix)));
    }
    if let Some(origin) = chosen.naming.origin() {
        notices.push(format!("the weights have the key names of {origin}"));
    }
    if let Some(head) = &chosen.renamed_head {
        notices.push(format!("`{}` is the final layer", printable(head)));
    }
    if !others.is_empty() {
        let places = listed(others.iter().map(|other| format!("`{}`", printable(&other.prefix))));
        notices.push(format!(
            "ignored {}: {places}; use --weights-key to choose another",
            counted(others.len(), "other network", "other networks")
        ));
    }
    if !ignored.is_empty() {
        let names = listed(ignored.iter().map(|name| printable(name)));
        notices.push(format!(
            "ignored {} that the network does not have: {names}",
            counted(ignored.len(), "tensor", "tensors")
        ));
    }
    if !file.foreign_objects().is_empty() {
        let names = listed(file.foreign_objects().iter().map(|name| printable(name)));
        notices.push(format!("ignored Python objects (nothing in the file was run): {names}"));
    }
    notices
}

fn no_such_network<'a>(file: &TensorFile, candidates: impl ExactSizeIterator<Item = &'a Candidate>) -> Error {
    let places = listed(candidates.map(|candidate| format!("`{}`", printable(&candidate.prefix))));
    let chosen = printable(file.chosen_prefix().unwrap_or_default());
    Error::new(format!("{}: no network found under `{chosen}`, expected one of {places}", file.path().display()))
}

/// Whether a text can stand before all names of a network.
fn is_prefix(text: &str) -> bool {
    text.is_empty() || text.ends_with('.')
}

fn nothing_found(file: &TensorFile, refused: &[(String, String)]) -> Error {
    const LIST: &str = "run `retune inspect` to list the tensors of the file";
    let shown = file.path().display();
    let is_own = |entry: &TensorEntry| entry.name.starts_with("param/");
    let no_network = |prefix: &str, reason: &str, hint: &str| {
        let place = if prefix.is_empty() { String::new() } else { format!(" under `{}`", printable(prefix)) };
        Error::new(format!("{shown}: the network{place} is not supported: {}", printable(reason))).hint(hint)
    };
    // Of several blocks that look like networks, the outermost one is the most informative.
    let error = if let Some((prefix, reason)) = refused.iter().min_by_key(|(prefix, _)| prefix.len()) {
        no_network(prefix, reason, SUPPORTED)
    } else if file.entries().iter().any(is_own) {
        Error::new(format!("{shown}: a checkpoint or reference file of retune, not a model"))
            .hint("give the model.safetensors of the run")
    } else if let Some((prefix, incomplete)) = incomplete(file) {
        match incomplete {
            Incomplete::Relative(difference) => no_network(&prefix, difference, SUPPORTED),
            Incomplete::Lacks(key) => {
                Error::new(format!("{shown}: an incomplete ResNet: there is no {}{key}", printable(&prefix))).hint(LIST)
            }
        }
    } else {
        let found = match (file.entries(), relatives::family(file.names())) {
            ([], _) => "it contains no tensors".to_owned(),
            (_, Some(family)) => format!("it seems to be {family}, by its keys {}", file.first_names()),
            (_, None) => format!("its keys are {}", file.first_names()),
        };
        Error::new(format!("{shown}: no ResNet found: {found}")).hint(SUPPORTED)
    };
    match file.placeholders() {
        [] => error,
        [(key, object), ..] => error.hint(no_tensor(key, object)),
    }
}

/// What to do where an object of Python is in the place of a tensor.
pub(crate) fn no_tensor(key: &str, object: &str) -> String {
    format!(
        "`{}` is not a plain tensor in the file: {}; save plain tensors: torch.save(model.state_dict(), FILE)",
        printable(key),
        not_plain(object)
    )
}

/// Why a tensor that depends on this object of Python cannot be read.
pub(crate) fn not_plain(object: &str) -> String {
    match object.rsplit_once('.') {
        Some(("torch._utils", "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor")) => "it is sparse".into(),
        Some(("torch._utils", "_rebuild_qtensor")) => "it is quantised".into(),
        Some(("torch", name)) if name.starts_with("Complex") || name.starts_with("complex") => "it is complex".into(),
        Some(("torch", name)) if name.starts_with("float") || name.starts_with("uint") => {
            format!("its elements are of type {name}, expected F32, F16, BF16 or F64")
        }
        _ => format!("it depends on the Python object {object}, which was ignored and not run"),
    }
}

/// Why the blocks in a file are not a whole ResNet.
enum Incomplete {
    Relative(&'static str),
    Lacks(&'static str),
}

/// The prefix of blocks that are not those of a whole ResNet, and what is wrong with them.
fn incomplete(file: &TensorFile) -> Option<(String, Incomplete)> {
    let before_blocks = |name: &str| Some(name.split_once("layer1.0.")?.0.to_owned());
    let prefix = file.names().filter_map(before_blocks).find(|prefix| is_prefix(prefix))?;
    let within = file.entries().iter().filter_map(|entry| Some((entry.name.strip_prefix(&prefix)?, &*entry.shape)));
    let shapes: HashMap<&str, &[usize]> = within.collect();
    let needed = [Naming::Torchvision.first_key(), Naming::Torchvision.late_key()];
    let lacks = || needed.into_iter().find(|key| !shapes.contains_key(key)).map(Incomplete::Lacks);
    relatives::difference(&shapes).map(Incomplete::Relative).or_else(lacks).map(|incomplete| (prefix, incomplete))
}
