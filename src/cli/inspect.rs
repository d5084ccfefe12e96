//! `retune inspect`

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::weights::WeightsKey;
use super::{GlobalArguments, check_batch_size, print_json, print_result};
use crate::data::ResizeMode;
use crate::error::{Error, Result};
use crate::graph::{BufferKind, Plan};
use crate::model::{BatchShape, Freezing, Phase, is_head};
use crate::ops::LossReduction;
use crate::printable::printable;
use crate::train::{LARGEST_IMAGE_SIZE, ModelFile, find_network};
use crate::weights::{Found, TensorFile, not_plain};

const EXAMPLES: &str = "\
Examples:
  retune inspect runs/1/model.safetensors
  Show the memory use at batch size 64:
    retune inspect runs/1/model.safetensors --plan --batch-size 64";

/// Show the contents of a weights file: layers, shapes, parameter counts, metadata
///
/// With --plan, shows the execution plan of the network at a given batch size, with all buffers and the peak memory use.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct InspectArguments {
    /// File to inspect: weights, a model, a checkpoint or a reference file
    file: PathBuf,

    /// Show the execution plan of a training step: nodes, buffers, memory
    #[arg(long)]
    plan: bool,

    /// With --plan, plan inference instead of a training step
    #[arg(long, requires = "plan")]
    inference: bool,

    /// With --plan, the batch size
    #[arg(long, default_value_t = 128, value_name = "N")]
    batch_size: usize,

    /// With --plan, the width and height of the images [default: that of the model's training, or 224]
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,

    /// With --plan, the modules to freeze, e.g. conv1,bn1,layer1
    #[arg(long, value_name = "MODULES", value_delimiter = ',')]
    freeze: Vec<String>,

    /// With --plan, frozen batch norms use their running statistics
    #[arg(long, requires = "freeze")]
    freeze_batch_norm: bool,

    #[command(flatten)]
    weights_key: WeightsKey,
}

pub fn run(global: &GlobalArguments, arguments: &InspectArguments) -> Result<ExitCode> {
    let file = arguments.weights_key.open(global, &arguments.file)?;
    if arguments.plan {
        plan(global, arguments, &file)?
    } else {
        list(global, &file)?
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct TensorRow<'a> {
    name: &'a str,
    element_type: String,
    shape: &'a [usize],
    elements: usize,
}

fn list(global: &GlobalArguments, file: &TensorFile) -> Result<()> {
    let rows = file.entries().iter().map(|entry| TensorRow {
        name: &entry.name,
        element_type: format!("{:?}", entry.dtype).to_lowercase(),
        shape: &entry.shape,
        elements: entry.elements(),
    });
    let rows = counters_last(rows.collect());
    let found = match find_network(file) {
        Err(error) if file.chosen_prefix().is_some() => return Err(error),
        found => found.ok(),
    };
    let model = ModelFile::describe(file).ok();
    let is_parameter = |name: &str| !name.contains("running_") && !name.ends_with("num_batches_tracked");
    let parameters = |file: &TensorFile, keep: &dyn Fn(&str) -> bool| -> usize {
        let kept = file.entries().iter().filter(|entry| is_parameter(&entry.name) && keep(&entry.name));
        kept.map(|entry| entry.elements()).sum()
    };
    // The tensors of the network, if there is one, without the other contents of the file.
    let counted = found.as_ref().map_or(file, |found| &found.weights);
    let (all, head) = (parameters(counted, &|_| true), parameters(counted, &is_head));
    let missing = file.missing_tensors().into_iter().map(|(name, object)| (name, not_plain(object)));
    if global.json {
        return print_json(&serde_json::json!({
            "file": file.path().to_string_lossy(),
            "bytes": file.file_bytes(),
            "origin": file.origin(),
            "architecture": found.as_ref().map(|found| found.network.architecture.to_string()),
            "width": found.as_ref().map(|found| found.network.width),
            "prefix": found.as_ref().map(|found| &found.prefix),
            "classes": model.as_ref().map(|model| &model.classes),
            "image_size": model.as_ref().map(|model| model.image_size),
            "resize": model.as_ref().map(|model| model.resize),
            "exif": model.as_ref().map(|model| model.exif),
            "average_mirror": model.as_ref().map(|model| model.average_mirror),
            "temperature": model.as_ref().map(|model| model.temperature),
            "parameters": all,
            "head_parameters": head,
            "metadata": file.metadata(),
            "tensors": rows,
            "not_plain": missing.map(|(name, reason)| serde_json::json!({"name": name, "reason": reason})).collect::<Vec<_>>(),
        }));
    }
    let width = rows.iter().map(|row| printable(row.name).chars().count()).max().unwrap_or(0).max(6);
    print_result(&format!("{:<width$}  {:<5} {:<16} {:>10}", "tensor", "type", "shape", "elements"))?;
    for TensorRow { name, element_type, shape, elements } in &rows {
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        let shape = if shape.is_empty() { "number".to_string() } else { shape.join("x") };
        let name = printable(name);
        print_result(&format!("{name:<width$}  {element_type:<5} {shape:<16} {elements:>10}"))?;
    }
    print_result("")?;
    if let Some(origin) = file.origin() {
        print_result(&format!("file        {origin}"))?;
    }
    for (name, reason) in missing {
        print_result(&format!("note        `{}` is not a plain tensor: {}", printable(name), printable(&reason)))?;
    }
    match &found {
        Some(Found { network, notices, .. }) => {
            print_result(&format!("network     {}, width {}", network.architecture, network.width))?;
            for notice in notices {
                print_result(&format!("note        {notice}"))?;
            }
            print_result(&format!("parameters  {all}, of which {head} in the head"))?;
        }
        None => print_result(&format!("elements    {}", rows.iter().map(|row| row.elements).sum::<usize>()))?,
    }
    if let Some(ModelFile { classes, image_size, resize, exif, average_mirror, names_notice, .. }) = &model {
        let rotated = if *exif { ", rotated by their EXIF orientation" } else { "" };
        let squares = match resize {
            ResizeMode::Crop => "",
            ResizeMode::Squash => ", squashed",
            ResizeMode::Pad => ", padded",
        };
        let averaged = if *average_mirror { ", averaged with their mirror images" } else { "" };
        print_result(&format!("images      {image_size} x {image_size}{squares}{rotated}{averaged}"))?;
        let shown: Vec<&str> = classes.iter().take(10).map(String::as_str).collect();
        let more = if classes.len() > shown.len() { ", ..." } else { "" };
        if let Some(notice) = names_notice {
            print_result(&format!("note        {notice}"))?;
        }
        print_result(&format!("classes     {}: {}{more}", classes.len(), shown.join(", ")))?;
    }
    for (name, value) in file.metadata() {
        if model.is_none() || !["classes", "architecture", "width", "average_mirror"].contains(&name.as_str()) {
            print_result(&format!("{name:<11} {}", readable(value)))?;
        }
    }
    Ok(())
}

/// Files store integers first to keep tensors aligned; this order puts a batch norm's counter after its module.
fn counters_last(rows: Vec<TensorRow>) -> Vec<TensorRow> {
    let (mut counters, others): (Vec<TensorRow>, Vec<TensorRow>) =
        rows.into_iter().partition(|row| row.name.ends_with(".num_batches_tracked"));
    let mut ordered = Vec::with_capacity(counters.len() + others.len());
    for row in others {
        let module = row.name.strip_suffix(".running_var");
        ordered.push(row);
        if let Some(counter) = module.and_then(|module| {
            counters.iter().position(|counter| counter.name.strip_suffix(".num_batches_tracked") == Some(module))
        }) {
            ordered.push(counters.remove(counter));
        }
    }
    ordered.extend(counters);
    ordered
}

/// The fields of a JSON object without punctuation; anything else unchanged.
fn readable(value: &str) -> String {
    match serde_json::from_str(value) {
        Ok(serde_json::Value::Object(fields)) => {
            let fields = fields.iter().map(|(name, value)| match value {
                serde_json::Value::String(text) => format!("{name} {text}"),
                value => format!("{name} {value}"),
            });
            fields.collect::<Vec<_>>().join(", ")
        }
        _ => value.to_string(),
    }
}

fn plan(global: &GlobalArguments, arguments: &InspectArguments, file: &TensorFile) -> Result<()> {
    check_batch_size(arguments.batch_size)?;
    let model = ModelFile::describe(file)?;
    let device = global.open_device()?;
    let device = device.as_ref();
    let size = arguments.image_size.unwrap_or(model.image_size);
    if !(1..=LARGEST_IMAGE_SIZE).contains(&size) {
        return Err(Error::usage(format!("--image-size {size}: expected 1 to {LARGEST_IMAGE_SIZE}")));
    }
    let shape = BatchShape { batch: arguments.batch_size, height: size, width: size };
    let freezing = Freezing { modules: arguments.freeze.clone(), batch_norm: arguments.freeze_batch_norm };
    let phase = if arguments.inference { Phase::Evaluation } else { Phase::Training(freezing.clone()) };
    let specification = model.resnet.specification();
    let graph = specification.graph(device, shape, &phase, LossReduction::Sum, &[])?.graph;
    specification.check_freezing(&freezing).map_err(|error| error.about("--freeze"))?;
    let plan = match arguments.inference {
        true => Plan::inference(&graph, device),
        false => Plan::training(&graph, device, |id| {
            let specification = graph.parameter(id);
            !specification.role.is_buffer() && !freezing.covers(&specification.name)
        }),
    };
    if global.json {
        let buffers = plan.buffers().iter().map(|buffer| {
            serde_json::json!({
                "name": buffer.name,
                "kind": format!("{:?}", buffer.kind).to_lowercase(),
                "bytes": buffer.bytes,
                "first_step": buffer.first,
                "last_step": buffer.last,
                "offset": buffer.offset,
            })
        });
        let nodes = graph.nodes().iter().enumerate().map(|(index, node)| {
            serde_json::json!({
                "name": node.name,
                "operation": node.operation.name(),
                "output": graph.value(node.outputs[0]).shape.dims(),
                "multiply_adds": node.operation.multiply_adds(),
                "backward": plan.has_backward(index),
            })
        });
        return print_json(&serde_json::json!({
            "nodes": nodes.collect::<Vec<_>>(),
            "buffers": buffers.collect::<Vec<_>>(),
            "peak_bytes": plan.peak_bytes(),
            "arena_bytes": plan.arena_bytes(),
        }));
    }
    print_result(&format!(
        "{:>4}  {:<13}  {:<22}  {:<18}  {:>8}  backward",
        "node", "operation", "module", "output", "GMAC"
    ))?;
    for (index, node) in graph.nodes().iter().enumerate() {
        let output = graph.value(node.outputs[0]).shape.to_string();
        let work = match node.operation.multiply_adds() {
            0 => String::new(),
            work => format!("{:.3}", work as f64 / 1e9),
        };
        let backward = if plan.has_backward(index) { "yes" } else { "-" };
        print_result(&format!(
            "{index:>4}  {:<13}  {:<22}  {output:<18}  {work:>8}  {backward}",
            node.operation.name(),
            node.name
        ))?;
    }
    let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
    print_result("")?;
    print_result(&format!("{:<9}  {:<22}  {:>9}  {:>11}  {:>9}", "buffer", "module", "MiB", "steps", "at MiB"))?;
    let mut buffers: Vec<_> = plan.buffers().iter().collect();
    buffers.sort_by_key(|buffer| (buffer.first, buffer.last));
    for buffer in buffers {
        print_result(&format!(
            "{:<9}  {:<22}  {:>9.2}  {:>5}-{:<5}  {:>9.2}",
            format!("{:?}", buffer.kind).to_lowercase(),
            buffer.name,
            mib(buffer.bytes),
            buffer.first,
            buffer.last,
            mib(buffer.offset)
        ))?;
    }
    print_result("")?;
    for kind in [BufferKind::Value, BufferKind::Saved, BufferKind::Gradient, BufferKind::Workspace] {
        let bytes: usize = plan.buffers().iter().filter(|buffer| buffer.kind == kind).map(|buffer| buffer.bytes).sum();
        print_result(&format!(
            "{:<10} {:>10.1} MiB without sharing memory",
            format!("{kind:?}").to_lowercase(),
            mib(bytes)
        ))?;
    }
    print_result(&format!("{:<10} {:>10.1} MiB in use at the peak", "peak", mib(plan.peak_bytes())))?;
    print_result(&format!("{:<10} {:>10.1} MiB", "arena", mib(plan.arena_bytes())))
}
