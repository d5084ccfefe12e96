//! Zip archives of others, which may be hostile: nothing lands outside the folder, and nothing grows without bound.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use zip::ZipArchive;

use crate::error::{Context, Error, Result};

/// How much an archive may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Files and folders.
    pub entries: usize,
    /// Bytes of all files together.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 200_000, bytes: 8 << 30 }
    }
}

/// Unpacks an archive to `folder`, which must not be there yet. Where all of it lies in one top folder, that folder's content is
/// what `folder` gets. Returns the number of files.
///
/// # Errors
/// When the archive is damaged, encrypted or larger than `limits`; when a name is absolute, leaves the folder, is there twice, or
/// is a link. Nothing is left behind then.
pub fn unpack(archive: &Path, folder: &Path, limits: Limits) -> Result<usize> {
    let shown = archive.display();
    if folder.exists() {
        return Err(
            Error::new(format!("{} is there already", folder.display())).hint("remove it, or give another folder")
        );
    }
    let damaged = |cause: &dyn std::fmt::Display| {
        Error::new(format!("{shown}: the archive is damaged: {cause}")).hint("remove it and fetch it again")
    };
    let file = File::open(archive).context(|| format!("cannot open {shown}"))?;
    let mut zip = ZipArchive::new(io::BufReader::new(file)).map_err(|cause| damaged(&cause))?;
    if zip.len() > limits.entries {
        return Err(Error::new(format!("{shown}: {} entries, expected at most {}", zip.len(), limits.entries)));
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).context(|| format!("cannot create the folder {}", parent.display()))?;
    let staging = tempfile::Builder::new()
        .prefix(".unpacking.")
        .tempdir_in(parent)
        .context(|| format!("cannot create a folder in {}", parent.display()))?;

    let (mut names, mut files, mut left) = (HashSet::new(), 0, limits.bytes);
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(|cause| damaged(&cause))?;
        let name = entry.name().map_err(|cause| damaged(&cause))?.into_owned();
        let path = safe_path(&name).map_err(|reason| {
            Error::new(format!("{shown}: the entry {name:?} {reason}; nothing was unpacked"))
                .hint("do not trust this archive")
        })?;
        if entry.is_symlink() {
            return Err(Error::new(format!("{shown}: the entry {name:?} is a link; nothing was unpacked"))
                .hint("do not trust this archive"));
        }
        let is_litter = |component: Component| {
            let name = component.as_os_str().to_string_lossy().into_owned();
            name == "__MACOSX" || name.starts_with('.')
        };
        if path.components().any(is_litter) {
            continue;
        }
        let target = staging.path().join(&path);
        let cannot_write = |cause: io::Error| {
            let error = Error::new(format!("cannot unpack {name:?} to {}: {cause}", parent.display()));
            match cause.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => error.hint("free some space on that disk"),
                _ => error,
            }
        };
        if entry.is_dir() {
            fs::create_dir_all(&target).map_err(cannot_write)?;
            continue;
        }
        // Some file systems take names that differ in case for one.
        if !names.insert(path.to_string_lossy().to_lowercase()) {
            return Err(Error::new(format!("{shown}: the entry {name:?} is there twice; nothing was unpacked")));
        }
        if let Some(above) = target.parent() {
            fs::create_dir_all(above).map_err(cannot_write)?;
        }
        let mut output = File::create_new(&target).map_err(cannot_write)?;
        // Headers may lie about sizes: what counts is what comes out.
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = entry.read(&mut buffer).map_err(|cause| damaged(&cause))?;
            if read == 0 {
                break;
            }
            left = left.checked_sub(read as u64).ok_or_else(|| {
                Error::new(format!("{shown}: it becomes more than {} bytes; nothing was unpacked", limits.bytes))
                    .hint("do not trust this archive")
            })?;
            io::Write::write_all(&mut output, &buffer[..read]).map_err(cannot_write)?;
        }
        files += 1;
    }
    if files == 0 {
        return Err(Error::new(format!("{shown}: there is no file in the archive")));
    }
    let root = single_folder(staging.path());
    make_like_any_other(&root);
    fs::rename(&root, folder).context(|| format!("cannot name {}", folder.display()))?;
    Ok(files)
}

/// The path of an entry, if it stays inside.
fn safe_path(name: &str) -> Result<PathBuf, &'static str> {
    if name.contains(['\\', '\0', ':']) {
        return Err("has a character that paths of archives do not have");
    }
    let path = Path::new(name);
    for component in path.components() {
        match component {
            Component::Normal(_) | Component::CurDir => {}
            Component::ParentDir => return Err("leads out of its folder"),
            Component::RootDir | Component::Prefix(_) => return Err("is an absolute path"),
        }
    }
    Ok(path.components().filter(|component| matches!(component, Component::Normal(_))).collect())
}

/// The only folder in a folder, or that folder.
fn single_folder(folder: &Path) -> PathBuf {
    let entries: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    match entries.as_slice() {
        [only] if only.is_dir() => only.clone(),
        _ => folder.to_path_buf(),
    }
}

/// Temporary folders are private.
fn make_like_any_other(folder: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // One that stays private can still be read by its owner.
        let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o755));
    }
    #[cfg(not(unix))]
    let _ = folder;
}
