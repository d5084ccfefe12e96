//! Contents of the folders of a data set that are not read: files of systems and programs, images of unsupported types, and images
//! outside of the class folders.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::format;
use crate::error::{Error, Result};

/// Folders that are never a class. So is every folder whose name starts with a dot.
const FOREIGN_FOLDERS: [&str; 7] =
    ["__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"];

/// Files that are never an image, in any folder. So is every file whose name starts with `._`.
const FOREIGN_FILES: [&str; 4] = [".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini"];

/// The files that are not read; see the module documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotRead {
    /// Files and folders of systems and programs: how often each name occurs. Files `._*` are counted together.
    pub foreign: BTreeMap<String, usize>,
    /// Images of types that are not supported, in the order in which they were found.
    pub unsupported: Vec<UnsupportedFile>,
    /// Images beside the class folders, which have no class.
    pub outside: Vec<PathBuf>,
}

/// An image of a type that is not supported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsupportedFile {
    /// The file.
    pub path: PathBuf,
    /// The name of its type, such as `HEIC`.
    pub kind: String,
    /// The usual extension of its type, if the type is supported and only the name hides it.
    pub rename_to: Option<&'static str>,
}

impl UnsupportedFile {
    /// What to do with it.
    fn advice(&self) -> String {
        match self.rename_to {
            Some(extension) => format!("give the file the ending .{extension}"),
            None => format!("convert the file to JPEG or PNG; images may be {}", format::DECODED),
        }
    }
}

/// The meaning of a file for a data set.
pub(super) enum FileKind {
    /// An image to read.
    Image,
    /// An image that is not read: the name of its type, and the extension that it should have if only its name is wrong.
    Unsupported(String, Option<&'static str>),
    /// Counted under this name.
    Foreign(String),
    /// Anything else, such as a list of labels.
    Other,
}

/// The name under which a folder of a system or program is counted.
pub(super) fn foreign_folder(name: &OsStr) -> Option<String> {
    let name = name.to_string_lossy();
    (name.starts_with('.') || FOREIGN_FOLDERS.contains(&&*name)).then(|| name.into_owned())
}

/// The kind of a file, by its name or, if it has no extension, by its contents.
pub(super) fn kind_of(path: &Path, name: &OsStr) -> FileKind {
    let text = name.to_string_lossy();
    if text.starts_with("._") {
        return FileKind::Foreign("._*".into());
    }
    if FOREIGN_FILES.contains(&&*text) {
        return FileKind::Foreign(text.into_owned());
    }
    if format::FileKind::is_named_as_image(path) {
        return FileKind::Image;
    }
    match (format::FileKind::by_extension(path), path.extension()) {
        (Some(kind), _) if kind.is_image() => FileKind::Unsupported(kind.name.into(), None),
        (Some(_), _) => FileKind::Other,
        (None, extension) => match (format::FileKind::of_file(path).filter(|kind| kind.is_image()), extension) {
            (None, _) => FileKind::Other,
            (Some(kind), None) if kind.format.is_some() => FileKind::Image,
            (Some(kind), None) => FileKind::Unsupported(kind.name.into(), None),
            (Some(kind), Some(extension)) => FileKind::Unsupported(
                format!("{} with the ending .{}", kind.name, extension.display()),
                kind.format.and(kind.extensions.first().copied()),
            ),
        },
    }
}

impl NotRead {
    pub(super) fn add_foreign(&mut self, name: String) {
        *self.foreign.entry(name).or_default() += 1;
    }

    /// Adds the counts of another folder.
    pub fn add(&mut self, other: &Self) {
        for (name, count) in &other.foreign {
            *self.foreign.entry(name.clone()).or_default() += count;
        }
        self.unsupported.extend(other.unsupported.iter().cloned());
        self.outside.extend(other.outside.iter().cloned());
        self.outside.sort();
    }

    /// The number of unsupported images of each type, the most frequent type first.
    pub fn unsupported_counts(&self) -> Vec<(&str, usize)> {
        let mut counts = BTreeMap::new();
        for file in &self.unsupported {
            *counts.entry(file.kind.as_str()).or_default() += 1;
        }
        let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
        counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        counts
    }

    /// `12 files skipped: 9 HEIC, 3 GIF`; none if every image has a supported type.
    pub fn unsupported_line(&self) -> Option<String> {
        let counts: Vec<String> =
            self.unsupported_counts().iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let files = self.unsupported.len();
        (files > 0)
            .then(|| format!("{files} {} skipped: {}", if files == 1 { "file" } else { "files" }, counts.join(", ")))
    }

    /// `2 images outside of the class folders are not used, such as data/1.jpg`; none if there are none.
    pub fn outside_line(&self) -> Option<String> {
        let are = |count: usize| {
            if count == 1 { "image outside of the class folders is" } else { "images outside of the class folders are" }
        };
        let first = self.outside.first()?.display();
        Some(format!("{} {} not used, such as {first}", self.outside.len(), are(self.outside.len())))
    }

    /// `set aside, as it belongs to no class: 2 x .DS_Store`; none if there is nothing of that kind.
    pub fn foreign_line(&self) -> Option<String> {
        let names = self.foreign.iter().map(|(name, count)| match count {
            1 => name.clone(),
            _ => format!("{count} x {name}"),
        });
        (!self.foreign.is_empty())
            .then(|| format!("set aside, as it belongs to no class: {}", names.collect::<Vec<_>>().join(", ")))
    }

    /// ` (3 files skipped: 3 HEIC)`: those below a folder; empty if there are none.
    pub fn found_below(&self, folder: &Path) -> String {
        let files = self.unsupported.iter().filter(|file| file.path.starts_with(folder));
        let found = Self { unsupported: files.cloned().collect(), ..Self::default() };
        found.unsupported_line().map_or(String::new(), |line| format!(" ({line})"))
    }

    /// Notices for the user, one line for each kind.
    pub fn notices(&self) -> Vec<String> {
        let foreign = self.foreign_line();
        let misnamed: Vec<&UnsupportedFile> = self.unsupported.iter().filter(|file| file.rename_to.is_some()).collect();
        let advice = match misnamed.first().and_then(|file| file.rename_to) {
            Some(extension) if misnamed.len() == self.unsupported.len() => {
                format!("give such files the ending of their type, such as .{extension}")
            }
            Some(_) => "give images with a wrong ending that of their type; the other types are not supported".into(),
            None => "these types are not supported".into(),
        };
        let unsupported = self.unsupported_line().map(|line| format!("{line} ({advice})"));
        foreign.into_iter().chain(unsupported).chain(self.outside_line()).collect()
    }

    /// Refuses images that are not used: of types that are not supported, and outside of the class folders.
    ///
    /// # Errors
    /// When there is one.
    pub fn require_all_used(&self) -> Result<()> {
        if let Some(line) = self.outside_line() {
            return Err(
                Error::new(line).hint("move them into the folders of their classes or away, or leave --strict out")
            );
        }
        match (self.unsupported.as_slice(), self.unsupported_line()) {
            ([first, ..], Some(line)) => {
                Err(Error::new(format!("{}: {} is not supported; {line}", first.path.display(), first.kind))
                    .hint(format!("{}; or leave --strict out", first.advice())))
            }
            _ => Ok(()),
        }
    }
}
