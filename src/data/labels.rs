//! Labels in a table beside a folder of images: a CSV file with a line for each image.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::decode::DecodeOptions;
use super::format;
use super::image_folder::{
    ImageFolder, Sample, collect_samples, counted, first_names, normal_form, require_folder, sub_folders,
};
use super::not_read::{FileKind, NotRead, UnsupportedFile, kind_of};
use super::role::Role;
use crate::error::{Context, Error, Result};

/// Names of the column of files, in lower case.
const PATHS: [&str; 16] = [
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "fname",
    "image",
    "image_path",
    "image_name",
    "img",
    "img_path",
    "img_name",
    "image_id",
    "id",
    "id_code",
];
/// Names of the column of classes, in lower case.
const LABELS: [&str; 7] = ["label", "labels", "class", "category", "label_name", "class_name", "category_name"];

/// Names of the column of splits, in lower case.
const SPLITS: [&str; 6] = ["split", "set", "subset", "partition", "dataset_split", "data_split"];

/// The name of fastai's column of splits, which says of every image whether it is one of the validation.
const IS_VALIDATION: &str = "is_valid";

/// What separates values.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];

/// Labels, in lower case, that programs write where there is none.
const NO_LABELS: [&str; 7] = ["nan", "none", "null", "na", "n/a", "#n/a", "<na>"];

/// Longer values are cut in messages.
const SHOWN_CHARACTERS: usize = 60;

/// The images that a table names.
pub(super) struct Table {
    /// All images.
    pub(super) images: ImageFolder,
    /// The split of each image; none if the table has no column of splits.
    roles: Vec<Option<Role>>,
    /// What marks a training image in that column.
    pub(super) training_value: &'static str,
    pub(super) notices: Vec<String>,
}

/// The meaning of the columns of a table.
struct Columns {
    separator: u8,
    path: usize,
    label: usize,
    split: Option<usize>,
    /// Whether that is [`IS_VALIDATION`].
    says_whether_validation: bool,
    /// The names of all others.
    others: Vec<String>,
}

/// A file in the table.
struct Entry {
    /// Without links, so that two lines of one file are seen.
    real: PathBuf,
    path: PathBuf,
    label: String,
    /// The label as it is written.
    spelling: String,
    split: Option<Role>,
    line: u64,
}

impl Table {
    /// Reads the labels of the images in `root` from the CSV file `table`. Its first line names the columns; files are named
    /// relative to `root` or to the folder of the table, with or without extension. The classes are the labels, in byte order.
    ///
    /// # Errors
    /// When a file cannot be read, the table lacks a column, a file that it names does not exist, a file has two labels or splits, or a
    /// split is not known.
    pub(super) fn open(root: &Path, table: &Path) -> Result<Self> {
        require_folder(root)?;
        let bytes = fs::read(table).context(|| format!("cannot read the labels in {}", table.display()));
        let bytes = bytes.map_err(|error| error.hint("check the path; --resume and report read the file again"))?;
        let bytes = in_utf8(table, bytes)?;
        let columns = Columns::of(table, &bytes)?;
        let entries = unique(table, read(root, table, &bytes, &columns)?)?;
        let mut classes: Vec<String> = entries.iter().map(|entry| entry.label.clone()).collect();
        classes.sort();
        classes.dedup();
        let index: HashMap<&str, usize> =
            classes.iter().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
        let (mut notices, mut not_read) = beside(root, table, &entries)?;
        if !columns.others.is_empty() {
            notices.push(format!("columns of {} that are not read: {}", table.display(), first_names(&columns.others)));
        }
        notices.extend(no_labels(table, &entries));
        let mut samples = Vec::with_capacity(entries.len());
        let mut spellings = vec![Vec::new(); classes.len()];
        for Entry { path, label, spelling, split, .. } in &entries {
            let class = index[label.as_str()];
            if !spellings[class].contains(spelling) {
                spellings[class].push(spelling.clone());
            }
            match kind_of(path, path.file_name().unwrap_or_default()) {
                FileKind::Unsupported(kind, rename_to) => {
                    not_read.unsupported.push(UnsupportedFile { path: path.clone(), kind, rename_to });
                }
                _ => samples.push((Sample { path: path.clone(), class }, *split)),
            }
        }
        not_read.unsupported.sort_by(|a, b| a.path.cmp(&b.path));
        samples.sort_by(|(a, _), (b, _)| (a.class, a.path.as_os_str()).cmp(&(b.class, b.path.as_os_str())));
        let (samples, roles) = samples.into_iter().unzip();
        let (root, decoding) = (root.to_path_buf(), DecodeOptions::default());
        let images = ImageFolder { root, classes, spellings, samples, decoding, not_read };
        notices.extend(images.notices_of_names(table));
        let training_value = if columns.says_whether_validation { "False" } else { "train" };
        Ok(Self { images, roles, training_value, notices })
    }

    /// Whether the table says which images are for training.
    pub(super) fn has_splits(&self) -> bool {
        self.roles.iter().any(Option::is_some)
    }

    /// The images of a split, with the classes of all; none if there are none. What is not read counts as part of the training images.
    pub(super) fn part(&self, role: Role) -> Option<ImageFolder> {
        let samples = self.images.samples.iter().zip(&self.roles);
        let samples: Vec<Sample> =
            samples.filter(|(_, of)| **of == Some(role)).map(|(sample, _)| sample.clone()).collect();
        let not_read = if role == Role::Train { self.images.not_read.clone() } else { NotRead::default() };
        (!samples.is_empty()).then(|| ImageFolder { samples, not_read, ..self.images.clone() })
    }
}

/// Whether `table` has the columns of a table of labels, and its first line is about a file in `root`.
pub(super) fn fits(root: &Path, table: &Path) -> bool {
    const START: u64 = 1 << 16;
    let mut start = Vec::new();
    if !File::open(table).is_ok_and(|file| file.take(START).read_to_end(&mut start).is_ok()) {
        return false;
    }
    let Ok(columns) = Columns::of(table, &start) else { return false };
    let mut reader = reader(&start, columns.separator);
    let first = reader.records().next();
    first.is_some_and(|first| first.is_ok_and(|first| find(&[root], &first[columns.path]).is_some()))
}

/// The lines of the table, with the files that they name.
fn read(root: &Path, table: &Path, bytes: &[u8], columns: &Columns) -> Result<Vec<Entry>> {
    let shown = table.display();
    let folders: Vec<&Path> = [Some(root), table.parent()].into_iter().flatten().collect();
    let mut reader = reader(bytes, columns.separator);
    let (mut entries, mut missing, mut last) = (Vec::new(), Vec::new(), (0, 0));
    for record in reader.records() {
        let record = record.map_err(|error| malformed(table, bytes, columns.separator, &error))?;
        let (start, line) = record.position().map_or((0, 0), |place| (place.byte() as usize, place.line()));
        last = (start, line);
        let (name, spelling) = (&record[columns.path], record[columns.label].to_string());
        let label = normal_form(&spelling);
        if name.is_empty() || label.is_empty() {
            let what = if name.is_empty() { "file" } else { "label" };
            return Err(Error::new(format!("{shown}, line {line}: expected a {what}, found nothing"))
                .hint("complete the line, or remove it"));
        }
        let split = match columns.split.map(|column| &record[column]) {
            Some(split) => Some(columns.role(split).ok_or_else(|| {
                let found = if split.is_empty() { "nothing".into() } else { shortened(split) };
                let expected = match columns.says_whether_validation {
                    true => format!("True or False in the column {IS_VALIDATION}"),
                    false => "train, val or test as the split".into(),
                };
                Error::new(format!("{shown}, line {line}: expected {expected}, found {found}"))
                    .hint("correct the line; or rename the column if it is not about splits")
            })?),
            None => None,
        };
        match find(&folders, name) {
            Some((path, real)) => entries.push(Entry { real, path, label, spelling, split, line }),
            None => missing.push((line, name.to_string())),
        }
    }
    if ends_quoted(&bytes[bytes.len().min(last.0)..], columns.separator) {
        return Err(not_closed(table, last.1));
    }
    if let Some((line, name)) = missing.first() {
        return Err(Error::new(format!(
            "{shown} names {} that {} not exist in {}, such as {name} in line {line}",
            counted(missing.len(), "file", "files"),
            if missing.len() == 1 { "does" } else { "do" },
            root.display(),
            name = shortened(name),
        ))
        .hint(match elsewhere(root, name) {
            Some(place) => format!("such a file is in {0}: give {0} as the folder of images", place.display()),
            None => {
                "name files relative to the folder of images or to that of the table, and remove lines without a file"
                    .into()
            }
        }));
    }
    if entries.is_empty() {
        return Err(Error::new(format!("{shown} has no line with a label")).hint("add a line for each image"));
    }
    Ok(entries)
}

impl Columns {
    /// The role that a value in the column of splits stands for.
    fn role(&self, value: &str) -> Option<Role> {
        match (self.says_whether_validation, value.to_lowercase().as_str()) {
            (true, "true" | "1") => Some(Role::Validation),
            (true, "false" | "0") => Some(Role::Train),
            (true, _) => None,
            (false, _) => Role::of(value.as_ref()),
        }
    }

    /// The columns that the first line of a table names.
    fn of(table: &Path, bytes: &[u8]) -> Result<Self> {
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
                let (of_role, of_validation) = (place(&SPLITS), place(&[IS_VALIDATION]));
                let split = of_role.or(of_validation);
                let is_read = |column: usize| [Some(path), Some(label), split].contains(&Some(column));
                let others = header.iter().enumerate().filter(|(column, _)| !is_read(*column));
                let others = others.map(|(column, name)| match name {
                    "" => format!("column {}", column + 1),
                    name => name.to_string(),
                });
                return Ok(Self {
                    separator,
                    path,
                    label,
                    split,
                    says_whether_validation: of_role.is_none() && of_validation.is_some(),
                    others: others.collect(),
                });
            }
            if let (Some(path), None) = (place(&PATHS), place(&LABELS)) {
                let of_classes = columns_of_classes(bytes, separator, path);
                if of_classes.len() > 1 {
                    return Err(Error::new(format!(
                        "{}: expected a column of labels, found a column for each class: {}",
                        table.display(),
                        first_names(&of_classes.iter().map(|&column| shortened(&header[column])).collect::<Vec<_>>())
                    ))
                    .hint("write the name of each image's class in a column label"));
                }
            }
            let names: Vec<String> = header.iter().map(str::to_string).collect();
            if found.is_empty() || names.len() > 1 {
                found = first_names(&names.iter().map(|name| shortened(name)).collect::<Vec<_>>());
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
}

/// The columns that have only the values 0 and 1 in the first lines, as in tables with a column for each class.
fn columns_of_classes(bytes: &[u8], separator: u8, path: usize) -> Vec<usize> {
    const LINES: usize = 100;
    let lines: Vec<_> = reader(bytes, separator).records().map_while(|record| record.ok()).take(LINES).collect();
    let columns = lines.first().map_or(0, |line| line.len());
    let flag = |value: &str| value.trim().parse().ok().filter(|value: &f32| *value == 0.0 || *value == 1.0);
    let is_of_class = |column: usize| {
        let flags: Option<Vec<f32>> = lines.iter().map(|line| flag(&line[column])).collect();
        flags.is_some_and(|flags| flags.contains(&0.0))
    };
    (0..columns).filter(|&column| column != path && is_of_class(column)).collect()
}

/// The text of a table in UTF-8. Excel also writes UTF-16, with a mark at the beginning.
fn in_utf8(table: &Path, bytes: Vec<u8>) -> Result<Vec<u8>> {
    let is_big_endian = match bytes.as_slice() {
        [0xff, 0xfe, ..] => false,
        [0xfe, 0xff, ..] => true,
        _ => {
            let start = &bytes[..bytes.len().min(format::HEAD_BYTES)];
            let other = format::FileKind::of(start).filter(|kind| kind.name != "text" && !start.is_empty());
            let place = match std::str::from_utf8(&bytes) {
                Err(error) => Some(error.valid_up_to()),
                Ok(_) => bytes.iter().position(|&byte| byte == 0),
            };
            let fault = match (other, place) {
                (Some(kind), _) => format!(": expected a CSV file, found {}", kind.noun),
                (None, Some(place)) => format!(", line {}: expected text in UTF-8", line_at(&bytes, place)),
                (None, None) => return Ok(bytes),
            };
            return Err(Error::new(format!("{}{fault}", table.display())).hint("save the table as CSV in UTF-8"));
        }
    };
    let word = |pair: &[u8]| {
        let pair = [pair[0], pair[1]];
        if is_big_endian { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) }
    };
    let words: Vec<u16> = bytes[2..].chunks_exact(2).map(word).collect();
    match String::from_utf16(&words) {
        Ok(text) if bytes.len().is_multiple_of(2) => Ok(text.into_bytes()),
        _ => Err(Error::new(format!("{} begins as text in UTF-16, but is damaged", table.display()))
            .hint("save the table as CSV in UTF-8")),
    }
}

/// The line that contains this byte, from 1.
fn line_at(bytes: &[u8], place: usize) -> usize {
    let before = &bytes[..place.min(bytes.len())];
    let ends = |of: u8| before.iter().filter(|&&byte| byte == of).count();
    1 + if before.contains(&b'\n') { ends(b'\n') } else { ends(b'\r') }
}

/// The error for a line that does not have the values of the columns.
fn malformed(table: &Path, bytes: &[u8], separator: u8, error: &csv::Error) -> Error {
    let shown = table.display();
    let csv::ErrorKind::UnequalLengths { pos: Some(place), expected_len, len } = error.kind() else {
        return Error::new(format!("cannot read the labels in {shown}: {error}"));
    };
    let rest = &bytes[bytes.len().min(place.byte() as usize)..];
    // Where the record before ends in a line break of two characters, the place is before the second.
    let start = place.byte() as usize + rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let line = line_at(bytes, start);
    let is_open = rest.iter().filter(|&&byte| byte == b'"').count() % 2 == 1;
    if len < expected_len && is_open {
        return not_closed(table, line as u64);
    }
    let separator = if separator == b'\t' { "a tab".into() } else { format!("`{}`", char::from(separator)) };
    Error::new(format!("{shown}, line {line}: expected {expected_len} values, found {len}")).hint(format!(
        "give each line a value for each column, and put values that contain {separator} into quotation marks"
    ))
}

fn not_closed(table: &Path, line: u64) -> Error {
    Error::new(format!("{}, line {line}: a quotation mark is not closed", table.display()))
        .hint("close it, or write it twice within quotation marks if it is part of a value")
}

/// Whether a record ends within quotation marks. The reader takes the end of the table for their end.
fn ends_quoted(record: &[u8], separator: u8) -> bool {
    let (mut is_quoted, mut is_at_start) = (false, true);
    for &byte in record {
        match byte {
            b'"' if is_quoted || is_at_start => (is_quoted, is_at_start) = (!is_quoted, is_quoted),
            _ if is_quoted => {}
            b' ' if is_at_start => {}
            _ => is_at_start = byte == separator || byte == b'\n' || byte == b'\r',
        }
    }
    is_quoted
}

/// A value as it is shown in messages.
fn shortened(value: &str) -> String {
    match value.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value.into(),
    }
}

/// The notice that labels stand for missing ones, as pandas writes them.
fn no_labels(table: &Path, entries: &[Entry]) -> Option<String> {
    let found: Vec<&Entry> = entries.iter().filter(|entry| NO_LABELS.contains(&&*entry.label.to_lowercase())).collect();
    let first = found.first()?;
    let (lines, is) = if found.len() == 1 { ("line has", "it is") } else { ("lines have", "they are") };
    Some(format!(
        "{}: {} {lines} a label such as {} in line {}: {is} used as a class; remove the lines if their label is missing",
        table.display(),
        found.len(),
        first.label,
        first.line
    ))
}

fn reader(bytes: &[u8], separator: u8) -> csv::Reader<&[u8]> {
    csv::ReaderBuilder::new().delimiter(separator).trim(csv::Trim::All).from_reader(bytes)
}

/// The file that a line names, in the first of these folders that has it, and its path without links.
fn find(folders: &[&Path], name: &str) -> Option<(PathBuf, PathBuf)> {
    let is_whole = format::FileKind::is_named_as_image(Path::new(name));
    let extensions = if is_whole { String::new() } else { format::FileKind::image_extensions() };
    let upper = extensions.to_uppercase();
    let endings: Vec<&str> =
        std::iter::once("").chain(extensions.split_whitespace()).chain(upper.split_whitespace()).collect();
    folders.iter().find_map(|folder| {
        // Windows separates folders with a backslash, which elsewhere may be part of a name.
        let names = [name.to_string(), name.replace('\\', "/")].into_iter().take(1 + usize::from(name.contains('\\')));
        let mut paths = names.flat_map(|name| endings.iter().map(move |ending| folder.join(format!("{name}{ending}"))));
        paths.by_ref().filter(|path| path.is_file()).find_map(|path| Some((path.clone(), fs::canonicalize(path).ok()?)))
    })
}

/// The folder in `root`, or the one around it, that has the file.
fn elsewhere(root: &Path, name: &str) -> Option<PathBuf> {
    let below = sub_folders(root, &mut NotRead::default()).unwrap_or_default();
    let around = root.parent().filter(|parent| !parent.as_os_str().is_empty()).map(Path::to_path_buf);
    let places = below.iter().map(|name| root.join(name)).chain(around);
    places.into_iter().find(|place| find(&[place], name).is_some())
}

/// The entries without those that say the same twice.
fn unique(table: &Path, entries: Vec<Entry>) -> Result<Vec<Entry>> {
    let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
    let mut places: HashMap<PathBuf, usize> = HashMap::new();
    for entry in entries {
        let twice = |what: &str, [earlier, later]: [&str; 2], lines: [u64; 2]| {
            Error::new(format!(
                "{}: {} has the {what} {earlier} in line {}, and {later} in line {}",
                table.display(),
                entry.path.display(),
                lines[0],
                lines[1]
            ))
        };
        match places.get(&entry.real).map(|&place| &kept[place]) {
            Some(earlier) if earlier.label != entry.label => {
                return Err(twice("label", [&earlier.label, &entry.label], [earlier.line, entry.line])
                    .hint("keep one of the lines: an image has one class"));
            }
            Some(earlier) if earlier.split != entry.split => {
                let names = [earlier.split, entry.split].map(|role| role.map_or("", Role::name));
                return Err(twice("split", names, [earlier.line, entry.line])
                    .hint("keep one of the lines: an image is in one split"));
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
