//! The folder of a run, and the files in it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Component, Path, PathBuf};

use super::checkpoint::{Checkpoint, Position};
use crate::data::Splits;
use crate::error::{Context, Error, Result};
use crate::file::write_atomically;

/// The folder that contains the runs with numbers as names.
const RUNS: &str = "runs";

/// The files of a run's folder.
#[derive(Debug, Clone)]
pub struct RunFolder {
    /// The folder itself.
    pub path: PathBuf,
}

impl RunFolder {
    /// A placeholder for a numbered folder, until the run creates one.
    pub const NUMBERED: &str = "runs/N";

    /// Creates the first of `runs/1`, `runs/2`, ... that does not exist. Two processes never get the same one.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn numbered() -> Result<Self> {
        let names = (1..100_000).map(|number| Path::new(RUNS).join(number.to_string()));
        let path =
            reserve(names)?.ok_or_else(|| Error::new(format!("{RUNS}/ is full")).hint("name a folder with --out"))?;
        Ok(Self { path })
    }

    /// The existing folder `runs/N` with the largest number that contains a checkpoint, or a sweep.
    pub fn last_numbered() -> Option<Self> {
        let entries = fs::read_dir(RUNS).ok()?;
        let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
        let folders = numbers.map(|number| (number, Self { path: Path::new(RUNS).join(number.to_string()) }));
        let runs = folders.filter(|(_, folder)| folder.checkpoint().exists() || folder.sweep().exists());
        runs.max_by_key(|(number, _)| *number).map(|(_, folder)| folder)
    }

    /// Rejects a folder that contains a part of the data set, or is a part of it: the files of a run, such as its curves, would be taken for
    /// images.
    ///
    /// # Errors
    /// When that is the case. Paths that do not exist are accepted.
    pub fn require_apart(&self, data: &Path, splits: &Splits) -> Result<()> {
        let Some(out) = real_path(&self.path) else { return Ok(()) };
        let mut folders = BTreeSet::from([data]);
        // Folders of splits and of classes may be links to other places.
        for part in splits.parts() {
            folders.insert(&part.root);
            folders.extend(part.samples.iter().filter_map(|sample| sample.path.parent()));
        }
        for folder in folders {
            let Some(real) = real_path(folder) else { continue };
            let relation = match (out.starts_with(&real), real.starts_with(&out)) {
                (true, true) => "is the folder of images",
                (true, false) => "is inside the folder of images",
                (false, true) => "contains the folder of images",
                (false, false) => continue,
            };
            return Err(Error::usage(format!(
                "the run's folder {} {relation} {}",
                self.path.display(),
                folder.display()
            ))
            .hint("choose a folder outside the data set with --out"));
        }
        Ok(())
    }

    /// Rejects a folder that contains results of a run. A run that was stopped before its first step has
    /// none.
    pub fn require_free(&self) -> Result<()> {
        let path = self.path.display();
        if self.sweep().exists() {
            return Err(Error::new(format!("there is already a sweep in {path}"))
                .hint("give --resume to continue it, or another folder"));
        }
        let has_steps = || {
            Checkpoint::open(&self.checkpoint()).map_or(true, |checkpoint| checkpoint.position != Position::default())
        };
        if self.checkpoint().exists() && has_steps() {
            return Err(Error::new(format!("there is already a run in {path}"))
                .hint("give --resume to continue it, or another folder"));
        }
        if self.model().exists() {
            return Err(Error::new(format!("there is already a model in {path}")).hint("give another folder"));
        }
        Ok(())
    }

    /// Creates the folder of a new run.
    pub fn create(&self) -> Result<()> {
        self.require_free()?;
        fs::create_dir_all(&self.path).map_err(|cause| {
            Error::new(format!("cannot create the folder {}: {cause}", self.path.display()))
                .hint("choose a folder that can be created and written")
        })
    }

    /// The best model.
    pub fn model(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint.safetensors")
    }

    /// What a sweep is, if the folder has one and not a run.
    pub fn sweep(&self) -> PathBuf {
        self.path.join("sweep.json")
    }

    /// The recipe and the sources of data and weights.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// The recipe, as a file for another run.
    pub fn recipe(&self) -> PathBuf {
        self.path.join("recipe.toml")
    }

    /// The names, sizes and classes of the images, one JSON list per line.
    pub fn images(&self) -> PathBuf {
        self.path.join("images.jsonl")
    }

    /// Duplicates among the images, and other problems of the data set.
    pub fn data_check(&self) -> PathBuf {
        self.path.join("data_check.json")
    }

    /// The metrics, one JSON object per line.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Gives the newest checkpoint a second name, `checkpoint-EPOCH-BATCH.safetensors` after its position, so that the next
    /// one does not replace it; and removes older ones so that, with the next one, `kept` remain.
    pub(super) fn keep_checkpoint(&self, kept: usize) -> Result<()> {
        let newest = self.checkpoint();
        if kept > 1 && newest.exists() {
            let Position { epoch, batch, .. } = Checkpoint::open(&newest)?.position;
            let name = self.path.join(format!("checkpoint-{epoch:05}-{batch:06}.safetensors"));
            // Some file systems have no hard links. Then the file is copied; the checkpoint itself stays in place.
            if !name.exists() && fs::hard_link(&newest, &name).is_err() {
                let bytes = fs::read(&newest).context(|| format!("cannot read {}", newest.display()))?;
                write_atomically(&name, |writer| writer.write_all(&bytes))?;
            }
        }
        self.remove_older_checkpoints(kept);
        Ok(())
    }

    /// Keeps `kept` checkpoints, including the newest.
    pub(super) fn remove_older_checkpoints(&self, kept: usize) {
        let mut older = self.older_checkpoints();
        older.truncate(older.len().saturating_sub(kept.saturating_sub(1)));
        for path in older {
            // A file that cannot be removed only wastes space; the next attempt may succeed.
            let _ = fs::remove_file(path);
        }
    }

    /// The checkpoints before the newest, the oldest first.
    pub fn older_checkpoints(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Vec::new() };
        let is_older = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let position = name.strip_prefix("checkpoint-").and_then(|name| name.strip_suffix(".safetensors"));
            position.is_some_and(|position| position.chars().all(|c| c.is_ascii_digit() || c == '-'))
        };
        let mut older: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_older).collect();
        older.sort();
        older
    }

    /// Removes the temporary files of a run that was killed while it wrote.
    pub fn remove_leftovers(&self) {
        const OURS: [&str; 11] = [
            ".model.safetensors.",
            ".checkpoint",
            ".config.json.",
            ".recipe.toml.",
            ".images.jsonl.",
            ".data_check.json.",
            ".metrics.jsonl.",
            ".report.html.",
            ".curves.",
            ".sweep.json.",
            ".comparison.html.",
        ];
        let Ok(entries) = fs::read_dir(&self.path) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".tmp") && OURS.iter().any(|ours| name.starts_with(ours)) {
                // A file that cannot be removed only wastes space.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Creates the first of these folders that does not exist; `None` if all do. Only one process can create a folder, so two never
/// get the same one.
///
/// # Errors
/// When it cannot be created.
pub fn reserve(names: impl Iterator<Item = PathBuf>) -> Result<Option<PathBuf>> {
    for path in names {
        let doing = || format!("cannot create the folder {}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).context(doing)?;
        }
        match fs::create_dir(&path) {
            Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {}
            created => return created.context(doing).map(|()| Some(path)),
        }
    }
    Ok(None)
}

/// The path without links, even if the folder does not exist yet.
fn real_path(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    let existing = path.ancestors().find(|folder| folder.exists())?;
    let mut real = fs::canonicalize(existing).ok()?;
    for part in path.strip_prefix(existing).ok()?.components() {
        match part {
            Component::ParentDir => drop(real.pop()),
            part => real.push(part),
        }
    }
    Some(real)
}
