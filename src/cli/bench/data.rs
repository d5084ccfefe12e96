//! How fast images become batches.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::figures::{median, peak_resident_bytes};
use crate::cli::{check_threads, print_result};
use crate::data::{ImageFolder, Loader, LoaderOptions, Mode, ResizeMode};
use crate::device::threads;
use crate::error::{Error, Result};

#[derive(Serialize)]
pub struct DataResult {
    images: usize,
    workers: usize,
    batch_size: usize,
    image_size: usize,
    training_transform: Transform,
    test_transform: Transform,
    peak_resident_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Transform {
    images_per_second: f64,
    epoch_seconds: Vec<f64>,
    /// The processor time of all threads, if the system reports it: on a busy machine a better measure than elapsed time.
    epoch_processor_seconds: Option<Vec<f64>>,
}

/// that is not counted. The time covers everything from reading the files to batches of normalised float32.
/// that is not counted. What is timed begins at the files and ends with normalised float32 in batches.
pub fn measure(
    folder: &Path,
    workers: Option<usize>,
    batch_size: usize,
    image_size: usize,
    epochs: usize,
) -> Result<DataResult> {
    if let Some(workers) = workers {
        check_threads("--workers", workers)?;
    }
    let workers = workers.unwrap_or_else(threads::count);
    let dataset = Arc::new(ImageFolder::open(folder)?);
    let measure = |mode| {
        let (image_size, resize) = (image_size as u32, ResizeMode::Crop);
        let options = LoaderOptions { batch_size, image_size, resize, mode, workers, strict: true };
        let loader = Loader::new(Arc::clone(&dataset), options)?;
        let epochs = (0..=epochs).map(|epoch| time_epoch(&loader, epoch as u64)).collect::<Result<Vec<_>>>()?;
        let (epoch_seconds, epoch_processor_seconds): (Vec<_>, Vec<_>) = epochs[1..].iter().copied().unzip();
        Ok::<_, Error>(Transform {
            images_per_second: dataset.len() as f64 / median(&epoch_seconds),
            epoch_seconds,
            epoch_processor_seconds: epoch_processor_seconds.into_iter().collect(),
        })
    };
    Ok(DataResult {
        images: dataset.len(),
        workers,
        batch_size,
        image_size,
        training_transform: measure(Mode::Train { seed: 0 })?,
        test_transform: measure(Mode::Evaluate)?,
        peak_resident_bytes: peak_resident_bytes(),
    })
}

/// Elapsed seconds and processor seconds.
fn time_epoch(loader: &Loader, epoch: u64) -> Result<(f64, Option<f64>)> {
    let (started, computed) = (Instant::now(), processor_seconds());
    for batch in loader.epoch(epoch) {
        std::hint::black_box(&batch?.images);
    }
    let computed = computed.and_then(|before| Some(processor_seconds()? - before));
    Ok((started.elapsed().as_secs_f64(), computed))
}

/// The processor time of this process, in user and system code, to a hundredth of a second.
fn processor_seconds() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name before the parenthesis may contain any character.
    let mut fields = status.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / 100.0)
}

pub fn print_table(result: &DataResult) -> Result<()> {
    for (what, transform) in
        [("training transform", &result.training_transform), ("test transform", &result.test_transform)]
    {
        print_result(&format!("{what:<18} {:>8.1} images/s", transform.images_per_second))?;
    }
    print_result(&format!(
        "from {} files to batches of {}, {} x {}, float32; workers: {}",
        result.images, result.batch_size, result.image_size, result.image_size, result.workers
    ))
}
