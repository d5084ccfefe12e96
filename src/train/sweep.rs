//! `sweep.json`: the runs of a sweep, which differ in a few settings and in their seeds, and have their folders in that of the sweep.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::checkpoint::{Checkpoint, Position};
use super::folder::RunFolder;
use super::metrics::Metric;
use super::recipe::Recipe;
use crate::error::{Context, Error, Result};
use crate::file::write_atomically;

/// Several runs on the same images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// The version of the program that started it.
    pub retune: String,
    /// The weights from which all runs start, if any: an absolute path, or the name of a model on the Hugging Face Hub.
    pub weights: Option<PathBuf>,
    /// Which of several networks in the file of weights is meant, as the user gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_key: Option<String>,
    /// The device's name.
    pub device: String,
    /// The device's precision.
    pub precision: String,
    /// Whether the seeds were asked for, so that they are in the names of the runs.
    pub names_seeds: bool,
    /// The runs in the order in which they are trained: all combinations with the first seed, then all with the second.
    pub runs: Vec<SweepRun>,
}

/// A run of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepRun {
    /// The settings that the sweep tries, each with its flag (without dashes) and value as the user gave them.
    pub settings: Vec<(String, String)>,
    /// The recipe.
    pub recipe: Recipe,
}

/// How far a run of a sweep is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// It has trained no step.
    NotStarted,
    /// It can be resumed.
    Interrupted,
    /// It has trained all its epochs.
    Finished,
    /// Its numbers were no longer finite, for this reason.
    Failed(String),
}

impl SweepRun {
    /// The settings as a name, such as `lr=1e-3,schedule=cosine`; empty if the sweep tries none.
    pub fn combination(&self) -> String {
        let settings: Vec<String> = self.settings.iter().map(|(flag, value)| format!("{flag}={value}")).collect();
        settings.join(",")
    }
}

impl Sweep {
    /// The file in a folder.
    pub fn path(folder: &Path) -> PathBuf {
        RunFolder { path: folder.into() }.sweep()
    }

    /// Reads the file in a folder.
    ///
    /// # Errors
    /// When the folder has none, or it cannot be read.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = Self::path(folder);
        let doing = || format!("cannot read {}", path.display());
        let sweep: Self = serde_json::from_str(&fs::read_to_string(&path).context(doing)?).context(doing)?;
        let names: Vec<String> = sweep.runs.iter().map(|run| sweep.name(run)).collect();
        // The names are those of folders, which are to lie in that of the sweep.
        match names.iter().find(|name| name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.')) {
            _ if names.is_empty() => Err(Error::new(format!("{}: it has no runs", path.display()))),
            Some(name) => Err(Error::new(format!("{}: {name:?} is no name of a run", path.display()))),
            None => Ok(sweep),
        }
    }

    /// Writes it atomically.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context(|| "cannot write sweep.json")? + "\n";
        write_atomically(&Self::path(folder), |writer| writer.write_all(text.as_bytes()))
    }

    /// The name of a run, which is also that of its folder: `lr=1e-3,seed=2`.
    pub fn name(&self, run: &SweepRun) -> String {
        let seed = self.names_seeds.then(|| format!("seed={}", run.recipe.seed));
        let parts: Vec<String> =
            Some(run.combination()).filter(|name| !name.is_empty()).into_iter().chain(seed).collect();
        parts.join(",")
    }

    /// The folder of a run of the sweep in `folder`.
    pub fn folder_of(&self, folder: &Path, run: &SweepRun) -> RunFolder {
        RunFolder { path: folder.join(self.name(run)) }
    }

    /// The seeds in their order.
    pub fn seeds(&self) -> Vec<u64> {
        let mut seeds: Vec<u64> = self.runs.iter().map(|run| run.recipe.seed).collect();
        seeds.dedup();
        seeds
    }

    /// The runs of each combination of settings, in the order of their seeds.
    pub fn combinations(&self) -> Vec<(String, Vec<&SweepRun>)> {
        let mut all: Vec<(String, Vec<&SweepRun>)> = Vec::new();
        for run in &self.runs {
            let name = run.combination();
            match all.iter_mut().find(|(known, _)| *known == name) {
                Some((_, runs)) => runs.push(run),
                None => all.push((name, vec![run])),
            }
        }
        all
    }
}

impl RunFolder {
    /// How far the run in this folder is, if it follows `recipe`.
    ///
    /// # Errors
    /// When the checkpoint cannot be read, or belongs to a run with another recipe.
    pub fn state(&self, recipe: &Recipe) -> Result<RunState> {
        if !self.checkpoint().exists() {
            return Ok(RunState::NotStarted);
        }
        let checkpoint = Checkpoint::open(&self.checkpoint())?;
        if checkpoint.recipe != *recipe {
            let message = format!("the run in {} does not have the recipe of the sweep", self.path.display());
            return Err(Error::new(message).hint("remove that folder to train the run again"));
        }
        let metrics = fs::read_to_string(self.metrics()).unwrap_or_default();
        // Of a run that goes on, the line is removed.
        let last = metrics.lines().last().and_then(|line| serde_json::from_str(line).ok());
        Ok(match last {
            Some(Metric::Stopped { reason, .. }) => RunState::Failed(reason),
            // Nothing was trained yet, so it can start again.
            _ if checkpoint.position == Position::default() => RunState::NotStarted,
            _ if checkpoint.position.is_over(recipe) => RunState::Finished,
            _ => RunState::Interrupted,
        })
    }
}
