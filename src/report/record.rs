//! What is known of a run: from its folder, and from its pictures where they are still there.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use serde::Deserialize;

use super::confusion::Confusion;
use super::contact_sheet::{Tile, augmented_tiles, tile, tiles_of_classes};
use super::grad_cam::{attention, overlay};
use crate::data::transform::normalize;
use crate::data::{
    Batches, DecodeOptions, Decoder, ImageFolder, Loader, LoaderOptions, Mode, PictureStore, RgbImage, Splits,
    Transformer, open_dataset,
};
use crate::device::{Device, threads};
use crate::error::{Context, Error, Result};
use crate::train::{Metric, Network, Prediction, Recipe, RunFolder, Totals, evaluate, load_model};

/// Rows and columns of the pictures on a page.
const TILE: u32 = 160;
const MISTAKES: usize = 12;
const LOOKS: usize = 8;
const SHEET_COLUMNS: usize = 8;
/// More rows than these say nothing new.
const SHEET_ROWS: usize = 12;

/// `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct RunConfig {
    /// The version of the program that began the run.
    pub retune: String,
    /// Where its pictures were.
    pub data: PathBuf,
    /// What it began with, if not from scratch.
    pub weights: Option<PathBuf>,
    /// The device's name.
    pub device: String,
    /// The device's precision.
    pub precision: String,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Training pictures.
    pub train_images: usize,
    /// Test pictures.
    pub test_images: usize,
    /// How it trains.
    pub recipe: Recipe,
}

/// A run as a page shows it.
#[derive(Debug, Clone)]
pub struct RunRecord {
    /// What the page calls it.
    pub name: String,
    /// Where it is.
    pub folder: PathBuf,
    /// What it was begun with.
    pub config: RunConfig,
    /// What it measured.
    pub metrics: Vec<Metric>,
    /// Its pictures, or why there are none.
    pub pictures: Result<PictureRecord, String>,
    /// What its best model says of the test pictures, or why nothing can be said.
    pub test: Result<TestRecord, String>,
}

/// The pictures of a run.
#[derive(Debug, Clone)]
pub struct PictureRecord {
    /// Training pictures of each class.
    pub train_counts: Vec<usize>,
    /// Test pictures of each class.
    pub test_counts: Vec<usize>,
    /// Rows of a contact sheet.
    pub sheet: Vec<Vec<Tile>>,
    /// Some of the same as the network saw them in the first epoch.
    pub augmented: Vec<Vec<Tile>>,
}

/// What the best model says of the test pictures.
#[derive(Debug, Clone)]
pub struct TestRecord {
    /// Loss and accuracy.
    pub totals: Totals,
    /// Who is taken for whom.
    pub confusion: Confusion,
    /// Wrong answers, the surest first.
    pub mistakes: Vec<Looked>,
    /// Where the network looked, on pictures of every class, right ones and wrong ones.
    pub looks: Vec<Looked>,
}

/// A test picture and what was said of it.
#[derive(Debug, Clone)]
pub struct Looked {
    /// The picture.
    pub tile: Tile,
    /// The same, lit where the network looked.
    pub attention: Option<Tile>,
    /// The file.
    pub path: PathBuf,
    /// What was said.
    pub said: String,
    /// How sure that was, from 0 to 1.
    pub probability: f64,
    /// What is true.
    pub truth: String,
}

impl RunRecord {
    /// Reads a run's folder; no picture.
    ///
    /// # Errors
    /// When there is no run, or its files cannot be read.
    pub fn open(folder: &RunFolder) -> Result<Self> {
        let path = folder.config();
        let text = fs::read_to_string(&path).map_err(|cause| {
            Error::new(format!("{}: there is no run here: {cause}", path.display()))
                .hint("give the folder that `train` wrote, such as runs/1")
        })?;
        let config = serde_json::from_str(&text).context(|| format!("{}: unreadable", path.display()))?;
        let metrics = fs::read_to_string(folder.metrics()).unwrap_or_default();
        // A line that was being written when the run was killed is not one yet.
        let metrics = metrics.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let name = folder.path.file_name().unwrap_or(folder.path.as_os_str()).to_string_lossy().into_owned();
        let not_yet = || "the pictures were not looked at".to_string();
        Ok(Self { name, folder: folder.path.clone(), config, metrics, pictures: Err(not_yet()), test: Err(not_yet()) })
    }

    /// Looks at the pictures, in `data` or where the run's configuration says, and asks the best model about those of the
    /// test set. What cannot be done is told on the page in the place of its result. `tell` hears of test batches, of how
    /// many.
    pub fn look_at_pictures(&mut self, data: Option<&Path>, device: Rc<dyn Device>, tell: impl FnMut(usize, usize)) {
        let data = data.unwrap_or(&self.config.data).to_path_buf();
        let Recipe { test_fraction, seed, image_size, .. } = self.config.recipe;
        let splits = match open_dataset(&data, test_fraction, seed) {
            Ok(splits) => splits.decoded_with(self.config.recipe.decoding()),
            Err(error) => {
                self.pictures = Err(error.message().to_string());
                self.test = Err(error.message().to_string());
                return;
            }
        };
        if splits.train.classes != self.config.classes {
            let message = format!("{} has other classes than the run", data.display());
            (self.pictures, self.test) = (Err(message.clone()), Err(message));
            return;
        }
        self.pictures = Ok(PictureRecord::new(&splits, image_size, seed));
        self.test = self.test(&splits.test, device, tell).map_err(|error| error.message().to_string());
    }

    fn test(&self, folder: &ImageFolder, device: Rc<dyn Device>, tell: impl FnMut(usize, usize)) -> Result<TestRecord> {
        let (mut network, model) = load_model(device.clone(), &RunFolder { path: self.folder.clone() }.model())?;
        let (totals, predictions) = predictions(&mut network, folder, model.image_size, device, tell)?;
        let looked = |prediction: &Prediction, with_attention: bool| -> Option<Looked> {
            let sample = &folder.samples[prediction.index];
            let probabilities = prediction.probabilities();
            let mut looked = Looked {
                tile: tile(&sample.path, folder.decoding, "", TILE).ok()?,
                attention: None,
                path: sample.path.clone(),
                said: folder.classes[prediction.class()].clone(),
                probability: probabilities[prediction.class()],
                truth: folder.classes[prediction.target].clone(),
            };
            if with_attention {
                // On what the network was shown: the middle of the picture.
                let seen = seen(&sample.path, folder.decoding, model.image_size).ok()?;
                let mut input = vec![0.0; seen.pixels.len()];
                normalize(&seen.pixels, &mut input).ok()?;
                let (rows, columns, map, _) = attention(&network, &input, model.image_size).ok()?;
                looked.tile = shrunk(&seen);
                looked.attention = Some(overlay(&looked.tile, rows, columns, &map));
            }
            Some(looked)
        };
        let mut wrong: Vec<&Prediction> =
            predictions.iter().filter(|prediction| prediction.class() != prediction.target).collect();
        let sureness = |prediction: &Prediction| prediction.probabilities()[prediction.class()];
        wrong.sort_by(|a, b| sureness(b).total_cmp(&sureness(a)).then(a.index.cmp(&b.index)));
        let mistakes = wrong.iter().take(MISTAKES).filter_map(|prediction| looked(prediction, false)).collect();
        let looks = representative(&predictions, folder.classes.len());
        let looks = looks.into_iter().filter_map(|prediction| looked(prediction, true)).collect();
        Ok(TestRecord { totals, confusion: Confusion::new(&predictions, folder.classes.len()), mistakes, looks })
    }

    /// The figures of every epoch, in order.
    pub fn epochs(&self) -> impl Iterator<Item = &Metric> {
        self.metrics.iter().filter(|metric| matches!(metric, Metric::Epoch { .. }))
    }

    /// Files that could not be read, and why.
    pub fn skipped(&self) -> impl Iterator<Item = (&str, &str)> {
        self.metrics.iter().filter_map(|metric| match metric {
            Metric::Skipped { path, reason } => Some((path.as_str(), reason.as_str())),
            _ => None,
        })
    }
}

impl PictureRecord {
    fn new(splits: &Splits, image_size: usize, seed: u64) -> Self {
        let mut sheet = tiles_of_classes(&splits.train, SHEET_COLUMNS, TILE);
        sheet.truncate(SHEET_ROWS);
        let mut augmented = augmented_tiles(&splits.train, SHEET_COLUMNS, image_size as u32, seed);
        augmented.iter_mut().flatten().for_each(|tile| *tile = shrunk(tile));
        Self { train_counts: splits.train.class_counts(), test_counts: splits.test.class_counts(), sheet, augmented }
    }
}

fn predictions(
    network: &mut Network,
    folder: &ImageFolder,
    image_size: usize,
    device: Rc<dyn Device>,
    mut tell: impl FnMut(usize, usize),
) -> Result<(Totals, Vec<Prediction>)> {
    const BATCH_SIZE: usize = 32;
    let options = LoaderOptions {
        batch_size: BATCH_SIZE,
        image_size: image_size as u32,
        mode: Mode::Evaluate,
        workers: threads::count(),
        strict: false,
    };
    // Every picture is looked at once: none is kept.
    let store = Rc::new(PictureStore::new(device, Some(0)));
    let mut batches = Batches::new(Loader::new(Arc::new(folder.clone()), options)?, &store)?;
    let (mut batch, count) = (0, batches.loader().batch_count());
    evaluate(network, &mut batches, image_size, |_| {
        batch += 1;
        tell(batch, count);
        Ok(())
    })
}

/// Right and wrong answers of every class in turn: for each class the surest right one, then the surest wrong one, ...
fn representative(predictions: &[Prediction], classes: usize) -> Vec<&Prediction> {
    let sureness = |prediction: &Prediction| prediction.probabilities()[prediction.class()];
    let mut kinds: Vec<Vec<&Prediction>> = Vec::new();
    for is_right in [true, false] {
        for class in 0..classes {
            let of_kind =
                |prediction: &&Prediction| prediction.target == class && (prediction.class() == class) == is_right;
            let mut kind: Vec<&Prediction> = predictions.iter().filter(of_kind).collect();
            kind.sort_by(|a, b| sureness(b).total_cmp(&sureness(a)).then(a.index.cmp(&b.index)));
            kinds.push(kind);
        }
    }
    let longest = kinds.iter().map(Vec::len).max().unwrap_or(0);
    let turns = (0..longest).flat_map(|turn| kinds.iter().filter_map(move |kind| kind.get(turn).copied()));
    turns.take(LOOKS).collect()
}

/// What a network is shown of a picture in a test, before it is normalised.
fn seen(path: &Path, decoding: DecodeOptions, image_size: usize) -> Result<Tile> {
    let size = image_size as u32;
    let mut image = RgbImage::default();
    Decoder::new(decoding).decode_file(path, &mut image)?;
    let mut pixels = vec![0; image_size * image_size * 3];
    Transformer::default().resize_and_center_crop(&image, size, &mut pixels)?;
    Ok(Tile { label: String::new(), size, pixels })
}

/// The size of a picture on a page.
fn shrunk(tile: &Tile) -> Tile {
    let image = RgbImage { width: tile.size, height: tile.size, pixels: tile.pixels.clone() };
    let mut pixels = vec![0; (TILE * TILE * 3) as usize];
    match Transformer::default().resize_shorter_side_and_center_crop(&image, TILE, TILE, &mut pixels) {
        Ok(()) => Tile { label: tile.label.clone(), size: TILE, pixels },
        Err(_) => tile.clone(),
    }
}
