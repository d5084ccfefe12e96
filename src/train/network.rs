//! A network with its parameters on a device, and a plan for every batch shape that it has met.

use std::rc::Rc;

use crate::device::{Device, Recording, read_f32, write_f32, write_i32};
use crate::error::{Error, Result};
use crate::graph::{Arena, Executor, Parameters, Plan, Value};
use crate::model::{BatchShape, FEATURES, Freezing, NetworkGraph, Phase, ResNet};
use crate::ops::{CrossEntropyLoss, LossReduction};
use crate::tensor::Tensor;

/// The result of one batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchResult {
    /// The reduced loss.
    pub loss: f32,
    /// Images whose largest logit is the target's, or that of the larger share if the target is mixed.
    pub correct: usize,
    /// The norm of the gradients before they were clipped, if they are.
    pub gradient_norm: Option<f32>,
}

/// The purpose of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Forward passes with running statistics.
    Evaluation,
    /// Forward and backward passes. Only the network of a [`super::Trainer`] supports it.
    Training,
}

/// The differences between a training graph and one for evaluation.
#[derive(Debug, Clone)]
pub(super) struct TrainingGraph {
    pub freezing: Freezing,
    pub loss: CrossEntropyLoss,
}

/// A batch shape with its plan, bound to memory.
pub(super) struct Prepared {
    shape: BatchShape,
    purpose: Purpose,
    pub executor: Executor,
    input: Value,
    targets: Value,
    logits: Value,
    loss: Value,
    /// A whole training step, on devices that can record one. It holds addresses in the arena.
    pub recording: Option<Rc<dyn Recording>>,
}

impl Prepared {
    /// `[N, H, W, 3]`: the images.
    pub fn images(&self) -> &Tensor {
        self.executor.value(self.input)
    }

    /// `[2]`: the reduced loss and the number of correct images.
    pub fn loss(&self) -> &Tensor {
        self.executor.value(self.loss)
    }
}

/// See the module documentation.
pub struct Network {
    device: Rc<dyn Device>,
    resnet: ResNet,
    parameters: Parameters,
    training: Option<TrainingGraph>,
    prepared: Vec<Prepared>,
    arena: Option<Arena>,
}

impl Network {
    /// Allocates the parameters, all zero, without gradients: the network can only evaluate.
    pub fn new(device: Rc<dyn Device>, resnet: ResNet) -> Result<Self> {
        let specifications = resnet.parameters();
        let parameters = Parameters::new(device.as_ref(), &specifications, 0, &[], |_| None)?;
        Ok(Self::with_parameters(device, resnet, parameters, None))
    }

    pub(super) fn with_parameters(
        device: Rc<dyn Device>,
        resnet: ResNet,
        parameters: Parameters,
        training: Option<TrainingGraph>,
    ) -> Self {
        Self { device, resnet, parameters, training, prepared: Vec::new(), arena: None }
    }

    /// The description of the network.
    pub fn resnet(&self) -> &ResNet {
        &self.resnet
    }

    /// The device of the parameters.
    pub fn device(&self) -> &dyn Device {
        self.device.as_ref()
    }

    /// The same device, shared with other owners of its memory.
    pub fn shared_device(&self) -> Rc<dyn Device> {
        self.device.clone()
    }

    /// Its parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Its parameters, for changes.
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

    /// Plans a batch shape, so that the memory for it is allocated before anything starts.
    pub fn prepare(&mut self, shape: BatchShape, purpose: Purpose) -> Result<()> {
        self.prepare_keeping(shape, purpose, &[])
    }

    /// Like [`Network::prepare`]; in addition, the outputs of the named modules can be read after a run.
    pub fn prepare_keeping(&mut self, shape: BatchShape, purpose: Purpose, kept: &[String]) -> Result<()> {
        if self.prepared.iter().any(|prepared| (prepared.shape, prepared.purpose) == (shape, purpose)) {
            return Ok(());
        }
        let (network, plan) = self.plan(shape, purpose, kept)?;
        if self.arena_bytes() < plan.arena_bytes() {
            self.grow(plan.arena_bytes())?;
        }
        let arena = self.arena.as_ref().ok_or_else(|| Error::new("a plan without an arena"))?;
        let executor = Executor::new(network.graph, plan, &self.parameters, arena)?;
        let NetworkGraph { input, targets, logits, loss, .. } = network;
        self.prepared.push(Prepared { shape, purpose, executor, input, targets, logits, loss, recording: None });
        Ok(())
    }

    /// The smallest batch that the network can be trained on. At small image sizes, the deepest batch norms see one value per channel of a
    /// single image, which has no variance.
    pub fn fewest_images(&self, image_size: usize) -> usize {
        let single = BatchShape { batch: 1, height: image_size, width: image_size };
        match self.arena_bytes_of(single, Purpose::Training) {
            Ok(_) => 1,
            Err(_) => 2,
        }
    }

    /// The size of the arena that a batch shape needs. Allocates nothing.
    pub fn arena_bytes_of(&self, shape: BatchShape, purpose: Purpose) -> Result<usize> {
        Ok(self.plan(shape, purpose, &[])?.1.arena_bytes())
    }

    fn plan(&self, shape: BatchShape, purpose: Purpose, kept: &[String]) -> Result<(NetworkGraph, Plan)> {
        let device = self.device.as_ref();
        let (phase, loss) = match (purpose, &self.training) {
            (Purpose::Evaluation, training) => {
                let reduction = training.as_ref().map_or(LossReduction::Sum, |training| training.loss.reduction);
                (Phase::Evaluation, reduction.into())
            }
            (Purpose::Training, Some(training)) => (Phase::Training(training.freezing.clone()), training.loss.clone()),
            (Purpose::Training, None) => return Err(Error::new("this network was loaded for evaluation only")),
        };
        let mut kept = kept.to_vec();
        if purpose == Purpose::Evaluation {
            kept.push(FEATURES.into());
        }
        let network = self.resnet.specification().graph(device, shape, &phase, loss, &kept)?;
        let plan = match purpose {
            Purpose::Training => Plan::training(&network.graph, device, |id| self.parameters.is_trainable(id)),
            Purpose::Evaluation => Plan::inference(&network.graph, device),
        };
        Ok((network, plan))
    }

    /// Moves every plan to a larger arena. The old one is released first: both may not fit. Recordings hold
    /// addresses of the old one, so they are dropped.
    fn grow(&mut self, bytes: usize) -> Result<()> {
        let parts: Vec<_> = std::mem::take(&mut self.prepared)
            .into_iter()
            .map(|Prepared { shape, purpose, executor, input, targets, logits, loss, recording: _ }| {
                (executor.into_parts(), move |executor| Prepared {
                    shape,
                    purpose,
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
    pub fn executor(&self, shape: BatchShape, purpose: Purpose) -> Result<&Executor> {
        Ok(&self.find(shape, purpose)?.executor)
    }

    pub(super) fn find(&self, shape: BatchShape, purpose: Purpose) -> Result<&Prepared> {
        let matches = |prepared: &&Prepared| (prepared.shape, prepared.purpose) == (shape, purpose);
        self.prepared.iter().find(matches).ok_or_else(|| Error::new(format!("{shape:?} was not prepared")))
    }

    pub(super) fn set_recording(&mut self, shape: BatchShape, recording: Option<Rc<dyn Recording>>) {
        let matches = |prepared: &&mut Prepared| (prepared.shape, prepared.purpose) == (shape, Purpose::Training);
        if let Some(prepared) = self.prepared.iter_mut().find(matches) {
            prepared.recording = recording;
        }
    }

    /// Fills in a batch of a prepared shape: `images` `[N, H, W, 3]`, one target each. Must be called before every run: the
    /// plan reuses the memory of the inputs once they have been read.
    pub fn fill(&self, shape: BatchShape, purpose: Purpose, images: &[f32], targets: &[u32]) -> Result<()> {
        self.fill_by(shape, purpose, |device, input| write_f32(device, images, input), targets)
    }

    /// Like [`Network::fill`]; `write` writes the images to the given tensor.
    pub fn fill_by(
        &self,
        shape: BatchShape,
        purpose: Purpose,
        write: impl FnOnce(&dyn Device, &Tensor) -> Result<()>,
        targets: &[u32],
    ) -> Result<()> {
        let prepared = self.find(shape, purpose)?;
        let classes = self.resnet.classes;
        let targets: Vec<i32> = targets
            .iter()
            .map(|&target| match i32::try_from(target) {
                Ok(index) if (target as usize) < classes => Ok(index),
                _ => Err(Error::new(format!("class {target} of a network with {classes} classes"))),
            })
            .collect::<Result<_>>()?;
        write(self.device.as_ref(), prepared.images())?;
        write_i32(self.device.as_ref(), &targets, prepared.executor.value(prepared.targets))
    }

    /// The buffer of the images of a prepared batch shape.
    pub(super) fn input(&self, shape: BatchShape, purpose: Purpose) -> Result<&Tensor> {
        Ok(self.find(shape, purpose)?.images())
    }

    /// Waits for a batch of a prepared shape and reads its result.
    pub(super) fn result(&self, shape: BatchShape, purpose: Purpose) -> Result<BatchResult> {
        let result = read_f32(self.device.as_ref(), self.find(shape, purpose)?.loss())?;
        Ok(BatchResult { loss: result[0], correct: result[1] as usize, gradient_norm: None })
    }

    /// Counts a training batch for every batch norm that saw it.
    pub(super) fn count_batch(&mut self, shape: BatchShape) -> Result<()> {
        let modules = self.executor(shape, Purpose::Training)?.graph().counted_batch_norms().to_vec();
        self.parameters.count_batch(&modules);
        Ok(())
    }

    /// Evaluates one batch: the loss and `[N, classes]` logits.
    pub fn evaluate(&mut self, shape: BatchShape, images: &[f32], targets: &[u32]) -> Result<(BatchResult, Vec<f32>)> {
        self.evaluate_by(shape, |device, input| write_f32(device, images, input), targets)
    }

    /// Like [`Network::evaluate`]; `write` writes the images to the given tensor.
    pub fn evaluate_by(
        &mut self,
        shape: BatchShape,
        write: impl FnOnce(&dyn Device, &Tensor) -> Result<()>,
        targets: &[u32],
    ) -> Result<(BatchResult, Vec<f32>)> {
        self.prepare(shape, Purpose::Evaluation)?;
        self.fill_by(shape, Purpose::Evaluation, write, targets)?;
        self.executor(shape, Purpose::Evaluation)?.forward(self.device.as_ref())?;
        let logits = self.logits(shape, Purpose::Evaluation)?;
        Ok((self.result(shape, Purpose::Evaluation)?, logits))
    }

    /// The features of a batch, `[N, D]`; `write` writes the images to the given tensor.
    pub fn features_by(
        &mut self,
        shape: BatchShape,
        write: impl FnOnce(&dyn Device, &Tensor) -> Result<()>,
    ) -> Result<Vec<f32>> {
        self.evaluate_by(shape, write, &vec![0; shape.batch])?;
        let executor = self.executor(shape, Purpose::Evaluation)?;
        let features = executor.graph().find(FEATURES);
        let features = features.ok_or_else(|| Error::new(format!("there is no layer {FEATURES}")))?;
        read_f32(self.device.as_ref(), executor.value(features))
    }

    /// The logits that the last run of a prepared batch shape left, `[N, classes]`.
    pub fn logits(&self, shape: BatchShape, purpose: Purpose) -> Result<Vec<f32>> {
        let prepared = self.find(shape, purpose)?;
        read_f32(self.device.as_ref(), prepared.executor.value(prepared.logits))
    }
}
