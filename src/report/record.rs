//! What a report shows of a run: its files, and the results of its best model on the test images.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use super::calibration::Calibration;
use super::confusion::Confusion;
use super::contact_sheet::{Tile, augmented_tiles, tile, tiles_of_classes};
use super::examples;
use super::grad_cam::{attention, overlay};
use super::measures::Measures;
use crate::data::transformer::normalize;
use crate::data::{
    Batches, DecodeOptions, Decoder, Draw, ImageFolder, ImageStore, Loader, LoaderOptions, Mode, NotRead, RgbImage,
    Splits, Transform, Transformer,
};
use crate::device::{Device, threads};
use crate::error::{Error, ErrorKind, Result};
use crate::printable::printable;
use crate::train::{
    DataCheck, DuplicateImages, ImageList, Metric, ModelFile, Network, Prediction, Recipe, RunConfig, RunFolder,
    Totals, TriedPenalty, evaluate, load_model, open_data_of_run, read_recipe,
};
use crate::weights::TensorFile;

/// Width and height of the test images on a page.
const TILE: u32 = 192;
/// Width and height of the images of the data set, which are more.
const SHEET_TILE: u32 = 128;
const SHEET_COLUMNS: usize = 8;
/// With more classes than this, the contact sheet has half as many images of each.
const FEW_CLASSES: usize = 6;
const DUPLICATE_ROWS: usize = 8;
const DUPLICATES_IN_ROW: usize = 4;
/// Maximum number of classes on the contact sheet.
const SHEET_ROWS: usize = 12;
/// The maximum number of classes of which augmented images are shown.
const AUGMENTED_ROWS: usize = 6;

/// A run as a report shows it.
#[derive(Debug, Clone)]
pub struct RunRecord {
    /// The name on the page.
    pub name: String,
    /// The run's folder.
    pub folder: PathBuf,
    /// `config.json`.
    pub config: RunConfig,
    /// `metrics.jsonl`.
    pub metrics: Vec<Metric>,
    /// What was found in its images before the run; earlier versions recorded none.
    pub data_check: Option<DataCheck>,
    /// Images of its data set, or why they are missing.
    pub images: Result<ImageRecord, String>,
    /// The results of its best model on the test images, or why they are missing.
    pub test: Result<TestRecord, String>,
}

/// Images of a run's data set.
#[derive(Debug, Clone)]
pub struct ImageRecord {
    /// Number of training images of each class.
    pub train_counts: Vec<usize>,
    /// Number of validation images of each class, if there are any.
    pub validation_counts: Option<Vec<usize>>,
    /// Number of test images of each class.
    pub test_counts: Vec<usize>,
    /// What lies in the folders and is not read.
    pub not_read: NotRead,
    /// Rows of images that look the same; not all if there are many.
    pub duplicates: Vec<Vec<Tile>>,
    /// Rows of a contact sheet.
    pub sheet: Vec<Vec<Tile>>,
    /// Rows of training images as the network saw them in the first epoch.
    pub augmented: Vec<Vec<Tile>>,
}

/// The results of the best model on the test images.
#[derive(Debug, Clone)]
pub struct TestRecord {
    /// Loss and accuracy.
    pub totals: Totals,
    /// The accuracy's interval, and other measures.
    pub measures: Measures,
    /// Predictions by true class.
    pub confusion: Confusion,
    /// Predictions by probability.
    pub calibration: Calibration,
    /// Misclassified images, most confident first.
    pub mistakes: Vec<PredictedImage>,
    /// The images of the lowest predicted probability, the lowest first.
    pub least_certain: Vec<PredictedImage>,
    /// Some correctly classified images of each class, class after class.
    pub correct: Vec<PredictedImage>,
    /// Correctly and wrongly classified images of every class, with Grad-CAM.
    pub grad_cams: Vec<PredictedImage>,
}

/// A test image and its prediction.
#[derive(Debug, Clone)]
pub struct PredictedImage {
    /// The image.
    pub tile: Tile,
    /// The image with the areas that influenced the prediction made bright.
    pub grad_cam: Option<Tile>,
    /// The image's file.
    pub path: PathBuf,
    /// The predicted class.
    pub predicted: String,
    /// The probability of the predicted class, from 0 to 1.
    pub probability: f64,
    /// The second most probable class and its probability.
    pub second: Option<(String, f64)>,
    /// The true class.
    pub actual: String,
}

impl PredictedImage {
    /// Whether the predicted class is the true one.
    pub fn is_correct(&self) -> bool {
        self.predicted == self.actual
    }
}

impl RunRecord {
    /// Reads the files of a run's folder, without its images.
    ///
    /// # Errors
    /// When the folder contains no run, or its files cannot be read.
    pub fn open(folder: &RunFolder) -> Result<Self> {
        let mut config = RunConfig::open(folder)?;
        // The configuration says how the run was started; since then it may have been extended.
        if let Ok(file) = read_recipe(&folder.recipe()) {
            let Recipe { epochs, steps, schedule_from, .. } = file.recipe;
            config.recipe = Recipe { epochs, steps, schedule_from, ..config.recipe };
        }
        let metrics = fs::read_to_string(folder.metrics()).unwrap_or_default();
        // The last line is incomplete if the run was killed while writing it.
        let metrics = metrics.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let name = folder.path.file_name().unwrap_or(folder.path.as_os_str()).to_string_lossy().into_owned();
        let not_read = || "the images were not read".to_string();
        Ok(Self {
            name,
            folder: folder.path.clone(),
            config,
            metrics,
            data_check: DataCheck::open(&folder.data_check()).ok(),
            images: Err(not_read()),
            test: Err(not_read()),
        })
    }

    /// Reads the data set, from `data` or from the folder in the run's configuration, and evaluates the best model on the
    /// test images. Images that cannot be read are recorded, so that the page shows the reason in place of the results. `tell` is
    /// called with the number of evaluated test batches and their total.
    ///
    /// # Errors
    /// When the model is damaged.
    pub fn evaluate(
        &mut self,
        data: Option<&Path>,
        device: Rc<dyn Device>,
        tell: impl FnMut(usize, usize),
    ) -> Result<()> {
        let model = RunFolder { path: self.folder.clone() }.model();
        let loaded = model.exists().then(|| load_model(device.clone(), &TensorFile::open(&model)?)).transpose()?;
        let splits = match self.splits(data.unwrap_or(&self.config.data)) {
            Ok(splits) => splits,
            Err(error) => {
                let reason = error.message().to_string();
                (self.images, self.test) = (Err(reason.clone()), Err(reason));
                return Ok(());
            }
        };
        self.images = Ok(ImageRecord::new(&splits, &self.config.recipe, self.data_check.as_ref()));
        self.test = match loaded.map(|loaded| Self::test(loaded, &splits.test, device, tell)) {
            Some(Err(error)) if error.kind() == ErrorKind::NotFinite => return Err(error),
            Some(tested) => tested.map_err(|error| error.message().to_string()),
            None => Err(format!("there is no {}", model.display())),
        };
        Ok(())
    }

    /// Opens the data set, and checks that its images are those of the run.
    fn splits(&self, data: &Path) -> Result<Splits> {
        let RunConfig { recipe, classes, train_images, test_images, images, .. } = &self.config;
        let splits = open_data_of_run(recipe, data, &RunFolder { path: self.folder.clone() })?;
        let shown = data.display();
        if splits.train.classes != *classes {
            let (found, expected) = (splits.train.classes.join(", "), classes.join(", "));
            return Err(Error::new(format!("{shown} has the classes {found}, the run has {expected}")));
        }
        let found = [splits.train.len(), splits.test.len()];
        let expected = [*train_images, *test_images];
        let difference = match images {
            Some(digest) => {
                ImageList::of(&splits).difference_from(digest, &RunFolder { path: self.folder.clone() }.images())
            }
            // Earlier versions recorded only the numbers.
            None if found == expected => None,
            None => Some(format!(
                "{} training and {} test images, the run had {} and {}",
                found[0], found[1], expected[0], expected[1]
            )),
        };
        match difference {
            None => Ok(splits),
            Some(difference) => {
                Err(Error::new(format!("{shown} does not contain the images of the run: {difference}")))
            }
        }
    }

    fn test(
        (mut network, model): (Network, ModelFile),
        folder: &ImageFolder,
        device: Rc<dyn Device>,
        tell: impl FnMut(usize, usize),
    ) -> Result<TestRecord> {
        let (totals, predictions) = predictions(&mut network, folder, &model, device, tell)?;
        let predicted = |prediction: &Prediction, with_grad_cam: bool| -> Option<PredictedImage> {
            let sample = &folder.samples[prediction.index];
            let probabilities = prediction.probabilities();
            let mut image = PredictedImage {
                tile: tile(&sample.path, folder.decoding, "", TILE).ok()?,
                grad_cam: None,
                path: sample.path.clone(),
                predicted: folder.classes[prediction.class()].clone(),
                probability: probabilities[prediction.class()],
                second: (0..probabilities.len())
                    .filter(|&class| class != prediction.class())
                    .max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]))
                    .map(|class| (folder.classes[class].clone(), probabilities[class])),
                actual: folder.classes[prediction.target].clone(),
            };
            if with_grad_cam {
                // The map belongs to what the network sees.
                let seen = seen(&sample.path, folder.decoding, &model).ok()?;
                let mut input = vec![0.0; seen.pixels.len()];
                normalize(&seen.pixels, &mut input).ok()?;
                let (rows, columns, map, _) = attention(&network, &input, model.image_size).ok()?;
                image.tile = shrunk(&seen, TILE);
                image.grad_cam = Some(overlay(&image.tile, rows, columns, &map));
            }
            Some(image)
        };
        let classes = folder.classes.len();
        let all = |chosen: Vec<&Prediction>, with_grad_cam: bool| {
            chosen.into_iter().filter_map(|prediction| predicted(prediction, with_grad_cam)).collect()
        };
        Ok(TestRecord {
            totals,
            measures: Measures::new(&predictions, classes),
            confusion: Confusion::new(&predictions, classes),
            calibration: Calibration::new(&predictions),
            mistakes: all(examples::mistakes(&predictions), false),
            least_certain: all(examples::least_certain(&predictions), false),
            correct: all(examples::correct(&predictions, classes), false),
            grad_cams: all(examples::representative(&predictions, classes), true),
        })
    }

    /// The same with printable names, also for a page in which line breaks are spaces.
    pub fn with_printable_names(&self) -> Self {
        let mut record = self.clone();
        let show = |name: &mut String| *name = printable(name).into_owned();
        show(&mut record.name);
        record.config.classes.iter_mut().for_each(show);
        for metric in &mut record.metrics {
            match metric {
                Metric::Skipped { path, reason } => [path, reason].into_iter().for_each(show),
                Metric::Changed { reason, .. } => show(reason),
                Metric::Stopped { reason, hint } => [reason].into_iter().chain(hint).for_each(show),
                Metric::Progress { .. }
                | Metric::Head { .. }
                | Metric::Trials { .. }
                | Metric::Epoch { .. }
                | Metric::Test { .. } => {}
            }
        }
        if let Some(check) = &mut record.data_check {
            check.cautions.iter_mut().for_each(show);
            for image in check.duplicates.iter_mut().flat_map(|group| &mut group.images) {
                show(&mut image.path);
                show(&mut image.class);
            }
        }
        if let Ok(images) = &mut record.images {
            let tiles = images.sheet.iter_mut().chain(&mut images.augmented).chain(&mut images.duplicates).flatten();
            tiles.for_each(|tile| show(&mut tile.label));
        }
        if let Ok(test) = &mut record.test {
            let groups = [&mut test.mistakes, &mut test.least_certain, &mut test.correct, &mut test.grad_cams];
            for image in groups.into_iter().flatten() {
                image.path = PathBuf::from(printable(&image.path.to_string_lossy()).into_owned());
                show(&mut image.predicted);
                show(&mut image.actual);
                image.second.iter_mut().for_each(|(class, _)| show(class));
            }
        }
        record
    }

    /// The metrics of every finished epoch, in order.
    pub fn epochs(&self) -> impl Iterator<Item = &Metric> {
        self.metrics.iter().filter(|metric| matches!(metric, Metric::Epoch { .. }))
    }

    /// The metrics that were measured on the same images as the last ones: all, or, if the run continued with other images, those since
    /// then, with [`Metric::Changed`] as the first.
    pub fn since_change(&self) -> &[Metric] {
        let change = self.metrics.iter().rposition(|metric| matches!(metric, Metric::Changed { .. }));
        &self.metrics[change.unwrap_or(0)..]
    }

    /// The epoch and the accuracy of the model that was tested at the end, if validation images chose it.
    pub fn final_test(&self) -> Option<(usize, f64)> {
        self.since_change().iter().rev().find_map(|metric| match metric {
            Metric::Test { epoch, test_acc, .. } => Some((*epoch, *test_acc)),
            _ => None,
        })
    }

    /// Whether another run was tested on the same images; `None` if that is not known.
    pub fn has_test_images_of(&self, other: &Self) -> Option<bool> {
        if self.config.test_images != other.config.test_images {
            return Some(false);
        }
        if self.config.images.as_ref()? == other.config.images.as_ref()? {
            return Some(true);
        }
        let open = |run: &Self| ImageList::open(&RunFolder { path: run.folder.clone() }.images()).ok();
        Some(open(self)?.has_tests_of(&open(other)?))
    }

    /// The penalty with which the final layer was fitted before the first epoch, and those that were tried.
    pub fn head_fit(&self) -> Option<(f64, &[TriedPenalty])> {
        self.metrics.iter().find_map(|metric| match metric {
            Metric::Head { penalty, tried, .. } => Some((*penalty, tried.as_slice())),
            _ => None,
        })
    }

    /// The trials of learning rates, if there were any.
    pub fn trials(&self) -> Option<&Metric> {
        self.metrics.iter().find(|metric| matches!(metric, Metric::Trials { .. }))
    }

    /// Whether no images chose the epoch whose model is saved.
    pub fn keeps_last(&self) -> bool {
        self.config.recipe.keeps_last(self.config.validation_images.is_some())
    }

    /// Whether only the final layer was trained.
    pub fn has_fixed_body(&self) -> bool {
        let is_trained = |metric: &Metric| matches!(metric, Metric::Epoch { epoch, .. } if *epoch > 0);
        self.head_fit().is_some() && !self.metrics.iter().any(is_trained)
    }

    /// Files that could not be read, and why.
    pub fn skipped(&self) -> impl Iterator<Item = (&str, &str)> {
        self.metrics.iter().filter_map(|metric| match metric {
            Metric::Skipped { path, reason } => Some((path.as_str(), reason.as_str())),
            _ => None,
        })
    }
}

impl ImageRecord {
    fn new(splits: &Splits, recipe: &Recipe, data_check: Option<&DataCheck>) -> Self {
        let is_large = splits.train.classes.len() > FEW_CLASSES;
        let columns = if is_large { SHEET_COLUMNS / 2 } else { SHEET_COLUMNS };
        let sheet = tiles_of_classes(&splits.train, columns, SHEET_ROWS, SHEET_TILE);
        let transform = recipe.training_transform();
        let mut augmented = match recipe.augments() {
            true => augmented_tiles(&splits.train, columns, AUGMENTED_ROWS, &transform, recipe.seed),
            false => Vec::new(),
        };
        augmented.iter_mut().flatten().for_each(|tile| *tile = shrunk(tile, SHEET_TILE));
        Self {
            train_counts: splits.train.class_counts(),
            validation_counts: splits.validation.as_ref().map(ImageFolder::class_counts),
            test_counts: splits.test.class_counts(),
            not_read: splits.not_read(),
            duplicates: data_check.map(|check| duplicates(splits, check)).unwrap_or_default(),
            sheet,
            augmented,
        }
    }
}

/// A row for each group of images that look the same, first those in several splits or classes.
fn duplicates(splits: &Splits, check: &DataCheck) -> Vec<Vec<Tile>> {
    let is_minor = |group: &&DuplicateImages| {
        !group.is_contradictory() && group.images.iter().all(|image| image.split == group.images[0].split)
    };
    let mut groups: Vec<&DuplicateImages> = check.duplicates.iter().collect();
    groups.sort_by_key(is_minor);
    let row = |group: &&DuplicateImages| {
        let tiles = group.images.iter().take(DUPLICATES_IN_ROW).filter_map(|image| {
            let (_, folder) = splits.by_role().find(|(role, _)| role.name() == image.split)?;
            let left_out = if image.left_out { " (left out)" } else { "" };
            let label = format!("{}/{}{left_out}", image.split, image.path);
            tile(&folder.root.join(&image.path), folder.decoding, &label, SHEET_TILE).ok()
        });
        tiles.collect()
    };
    groups.iter().take(DUPLICATE_ROWS).map(row).collect()
}

fn predictions(
    network: &mut Network,
    folder: &ImageFolder,
    model: &ModelFile,
    device: Rc<dyn Device>,
    mut tell: impl FnMut(usize, usize),
) -> Result<(Totals, Vec<Prediction>)> {
    const BATCH_SIZE: usize = 32;
    let options = LoaderOptions {
        batch_size: BATCH_SIZE,
        image_size: model.image_size as u32,
        resize: model.resize,
        mode: Mode::Evaluate,
        workers: threads::count(),
        strict: false,
    };
    // Every image is needed once, so none is kept.
    let store = Rc::new(ImageStore::new(device, Some(0)));
    let mut batches = Batches::new(Loader::new(Arc::new(folder.clone()), options)?, &store)?;
    let (mut batch, count) = (0, batches.loader().batch_count());
    evaluate(network, &mut batches, model.testing(), |_| {
        batch += 1;
        tell(batch, count);
        Ok(())
    })
}

/// The part of an image that the network sees in a test, before normalisation.
fn seen(path: &Path, decoding: DecodeOptions, model: &ModelFile) -> Result<Tile> {
    let size = model.image_size as u32;
    let mut image = RgbImage::default();
    Decoder::new(decoding).decode_file(path, &mut image)?;
    let pixels = Transformer::default().transform(&image, &Transform::test(size, model.resize), Draw::default())?;
    Ok(Tile { label: String::new(), size, pixels })
}

/// Scales a tile.
fn shrunk(tile: &Tile, size: u32) -> Tile {
    let image = RgbImage { width: tile.size, height: tile.size, pixels: tile.pixels.clone() };
    match Transformer::default().transform(&image, &Transform::resize_and_center_crop(size, size), Draw::default()) {
        Ok(pixels) => Tile { label: tile.label.clone(), size, pixels },
        Err(_) => tile.clone(),
    }
}
