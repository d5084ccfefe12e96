//! An optimiser on a workbench, step by step.

use retune::device::{Clip, Device, Precision, UpdateArguments};
use retune::optim::{GroupSettings, Optimizer, OptimizerSettings};
use retune::tensor::Tensor;

use super::Sgd;
use super::devices::{Workbench, assert_near, stored};

/// A parameter group on a device, with the optimiser's state.
pub struct UpdateBench<'a> {
    device: &'a dyn Device,
    bench: &'a Workbench<'a>,
    optimizer: Box<dyn Optimizer>,
    group: GroupSettings,
    steps: u64,
    values: Tensor,
    slots: Vec<Tensor>,
    compute_copy: Option<Tensor>,
}

impl<'a> UpdateBench<'a> {
    /// The values before the first step.
    pub fn new(
        device: &'a dyn Device,
        bench: &'a Workbench<'a>,
        settings: OptimizerSettings,
        group: GroupSettings,
        values: &[f32],
    ) -> Self {
        let optimizer = settings.build();
        let count = values.len();
        let slots = optimizer.slots().iter().map(|_| bench.variable([count], &vec![0.0; count])).collect();
        let compute_copy = (device.precision() == Precision::Bf16).then(|| bench.activation_output([count]));
        Self { device, bench, optimizer, group, steps: 0, values: bench.variable([count], values), slots, compute_copy }
    }

    /// Takes one step. `loss` is the first number of the loss; `clip` is the norm of the gradients and its maximum.
    pub fn step(&mut self, gradients: &[f32], loss: Option<f32>, clip: Option<(f32, f32)>) {
        let (bench, rule) = (self.bench, self.optimizer.rule());
        self.steps += 1;
        let mut words = vec![0.0; rule.words];
        self.optimizer.words(&self.group, self.steps, 0.0, &mut words);
        let loss = loss.map(|loss| bench.input([2], &[loss, f32::NAN]));
        let clip = clip.map(|(norm, max_norm)| (bench.input([1], &[norm]), max_norm));
        let arguments = UpdateArguments {
            rule,
            values: &self.values,
            gradients: &bench.input([gradients.len()], gradients),
            slots: &self.slots,
            compute_copy: self.compute_copy.as_ref(),
            words: &bench.input([words.len()], &words),
            loss: loss.as_ref(),
            clip: clip.as_ref().map(|(norm, max_norm)| Clip { norm, max_norm: *max_norm }),
        };
        self.device.update(&arguments).unwrap();
    }

    /// Returns the current values. The compute copy must contain them, rounded.
    #[track_caller]
    pub fn values(&self) -> Vec<f32> {
        let values = self.bench.read(&self.values);
        if let Some(copy) = &self.compute_copy {
            assert!(
                self.bench.read(copy) == stored(Precision::Bf16, &values),
                "compute copy after step {}",
                self.steps
            );
        }
        values
    }

    /// Returns the current values without a check of the compute copy.
    pub fn raw_values(&self) -> Vec<f32> {
        self.bench.read(&self.values)
    }

    /// Returns the state slot of this name.
    pub fn slot(&self, name: &str) -> Vec<f32> {
        let index = self.optimizer.slots().iter().position(|slot| *slot == name).expect("this slot");
        self.bench.read(&self.slots[index])
    }
}

impl Sgd {
    /// Builds the optimiser with these settings.
    pub fn bench<'a>(&self, device: &'a dyn Device, bench: &'a Workbench<'a>, values: &[f32]) -> UpdateBench<'a> {
        let group = GroupSettings { learning_rate: self.rate, weight_decay: self.weight_decay };
        UpdateBench::new(device, bench, OptimizerSettings::sgd(self.momentum).unwrap(), group, values)
    }
}

/// Compares values after some steps with the truth. The error is relative to the change of the values, as in gradcheck.
#[track_caller]
pub fn assert_moved(what: &str, ours: &[f32], before: &[f32], truth: &[f64], rate: f64) {
    let moved: Vec<f32> = ours.iter().zip(before).map(|(after, before)| after - before).collect();
    let moved_truth: Vec<f64> = truth.iter().zip(before).map(|(after, &before)| after - f64::from(before)).collect();
    // Rounding a value of about 1 causes an error of 3e-8, however much it changed.
    let typical = rate * (ours.len() as f64).sqrt();
    assert_near(&format!("values {what}"), &moved, &moved_truth, typical, 1e-6 + 2e-7 / rate);
}
