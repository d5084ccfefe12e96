//! `retune embed`

mod nearest;
pub mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use super::images::{ImageArguments, ImageOptions, Images, batches_of};
use super::progress::Progress;
use super::weights::WeightsKey;
use super::{GlobalArguments, check_batch_size, print_json, print_result, size};
use crate::data::ImageStore;
use crate::error::{Error, Result};
use crate::file::require_replaceable;
use crate::train::{Body, Network, body_digest, features, load_body};
use nearest::{Directions, Neighbour};
use table::{Format, Table};

const EXAMPLES: &str = "\
Examples:
  Write the features of all photos in a folder:
    retune embed resnet18 photos --output photos.safetensors
  Find the five photos that are most similar to a new one:
    retune embed resnet18 new.jpg --nearest 5 --among photos.safetensors
  Find similar photos within a folder:
    retune embed runs/1 photos --nearest 3";

/// Compute the features of images, and find similar images
///
/// The features of an image are the numbers that the network computes before its final layer: 512 for ResNet-18 and ResNet-34, 2048
/// for larger ones. A .safetensors file contains the tensor `features`, [images, features], and in its metadata `paths`, a JSON
/// list; a .csv file has one line per image. Two images are similar if the cosine of the angle between their features is near 1.
/// An image that cannot be read does not stop the others; the exit status is then 1.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct EmbedArguments {
    /// Model to use: the folder of a run, its model.safetensors, or the weights of any supported network
    model: PathBuf,

    #[command(flatten)]
    images: ImageArguments,

    /// File to write; its extension, .safetensors or .csv, determines the format
    #[arg(short, long, value_name = "FILE", required_unless_present = "nearest")]
    output: Option<PathBuf>,

    /// Print, for every image, this many of the most similar other images
    #[arg(long, value_name = "K")]
    nearest: Option<usize>,

    /// Search among the images of this file, which `retune embed --output` wrote, instead of the given ones
    #[arg(long, value_name = "FILE", requires = "nearest")]
    among: Option<PathBuf>,

    /// Apply the EXIF orientation of images, even if the model was trained without it
    #[arg(long)]
    exif: bool,

    /// Batch size
    #[arg(long, default_value_t = 16, value_name = "N")]
    batch_size: usize,

    #[command(flatten)]
    weights_key: WeightsKey,
}

pub fn run(global: &GlobalArguments, arguments: &EmbedArguments) -> Result<ExitCode> {
    check_batch_size(arguments.batch_size)?;
    if arguments.nearest == Some(0) {
        return Err(Error::usage("--nearest 0: expected at least 1"));
    }
    let output = arguments.output.as_deref().map(|path| Ok((path, Format::of(path)?))).transpose()?;
    output
        .map_or(Ok(()), |(path, format)| require_replaceable(path, "a file of features", |path| format.is_of(path)))?;
    let mut images = arguments.images.open(global)?;
    let device = global.open_device()?;
    let Body { mut network, image_size, resize, exif, notices } =
        load_body(device.clone(), &arguments.weights_key.open(global, &arguments.model)?)?;
    notices.iter().for_each(|notice| global.note(notice));
    let weights = body_digest(&network)?;
    let dimension = network.resnet().features();
    let candidates = arguments.among.as_deref().map(|file| Table::open(file, dimension, &weights)).transpose()?;

    let options = ImageOptions { batch_size: arguments.batch_size, image_size, resize, exif: exif || arguments.exif };
    // Every image is needed once, so none is kept.
    let store = Rc::new(ImageStore::new(device, Some(0)));
    let mut table = Table::new(dimension, weights);
    let unreadable = embed(global, &mut images, &mut network, &options, &store, &mut table)?;
    if table.paths.is_empty() {
        return images.outcome(unreadable, unreadable);
    }
    if arguments.nearest.is_some() && candidates.is_none() && table.paths.len() == 1 {
        return Err(Error::new(format!("{}: there is no other image to compare it with", table.paths[0]))
            .hint("give more images, or --among FILE"));
    }
    if let Some((path, format)) = output {
        table.write(path, format)?;
    }
    let found = arguments.nearest.map(|count| search(&table, candidates.as_ref(), count));
    report(global, arguments, &table, found.as_deref(), candidates.as_ref())?;
    images.outcome(unreadable, table.paths.len() + unreadable)
}

/// Adds the features of all images to the table. Returns the number of images that could not be read.
fn embed(
    global: &GlobalArguments,
    images: &mut Images,
    network: &mut Network,
    options: &ImageOptions,
    store: &Rc<ImageStore>,
    table: &mut Table,
) -> Result<usize> {
    let progress = match images.count() {
        Some(count) => Progress::new(global, count as u64, "images"),
        None => Progress::of_any_number(global, "images"),
    };
    let (mut unreadable, mut done) = (0, 0);
    loop {
        let paths = images.next_paths()?;
        if paths.is_empty() {
            break;
        }
        let mut batches = batches_of(&paths, options, store)?;
        let found = features(network, &mut batches, 0, options.image_size, |batch| {
            for sample in &batch.skipped {
                progress.warn(&format!("skipped: {}", images.reason(sample)));
            }
            unreadable += batch.skipped.len();
            done += (batch.indices.len() + batch.skipped.len()) as u64;
            progress.position(done);
            Ok(())
        })?;
        table.values.extend(&found.values);
        table.paths.extend(found.indices.iter().map(|&index| images.name(&paths[index])));
    }
    progress.finish();
    Ok(unreadable)
}

/// The nearest images of every image of the table, among candidates or among themselves.
fn search(table: &Table, candidates: Option<&Table>, count: usize) -> Vec<Vec<Neighbour>> {
    let directions = |table: &Table| Directions::new(table.values.clone(), table.dimension);
    let images = directions(table);
    match candidates {
        Some(candidates) => images.nearest(&directions(candidates), count, false),
        None => images.nearest(&images, count, true),
    }
}

fn report(
    global: &GlobalArguments,
    arguments: &EmbedArguments,
    table: &Table,
    found: Option<&[Vec<Neighbour>]>,
    candidates: Option<&Table>,
) -> Result<()> {
    let names = &candidates.unwrap_or(table).paths;
    let rows = || table.paths.iter().zip(found.into_iter().flatten());
    if global.json {
        let neighbour = |one: &Neighbour| serde_json::json!({ "path": names[one.index], "similarity": one.similarity });
        let row = |(path, found): (&String, &Vec<Neighbour>)| serde_json::json!({ "path": path, "nearest": found.iter().map(neighbour).collect::<Vec<_>>() });
        let mut result = serde_json::json!({ "images": table.paths.len(), "features": table.dimension });
        if let Some(output) = &arguments.output {
            result["output"] = output.to_string_lossy().into();
        }
        if found.is_some() {
            result["nearest"] = rows().map(row).collect();
        }
        return print_json(&result);
    }
    for (path, found) in rows() {
        let found: Vec<String> =
            found.iter().map(|one| format!("{} {:.3}", names[one.index], one.similarity)).collect();
        print_result(&format!("{path}: {}", found.join(", ")))?;
    }
    if let Some(output) = &arguments.output {
        let bytes = std::fs::metadata(output).map_or(0, |found| found.len());
        let text = format!(
            "{}: {} features of {} images, {}",
            output.display(),
            table.dimension,
            table.paths.len(),
            size(bytes as usize)
        );
        // With --nearest, the similar images are the result.
        if found.is_some() { global.note(&text) } else { print_result(&text)? }
    }
    Ok(())
}
