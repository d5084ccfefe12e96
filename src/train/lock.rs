//! The lock of a run's folder: only one process at a time writes to it.
//!
//! The operating system holds the lock and releases it when the process ends, however it ends, so that no lock is ever stale. The
//! file contains the name of the process that holds it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The name of the locked file in the run's folder.
const FILE: &str = ".lock";

/// A folder that is locked until this value is dropped.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    file: File,
    /// The reason if the folder could not be locked.
    unlockable: Option<String>,
}

impl FolderLock {
    /// Locks an existing folder.
    ///
    /// # Errors
    /// When another process has locked it; the message names the process. When the file of the lock cannot be created.
    pub fn acquire(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        loop {
            let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = opened.map_err(|cause| {
                Error::new(format!("cannot create {}: {cause}", path.display()))
                    .hint("choose a folder that can be written with --out")
            })?;
            let unlockable = match outcome(file.try_lock()) {
                Outcome::Locked => None,
                Outcome::Taken => return Err(taken(folder, &mut file)),
                Outcome::Unsupported(reason) => Some(reason),
            };
            // The process that held it may have removed the file since it was opened here.
            if unlockable.is_none() && !is_at(&file, &path) {
                continue;
            }
            let owner = format!("process {} on {}\n", std::process::id(), gethostname::gethostname().to_string_lossy());
            // The lock is effective without the contents, even if the disk is full.
            let _ = file.set_len(0).and_then(|()| file.write_all(owner.as_bytes()));
            return Ok(Self { path, file, unlockable });
        }
    }

    /// A notice for the user if the file system has no locks.
    pub fn notice(&self) -> Option<String> {
        let reason = self.unlockable.as_ref()?;
        let folder = self.path.parent().unwrap_or(&self.path).display();
        Some(format!("{folder} cannot be locked ({reason}): make sure that no other run writes to it"))
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Removed while it is locked, so that no other process locks a file that disappears. On systems other than Unix, another process
        // could not detect the removal, so the file stays; it does no harm.
        #[cfg(unix)]
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
        let _ = self.file.unlock();
    }
}

enum Outcome {
    Locked,
    Taken,
    Unsupported(String),
}

/// Some network file systems have no locks.
fn outcome(tried: Result<(), TryLockError>) -> Outcome {
    match tried {
        Ok(()) => Outcome::Locked,
        Err(TryLockError::WouldBlock) => Outcome::Taken,
        Err(TryLockError::Error(cause)) => Outcome::Unsupported(cause.to_string()),
    }
}

fn taken(folder: &Path, file: &mut File) -> Error {
    let mut owner = String::new();
    // It is empty if the other process has not written to it yet.
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut owner));
    let owner = match owner.trim() {
        "" => "another process",
        owner => owner,
    };
    Error::new(format!("a run in {} is in progress: {owner}", folder.display()))
        .hint("wait until it ends, stop it, or use another folder")
}

/// Whether `path` still is the opened file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(opened), Ok(there)) => identity(opened) == identity(there),
        _ => false,
    }
}

/// The file is never removed.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_told_who_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::acquire(folder.path()).unwrap();
        assert_eq!(lock.notice(), None);
        let refused = FolderLock::acquire(folder.path()).unwrap_err();
        let owner = format!("is in progress: process {} on ", std::process::id());
        assert!(refused.message().contains(&owner), "{refused}");
        drop(lock);
        assert!(!folder.path().join(FILE).exists() || cfg!(not(unix)));
        FolderLock::acquire(folder.path()).unwrap();
    }

    #[test]
    fn a_file_that_nobody_holds_is_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "process 1 on a machine that was switched off\n").unwrap();
        FolderLock::acquire(folder.path()).unwrap();
    }

    #[test]
    fn a_file_system_without_locks_is_told_of() {
        let cause = std::io::Error::other("no locks available");
        assert!(
            matches!(outcome(Err(TryLockError::Error(cause))), Outcome::Unsupported(reason) if reason == "no locks available")
        );
        assert!(matches!(outcome(Err(TryLockError::WouldBlock)), Outcome::Taken));
    }
}
