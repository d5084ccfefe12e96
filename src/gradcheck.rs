//! Checks a network on a device against a reference file: logits, loss, gradients, running statistics, updated
//! parameters.
//!
//! The error of a tensor is `||ours - truth|| / ||truth||`; of an updated parameter it is taken against the update,
//! `||ours - truth|| / ||truth - before||`. The limit is four times the error that PyTorch itself makes on that tensor in
//! the device's precision, or the floor, whichever is larger.
//!
//! PyTorch's tf32 and bf16 flip ReLUs and are far from the truth on small networks. If the file does not contain their
//! error, or if it is so large that zeros would pass, a tensor is not compared in that precision.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use serde::Serialize;

use crate::device::{Device, Precision, read_f32, write_f32};
use crate::error::{Error, Result};
use crate::graph::{Activation, Layer, Parameters};
use crate::model::{BatchShape, Freezing, ResNet, is_head};
use crate::optim::{Grouping, Hyperparameter, OptimizerKind, OptimizerSettings, SCHEDULES, Schedule, ScheduleKind};
use crate::train::{LossSettings, Network, Purpose, Statistics, Trainable, Trainer, load_state_dict_named};
use crate::weights::Reference;
use crate::weights::layout::{from_torch, to_torch};

/// The floor of every limit: a Winograd F(4x4,3x3) in float32 stays below it, a bug does not.
pub const FLOOR: f64 = 5e-5;
/// The limit, as a multiple of PyTorch's own error.
pub const NOISE_FACTOR: f64 = 4.0;

/// One compared tensor.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Its name in the file.
    pub name: String,
    /// In torch's layout.
    pub shape: Vec<usize>,
    /// Relative error; NaN if ours is not finite.
    pub error: f64,
    /// The largest error that is within the limit.
    pub limit: f64,
    /// Whether it passes.
    pub ok: bool,
}

/// All comparisons of a file.
#[derive(Debug, Clone, Serialize)]
pub struct GradcheckReport {
    /// Whether all pass.
    pub ok: bool,
    /// The tensor that is closest to its limit, or exceeds it the most.
    pub worst: Option<Comparison>,
    /// In the order of the file's kinds; the worst last.
    pub tensors: Vec<Comparison>,
    /// Tensors that could not be compared, with the reason.
    pub not_compared: Vec<String>,
    /// Set when the file contradicts itself, which no program can satisfy.
    pub contradiction: Option<String>,
}

/// Computes everything that the file contains and compares the results. `floor` is the smallest limit: without it [`FLOOR`], and in
/// tf32 and bf16 no limit at all for tensors without a PyTorch error in the file.
///
/// # Errors
/// When the file is invalid, or when it contains nothing that can be compared in the device's precision.
pub fn gradcheck(device: Rc<dyn Device>, path: &Path, floor: Option<f64>) -> Result<GradcheckReport> {
    let reference = Reference::open(path)?;
    let precision = device.precision();
    let nothing_to_judge = |why: &str| {
        Error::new(format!("{}: nothing can be compared in {precision}: {why}", path.display())).hint(
            "run scripts/make-fixtures.py --add-noise FILE to measure PyTorch's own error, or set a limit with \
             --floor",
        )
    };
    if precision != Precision::Fp32 && floor.is_none() && !reference.has_noise(precision) {
        return Err(nothing_to_judge(&format!("the file has no noise_{precision}/ tensors")));
    }
    let mut check = Check {
        reference: &reference,
        precision,
        floor,
        comparisons: Vec::new(),
        not_compared: Vec::new(),
        unmoved: Vec::new(),
    };
    check.run(device)?;
    let Check { comparisons: mut tensors, not_compared, unmoved, .. } = check;
    if tensors.iter().all(|comparison| comparison.name.ends_with(BATCHES)) {
        return Err(nothing_to_judge("the noise of every tensor is too large"));
    }
    let excess = |comparison: &Comparison| match comparison.error / comparison.limit {
        excess if excess.is_nan() => f64::INFINITY,
        excess => excess,
    };
    tensors.sort_by(|a, b| excess(a).total_cmp(&excess(b)));
    let ok = tensors.iter().all(|comparison| comparison.ok);
    let contradiction = unmoved.first().map(|first| {
        let count = unmoved.len();
        format!(
            "{}: {first} and {} other parameters do not change in the file's first step, although `freeze` names none of \
             them and their learning rate is not zero; the program that wrote the file did not train them",
            path.display(),
            count - 1
        )
    });
    Ok(GradcheckReport { ok, worst: tensors.last().cloned(), tensors, not_compared, contradiction })
}

/// The suffix of counters, which have no rounding error.
const BATCHES: &str = ".num_batches_tracked";

struct Check<'a> {
    reference: &'a Reference,
    precision: Precision,
    floor: Option<f64>,
    comparisons: Vec<Comparison>,
    not_compared: Vec<String>,
    /// Trainable parameters that the file's first step leaves unchanged.
    unmoved: Vec<String>,
}

impl Check<'_> {
    fn run(&mut self, device: Rc<dyn Device>) -> Result<()> {
        let reference = self.reference;
        let file = reference.file();
        let [batch, _, height, width] = reference.input_shape();
        let shape = BatchShape { batch, height, width };
        let input = from_torch(file.read_finite_f32("input")?, &reference.input_shape());
        let targets: Vec<u32> = file
            .read_i64("target")?
            .into_iter()
            .map(|target| u32::try_from(target).map_err(|_| Error::new(format!("target {target} is not a class"))))
            .collect::<Result<_>>()?;

        let unknown = |field: &'static str| {
            move |error: Error| {
                Error::new(format!("{}: metadata field {field}: {}", file.path().display(), error.message()))
            }
        };
        let architecture = reference.arch.parse().map_err(unknown("arch"))?;
        let kind = OptimizerKind::find(&reference.optimizer).map_err(unknown("optimizer"))?;
        let mut hyperparameters = BTreeMap::new();
        for Hyperparameter { name, .. } in kind.hyperparameters {
            if let Some(value) = reference.number(name)? {
                hyperparameters.insert(name.to_string(), value);
            }
        }
        let resnet = ResNet { architecture, width: reference.width, classes: reference.num_classes };
        let trainable = Trainable {
            freezing: Freezing { modules: reference.freeze.clone(), batch_norm: reference.freeze_batch_norm },
            optimizer: OptimizerSettings::new(kind, &hyperparameters)?,
            grouping: Grouping {
                learning_rate: reference.learning_rate,
                head_learning_rate: reference.head_learning_rate,
                layer_decay: reference.number("layer_lr_decay")?.unwrap_or(1.0),
                weight_decay: reference.weight_decay,
                no_decay_norm_bias: reference.no_decay_norm_bias,
            },
            loss: LossSettings {
                reduction: reference.loss_reduction,
                label_smoothing: reference.label_smoothing,
                class_weights: reference.class_weights.clone(),
                mixes: reference.mixture.is_some(),
            },
            ema: reference.ema,
            accumulates: false,
            max_gradient_norm: None,
        };
        let mut trainer = Trainer::new(device, resnet, trainable)?;
        if let Some(mixture) = &reference.mixture {
            trainer.set_mixture(mixture)?;
        }
        load_state_dict_named(trainer.network_mut(), file, "param/")?;

        if file.contains("eval_logits") {
            let (_, logits) = trainer.network_mut().evaluate(shape, &input, &targets)?;
            self.compare("eval_logits", &logits, None)?;
        }
        let activations: Vec<String> = reference.activations().map(str::to_string).collect();
        trainer.network_mut().prepare_keeping(shape, Purpose::Training, &activations)?;
        let result = trainer.gradients(shape, &input, &targets)?;
        self.compare("logits", &trainer.network().logits(shape, Purpose::Training)?, None)?;
        self.compare("loss", &[result.loss], None)?;
        self.activations(trainer.network(), shape, &activations)?;
        self.gradients(trainer.network())?;
        self.buffers(trainer.network().parameters(), trainer.network().device())?;
        let schedule = self.schedule()?;
        for step in 1..=3 {
            if step > 1 {
                trainer.gradients(shape, &input, &targets)?;
            }
            trainer.updater_mut().set_step_factors(schedule.at(step - 1));
            trainer.update()?;
            match step {
                1 => self.updated(trainer.network(), "step1/", reference.after_one_step())?,
                3 => self.updated(trainer.network(), "step3/", reference.after_three_steps())?,
                _ => {}
            }
        }
        self.averages(&mut trainer, shape, &input)
    }

    /// The averaged network, with the running statistics of the two halves of the batch.
    fn averages(&mut self, trainer: &mut Trainer, shape: BatchShape, input: &[f32]) -> Result<()> {
        let reference = self.reference;
        if reference.averages().next().is_none() || trainer.start_average()?.is_none() {
            return Ok(());
        }
        let network = trainer.network_mut();
        let mut statistics = Statistics::default();
        let half = shape.batch.div_ceil(2);
        for images in input.chunks(half * input.len() / shape.batch) {
            let shape = BatchShape { batch: images.len() * shape.batch / input.len(), ..shape };
            statistics.add(network, shape, |device, input| write_f32(device, images, input))?;
        }
        statistics.finish(network)?;
        self.updated(trainer.network(), "ema3/", reference.averages())
    }

    fn activations(&mut self, network: &Network, shape: BatchShape, names: &[String]) -> Result<()> {
        let executor = network.executor(shape, Purpose::Training)?;
        let specification = network.resnet().specification();
        for name in names {
            let full_name = format!("activation/{name}");
            let Some(value) = executor.graph().find(name) else {
                self.not_compared.push(format!("{full_name}: computed only together with its block's output"));
                continue;
            };
            let truth_shape = &self.reference.file().entry(&full_name)?.shape;
            let ours = to_torch(read_f32(network.device(), executor.value(value))?, truth_shape);
            // A batch norm and the ReLU after it are one node here.
            let layer = specification.layer(name).map(|layer| layer.layer);
            let has_relu = matches!(layer, Some(Layer::BatchNorm { activation: Activation::Relu, .. }));
            self.compare(&full_name, &ours, if has_relu { Some(Truth::Rectified) } else { None })?;
        }
        Ok(())
    }

    fn schedule(&self) -> Result<Schedule> {
        let name = self.reference.file().metadata().get("schedule").map_or(SCHEDULES[0].name, String::as_str);
        let unknown = |error: Error| error.about("schedule");
        let steps = self.reference.number("schedule_steps")?.unwrap_or(3.0);
        Schedule::new(ScheduleKind::find(name).map_err(unknown)?, None, steps as u64)
    }

    fn gradients(&mut self, network: &Network) -> Result<()> {
        let reference = self.reference;
        for name in reference.gradients() {
            let full_name = format!("grad/{name}");
            let shape = &reference.file().entry(&full_name)?.shape;
            match network.parameters().gradient_of(name)? {
                Some(gradient) => {
                    let ours = to_torch(read_f32(network.device(), gradient)?, shape);
                    self.compare(&full_name, &ours, None)?;
                }
                None => return Err(Error::new(format!("the file has {full_name}, but `freeze` names that parameter"))),
            }
        }
        for specification in network.parameters().specifications() {
            let name = format!("grad/{}", specification.name);
            if network.parameters().gradient_of(&specification.name)?.is_some() && !reference.file().contains(&name) {
                self.not_compared.push(format!("{name}: it is missing in the file"));
            }
        }
        Ok(())
    }

    fn buffers(&mut self, parameters: &Parameters, device: &dyn Device) -> Result<()> {
        let reference = self.reference;
        for name in reference.buffers() {
            let full_name = format!("buffer/{name}");
            match name.strip_suffix(BATCHES) {
                Some(module) => {
                    let truth = reference.file().read_i64(&full_name)?;
                    let ours = parameters.batches_tracked().get(module).copied();
                    let ok = truth.first().copied() == ours;
                    let error = if ok { 0.0 } else { 1.0 };
                    let (shape, limit) = (Vec::new(), self.floor.unwrap_or(FLOOR));
                    self.comparisons.push(Comparison { name: full_name, shape, error, limit, ok });
                }
                None => self.compare(&full_name, &parameters.read(device, name)?, None)?,
            }
        }
        Ok(())
    }

    fn updated<'a>(&mut self, network: &Network, prefix: &str, names: impl Iterator<Item = &'a str>) -> Result<()> {
        for name in names {
            let full_name = format!("{prefix}{name}");
            let shape = &self.reference.file().entry(&full_name)?.shape;
            let ours = to_torch(network.parameters().read(network.device(), name)?, shape);
            let before = self.reference.file().read_f32(&format!("param/{name}"))?;
            let trains = network.parameters().gradient_of(name)?.is_some();
            let moved = self.reference.file().read_f32(&full_name)? != before;
            let rate = if is_head(name) { self.reference.head_learning_rate } else { self.reference.learning_rate };
            let moves_here = ours != before;
            if prefix == "step1/" && trains && !moved && moves_here && rate > 0.0 {
                self.unmoved.push(full_name.clone());
            }
            self.compare(&full_name, &ours, Some(Truth::UpdateOf(before)))?;
        }
        Ok(())
    }

    /// The limit of a tensor, or the reason why there is none.
    fn limit(&self, name: &str) -> std::result::Result<f64, String> {
        let Self { reference, precision, floor, .. } = *self;
        let noise = match reference.noise(precision, name) {
            Some(noise) => noise,
            None => return floor.ok_or_else(|| format!("the file has no PyTorch error in {precision}")),
        };
        let limit = (NOISE_FACTOR * noise).max(floor.unwrap_or(FLOOR));
        match precision != Precision::Fp32 && floor.is_none() && limit >= 1.0 {
            true => Err(format!("PyTorch's own error in {precision} is {noise:.1e}: zeros would pass")),
            false => Ok(limit),
        }
    }

    fn compare(&mut self, name: &str, ours: &[f32], kind: Option<Truth>) -> Result<()> {
        let file = self.reference.file();
        let shape = file.entry(name)?.shape.clone();
        let limit = match self.limit(name) {
            Ok(limit) => limit,
            Err(reason) => {
                self.not_compared.push(format!("{name}: {reason}"));
                return Ok(());
            }
        };
        let mut truth = file.read_finite_f32(name)?;
        if truth.len() != ours.len() {
            return Err(Error::new(format!(
                "{name}: the file has {} elements, the network {}",
                truth.len(),
                ours.len()
            )));
        }
        let mut before = None;
        match kind {
            Some(Truth::Rectified) => truth.iter_mut().for_each(|value| *value = value.max(0.0)),
            Some(Truth::UpdateOf(values)) => before = Some(values),
            None => {}
        }
        let square = |value: f64| value * value;
        let difference: f64 = ours.iter().zip(&truth).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
        let size: f64 = match &before {
            Some(before) => truth.iter().zip(before).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum(),
            None => truth.iter().map(|value| square(f64::from(*value))).sum(),
        };
        let error = if difference == 0.0 { 0.0 } else { (difference / size).sqrt() };
        self.comparisons.push(Comparison { name: name.into(), shape, error, limit, ok: error <= limit });
        Ok(())
    }
}

/// Where the meaning of the file's values differs from that of the tensor.
enum Truth {
    /// The values are those before the ReLU.
    Rectified,
    /// A parameter after an update of these values.
    UpdateOf(Vec<f32>),
}
