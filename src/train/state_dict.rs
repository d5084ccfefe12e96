//! Transfers state dicts between a network on a device and files, in torch's names and layout.

use std::collections::BTreeMap;
use std::path::Path;

use super::network::Network;
use crate::error::{Error, Result};
use crate::model::{self, HEAD, Recognised, init, is_head};
use crate::weights::finite;
use crate::weights::layout::{from_torch, to_torch};
use crate::weights::{
    Found, HeadPolicy, MatchReport, NamedShape, OutputTensor, TensorFile, find, head_from, match_state_dict, save,
};

/// The whole state dict of the network, as torch's `state_dict()`.
///
/// # Errors
/// When a tensor is not finite ([`ErrorKind::NotFinite`](crate::error::ErrorKind::NotFinite)).
pub fn state_dict(network: &Network) -> Result<Vec<OutputTensor<'static>>> {
    let parameters = network.parameters();
    network
        .resnet()
        .state_dict()
        .into_iter()
        .map(|NamedShape { name, shape }| match name.strip_suffix(".num_batches_tracked") {
            Some(module) => {
                let count = parameters.batches_tracked().get(module).copied().unwrap_or(0);
                Ok(OutputTensor::i64(name, &[], vec![count]))
            }
            None => {
                let values = to_torch(parameters.read(network.device(), &name)?, &shape);
                // A state dict that could not be loaded again is not saved.
                match finite::is_sound(&name, &values) {
                    true => Ok(OutputTensor::f32(name, &shape, values)),
                    false => Err(Error::not_finite(format!("{name} {}", finite::describe(&name, &values)))),
                }
            }
        })
        .collect()
}

/// Writes the network's state dict atomically.
pub fn save_state_dict(network: &Network, path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
    save(path, &state_dict(network)?, metadata)
}

/// Sets the network from the weights that [`find_network`] found: all of it, or all but the head.
///
/// # Errors
/// When a key is missing, unexpected or wrongly shaped; the network is then untouched. When a tensor is not finite.
pub fn load_state_dict(network: &mut Network, file: &TensorFile, head: HeadPolicy) -> Result<MatchReport> {
    let expected = network.resnet().state_dict();
    let report = match_state_dict(&expected, file, head);
    report.check(&network.resnet().to_string()).map_err(|error| error.with_details(report.to_string()))?;
    for NamedShape { name, shape } in expected {
        if head == HeadPolicy::Replace && is_head(&name) {
            continue;
        }
        match name.strip_suffix(".num_batches_tracked") {
            Some(module) if file.contains(&name) => {
                network.parameters_mut().set_batches_tracked(module, file.read_counter(&name)?);
            }
            Some(_) => {}
            None => network.write(&name, &from_torch(file.read_finite_f32(&name)?, &shape))?,
        }
    }
    Ok(report)
}

/// Sets the network from a file that this program wrote, whose keys begin with `prefix`.
///
/// # Errors
/// When a key is missing or wrongly shaped, or a tensor is not finite. Keys with other prefixes are ignored.
pub fn load_state_dict_named(network: &mut Network, file: &TensorFile, prefix: &str) -> Result<()> {
    for NamedShape { name, shape } in network.resnet().state_dict() {
        let key = format!("{prefix}{name}");
        let entry = file.entry(&key)?;
        if entry.shape != shape {
            return Err(Error::new(format!(
                "{}: {key} has shape {:?}, expected {shape:?} for {}",
                file.path().display(),
                entry.shape,
                network.resnet()
            )));
        }
        match name.strip_suffix(".num_batches_tracked") {
            Some(module) => {
                let count = file.read_i64(&key)?.first().copied().unwrap_or(0);
                network.parameters_mut().set_batches_tracked(module, count);
            }
            None => network.write(&name, &from_torch(file.read_finite_f32(&key)?, &shape))?,
        }
    }
    Ok(())
}

/// The network in a file of weights, in any nested dictionary and with any prefix; see [`find`].
///
/// # Errors
/// When the file contains no network of a known architecture.
pub fn find_network(file: &TensorFile) -> Result<Found<Recognised>> {
    find(file, |shape_of| model::recognise(shape_of))
}

/// Replaces the head by a new one: Xavier-uniform weight, bias as in PyTorch's default.
pub fn new_head(network: &mut Network, seed: u64) -> Result<()> {
    for parameter in network.resnet().parameters().iter().filter(|parameter| is_head(&parameter.name)) {
        network.write(&parameter.name, &init::head_values(parameter, seed))?;
    }
    Ok(())
}

/// Replaces the head by rows of the file's head.
pub fn copy_head(network: &mut Network, file: &TensorFile, report: &MatchReport, rows: &[usize]) -> Result<()> {
    let head = head_from(rows, file, report)?;
    network.write(&format!("{HEAD}.weight"), &head.weight)?;
    network.write(&format!("{HEAD}.bias"), &head.bias)
}

/// Initialises every parameter as torchvision does for a network from scratch: Kaiming-normal convolutions (fan-out), batch norms
/// 1 and 0, linear layers by PyTorch's default.
pub fn initialise(network: &mut Network, seed: u64) -> Result<()> {
    for parameter in network.resnet().parameters() {
        network.write(&parameter.name, &init::initial_values(&parameter, seed))?;
    }
    Ok(())
}
