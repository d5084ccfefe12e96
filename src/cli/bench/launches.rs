//! Every kernel launch of a training step or of a batch in inference, compared with a roofline: planned without a GPU, or timed one by one.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use serde::Serialize;

use super::super::print_result;
use super::figures::median;
use super::images::{Images, targets};
use crate::device::Precision;
use crate::device::cuda::Cuda;
use crate::device::cuda::driver::{ArithmeticUnit, Driver, Work};
use crate::device::cuda::dry_run::{DryRun, LaunchLog, RecordedLaunch, Stopwatch};
use crate::device::cuda::gpus::{Bound, GPU_MODELS, GpuModel};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Value};
use crate::model::{BatchShape, ResNet};
use crate::tensor::Tensor;
use crate::train::{Network, Purpose, Recipe, Trainer, initialise};

/// The values of `--gpu`.
pub(super) fn model_parser() -> impl TypedValueParser<Value = &'static GpuModel> {
    let named = GPU_MODELS.iter().map(|model| PossibleValue::new(model.name).help(model.description));
    PossibleValuesParser::new(named).try_map(|name| find_model(&name))
}

/// The GPU model with this name.
pub(super) fn find_model(name: &str) -> Result<&'static GpuModel> {
    GpuModel::find(name).ok_or_else(|| {
        let names: Vec<&str> = GPU_MODELS.iter().map(|model| model.name).collect();
        Error::usage(format!("--gpu {name}: expected one of {}", names.join(", ")))
    })
}

/// A part of a training step, or of a batch in inference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Part {
    Augment,
    Forward,
    Backward,
    Sgd,
}

impl Part {
    const ALL: [Self; 4] = [Self::Augment, Self::Forward, Self::Backward, Self::Sgd];

    fn name(self) -> &'static str {
        match self {
            Self::Augment => "augment",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Sgd => "sgd",
        }
    }
}

struct Issued {
    part: Part,
    module: String,
    launch: RecordedLaunch,
}

/// Launches that are alike except for their module.
#[derive(Serialize)]
struct Row {
    part: Part,
    kernel: &'static str,
    /// The module of the first launch.
    module: String,
    launches: usize,
    grid: [u32; 3],
    threads: u32,
    dynamic_shared_bytes: u32,
    /// The sum over all launches, as are the fields below.
    operations: u64,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    roofline_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bound: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip)]
    work: Work,
}

impl Row {
    fn new(Issued { part, module, launch }: &Issued) -> Self {
        Self {
            part: *part,
            kernel: launch.kernel,
            module: module.clone(),
            launches: 0,
            grid: launch.grid,
            threads: launch.block.iter().product(),
            dynamic_shared_bytes: launch.shared_bytes,
            operations: 0,
            bytes: 0,
            roofline_seconds: None,
            bound: None,
            seconds: None,
            work: launch.work,
        }
    }

    fn is_like(&self, Issued { part, launch, .. }: &Issued) -> bool {
        (self.part, self.kernel, self.grid, self.threads) == (*part, launch.kernel, launch.grid, threads(launch))
            && (self.dynamic_shared_bytes, self.work) == (launch.shared_bytes, launch.work)
    }

    fn add(&mut self, launch: &RecordedLaunch, model: Option<&GpuModel>) {
        self.launches += 1;
        self.operations += launch.work.operations;
        self.bytes += launch.work.bytes_read + launch.work.bytes_written;
        if let Some(roofline) = model.map(|model| model.roofline(&launch.work)) {
            *self.roofline_seconds.get_or_insert(0.0) += roofline.seconds;
            self.bound = Some(match roofline.bound {
                Bound::Operations => "operations",
                Bound::Bytes => "bytes",
            });
        }
        if let Some(duration) = launch.duration {
            *self.seconds.get_or_insert(0.0) += duration.as_secs_f64();
        }
    }
}

fn threads(launch: &RecordedLaunch) -> u32 {
    launch.block.iter().product()
}

#[derive(Serialize)]
struct Total {
    part: &'static str,
    launches: usize,
    operations: u64,
    bytes: u64,
    /// See [`least_bytes`].
    least_bytes: u64,
    bytes_ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    roofline_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
}

/// The launches of a training step or of a batch in inference, in groups, and their sums.
#[derive(Serialize)]
pub(super) struct StepReport {
    device: String,
    /// The GPU model of the roofline.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<&'static str>,
    precision: String,
    batch_size: usize,
    image_size: usize,
    rows: Vec<Row>,
    totals: Vec<Total>,
    #[serde(skip_serializing_if = "Option::is_none")]
    roofline_images_per_second: Option<f64>,
    arena_bytes: usize,
    /// All device memory including parameters and gradients; known for a plan only.
    #[serde(skip_serializing_if = "Option::is_none")]
    allocated_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fits: Option<bool>,
}

/// Plans a training step, or a batch in inference, without a GPU.
pub(super) fn plan(
    model: &'static GpuModel,
    precision: Precision,
    resnet: ResNet,
    shape: BatchShape,
    purpose: Purpose,
) -> Result<StepReport> {
    let driver = std::rc::Rc::new(DryRun::new(model));
    let log = driver.log();
    let device = Cuda::new(Box::new(driver.clone()), precision)?;
    let mut subject = Subject::new(device, resnet, shape, purpose)?;
    let images = Images::new(subject.network().device(), shape)?;
    log.take();
    let issued = issue(&mut subject, shape, &images, &targets(shape), &log)?;
    let mut report = report(&subject, shape, &issued, Some(model))?;
    report.allocated_bytes = Some(driver.allocated_bytes());
    report.memory_bytes = Some(model.memory_bytes);
    report.fits = Some(driver.allocated_bytes() <= model.memory_bytes);
    Ok(report)
}

/// Times every launch of a training step or of a batch in inference separately, `steps` times, and reports the medians. Without `model`, the roofline is
/// that of the GPU that the driver describes, if it is known.
pub(super) fn measure(
    driver: Box<dyn Driver>,
    model: Option<&'static GpuModel>,
    precision: Precision,
    resnet: ResNet,
    shape: BatchShape,
    purpose: Purpose,
    steps: usize,
) -> Result<StepReport> {
    let model = model.or_else(|| GpuModel::described(&driver.description()));
    let stopwatch = Stopwatch::new(driver);
    let log = stopwatch.log();
    let device = Cuda::new(Box::new(stopwatch), precision)?;
    let mut subject = Subject::new(device, resnet, shape, purpose)?;
    let images = Images::new(subject.network().device(), shape)?;
    let targets = targets(shape);
    let mut runs = Vec::with_capacity(steps + 1);
    for _ in 0..=steps {
        runs.push(issue(&mut subject, shape, &images, &targets, &log)?);
    }
    // The first run is a warm-up.
    let mut issued = runs.swap_remove(0);
    for (index, issued) in issued.iter_mut().enumerate() {
        let durations = runs.iter().filter_map(|run| run.get(index)?.launch.duration);
        let seconds: Vec<f64> = durations.map(|duration| duration.as_secs_f64()).collect();
        if seconds.len() == steps {
            issued.launch.duration = Some(std::time::Duration::from_secs_f64(median(&seconds)));
        }
    }
    report(&subject, shape, &issued, model)
}

/// What is launched: a network that is trained, or one that classifies.
enum Subject {
    Training(Box<Trainer>),
    Inference(Box<Network>),
}

impl Subject {
    /// Initialised, and prepared for batches of `shape`.
    fn new(device: Cuda, resnet: ResNet, shape: BatchShape, purpose: Purpose) -> Result<Self> {
        let device = std::rc::Rc::new(device);
        let mut subject = match purpose {
            Purpose::Training => {
                Self::Training(Box::new(Trainer::new(device, resnet, Recipe::fine_tuning().trainable(None)?)?))
            }
            Purpose::Evaluation => Self::Inference(Box::new(Network::new(device, resnet)?)),
        };
        let network = match &mut subject {
            Self::Training(trainer) => trainer.network_mut(),
            Self::Inference(network) => network,
        };
        initialise(network, 0)?;
        network.prepare(shape, purpose)?;
        Ok(subject)
    }

    fn network(&self) -> &Network {
        match self {
            Self::Training(trainer) => trainer.network(),
            Self::Inference(network) => network,
        }
    }

    fn purpose(&self) -> Purpose {
        match self {
            Self::Training(_) => Purpose::Training,
            Self::Inference(_) => Purpose::Evaluation,
        }
    }
}

/// Runs one training step from augmentation to update, or the forward pass in inference, and returns the launches of each module.
fn issue(
    subject: &mut Subject,
    shape: BatchShape,
    images: &Images,
    targets: &[u32],
    log: &LaunchLog,
) -> Result<Vec<Issued>> {
    let mut issued = Vec::new();
    let mut keep = |part, module: &str| {
        issued.extend(log.take().into_iter().map(|launch| Issued { part, module: module.into(), launch }));
    };
    let (network, purpose) = (subject.network(), subject.purpose());
    let executor = network.executor(shape, purpose)?;
    let device = network.device();
    network.fill_by(shape, purpose, |device, input| images.write(device, input), targets)?;
    keep(Part::Augment, "images");
    for (index, node) in executor.graph().nodes().iter().enumerate() {
        executor.forward_node(device, index)?;
        keep(Part::Forward, &node.name);
    }
    if let Subject::Training(trainer) = subject {
        let network = trainer.network();
        let executor = network.executor(shape, purpose)?;
        for (index, node) in executor.graph().nodes().iter().enumerate().rev() {
            executor.backward_node(network.device(), index)?;
            keep(Part::Backward, &node.name);
        }
        trainer.update()?;
        keep(Part::Sgd, "parameters");
    }
    subject.network().device().synchronize()?;
    Ok(issued)
}

fn report(
    subject: &Subject,
    shape: BatchShape,
    issued: &[Issued],
    model: Option<&'static GpuModel>,
) -> Result<StepReport> {
    let mut rows: Vec<Row> = Vec::new();
    for one in issued {
        let position = rows.iter().position(|row| row.is_like(one)).unwrap_or_else(|| {
            rows.push(Row::new(one));
            rows.len() - 1
        });
        rows[position].add(&one.launch, model);
    }
    let network = subject.network();
    let graph = network.executor(shape, subject.purpose())?.graph();
    let least = LeastBytes::new(graph, network, subject.purpose());
    let (parts, whole) = match subject {
        Subject::Training(_) => (&Part::ALL[..], "step"),
        Subject::Inference(_) => (&[Part::Augment, Part::Forward][..], "batch"),
    };
    let mut totals: Vec<Total> = parts.iter().map(|&part| total(part, &rows, &least)).collect();
    let step = Total {
        part: whole,
        launches: totals.iter().map(|total| total.launches).sum(),
        operations: totals.iter().map(|total| total.operations).sum(),
        bytes: totals.iter().map(|total| total.bytes).sum(),
        least_bytes: totals.iter().map(|total| total.least_bytes).sum(),
        bytes_ratio: 0.0,
        roofline_seconds: sum(totals.iter().map(|total| total.roofline_seconds)),
        seconds: sum(totals.iter().map(|total| total.seconds)),
    };
    let step = Total { bytes_ratio: step.bytes as f64 / step.least_bytes as f64, ..step };
    let roofline_images_per_second = step.roofline_seconds.map(|seconds| shape.batch as f64 / seconds);
    totals.push(step);
    Ok(StepReport {
        device: network.device().name(),
        gpu: model.map(|model| model.name),
        precision: network.device().precision().to_string(),
        batch_size: shape.batch,
        image_size: shape.height,
        rows,
        totals,
        roofline_images_per_second,
        arena_bytes: network.arena_bytes(),
        allocated_bytes: None,
        memory_bytes: None,
        fits: None,
    })
}

/// The sum of the known values; `None` if there are none.
fn sum(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    values.flatten().fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

fn total(part: Part, rows: &[Row], least: &LeastBytes) -> Total {
    let rows = || rows.iter().filter(|row| row.part == part);
    let bytes: u64 = rows().map(|row| row.bytes).sum();
    let least_bytes = match part {
        Part::Augment => bytes,
        Part::Forward => least.forward,
        Part::Backward => least.backward,
        Part::Sgd => least.sgd,
    };
    Total {
        part: part.name(),
        launches: rows().map(|row| row.launches).sum(),
        operations: rows().map(|row| row.operations).sum(),
        bytes,
        least_bytes,
        bytes_ratio: if least_bytes == 0 { 1.0 } else { bytes as f64 / least_bytes as f64 },
        roofline_seconds: sum(rows().map(|row| row.roofline_seconds)),
        seconds: sum(rows().map(|row| row.seconds)),
    }
}

/// The fewest bytes that a training step or a batch in inference moves if each pass reads and writes each activation once and no data stays in a cache
/// between passes. With all parameters trained, the passes are:
///
/// | pass | reads | writes |
/// |---|---|---|
/// | convolution, max and average pool, linear forward | input, weight | output, argmax indices |
/// | normalisation, addition, ReLU | convolution's output, residual | output |
/// | in inference, convolution with normalisation, addition, ReLU | input, weight, residual | output |
/// | loss | logits | gradient of the logits |
/// | batch norm backward, sums | output's gradient, convolution's output, output where a residual was added | masked gradient of the residual |
/// | batch norm backward, gradient | the same gradient, convolution's output | its gradient |
/// | input gradient | output's gradient, weight, the previous value where it is added to | input's gradient |
/// | weight gradient | output's gradient, input | weight's gradient |
/// | update | parameters, gradients, velocity | parameters, velocity, bf16 copy |
///
/// Where a convolution's stride exceeds its filter, only the input covered by windows counts. Statistics and other
/// per-channel vectors do not count. `augment` counts source pixels and output once.
struct LeastBytes {
    forward: u64,
    backward: u64,
    sgd: u64,
}

impl LeastBytes {
    fn new(graph: &Graph, network: &Network, purpose: Purpose) -> Self {
        let size = |value: Value| {
            let info = graph.value(value);
            (info.shape.len() * info.element_type.size()) as u64
        };
        let (mut forward, mut backward) = (0, 0);
        // Of the consumers of a value, the last in forward order writes its gradient first; the others add to it.
        let mut has_gradient = std::collections::BTreeSet::new();
        for node in graph.nodes().iter().rev() {
            let name = node.operation.name();
            let output = node.outputs[0];
            let is_activation = |value: &&Value| graph.value(**value).shape.dims().len() != 3;
            let inputs: Vec<Value> = node.inputs.iter().filter(is_activation).copied().collect();
            let elements: u64 = node.parameters.iter().map(|&id| graph.parameter(id).shape.len() as u64).sum();
            let factor =
                if name == "conv2d" { network.device().precision().activation_type().size() as u64 } else { 4 };
            let mut gradient_of = |value: Value| {
                if graph.value(value).producer.is_none() {
                    return 0;
                }
                let added = !has_gradient.insert(value);
                size(value) * if added { 2 } else { 1 }
            };
            let read: u64 = inputs.iter().map(|&input| size(input)).sum();
            match name {
                "batch_norm" => {
                    forward += read + size(output);
                    let residual = inputs.get(1).copied();
                    let masked = residual.map_or(0, |residual| size(output) + gradient_of(residual));
                    backward += 2 * (size(output) + size(inputs[0])) + masked + gradient_of(inputs[0]);
                }
                "max_pool" => {
                    // Only the backward pass reads where each maximum was.
                    let indices = match purpose {
                        Purpose::Training => graph.value(output).shape.len() as u64,
                        Purpose::Evaluation => 0,
                    };
                    forward += read + size(output) + indices;
                    backward += size(output) + indices + gradient_of(inputs[0]);
                }
                "cross_entropy" => forward += read + size(inputs[0]),
                "conv2d" | "linear" => {
                    let unread = unread_bytes(graph, node);
                    let read = read - unread;
                    forward += read + size(output) + elements * factor;
                    let gradient = match gradient_of(inputs[0]) {
                        // The gradient of input that no window covers is zero, or unchanged.
                        added if added == 2 * size(inputs[0]) => added - 2 * unread,
                        written => written,
                    };
                    if gradient > 0 {
                        backward += size(output) + elements * factor + gradient;
                    }
                    backward += size(output) + read + elements * 4;
                }
                _ => {
                    forward += read + size(output);
                    backward += size(output) + gradient_of(inputs[0]);
                }
            }
        }
        let groups = network.parameters().groups().iter();
        let sgd = groups.map(|group| {
            let slots: usize = group.slots.iter().map(Tensor::bytes).sum();
            let copy = group.compute_copy.as_ref().map_or(0, Tensor::bytes);
            (2 * (group.values.bytes() + slots) + group.gradients.bytes() + copy) as u64
        });
        Self { forward, backward, sgd: sgd.sum() }
    }
}

/// Bytes of a convolution's input that no window covers, because the stride exceeds the filter.
fn unread_bytes(graph: &Graph, node: &Node) -> u64 {
    let input = graph.value(node.inputs[0]);
    let weight = node.parameters.first().map(|&id| graph.parameter(id).shape);
    let output = graph.value(node.outputs[0]).shape;
    match (input.shape.dims(), weight.as_ref().map_or(&[][..], |weight| weight.dims()), output.dims()) {
        (&[batch, height, width, channels], &[_, rows, columns, _], &[_, output_height, output_width, _]) => {
            let covered = height.min(output_height * rows) * width.min(output_width * columns);
            (batch * (height * width - covered) * channels * input.element_type.size()) as u64
        }
        _ => 0,
    }
}

pub(super) fn print_table(report: &StepReport) -> Result<()> {
    let timed = report.rows.iter().any(|row| row.seconds.is_some());
    let peaks = report.gpu.and_then(GpuModel::find);
    let columns = match timed {
        true => format!("{:>9}  {:>9}  {:>8}  {:>8}", "us", "GB/s", "TFLOP/s", "roofline"),
        false => format!("{:>9}  {:<10}", "min us", "bound by"),
    };
    print_result(&format!(
        "{:<8}  {:<36}  {:<26}  {:>8}  {:>14}  {:>7}  {:>7}  {:>8}  {:>8}  {columns}",
        "part", "kernel", "module", "launches", "grid", "threads", "shared", "GFLOP", "MB"
    ))?;
    for row in &report.rows {
        let module = match row.launches {
            1 => row.module.clone(),
            launches => format!("{} and {} more", row.module, launches - 1),
        };
        let [x, y, z] = row.grid;
        print_result(&format!(
            "{:<8}  {:<36}  {module:<26}  {:>8}  {:>14}  {:>7}  {:>7}  {:>8.2}  {:>8.1}  {}",
            row.part.name(),
            row.kernel,
            row.launches,
            format!("{x} {y} {z}"),
            row.threads,
            row.dynamic_shared_bytes,
            row.operations as f64 / 1e9,
            row.bytes as f64 / 1e6,
            rates(row, timed)
        ))?;
    }
    print_result("")?;
    for total in &report.totals {
        let time = |what: &str, seconds: Option<f64>| {
            seconds.map_or(String::new(), |seconds| format!(", {what} {:.3} ms", seconds * 1e3))
        };
        print_result(&format!(
            "{:<8}  {:>4} launches, {:>8.1} GFLOP, {:>8.1} MB, minimum {:>8.1} MB ({:.2} x){}{}",
            total.part,
            total.launches,
            total.operations as f64 / 1e9,
            total.bytes as f64 / 1e6,
            total.least_bytes as f64 / 1e6,
            total.bytes_ratio,
            time("roofline", total.roofline_seconds),
            time("measured", total.seconds)
        ))?;
    }
    if let (Some(model), Some(rate)) = (peaks, report.roofline_images_per_second) {
        print_result(&format!("roofline: {rate:.0} images/s on {} ({})", model.name, ceilings(model)))?;
    }
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let memory = match (report.allocated_bytes, report.memory_bytes, report.fits) {
        (Some(allocated), Some(memory), Some(fits)) => format!(
            "; {:.2} GiB in total, which {} the {:.0} GiB of the GPU",
            gib(allocated),
            if fits { "fits in" } else { "exceeds" },
            gib(memory)
        ),
        _ => String::new(),
    };
    print_result(&format!(
        "{}, {}, batch {}, {} x {}: {:.2} GiB of activations{memory}",
        report.device,
        report.precision,
        report.batch_size,
        report.image_size,
        report.image_size,
        gib(report.arena_bytes as u64)
    ))
}

fn rates(row: &Row, timed: bool) -> String {
    let microseconds = |seconds: Option<f64>| seconds.map_or(String::new(), |seconds| format!("{:.1}", seconds * 1e6));
    if !timed {
        return format!("{:>9}  {:<10}", microseconds(row.roofline_seconds), row.bound.unwrap_or_default());
    }
    let seconds = row.seconds.unwrap_or(f64::NAN);
    let share = row.roofline_seconds.map_or(String::new(), |roofline| format!("{:.0} %", roofline / seconds * 100.0));
    format!(
        "{:>9}  {:>9.1}  {:>8.2}  {share:>8}",
        microseconds(row.seconds),
        row.bytes as f64 / seconds / 1e9,
        row.operations as f64 / seconds / 1e12
    )
}

fn ceilings(model: &GpuModel) -> String {
    let rate =
        |what: &str, unit| model.operations_per_second(unit).map(|rate| format!("{what} {:.0} TFLOP/s", rate / 1e12));
    let rates = [
        rate("fp32", ArithmeticUnit::Float32),
        rate("tf32", ArithmeticUnit::TensorTf32),
        rate("bf16", ArithmeticUnit::TensorBf16),
    ];
    let rates: Vec<String> = rates.into_iter().flatten().collect();
    format!("{}: {:.2} TB/s, {}", model.description, model.bytes_per_second / 1e12, rates.join(", "))
}
