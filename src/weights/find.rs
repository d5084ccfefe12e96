//! Finds a network in a file: in any nested dictionary, with any prefix, in any of the known naming schemes.
//!
//! A file may hold one network or several, and tensors that belong to none: optimizer state, a loss with weights, a counter. A
//! network is a prefix `P` and a naming scheme under which the caller's recogniser accepts the keys `P` + `conv1.weight`, ...
//! If there are several, the first of this order is taken:
//!
//! 1. networks that have running statistics, before gradients and optimizer state under the same names, which have none;
//! 2. weights that were trained directly, before copies of them: averages (`ema`, `swa`), `teacher`, MoCo's `encoder_k`;
//! 3. networks that have a final layer, before those that have none;
//! 4. the one with the fewest names in its prefix;
//! 5. the first one in the file.

use std::collections::HashMap;

use super::key_names::{self, HEAD, Naming};
use super::state_dict::{TensorEntry, TensorFile, listed, printable};
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
    /// Its tensors under torchvision's names, and all others with its prefix. Metadata and path are those of the file.
    pub weights: TensorFile,
    /// The prefix of its keys in the file, which may be empty.
    pub prefix: String,
    /// Notices for the user: where the weights were found and what was ignored.
    pub notices: Vec<String>,
}

/// Keys that may be those of a network, by position in the file.
struct Candidate {
    prefix: String,
    naming: Naming,
    keys: Vec<(usize, String)>,
    /// A head that was given torchvision's name, as the file names it.
    renamed_head: Option<String>,
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
        match recognise(&|name| shapes.get(name).copied()) {
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
    let notices = notices(file, &chosen, &others);
    let Candidate { prefix, keys, .. } = chosen;
    Ok(Found { network, weights: file.with_entries(keys), prefix, notices })
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
        match naming.torchvision_name(rest) {
            Some(name) => keys.push((position, name)),
            None if naming.is_head(rest) => head.push((position, rest.to_owned())),
            None => keys.push((position, rest.to_owned())),
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
    let renamed_head = linear_layer(file, &keys, &head).filter(|module| module != HEAD);
    if let Some(module) = &renamed_head {
        head.iter_mut().for_each(|(_, name)| *name = format!("{HEAD}{}", &name[module.len()..]));
    }
    keys.extend(head);
    keys.sort_by_key(|&(position, _)| position);
    Candidate { prefix: prefix.to_owned(), naming, keys, renamed_head }
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

fn notices(file: &TensorFile, chosen: &Candidate, others: &[Candidate]) -> Vec<String> {
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
            count(others.len(), "other network")
        ));
    }
    let mut used = vec![false; file.entries().len()];
    chosen
        .keys
        .iter()
        .chain(others.iter().flat_map(|other| &other.keys))
        .for_each(|&(position, _)| used[position] = true);
    let beside: Vec<&TensorEntry> =
        file.entries().iter().zip(used).filter(|(_, used)| !used).map(|(entry, _)| entry).collect();
    if !beside.is_empty() {
        let names = listed(beside.iter().map(|entry| printable(&entry.name)));
        notices.push(format!("ignored {} that the network does not have: {names}", count(beside.len(), "tensor")));
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
    let shown = file.path().display();
    // Of several blocks that look like networks, the outermost one is the most informative.
    let outermost = refused.iter().min_by_key(|(prefix, _)| prefix.len());
    if let Some((prefix, reason)) = outermost {
        let place = if prefix.is_empty() { String::new() } else { format!(" under `{}`", printable(prefix)) };
        return Error::new(format!("{shown}: the network{place} is not supported: {}", printable(reason)))
            .hint("run `retune inspect` to list the tensors of the file");
    }
    if file.entries().iter().any(|entry| entry.name.starts_with("param/")) {
        return Error::new(format!("{shown}: a checkpoint or reference file of retune, not a model"))
            .hint("give the model.safetensors of the run");
    }
    let late = Naming::Torchvision.late_key();
    let incomplete = file
        .entries()
        .iter()
        .filter_map(|entry| entry.name.strip_suffix("layer1.0.conv1.weight"))
        .find(|prefix| is_prefix(prefix));
    if let Some(prefix) = incomplete {
        return Error::new(format!(
            "{shown}: an incomplete ResNet: there is no {}",
            printable(&format!("{prefix}{late}"))
        ))
        .hint("run `retune inspect` to list the tensors of the file");
    }
    let found = match file.entries() {
        [] => "it contains no tensors".to_owned(),
        _ => format!("its keys are {}", file.first_names()),
    };
    Error::new(format!("{shown}: no ResNet found: {found}"))
        .hint("expected torchvision's key names with any prefix: conv1.weight, layer1.0.conv1.weight, ..., fc.weight")
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
