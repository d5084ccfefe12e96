//! The layout of a data set: folders of splits, each with class folders; or class folders alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::decode::DecodeOptions;
use super::format::FileKind;
use super::image_folder::{
    ImageFolder, UnknownClasses, counted, entries, first_names, normal_form, note_images_in, require_folder,
    sub_folders,
};
use super::labels::{Table, fits};
use super::not_read::NotRead;
use super::random::{Purpose, RandomStream};
use super::role::Role;
use crate::error::{Error, Result};

/// The images of a data set. All parts have the same classes with the same indices.
#[derive(Debug, Clone, PartialEq)]
pub struct Splits {
    /// The images to train on.
    pub train: ImageFolder,
    /// The images that choose the epoch whose model is kept, if they are not the test images.
    pub validation: Option<ImageFolder>,
    /// The images to test on.
    pub test: ImageFolder,
    /// Notices for the user about the layout of the folders.
    pub notices: Vec<String>,
    drawn: Option<Drawn>,
}

/// How the test images were drawn from the images of one folder.
#[derive(Debug, Clone, PartialEq)]
struct Drawn {
    fraction: f64,
    seed: u64,
    /// For each image of the folder, whether it is a test image.
    is_test: Vec<bool>,
}

impl Splits {
    /// Training and test images.
    pub fn new(train: ImageFolder, test: ImageFolder) -> Self {
        Self { train, validation: None, test, notices: Vec::new(), drawn: None }
    }

    /// Whether the test images were drawn by a fraction.
    pub fn is_drawn(&self) -> bool {
        self.drawn.is_some()
    }

    /// Draws the test images again, if they were drawn: without the images in `left_out`, so that those of a group in `together` are
    /// all test images or all training images, and so that the images in `known` stay in their splits. Images are named as by
    /// [`ImageFolder::name_of`].
    ///
    /// # Errors
    /// When a class has fewer than two images or no training image left, or no test image is left.
    pub fn draw_again(
        &mut self,
        left_out: &HashSet<&str>,
        together: &[Vec<&str>],
        known: &HashMap<String, Role>,
    ) -> Result<()> {
        let Some(Drawn { fraction, seed, is_test }) = self.drawn.take() else { return Ok(()) };
        let [mut train, mut test] =
            [&mut self.train, &mut self.test].map(|part| std::mem::take(&mut part.samples).into_iter());
        let in_order = is_test.iter().filter_map(|is_test| if *is_test { test.next() } else { train.next() });
        let named = in_order.map(|sample| (self.train.name_of(&sample.path), sample));
        let (names, samples): (Vec<String>, Vec<_>) =
            named.filter(|(name, _)| !left_out.contains(name.as_str())).unzip();
        let places: HashMap<&str, usize> =
            names.iter().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
        let groups = together.iter().map(|group| group.iter().filter_map(|name| places.get(name).copied()).collect());
        let groups = groups.collect::<Vec<_>>();
        let roles: Vec<Option<Role>> = names.iter().map(|name| known.get(name).copied()).collect();
        let again = split(ImageFolder { samples, ..self.train.clone() }, fraction, seed, &groups, &roles)?;
        (self.train, self.test, self.drawn) = (again.train, again.test, again.drawn);
        let lacking = self.train.class_counts().iter().position(|&count| count == 0);
        let lacking = match lacking.map(|class| &self.train.classes[class]) {
            Some(class) => format!("no training image of the class {class} is left: the others are test images"),
            None if self.test.is_empty() => "no test image is left".into(),
            None => return Ok(()),
        };
        Err(Error::new(format!("{}: {lacking}", self.train.root.display()))
            .hint("restore the images that the run began with, or start another run"))
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
            if let Some(below) = layout.folders_in_all()? {
                notices.push(format!(
                    "the folders {} are the classes, although each contains the folders {}: if those are the classes, give one of the \
                     folders as the data set, or name them train and test",
                    shown(&layout.others),
                    shown(&below)
                ));
            }
            match test_fraction {
                Some(fraction) => split(folder, fraction, seed, &[], &[])?,
                None => {
                    return Err(Error::new(format!(
                        "{} contains no train/ and test/ (or val/) folders, and no test fraction is given",
                        root.display()
                    ))
                    .hint("make both folders, or hold out part of every class for testing with --test-fraction 0.2"));
                }
            }
        }
        Some(train) => {
            let train = ImageFolder::open(root.join(train))?;
            train.require_two_classes()?;
            match (layout.held_out(), test_fraction) {
                (None, Some(fraction)) => split(train, fraction, seed, &[], &[])?,
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
                        let (folder, correspondence) = ImageFolder::list(&place)?.with_classes(
                            &train.classes,
                            &train.spellings,
                            UnknownClasses::Refuse,
                        )?;
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
    notices.extend(splits.train.notices_of_names(&splits.train.root));
    // If there are no splits, the list of classes has counted them.
    if layout.train.is_some() {
        splits.train.not_read.add(&layout.not_read);
    }
    notices.extend(splits.not_read().notices());
    splits.notices = notices;
    Ok(splits)
}

/// Opens the images in `root` that the CSV file `table` gives labels to. If the table has a column of splits, they are those of the images;
/// otherwise each class gives `test_fraction` of its images, chosen by `seed`, to the test.
///
/// # Errors
/// When the table or a file that it names cannot be read; those of [`open_dataset`].
pub fn open_table(root: impl AsRef<Path>, table: &Path, test_fraction: Option<f64>, seed: u64) -> Result<Splits> {
    let shown = table.display();
    let mut read = Table::open(root.as_ref(), table)?;
    let mut notices = std::mem::take(&mut read.notices);
    let train = match read.has_splits() {
        true => read.part(Role::Train).ok_or_else(|| {
            let value = read.training_value;
            Error::new(format!("{shown} has no training images: no line has {value} in its column of splits"))
                .hint(format!("write {value} into the lines of the images to train on"))
        })?,
        false => read.images.clone(),
    };
    if let [only] = read.images.classes.as_slice() {
        return Err(Error::new(format!("{shown} has only one label, {only}; a classifier needs at least two"))
            .hint("add images of another class"));
    }
    let [validation, test] = [Role::Validation, Role::Test].map(|role| read.part(role));
    let mut splits = match (test, validation, test_fraction) {
        (None, None, Some(fraction)) => split(train, fraction, seed, &[], &[])?,
        (None, None, None) => {
            return Err(Error::usage(format!("no test fraction is given for the images in {shown}"))
                .hint("hold out part of every class for testing, for example with --test-fraction 0.2"));
        }
        (_, _, Some(_)) => {
            return Err(Error::usage(format!("a test fraction is given, but {shown} has its own test images"))
                .hint("leave the test fraction out, or the column of splits"));
        }
        (Some(test), validation, None) => Splits { validation, ..Splits::new(train, test) },
        (None, Some(test), None) => Splits::new(train, test),
    };
    let counts = splits.train.class_counts();
    if let Some(class) = counts.iter().position(|&count| count == 0) {
        let held_out = splits.by_role().map(|(role, part)| (role, part.class_counts()[class]));
        let found: Vec<String> = held_out
            .filter(|(_, count)| *count > 0)
            .map(|(role, count)| counted(count, &format!("{} image", role.name()), &format!("{} images", role.name())))
            .collect();
        return Err(Error::new(format!(
            "{shown} has {} of the class {}, but no training image of it",
            found.join(" and "),
            splits.train.classes[class]
        ))
        .hint("write train into some of its lines, or remove them"));
    }
    for (role, part) in splits.by_role().filter(|(role, _)| *role != Role::Train) {
        let classes = part.classes.iter().zip(part.class_counts());
        let missing: Vec<String> = classes.filter(|(_, count)| *count == 0).map(|(name, _)| name.clone()).collect();
        if !missing.is_empty() && !splits.is_drawn() {
            let classes = if missing.len() == 1 { "class" } else { "classes" };
            notices.push(format!("{shown} has no {} image of the {classes} {}", role.name(), first_names(&missing)));
        }
    }
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
    /// The split that the images are, if the folders have splits.
    pub role: Option<Role>,
    /// The folder that contains the images.
    pub folder: PathBuf,
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
            let found = match layout.unlabelled_images() {
                Some(found) => found,
                None => format!("{} is all there is", root.join(train).display()),
            };
            return Err(Error::new(format!("{} contains training images, but no test images: {found}", root.display()))
                .hint(format!(
                    "put test images into {}, with one folder for each class; to evaluate the training images, give their folder",
                    root.join("test").display()
                )));
        }
    };
    let one_class = folder.classes.len() == 1;
    let merged = folder.notices_of_names(&place);
    let with_classes = folder.with_classes(classes, &spelled(classes), UnknownClasses::LeaveOut);
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
    notices.extend(merged);
    notices.extend(correspondence.notices(&place));
    let mut not_read = images.not_read.clone();
    // If there are no splits, the list of classes has counted them.
    if place != root {
        not_read.add(&layout.not_read);
    }
    notices.extend(not_read.notices());
    let role = layout.test.as_ref().map(|_| Role::Test).or(layout.validation.as_ref().map(|_| Role::Validation));
    Ok(Labelled { images, unknown: correspondence.unknown, notices, role, folder: place })
}

/// The images in `root` that the CSV file `table` gives labels to, to evaluate a model with `classes` on: if the table has a column of
/// splits, those of the test, else of the validation.
///
/// # Errors
/// When the table or a file that it names cannot be read; training images alone; no image of a class of the model.
pub fn open_labelled_by(root: impl AsRef<Path>, table: &Path, classes: &[String]) -> Result<Labelled> {
    let read = Table::open(root.as_ref(), table)?;
    let not_read = read.images.not_read.clone();
    let (role, mut images) = match read.has_splits() {
        true => {
            let part = |role| Some((Some(role), read.part(role)?));
            part(Role::Test).or_else(|| part(Role::Validation)).ok_or_else(|| {
                Error::new(format!("{} has training images, but no test images", table.display()))
                    .hint("write test into the lines of the images to evaluate, or remove the column of splits")
            })?
        }
        false => (None, read.images),
    };
    images.not_read = not_read.clone();
    let (images, correspondence) = images.with_classes(classes, &spelled(classes), UnknownClasses::LeaveOut)?;
    let mut notices = read.notices;
    notices.extend(correspondence.notices(table));
    notices.extend(not_read.notices());
    Ok(Labelled { images, unknown: correspondence.unknown, notices, role, folder: root.as_ref().into() })
}

/// Names that are written as they are.
fn spelled(classes: &[String]) -> Vec<Vec<String>> {
    classes.iter().map(|class| vec![class.clone()]).collect()
}

/// The training images, or all images if there are no splits, for display, and notices for the user about the folders.
///
/// # Errors
/// Those of [`ImageFolder::open`], and folders of splits where classes are expected.
pub fn open_training_images(root: impl AsRef<Path>) -> Result<(ImageFolder, Vec<String>)> {
    let root = root.as_ref();
    let layout = Layout::of(root)?;
    let folder = match &layout.train {
        Some(train) => ImageFolder::open(root.join(train))?,
        None => layout.classes()?,
    };
    let mut notices = folder.notices_of_names(&folder.root);
    let mut not_read = folder.not_read.clone();
    // If there are no splits, the list of classes has counted them.
    if layout.train.is_some() {
        not_read.add(&layout.not_read);
    }
    notices.extend(not_read.notices());
    Ok((folder, notices))
}

/// The folders in the folder of a data set, by their kind.
struct Layout {
    root: PathBuf,
    /// Splits that contain class folders.
    train: Option<OsString>,
    validation: Option<OsString>,
    test: Option<OsString>,
    /// Folders with the name of a split that contain no class folders.
    unlabelled: Vec<Unlabelled>,
    /// All other folders.
    others: Vec<OsString>,
    not_read: NotRead,
}

/// A folder with the name of a split that contains no class folders.
struct Unlabelled {
    name: OsString,
    role: Role,
    images: usize,
}

/// The roles of the folders in `root` with these names.
///
/// # Errors
/// When several of them have the name of the same split.
fn roles_of(root: &Path, names: &[OsString]) -> Result<Vec<Option<Role>>> {
    let plain: Vec<Option<Role>> = names.iter().map(|name| Role::of(name)).collect();
    if plain.iter().any(Option::is_some) {
        return Ok(plain);
    }
    // Among other folders, images in such a folder may be those of a class.
    let is_sure = |roles: &Vec<Option<Role>>| {
        let mut training = names.iter().zip(roles).filter(|(_, role)| **role == Some(Role::Train));
        let has_classes = |name| Content::of(&root.join(name)).is_ok_and(|content| !content.folders.is_empty());
        roles.iter().all(Option::is_some) || training.any(|(name, _)| has_classes(name))
    };
    let mut found = Role::within_common_names(names).into_iter().filter(is_sure);
    let Some(roles) = found.next() else { return Ok(plain) };
    if found.next().is_some() {
        return Err(Error::new(format!(
            "{} contains several data sets, each with its own splits: {}",
            root.display(),
            shown(names)
        ))
        .hint("move the splits of one of them into a folder of their own, and give that"));
    }
    Ok(roles)
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
        let names = sub_folders(root, &mut layout.not_read)?;
        note_images_in(root, &mut layout.not_read)?;
        let roles = roles_of(root, &names)?;
        for (name, role) in names.into_iter().zip(roles) {
            let Some(role) = role else {
                layout.others.push(name);
                continue;
            };
            let content = Content::of(&root.join(&name))?;
            if content.folders.is_empty() {
                layout.unlabelled.push(Unlabelled { name, role, images: content.images });
                continue;
            }
            // Some archives contain the folder of a split in another of the same name.
            let name = match content.folders.as_slice() {
                [only] if *only == name && content.images == 0 => Path::new(&name).join(only).into_os_string(),
                _ => name,
            };
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
        for Unlabelled { name, images, .. } in &self.unlabelled {
            let found = match images {
                0 => "it contains neither class folders nor images".to_string(),
                _ => format!("it has no class folders ({})", counted(*images, "image", "images")),
            };
            notices.push(format!("{} is set aside: {found}", self.root.join(name).display()));
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
        ImageFolder::open(&self.root).map_err(|error| {
            let hint = if no_folders { self.other_reading() } else { self.table() };
            match hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        })
    }

    /// What the folders of splits contain that have no class folders: `data/test has 5 images in no class folders`.
    fn unlabelled_images(&self) -> Option<String> {
        let found = self.unlabelled.iter().map(|Unlabelled { name, images, .. }| {
            let place = self.root.join(name);
            match images {
                0 => format!("{} contains neither class folders nor images", place.display()),
                _ => format!("{} has {} in no class folders", place.display(), counted(*images, "image", "images")),
            }
        });
        (!self.unlabelled.is_empty()).then(|| found.collect::<Vec<_>>().join(", and "))
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
        const CLASS_FOLDERS: &str = "put the images of each class into a folder that has the name of the class";
        let unlabelled = self.unlabelled_images().unwrap_or_default();
        if let Some(held_out) = self.held_out() {
            if self.unlabelled.iter().any(|split| split.role == Role::Train) {
                return Err(Error::new(format!(
                    "{root} contains {}/, but no training images with classes: {unlabelled}",
                    held_out.display()
                ))
                .hint(CLASS_FOLDERS));
            }
            return Err(Error::new(format!(
                "{root} contains {}/, but no folder of training images",
                held_out.display()
            ))
            .hint("put the training images beside it, into train/ with one folder for each class"));
        }
        let has = |wanted: fn(Role) -> bool| self.unlabelled.iter().any(|split| wanted(split.role));
        let only_splits = self.others.is_empty() && !self.unlabelled.is_empty();
        if only_splits || (has(|role| role == Role::Train) && has(|role| role != Role::Train)) {
            let consequence = match self.unlabelled.iter().any(|split| split.images > 0) {
                true => ", so the classes of the images are not known",
                false => "",
            };
            return Err(Error::new(format!("{unlabelled}{consequence}")).hint(CLASS_FOLDERS));
        }
        self.refuse_splits_below()?;
        self.refuse_classes_below()
    }

    /// Folders that are rather splits with names of their own, such as `fold1` and `fold2` or `1_train` and `2_test`: they contain folders
    /// with mostly the same names, and no images beside those.
    fn refuse_classes_below(&self) -> Result<()> {
        let names: Vec<String> = self.others.iter().map(|name| name.to_string_lossy().into_owned()).collect();
        let (mut parts, mut shared, mut fewest) = (Vec::new(), Vec::new(), usize::MAX);
        for (name, _) in self.others.iter().zip(Role::parts_among(&names)).filter(|(_, is_part)| *is_part) {
            let content = Content::of(&self.root.join(name))?;
            if content.folders.len() < 2 || content.images > 0 {
                continue;
            }
            let lower = |name: &OsString| normal_form(&name.to_string_lossy()).to_lowercase();
            let below: HashSet<String> = content.folders.iter().map(lower).collect();
            fewest = fewest.min(below.len());
            match parts.is_empty() {
                true => shared = content.folders,
                false => shared.retain(|name| below.contains(&lower(name))),
            }
            parts.push(name.clone());
        }
        if parts.len() < 2 || shared.is_empty() || 2 * shared.len() < fewest {
            return Ok(());
        }
        let root = self.root.display();
        Err(Error::new(format!(
            "the folders {} in {root} seem to be splits of the data set, not classes: each contains the folders {}",
            shown(&parts),
            shown(&shared)
        ))
        .hint(
            "name the folder of training images train, and that of test images test; if they are classes, move their images out of \
             these folders",
        ))
    }

    /// The names of the folders in each of the folders, if they are the same everywhere, at least two, and there are no images beside
    /// them.
    fn folders_in_all(&self) -> Result<Option<Vec<OsString>>> {
        let mut same: Option<Vec<OsString>> = None;
        for name in &self.others {
            let content = Content::of(&self.root.join(name))?;
            if content.folders.len() < 2
                || content.images > 0
                || same.as_ref().is_some_and(|same| *same != content.folders)
            {
                return Ok(None);
            }
            same = Some(content.folders);
        }
        Ok(same.filter(|_| self.others.len() > 1))
    }

    /// Folders of splits one level down.
    fn refuse_splits_below(&self) -> Result<()> {
        let mut inverted = Vec::new();
        for name in &self.others {
            let place = self.root.join(name);
            // Below a class there may be anything; only splits of both kinds are taken for splits.
            let below = sub_folders(&place, &mut NotRead::default())?;
            let Ok(roles) = roles_of(&place, &below) else { continue };
            let roles: Vec<(&OsString, Role)> =
                below.iter().zip(roles).filter_map(|(name, role)| Some((name, role?))).collect();
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
        self.table().or_else(|| {
            let content = Content::of(&self.root).ok()?;
            let [only] = content.folders.as_slice() else { return None };
            let place = self.root.join(only);
            let inner = Content::of(&place).ok()?;
            (inner.folders.len() > 1 && inner.images == 0).then(|| {
                format!("if {} are the classes, give {} as the data set", shown(&inner.folders), place.display())
            })
        })
    }

    /// The suggestion to read labels from a CSV file: one in the folder or in a folder in it; else one beside the folder or in a folder
    /// beside it that names its images.
    fn table(&self) -> Option<String> {
        let content = Content::of(&self.root).ok()?;
        let with_images = |folder: &PathBuf| Content::of(folder).is_ok_and(|inner| inner.images > 0);
        let inside: Vec<PathBuf> = content.folders.iter().map(|name| self.root.join(name)).collect();
        let mut images = inside.iter().filter(|folder| with_images(folder));
        let images = match (content.images, images.next(), images.next()) {
            (0, Some(only), None) => only.clone(),
            _ => self.root.clone(),
        };
        let near = || {
            let parent = self.root.parent()?;
            let listed = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            let beside = Content::of(listed).ok()?.folders.into_iter().map(|name| parent.join(name));
            let folders: Vec<PathBuf> = [parent.to_path_buf()].into_iter().chain(beside.take(MOST_FOLDERS)).collect();
            tables_in(&folders).find(|table| fits(&images, table))
        };
        // With several folders of images, these are rather the classes.
        let is_likely = content.folders.len() < 2 || images != self.root;
        let here: Vec<PathBuf> =
            [self.root.clone()].into_iter().chain(inside.iter().take(MOST_FOLDERS).cloned()).collect();
        let table = tables_in(&here).next().filter(|_| is_likely).or_else(near)?;
        Some(format!(
            "labels in a CSV file with the columns path and label are read by train and eval, like this: {} --labels {}",
            images.display(),
            table.display()
        ))
    }

    /// Another folder beside that of the training images, which contains folders as well.
    fn beside_training(&self) -> Option<String> {
        let has_folders = |name: &&OsString| Content::of(&self.root.join(name)).is_ok_and(|it| !it.folders.is_empty());
        self.others.iter().find(has_folders).map(|name| name.to_string_lossy().into_owned())
    }

    /// The error for training images alone.
    fn nothing_to_test_on(&self) -> Error {
        let root = self.root.display();
        match self.unlabelled_images() {
            None => Error::new(format!(
                "{root} has a {}/ folder, but no test/ or val/ folder beside it, and no test fraction is given",
                self.train.as_deref().unwrap_or(OsStr::new("train")).display()
            ))
            .hint(match self.beside_training().as_deref() {
                Some(other) => format!(
                    "rename {other}/ to test if it contains the images to test on, or hold out part of every class for testing with \
                     --test-fraction 0.2"
                ),
                None => "make the folder, or hold out part of every class for testing with --test-fraction 0.2".into(),
            }),
            Some(found) => Error::new(format!("there is nothing to test on: {found}, and no test fraction is given"))
                .hint("put test images into one folder for each class there, or hold out part of every training class with \
                       --test-fraction 0.2"),
        }
    }
}

/// How many folders are searched for tables at most.
const MOST_FOLDERS: usize = 100;

/// The files in these folders that may be tables of labels.
fn tables_in(folders: &[PathBuf]) -> impl Iterator<Item = PathBuf> {
    folders.iter().flat_map(|folder| {
        let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let tables = Content::of(listed).map(|content| content.tables).unwrap_or_default();
        tables.into_iter().map(|name| folder.join(name))
    })
}

fn shown(names: &[OsString]) -> String {
    first_names(&names.iter().map(|name| name.display().to_string()).collect::<Vec<_>>())
}

/// Holds out the same share of every class: at least one image, and never all. The images of a group in `together` stay on one side, as
/// far as that is possible. An image with a role in `known` keeps it, and the others of its group get it; the share is then that of the
/// images without one.
fn split(
    folder: ImageFolder,
    fraction: f64,
    seed: u64,
    together: &[Vec<usize>],
    known: &[Option<Role>],
) -> Result<Splits> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Error::usage(format!("the test fraction is {fraction}; it must be between 0 and 1")));
    }
    let counts = folder.class_counts();
    if let Some(class) = counts.iter().position(|&count| count < 2) {
        return Err(Error::new(format!(
            "{}: the class {} has {}; two are needed to train on one and test on the other",
            folder.root.display(),
            folder.classes[class],
            if counts[class] == 0 { "no image" } else { "one image" }
        ))
        .hint("add images to the class, or remove it"));
    }
    let mut held = HeldOutImages { folder: &folder, held: vec![0; counts.len()], is_test: vec![false; folder.len()] };
    let mut is_settled: Vec<bool> =
        (0..folder.len()).map(|index| known.get(index).is_some_and(Option::is_some)).collect();
    for index in (0..folder.len()).filter(|&index| known.get(index) == Some(&Some(Role::Test))) {
        held.hold_out(&[index], &counts);
    }
    for group in together {
        let has = |role: Role| group.iter().any(|&index| known.get(index) == Some(&Some(role)));
        if has(Role::Test) && !has(Role::Train) {
            held.hold_out(group, &counts);
        }
        if has(Role::Test) || has(Role::Train) {
            group.iter().for_each(|&index| is_settled[index] = true);
        }
    }
    let mut of_class = vec![Vec::new(); counts.len()];
    for (index, sample) in folder.samples.iter().enumerate().filter(|(index, _)| !is_settled[*index]) {
        of_class[sample.class].push(index);
    }
    let share = |images: usize| (images as f64 * fraction).round() as usize;
    let wanted = counts.iter().zip(&held.held).zip(&of_class);
    let wanted: Vec<usize> =
        wanted.map(|((&count, held), drawn)| (held + share(drawn.len())).clamp(1, count - 1)).collect();
    let all_but_one: Vec<usize> = counts.iter().map(|count| count - 1).collect();
    let groups: HashMap<usize, &[usize]> =
        together.iter().flat_map(|group| group.iter().map(move |&index| (index, group.as_slice()))).collect();
    for (class, mut members) in of_class.into_iter().enumerate() {
        RandomStream::new(seed, Purpose::Split, class as u64, 0).shuffle(&mut members);
        let alone: Vec<[usize; 1]> = members.iter().map(|&index| [index]).collect();
        // Each group once, at the place of its first image.
        let mut seen = HashSet::new();
        let mut units: Vec<&[usize]> = Vec::with_capacity(members.len());
        for own in &alone {
            match groups.get(&own[0]) {
                Some(group) if seen.insert(group[0]) => units.push(group),
                Some(_) => {}
                None => units.push(own),
            }
        }
        for unit in &units {
            held.hold_out(unit, &wanted);
        }
        if held.held[class] == 0 {
            // A group that is larger than the share is better than none.
            units.sort_by_key(|unit| unit.len());
            let _ = units.iter().any(|unit| held.hold_out(unit, &all_but_one));
        }
        if held.held[class] == 0 && alone.len() == counts[class] {
            // All images of the class look the same.
            alone.iter().take(wanted[class]).for_each(|own| _ = held.hold_out(own, &all_but_one));
        }
    }
    let is_test = held.is_test;
    let part = |test: bool| ImageFolder {
        samples: folder.samples.iter().zip(&is_test).filter(|(_, t)| **t == test).map(|(s, _)| s.clone()).collect(),
        // Contents that are not read belong to no split in particular; they are counted once.
        not_read: if test { NotRead::default() } else { folder.not_read.clone() },
        ..folder.clone()
    };
    let (train, test) = (part(false), part(true));
    Ok(Splits { drawn: Some(Drawn { fraction, seed, is_test }), ..Splits::new(train, test) })
}

/// The test images that are drawn so far.
struct HeldOutImages<'a> {
    folder: &'a ImageFolder,
    /// How many each class has.
    held: Vec<usize>,
    is_test: Vec<bool>,
}

impl HeldOutImages<'_> {
    /// Holds these images out if no class then has more than `most` of them. Returns whether they are held out.
    fn hold_out(&mut self, images: &[usize], most: &[usize]) -> bool {
        let mut held = BTreeMap::new();
        for &index in images.iter().filter(|&&index| !self.is_test[index]) {
            *held.entry(self.folder.samples[index].class).or_insert(0) += 1;
        }
        let fits = held.iter().all(|(&class, count)| self.held[class] + count <= most[class]);
        if fits {
            images.iter().for_each(|&index| self.is_test[index] = true);
            held.into_iter().for_each(|(class, count)| self.held[class] += count);
        }
        fits
    }
}
