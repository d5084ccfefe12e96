//! `retune bench`

mod data;
mod figures;
mod images;
mod launches;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::ValueEnum;
use serde::Serialize;

use super::recipe_arguments::architecture_names;
use super::{GlobalArguments, check_batch_size, print_json, print_result};
use crate::device::cuda::gpus::GpuModel;
use crate::device::{Device, threads};
use crate::error::{Error, Result};
use crate::model::{Architecture, BatchShape, ResNet};
use crate::tensor::Tensor;
use crate::train::{LARGEST_IMAGE_SIZE, LARGEST_WIDTH, Network, Purpose, Recipe, Trainer, initialise};
use figures::{median, peak_resident_bytes};
use images::{CLASSES, Images, targets};

const EXAMPLES: &str = "\
Examples:
  Measure training and inference:
    retune bench --batch-size 32
  Measure how fast images are decoded and transformed:
    retune bench --mode data --data photos/train
  Time every kernel of a training step:
    retune bench --kernels
  Estimate the time of every kernel on an H200, without a GPU:
    retune bench --kernels --plan --gpu h200 --precision bf16 --batch-size 128";

/// Measure the speed of training, inference or image loading
///
/// Training and inference run on synthetic images. The first step is a warm-up and is not counted; the rate is that of the
/// median step.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct BenchArguments {
    /// Batch size
    #[arg(long, default_value_t = 32, value_name = "N")]
    batch_size: usize,

    /// Width and height of the images
    #[arg(long, default_value_t = 224, value_name = "PIXELS")]
    image_size: usize,

    /// Number of steps to measure; with --mode data, of passes over the folder
    #[arg(long, default_value_t = 5, value_name = "N")]
    steps: usize,

    /// Network architecture
    #[arg(long, default_value_t = Architecture::default().to_string(), value_name = "NAME", value_parser = architecture_names())]
    arch: String,

    /// Number of channels of the first stage
    #[arg(long, default_value_t = 64, value_name = "N")]
    width: usize,

    /// What to measure
    #[arg(long, default_value = "both", value_name = "MODE")]
    mode: Mode,

    /// Folder with one folder of images per class, for --mode data
    #[arg(long, value_name = "FOLDER", required_if_eq("mode", "data"))]
    data: Option<PathBuf>,

    /// Number of threads that decode images, for --mode data [default: one per core]
    #[arg(long, requires = "data", value_name = "N")]
    workers: Option<usize>,

    /// Time every kernel of a training step, or of a batch with --mode inference, separately; on the CPU, every graph node of
    /// a training step
    #[arg(long, conflicts_with = "data")]
    kernels: bool,

    /// List every kernel launch of a training step, or of a batch with --mode inference, with its roofline time, without
    /// running it; needs no GPU
    #[arg(long, requires = "kernels")]
    plan: bool,

    /// GPU model of the roofline [default: the GPU in use; h200 with --plan]
    #[arg(long, requires = "kernels", value_name = "NAME", value_parser = launches::model_parser())]
    gpu: Option<&'static GpuModel>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Training steps on synthetic images
    Training,
    /// Inference on synthetic images
    Inference,
    /// Training and inference
    Both,
    /// Loading the images of a folder into batches, with the training and the test transform
    Data,
}

#[derive(Serialize)]
struct Training {
    images_per_second: f64,
    step_seconds: Vec<f64>,
}

#[derive(Serialize)]
struct Inference {
    images_per_second: f64,
    batch_seconds: Vec<f64>,
}

#[derive(Serialize)]
struct KernelRow {
    node: String,
    operation: &'static str,
    forward_milliseconds: f64,
    /// Multiplications and additions per second; `None` for operations without any.
    forward_gflops: Option<f64>,
    backward_milliseconds: f64,
    backward_gflops: Option<f64>,
}

#[derive(Serialize)]
struct BenchResult {
    device: String,
    threads: usize,
    batch_size: usize,
    image_size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    training: Option<Training>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inference: Option<Inference>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kernels: Vec<KernelRow>,
    arena_bytes: usize,
    peak_resident_bytes: Option<u64>,
}

pub fn run(global: &GlobalArguments, arguments: &BenchArguments) -> Result<ExitCode> {
    check_batch_size(arguments.batch_size)?;
    if arguments.steps == 0 {
        return Err(Error::usage("--steps 0: expected at least 1"));
    }
    let limited =
        [("--image-size", arguments.image_size, LARGEST_IMAGE_SIZE), ("--width", arguments.width, LARGEST_WIDTH)];
    for (flag, value, largest) in limited {
        if !(1..=largest).contains(&value) {
            return Err(Error::usage(format!("{flag} {value}: expected 1 to {largest}")));
        }
    }
    if let Some(folder) = &arguments.data {
        if arguments.mode != Mode::Data {
            return Err(Error::usage("--data requires --mode data; the other modes use synthetic images"));
        }
        let BenchArguments { workers, batch_size, image_size, steps, .. } = *arguments;
        let result = data::measure(folder, workers, batch_size, image_size, steps)?;
        match global.json {
            true => print_json(&result)?,
            false => data::print_table(&result)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let resnet = ResNet { architecture: arguments.arch.parse()?, width: arguments.width, classes: CLASSES };
    let size = arguments.image_size;
    let shape = BatchShape { batch: arguments.batch_size, height: size, width: size };
    if arguments.kernels
        && let Some(report) = report_launches(global, arguments, resnet, shape)?
    {
        match global.json {
            true => print_json(&report)?,
            false => launches::print_table(&report)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let device = global.open_device()?;
    let mut result = BenchResult {
        device: device.name(),
        threads: threads::count(),
        batch_size: shape.batch,
        image_size: size,
        training: None,
        inference: None,
        kernels: Vec::new(),
        arena_bytes: 0,
        peak_resident_bytes: None,
    };
    let input_bytes = shape.batch * size * size * 3 * size_of::<f32>();
    require_free(device.as_ref(), input_bytes)?;
    let images = Images::new(device.as_ref(), shape)?;
    let write = |device: &dyn Device, input: &Tensor| images.write(device, input);
    let targets = targets(shape);
    let rate = |seconds: &[f64]| shape.batch as f64 / median(seconds);
    if arguments.kernels || arguments.mode != Mode::Inference {
        let mut trainer = Trainer::new(device.clone(), resnet, Recipe::fine_tuning().trainable(None)?)?;
        initialise(trainer.network_mut(), 0)?;
        require_free(device.as_ref(), trainer.network().arena_bytes_of(shape, Purpose::Training)?)?;
        trainer.network_mut().prepare(shape, Purpose::Training)?;
        if arguments.kernels {
            result.kernels = kernels(&mut trainer, shape, &images, &targets, arguments.steps)?;
        } else {
            let step_seconds = time(arguments.steps, || trainer.step_by(shape, write, &targets).map(|_| ()))?;
            result.training = Some(Training { images_per_second: rate(&step_seconds), step_seconds });
        }
        result.arena_bytes = trainer.network().arena_bytes();
    }
    if !arguments.kernels && arguments.mode != Mode::Training {
        let mut network = Network::new(device.clone(), resnet)?;
        initialise(&mut network, 0)?;
        require_free(device.as_ref(), network.arena_bytes_of(shape, Purpose::Evaluation)?)?;
        network.prepare(shape, Purpose::Evaluation)?;
        let batch_seconds = time(arguments.steps, || network.evaluate_by(shape, write, &targets).map(|_| ()))?;
        result.inference = Some(Inference { images_per_second: rate(&batch_seconds), batch_seconds });
        result.arena_bytes = result.arena_bytes.max(network.arena_bytes());
    }
    result.peak_resident_bytes = peak_resident_bytes();
    if global.json {
        print_json(&result)?;
    } else {
        print_table(&result)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The report of `--kernels` for a CUDA device or for `--plan`; `None` for the CPU.
fn report_launches(
    global: &GlobalArguments,
    arguments: &BenchArguments,
    resnet: ResNet,
    shape: BatchShape,
) -> Result<Option<launches::StepReport>> {
    let (model, precision) = (arguments.gpu, global.precision());
    let purpose = match arguments.mode {
        Mode::Inference => Purpose::Evaluation,
        Mode::Training | Mode::Both | Mode::Data => Purpose::Training,
    };
    if arguments.plan {
        let model = model.map_or_else(|| launches::find_model("h200"), Ok)?;
        return launches::plan(model, precision, resnet, shape, purpose).map(Some);
    }
    match global.open_driver()? {
        Some(driver) => launches::measure(driver, model, precision, resnet, shape, purpose, arguments.steps).map(Some),
        None if purpose == Purpose::Evaluation => {
            Err(Error::usage("--kernels --mode inference: the CPU times a training step only")
                .hint("use --plan, or a GPU"))
        }
        None => Ok(None),
    }
}

fn print_table(result: &BenchResult) -> Result<()> {
    let line = |what: &str, rate: f64, seconds: &[f64]| {
        let (fastest, slowest) = seconds.iter().fold((f64::INFINITY, 0.0_f64), |(a, b), &s| (a.min(s), b.max(s)));
        print_result(&format!(
            "{what:<10} {rate:>8.1} images/s  ({:.0} ms per batch of {}; {:.0} to {:.0} ms)",
            median(seconds) * 1e3,
            result.batch_size,
            fastest * 1e3,
            slowest * 1e3
        ))
    };
    if let Some(training) = &result.training {
        line("training", training.images_per_second, &training.step_seconds)?;
    }
    if let Some(inference) = &result.inference {
        line("inference", inference.images_per_second, &inference.batch_seconds)?;
    }
    if !result.kernels.is_empty() {
        let header = ["forward ms", "GFLOP/s", "backward ms", "GFLOP/s"];
        let [a, b, c, d] = header;
        print_result(&format!("{:<13}  {:<21}  {a:>10}  {b:>7}  {c:>11}  {d:>7}", "operation", "module"))?;
        let rate = |rate: Option<f64>| rate.map_or(String::new(), |rate| format!("{rate:.0}"));
        for row in &result.kernels {
            print_result(&format!(
                "{:<13}  {:<21}  {:>10.2}  {:>7}  {:>11.2}  {:>7}",
                row.operation,
                row.node,
                row.forward_milliseconds,
                rate(row.forward_gflops),
                row.backward_milliseconds,
                rate(row.backward_gflops)
            ))?;
        }
        let sum = |part: fn(&KernelRow) -> f64| result.kernels.iter().map(part).sum::<f64>();
        let (forward, backward) = (sum(|row| row.forward_milliseconds), sum(|row| row.backward_milliseconds));
        print_result(&format!("{:<13}  {:<21}  {forward:>10.2}  {:>7}  {backward:>11.2}", "total", "", ""))?;
    }
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let resident = match result.peak_resident_bytes {
        Some(bytes) => format!(", peak resident memory: {:.0} MiB", mib(bytes)),
        None => String::new(),
    };
    print_result(&format!(
        "device: {}, threads: {}, activations: {:.0} MiB{resident}",
        result.device,
        result.threads,
        mib(result.arena_bytes as u64)
    ))
}

/// Refuses what does not fit into the device's memory.
fn require_free(device: &dyn Device, bytes: usize) -> Result<()> {
    match device.free_bytes()?.filter(|&free| free < bytes) {
        Some(free) => Err(Error::out_of_memory(&device.name(), bytes, Some(free))),
        None => Ok(()),
    }
}

/// Runs `step` once as a warm-up and then `steps` times; returns the seconds of each.
fn time(steps: usize, mut step: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    step()?;
    (0..steps)
        .map(|_| {
            let started = Instant::now();
            step()?;
            Ok(started.elapsed().as_secs_f64())
        })
        .collect()
}

fn kernels(
    trainer: &mut Trainer,
    shape: BatchShape,
    images: &Images,
    targets: &[u32],
    steps: usize,
) -> Result<Vec<KernelRow>> {
    trainer.step_by(shape, |device, input| images.write(device, input), targets)?;
    let network = trainer.network();
    let executor = network.executor(shape, Purpose::Training)?;
    let device = network.device();
    let nodes = executor.graph().nodes();
    let mut seconds = vec![[Vec::new(), Vec::new()]; nodes.len()];
    let timed = |run: &dyn Fn() -> Result<()>, seconds: &mut Vec<f64>| -> Result<()> {
        let started = Instant::now();
        run()?;
        device.synchronize()?;
        seconds.push(started.elapsed().as_secs_f64());
        Ok(())
    };
    for _ in 0..steps {
        network.fill_by(shape, Purpose::Training, |device, input| images.write(device, input), targets)?;
        for (node, [forward, _]) in seconds.iter_mut().enumerate() {
            timed(&|| executor.forward_node(device, node), forward)?;
        }
        for (node, [_, backward]) in seconds.iter_mut().enumerate().rev() {
            timed(&|| executor.backward_node(device, node), backward)?;
        }
    }
    let rows = nodes.iter().zip(&seconds).enumerate().map(|(index, (node, [forward, backward]))| {
        let operations = 2.0 * node.operation.multiply_adds() as f64;
        let rate = |operations: f64, seconds: f64| (operations > 0.0).then(|| operations / seconds / 1e9);
        // The stem needs no input gradient; every other layer computes two products.
        let backward_operations = if index == 0 { operations } else { 2.0 * operations };
        KernelRow {
            node: node.name.clone(),
            operation: node.operation.name(),
            forward_milliseconds: median(forward) * 1e3,
            forward_gflops: rate(operations, median(forward)),
            backward_milliseconds: median(backward) * 1e3,
            backward_gflops: rate(backward_operations, median(backward)),
        }
    });
    Ok(rows.collect())
}
