//! Steps of several batches, compared with steps of one batch with all their images. Batch norms are frozen, as they would
//! otherwise see other statistics.

mod reference;

use std::rc::Rc;

use reference::Random;
use reference::devices::{Workbench, assert_near, devices, emulator, kernel_devices};
use reference::recording::RecordingDevice;
use retune::device::cpu::Cpu;
use retune::device::{Accumulate, Device, Precision};
use retune::graph::ParameterRole;
use retune::model::{Architecture, BatchShape, Freezing, ResNet};
use retune::ops::LossReduction;
use retune::optim::{Grouping, OptimizerKind, OptimizerSettings};
use retune::train::{LossSettings, Trainable, Trainer};

const CLASSES: usize = 3;
const EXTENT: usize = 33;

/// Once, although three are issued: two of them for steps that are not finite.
#[test]
fn sums_are_scaled_and_added() {
    for device in devices().into_iter().chain(kernel_devices(Precision::Fp32)) {
        for (len, keep, add) in [(1, 1.0, 1.0), (1030, 0.25, 0.75), (70_001, 1.0, 1.0), (5, 0.0, 0.5)] {
            let (gradients, before) = (Random(1).normals(len), Random(2).normals(len));
            let bench = Workbench::new(device.as_ref());
            // A first batch takes no notice of what was there.
            let before = if keep == 0.0 { vec![f32::NAN; len] } else { before };
            let sums = bench.variable([len], &before);
            let values = bench.input([len], &gradients);
            let (loss, infinite) = (bench.input([2], &[1.0, f32::NAN]), bench.input([1], &[f32::INFINITY]));
            let words = bench.input([2], &[keep, add]);
            let all = Accumulate { values: &values, sums: &sums, words: &words, loss: Some(&loss), norm: None };
            for arguments in [Accumulate { loss: Some(&infinite), ..all }, Accumulate { norm: Some(&infinite), ..all }]
            {
                device.accumulate(&arguments).unwrap();
            }
            device.accumulate(&all).unwrap();
            let truth: Vec<f64> = gradients
                .iter()
                .zip(&before)
                .map(|(&gradient, &sum)| {
                    let kept = if keep == 0.0 { 0.0 } else { f64::from(keep) * f64::from(sum) };
                    kept + f64::from(add) * f64::from(gradient)
                })
                .collect();
            assert_near("sums", &bench.read(&sums), &truth, (len as f64).sqrt(), 1e-6);
            bench.finish();
        }
    }
}

/// A trainer whose parameters depend only on the seed. All batch norms are frozen.
fn trainer(device: Rc<dyn Device>, optimizer: &OptimizerSettings, loss: &LossSettings, accumulates: bool) -> Trainer {
    let resnet = ResNet { architecture: Architecture::default(), width: 4, classes: CLASSES };
    let specifications = resnet.parameters();
    let batch_norms = specifications.iter().filter_map(|each| each.name.strip_suffix(".running_mean"));
    let trainable = Trainable {
        freezing: Freezing { modules: batch_norms.map(str::to_string).collect(), batch_norm: true },
        optimizer: optimizer.clone(),
        grouping: Grouping { learning_rate: 0.01, head_learning_rate: 0.02, weight_decay: 0.1, ..Grouping::default() },
        loss: loss.clone(),
        ema: Some(0.3),
        accumulates,
        max_gradient_norm: Some(0.5),
    };
    let mut trainer = Trainer::new(device, resnet, trainable).unwrap();
    let mut random = Random(11);
    for specification in &specifications {
        let (count, dims) = (specification.shape.len(), specification.shape.dims());
        let inputs = (count / dims[0]) as f32;
        let values = match specification.role {
            ParameterRole::ConvolutionWeight | ParameterRole::LinearWeight => {
                random.normals(count).into_iter().map(|value| value / inputs.sqrt()).collect()
            }
            _ => random.uniforms(count, 0.5, 1.5),
        };
        trainer.network_mut().write(&specification.name, &values).unwrap();
    }
    trainer
}

/// Two steps of six images each, in batches of these sizes. Returns the norms of the gradients of both steps, and the parameters.
fn steps(trainer: &mut Trainer, batches: &[usize]) -> (Vec<f32>, Vec<(String, Vec<f32>)>) {
    const PIXELS: usize = EXTENT * EXTENT * 3;
    let mut norms = Vec::new();
    let mut random = Random(5);
    for _ in 0..2 {
        let images = random.normals(batches.iter().sum::<usize>() * PIXELS);
        let targets: Vec<u32> = [0, 2, 1, 1, 2, 2].to_vec();
        let mut first = 0;
        for &batch in batches {
            let shape = BatchShape { batch, height: EXTENT, width: EXTENT };
            let range = first..first + batch;
            let images = &images[range.start * PIXELS..range.end * PIXELS];
            norms.extend(trainer.step(shape, images, &targets[range.clone()]).unwrap().gradient_norm);
            first = range.end;
        }
        norms.extend(trainer.end_step().unwrap());
    }
    let network = trainer.network();
    let read = |name: &str| network.parameters().read(network.device(), name).unwrap();
    let names = || network.parameters().specifications().map(|specification| specification.name.clone());
    let values = names().map(|name| (name.clone(), read(&name)));
    let averages = names().filter_map(|name| Some((format!("average of {name}"), trainer.average_of(&name).unwrap()?)));
    (norms, values.chain(averages).collect())
}

fn optimizer(name: &str) -> OptimizerSettings {
    // An epsilon above rounding errors, so that AdamW makes no step of them.
    let given = if name == "adamw" { vec![("epsilon".to_string(), 2e-2)] } else { Vec::new() };
    OptimizerSettings::new(OptimizerKind::find(name).unwrap(), &given.into_iter().collect()).unwrap()
}

fn losses() -> [LossSettings; 4] {
    let weights = Some(vec![0.5, 1.0, 3.0]);
    // Mixed targets, all of which are left as they are: their mean is not divided by weights.
    let mixed = LossSettings {
        reduction: LossReduction::Mean,
        label_smoothing: 0.0,
        class_weights: weights.clone(),
        mixes: true,
    };
    [
        LossReduction::Sum.into(),
        LossReduction::Mean.into(),
        mixed,
        LossSettings { reduction: LossReduction::Mean, label_smoothing: 0.1, class_weights: weights, mixes: false },
    ]
}

/// The limit of a float32 network with Winograd convolutions.
const LIMIT: f64 = 5e-5;

fn assert_same_steps(device: &Rc<dyn Device>, optimizer: &OptimizerSettings, loss: &LossSettings, batches: &[usize]) {
    let what = format!("{}, {}, {loss:?}, {batches:?}", device.name(), optimizer.kind());
    let (norms, ours) = steps(&mut trainer(device.clone(), optimizer, loss, true), batches);
    let (true_norms, truth) = steps(&mut trainer(device.clone(), optimizer, loss, false), &[6]);
    assert_eq!(norms.len(), true_norms.len(), "{what}");
    for (norm, truth) in norms.iter().zip(&true_norms) {
        assert!((norm / truth - 1.0).abs() < 1e-5, "{what}: norm {norm}, not {truth}");
    }
    let untrained = trainer(device.clone(), optimizer, loss, false);
    for ((name, ours), (_, truth)) in ours.iter().zip(&truth) {
        let parameter = name.strip_prefix("average of ").unwrap_or(name);
        let before = untrained.network().parameters().read(device.as_ref(), parameter).unwrap();
        let distance = |from: &[f32]| {
            from.iter().zip(truth).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
        };
        // Half a unit in the last place of each parameter is lost in any case.
        let rounding = truth.iter().map(|value| f64::from(value * f32::EPSILON).powi(2)).sum::<f64>().sqrt();
        let (error, moved) = (distance(ours), distance(&before));
        assert!(error <= LIMIT * moved + 2.0 * rounding, "{what}: {name}: error {error:.1e}, moved {moved:.1e}");
    }
}

#[test]
fn several_batches_are_one() {
    for name in ["sgd", "adamw"] {
        for loss in losses() {
            for batches in [&[2, 2, 2][..], &[4, 1, 1], &[6]] {
                assert_same_steps(&(Rc::new(Cpu) as Rc<dyn Device>), &optimizer(name), &loss, batches);
            }
        }
    }
}

#[test]
fn several_batches_are_one_on_kernels() {
    if let Some(device) = emulator(Precision::Fp32, 1) {
        assert_same_steps(&device, &optimizer("adamw"), &losses()[3], &[4, 2]);
    }
}

/// The factors of a batch lie in device memory, so a batch shape is recorded once.
#[test]
fn recorded_batches_give_the_bits_of_direct_ones() {
    let [.., loss] = losses();
    let recording = Rc::new(RecordingDevice::new(Rc::new(Cpu)));
    let recorded = steps(&mut trainer(recording.clone(), &optimizer("sgd"), &loss, true), &[2, 2, 1, 1]);
    assert!(recorded == steps(&mut trainer(Rc::new(Cpu), &optimizer("sgd"), &loss, true), &[2, 2, 1, 1]));
    assert_eq!((recording.recordings.get(), recording.replays.get()), (2, 8));
}

#[test]
fn a_step_without_batches_changes_nothing() {
    let mut trainer = trainer(Rc::new(Cpu), &optimizer("adamw"), &losses()[0], true);
    assert_eq!(trainer.end_step().unwrap(), None);
    assert_eq!(trainer.updater().counted_steps(), Some(0));
    assert_eq!(steps(&mut trainer, &[3, 3]).0.len(), 2);
    assert_eq!(trainer.updater().counted_steps(), Some(2));
}
