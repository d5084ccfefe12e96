//! The layout of a data set: folders of splits, each with class folders; or class folders alone.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::decode::DecodeOptions;
use super::format::FileKind;
use super::image_folder::{ImageFolder, UnknownClasses, counted, entries, first_names, require_folder, sub_folders};
use super::labels::Table;
use super::not_read::NotRead;
use super::random::{Purpose, RandomStream};
use crate::error::{Error, Result};

/// The purpose of the images of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Training.
    Train,
    /// Choosing the epoch whose model is kept.
    Validation,
    /// Measuring the accuracy of the model.
    Test,
}

/// Names of splits, in lower case. A name may have one of [`ENDINGS`].
const SPLIT_NAMES: [(Role, &[&str]); 3] = [
    (Role::Train, &["train", "training"]),
    (Role::Validation, &["val", "valid", "validation", "validate", "dev", "development"]),
    (Role::Test, &["test", "testing", "eval", "evaluation", "holdout", "hold_out"]),
];

/// `train_set` is `train`.
const ENDINGS: [&str; 7] = ["", "set", "_set", "_data", "_images", "_imgs", "_split"];

impl Role {
    /// The role of a folder with this name, in any case.
    pub fn of(name: &OsStr) -> Option<Self> {
        let name = name.to_str()?.to_lowercase().replace(['-', ' '], "_");
        let is_one = |known: &&str| name.strip_prefix(*known).is_some_and(|ending| ENDINGS.contains(&ending));
        SPLIT_NAMES.iter().find(|(_, names)| names.iter().any(&is_one)).map(|(role, _)| *role)
    }

    /// `train`, `validation` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }

    /// The word before `images`: `training`, `validation` or `test`.
    pub fn adjective(self) -> &'static str {
        match self {
            Self::Train => "training",
            other => other.name(),
        }
    }
}

/// The images of a data set. All parts have the same classes with the same indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splits {
    /// The images to train on.
    pub train: ImageFolder,
    /// The images that choose the epoch whose model is kept, if they are not the test images.
    pub validation: Option<ImageFolder>,
    /// The images to test on.
    pub test: ImageFolder,
    /// Notices for the user about the layout of the folders.
    pub notices: Vec<String>,
}

impl Splits {
    /// Training and test images.
    pub fn new(train: ImageFolder, test: ImageFolder) -> Self {
        Self { train, validation: None, test, notices: Vec::new() }
    }

    /// The images that are classified after every epoch, to choose the one whose model is kept.
    pub fn choosing(&self) -> &ImageFolder {
        self.validation.as_ref().unwrap_or(&self.test)
    }

    /// The same images, decoded with these options.
    pub fn decoded_with(mut self, decoding: DecodeOptions) -> Self {
        self.by_role_mut().for_each(|(_, part)| part.decoding = decoding);
        self
    }

    /// All images.
    pub fn len(&self) -> usize {
        self.parts().map(ImageFolder::len).sum()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Contents of the folders that are not read.
    pub fn not_read(&self) -> NotRead {
        let mut all = NotRead::default();
        self.parts().for_each(|part| all.add(&part.not_read));
        all
    }

    /// The images of every split: training, validation if there are any, test.
    pub fn by_role(&self) -> impl Iterator<Item = (Role, &ImageFolder)> {
        let validation = self.validation.as_ref().map(|folder| (Role::Validation, folder));
        [(Role::Train, &self.train)].into_iter().chain(validation).chain([(Role::Test, &self.test)])
    }

    /// The images of a split.
    pub fn of(&self, role: Role) -> Option<&ImageFolder> {
        self.by_role().find(|(of, _)| *of == role).map(|(_, folder)| folder)
    }

    /// The images of every split, to change them.
    pub fn by_role_mut(&mut self) -> impl Iterator<Item = (Role, &mut ImageFolder)> {
        let validation = self.validation.as_mut().map(|folder| (Role::Validation, folder));
        [(Role::Train, &mut self.train)].into_iter().chain(validation).chain([(Role::Test, &mut self.test)])
    }

    /// The images of every split.
    pub fn parts(&self) -> impl Iterator<Item = &ImageFolder> {
        self.by_role().map(|(_, folder)| folder)
    }
}

/// Opens a data set: `root` contains a folder of training images and one of test images, or of validation images, or both;
/// or training images alone, or one level of class folders, of which each class gives `test_fraction` of its images,
/// chosen by `seed`, to the test.
///
/// # Errors
/// Those of [`ImageFolder`]; only one class; a test class that training lacks; a fraction that is missing, not between
/// 0 and 1, or given although there are test images; a class of one image to be split; folders of splits where classes
/// are expected.
pub fn open_dataset(root: impl AsRef<Path>, test_fraction: Option<f64>, seed: u64) -> Result<Splits> {
    let root = root.as_ref();
    let layout = Layout::of(root)?;
    let mut notices = layout.notices();
    let mut splits = match &layout.train {
        None => {
            let folder = layout.classes()?;
            layout.require_two_classes(&folder)?;
            match test_fraction {
                Some(fraction) => split(folder, fraction, seed)?,
                None => {
                    return Err(Error::new(format!(
                        "{} contains no train/ and test/ (or val/) folders, and no test fraction is given",
                        root.display()
                    ))
                    .hint("make both folders, or hold out part of every class with a test fraction such as 0.2"));
                }
            }
        }
        Some(train) => {
            let train = ImageFolder::open(root.join(train))?;
            train.require_two_classes()?;
            match (layout.held_out(), test_fraction) {
                (None, Some(fraction)) => split(train, fraction, seed)?,
                (None, None) => return Err(layout.nothing_to_test_on()),
                (Some(test), Some(_)) => {
                    return Err(Error::usage(format!(
                        "a test fraction is given, but there is {} to test on",
                        root.join(test).display()
                    ))
                    .hint("leave the test fraction out, or move the test folder away"));
                }
                (Some(test), None) => {
                    let mut open = |name: &OsString| {
                        let place = root.join(name);
                        let (folder, correspondence) =
                            ImageFolder::open_with_classes(&place, &train.classes, UnknownClasses::Refuse)?;
                        notices.extend(correspondence.notices(&place));
                        Ok::<_, Error>(folder)
                    };
                    let test = open(test)?;
                    let validation = match (&layout.validation, &layout.test) {
                        (Some(validation), Some(_)) => Some(open(validation)?),
                        _ => None,
                    };
                    Splits { validation, ..Splits::new(train, test) }
                }
            }
        }
    };
    for (one, other) in splits.train.classes_alike() {
        notices.push(format!(
            "{one} and {other} are two classes, although their names differ in upper and lower case only"
        ));
    }
    let mut not_read = splits.not_read();
    // If there are no splits, the list of classes has counted them.
    if layout.train.is_some() {
        not_read.add(&layout.not_read);
    }
    notices.extend(not_read.notices());
    splits.notices = notices;
    Ok(splits)
}

/// Opens the images in `root` that the CSV file `table` gives labels to. Each class gives `test_fraction` of its images, chosen by
/// `seed`, to the test.
///
/// # Errors
/// When the table or a file that it names cannot be read; those of [`open_dataset`] for class folders alone.
pub fn open_table(root: impl AsRef<Path>, table: &Path, test_fraction: Option<f64>, seed: u64) -> Result<Splits> {
    let Table { images, mut notices } = Table::open(root.as_ref(), table)?;
    if let [only] = images.classes.as_slice() {
        return Err(Error::new(format!(
            "{} has only one label, {only}; a classifier needs at least two",
            table.display()
        ))
        .hint("add images of another class"));
    }
    let Some(fraction) = test_fraction else {
        return Err(Error::usage(format!("no test fraction is given for the images in {}", table.display()))
            .hint("hold out part of every class for testing, for example with --test-fraction 0.2"));
    };
    let mut splits = split(images, fraction, seed)?;
    notices.extend(splits.not_read().notices());
    splits.notices = notices;
    Ok(splits)
}

/// Labelled images for a trained model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// The images, with the classes of the model.
    pub images: ImageFolder,
    /// Classes that the model does not know, with the number of their images, which were skipped.
    pub unknown: Vec<(String, usize)>,
    /// Notices for the user about the layout of the folders.
    pub notices: Vec<String>,
}

/// The images to evaluate a model with `classes` on: those of the test split, else of the validation split, or all class
/// folders if there are no splits.
///
/// # Errors
/// Those of [`ImageFolder`]; training images alone; no image of a class of the model.
pub fn open_labelled(root: impl AsRef<Path>, classes: &[String]) -> Result<Labelled> {
    let root = root.as_ref();
    let layout = Layout::of(root)?;
    let (place, folder) = match (&layout.train, layout.held_out()) {
        (_, Some(held_out)) => (root.join(held_out), ImageFolder::list(&root.join(held_out))?),
        (None, None) => {
            layout.refuse_misplaced_splits()?;
            (root.to_path_buf(), ImageFolder::list(root)?)
        }
        (Some(train), None) => {
            return Err(Error::new(format!(
                "{} contains training images, but no test images: {} is all there is",
                root.display(),
                root.join(train).display()
            ))
            .hint("make a folder `test` beside it; to evaluate the training images, give their folder"));
        }
    };
    let one_class = folder.classes.len() == 1;
    let with_classes = folder.with_classes(classes, UnknownClasses::LeaveOut);
    let (images, correspondence) = match with_classes {
        Err(error) if one_class && layout.train.is_none() => {
            return Err(match layout.other_reading() {
                Some(hint) => error.hint(hint),
                None => error,
            });
        }
        result => result?,
    };
    let mut notices = layout.notices();
    notices.extend(correspondence.notices(&place));
    let mut not_read = images.not_read.clone();
    // If there are no splits, the list of classes has counted them.
    if place != root {
        not_read.add(&layout.not_read);
    }
    notices.extend(not_read.notices());
    Ok(Labelled { images, unknown: correspondence.unknown, notices })
}

/// The images in `root` that the CSV file `table` gives labels to, to evaluate a model with `classes` on.
///
/// # Errors
/// When the table or a file that it names cannot be read; no image of a class of the model.
pub fn open_labelled_by(root: impl AsRef<Path>, table: &Path, classes: &[String]) -> Result<Labelled> {
    let Table { images, mut notices } = Table::open(root.as_ref(), table)?;
    let (images, correspondence) = images.with_classes(classes, UnknownClasses::LeaveOut)?;
    notices.extend(correspondence.notices(table));
    notices.extend(images.not_read.notices());
    Ok(Labelled { images, unknown: correspondence.unknown, notices })
}

/// The training images, or all images if there are no splits, for display.
///
/// # Errors
/// Those of [`ImageFolder::open`], and folders of splits where classes are expected.
pub fn open_training_images(root: impl AsRef<Path>) -> Result<ImageFolder> {
    let root = root.as_ref();
    let layout = Layout::of(root)?;
    match &layout.train {
        Some(train) => ImageFolder::open(root.join(train)),
        None => layout.classes(),
    }
}

/// The folders in the folder of a data set, by their kind.
struct Layout {
    root: PathBuf,
    /// Splits that contain class folders.
    train: Option<OsString>,
    validation: Option<OsString>,
    test: Option<OsString>,
    /// Folders with the name of a split that contain no class folders, and their numbers of images.
    unlabelled: Vec<(OsString, usize)>,
    /// All other folders.
    others: Vec<OsString>,
    not_read: NotRead,
}

/// The direct contents of a folder.
#[derive(Default)]
struct Content {
    folders: Vec<OsString>,
    images: usize,
    /// Tables that may have labels.
    tables: Vec<OsString>,
}

impl Content {
    fn of(folder: &Path) -> Result<Self> {
        // What is set aside here is counted where the folder is listed.
        let mut content = Self { folders: sub_folders(folder, &mut NotRead::default())?, ..Self::default() };
        for entry in entries(folder)? {
            if entry.is_folder {
                continue;
            }
            let lower = entry.name.to_string_lossy().to_lowercase();
            if FileKind::is_named_as_image(Path::new(&entry.name)) {
                content.images += 1;
            } else if lower.ends_with(".csv") || lower.ends_with(".tsv") {
                content.tables.push(entry.name);
            }
        }
        content.tables.sort();
        Ok(content)
    }
}

impl Layout {
    fn of(root: &Path) -> Result<Self> {
        require_folder(root)?;
        let mut layout = Self {
            root: root.to_path_buf(),
            train: None,
            validation: None,
            test: None,
            unlabelled: Vec::new(),
            others: Vec::new(),
            not_read: NotRead::default(),
        };
        for name in sub_folders(root, &mut layout.not_read)? {
            let Some(role) = Role::of(&name) else {
                layout.others.push(name);
                continue;
            };
            let content = Content::of(&root.join(&name))?;
            if content.folders.is_empty() {
                layout.unlabelled.push((name, content.images));
                continue;
            }
            let place = match role {
                Role::Train => &mut layout.train,
                Role::Validation => &mut layout.validation,
                Role::Test => &mut layout.test,
            };
            if let Some(other) = place {
                return Err(Error::new(format!(
                    "{} contains two folders of {} images: {} and {}",
                    root.display(),
                    role.adjective(),
                    other.display(),
                    name.display()
                ))
                .hint("keep one of them there, and move the other away"));
            }
            *place = Some(name);
        }
        Ok(layout)
    }

    /// The folder of test images, or else of validation images.
    fn held_out(&self) -> Option<&OsString> {
        self.test.as_ref().or(self.validation.as_ref())
    }

    fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        if self.train.is_none() && self.held_out().is_none() {
            return notices;
        }
        for (name, images) in &self.unlabelled {
            notices.push(format!(
                "{} is set aside: it has no class folders ({})",
                self.root.join(name).display(),
                counted(*images, "image", "images")
            ));
        }
        if !self.others.is_empty() {
            let names: Vec<String> = self.others.iter().map(|name| name.display().to_string()).collect();
            notices.push(format!(
                "not read, as it is not a folder of training, validation or test images: {}",
                first_names(&names)
            ));
        }
        notices
    }

    /// Class folders in the folder itself.
    fn classes(&self) -> Result<ImageFolder> {
        self.refuse_misplaced_splits()?;
        let no_folders = self.others.is_empty() && self.unlabelled.is_empty();
        ImageFolder::open(&self.root).map_err(|error| match self.other_reading() {
            Some(hint) if no_folders => error.hint(hint),
            _ => error,
        })
    }

    /// Checks that there are classes to distinguish.
    fn require_two_classes(&self, folder: &ImageFolder) -> Result<()> {
        folder.require_two_classes().map_err(|error| match self.other_reading() {
            Some(hint) => error.hint(hint),
            None => error,
        })
    }

    /// Checks for folders of splits in unexpected places.
    fn refuse_misplaced_splits(&self) -> Result<()> {
        let root = self.root.display();
        if let Some(held_out) = self.held_out() {
            return Err(Error::new(format!(
                "{root} contains {}/, but no folder of training images",
                held_out.display()
            ))
            .hint("put the training images beside it, into train/ with one folder for each class"));
        }
        let role = |name: &OsString| Role::of(name);
        let has = |wanted: fn(Role) -> bool| self.unlabelled.iter().any(|(name, _)| role(name).is_some_and(wanted));
        let only_splits = self.others.is_empty() && !self.unlabelled.is_empty();
        if only_splits || (has(|role| role == Role::Train) && has(|role| role != Role::Train)) {
            let names: Vec<String> = self.unlabelled.iter().map(|(name, _)| format!("{}/", name.display())).collect();
            let (names, holds) = (names.join(" and "), if names.len() == 1 { "contains" } else { "contain" });
            return Err(Error::new(format!(
                "{names} in {root} {holds} no class folders, so the classes of the images are not known"
            ))
            .hint("put the images of each class into a folder that has the name of the class"));
        }
        self.refuse_splits_below()
    }

    /// Folders of splits one level down.
    fn refuse_splits_below(&self) -> Result<()> {
        let mut inverted = Vec::new();
        for name in &self.others {
            let place = self.root.join(name);
            // Below a class there may be anything; only splits of both kinds are taken for splits.
            let below = sub_folders(&place, &mut NotRead::default())?;
            let roles: Vec<(&OsString, Role)> = below.iter().filter_map(|name| Some((name, Role::of(name)?))).collect();
            let Some((train, _)) = roles.iter().find(|(_, role)| *role == Role::Train) else { continue };
            let names: Vec<String> = roles.iter().map(|(name, _)| place.join(name).display().to_string()).collect();
            if !Content::of(&place.join(train))?.folders.is_empty() {
                return Err(Error::new(format!(
                    "{} contains no class folders; one level down there is {}",
                    self.root.display(),
                    names.join(" and ")
                ))
                .hint(format!("give {} as the data set", place.display())));
            }
            if roles.len() > 1 {
                inverted.push(names.join(" and "));
            }
        }
        match inverted.as_slice() {
            [first, ..] if inverted.len() == self.others.len() => Err(Error::new(format!(
                "every class folder in {} has its own splits, such as {first}; expected the splits above the classes",
                self.root.display()
            ))
            .hint("move the folders: train/CLASS instead of CLASS/train")),
            _ => Ok(()),
        }
    }

    /// A suggestion for a folder with one class folder or none.
    fn other_reading(&self) -> Option<String> {
        let content = Content::of(&self.root).ok()?;
        let only = match content.folders.as_slice() {
            [only] => Some((self.root.join(only), Content::of(&self.root.join(only)).ok()?)),
            _ => None,
        };
        let tables = content.tables.iter().map(|name| self.root.join(name));
        let below = only.iter().flat_map(|(place, inner)| inner.tables.iter().map(move |name| place.join(name)));
        let table = tables.chain(below).next();
        match (table, only) {
            (Some(table), only) => {
                let images = only.map_or_else(|| self.root.clone(), |(place, _)| place);
                Some(format!(
                    "labels in a CSV file with the columns path and label are read like this: {} --labels {}",
                    images.display(),
                    table.display()
                ))
            }
            (None, Some((place, inner))) if inner.folders.len() > 1 && inner.images == 0 => {
                Some(format!("if {} are the classes, give {} as the data set", shown(&inner.folders), place.display()))
            }
            _ => None,
        }
    }

    /// The error for training images alone.
    fn nothing_to_test_on(&self) -> Error {
        let root = self.root.display();
        let unlabelled: Vec<String> = self.unlabelled.iter().map(|(name, _)| format!("{}/", name.display())).collect();
        match unlabelled.as_slice() {
            [] => Error::new(format!(
                "{root} has a {}/ folder, but no test/ or val/ folder beside it, and no test fraction is given",
                self.train.as_deref().unwrap_or(OsStr::new("train")).display()
            ))
            .hint("make the folder, or hold out part of every class with a test fraction such as 0.2"),
            names => Error::new(format!(
                "{} in {root} cannot be tested on, as the images there are in no class folders, and no test fraction is given",
                names.join(" and ")
            ))
            .hint("hold out part of every training class with a test fraction such as 0.2, or sort the images by class"),
        }
    }
}

fn shown(names: &[OsString]) -> String {
    first_names(&names.iter().map(|name| name.display().to_string()).collect::<Vec<_>>())
}

/// Holds out the same share of every class: at least one image, and never all.
fn split(folder: ImageFolder, fraction: f64, seed: u64) -> Result<Splits> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Error::usage(format!("the test fraction is {fraction}; it must be between 0 and 1")));
    }
    let mut is_test = vec![false; folder.samples.len()];
    for (class, name) in folder.classes.iter().enumerate() {
        let mut members: Vec<usize> = (0..folder.len()).filter(|&index| folder.samples[index].class == class).collect();
        if members.len() < 2 {
            return Err(Error::new(format!(
                "{}: the class {name} has one image; two are needed to train on one and test on the other",
                folder.root.display()
            ))
            .hint("add images to the class, or remove it"));
        }
        let held_out = ((members.len() as f64 * fraction).round() as usize).clamp(1, members.len() - 1);
        RandomStream::new(seed, Purpose::Split, class as u64, 0).shuffle(&mut members);
        for &index in &members[..held_out] {
            is_test[index] = true;
        }
    }
    let part = |test: bool| ImageFolder {
        samples: folder.samples.iter().zip(&is_test).filter(|(_, t)| **t == test).map(|(s, _)| s.clone()).collect(),
        // Contents that are not read belong to no split in particular; they are counted once.
        not_read: if test { NotRead::default() } else { folder.not_read.clone() },
        ..folder.clone()
    };
    Ok(Splits::new(part(false), part(true)))
}
