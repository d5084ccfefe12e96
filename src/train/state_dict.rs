//! Between a network on a device and files of weights in torch's names and layout.

use std::collections::BTreeMap;
use std::path::Path;

use super::network::Network;
use crate::error::{Error, Result};
use crate::graph::ParameterRole;
use crate::model::{Architecture, HEAD, ResNet, init, is_head};
use crate::weights::layout::{from_torch, to_torch};
use crate::weights::{
    HeadPolicy, MatchReport, NamedShape, OutputTensor, TensorFile, head_from, match_state_dict, save,
};

/// Every key of the network's state dict with its shape, in torch's order and layout.
fn expected(network: &Network) -> Vec<NamedShape> {
    let mut expected = Vec::new();
    for specification in network.parameters().specifications() {
        let name = &specification.name;
        expected.push(NamedShape { name: name.clone(), shape: specification.torch_shape() });
        if let Some(module) = name.strip_suffix(".running_var") {
            expected.push(NamedShape { name: format!("{module}.num_batches_tracked"), shape: Vec::new() });
        }
    }
    expected
}

/// The whole state dict of the network: what torch's `state_dict()` would hold.
pub fn state_dict(network: &Network) -> Result<Vec<OutputTensor<'static>>> {
    let parameters = network.parameters();
    expected(network)
        .into_iter()
        .map(|NamedShape { name, shape }| match name.strip_suffix(".num_batches_tracked") {
            Some(module) => {
                let count = parameters.batches_tracked().get(module).copied().unwrap_or(0);
                Ok(OutputTensor::i64(name, &[], vec![count]))
            }
            None => {
                let values = to_torch(parameters.read(network.device(), &name)?, &shape);
                Ok(OutputTensor::f32(name, &shape, values))
            }
        })
        .collect()
}

/// Writes the network's state dict, in one step.
pub fn save_state_dict(network: &Network, path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
    save(path, &state_dict(network)?, metadata)
}

/// Sets the network from a file: all of it, or all but the head.
///
/// # Errors
/// When a key is missing, unexpected or wrongly shaped; the network is then untouched.
pub fn load_state_dict(network: &mut Network, file: &TensorFile, head: HeadPolicy) -> Result<MatchReport> {
    let expected = expected(network);
    let report = match_state_dict(&expected, file, head);
    report.check(&describe(network.resnet())).map_err(|error| error.with_details(report.to_string()))?;
    for NamedShape { name, shape } in expected {
        if head == HeadPolicy::Replace && is_head(&name) {
            continue;
        }
        let key = report.key(&name);
        match name.strip_suffix(".num_batches_tracked") {
            Some(module) if file.contains(&key) => {
                let count = file.read_i64(&key)?.first().copied().unwrap_or(0);
                network.parameters_mut().set_batches_tracked(module, count);
            }
            Some(_) => {}
            None => network.write(&name, &from_torch(file.read_f32(&key)?, &shape))?,
        }
    }
    Ok(report)
}

/// Sets the network from a file of this program's own making, whose keys stand behind `prefix`.
///
/// # Errors
/// When a key is missing or wrongly shaped. Keys with other prefixes are left alone.
pub fn load_state_dict_named(network: &mut Network, file: &TensorFile, prefix: &str) -> Result<()> {
    for NamedShape { name, shape } in expected(network) {
        let key = format!("{prefix}{name}");
        let entry = file.entry(&key)?;
        if entry.shape != shape {
            return Err(Error::new(format!(
                "{}: {key} has shape {:?}, expected {shape:?} for {}",
                file.path().display(),
                entry.shape,
                describe(network.resnet())
            )));
        }
        match name.strip_suffix(".num_batches_tracked") {
            Some(module) => {
                let count = file.read_i64(&key)?.first().copied().unwrap_or(0);
                network.parameters_mut().set_batches_tracked(module, count);
            }
            None => network.write(&name, &from_torch(file.read_f32(&key)?, &shape))?,
        }
    }
    Ok(())
}

fn describe(resnet: &ResNet) -> String {
    match resnet.width {
        64 => resnet.architecture.to_string(),
        width => format!("{} of width {width}", resnet.architecture),
    }
}

/// The network that a file of weights belongs to, with the head that it has.
///
/// # Errors
/// When the keys are not those of a ResNet of basic blocks.
pub fn recognise(file: &TensorFile) -> Result<ResNet> {
    let prefix = ["", "module.", "model."]
        .into_iter()
        .find(|prefix| file.contains(&format!("{prefix}conv1.weight")))
        .unwrap_or_default();
    let first_extent = |name: &str| file.get(&format!("{prefix}{name}")).and_then(|entry| entry.shape.first().copied());
    let architectures = [Architecture::ResNet34, Architecture::ResNet18];
    let fits =
        |architecture: &Architecture| {
            architecture.blocks().into_iter().enumerate().all(|(stage, blocks)| {
                first_extent(&format!("layer{}.{}.conv2.weight", stage + 1, blocks - 1)).is_some()
            })
        };
    let bottleneck = first_extent("layer1.0.conv3.weight").is_some();
    match (architectures.into_iter().find(fits), first_extent("conv1.weight"), first_extent("fc.weight")) {
        (Some(architecture), Some(width), Some(classes)) if !bottleneck && width > 0 && classes > 0 => {
            Ok(ResNet { architecture, width, classes })
        }
        _ => {
            Err(Error::new(format!("{}: these are not the weights of a ResNet-18 or ResNet-34", file.path().display()))
                .hint("expected torchvision's key names: conv1.weight, layer1.0.conv1.weight, ..., fc.weight"))
        }
    }
}

/// Replaces the head by a fresh one: weight Xavier-uniform, bias as PyTorch begins it.
pub fn new_head(network: &mut Network, seed: u64) -> Result<()> {
    let (weight, bias) = (format!("{HEAD}.weight"), format!("{HEAD}.bias"));
    let classes = network.resnet().classes;
    let inputs = network.parameters().value_of(&weight)?.shape().channels();
    let mut values = vec![0.0; classes * inputs];
    init::xavier_uniform(inputs, classes, &mut values, &mut init::parameter_stream(seed, &weight));
    network.write(&weight, &values)?;
    let mut values = vec![0.0; classes];
    init::linear_bias_default(inputs, &mut values, &mut init::parameter_stream(seed, &bias));
    network.write(&bias, &values)
}

/// Replaces the head by rows of the file's.
pub fn copy_head(network: &mut Network, file: &TensorFile, report: &MatchReport, rows: &[usize]) -> Result<()> {
    let head = head_from(rows, file, report)?;
    network.write(&format!("{HEAD}.weight"), &head.weight)?;
    network.write(&format!("{HEAD}.bias"), &head.bias)
}

/// Begins every parameter as PyTorch does for a network from scratch: Kaiming-normal convolutions (fan-out), batch
/// norms 1 and 0, linear layers by default.
pub fn initialise(network: &mut Network, seed: u64) -> Result<()> {
    let specifications: Vec<_> = network.parameters().specifications().cloned().collect();
    for specification in specifications {
        let mut values = vec![0.0; specification.shape.len()];
        let random = &mut init::parameter_stream(seed, &specification.name);
        match (specification.role, specification.shape.dims()) {
            (ParameterRole::ConvolutionWeight, &[outputs, height, width, _]) => {
                init::kaiming_normal_fan_out(outputs, height * width, &mut values, random);
            }
            (ParameterRole::LinearWeight, &[_, inputs]) => init::linear_weight_default(inputs, &mut values, random),
            (ParameterRole::LinearBias, _) => {
                let weight = network.parameters().value_of(&format!("{HEAD}.weight"))?;
                init::linear_bias_default(weight.shape().channels(), &mut values, random);
            }
            (ParameterRole::BatchNormWeight | ParameterRole::RunningVariance, _) => values.fill(1.0),
            _ => {}
        }
        network.write(&specification.name, &values)?;
    }
    Ok(())
}
