//! Atomic writing: a reader never sees an incomplete file.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

const BUFFER_BYTES: usize = 1 << 20;

/// Writes `path` atomically: `write` fills a temporary file in the same folder, which is then synced and renamed.
///
/// An existing file keeps its permissions, and a symbolic link keeps its target.
///
/// # Errors
/// When the folder is not writable, when `write` fails, or when the disk is full. The temporary file is then removed, and a
/// previous file at `path` is untouched.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>) -> Result<()> {
    let previous = previous(path)?;
    try_write(path, previous.as_ref().map(fs::Metadata::permissions), write)
        .map_err(|cause| failure(path, previous.is_some(), &cause))
}

/// Checks that [`write_atomically`] can begin to write `path`, so that a long computation is not for nothing. Leaves nothing behind.
///
/// # Errors
/// When the folder is not there or not writable, or when something else than a file is at `path`.
pub fn require_writable(path: &Path) -> Result<()> {
    let previous = previous(path)?;
    let temporary = link_target(path).and_then(|target| temporary_file(&target, folder_of(&target)));
    temporary.map(drop).map_err(|cause| failure(path, previous.is_some(), &cause))
}

/// Like [`require_writable`], and refuses to replace a file that is not `expected`, such as a model or a photo. An empty file may be
/// replaced.
///
/// # Errors
/// Those of [`require_writable`]; a file of another kind.
pub fn require_replaceable(path: &Path, expected: &str, is_expected: impl FnOnce(&Path) -> bool) -> Result<()> {
    require_writable(path)?;
    if fs::metadata(path).is_ok_and(|previous| previous.len() > 0) && !is_expected(path) {
        return Err(Error::new(format!(
            "cannot write {}: there is a file of another kind, expected {expected} or no file",
            path.display()
        ))
        .hint("choose another file name, or delete the file first"));
    }
    Ok(())
}

/// The first bytes of a file, at most 4096; none if it cannot be read.
pub fn start_of(path: &Path) -> Vec<u8> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut start));
    if read.is_ok() { start } else { Vec::new() }
}

/// Whether a file begins with this text, in upper or lower case, after white space.
pub fn begins_with(path: &Path, text: &str) -> bool {
    let start = start_of(path);
    start.trim_ascii_start().get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
}

/// The error of a file that cannot be opened.
pub fn cannot_open(path: &Path, cause: &io::Error) -> Error {
    match cause.kind() {
        io::ErrorKind::NotFound => Error::new(format!("{}: no such file", path.display())),
        _ => Error::new(format!("cannot open {}: {cause}", path.display())),
    }
}

/// The file at `path`, if there is one.
fn previous(path: &Path) -> Result<Option<fs::Metadata>> {
    match fs::metadata(path) {
        Ok(previous) if !previous.is_file() => {
            let kind = if previous.is_dir() { "a folder" } else { "a device or pipe" };
            Err(Error::new(format!("cannot write {}: it is {kind}, expected a file", path.display()))
                .hint("choose another file name"))
        }
        previous => Ok(previous.ok()),
    }
}

fn try_write(
    path: &Path,
    permissions: Option<fs::Permissions>,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> io::Result<()> {
    let target = link_target(path)?;
    let folder = folder_of(&target);
    let mut temporary = temporary_file(&target, folder)?;
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, temporary.as_file_mut());
    write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    if let Some(permissions) = permissions {
        temporary.as_file().set_permissions(permissions)?;
    }
    temporary.as_file().sync_all()?;
    temporary.persist(&target).map_err(|failure| failure.error)?;
    // The new file is in place. Some file systems cannot sync a folder; that is not an error.
    #[cfg(unix)]
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

/// The target of a rename that preserves a symbolic link at `path`.
fn link_target(path: &Path) -> io::Result<PathBuf> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => fs::canonicalize(path),
        _ => Ok(path.to_path_buf()),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary_file(target: &Path, folder: &Path) -> io::Result<NamedTempFile> {
    let name = target.file_name().ok_or_else(|| io::Error::other("the path has no file name"))?;
    let prefix = format!(".{}.", name.to_string_lossy());
    // Opened here, because the library would put the path of the temporary file, which means nothing to a user, into an error, and
    // because its files are private: this one gets the usual permissions, limited by the umask.
    let open = |path: &Path| File::options().read(true).write(true).create_new(true).open(path);
    tempfile::Builder::new().prefix(&prefix).suffix(".tmp").make_in(folder, open)
}

fn failure(path: &Path, existed: bool, cause: &io::Error) -> Error {
    let state = if existed { "the previous file is untouched" } else { "no file was written" };
    let error = Error::new(format!("cannot write {}: {cause}; {state}", path.display()));
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            error.hint("free some space on the disk, or write to another one")
        }
        io::ErrorKind::FileTooLarge => {
            error.hint("raise the limit on file sizes, which `ulimit -f` shows, or write to another disk")
        }
        io::ErrorKind::NotFound => error.hint("create the folder first"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => error.hint("choose a writable folder"),
        io::ErrorKind::NotADirectory => error.hint("choose another folder: a part of this one is a file"),
        _ => error,
    }
}
