//! The folder of a run: which file is where, and what is kept in it.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use super::checkpoint::{Checkpoint, Position};
use crate::error::{Context, Error, Result};
use crate::file::write_atomically;

/// The files of a run's folder.
#[derive(Debug, Clone)]
pub struct RunFolder {
    /// The folder itself.
    pub path: PathBuf,
}

impl RunFolder {
    /// `runs/1`, `runs/2`, ...
    pub fn numbered() -> impl Iterator<Item = Self> {
        (1..100_000).map(|number| Self { path: PathBuf::from(format!("runs/{number}")) })
    }

    /// Whether a run has left something to lose.
    pub fn is_taken(&self) -> bool {
        self.checkpoint().exists() || self.model().exists()
    }

    /// Refuses a folder in which a run has left something to lose. A run that was stopped before its first step has
    /// nothing to lose.
    pub fn require_free(&self) -> Result<()> {
        let path = self.path.display();
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
                .hint("name a folder that can be created and written")
        })
    }

    /// The best model.
    pub fn model(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// All that resuming needs.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint.safetensors")
    }

    /// The recipe and where everything came from.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// What was measured, one JSON object a line.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Gives the newest checkpoint a second name, `checkpoint-EPOCH-BATCH.safetensors` after its position, so that it
    /// survives the next; and removes older ones until, with the next, `kept` are there.
    pub(super) fn keep_checkpoint(&self, kept: usize) -> Result<()> {
        let newest = self.checkpoint();
        if kept > 1 && newest.exists() {
            let Position { epoch, batch, .. } = Checkpoint::open(&newest)?.position;
            let name = self.path.join(format!("checkpoint-{epoch:05}-{batch:06}.safetensors"));
            // Some file systems know no hard links. The copy is only a copy: the checkpoint itself stays where it is.
            if !name.exists() && fs::hard_link(&newest, &name).is_err() {
                let bytes = fs::read(&newest).context(|| format!("cannot read {}", newest.display()))?;
                write_atomically(&name, |writer| writer.write_all(&bytes))?;
            }
        }
        self.remove_older_checkpoints(kept);
        Ok(())
    }

    /// Leaves, with the newest, `kept` checkpoints.
    pub(super) fn remove_older_checkpoints(&self, kept: usize) {
        let mut older = self.older_checkpoints();
        older.truncate(older.len().saturating_sub(kept.saturating_sub(1)));
        for path in older {
            // One that cannot be removed only takes room, and the next time may be luckier.
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
        const OURS: [&str; 6] =
            [".model.safetensors.", ".checkpoint", ".config.json.", ".metrics.jsonl.", ".report.html.", ".curves."];
        let Ok(entries) = fs::read_dir(&self.path) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".tmp") && OURS.iter().any(|ours| name.starts_with(ours)) {
                // One that cannot be removed only takes room.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}
