//! `retune predict`

mod rows;

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use super::images::{ImageArguments, ImageOptions, Images, batches_of};
use super::progress::Progress;
use super::testing::TestingArguments;
use super::weights::WeightsKey;
use super::{GlobalArguments, check_batch_size};
use crate::data::ImageStore;
use crate::error::{Error, Result};
use crate::train::{ModelFile, Network, Prediction, Testing, classify, load_model};
use rows::{ClassProbability, Format, Outcome, Row, Rows};

const EXAMPLES: &str = "\
Examples:
  retune predict runs/1/model.safetensors new.jpg
  retune predict runs/1/model.safetensors holiday/ 'more/*.png' --top 1
  curl -s https://example.org/photo.jpg | retune predict runs/1 -
  find photos -name '*.jpg' -print0 | retune predict runs/1 --from - -0 --format csv > results.csv";

/// Classify images
///
/// Prints the most probable classes of every image as soon as they are known. If weights have 1000 classes without names, those of
/// ImageNet are used. An image that cannot be read does not stop the others; the exit status is then 1.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct PredictArguments {
    /// Model to use: the folder of a run, its model.safetensors, or the weights of any supported network
    model: PathBuf,

    #[command(flatten)]
    images: ImageArguments,

    /// Format of the results [default: text]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Number of classes to print, most probable first; with --threshold, the predicted one first
    #[arg(long, default_value_t = 3, value_name = "N")]
    top: usize,

    /// Include the logits of all classes in JSON
    #[arg(long)]
    logits: bool,

    #[command(flatten)]
    testing: TestingArguments,

    /// Apply the EXIF orientation of images, even if the model was trained without it
    #[arg(long)]
    exif: bool,

    /// Batch size
    #[arg(long, default_value_t = 16, value_name = "N")]
    batch_size: usize,

    #[command(flatten)]
    weights_key: WeightsKey,
}

/// The form that the options ask for.
fn format(global: &GlobalArguments, arguments: &PredictArguments) -> Result<Format> {
    let format = match (arguments.format, global.json) {
        (None, false) => Format::Text,
        (None | Some(Format::Json), _) => Format::Json,
        (Some(format), false) => format,
        (Some(_), true) => return Err(Error::usage("--json asks for another format than --format")),
    };
    if arguments.logits && !matches!(format, Format::Json | Format::Jsonl) {
        return Err(Error::usage("--logits: only JSON has room for them").hint("add --json, or --format jsonl"));
    }
    Ok(format)
}

pub fn run(global: &GlobalArguments, arguments: &PredictArguments) -> Result<ExitCode> {
    check_batch_size(arguments.batch_size)?;
    if arguments.top == 0 {
        return Err(Error::usage("--top 0: expected at least 1"));
    }
    let format = format(global, arguments)?;
    let mut images = arguments.images.open(global)?;
    let device = global.open_device()?;
    let file = arguments.weights_key.open(global, &arguments.model)?;
    let (network, model) = load_model(device.clone(), &file)?;
    model.notices.iter().for_each(|notice| global.note(notice));
    let testing = arguments.testing.testing(&model)?;
    let progress = match images.count() {
        Some(count) => Progress::new(global, count as u64, "images"),
        None => Progress::of_any_number(global, "images"),
    };
    let rows = Rows::new(format, arguments.top.min(model.classes.len()));
    // Every image is needed once, so none is kept.
    let store = Rc::new(ImageStore::new(device, Some(0)));
    let mut classification =
        Classification { arguments, network, model, testing, store, progress, rows, read: 0, unreadable: 0 };
    let completed = classification.classify(&mut images);
    classification.progress.finish();
    // Also after an error, so that what was printed is whole.
    classification.rows.end()?;
    completed?;
    let Classification { read, unreadable, model, .. } = classification;
    if let Some(notice) = model.names_notice.filter(|_| read > 0) {
        global.note(notice);
    }
    images.outcome(unreadable, read + unreadable)
}

/// Everything that is needed to classify images and to print the results.
struct Classification<'a> {
    arguments: &'a PredictArguments,
    network: Network,
    model: ModelFile,
    testing: Testing,
    store: Rc<ImageStore>,
    progress: Progress,
    rows: Rows,
    read: usize,
    unreadable: usize,
}

impl Classification<'_> {
    /// Classifies images until there are no more, or until nobody reads the results.
    fn classify(&mut self, images: &mut Images) -> Result<()> {
        loop {
            let paths = images.next_paths()?;
            if paths.is_empty() || !self.classify_these(paths, images)? {
                return Ok(());
            }
        }
    }

    /// Returns whether anyone still reads the results.
    fn classify_these(&mut self, paths: Vec<PathBuf>, images: &mut Images) -> Result<bool> {
        let Self { arguments, network, model, testing, store, progress, rows, read, unreadable } = self;
        let exif = model.exif || arguments.exif;
        let (batch_size, image_size, resize) = (arguments.batch_size, model.image_size, model.resize);
        let options = ImageOptions { batch_size, image_size, resize, exif };
        let mut batches = batches_of(&paths, &options, store)?;
        let mut is_open = true;
        let classified = classify(network, &mut batches, *testing, |batch, predictions| {
            let mut outcomes: Vec<(usize, Outcome)> = Vec::new();
            for sample in &batch.skipped {
                let error = images.reason(sample);
                progress.warn(&format!("skipped: {error}"));
                outcomes.push((sample.index, Outcome::Unreadable { error }));
            }
            *read += predictions.len();
            for prediction in predictions {
                let classes = most_probable(&prediction, &model.classes, arguments.top);
                let logits = arguments.logits.then_some(prediction.logits);
                outcomes.push((prediction.index, Outcome::Classified { classes, logits }));
            }
            outcomes.sort_by_key(|(index, _)| *index);
            *unreadable += batch.skipped.len();
            progress.position((*read + *unreadable) as u64);
            for (index, outcome) in outcomes {
                let row = Row { path: images.name(&paths[index]), outcome };
                is_open = progress.above(|| rows.print(&row))?;
                if !is_open {
                    return Err(Error::new("nobody reads the results"));
                }
            }
            Ok(())
        });
        match classified {
            Err(_) if !is_open => Ok(false),
            result => result.map(|_| true),
        }
    }
}

fn most_probable(prediction: &Prediction, names: &[String], top: usize) -> Vec<ClassProbability> {
    let mut classes: Vec<(usize, f64)> = prediction.probabilities().into_iter().enumerate().collect();
    // A threshold may decide for the less probable of two.
    let rank = |&(class, probability): &(usize, f64)| (class != prediction.class(), -probability);
    classes.sort_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap_or(std::cmp::Ordering::Equal));
    let named = |(class, probability): (usize, f64)| ClassProbability { class: names[class].clone(), probability };
    classes.into_iter().take(top).map(named).collect()
}
