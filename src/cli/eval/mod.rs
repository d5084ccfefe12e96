//! `retune eval`

mod result;
mod table;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use super::output::{csv_line, print_while_open, result_width};
use super::progress::Progress;
use super::testing::TestingArguments;
use super::weights::WeightsKey;
use super::{GlobalArguments, check_batch_size, check_threads, print_json, print_result, warn_of_skipped};
use crate::data::{
    Batches, DecodeOptions, ImageFolder, ImageStore, Labelled, Loader, LoaderOptions, Mode, Role, open_labelled,
    open_labelled_by, require_folder,
};
use crate::device::threads;
use crate::error::{Error, Result};
use crate::file::{begins_with, require_replaceable, write_atomically};
use crate::report::{Confusion, Measures};
use crate::train::{Prediction, evaluate, load_model};
use result::EvalResult;

const EXAMPLES: &str = "\
Examples:
  retune eval runs/1/model.safetensors photos
  retune eval runs/1/model.safetensors more-photos --json | jq .accuracy";

/// Evaluate a model on labelled images
///
/// Prints per-class results, the confusion matrix or the most confused classes, loss, and accuracy with its 95 % interval. Images of
/// classes that the model does not know are left out and counted.
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

    #[command(flatten)]
    testing: TestingArguments,

    /// Apply the EXIF orientation of images, even if the model was trained without it
    #[arg(long)]
    exif: bool,

    /// Stop at an unreadable image, or at one of an unsupported type or outside of the class folders, instead of skipping it with
    /// a warning
    #[arg(long)]
    strict: bool,

    /// Write the result of every image to this CSV file: path, label, predicted class, its probability, and that of the label; -
    /// writes them to standard output, and everything else to standard error
    #[arg(long, value_name = "FILE")]
    per_image: Option<PathBuf>,

    #[command(flatten)]
    weights_key: WeightsKey,
}

/// The header of the table of `--per-image`.
const PER_IMAGE_COLUMNS: [&str; 5] = ["path", "label", "predicted", "probability", "label_probability"];

/// The value of `--per-image` that stands for standard output.
const STANDARD_OUTPUT: &str = "-";

pub fn run(global: &GlobalArguments, arguments: &EvalArguments) -> Result<ExitCode> {
    check_batch_size(arguments.batch_size)?;
    if let Some(workers) = arguments.workers {
        check_threads("--workers", workers)?;
    }
    let per_image = arguments.per_image.as_deref();
    let is_printed = per_image == Some(Path::new(STANDARD_OUTPUT));
    if is_printed && global.json {
        return Err(
            Error::usage("--per-image -: --json also prints to standard output").hint("give a file instead of -")
        );
    }
    let per_image = per_image.filter(|_| !is_printed);
    if let Some(path) = per_image {
        let header = PER_IMAGE_COLUMNS.join(",");
        require_replaceable(path, "a table of --per-image", |path| begins_with(path, &header))?;
    }
    require_folder(&arguments.data)?;
    let device = global.open_device()?;
    // Every image is needed once, so none is kept.
    let store = Rc::new(ImageStore::new(device.clone(), Some(0)));
    let (mut network, model) = load_model(device, &arguments.weights_key.open(global, &arguments.model)?)?;
    model.notices.iter().for_each(|notice| global.note(notice));
    model.names_notice.iter().for_each(|notice| global.note(notice));
    let labelled = match &arguments.labels {
        Some(table) => open_labelled_by(&arguments.data, table, &model.classes),
        None => open_labelled(&arguments.data, &model.classes),
    };
    let Labelled { images: mut folder, unknown, notices, role, folder: place } = labelled?;
    if arguments.strict {
        folder.not_read.require_all_used()?;
    }
    notices.iter().for_each(|notice| global.note(notice));
    let unsupported: BTreeMap<String, usize> =
        folder.not_read.unsupported_counts().into_iter().map(|(kind, count)| (kind.to_string(), count)).collect();
    folder.decoding = DecodeOptions::with_exif(model.exif || arguments.exif);
    let options = LoaderOptions {
        batch_size: arguments.batch_size,
        image_size: model.image_size as u32,
        resize: model.resize,
        mode: Mode::Evaluate,
        workers: arguments.workers.unwrap_or_else(threads::count),
        strict: arguments.strict,
    };
    let testing = arguments.testing.testing(&model)?;
    let images = folder.len();
    let folder = Arc::new(folder);
    let mut batches = Batches::new(Loader::new(folder.clone(), options)?, &store)?;
    let progress = Progress::new(global, images as u64, "images");
    let (mut done, mut skipped) = (0, 0);
    let (totals, predictions) = evaluate(&mut network, &mut batches, testing, |batch| {
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
        folder: place.to_string_lossy().into_owned(),
        split: role.map(Role::name),
        images: totals.images,
        skipped,
        unsupported,
        unknown_classes: unknown.into_iter().collect(),
        accuracy: totals.accuracy(),
        measures: Measures::new(&predictions, model.classes.len()),
        loss: totals.mean_loss(),
        threshold: testing.threshold.map(|threshold| (model.classes[threshold.class].clone(), threshold.probability)),
        classes: confusion.classes(&model.classes),
        confusion: confusion.rows().to_vec(),
    };
    if global.json {
        print_json(&result)?
    } else {
        let lines = table::lines(&result, &confusion, result_width());
        match is_printed {
            true => lines.iter().for_each(|line| global.note(line)),
            false => lines.iter().try_for_each(|line| print_result(line))?,
        }
    }
    if is_printed {
        print_per_image(&folder, &predictions)?;
    } else if let Some(path) = per_image {
        let table = per_image_lines(&folder, &predictions).collect::<Result<String>>()?;
        write_atomically(path, |writer| writer.write_all(table.as_bytes()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the table of all images, or as much of it as is read.
fn print_per_image(folder: &ImageFolder, predictions: &[Prediction]) -> Result<()> {
    for line in per_image_lines(folder, predictions) {
        if !print_while_open(line?.as_bytes())? {
            break;
        }
    }
    Ok(())
}

/// The lines of a table of all images that could be read, in the order of the data set.
fn per_image_lines<'a>(
    folder: &'a ImageFolder,
    predictions: &'a [Prediction],
) -> impl Iterator<Item = Result<String>> + 'a {
    let rows = predictions.iter().map(|prediction| {
        let (probabilities, predicted) = (prediction.probabilities(), prediction.class());
        [
            folder.samples[prediction.index].path.to_string_lossy().into_owned(),
            folder.classes[prediction.target].clone(),
            folder.classes[predicted].clone(),
            probabilities[predicted].to_string(),
            probabilities[prediction.target].to_string(),
        ]
    });
    std::iter::once(PER_IMAGE_COLUMNS.map(String::from)).chain(rows).map(|fields| csv_line(fields.into_iter()))
}
