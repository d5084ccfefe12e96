//! Training on one device: a network with gradients, and what updates its parameters.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::network::{BatchResult, Network, Prepared, Purpose, TrainingGraph};
use crate::device::{Device, Mix, Mixture, read_f32, write_f32};
use crate::error::{Error, Result};
use crate::graph::{ParameterSpecification, Parameters};
use crate::model::{BatchShape, Freezing, ResNet, STAGES, stage_of};
use crate::ops::{CrossEntropyLoss, LossReduction};
use crate::optim::{AVERAGE_SLOT, Accumulation, GradientClipping, Grouping, OptimizerSettings, Updater};
use crate::tensor::{ElementType, Tensor};

/// The loss that training minimises: cross entropy, as `torch.nn.CrossEntropyLoss`. Evaluation has the plain one.
#[derive(Debug, Clone, PartialEq)]
pub struct LossSettings {
    /// How the losses of a batch's images are combined.
    pub reduction: LossReduction,
    /// The share of the loss that is spread evenly over all classes, from 0 to 1.
    pub label_smoothing: f64,
    /// The weight of each class; all 1 without it.
    pub class_weights: Option<Vec<f64>>,
    /// Whether images and their targets are mixed, as [`Trainer::set_mixture`] says.
    pub mixes: bool,
}

impl From<LossReduction> for LossSettings {
    /// The plain loss.
    fn from(reduction: LossReduction) -> Self {
        Self { reduction, label_smoothing: 0.0, class_weights: None, mixes: false }
    }
}

impl LossSettings {
    /// What the sum of the losses of a batch is divided by; `None` if it is not. PyTorch divides by the weights of the targets unless these
    /// are probabilities, as mixed ones are.
    fn divisor(&self, targets: &[u32]) -> Option<f64> {
        match (self.reduction, &self.class_weights) {
            (LossReduction::Sum, _) => None,
            (LossReduction::Mean, Some(weights)) if !self.mixes => {
                Some(targets.iter().map(|&target| weights[target as usize]).sum())
            }
            (LossReduction::Mean, _) => Some(targets.len() as f64),
        }
    }

    fn on_device(&self, device: &dyn Device, classes: usize, mixture: Option<&Tensor>) -> Result<CrossEntropyLoss> {
        let class_weights = self.class_weights.as_ref().map(|weights| {
            if weights.len() != classes {
                return Err(Error::new(format!("{} class weights for {classes} classes", weights.len())));
            }
            let tensor = Tensor::new(device.allocate(4 * classes)?, 0, [classes].into(), ElementType::F32);
            write_f32(device, &weights.iter().map(|&weight| weight as f32).collect::<Vec<_>>(), &tensor)?;
            Ok(tensor)
        });
        Ok(CrossEntropyLoss {
            reduction: self.reduction,
            label_smoothing: self.label_smoothing as f32,
            class_weights: class_weights.transpose()?,
            // The share is the first of the words.
            share: mixture.map(|words| words.part(0, [1].into())),
        })
    }
}

/// How the parameters of a network are trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Trainable {
    /// Frozen modules.
    pub freezing: Freezing,
    /// The optimiser.
    pub optimizer: OptimizerSettings,
    /// Learning rates and weight decay of the parameters.
    pub grouping: Grouping,
    /// The decay of the moving average of the parameters, if one is kept.
    pub ema: Option<f64>,
    /// The loss.
    pub loss: LossSettings,
    /// Whether a step may consist of several batches, whose gradients are added.
    pub accumulates: bool,
    /// The largest norm of the gradients of all parameters together; larger ones are scaled down.
    pub max_gradient_norm: Option<f32>,
}

/// A copy of what training changes, on the host.
pub struct TrainerState {
    weights: Weights,
    /// The slots of each parameter, in their order.
    slots: BTreeMap<String, Vec<Vec<f32>>>,
    steps: u64,
}

/// A copy of the parameters and running statistics of a network, on the host.
pub struct Weights {
    /// By name.
    values: BTreeMap<String, Vec<f32>>,
    batches_tracked: BTreeMap<String, i64>,
}

/// A [`Network`] that is being trained. Nothing in it is shared with another trainer.
pub struct Trainer {
    network: Network,
    updater: Updater,
    accumulation: Option<Accumulation>,
    loss: LossSettings,
    /// The words of the [`Mixture`] of the next batch, where images are mixed.
    mixture: Option<Tensor>,
}

impl Trainer {
    /// Allocates parameters, all zero, with gradients and the optimiser's state.
    ///
    /// # Errors
    /// When the frozen modules do not exist or leave nothing to train, or the device is out of memory.
    pub fn new(device: Rc<dyn Device>, resnet: ResNet, trainable: Trainable) -> Result<Self> {
        let Trainable { freezing, optimizer, grouping, ema, loss, accumulates, max_gradient_norm } = trainable;
        let specification = resnet.specification();
        specification.check_freezing(&freezing)?;
        let specifications = specification.parameters();
        let (optimizer, groups) = (optimizer.build(), grouping.groups(STAGES));
        let group = |specification: &ParameterSpecification| match freezing.covers(&specification.name) {
            true => None,
            false => Some(grouping.group_of(stage_of(&specification.name), STAGES, specification.role)),
        };
        let slots = Updater::slots(optimizer.as_ref(), ema);
        let parameters = Parameters::new(device.as_ref(), &specifications, groups.len(), &slots, group)?;
        let clipping = max_gradient_norm.map(|norm| GradientClipping::new(device.as_ref(), &parameters, norm));
        let updater = Updater::new(device.as_ref(), optimizer, groups, clipping.transpose()?, ema)?;
        let accumulation = accumulates.then(|| Accumulation::new(device.as_ref(), &parameters)).transpose()?;
        let mixture = loss.mixes.then(|| {
            let bytes = Mixture::WORDS * size_of::<f32>();
            let words = Tensor::new(device.allocate(bytes)?, 0, [Mixture::WORDS].into(), ElementType::F32);
            write_f32(device.as_ref(), &Mixture::NONE.words(), &words)?;
            Ok::<_, Error>(words)
        });
        let mixture = mixture.transpose()?;
        let loss_on_device = loss.on_device(device.as_ref(), resnet.classes, mixture.as_ref())?;
        let graph = TrainingGraph { freezing, loss: loss_on_device };
        let network = Network::with_parameters(device, resnet, parameters, Some(graph));
        Ok(Self { network, updater, accumulation, loss, mixture })
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The network, to be loaded, prepared or evaluated.
    pub fn network_mut(&mut self) -> &mut Network {
        &mut self.network
    }

    /// The optimiser's updates.
    pub fn updater(&self) -> &Updater {
        &self.updater
    }

    /// The optimiser's updates, whose learning rates may change between steps. Recordings stay valid.
    pub fn updater_mut(&mut self) -> &mut Updater {
        &mut self.updater
    }

    /// Sets the learning rates of all groups, from the next step on. Recordings stay valid.
    pub fn set_learning_rates(&mut self, grouping: &Grouping) {
        for (index, group) in grouping.groups(STAGES).iter().enumerate() {
            self.updater.set_learning_rate(index, group.learning_rate);
        }
    }

    /// Sets what is done to the images and targets of the batches from the next one on. Recordings stay valid.
    ///
    /// # Errors
    /// When the trainer does not mix images, or the device fails.
    pub fn set_mixture(&mut self, mixture: &Mixture) -> Result<()> {
        let words = self.mixture.as_ref().ok_or_else(|| Error::new("this trainer does not mix images"))?;
        write_f32(self.network.device(), &mixture.words(), words)
    }

    /// Copies everything that training changes.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> Result<TrainerState> {
        let (device, parameters) = (self.network.device(), self.network.parameters());
        let mut state = TrainerState { weights: self.weights()?, slots: BTreeMap::new(), steps: self.updater.steps() };
        for ParameterSpecification { name, .. } in parameters.specifications() {
            let slots = parameters.slots_of(name)?.map(|(_, slot)| read_f32(device, slot));
            state.slots.insert(name.clone(), slots.collect::<Result<_>>()?);
        }
        Ok(state)
    }

    /// Goes back to a state that [`Trainer::state`] copied.
    ///
    /// # Errors
    /// When the device fails.
    pub fn set_state(&mut self, state: &TrainerState) -> Result<()> {
        self.set_weights(&state.weights)?;
        for (name, slots) in &state.slots {
            let tensors = self.network.parameters().slots_of(name)?;
            for ((_, tensor), values) in tensors.zip(slots) {
                write_f32(self.network.device(), values, tensor)?;
            }
        }
        self.updater.set_steps(state.steps);
        Ok(())
    }

    /// Copies the parameters and running statistics.
    ///
    /// # Errors
    /// When the device fails.
    pub fn weights(&self) -> Result<Weights> {
        let parameters = self.network.parameters();
        let read = |name: &String| Ok((name.clone(), parameters.read(self.network.device(), name)?));
        let values =
            parameters.specifications().map(|specification| read(&specification.name)).collect::<Result<_>>()?;
        Ok(Weights { values, batches_tracked: parameters.batches_tracked().clone() })
    }

    /// Goes back to parameters and running statistics that [`Trainer::weights`] copied.
    ///
    /// # Errors
    /// When the device fails.
    pub fn set_weights(&mut self, weights: &Weights) -> Result<()> {
        for (name, values) in &weights.values {
            self.network.write(name, values)?;
        }
        for (module, &count) in &weights.batches_tracked {
            self.network.parameters_mut().set_batches_tracked(module, count);
        }
        Ok(())
    }

    /// The average of a parameter; none if it is frozen or no average is kept.
    ///
    /// # Errors
    /// When there is no such parameter, or the device fails.
    pub fn average_of(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let slot = self.network.parameters().slots_of(name)?.find(|(slot, _)| *slot == AVERAGE_SLOT);
        slot.map(|(_, average)| read_f32(self.network.device(), average)).transpose()
    }

    /// Overwrites the parameters that are trained with their averages, and returns what [`Trainer::set_weights`] goes back to. Running
    /// statistics stay as they are: they are not those of the averaged network. Does nothing if no average is kept, or no step was made.
    ///
    /// # Errors
    /// When the device fails.
    pub fn start_average(&mut self) -> Result<Option<Weights>> {
        if !self.updater.averages() || self.updater.steps() == 0 {
            return Ok(None);
        }
        let trained = self.weights()?;
        let names: Vec<String> = self.network.parameters().specifications().map(|each| each.name.clone()).collect();
        for name in names {
            if let Some(average) = self.average_of(&name)? {
                self.network.write(&name, &average)?;
            }
        }
        Ok(Some(trained))
    }

    /// Bytes on the device for parameters, their gradients and the optimiser's state.
    pub fn parameter_bytes(&self) -> usize {
        self.network.parameters().bytes() + self.accumulation.as_ref().map_or(0, Accumulation::bytes)
    }

    /// Forward and backward pass of one batch: fills every gradient, changes running statistics, changes no parameter.
    /// `images` `[N, H, W, 3]`, one target each.
    pub fn gradients(&mut self, shape: BatchShape, images: &[f32], targets: &[u32]) -> Result<BatchResult> {
        self.network.prepare(shape, Purpose::Training)?;
        self.network.fill(shape, Purpose::Training, images, targets)?;
        self.issue_gradients(self.network.find(shape, Purpose::Training)?)?;
        self.finish_batch(shape)
    }

    /// Updates the parameters from the gradients of the last batch.
    pub fn update(&mut self) -> Result<()> {
        self.updater.begin_step(self.network.device())?;
        self.issue_update(None, None)
    }

    /// A training step: [`Trainer::gradients`] and [`Trainer::update`]. A device that can record does so the first time
    /// that it meets a batch shape, and from then on issues the step as a whole. The loss is that before the
    /// update; if it is not finite, the parameters do not change.
    ///
    /// If steps may consist of several batches, this adds the gradients of the batch to those before it, and
    /// [`Trainer::end_step`] makes the update. The result is that of one batch with all the images, except that each batch has
    /// its own statistics in batch norms.
    pub fn step(&mut self, shape: BatchShape, images: &[f32], targets: &[u32]) -> Result<BatchResult> {
        self.step_by(shape, |device, input| write_f32(device, images, input), targets)
    }

    /// Like [`Trainer::step`]; `write` writes the images to the given tensor.
    pub fn step_by(
        &mut self,
        shape: BatchShape,
        write: impl FnOnce(&dyn Device, &Tensor) -> Result<()>,
        targets: &[u32],
    ) -> Result<BatchResult> {
        self.network.prepare(shape, Purpose::Training)?;
        if self.network.find(shape, Purpose::Training)?.recording.is_none() {
            let prepared = self.network.find(shape, Purpose::Training)?;
            let recording = self.network.device().record(&mut || self.issue_step(prepared))?;
            self.network.set_recording(shape, recording);
        }
        self.network.fill_by(shape, Purpose::Training, write, targets)?;
        match &mut self.accumulation {
            Some(accumulation) => accumulation.begin_batch(self.network.device(), self.loss.divisor(targets))?,
            None => self.updater.begin_step(self.network.device())?,
        }
        let prepared = self.network.find(shape, Purpose::Training)?;
        match &prepared.recording {
            Some(recording) => recording.replay()?,
            None => self.issue_step(prepared)?,
        }
        let result = self.finish_batch(shape)?;
        match self.accumulation {
            Some(_) => Ok(result),
            None => Ok(BatchResult { gradient_norm: self.gradient_norm()?, ..result }),
        }
    }

    /// Updates the parameters from the added gradients of all batches since the last update, if there are any, and returns
    /// their norm if it is clipped. If that is not finite, the parameters do not change. Does nothing if every batch is a step.
    pub fn end_step(&mut self) -> Result<Option<f32>> {
        if self.accumulation.as_ref().is_none_or(Accumulation::is_empty) {
            return Ok(None);
        }
        self.updater.begin_step(self.network.device())?;
        self.issue_update(self.accumulation.as_ref(), None)?;
        self.accumulation.iter_mut().for_each(Accumulation::end_step);
        self.gradient_norm()
    }

    fn gradient_norm(&self) -> Result<Option<f32>> {
        let norm = self.updater.gradient_norm().map(|norm| read_f32(self.network.device(), norm)).transpose()?;
        Ok(norm.map(|norm| norm[0]))
    }

    fn issue_step(&self, prepared: &Prepared) -> Result<()> {
        self.issue_gradients(prepared)?;
        match &self.accumulation {
            Some(accumulation) => accumulation.issue(self.network.device(), self.network.parameters()),
            None => self.issue_update(None, Some(prepared.loss())),
        }
    }

    fn issue_gradients(&self, prepared: &Prepared) -> Result<()> {
        self.issue_mixture(prepared.images())?;
        prepared.executor.forward(self.network.device())?;
        prepared.executor.backward(self.network.device())
    }

    /// Mixes the images of a batch, if they are to be mixed.
    pub(super) fn issue_mixture(&self, images: &Tensor) -> Result<()> {
        let mix = |words| self.network.device().mix(&Mix { images, words });
        self.mixture.as_ref().map_or(Ok(()), mix)
    }

    fn issue_update(&self, accumulation: Option<&Accumulation>, loss: Option<&Tensor>) -> Result<()> {
        self.updater.issue(self.network.device(), self.network.parameters(), accumulation, loss)
    }

    /// Waits for a training batch and counts it.
    fn finish_batch(&mut self, shape: BatchShape) -> Result<BatchResult> {
        let result = self.network.result(shape, Purpose::Training)?;
        self.network.count_batch(shape)?;
        Ok(result)
    }
}
