//! Unpacks zip archives that are not trusted: no file lands outside the folder, and the unpacked size is limited.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use zip::ZipArchive;

use crate::error::{Context, Error, Result};

/// The largest archive that is unpacked.
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

/// Unpacks an archive to `folder`, which must not exist. A single top-level folder of the archive becomes `folder` itself.
/// Returns the number of files.
///
/// # Errors
/// When the archive is damaged, encrypted or larger than `limits`, or when an entry is a link, occurs twice, or has a path
/// that is absolute or leads out of the folder. Nothing is written then.
pub fn unpack(archive: &Path, folder: &Path, limits: Limits) -> Result<usize> {
    let shown = archive.display();
    if folder.exists() {
        return Err(
            Error::new(format!("{} already exists", folder.display())).hint("remove it, or choose another folder")
        );
    }
    let damaged = |cause: &dyn std::fmt::Display| {
        Error::new(format!("{shown}: the archive is damaged: {cause}")).hint("remove it and download it again")
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
                .hint("the archive may be malicious")
        })?;
        if entry.is_symlink() {
            return Err(Error::new(format!("{shown}: the entry {name:?} is a link; nothing was unpacked"))
                .hint("the archive may be malicious"));
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
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => error.hint("free some space on the disk"),
                _ => error,
            }
        };
        if entry.is_dir() {
            fs::create_dir_all(&target).map_err(cannot_write)?;
            continue;
        }
        // Some file systems ignore case.
        if !names.insert(path.to_string_lossy().to_lowercase()) {
            return Err(Error::new(format!("{shown}: the entry {name:?} occurs twice; nothing was unpacked")));
        }
        if let Some(above) = target.parent() {
            fs::create_dir_all(above).map_err(cannot_write)?;
        }
        let mut output = File::create_new(&target).map_err(cannot_write)?;
        // The sizes in the headers may be wrong: count the bytes that are unpacked.
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = entry.read(&mut buffer).map_err(|cause| damaged(&cause))?;
            if read == 0 {
                break;
            }
            left = left.checked_sub(read as u64).ok_or_else(|| {
                Error::new(format!("{shown}: more than {} bytes when unpacked; nothing was unpacked", limits.bytes))
                    .hint("the archive may be malicious")
            })?;
            io::Write::write_all(&mut output, &buffer[..read]).map_err(cannot_write)?;
        }
        files += 1;
    }
    if files == 0 {
        return Err(Error::new(format!("{shown}: the archive contains no files")));
    }
    let root = single_folder(staging.path());
    make_readable(&root);
    fs::rename(&root, folder).context(|| format!("cannot create {}", folder.display()))?;
    Ok(files)
}

/// The relative path of an entry, or why it is refused.
fn safe_path(name: &str) -> Result<PathBuf, &'static str> {
    if name.contains(['\\', '\0', ':']) {
        return Err("contains a character that is not allowed in paths of archives");
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

/// The single folder in `folder`, or else `folder` itself.
fn single_folder(folder: &Path) -> PathBuf {
    let entries: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    match entries.as_slice() {
        [only] if only.is_dir() => only.clone(),
        _ => folder.to_path_buf(),
    }
}

/// Gives a temporary folder, which is private, the usual permissions.
fn make_readable(folder: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // If this fails, the owner can still read the folder.
        let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o755));
    }
    #[cfg(not(unix))]
    let _ = folder;
}
