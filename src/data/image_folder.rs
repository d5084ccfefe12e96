//! A folder of images, one sub-folder per class, as torchvision's `ImageFolder` reads it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use unicode_normalization::UnicodeNormalization;

use super::decode::DecodeOptions;
use super::format;
use super::not_read::{FileKind, NotRead, UnsupportedFile, foreign_folder, kind_of};
use crate::error::{Context, Error, Result};

/// One image and its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The file.
    pub path: PathBuf,
    /// An index into [`ImageFolder::classes`].
    pub class: usize,
}

/// The images of a folder with one sub-folder per class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFolder {
    /// The folder of the class folders.
    pub root: PathBuf,
    /// The names of the classes; a class is known by its index here.
    pub classes: Vec<String>,
    /// How the name of each class is written in this folder: in several ways if they differ in their Unicode form, and in none if the class
    /// has no folder here.
    pub spellings: Vec<Vec<String>>,
    /// The images, by class; within a class sorted by folder, then by file name.
    pub samples: Vec<Sample>,
    /// How they are decoded; [`ImageFolder::open`] sets the default.
    pub decoding: DecodeOptions,
    /// Other contents of the folders.
    pub not_read: NotRead,
}

/// How to handle images of a class that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnknownClasses {
    /// As an error: the known classes are those of the training images.
    Refuse,
    /// They are skipped and counted: the known classes are those of a model.
    LeaveOut,
}

impl UnknownClasses {
    fn known_to(self) -> &'static str {
        match self {
            Self::Refuse => "the training images",
            Self::LeaveOut => "the model",
        }
    }
}

/// How the class folders of one folder correspond to known classes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Correspondence {
    /// Unknown classes, with the number of their images, which were skipped.
    pub unknown: Vec<(String, usize)>,
    /// Known classes without an image.
    pub missing: Vec<String>,
    /// Folders whose names differ from that of their class in upper and lower case: the folder, and the class.
    pub by_case: Vec<(String, String)>,
    /// Classes whose folders have names of another Unicode form.
    pub by_form: Vec<String>,
    /// Folders of unknown classes that contain no images.
    pub empty: Vec<String>,
}

impl Correspondence {
    /// Notices for the user, one line each; `place` names the folder.
    pub fn notices(&self, place: &Path) -> Vec<String> {
        let place = place.display();
        let mut notices = Vec::new();
        for (folder, class) in &self.by_case {
            notices
                .push(format!("{place}/{folder} is used as the class {class}, although upper and lower case differ"));
        }
        if !self.by_form.is_empty() {
            let (class, names) = match self.by_form.len() {
                1 => ("class", "the Unicode form of its name differs"),
                _ => ("classes", "the Unicode forms of their names differ"),
            };
            notices.push(format!("{place}: matched the {class} {}, although {names}", first_names(&self.by_form)));
        }
        if !self.empty.is_empty() {
            let (folders, are) = if self.empty.len() == 1 { ("folder", "is") } else { ("folders", "are") };
            notices.push(format!(
                "{place}: the empty {folders} {} {are} not used, as no known class has such a name",
                first_names(&self.empty)
            ));
        }
        if !self.missing.is_empty() {
            let classes = if self.missing.len() == 1 { "class" } else { "classes" };
            notices.push(format!("{place} has no image of the {classes} {}", first_names(&self.missing)));
        }
        if !self.unknown.is_empty() {
            let images: usize = self.unknown.iter().map(|(_, count)| count).sum();
            let names: Vec<String> = self.unknown.iter().map(|(name, count)| format!("{name} ({count})")).collect();
            let (classes, images) = (counted(names.len(), "class", "classes"), counted(images, "image", "images"));
            notices.push(format!(
                "{place}: {images} of {classes} that the model does not know are left out: {}",
                first_names(&names)
            ));
        }
        notices
    }
}

/// Names of folders of images, in lower case, and of folders that say what is where in them, as data sets for detection and segmentation
/// have them side by side.
const IMAGES: [&str; 6] = ["images", "image", "imgs", "img", "jpegimages", "jpeg_images"];
const ANNOTATIONS: [&str; 13] = [
    "annotations",
    "annotation",
    "labels",
    "masks",
    "mask",
    "segmentations",
    "segmentation",
    "segmentationclass",
    "segmentationobject",
    "trimaps",
    "ground_truth",
    "groundtruth",
    "gt",
];

/// What to do with images beside their annotations.
const BY_CLASS: &str = "put the images of each class into a folder that has the name of the class, or give the classes in a CSV file with --labels";

impl ImageFolder {
    /// Lists the images below `root`. The classes are its sub-folders in byte order; they contain images at any
    /// depth, also through symbolic links. Folders whose names differ only in their Unicode form are one class.
    ///
    /// # Errors
    /// When there is no such folder, it contains no class folders, a class contains no images, or a folder is unreadable.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let folder = Self::list(root.as_ref())?;
        let counts = folder.class_counts();
        match counts.iter().position(|&count| count == 0) {
            Some(class) => Err(folder.without_images(class)),
            None => Ok(folder),
        }
    }

    /// Like [`ImageFolder::open`], but a class may have no images.
    pub(super) fn list(root: &Path) -> Result<Self> {
        let mut not_read = NotRead::default();
        let (mut classes, mut spellings, mut samples) = (Vec::new(), Vec::new(), Vec::new());
        for (class, ClassFolder { name, folders }) in class_folders(root, &mut not_read)?.into_iter().enumerate() {
            classes.push(name);
            spellings.push(folders.iter().map(|folder| folder.to_string_lossy().into_owned()).collect());
            for folder in folders {
                collect_samples(&root.join(folder), class, &mut samples, &mut not_read)?;
            }
        }
        not_read.unsupported.sort_by(|a, b| a.path.cmp(&b.path));
        note_images_in(root, &mut not_read)?;
        Ok(Self { root: root.to_path_buf(), classes, spellings, samples, decoding: DecodeOptions::default(), not_read })
    }

    /// These files in this order, for a model with these classes.
    pub fn unlabelled(files: Vec<PathBuf>, classes: Vec<String>, decoding: DecodeOptions) -> Self {
        Self {
            root: PathBuf::new(),
            spellings: vec![Vec::new(); classes.len()],
            classes,
            samples: files.into_iter().map(|path| Sample { path, class: 0 }).collect(),
            decoding,
            not_read: NotRead::default(),
        }
    }

    /// These images with the classes of a trained model or of the training images, which are written as in `spellings`. A class may
    /// lack images. The name of a folder may differ from that of its class in its Unicode form, or in upper and lower case if no other
    /// class fits.
    ///
    /// # Errors
    /// When there are no images of the classes and, unless they are left out, when there are images of a class that is not known.
    pub(super) fn with_classes(
        self,
        classes: &[String],
        spellings: &[Vec<String>],
        unknown: UnknownClasses,
    ) -> Result<(Self, Correspondence)> {
        let mut folder = self;
        let known_to = unknown.known_to();
        if folder.samples.is_empty() {
            return Err(folder.without_any_image());
        }
        let normal: Vec<String> = classes.iter().map(|name| normal_form(name)).collect();
        let mut correspondence = Correspondence::default();
        let counts = folder.class_counts();
        let mut indices = Vec::with_capacity(folder.classes.len());
        for (name, &count) in folder.classes.iter().zip(&counts) {
            let exact = normal.iter().position(|known| known == name);
            let index = exact.or_else(|| {
                let lower = name.to_lowercase();
                let alike = |known: &String| known.to_lowercase() == lower;
                let mut found = (0..normal.len()).filter(|&index| alike(&normal[index]));
                // Another folder may have the exact name of the class.
                found.next().filter(|&index| found.next().is_none() && !folder.classes.contains(&normal[index]))
            });
            match index {
                Some(index) if exact.is_none() => correspondence.by_case.push((name.clone(), classes[index].clone())),
                Some(_) => {}
                None if count == 0 => correspondence.empty.push(name.clone()),
                None if unknown == UnknownClasses::LeaveOut => correspondence.unknown.push((name.clone(), count)),
                None => {
                    return Err(Error::new(format!(
                        "{} contains {} of a class that the training images lack: theirs are {}",
                        folder.root.join(name).display(),
                        counted(count, "image", "images"),
                        first_names(classes)
                    ))
                    .hint("give the class images to train on, or move the folder away"));
                }
            }
            indices.push(index);
        }
        let mut written = vec![Vec::new(); classes.len()];
        for (of_class, index) in folder.spellings.iter_mut().zip(&indices) {
            if let Some(index) = index {
                written[*index].append(of_class);
            }
        }
        folder.spellings = written;
        let is_other = |(known, found): (&Vec<String>, &Vec<String>)| {
            found
                .iter()
                .any(|one| !known.contains(one) && known.iter().any(|other| normal_form(other) == normal_form(one)))
        };
        let forms = spellings.iter().zip(&folder.spellings).map(is_other);
        correspondence.by_form = forms.zip(classes).filter(|(other, _)| *other).map(|(_, name)| name.clone()).collect();
        folder.samples = folder
            .samples
            .into_iter()
            .filter_map(|sample| Some(Sample { class: indices[sample.class]?, ..sample }))
            .collect();
        folder.samples.sort_by_key(|sample| sample.class);
        let found = std::mem::replace(&mut folder.classes, classes.to_vec());
        if folder.samples.is_empty() {
            return Err(Error::new(format!(
                "{} contains no images of the classes of {known_to}: {}; it has the classes {}",
                folder.root.display(),
                first_names(classes),
                first_names(&found)
            ))
            .hint(format!("give the classes the names that they have in {known_to}")));
        }
        let counts = folder.class_counts();
        let missing = classes.iter().zip(&counts).filter(|(_, count)| **count == 0).map(|(name, _)| name.clone());
        correspondence.missing = missing.collect();
        Ok((folder, correspondence))
    }

    /// The error for a class without images.
    fn without_images(&self, class: usize) -> Error {
        let folder = self.root.join(&self.classes[class]);
        Error::new(format!(
            "the class folder {} contains no images{}; the accepted extensions are {}",
            folder.display(),
            self.not_read.found_below(&folder),
            format::FileKind::image_extensions()
        ))
        .hint(match ANNOTATIONS.contains(&&*self.classes[class].to_lowercase()) {
            true => format!("it seems to contain annotations: {BY_CLASS}"),
            false => "put images into the folder, or remove it".into(),
        })
    }

    /// The error for class folders that are all without images.
    fn without_any_image(&self) -> Error {
        let folders = if self.classes.len() == 1 { "class folder" } else { "class folders" };
        Error::new(format!(
            "{} contains no images in its {folders} {}{}",
            self.root.display(),
            first_names(&self.classes),
            self.not_read.found_below(&self.root)
        ))
        .hint(format!("put images into the {folders}, or remove {}", self.root.display()))
    }

    /// Notices for the user about names of classes that look the same, one line each; `place` is where they are written.
    pub(super) fn notices_of_names(&self, place: &Path) -> Vec<String> {
        let several = self.classes.iter().zip(&self.spellings).filter(|(_, spellings)| spellings.len() > 1);
        let several: Vec<String> = several.map(|(name, _)| name.clone()).collect();
        let merged = (!several.is_empty()).then(|| {
            let are = if several.len() == 1 { "is one class" } else { "are one class each" };
            format!(
                "{}: {} {are}, although the name is written in several Unicode forms",
                place.display(),
                first_names(&several)
            )
        });
        let alike = self.classes_alike().into_iter().map(|(one, other)| {
            format!("{one} and {other} are two classes, although their names differ in upper and lower case only")
        });
        merged.into_iter().chain(alike).collect()
    }

    /// Classes whose names differ in upper and lower case only, in pairs.
    fn classes_alike(&self) -> Vec<(&str, &str)> {
        let mut seen = std::collections::BTreeMap::new();
        let mut pairs = Vec::new();
        for name in &self.classes {
            if let Some(other) = seen.insert(name.to_lowercase(), name.as_str()) {
                pairs.push((other, name.as_str()));
            }
        }
        pairs
    }

    /// Checks that there are classes to distinguish.
    ///
    /// # Errors
    /// When there is only one class, or the folders are those of images and of their annotations.
    pub fn require_two_classes(&self) -> Result<()> {
        let has = |known: &[&str]| self.classes.iter().filter(|name| known.contains(&&*name.to_lowercase())).count();
        let (images, annotations) = (has(&IMAGES), has(&ANNOTATIONS));
        if images > 0 && annotations > 0 && images + annotations == self.classes.len() {
            return Err(Error::new(format!(
                "{} contains images and their annotations, not folders of classes: {}",
                self.root.display(),
                first_names(&self.classes)
            ))
            .hint(BY_CLASS));
        }
        match self.classes.as_slice() {
            [only] => Err(Error::new(format!(
                "{} has only one class folder, {only}; a classifier needs at least two",
                self.root.display()
            ))
            .hint("add a folder of images of another class")),
            _ => Ok(()),
        }
    }

    /// The path of a file below the folder, with `/` between folders; characters that are not Unicode are replaced.
    pub fn name_of(&self, path: &Path) -> String {
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
        parts.join("/")
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// How many images each class has, in the order of [`ImageFolder::classes`].
    pub fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        for sample in &self.samples {
            counts[sample.class] += 1;
        }
        counts
    }

    /// The names of the classes without images.
    pub fn empty_classes(&self) -> Vec<String> {
        let counted = self.classes.iter().zip(self.class_counts());
        counted.filter(|(_, count)| *count == 0).map(|(name, _)| name.clone()).collect()
    }
}

/// Checks that a data set can be there.
///
/// # Errors
/// When `path` is no folder.
pub fn require_folder(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Error::new(format!("{} is a file; expected a folder of class folders", path.display()))),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::new(format!("there is no folder {}", path.display())).hint("check the spelling of the path"))
        }
        Err(cause) => Err(Error::new(format!("cannot read the folder {}: {cause}", path.display()))),
    }
}

/// The folders of one class: several if their names differ in their Unicode form.
struct ClassFolder {
    name: String,
    folders: Vec<OsString>,
}

/// A name in the Unicode form that most systems write. macOS decomposes accents in the names of files.
pub(super) fn normal_form(name: &str) -> String {
    name.nfc().collect()
}

fn class_folders(root: &Path, not_read: &mut NotRead) -> Result<Vec<ClassFolder>> {
    require_folder(root)?;
    let folders = sub_folders(root, not_read)?;
    if folders.is_empty() {
        return Err(Error::new(format!("{} contains no folders; expected one for each class", root.display()))
            .hint("put the images of each class into a folder that has the name of the class"));
    }
    let mut classes: Vec<ClassFolder> = Vec::with_capacity(folders.len());
    for folder in folders {
        let name = normal_form(&folder.to_string_lossy());
        match classes.iter_mut().find(|class| class.name == name) {
            // Names that are not Unicode are shown with replacement characters, which can make two of them the same.
            Some(class) if folder.to_str().is_none() || class.folders.iter().any(|other| other.to_str().is_none()) => {
                return Err(Error::new(format!(
                    "{} contains two class folders whose names are not Unicode and look the same",
                    root.join(&class.folders[0]).display()
                ))
                .hint("rename one of them"));
            }
            Some(class) => class.folders.push(folder),
            None => classes.push(ClassFolder { name, folders: vec![folder] }),
        }
    }
    classes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(classes)
}

/// The names of the folders in `root` that may be classes or splits, in byte order.
pub(super) fn sub_folders(root: &Path, not_read: &mut NotRead) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in entries(root)? {
        match (entry.is_folder, foreign_folder(&entry.name)) {
            (true, Some(name)) => not_read.add_foreign(name),
            (true, None) => names.push(entry.name),
            (false, _) => {}
        }
    }
    names.sort();
    Ok(names)
}

/// Adds the images that lie in `folder` itself, beside class folders or folders of splits, to what is not read.
pub(super) fn note_images_in(folder: &Path, not_read: &mut NotRead) -> Result<()> {
    let files = entries(folder)?.into_iter().filter(|entry| !entry.is_folder);
    let files = files.map(|entry| (folder.join(&entry.name), entry.name));
    let images =
        files.filter(|(path, name)| matches!(kind_of(path, name), FileKind::Image | FileKind::Unsupported(..)));
    not_read.outside.extend(images.map(|(path, _)| path));
    not_read.outside.sort();
    Ok(())
}

/// Something in a folder.
pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) is_folder: bool,
    is_link: bool,
}

pub(super) fn entries(folder: &Path) -> Result<Vec<Entry>> {
    let doing = || format!("cannot read the folder {}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).context(doing)? {
        let entry = entry.context(doing)?;
        let kind = entry.file_type().context(doing)?;
        let is_link = kind.is_symlink();
        let is_folder = if is_link { entry.path().is_dir() } else { kind.is_dir() };
        found.push(Entry { name: entry.file_name(), is_folder, is_link });
    }
    Ok(found)
}

/// The images in a folder at any depth, by their paths, and what is not read there. Files of systems and programs are set aside.
///
/// # Errors
/// When a folder cannot be read.
pub fn images_below(folder: &Path) -> Result<(Vec<PathBuf>, NotRead)> {
    let (mut samples, mut not_read) = (Vec::new(), NotRead::default());
    collect_samples(folder, 0, &mut samples, &mut not_read)?;
    let mut paths: Vec<PathBuf> = samples.into_iter().map(|sample| sample.path).collect();
    paths.sort();
    Ok((paths, not_read))
}

/// Adds the images in `class_folder`, at any depth, as those of a class.
pub(super) fn collect_samples(
    class_folder: &Path,
    class: usize,
    samples: &mut Vec<Sample>,
    not_read: &mut NotRead,
) -> Result<()> {
    let mut folders = Vec::new();
    let mut ancestors = vec![real_path(class_folder)?];
    walk(class_folder, &mut ancestors, &mut folders, not_read)?;
    folders.sort_by(|a, b| a.0.as_os_str().as_encoded_bytes().cmp(b.0.as_os_str().as_encoded_bytes()));
    for (folder, mut files) in folders {
        files.sort();
        samples.extend(files.into_iter().map(|file| Sample { path: folder.join(file), class }));
    }
    Ok(())
}

/// Lists `folder` and all folders below it, each with the names of its images. A link to a folder that contains the link is set aside:
/// above the folder of a class, it has images of other classes.
fn walk(
    folder: &Path,
    ancestors: &mut Vec<PathBuf>,
    found: &mut Vec<(PathBuf, Vec<OsString>)>,
    not_read: &mut NotRead,
) -> Result<()> {
    let mut files = Vec::new();
    for entry in entries(folder)? {
        let path = folder.join(&entry.name);
        if !entry.is_folder {
            match kind_of(&path, &entry.name) {
                FileKind::Image => files.push(entry.name),
                FileKind::Unsupported(kind, rename_to) => {
                    not_read.unsupported.push(UnsupportedFile { path, kind, rename_to });
                }
                FileKind::Foreign(name) => not_read.add_foreign(name),
                FileKind::Other => {}
            }
            continue;
        }
        if let Some(name) = foreign_folder(&entry.name) {
            not_read.add_foreign(name);
            continue;
        }
        let real = if entry.is_link { real_path(&path)? } else { inside(ancestors, &entry.name) };
        if entry.is_link && ancestors.iter().any(|ancestor| ancestor.starts_with(&real)) {
            not_read.add_foreign(entry.name.to_string_lossy().into_owned());
            continue;
        }
        ancestors.push(real);
        walk(&path, ancestors, found, not_read)?;
        ancestors.pop();
    }
    found.push((folder.to_path_buf(), files));
    Ok(())
}

fn inside(ancestors: &[PathBuf], name: &OsStr) -> PathBuf {
    ancestors.last().map_or_else(|| PathBuf::from(name), |parent| parent.join(name))
}

fn real_path(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).context(|| format!("cannot read the folder {}", path.display()))
}

/// Up to ten names, separated by commas.
pub fn first_names(names: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(", ...");
    }
    text
}

/// A count and what it counts: `1 image`, `2 images`.
pub fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
