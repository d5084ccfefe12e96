//! Labels in a table beside a folder of images: a CSV file with a line for each image.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::decode::DecodeOptions;
use super::format;
use super::image_folder::{ImageFolder, Sample, collect_samples, counted, first_names, normal_form, require_folder};
use super::not_read::{FileKind, NotRead, UnsupportedFile, kind_of};
use crate::error::{Context, Error, Result};

/// Names of the column of files, in lower case.
const PATHS: [&str; 12] = [
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "image_name",
    "image_id",
    "id",
    "id_code",
];
/// Names of the column of classes, in lower case.
const LABELS: [&str; 6] = ["label", "class", "category", "label_name", "class_name", "category_name"];

/// What separates values.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];

/// The images that a table names.
pub(super) struct Table {
    pub(super) images: ImageFolder,
    pub(super) notices: Vec<String>,
}

/// A file in the table.
struct Entry {
    /// Without links, so that two lines of one file are seen.
    real: PathBuf,
    path: PathBuf,
    label: String,
    line: u64,
}

impl Table {
    /// Reads the labels of the images in `root` from the CSV file `table`. Its first line names the columns; files are named
    /// relative to `root` or to the folder of the table, with or without extension. The classes are the labels, in byte order.
    ///
    /// # Errors
    /// When a file cannot be read, the table lacks a column, a file that it names does not exist, or a file has two labels.
    pub(super) fn open(root: &Path, table: &Path) -> Result<Self> {
        require_folder(root)?;
        let entries = unique(table, read(root, table)?)?;
        let mut classes: Vec<String> = entries.iter().map(|entry| entry.label.clone()).collect();
        classes.sort();
        classes.dedup();
        let index: HashMap<&str, usize> =
            classes.iter().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
        let (notices, mut not_read) = beside(root, table, &entries)?;
        let mut samples = Vec::with_capacity(entries.len());
        for Entry { path, label, .. } in &entries {
            match kind_of(path, path.file_name().unwrap_or_default()) {
                FileKind::Unsupported(kind) => not_read.unsupported.push(UnsupportedFile { path: path.clone(), kind }),
                _ => samples.push(Sample { path: path.clone(), class: index[label.as_str()] }),
            }
        }
        not_read.unsupported.sort_by(|a, b| a.path.cmp(&b.path));
        samples.sort_by(|a, b| (a.class, a.path.as_os_str()).cmp(&(b.class, b.path.as_os_str())));
        let images =
            ImageFolder { root: root.to_path_buf(), classes, samples, decoding: DecodeOptions::default(), not_read };
        Ok(Self { images, notices })
    }
}

/// The lines of the table, with the files that they name.
fn read(root: &Path, table: &Path) -> Result<Vec<Entry>> {
    let shown = table.display();
    let bytes = fs::read(table).context(|| format!("cannot read the labels in {shown}"))?;
    let unreadable = |error: csv::Error| {
        Error::new(format!("cannot read the labels in {shown}: {error}")).hint("save the table as CSV in UTF-8")
    };
    let (separator, path_column, label_column) = columns(table, &bytes)?;
    let mut reader = reader(&bytes, separator);
    let (mut entries, mut missing) = (Vec::new(), Vec::new());
    for record in reader.records() {
        let record = record.map_err(unreadable)?;
        let line = record.position().map_or(0, csv::Position::line);
        let (name, label) = (&record[path_column], normal_form(&record[label_column]));
        if name.is_empty() || label.is_empty() {
            let what = if name.is_empty() { "file" } else { "label" };
            return Err(Error::new(format!("{shown}, line {line}: expected a {what}, found nothing"))
                .hint("complete the line, or remove it"));
        }
        match find(root, table, name) {
            Some((path, real)) => entries.push(Entry { real, path, label, line }),
            None => missing.push((line, name.to_string())),
        }
    }
    if let Some((line, name)) = missing.first() {
        return Err(Error::new(format!(
            "{shown} names {} that {} not exist in {}, such as {name} in line {line}",
            counted(missing.len(), "file", "files"),
            if missing.len() == 1 { "does" } else { "do" },
            root.display()
        ))
        .hint("name files relative to the folder of images or to that of the table, and remove lines without a file"));
    }
    if entries.is_empty() {
        return Err(Error::new(format!("{shown} has no line with a label")).hint("add a line for each image"));
    }
    Ok(entries)
}

/// What separates values in the table, and the columns of files and of labels.
fn columns(table: &Path, bytes: &[u8]) -> Result<(u8, usize, usize)> {
    let mut found = String::new();
    for separator in SEPARATORS {
        let header = match reader(bytes, separator).headers() {
            Ok(header) => header.clone(),
            Err(_) => continue,
        };
        let place = |known: &[&str]| {
            // The order of the known names decides where several columns have one.
            known.iter().find_map(|known| {
                header.iter().position(|name| name.to_lowercase().replace([' ', '-'], "_") == **known)
            })
        };
        if let (Some(path), Some(label)) = (place(&PATHS), place(&LABELS)) {
            return Ok((separator, path, label));
        }
        let names: Vec<String> = header.iter().map(str::to_string).collect();
        if found.is_empty() || names.len() > 1 {
            found = first_names(&names);
        }
    }
    Err(Error::new(format!(
        "{}: expected the columns path and label in the first line, found {}",
        table.display(),
        if found.is_empty() { "none" } else { &found }
    ))
    .hint(format!(
        "name the column of files one of {}, and that of classes one of {}",
        PATHS.join(" "),
        LABELS.join(" ")
    )))
}

fn reader(bytes: &[u8], separator: u8) -> csv::Reader<&[u8]> {
    csv::ReaderBuilder::new().delimiter(separator).trim(csv::Trim::All).from_reader(bytes)
}

/// The file that a line names, and its path without links.
fn find(root: &Path, table: &Path, name: &str) -> Option<(PathBuf, PathBuf)> {
    let is_whole = format::FileKind::is_named_as_image(Path::new(name));
    let extensions = if is_whole { String::new() } else { format::FileKind::image_extensions() };
    let upper = extensions.to_uppercase();
    let endings: Vec<&str> =
        std::iter::once("").chain(extensions.split_whitespace()).chain(upper.split_whitespace()).collect();
    [Some(root), table.parent()].into_iter().flatten().find_map(|folder| {
        let paths = endings.iter().map(|ending| folder.join(format!("{name}{ending}")));
        paths.filter(|path| path.is_file()).find_map(|path| Some((path.clone(), fs::canonicalize(path).ok()?)))
    })
}

/// The entries without those that say the same twice.
fn unique(table: &Path, entries: Vec<Entry>) -> Result<Vec<Entry>> {
    let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
    let mut places: HashMap<PathBuf, usize> = HashMap::new();
    for entry in entries {
        match places.get(&entry.real).map(|&place| &kept[place]) {
            Some(earlier) if earlier.label != entry.label => {
                return Err(Error::new(format!(
                    "{}: {} has the label {} in line {}, and {} in line {}",
                    table.display(),
                    entry.path.display(),
                    earlier.label,
                    earlier.line,
                    entry.label,
                    entry.line
                ))
                .hint("keep one of the lines: an image has one class"));
            }
            Some(_) => {}
            None => {
                places.insert(entry.real.clone(), kept.len());
                kept.push(entry);
            }
        }
    }
    Ok(kept)
}

/// What lies in the folder and not in the table: images, which a notice counts, and what is never an image.
fn beside(root: &Path, table: &Path, entries: &[Entry]) -> Result<(Vec<String>, NotRead)> {
    let (mut found, mut not_read) = (Vec::new(), NotRead::default());
    collect_samples(root, 0, &mut found, &mut not_read)?;
    // Of these, only those in the table count.
    not_read.unsupported.clear();
    let named: std::collections::HashSet<&PathBuf> = entries.iter().map(|entry| &entry.real).collect();
    let is_named = |sample: &Sample| fs::canonicalize(&sample.path).is_ok_and(|real| named.contains(&real));
    let left: Vec<&Sample> = found.iter().filter(|sample| !is_named(sample)).collect();
    let notices = left.first().map(|first| {
        format!(
            "{} in {} {} no label in {} and {} not used, such as {}",
            counted(left.len(), "image", "images"),
            root.display(),
            if left.len() == 1 { "has" } else { "have" },
            table.display(),
            if left.len() == 1 { "is" } else { "are" },
            first.path.display()
        )
    });
    Ok((notices.into_iter().collect(), not_read))
}
