//! A network with its parameters on a device, and a plan for every batch shape that it has met.

use std::rc::Rc;

use super::{BatchShape, Freezing, NetworkGraph, Phase, ResNet};
use crate::device::{Device, Recording, read_f32, write_f32, write_i32};
use crate::error::{Error, Result};
use crate::graph::{Arena, Executor, ParameterSpecification, Parameters, Plan, Value};
use crate::ops::LossReduction;
use crate::optim::{GradientClipping, GroupSettings, sgd_step};
use crate::tensor::{Shape, Tensor};

/// The name of the head: torchvision's last layer.
pub const HEAD: &str = "fc";

/// How the parameters of a network are trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Trainable {
    /// Modules that stay as they are.
    pub freezing: Freezing,
    /// Settings of the body and of the head.
    pub groups: [GroupSettings; 2],
    /// How the pictures' losses become one.
    pub reduction: LossReduction,
    /// The longest that the gradients of all parameters together may be; longer ones are shortened.
    pub max_gradient_norm: Option<f32>,
}

/// What one batch gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchResult {
    /// The reduced loss.
    pub loss: f32,
    /// Pictures whose largest logit is the target's.
    pub correct: usize,
    /// How long the gradients were before they were clipped, where they are.
    pub gradient_norm: Option<f32>,
}

/// How logits depend on a module's output.
#[derive(Debug, Clone)]
pub struct LogitGradients {
    /// Of the module's output: `[N, H, W, C]`.
    pub shape: Shape,
    /// That output.
    pub activation: Vec<f32>,
    /// Gradient of each picture's chosen logit with respect to it.
    pub gradient: Vec<f32>,
    /// `[N, classes]`
    pub logits: Vec<f32>,
    /// The class that was chosen for each picture.
    pub chosen: Vec<usize>,
}

struct Prepared {
    shape: BatchShape,
    trains: bool,
    executor: Executor,
    input: Value,
    targets: Value,
    logits: Value,
    loss: Value,
    /// A training step, on devices that can record one. It holds addresses of the arena and the learning rates.
    recording: Option<Rc<dyn Recording>>,
}

/// See the module.
pub struct Network {
    device: Rc<dyn Device>,
    resnet: ResNet,
    parameters: Parameters,
    trainable: Option<Trainable>,
    clipping: Option<GradientClipping>,
    prepared: Vec<Prepared>,
    arena: Option<Arena>,
}

/// Any batch shape names the same parameters; this one is the smallest that the builder takes.
const SMALLEST: BatchShape = BatchShape { batch: 2, height: 33, width: 33 };

impl Network {
    /// Allocates the parameters, all zero. Without `trainable` it can only evaluate and holds no gradients.
    pub fn new(device: Rc<dyn Device>, resnet: ResNet, trainable: Option<Trainable>) -> Result<Self> {
        let specifications = resnet.parameters(device.as_ref())?;
        if let Some(trainable) = &trainable {
            trainable.freezing.check(&resnet, &specifications)?;
        }
        let with_velocity =
            trainable.as_ref().is_some_and(|trainable| trainable.groups.iter().any(|group| group.momentum != 0.0));
        let group = |specification: &ParameterSpecification| match &trainable {
            Some(trainable) if !trainable.freezing.covers(&specification.name) => {
                Some(usize::from(is_head(&specification.name)))
            }
            _ => None,
        };
        let parameters = Parameters::new(device.as_ref(), &specifications, 2, with_velocity, group)?;
        let max_norm = trainable.as_ref().and_then(|trainable| trainable.max_gradient_norm);
        let clipping = max_norm.map(|max_norm| GradientClipping::new(device.as_ref(), &parameters, max_norm));
        let clipping = clipping.transpose()?;
        Ok(Self { device, resnet, parameters, trainable, clipping, prepared: Vec::new(), arena: None })
    }

    /// What the network is.
    pub fn resnet(&self) -> &ResNet {
        &self.resnet
    }

    /// Where it lives.
    pub fn device(&self) -> &dyn Device {
        self.device.as_ref()
    }

    /// Where it lives, for whoever keeps memory there.
    pub fn shared_device(&self) -> Rc<dyn Device> {
        self.device.clone()
    }

    /// Its parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Its parameters, to be set.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// Sets a parameter, in this crate's layout.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        self.parameters.write(self.device.as_ref(), name, values)
    }

    /// Bytes of the arena that all plans so far share.
    pub fn arena_bytes(&self) -> usize {
        self.arena.as_ref().map_or(0, Arena::bytes)
    }

    /// Plans a batch shape, so that the memory for it is there before anything starts.
    pub fn prepare(&mut self, shape: BatchShape, trains: bool) -> Result<()> {
        self.prepare_keeping(shape, trains, &[])
    }

    /// As [`Network::prepare`], and the outputs of the named modules can be read after a run.
    pub fn prepare_keeping(&mut self, shape: BatchShape, trains: bool, kept: &[String]) -> Result<()> {
        if self.prepared.iter().any(|prepared| (prepared.shape, prepared.trains) == (shape, trains)) {
            return Ok(());
        }
        let (network, plan) = self.plan(shape, trains, kept)?;
        if self.arena_bytes() < plan.arena_bytes() {
            self.grow(plan.arena_bytes())?;
        }
        let arena = self.arena.as_ref().ok_or_else(|| Error::new("a plan without an arena"))?;
        let executor = Executor::new(network.graph, plan, &self.parameters, arena)?;
        let (input, targets, logits, loss) = (network.input, network.targets, network.logits, network.loss);
        self.prepared.push(Prepared { shape, trains, executor, input, targets, logits, loss, recording: None });
        Ok(())
    }

    /// How large the arena of a batch shape has to be. Allocates nothing.
    pub fn arena_bytes_of(&self, shape: BatchShape, trains: bool) -> Result<usize> {
        Ok(self.plan(shape, trains, &[])?.1.arena_bytes())
    }

    fn plan(&self, shape: BatchShape, trains: bool, kept: &[String]) -> Result<(NetworkGraph, Plan)> {
        let device = self.device.as_ref();
        let (phase, reduction) = match (&self.trainable, trains) {
            (Some(trainable), true) => (Phase::Training(trainable.freezing.clone()), trainable.reduction),
            (Some(trainable), false) => (Phase::Evaluation, trainable.reduction),
            (None, false) => (Phase::Evaluation, LossReduction::Sum),
            (None, true) => return Err(Error::new("this network was loaded for evaluation only")),
        };
        let network = self.resnet.graph(device, shape, &phase, reduction, kept)?;
        let plan = match trains {
            true => Plan::training(&network.graph, device, |id| self.parameters.is_trainable(id)),
            false => Plan::inference(&network.graph, device),
        };
        Ok((network, plan))
    }

    /// Moves every plan to a larger arena. The old one is released first: two would not always fit. What was recorded
    /// goes with it.
    fn grow(&mut self, bytes: usize) -> Result<()> {
        let parts: Vec<_> = std::mem::take(&mut self.prepared)
            .into_iter()
            .map(|Prepared { shape, trains, executor, input, targets, logits, loss, recording: _ }| {
                (executor.into_parts(), move |executor| Prepared {
                    shape,
                    trains,
                    executor,
                    input,
                    targets,
                    logits,
                    loss,
                    recording: None,
                })
            })
            .collect();
        self.arena = None;
        let arena = Arena::new(self.device.as_ref(), bytes)?;
        for ((graph, plan), rebuild) in parts {
            self.prepared.push(rebuild(Executor::new(graph, plan, &self.parameters, &arena)?));
        }
        self.arena = Some(arena);
        Ok(())
    }

    /// The executor of a prepared batch shape.
    pub fn executor(&self, shape: BatchShape, trains: bool) -> Result<&Executor> {
        Ok(&self.find(shape, trains)?.executor)
    }

    fn find(&self, shape: BatchShape, trains: bool) -> Result<&Prepared> {
        Ok(&self.prepared[self.position(shape, trains)?])
    }

    fn position(&self, shape: BatchShape, trains: bool) -> Result<usize> {
        let matches = |prepared: &Prepared| (prepared.shape, prepared.trains) == (shape, trains);
        self.prepared.iter().position(matches).ok_or_else(|| Error::new(format!("{shape:?} was not prepared")))
    }

    /// Fills in a batch of a prepared shape: `images` `[N, H, W, 3]`, one target each. To be done before every run: the
    /// plan uses the memory of the inputs again once they have been read.
    pub fn fill(&self, shape: BatchShape, trains: bool, images: &[f32], targets: &[u32]) -> Result<()> {
        self.fill_by(shape, trains, |device, input| write_f32(device, images, input), targets)
    }

    /// As [`Network::fill`], and `write` writes the images to the tensor that it is given.
    pub fn fill_by(
        &self,
        shape: BatchShape,
        trains: bool,
        write: impl FnOnce(&dyn Device, &Tensor) -> Result<()>,
        targets: &[u32],
    ) -> Result<()> {
        let prepared = self.find(shape, trains)?;
        let classes = self.resnet.classes;
        let targets: Vec<i32> = targets
            .iter()
            .map(|&target| match i32::try_from(target) {
                Ok(index) if (target as usize) < classes => Ok(index),
                _ => Err(Error::new(format!("class {target} of a network with {classes} classes"))),
            })
            .collect::<Result<_>>()?;
        write(self.device.as_ref(), prepared.executor.value(prepared.input))?;
        write_i32(self.device.as_ref(), &targets, prepared.executor.value(prepared.targets))
    }

    fn result(&self, prepared: &Prepared) -> Result<BatchResult> {
        let result = read_f32(self.device.as_ref(), prepared.executor.value(prepared.loss))?;
        Ok(BatchResult { loss: result[0], correct: result[1] as usize, gradient_norm: None })
    }

    /// Forward and backward pass of one batch: fills every gradient, changes running statistics, changes no parameter.
    pub fn gradients(&mut self, shape: BatchShape, images: &[f32], targets: &[u32]) -> Result<BatchResult> {
        self.prepare(shape, true)?;
        self.fill(shape, true, images, targets)?;
        let position = self.position(shape, true)?;
        self.issue_gradients(&self.prepared[position].executor)?;
        self.finish_batch(position)
    }

    /// Updates the parameters from the gradients that are there.
    pub fn update(&mut self) -> Result<()> {
        self.issue_update(None)
    }

    /// A training step: [`Network::gradients`] and [`Network::update`]. A device that can record does so the first time
    /// that it meets a batch shape, and issues the step as a whole then and later. The loss is that of before the
    /// update; where it is not finite, the parameters stay as they were.
    pub fn step(&mut self, shape: BatchShape, images: &[f32], targets: &[u32]) -> Result<BatchResult> {
        self.step_by(shape, |device, input| write_f32(device, images, input), targets)
    }

    /// As [`Network::step`], and `write` writes the images to the tensor that it is given.
    pub fn step_by(
        &mut self,
        shape: BatchShape,
        write: impl FnOnce(&dyn Device, &Tensor) -> Result<()>,
        targets: &[u32],
    ) -> Result<BatchResult> {
        self.prepare(shape, true)?;
        let position = self.position(shape, true)?;
        if self.prepared[position].recording.is_none() {
            let recording = self.device.record(&mut || self.issue_step(position))?;
            self.prepared[position].recording = recording;
        }
        self.fill_by(shape, true, write, targets)?;
        match &self.prepared[position].recording {
            Some(recording) => recording.replay()?,
            None => self.issue_step(position)?,
        }
        let result = self.finish_batch(position)?;
        let norm =
            self.clipping.as_ref().map(|clipping| read_f32(self.device.as_ref(), clipping.norm())).transpose()?;
        Ok(BatchResult { gradient_norm: norm.map(|norm| norm[0]), ..result })
    }

    /// Where the first value that is not finite appears when a training batch of a prepared shape is computed again, in
    /// words; none where all are finite. Changes running statistics and gradients.
    pub fn find_not_finite(
        &self,
        shape: BatchShape,
        write: impl FnOnce(&dyn Device, &Tensor) -> Result<()>,
        targets: &[u32],
    ) -> Result<Option<String>> {
        let device = self.device.as_ref();
        let is_finite =
            |tensor: &Tensor| Ok::<_, Error>(read_f32(device, tensor)?.iter().all(|value| value.is_finite()));
        for specification in self.parameters.specifications().filter(|specification| !specification.role.is_buffer()) {
            if !is_finite(self.parameters.value_of(&specification.name)?)? {
                return Ok(Some(format!("the parameter {}", specification.name)));
            }
        }
        self.fill_by(shape, true, write, targets)?;
        let Prepared { executor, input, .. } = self.find(shape, true)?;
        if !is_finite(executor.value(*input))? {
            return Ok(Some("the pictures".into()));
        }
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
                match self.parameters.gradient_of(name)? {
                    Some(gradient) if !is_finite(gradient)? => return Ok(Some(format!("the gradient of {name}"))),
                    _ => {}
                }
            }
        }
        Ok(None)
    }

    fn issue_step(&self, position: usize) -> Result<()> {
        let Prepared { executor, loss, .. } = &self.prepared[position];
        self.issue_gradients(executor)?;
        self.issue_update(Some(executor.value(*loss)))
    }

    fn issue_gradients(&self, executor: &Executor) -> Result<()> {
        executor.forward(self.device.as_ref())?;
        executor.backward(self.device.as_ref())
    }

    fn issue_update(&self, loss: Option<&Tensor>) -> Result<()> {
        let clipping = self.clipping.as_ref();
        match &self.trainable {
            Some(trainable) => sgd_step(self.device.as_ref(), &self.parameters, &trainable.groups, loss, clipping),
            None => Ok(()),
        }
    }

    /// Waits for a training batch and counts it.
    fn finish_batch(&mut self, position: usize) -> Result<BatchResult> {
        let prepared = &self.prepared[position];
        let result = self.result(prepared)?;
        self.parameters.count_batch(prepared.executor.graph().counted_batch_norms());
        Ok(result)
    }

    /// Evaluation of one batch: the loss and `[N, classes]` logits.
    pub fn evaluate(&mut self, shape: BatchShape, images: &[f32], targets: &[u32]) -> Result<(BatchResult, Vec<f32>)> {
        self.evaluate_by(shape, |device, input| write_f32(device, images, input), targets)
    }

    /// As [`Network::evaluate`], and `write` writes the images to the tensor that it is given.
    pub fn evaluate_by(
        &mut self,
        shape: BatchShape,
        write: impl FnOnce(&dyn Device, &Tensor) -> Result<()>,
        targets: &[u32],
    ) -> Result<(BatchResult, Vec<f32>)> {
        self.prepare(shape, false)?;
        let prepared = self.find(shape, false)?;
        self.fill_by(shape, false, write, targets)?;
        prepared.executor.forward(self.device.as_ref())?;
        let logits = read_f32(self.device.as_ref(), prepared.executor.value(prepared.logits))?;
        Ok((self.result(prepared)?, logits))
    }

    /// Evaluates pictures, `[N, H, W, 3]`, and asks of each how one class's logit depends on the output of a module: the graph's
    /// own backward pass, begun at that logit, in evaluation statistics. `choose` picks the class from a picture's logits.
    pub fn logit_gradients(
        &self,
        shape: BatchShape,
        images: &[f32],
        module: &str,
        choose: impl Fn(&[f32]) -> usize,
    ) -> Result<LogitGradients> {
        let device = self.device.as_ref();
        let phase = Phase::Training(Freezing { modules: self.resnet.modules(), batch_norm: true });
        let network = self.resnet.graph(device, shape, &phase, LossReduction::Sum, &[module.to_string()])?;
        let watched = network.graph.find(module).ok_or_else(|| Error::new(format!("there is no module {module}")))?;
        let plan = Plan::gradient_of(&network.graph, device, watched);
        let arena = Arena::new(device, plan.arena_bytes())?;
        let executor = Executor::new(network.graph, plan, &self.parameters, &arena)?;
        write_f32(device, images, executor.value(network.input))?;
        write_i32(device, &vec![0; shape.batch], executor.value(network.targets))?;
        executor.forward(device)?;
        let classes = self.resnet.classes;
        let logits = read_f32(device, executor.value(network.logits))?;
        let chosen: Vec<usize> = logits.chunks_exact(classes).map(choose).collect();
        let activation = read_f32(device, executor.value(watched))?;

        let no_gradient = || Error::new(format!("{module} comes after the logits"));
        let begin = executor.gradient(network.logits).ok_or_else(no_gradient)?;
        let mut one_hot = vec![0.0; logits.len()];
        chosen.iter().enumerate().for_each(|(picture, &class)| one_hot[picture * classes + class] = 1.0);
        write_f32(device, &one_hot, begin)?;
        // All but the loss, whose gradient the one that was just written replaces.
        for node in (0..executor.graph().nodes().len() - 1).rev() {
            executor.backward_node(device, node)?;
        }
        let gradient = read_f32(device, executor.gradient(watched).ok_or_else(no_gradient)?)?;
        Ok(LogitGradients { shape: executor.value(watched).shape(), activation, gradient, logits, chosen })
    }

    /// The logits that the last [`Network::gradients`] of this batch shape left, `[N, classes]`.
    pub fn training_logits(&self, shape: BatchShape) -> Result<Vec<f32>> {
        let prepared = self.find(shape, true)?;
        read_f32(self.device.as_ref(), prepared.executor.value(prepared.logits))
    }
}

impl ResNet {
    /// Every parameter and running statistic, in torchvision's order of layers.
    pub fn parameters(&self, device: &dyn Device) -> Result<Vec<ParameterSpecification>> {
        let network = self.graph(device, SMALLEST, &Phase::Evaluation, LossReduction::Sum, &[])?;
        Ok(network.graph.parameters().to_vec())
    }
}

/// Whether a parameter belongs to the head.
pub fn is_head(name: &str) -> bool {
    name.strip_prefix(HEAD).is_some_and(|rest| rest.starts_with('.'))
}

impl Freezing {
    /// Refuses names that are no modules of the network, and names that leave nothing to train.
    pub fn check(&self, resnet: &ResNet, specifications: &[ParameterSpecification]) -> Result<()> {
        for module in &self.modules {
            let one = Freezing { modules: vec![module.clone()], batch_norm: false };
            if !specifications.iter().any(|specification| one.covers(&specification.name)) {
                return Err(Error::usage(format!("{} has no module {module:?}", resnet.architecture))
                    .hint(format!("its modules are {}", resnet.modules().join(", "))));
            }
        }
        let trains = |specification: &ParameterSpecification| {
            !specification.role.is_buffer() && !self.covers(&specification.name)
        };
        if !specifications.iter().any(trains) {
            return Err(Error::usage("every module is frozen, nothing is left to train"));
        }
        Ok(())
    }
}
