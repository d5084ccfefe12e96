//! `data_check.json`: what is wrong with the images of a run, found before its first step.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::folder::RunFolder;
use super::image_list::ImageList;
use super::recipe::Recipe;
use crate::data::{Examination, Role, Splits, counted, first_names};
use crate::error::{Context, Error, Result};
use crate::file::write_atomically;

/// Classes with fewer training images than this are named.
const FEW_IMAGES: usize = 10;
/// A class with more than this many times the training images of another is named.
const LARGEST_RATIO: usize = 4;
/// Runs with fewer steps than this are said to be short.
const FEW_STEPS: usize = 50;
/// The EXIF orientation is mentioned if more than one image in this many has one.
const TURNED_SHARE: usize = 100;

/// What to do where too few images are left.
const CORRECT: &str = "correct the folders by hand; without --drop-duplicates, the report shows the copies";

/// See the module documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataCheck {
    /// Images that the data set contains more than once.
    pub duplicates: Vec<DuplicateImages>,
    /// Whether the test images were drawn once these images were known, so that those that look the same are in one split. Earlier versions
    /// drew them before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub before_split: bool,
    /// What makes the results uncertain, one line each, with what to do about it.
    pub cautions: Vec<String>,
}

/// Images that are identical or look the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuplicateImages {
    /// Whether the files are identical.
    pub identical: bool,
    /// At least two: training images first, then validation images, then test images.
    pub images: Vec<DuplicateImage>,
}

/// One of several images that look the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuplicateImage {
    /// `train`, `validation` or `test`.
    pub split: String,
    /// The file, below the folder of the split, with `/` between folders.
    pub path: String,
    /// Its class.
    pub class: String,
    /// Whether the run leaves it out.
    pub left_out: bool,
}

/// The images of a run that has begun, to continue it with others. There are none for a new run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EarlierImages {
    /// Those that it uses, by split and name.
    used: HashSet<(String, String)>,
    /// The splits of those that it drew test images from, by their names. Copies that it leaves out have that of the one that it uses.
    drawn: HashMap<String, Role>,
}

impl EarlierImages {
    /// The images in a list, and those that `check` leaves out.
    pub fn new(list: &ImageList, check: &DataCheck) -> Self {
        let role = |split: &str| [Role::Train, Role::Test].into_iter().find(|role| role.name() == split);
        let is_copy = |found: &&DuplicateImages| found.images.iter().any(|image| !image.left_out);
        let copies = check.duplicates.iter().filter(is_copy).flat_map(|found| &found.images);
        let copies = copies.filter(|image| image.left_out).map(|image| (&*image.split, &*image.path));
        Self {
            used: list.names().map(|(split, name)| (split.into(), name.into())).collect(),
            drawn: copies.chain(list.names()).filter_map(|(split, name)| Some((name.into(), role(split)?))).collect(),
        }
    }

    fn has(&self, image: &DuplicateImage) -> bool {
        // A new run would copy names in vain.
        !self.used.is_empty() && self.used.contains(&(image.split.clone(), image.path.clone()))
    }
}

impl DuplicateImages {
    /// Whether the images are in several classes.
    pub fn is_contradictory(&self) -> bool {
        self.images.iter().any(|image| image.class != self.images[0].class)
    }

    /// Those of a split that the run uses.
    fn of(&self, role: Role) -> impl Iterator<Item = &DuplicateImage> {
        self.images.iter().filter(move |image| !image.left_out && image.split == role.name())
    }

    /// Marks those that a run with `--drop-duplicates` leaves out: all if they contradict each other, otherwise all but one. That is one
    /// that the run has used so far; a test image if there is one, or else a validation image, so that the held-out images stay.
    fn leave_out(&mut self, earlier: &EarlierImages) {
        let is_used = self.images.iter().any(|image| earlier.has(image));
        let kept = match self.is_contradictory() {
            true => None,
            false => [Role::Test, Role::Validation, Role::Train].iter().find_map(|role| {
                let may_stay = |image: &DuplicateImage| image.split == role.name() && (!is_used || earlier.has(image));
                self.images.iter().position(may_stay)
            }),
        };
        for (index, image) in self.images.iter_mut().enumerate() {
            image.left_out = Some(index) != kept;
        }
    }

    /// Marks new images of which the run has copies among both the training and the test images.
    fn leave_out_between(&mut self, earlier: &EarlierImages) {
        let known = |role: Role| self.of(role).any(|image| earlier.has(image));
        if known(Role::Train) && known(Role::Test) {
            self.images.iter_mut().for_each(|image| image.left_out = !earlier.has(image));
        }
    }
}

impl DataCheck {
    /// Describes what was found in `splits`, before [`DataCheck::apply`].
    pub fn new(splits: &Splits, found: &Examination, recipe: &Recipe, earlier: &EarlierImages) -> Self {
        let before_split = splits.is_drawn();
        let duplicates = found.duplicates.iter().map(|duplicates| {
            let mut members = duplicates.members.clone();
            if before_split {
                // The draw that comes must not depend on the one that was.
                members.sort_by_key(|member| splits.of(member.role).map(|folder| &folder.samples[member.index].path));
            }
            let images = members.iter().filter_map(|member| {
                let folder = splits.of(member.role)?;
                let sample = &folder.samples[member.index];
                let path = folder.name_of(&sample.path);
                let role = match before_split {
                    true => earlier.drawn.get(&path).copied().unwrap_or(Role::Train),
                    false => member.role,
                };
                Some(DuplicateImage {
                    split: role.name().into(),
                    path,
                    class: folder.classes[sample.class].clone(),
                    left_out: false,
                })
            });
            let mut duplicates = DuplicateImages { identical: duplicates.is_identical, images: images.collect() };
            match recipe.drop_duplicates {
                true => duplicates.leave_out(earlier),
                false if before_split => duplicates.leave_out_between(earlier),
                false => {}
            }
            duplicates
        });
        let turned = (!recipe.exif && found.turned * TURNED_SHARE > found.read).then(|| {
            format!(
                "{} of {} images state an EXIF orientation, which is ignored, so they lie on their side or upside down: --exif turns \
                 them",
                found.turned, found.read
            )
        });
        Self { duplicates: duplicates.collect(), before_split, cautions: turned.into_iter().collect() }
    }

    /// Checks, after [`DataCheck::apply`], that every class has a training image that can be read, and names classes of which no image to
    /// test on can be read.
    ///
    /// # Errors
    /// When no training image of a class can be read.
    pub fn require_readable(&mut self, splits: &Splits, found: &Examination) -> Result<()> {
        for (role, folder) in splits.by_role() {
            for (class, name) in folder.classes.iter().enumerate() {
                let of_class = folder.samples.iter().filter(|sample| sample.class == class);
                // None of a class that has no images.
                let reasons: Option<Vec<&String>> = of_class.map(|sample| found.unread.get(&sample.path)).collect();
                let Some([first, others @ ..]) = reasons.as_deref() else { continue };
                let none = format!("no {} image of the class {name} can be read", role.adjective());
                let reason = match others.len() {
                    0 => first.to_string(),
                    more => format!("{first}; {more} more"),
                };
                if role == Role::Train {
                    return Err(Error::new(format!("{none}: {reason}"))
                        .hint("replace the files with images that can be read, or remove the class"));
                }
                self.cautions.push(format!("{none}, so its results are not measured: {reason}"));
            }
        }
        Ok(())
    }

    /// Adds what makes results uncertain: training images of classes of very different sizes, small classes, and classes that are not
    /// tested.
    pub fn add_cautions(&mut self, splits: &Splits) {
        let counts = splits.train.class_counts();
        let named = |class: &usize| format!("{} ({})", splits.train.classes[*class], counts[*class]);
        let mut by_count: Vec<usize> = (0..counts.len()).collect();
        by_count.sort_by_key(|&class| counts[class]);
        if let [smallest, .., largest] = &by_count[..]
            && counts[*largest] > LARGEST_RATIO * counts[*smallest]
        {
            self.cautions.push(format!(
                "the largest class, {}, has more than {LARGEST_RATIO} times as many training images as the smallest, {}: compare the \
                 balanced accuracy, and add images of small classes",
                named(largest),
                named(smallest)
            ));
        }
        let few: Vec<String> = by_count.iter().filter(|class| counts[**class] < FEW_IMAGES).map(named).collect();
        if !few.is_empty() {
            self.cautions.push(format!(
                "{} fewer than {FEW_IMAGES} training images, so results are uncertain: {}; add images",
                counted(few.len(), "class has", "classes have"),
                first_names(&few)
            ));
        }
        let untested = splits.test.empty_classes();
        if !untested.is_empty() {
            self.cautions.push(format!(
                "{} no test images, so no test result says anything about {}: {}; add images",
                counted(untested.len(), "class has", "classes have"),
                if untested.len() == 1 { "it" } else { "them" },
                first_names(&untested)
            ));
        }
    }

    /// Removes from `splits` the images that the run leaves out. If the test images are drawn from all images, draws them after that:
    /// those of `earlier` stay where they are, and new ones that look the same as others are with those.
    ///
    /// # Errors
    /// When a class has no training image left, or there is no image left to test on.
    pub fn apply(&mut self, splits: &mut Splits, earlier: &EarlierImages) -> Result<()> {
        match self.before_split || (splits.is_drawn() && !earlier.drawn.is_empty()) {
            true => self.draw(splits, earlier),
            false => self.leave_out(splits),
        }
    }

    fn draw(&mut self, splits: &mut Splits, earlier: &EarlierImages) -> Result<()> {
        if self.duplicates.is_empty() && earlier.drawn.is_empty() {
            return Ok(());
        }
        let images = self.duplicates.iter().flat_map(|duplicates| &duplicates.images);
        let left_out: HashSet<&str> = images.filter(|image| image.left_out).map(|image| &*image.path).collect();
        let names =
            |found: &'_ DuplicateImages| found.images.iter().map(|image| image.path.clone()).collect::<Vec<_>>();
        let groups: Vec<Vec<String>> = self.duplicates.iter().map(names).collect();
        let together: Vec<Vec<&str>> = groups.iter().map(|group| group.iter().map(String::as_str).collect()).collect();
        splits.draw_again(&left_out, &together, &earlier.drawn).map_err(|error| match left_out.is_empty() {
            true => error,
            false => Error::new(format!("--drop-duplicates leaves too few images: {}", error.message())).hint(CORRECT),
        })?;
        let known: HashSet<&str> = together.iter().flatten().copied().collect();
        let mut drawn = HashMap::new();
        for (role, folder) in splits.by_role() {
            let names = folder.samples.iter().map(|sample| folder.name_of(&sample.path));
            drawn.extend(names.filter(|name| known.contains(name.as_str())).map(|name| (name, role.name())));
        }
        for found in &mut self.duplicates {
            // Those that are left out are listed beside the one that is not.
            let kept =
                found.images.iter().find(|image| !image.left_out).and_then(|image| drawn.get(&image.path).copied());
            for image in &mut found.images {
                let split = drawn.get(&image.path).copied().filter(|_| !image.left_out);
                image.split = split.or(kept).unwrap_or(Role::Train.name()).into();
            }
        }
        Ok(())
    }

    fn leave_out(&self, splits: &mut Splits) -> Result<()> {
        let images = self.duplicates.iter().flat_map(|duplicates| &duplicates.images);
        let left_out: HashSet<(&str, &str)> =
            images.filter(|image| image.left_out).map(|image| (&*image.split, &*image.path)).collect();
        if left_out.is_empty() {
            return Ok(());
        }
        for (role, folder) in splits.by_role_mut() {
            let samples = std::mem::take(&mut folder.samples);
            let is_kept = |path: &Path| !left_out.contains(&(role.name(), &*folder.name_of(path)));
            folder.samples = samples.into_iter().filter(|sample| is_kept(&sample.path)).collect();
            let lacking = match role {
                Role::Train => folder
                    .class_counts()
                    .iter()
                    .position(|&count| count == 0)
                    .map(|class| format!("training image of the class {}", folder.classes[class])),
                _ => folder.is_empty().then(|| format!("{} image", role.name())),
            };
            if let Some(lacking) = lacking {
                return Err(Error::new(format!("--drop-duplicates leaves no {lacking}: all have copies elsewhere"))
                    .hint(CORRECT));
            }
        }
        Ok(())
    }

    /// Training images that look the same, by their names in the folder.
    pub fn training_duplicates(&self) -> impl Iterator<Item = Vec<&str>> {
        self.duplicates.iter().map(|group| group.of(Role::Train).map(|image| image.path.as_str()).collect())
    }

    /// How many images of a split the run uses that the other split also has.
    pub fn leaked(&self, of: Role, also: Role) -> usize {
        self.duplicates.iter().filter(|found| found.of(also).next().is_some()).map(|found| found.of(of).count()).sum()
    }

    /// What a user should know, one line each.
    pub fn warnings(&self) -> Vec<String> {
        let left_out = self.duplicates_left_out().into_iter();
        left_out.chain(self.duplicates_used()).chain(self.cautions.iter().cloned()).collect()
    }

    fn duplicates_left_out(&self) -> Option<String> {
        let images: Vec<_> =
            self.duplicates.iter().flat_map(|found| &found.images).filter(|image| image.left_out).collect();
        let of = |role: Role| images.iter().filter(|image| image.split == role.name()).count();
        let parts = [Role::Train, Role::Validation, Role::Test].map(|role| (of(role), role.adjective()));
        let parts: Vec<String> =
            parts.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect();
        let parts = match self.before_split {
            true => "before the test images were drawn".into(),
            false => parts.join(", "),
        };
        let labels = self.contradictory().filter(|found| found.images.iter().all(|image| image.left_out)).count();
        let two = match labels {
            0 => String::new(),
            _ => format!(
                "; {} in several classes, so no copy is used",
                counted(labels, "of the images is", "of the images are")
            ),
        };
        (!images.is_empty()).then(|| {
            format!(
                "left out {} that the data set contains more than once ({}){two}",
                counted(images.len(), "image", "images"),
                parts
            )
        })
    }

    fn duplicates_used(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (of, also) in [(Role::Validation, Role::Train), (Role::Test, Role::Train), (Role::Test, Role::Validation)] {
            let found: Vec<_> = self
                .duplicates
                .iter()
                .filter(|found| [of, also].iter().all(|role| found.of(*role).next().is_some()))
                .collect();
            let Some(first) = found.first() else { continue };
            let count = self.leaked(of, also);
            let is = if count == 1 { "is also a" } else { "are also" };
            let example = [also, of].map(|role| first.of(role).next().map_or("", |image| &image.path));
            lines.push(format!(
                "{} {is} {} {}{}, such as {}/{} and {}/{}: the accuracy is too optimistic; --drop-duplicates leaves such images out",
                counted(count, &format!("{} image", of.name()), &format!("{} images", of.name())),
                also.adjective(),
                if count == 1 { "image" } else { "images" },
                how_alike(&found),
                also.name(),
                example[0],
                of.name(),
                example[1],
            ));
        }
        let is_used = |found: &&DuplicateImages| found.images.iter().all(|image| !image.left_out);
        let found: Vec<_> = self.contradictory().filter(is_used).collect();
        if let Some(first) = found.first() {
            let image = &first.images[0];
            let other = first.images.iter().find(|other| other.class != image.class).unwrap_or(image);
            lines.push(format!(
                "{} in several classes{}, such as {}/{} and {}/{}: remove the wrong copies, or leave all out with --drop-duplicates",
                counted(found.len(), "image is", "images are"),
                how_alike(&found),
                image.split,
                image.path,
                other.split,
                other.path
            ));
        }
        let repeated: Vec<_> = self.duplicates.iter().filter(|found| !found.is_contradictory()).collect();
        const FLATTERED: &str = "so the interval of the accuracy is too narrow";
        for (role, consequence) in
            [(Role::Train, "which thus count more than once"), (Role::Validation, FLATTERED), (Role::Test, FLATTERED)]
        {
            let found: Vec<_> = repeated.iter().copied().filter(|found| found.of(role).count() > 1).collect();
            let Some(first) = found.first() else { continue };
            let copies: usize = found.iter().map(|found| found.of(role).count() - 1).sum();
            let mut example = first.of(role).map(|image| format!("{}/{}", role.name(), image.path));
            let (original, copy) = (example.next().unwrap_or_default(), example.next().unwrap_or_default());
            let images = role.adjective();
            let (is, are) = (format!("{images} image is a copy"), format!("{images} images are copies"));
            lines.push(format!(
                "{} of other {images} images{}, {consequence}, such as {copy} of {original}; --drop-duplicates keeps one of each",
                counted(copies, &is, &are),
                how_alike(&found),
            ));
        }
        lines
    }

    fn contradictory(&self) -> impl Iterator<Item = &DuplicateImages> {
        self.duplicates.iter().filter(|found| found.is_contradictory())
    }

    /// Reads `data_check.json`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let doing = || format!("cannot read {}", path.display());
        serde_json::from_str(&fs::read_to_string(path).context(doing)?).context(doing)
    }

    /// Writes it atomically.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context(|| format!("cannot write {}", path.display()))? + "\n";
        write_atomically(path, |writer| writer.write_all(text.as_bytes()))
    }
}

/// Opens the data set of a run that has begun, with the images that it uses in the splits that it drew.
///
/// # Errors
/// Those of [`Recipe::open_data`]; when `data_check.json` cannot be read and is needed.
pub fn open_data_of_run(recipe: &Recipe, data: &Path, folder: &RunFolder) -> Result<Splits> {
    let mut splits = recipe.open_data(data)?;
    let mut check = check_of_run(recipe, &splits, folder)?;
    // Runs of earlier versions may lack the list.
    let list =
        if splits.is_drawn() { ImageList::open(&folder.images()).unwrap_or_default() } else { ImageList::default() };
    let earlier = EarlierImages::new(&list, &check);
    check.apply(&mut splits, &earlier)?;
    Ok(splits)
}

/// What was found before a run that has begun, if it matters for its images: nothing if it does not.
///
/// # Errors
/// When `data_check.json` cannot be read and is needed.
pub fn check_of_run(recipe: &Recipe, splits: &Splits, folder: &RunFolder) -> Result<DataCheck> {
    let found = folder.data_check();
    // Runs of earlier versions may lack the file.
    match recipe.drop_duplicates || (splits.is_drawn() && found.exists()) {
        true => DataCheck::open(&found),
        false => Ok(DataCheck::default()),
    }
}

/// A caution about a run of few steps on this many training images.
pub fn few_steps(recipe: &Recipe, images: usize) -> Option<String> {
    let batches = images.div_ceil(recipe.batch_size);
    let steps = recipe.epochs.saturating_mul(batches.div_ceil(recipe.accumulate));
    // A fitted head needs no steps, and trials show whether they help.
    let is_needed = recipe.epochs > 0 && recipe.try_learning_rates.is_empty();
    (is_needed && steps < FEW_STEPS).then(|| {
        let (per_step, lower) = match recipe.accumulate {
            1 => (String::new(), "--batch-size"),
            several => (format!(", {several} in a step"), "--accumulate"),
        };
        format!(
            "the run has only {} ({} of {}{per_step}): raise --epochs or lower {lower} if the training loss is still falling at \
             the end",
            counted(steps, "step", "steps"),
            counted(recipe.epochs, "epoch", "epochs"),
            counted(batches, "batch", "batches")
        )
    })
}

/// ` (3 identical, 1 nearly)`
fn how_alike(found: &[&DuplicateImages]) -> String {
    let identical = found.iter().filter(|found| found.identical).count();
    match (identical, found.len() - identical) {
        (_, 0) => " (identical files)".into(),
        (0, _) => " (nearly identical)".into(),
        (identical, nearly) => format!(" ({identical} identical, {nearly} nearly)"),
    }
}
