//! Gradients of logits with respect to the output of a module, for Grad-CAM.

use super::network::Network;
use crate::device::{read_f32, write_f32, write_i32};
use crate::error::{Error, Result};
use crate::graph::{Arena, Executor, Plan};
use crate::model::{BatchShape, Freezing, Phase};
use crate::ops::LossReduction;
use crate::tensor::Shape;

/// The gradients of logits with respect to a module's output.
#[derive(Debug, Clone)]
pub struct LogitGradients {
    /// The shape of the module's output: `[N, H, W, C]`.
    pub shape: Shape,
    /// The module's output.
    pub activation: Vec<f32>,
    /// Gradient of each image's chosen logit with respect to it.
    pub gradient: Vec<f32>,
    /// `[N, classes]`
    pub logits: Vec<f32>,
    /// The class that was chosen for each image.
    pub chosen: Vec<usize>,
}

/// Evaluates `images`, `[N, H, W, 3]`, and computes for each the gradient of one class's logit with respect to the output
/// of `module`: the graph's own backward pass with batch norm in evaluation mode, started at that logit. `choose` picks
/// the class from an image's logits.
pub fn logit_gradients(
    network: &Network,
    shape: BatchShape,
    images: &[f32],
    module: &str,
    choose: impl Fn(&[f32]) -> usize,
) -> Result<LogitGradients> {
    let (device, resnet) = (network.device(), network.resnet());
    let specification = resnet.specification();
    let phase = Phase::Training(Freezing { modules: specification.modules(), batch_norm: true });
    let graph = specification.graph(device, shape, &phase, LossReduction::Sum, &[module.to_string()])?;
    let watched = graph.graph.find(module).ok_or_else(|| Error::new(format!("there is no module {module}")))?;
    let plan = Plan::gradient_of(&graph.graph, device, watched);
    let arena = Arena::new(device, plan.arena_bytes())?;
    let executor = Executor::new(graph.graph, plan, network.parameters(), &arena)?;
    write_f32(device, images, executor.value(graph.input))?;
    write_i32(device, &vec![0; shape.batch], executor.value(graph.targets))?;
    executor.forward(device)?;
    let classes = resnet.classes;
    let logits = read_f32(device, executor.value(graph.logits))?;
    let chosen: Vec<usize> = logits.chunks_exact(classes).map(choose).collect();
    let activation = read_f32(device, executor.value(watched))?;

    let no_gradient = || Error::new(format!("{module} comes after the logits"));
    let begin = executor.gradient(graph.logits).ok_or_else(no_gradient)?;
    let mut one_hot = vec![0.0; logits.len()];
    chosen.iter().enumerate().for_each(|(image, &class)| one_hot[image * classes + class] = 1.0);
    write_f32(device, &one_hot, begin)?;
    // All nodes but the loss, whose gradient was replaced above.
    for node in (0..executor.graph().nodes().len() - 1).rev() {
        executor.backward_node(device, node)?;
    }
    let gradient = read_f32(device, executor.gradient(watched).ok_or_else(no_gradient)?)?;
    Ok(LogitGradients { shape: executor.value(watched).shape(), activation, gradient, logits, chosen })
}
