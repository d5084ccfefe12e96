//! `retune convert`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::embed::table::Format;
use super::report::write;
use super::weights::WeightsKey;
use super::{GlobalArguments, print_json, print_result, size, warn};
use crate::data::counted;
use crate::error::{Error, Result};
use crate::file::{require_replaceable, start_of};
use crate::onnx;
use crate::printable::printable;
use crate::train::{Checkpoint, ModelFile, RunFolder, find_network};
use crate::weights::{Found, HeadPolicy, OutputTensor, TensorFile, match_state_dict, not_plain, save};

const EXAMPLES: &str = "\
Examples:
  retune convert resnet18-f37072fd.pth resnet18.safetensors
  retune convert runs/1/model.safetensors model.onnx";

/// Convert weights to safetensors, or a trained model to ONNX
///
/// Reads safetensors and PyTorch .pth files; code in a .pth file is never run. A safetensors file gets the same tensors with
/// torchvision's key names. An ONNX file contains the whole network, with the input `input` (normalised pixels, [batch, 3, size,
/// size]) and the output `logits`; its metadata contains the class names and the preprocessing.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ConvertArguments {
    /// File to read (.safetensors or .pth), or a model on the Hugging Face Hub
    #[arg(value_name = "IN")]
    input: PathBuf,

    /// File to write; its extension, .safetensors or .onnx, determines the format
    #[arg(value_name = "OUT")]
    output: PathBuf,

    #[command(flatten)]
    weights_key: WeightsKey,
}

pub fn run(global: &GlobalArguments, arguments: &ConvertArguments) -> Result<ExitCode> {
    let output = &arguments.output;
    let extension = output.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    let to_onnx = match extension.as_deref() {
        Some("safetensors") => false,
        Some("onnx") => true,
        _ => {
            let message = format!("{}: expected a name ending in .safetensors or .onnx", output.display());
            return Err(Error::usage(message));
        }
    };
    match to_onnx {
        true => require_replaceable(output, "an ONNX model", |path| {
            memchr::memmem::find(&start_of(path)[..], onnx::PRODUCER.as_bytes()).is_some_and(|place| place < 64)
        })?,
        false => require_replaceable(output, "weights outside of the folder of a run", is_plain_weights)?,
    }
    let file = arguments.weights_key.open(global, &arguments.input)?;
    if let Some(origin) = file.origin() {
        global.note(&format!("{} is {origin}", arguments.input.display()));
    }
    let tensors = if to_onnx {
        let model = ModelFile::describe(&file)?;
        model.notices.iter().for_each(|notice| global.note(notice));
        model.names_notice.iter().for_each(|notice| global.note(notice));
        if model.average_mirror {
            global.note(
                "the model was trained to average its outputs for an image and for its mirror image; the ONNX file computes those of one \
                 image, so average them in your program",
            );
        }
        write(output, &onnx::export(&model)?)?;
        model.weights.entries().len()
    } else {
        let found = match find_network(&file) {
            // Without the network that was asked for, there is nothing to write.
            Err(error) if file.chosen_prefix().is_some() => return Err(error),
            found => found,
        };
        let weights = found.as_ref().map_or(&file, |found| &found.weights);
        require_plain(weights)?;
        match &found {
            Ok(found) => found.notices.iter().for_each(|notice| global.note(notice)),
            Err(error) => {
                global.note(error.message());
                global.note("every tensor is written under its own name");
            }
        }
        if let Ok(Found { network, weights, .. }) = &found {
            let resnet = network.resnet(0);
            let report = match_state_dict(&resnet.state_dict(), weights, HeadPolicy::Replace);
            if let Err(error) = report.check(&resnet.to_string()) {
                warn(error.message());
            }
        }
        let tensors: Result<Vec<OutputTensor>> = weights
            .entries()
            .iter()
            .map(|entry| {
                if entry.is_float() {
                    weights.read_finite_f32(&entry.name)?;
                }
                Ok(OutputTensor::bytes(entry.name.clone(), entry.dtype, &entry.shape, weights.bytes(&entry.name)?))
            })
            .collect();
        let mut metadata = file.metadata().clone();
        metadata.entry("format".into()).or_insert_with(|| "pt".into());
        let tensors = tensors?;
        save(output, &tensors, &metadata)?;
        tensors.len()
    };
    let bytes = std::fs::metadata(output).map_or(0, |found| found.len());
    if global.json {
        print_json(&serde_json::json!({ "path": output.to_string_lossy(), "bytes": bytes, "tensors": tensors }))?;
    } else {
        print_result(&format!(
            "{}: {}, {}",
            output.display(),
            counted(tensors, "tensor", "tensors"),
            size(bytes as usize)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a file contains weights, and is neither a part of a run nor a file of features.
fn is_plain_weights(path: &Path) -> bool {
    let folder = RunFolder { path: path.parent().unwrap_or(Path::new("")).to_path_buf() };
    let is_checkpoint = || TensorFile::open(path).map_or(true, |file| Checkpoint::is(&file));
    !folder.config().exists() && !Format::Safetensors.is_of(path) && !is_checkpoint()
}

/// Refuses a file that has other objects in the place of tensors: the copy would lack them.
fn require_plain(weights: &TensorFile) -> Result<()> {
    const NAMED: usize = 8;
    let missing = weights.missing_tensors();
    if missing.is_empty() {
        return Ok(());
    }
    let named = missing.iter().take(NAMED);
    let named: Vec<String> =
        named.map(|(key, object)| format!("`{}`: {}", printable(key), not_plain(object))).collect();
    let more = if missing.len() > NAMED { "; ..." } else { "" };
    let (path, number) = (weights.path().display(), counted(missing.len(), "tensor", "tensors"));
    Err(Error::new(format!("{path}: {number} cannot be written ({}{more})", named.join("; ")))
        .hint("save plain tensors of type F32, F16, BF16 or F64: torch.save(model.state_dict(), FILE)"))
}
