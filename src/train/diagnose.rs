//! Finds the first value of a training step that is not finite.

use super::network::Purpose;
use super::trainer::Trainer;
use crate::device::{Device, read_f32};
use crate::error::{Error, Result};
use crate::model::BatchShape;
use crate::tensor::Tensor;

/// Computes a training batch of a prepared shape again, node by node, and describes where the first value appears that is not
/// finite; `None` if all are finite. Changes running statistics and gradients.
pub fn find_not_finite(
    trainer: &Trainer,
    shape: BatchShape,
    write: impl FnOnce(&dyn Device, &Tensor) -> Result<()>,
    targets: &[u32],
) -> Result<Option<String>> {
    let network = trainer.network();
    let (device, parameters) = (network.device(), network.parameters());
    let is_finite = |tensor: &Tensor| Ok::<_, Error>(read_f32(device, tensor)?.iter().all(|value| value.is_finite()));
    for specification in parameters.specifications().filter(|specification| !specification.role.is_buffer()) {
        if !is_finite(parameters.value_of(&specification.name)?)? {
            return Ok(Some(format!("the parameter {}", specification.name)));
        }
    }
    network.fill_by(shape, Purpose::Training, write, targets)?;
    let images = network.input(shape, Purpose::Training)?;
    if !is_finite(images)? {
        return Ok(Some("the images".into()));
    }
    trainer.issue_mixture(images)?;
    let executor = network.executor(shape, Purpose::Training)?;
    let nodes = executor.graph().nodes();
    for (index, node) in nodes.iter().enumerate() {
        executor.forward_node(device, index)?;
        if !is_finite(executor.value(node.outputs[0]))? {
            return Ok(Some(format!("the output of {}", node.name)));
        }
    }
    for (index, node) in nodes.iter().enumerate().rev() {
        executor.backward_node(device, index)?;
        for &parameter in &node.parameters {
            let name = &executor.graph().parameter(parameter).name;
            match parameters.gradient_of(name)? {
                Some(gradient) if !is_finite(gradient)? => return Ok(Some(format!("the gradient of {name}"))),
                _ => {}
            }
        }
    }
    Ok(None)
}
