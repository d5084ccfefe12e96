//! `retune eval`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;

use super::progress::Progress;
use super::weights::WeightsKey;
use super::{GlobalArguments, check_batch_size, check_threads, print_json, print_result, warn_of_skipped};
use crate::data::{
    Batches, DecodeOptions, ImageFolder, ImageStore, Labelled, Loader, LoaderOptions, Mode, open_labelled,
    open_labelled_by,
};
use crate::device::threads;
use crate::error::Result;
use crate::file::write_atomically;
use crate::printable::printable;
use crate::report::{ClassResult, Confusion, Measures};
use crate::train::{Prediction, evaluate, load_model};

const EXAMPLES: &str = "\
Examples:
  retune eval runs/1/model.safetensors photos
  retune eval runs/1/model.safetensors more-photos --json | jq .accuracy";

/// Evaluate a model on labelled images
///
/// Prints per-class results, the confusion matrix, loss, and accuracy with its 95 % interval. Images of classes that the model does
/// not know are left out and counted.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct EvalArguments {
    /// Model to evaluate: the folder of a run, its model.safetensors, or the weights of any supported network
    model: PathBuf,

    /// Folder with one folder of images per class, or with a `test` or `val` folder that contains them
    data: PathBuf,

    /// CSV file with the labels of the images in DATA, if they are not in class folders: its first line names the columns path and
    /// label
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,

    /// Batch size
    #[arg(long, default_value_t = 32, value_name = "N")]
    batch_size: usize,

    /// Number of threads that decode images [default: one per core]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,

    /// Apply the EXIF orientation of images, even if the model was trained without it
    #[arg(long)]
    exif: bool,

    /// Stop at an unreadable image, or at one of an unsupported type, instead of skipping it with a warning
    #[arg(long)]
    strict: bool,

    /// Write the result of every image to this CSV file: path, label, predicted class, its probability, and that of the label
    #[arg(long, value_name = "FILE")]
    per_image: Option<PathBuf>,

    #[command(flatten)]
    weights_key: WeightsKey,
}

#[derive(Serialize)]
struct EvalResult {
    images: u64,
    skipped: usize,
    /// Images of types that are not supported, by type.
    unsupported: BTreeMap<String, usize>,
    /// Images of classes that the model does not know, by class.
    unknown_classes: BTreeMap<String, usize>,
    accuracy: f64,
    #[serde(flatten)]
    measures: Measures,
    loss: f64,
    classes: Vec<ClassResult>,
    /// `confusion[actual][predicted]`
    confusion: Vec<Vec<usize>>,
}

pub fn run(global: &GlobalArguments, arguments: &EvalArguments) -> Result<ExitCode> {
    check_batch_size(arguments.batch_size)?;
    if let Some(workers) = arguments.workers {
        check_threads("--workers", workers)?;
    }
    let device = global.open_device()?;
    // Every image is needed once, so none is kept.
    let store = Rc::new(ImageStore::new(device.clone(), Some(0)));
    let (mut network, model) = load_model(device, &arguments.weights_key.open(global, &arguments.model)?)?;
    model.notices.iter().for_each(|notice| global.note(notice));
    let labelled = match &arguments.labels {
        Some(table) => open_labelled_by(&arguments.data, table, &model.classes),
        None => open_labelled(&arguments.data, &model.classes),
    };
    let Labelled { images: mut folder, unknown, notices } = labelled?;
    if arguments.strict {
        folder.not_read.require_none_unsupported()?;
    }
    notices.iter().for_each(|notice| global.note(notice));
    let unsupported: BTreeMap<String, usize> =
        folder.not_read.unsupported_counts().into_iter().map(|(kind, count)| (kind.to_string(), count)).collect();
    folder.decoding = DecodeOptions::with_exif(model.exif || arguments.exif);
    let options = LoaderOptions {
        batch_size: arguments.batch_size,
        image_size: model.image_size as u32,
        mode: Mode::Evaluate,
        workers: arguments.workers.unwrap_or_else(threads::count),
        strict: arguments.strict,
    };
    let images = folder.len();
    let folder = Arc::new(folder);
    let mut batches = Batches::new(Loader::new(folder.clone(), options)?, &store)?;
    let progress = Progress::new(global, images as u64, "images");
    let (mut done, mut skipped) = (0, 0);
    let (totals, predictions) = evaluate(&mut network, &mut batches, model.image_size, |batch| {
        for sample in &batch.skipped {
            progress.warn(&format!("skipped: {}", sample.reason));
        }
        skipped += batch.skipped.len();
        done += batch.targets.len() + batch.skipped.len();
        progress.position(done as u64);
        Ok(())
    })?;
    progress.finish();
    if skipped > 0 {
        warn_of_skipped(skipped);
    }
    let confusion = Confusion::new(&predictions, model.classes.len());
    let result = EvalResult {
        images: totals.images,
        skipped,
        unsupported,
        unknown_classes: unknown.into_iter().collect(),
        accuracy: totals.accuracy(),
        measures: Measures::new(&predictions, model.classes.len()),
        loss: totals.mean_loss(),
        classes: confusion.classes(&model.classes),
        confusion: confusion.rows().to_vec(),
    };
    if global.json {
        print_json(&result)?
    } else {
        print_table(&result)?
    }
    if let Some(path) = &arguments.per_image {
        write_per_image(path, &folder, &predictions)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A confusion matrix of more classes does not fit a terminal.
const WIDEST_MATRIX: usize = 12;

fn print_table(result: &EvalResult) -> Result<()> {
    let names: Vec<_> = result.classes.iter().map(|class| printable(&class.class)).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max("actual".len());
    print_result(&format!("{:<width$}  {:>6}  {:>6}  {:>9}  {:>6}", "class", "images", "recall", "precision", "f1"))?;
    for (class, ClassResult { images, recall, precision, f1, .. }) in names.iter().zip(&result.classes) {
        print_result(&format!("{class:<width$}  {images:>6}  {recall:>6.3}  {precision:>9.3}  {f1:>6.3}"))?;
    }
    if result.confusion.len() <= WIDEST_MATRIX {
        let cell = width.clamp(5, 14);
        let shortened = |name: &str| name.chars().take(cell).collect::<String>();
        let header: Vec<String> = names.iter().map(|name| format!("{:>cell$}", shortened(name))).collect();
        print_result("")?;
        print_result("Confusion matrix")?;
        print_result(&format!("{:<width$}  predicted", ""))?;
        print_result(&format!("{:<width$}  {}", "actual", header.join("  ")))?;
        for (name, row) in names.iter().zip(&result.confusion) {
            let cells: Vec<String> = row.iter().map(|count| format!("{count:>cell$}")).collect();
            print_result(&format!("{name:<width$}  {}", cells.join("  ")))?;
        }
    }
    let Measures { accuracy_interval: [low, high], balanced_accuracy, top5_accuracy, calibration_error } =
        result.measures;
    let top5 = top5_accuracy.map_or(String::new(), |share| format!("top-5 accuracy {share:.3}, "));
    print_result("")?;
    print_result(&format!(
        "{top5}balanced accuracy {balanced_accuracy:.3}, expected calibration error {calibration_error:.3}"
    ))?;
    print_result(&format!(
        "loss {:.3}, accuracy {:.3} (95 % interval {low:.3} to {high:.3}) over {} images",
        result.loss, result.accuracy, result.images
    ))
}

/// Writes a table of all images that could be read, in the order of the data set.
fn write_per_image(path: &Path, folder: &ImageFolder, predictions: &[Prediction]) -> Result<()> {
    write_atomically(path, |writer| {
        let mut table = csv::Writer::from_writer(writer);
        table.write_record(["path", "label", "predicted", "probability", "label_probability"])?;
        for prediction in predictions {
            let (probabilities, predicted) = (prediction.probabilities(), prediction.class());
            table.write_record([
                &folder.samples[prediction.index].path.to_string_lossy(),
                folder.classes[prediction.target].as_str(),
                &folder.classes[predicted],
                &probabilities[predicted].to_string(),
                &probabilities[prediction.target].to_string(),
            ])?;
        }
        table.flush()
    })
}
