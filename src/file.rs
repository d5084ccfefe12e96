//! Atomic writing: a reader never sees an incomplete file.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
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
    let previous = fs::metadata(path).ok();
    if let Some(previous) = &previous
        && !previous.is_file()
    {
        let kind = if previous.is_dir() { "a folder" } else { "a device or pipe" };
        return Err(Error::new(format!("cannot write {}: it is {kind}, expected a file", path.display()))
            .hint("choose another file name"));
    }
    try_write(path, previous.as_ref().map(fs::Metadata::permissions), write)
        .map_err(|cause| failure(path, previous.is_some(), &cause))
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
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".tmp");
    // Temporary files are private by default; this one gets the usual permissions, limited by the umask.
    #[cfg(unix)]
    let builder = {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666))
    };
    builder.tempfile_in(folder)
}

fn failure(path: &Path, existed: bool, cause: &io::Error) -> Error {
    let state = if existed { "the previous file is untouched" } else { "no file was written" };
    let error = Error::new(format!("cannot write {}: {cause}; {state}", path.display()));
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            error.hint("free some space on the disk, or write to another one")
        }
        io::ErrorKind::NotFound => error.hint("create the folder first"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => error.hint("choose a writable folder"),
        _ => error,
    }
}
