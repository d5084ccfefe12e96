//! A folder of images, one sub-folder per class, as torchvision's `ImageFolder` reads it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use super::decode::DecodeOptions;
use super::random::{Purpose, RandomStream};
use crate::error::{Context, Error, Result};

/// The extensions of images, in lower case; a file's own may be in any case.
pub const EXTENSIONS: [&str; 9] = [".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"];

/// One image and its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The file.
    pub path: PathBuf,
    /// An index into [`ImageFolder::classes`].
    pub class: usize,
}

/// The images of a folder that holds one sub-folder per class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFolder {
    /// The folder of the class folders.
    pub root: PathBuf,
    /// The names of the classes; a class is known by its index here.
    pub classes: Vec<String>,
    /// The images, by class; within a class sorted by folder, then by file name.
    pub samples: Vec<Sample>,
    /// How they are decoded; [`ImageFolder::open`] sets the default.
    pub decoding: DecodeOptions,
}

/// The training and test images. Both have the same classes with the same indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splits {
    /// The images to train on.
    pub train: ImageFolder,
    /// The images to test on.
    pub test: ImageFolder,
}

impl Splits {
    /// The same images, decoded with these options.
    pub fn decoded_with(mut self, decoding: DecodeOptions) -> Self {
        (self.train.decoding, self.test.decoding) = (decoding, decoding);
        self
    }
}

impl ImageFolder {
    /// Lists the images below `root`. The classes are its sub-folders in byte order; images lie in them at any
    /// depth, behind symbolic links too.
    ///
    /// # Errors
    /// When there is no such folder, it holds no class folder, a class holds no image, or a folder is unreadable.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let folders = class_folders(root)?;
        let mut classes = Vec::with_capacity(folders.len());
        let mut samples = Vec::new();
        for (class, folder) in folders.iter().enumerate() {
            classes.push(folder.to_string_lossy().into_owned());
            collect_samples(&root.join(folder), class, &mut samples)?;
        }
        Ok(Self { root: root.to_path_buf(), classes, samples, decoding: DecodeOptions::default() })
    }

    /// Lists the images below `root`, with the classes of a trained model or of the training images. A class
    /// may lack a folder, but a folder must not lack its class.
    ///
    /// # Errors
    /// Those of [`ImageFolder::open`], and a folder whose name is not in `classes`.
    pub fn open_with_classes(root: impl AsRef<Path>, classes: &[String]) -> Result<Self> {
        let mut folder = Self::open(root)?;
        let mut indices = Vec::with_capacity(folder.classes.len());
        for name in &folder.classes {
            let index = classes.iter().position(|known| known == name).ok_or_else(|| {
                Error::new(format!(
                    "{} is not one of the {} classes of the model: {}",
                    folder.root.join(name).display(),
                    classes.len(),
                    first_names(classes)
                ))
                .hint("remove the folder, or give the class images to train on")
            })?;
            indices.push(index);
        }
        for sample in &mut folder.samples {
            sample.class = indices[sample.class];
        }
        folder.samples.sort_by_key(|sample| sample.class);
        folder.classes = classes.to_vec();
        Ok(folder)
    }

    /// Checks that there are classes to distinguish.
    ///
    /// # Errors
    /// When there is only one class.
    pub fn require_two_classes(&self) -> Result<()> {
        match self.classes.as_slice() {
            [only] => Err(Error::new(format!(
                "{} has only one class folder, {only}; a classifier needs at least two",
                self.root.display()
            ))
            .hint("add a folder of images of another class")),
            _ => Ok(()),
        }
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
}

/// Opens a data set: `root` holds `train/` and `test/` (or `val/`); or `train/` alone, or one level of class folders,
/// of which each class gives `test_fraction` of its images, chosen by `seed`, to the test.
///
/// # Errors
/// Those of [`ImageFolder`]; only one class; a test class that training lacks; a fraction that is missing, not between
/// 0 and 1, or given although there is a test folder; a class of one image to be split.
pub fn open_dataset(root: impl AsRef<Path>, test_fraction: Option<f64>, seed: u64) -> Result<Splits> {
    let root = root.as_ref();
    require_folder(root)?;
    let train_root = root.join("train");
    let test_root = ["test", "val"].map(|name| root.join(name)).into_iter().find(|path| path.is_dir());

    // A data set of vehicles may well have a class called "train": then that folder holds images, not folders.
    if !train_root.is_dir() || (test_root.is_none() && sub_folders(&train_root)?.is_empty()) {
        return match test_fraction {
            Some(fraction) => split(ImageFolder::open(root)?, fraction, seed),
            None => Err(Error::new(format!(
                "{} holds no train/ and test/ (or val/) folders, and no test fraction is given",
                root.display()
            ))
            .hint("make both folders, or hold out part of every class with a test fraction such as 0.2")),
        };
    }
    let train = ImageFolder::open(&train_root)?;
    train.require_two_classes()?;
    match (test_root, test_fraction) {
        (Some(test_root), None) => {
            let test = ImageFolder::open_with_classes(test_root, &train.classes)?;
            Ok(Splits { train, test })
        }
        (None, Some(fraction)) => split(train, fraction, seed),
        (Some(test_root), Some(_)) => {
            Err(Error::usage(format!("a test fraction is given, but there is {} to test on", test_root.display()))
                .hint("leave the test fraction out, or move the test folder away"))
        }
        (None, None) => Err(Error::new(format!(
            "{} has a train/ folder, but no test/ or val/ folder beside it, and no test fraction is given",
            root.display()
        ))
        .hint("make the folder, or hold out part of every class with a test fraction such as 0.2")),
    }
}

/// Holds out the same share of every class: at least one image, and never all.
fn split(folder: ImageFolder, fraction: f64, seed: u64) -> Result<Splits> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Error::usage(format!("the test fraction is {fraction}; it has to be between 0 and 1")));
    }
    folder.require_two_classes()?;
    let mut is_test = vec![false; folder.samples.len()];
    for (class, name) in folder.classes.iter().enumerate() {
        let mut members: Vec<usize> = (0..folder.len()).filter(|&index| folder.samples[index].class == class).collect();
        if members.len() < 2 {
            return Err(Error::new(format!(
                "{} holds one image; two are needed to train on one and test on the other",
                folder.root.join(name).display()
            ))
            .hint("add images to the class, or remove its folder"));
        }
        let held_out = ((members.len() as f64 * fraction).round() as usize).clamp(1, members.len() - 1);
        RandomStream::new(seed, Purpose::Split, class as u64, 0).shuffle(&mut members);
        for &index in &members[..held_out] {
            is_test[index] = true;
        }
    }
    let part = |test: bool| ImageFolder {
        root: folder.root.clone(),
        classes: folder.classes.clone(),
        samples: folder.samples.iter().zip(&is_test).filter(|(_, t)| **t == test).map(|(s, _)| s.clone()).collect(),
        decoding: folder.decoding,
    };
    Ok(Splits { train: part(false), test: part(true) })
}

fn require_folder(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Error::new(format!("{} is a file; expected a folder of class folders", path.display()))),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::new(format!("there is no folder {}", path.display())).hint("check the spelling of the path"))
        }
        Err(cause) => Err(Error::new(format!("cannot read the folder {}: {cause}", path.display()))),
    }
}

fn class_folders(root: &Path) -> Result<Vec<OsString>> {
    require_folder(root)?;
    let folders = sub_folders(root)?;
    if folders.is_empty() {
        return Err(Error::new(format!("{} holds no folders; expected one for each class", root.display()))
            .hint("put the images of each class into a folder that has the name of the class"));
    }
    // Names that are not Unicode are shown with replacement characters, which can make two of them the same.
    for pair in folders.windows(2) {
        if pair[0].to_string_lossy() == pair[1].to_string_lossy() {
            return Err(Error::new(format!(
                "{} holds two class folders whose names are not Unicode and read the same",
                root.join(&pair[0]).display()
            ))
            .hint("rename one of them"));
        }
    }
    Ok(folders)
}

/// The names of the folders in `root`, in byte order.
fn sub_folders(root: &Path) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in entries(root)? {
        if entry.is_folder {
            names.push(entry.name);
        }
    }
    names.sort();
    Ok(names)
}

struct Entry {
    name: OsString,
    is_folder: bool,
    is_link: bool,
}

fn entries(folder: &Path) -> Result<Vec<Entry>> {
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

fn collect_samples(class_folder: &Path, class: usize, samples: &mut Vec<Sample>) -> Result<()> {
    let mut folders = Vec::new();
    let mut ancestors = vec![real_path(class_folder)?];
    walk(class_folder, &mut ancestors, &mut folders)?;
    folders.sort_by(|a, b| a.0.as_os_str().as_encoded_bytes().cmp(b.0.as_os_str().as_encoded_bytes()));

    let before = samples.len();
    for (folder, mut files) in folders {
        files.sort();
        samples.extend(files.into_iter().map(|file| Sample { path: folder.join(file), class }));
    }
    if samples.len() == before {
        return Err(Error::new(format!(
            "the class folder {} holds no image; the extensions accepted are {}",
            class_folder.display(),
            EXTENSIONS.join(" ")
        ))
        .hint("put images into the folder, or remove it"));
    }
    Ok(())
}

/// Lists `folder` and all folders below it, each with the names of its images. A link to a folder that the walk is
/// inside of is not followed.
fn walk(folder: &Path, ancestors: &mut Vec<PathBuf>, found: &mut Vec<(PathBuf, Vec<OsString>)>) -> Result<()> {
    let mut files = Vec::new();
    for entry in entries(folder)? {
        let path = folder.join(&entry.name);
        if !entry.is_folder {
            if has_image_extension(&entry.name) {
                files.push(entry.name);
            }
            continue;
        }
        let real = if entry.is_link { real_path(&path)? } else { inside(ancestors, &entry.name) };
        if !ancestors.contains(&real) {
            ancestors.push(real);
            walk(&path, ancestors, found)?;
            ancestors.pop();
        }
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

fn has_image_extension(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    EXTENSIONS.iter().any(|extension| {
        name.len() >= extension.len() && name[name.len() - extension.len()..].eq_ignore_ascii_case(extension.as_bytes())
    })
}

fn first_names(names: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(", ...");
    }
    text
}
