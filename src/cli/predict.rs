//! `retune predict`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;

use super::progress::Progress;
use super::weights::WeightsKey;
use super::{GlobalArguments, print_json, print_result};
use crate::data::{
    Batches, DecodeOptions, FileKind, ImageFolder, ImageStore, Loader, LoaderOptions, Mode, NotRead, Sample,
};
use crate::device::threads;
use crate::error::{Context, Error, Result};
use crate::train::{Prediction, class_names, evaluate, load_model};
use crate::weights::{IMAGENET_CLASSES, imagenet_classes};

const EXAMPLES: &str = "\
Examples:
  retune predict runs/1/model.safetensors new.jpg
  retune predict runs/1/model.safetensors holiday/ 'more/*.png' --top 1";

/// Classify images
///
/// Prints the most probable classes of every image. If weights have 1000 classes without names, those of ImageNet are used.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct PredictArguments {
    /// Model to use: the folder of a run, its model.safetensors, or the weights of any supported network
    model: PathBuf,

    /// Images, folders of images, or patterns such as 'photos/*.jpg'
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,

    /// Number of classes to print, most probable first
    #[arg(long, default_value_t = 3, value_name = "N")]
    top: usize,

    /// With --json, include the logits of all classes
    #[arg(long, requires = "json")]
    logits: bool,

    /// Apply the EXIF orientation of images, even if the model was trained without it
    #[arg(long)]
    exif: bool,

    /// Batch size
    #[arg(long, default_value_t = 16, value_name = "N")]
    batch_size: usize,

    #[command(flatten)]
    weights_key: WeightsKey,
}

#[derive(Serialize)]
struct ClassProbability {
    class: String,
    probability: f64,
}

#[derive(Serialize)]
struct ImageResult {
    /// Characters that are not Unicode are replaced.
    path: String,
    classes: Vec<ClassProbability>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<Vec<f32>>,
}

pub fn run(global: &GlobalArguments, arguments: &PredictArguments) -> Result<ExitCode> {
    if arguments.batch_size == 0 {
        return Err(Error::usage("--batch-size 0: expected at least 1"));
    }
    if arguments.top == 0 {
        return Err(Error::usage("--top 0: expected at least 1"));
    }
    let paths = image_paths(&arguments.images)?;
    let device = global.open_device()?;
    // Every image is needed once, so none is kept.
    let store = Rc::new(ImageStore::new(device.clone(), Some(0)));
    let file = arguments.weights_key.open(global, &arguments.model)?;
    let (mut network, mut model) = load_model(device, &file)?;
    model.notices.iter().for_each(|notice| global.note(notice));
    let is_unnamed = class_names(&file)?.is_none() && model.classes.len() == IMAGENET_CLASSES;
    if is_unnamed {
        model.classes = imagenet_classes();
    }
    let samples: Vec<Sample> = paths.into_iter().map(|path| Sample { path, class: 0 }).collect();
    let options = LoaderOptions {
        batch_size: arguments.batch_size.min(samples.len()),
        image_size: model.image_size as u32,
        mode: Mode::Evaluate,
        workers: threads::count().min(samples.len()),
        strict: false,
    };
    let decoding = DecodeOptions::with_exif(model.exif || arguments.exif);
    let folder = ImageFolder {
        root: PathBuf::new(),
        classes: model.classes.clone(),
        samples,
        decoding,
        not_read: NotRead::default(),
    };
    let dataset = Arc::new(folder);
    let mut batches = Batches::new(Loader::new(dataset.clone(), options)?, &store)?;
    let progress = Progress::new(global, dataset.len() as u64, "images");
    let (mut done, mut failed) = (0, 0);
    let (_, predictions) = evaluate(&mut network, &mut batches, model.image_size, |batch| {
        batch.skipped.iter().for_each(|sample| progress.warn(&format!("skipped: {}", sample.reason)));
        failed += batch.skipped.len();
        done += batch.targets.len() + batch.skipped.len();
        progress.position(done as u64);
        Ok(())
    })?;
    progress.finish();
    if is_unnamed && !predictions.is_empty() {
        global.note("the weights have no class names: using those of ImageNet, which also has 1000 classes");
    }
    let results = predictions.iter().map(|prediction| {
        let path = dataset.samples[prediction.index].path.to_string_lossy().into_owned();
        let classes = most_probable(prediction, &model.classes, arguments.top);
        ImageResult { path, classes, logits: arguments.logits.then(|| prediction.logits.clone()) }
    });
    let results: Vec<ImageResult> = results.collect();
    if global.json {
        print_json(&results)?;
    } else {
        for ImageResult { path, classes, .. } in &results {
            let classes: Vec<String> =
                classes.iter().map(|one| format!("{} {:.3}", one.class, one.probability)).collect();
            print_result(&format!("{path}: {}", classes.join(", ")))?;
        }
    }
    if failed > 0 {
        return Err(Error::new(format!("{failed} of {done} images could not be read")));
    }
    Ok(ExitCode::SUCCESS)
}

fn most_probable(prediction: &Prediction, names: &[String], top: usize) -> Vec<ClassProbability> {
    let mut classes: Vec<(usize, f64)> = prediction.probabilities().into_iter().enumerate().collect();
    classes.sort_by(|a, b| b.1.total_cmp(&a.1));
    let named = |(class, probability): (usize, f64)| ClassProbability { class: names[class].clone(), probability };
    classes.into_iter().take(top).map(named).collect()
}

/// Files, the images in folders at any depth, and files that patterns match.
fn image_paths(arguments: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for argument in arguments {
        let before = paths.len();
        if argument.is_dir() {
            let pattern = format!("{}/**/*", glob::Pattern::escape(&argument.to_string_lossy()));
            paths.extend(matching(&pattern, argument)?.into_iter().filter(|path| FileKind::is_named_as_image(path)));
        } else if argument.exists() {
            paths.push(argument.clone());
        } else {
            paths.extend(matching(&argument.to_string_lossy(), argument)?);
        }
        if paths.len() == before {
            let what = if argument.is_dir() { "no images in this folder" } else { "no such file" };
            return Err(Error::new(format!("{}: {what}", argument.display()))
                .hint(format!("give images that end in one of {}", FileKind::image_extensions())));
        }
    }
    Ok(paths)
}

fn matching(pattern: &str, argument: &Path) -> Result<Vec<PathBuf>> {
    let paths = glob::glob(pattern).context(|| format!("{}: invalid pattern", argument.display()))?;
    let files = paths.filter_map(|path| path.ok()).filter(|path| path.is_file());
    Ok(files.collect())
}
