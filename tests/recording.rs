//! Training steps that a device records and issues as a whole, compared with the same steps issued kernel by kernel.

mod reference;

use std::rc::Rc;

use reference::devices::{PRECISIONS, emulator, kernel_devices};
use reference::recording::RecordingDevice;
use reference::{Random, mix};
use retune::device::cpu::Cpu;
use retune::device::{Device, Mixture};
use retune::model::{Architecture, BatchShape, Freezing, ResNet};
use retune::ops::LossReduction;
use retune::optim::{Grouping, OptimizerSettings};
use retune::train::{LossSettings, Purpose, Trainable, Trainer};

const CLASSES: usize = 3;
const FULL: BatchShape = BatchShape { batch: 3, height: 40, width: 33 };
const SHORT: BatchShape = BatchShape { batch: 2, ..FULL };
const LARGER: BatchShape = BatchShape { batch: 5, ..FULL };

/// A trainer whose parameters depend only on the seed, with two learning rates and momentum.
fn trainer(device: Rc<dyn Device>) -> Trainer {
    let trainable = Trainable {
        freezing: Freezing::default(),
        optimizer: OptimizerSettings::sgd(0.9).unwrap(),
        grouping: Grouping {
            learning_rate: 0.001,
            head_learning_rate: 0.01,
            weight_decay: 1e-3,
            ..Grouping::default()
        },
        loss: LossSettings { mixes: true, ..LossReduction::Sum.into() },
        ema: Some(0.5),
        accumulates: false,
        max_gradient_norm: Some(1.0),
    };
    let resnet = ResNet { architecture: Architecture::default(), width: 4, classes: CLASSES };
    let mut trainer = Trainer::new(device, resnet, trainable).unwrap();
    let network = trainer.network_mut();
    let mut random = Random(7);
    let specifications: Vec<_> = network.parameters().specifications().cloned().collect();
    for specification in specifications {
        let (count, dims) = (specification.shape.len(), specification.shape.dims());
        let inputs = (count / dims[0]) as f32;
        let values = match dims.len() {
            1 => random.uniforms(count, 0.5, 1.5),
            _ => random.normals(count).into_iter().map(|value| value / inputs.sqrt()).collect(),
        };
        network.write(&specification.name, &values).unwrap();
    }
    trainer
}

fn batch(shape: BatchShape, seed: u64) -> (Vec<f32>, Vec<u32>) {
    let mut random = Random(seed);
    let images = random.normals(shape.batch * shape.height * shape.width * 3);
    (images, random.labels(shape.batch, CLASSES).into_iter().map(|label| label as u32).collect())
}

/// An operation on a network.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// A step on a batch of this shape.
    Step(BatchShape),
    /// Allocation of memory for a batch of this shape.
    Prepare(BatchShape),
    /// An evaluation, which shares the arena.
    Evaluate(BatchShape),
}

/// The bits of every loss and logit, and of every parameter and running statistic at the end. With `as_a_whole`, calls
/// `step`; otherwise calls `gradients` and then `update`.
fn bits(trainer: &mut Trainer, events: &[Event], as_a_whole: bool) -> Vec<u32> {
    let mut bits = Vec::new();
    for (index, &event) in events.iter().enumerate() {
        match event {
            Event::Step(shape) => {
                let (images, targets) = batch(shape, index as u64);
                let result = if as_a_whole {
                    trainer.step(shape, &images, &targets).unwrap()
                } else {
                    let result = trainer.gradients(shape, &images, &targets).unwrap();
                    trainer.update().unwrap();
                    result
                };
                assert!(result.loss.is_finite() && result.correct <= shape.batch, "{result:?}");
                bits.extend([result.loss.to_bits(), result.correct as u32]);
                bits.extend(trainer.network().logits(shape, Purpose::Training).unwrap().into_iter().map(f32::to_bits));
            }
            Event::Prepare(shape) => trainer.network_mut().prepare(shape, Purpose::Training).unwrap(),
            Event::Evaluate(shape) => {
                let (images, targets) = batch(shape, index as u64);
                let (result, logits) = trainer.network_mut().evaluate(shape, &images, &targets).unwrap();
                bits.push(result.loss.to_bits());
                bits.extend(logits.into_iter().map(f32::to_bits));
            }
        }
    }
    let (parameters, device) = (trainer.network().parameters(), trainer.network().device());
    for specification in parameters.specifications() {
        let values = parameters.read(device, &specification.name).unwrap();
        bits.extend(values.into_iter().map(f32::to_bits));
        let average = trainer.average_of(&specification.name).unwrap();
        bits.extend(average.into_iter().flatten().map(f32::to_bits));
    }
    bits.extend(parameters.batches_tracked().values().map(|&count| count as u32));
    bits
}

#[test]
fn steps_are_gradients_and_update() {
    let events = [Event::Step(FULL), Event::Evaluate(FULL), Event::Step(FULL), Event::Step(SHORT), Event::Step(FULL)];
    let cpu = || trainer(Rc::new(Cpu));
    let apart = bits(&mut cpu(), &events, false);
    assert!(apart == bits(&mut cpu(), &events, true));
    assert!(apart != bits(&mut cpu(), &events[..4], true), "the last step changes the result");
    let recorded = trainer(Rc::new(RecordingDevice::new(Rc::new(Cpu))));
    assert!(apart == bits(&mut { recorded }, &events, true));
}

#[test]
fn each_batch_shape_is_recorded_once() {
    let device = Rc::new(RecordingDevice::new(Rc::new(Cpu)));
    let mut recorded = trainer(device.clone());
    recorded.network_mut().prepare(FULL, Purpose::Training).unwrap();
    let counts = || (device.recordings.get(), device.replays.get());
    for (shape, expected) in [(FULL, (1, 1)), (FULL, (1, 2)), (SHORT, (2, 3)), (FULL, (2, 4)), (SHORT, (2, 5))] {
        let (images, targets) = batch(shape, 1);
        recorded.step(shape, &images, &targets).unwrap();
        assert_eq!(counts(), expected, "{shape:?}");
    }
    assert_eq!(device.direct_calls.get(), 0, "a step calls the device only through its recording");
}

/// A recording contains addresses of the arena with which it was made.
#[test]
fn larger_arena_means_new_recordings() {
    let events = [
        Event::Step(SHORT),
        Event::Step(FULL),
        Event::Prepare(LARGER),
        Event::Step(FULL),
        Event::Step(SHORT),
        Event::Step(LARGER),
        Event::Step(FULL),
    ];
    let device = Rc::new(RecordingDevice::new(Rc::new(Cpu)));
    let mut recorded = trainer(device.clone());
    let ours = bits(&mut recorded, &events, true);
    // SHORT once, moved for FULL; FULL once, moved for LARGER; then each of the three.
    assert_eq!((device.recordings.get(), device.replays.get()), (5, 6));
    assert!(ours == bits(&mut trainer(Rc::new(Cpu)), &events, false));
}

const MIXUP: Mixture = Mixture { share: 0.25, weight: 0.25, top: 0, left: 0, bottom: 40, right: 33 };
const CUTMIX: Mixture = Mixture { share: 0.75, weight: 0.0, top: 3, left: 20, bottom: 25, right: 33 };

/// Two steps, other learning rates for body and head, another mixture, then two more steps. Returns the bits of every parameter.
fn bits_with_changed_rates(trainer: &mut Trainer, as_a_whole: bool) -> Vec<u32> {
    let steps = [Event::Step(FULL), Event::Step(FULL)];
    trainer.set_mixture(&MIXUP).unwrap();
    let mut all = bits(trainer, &steps, as_a_whole);
    trainer.set_mixture(&CUTMIX).unwrap();
    for (group, rate) in [(0, 0.005), (1, 0.002)] {
        trainer.updater_mut().set_learning_rate(group, rate);
    }
    all.extend(bits(trainer, &steps, as_a_whole));
    all
}

/// The same images and targets, mixed on the host.
#[test]
fn a_mixture_is_what_its_images_and_targets_give() {
    let (images, _) = batch(FULL, 1);
    let dims = [FULL.batch, FULL.height, FULL.width, 3];
    // All images have the same class, so that the mixed targets are those of the images.
    let targets = [1; FULL.batch];
    for mixture in [MIXUP, CUTMIX] {
        let [top, left, bottom, right] = [mixture.top, mixture.left, mixture.bottom, mixture.right];
        let rectangle = [top, left, bottom, right].map(|edge| edge as usize);
        let mixed = mix(&images, dims, mixture.weight, rectangle);
        let mut ours = trainer(Rc::new(Cpu));
        ours.set_mixture(&mixture).unwrap();
        ours.gradients(FULL, &images, &targets).unwrap();
        let mut others = trainer(Rc::new(Cpu));
        others.gradients(FULL, &mixed, &targets).unwrap();
        let logits = |of: &Trainer| of.network().logits(FULL, Purpose::Training).unwrap();
        assert!(logits(&ours) == logits(&others), "{mixture:?}");
        // An evaluation does not mix.
        let evaluated = |of: &mut Trainer| of.network_mut().evaluate(FULL, &images, &targets).unwrap().1;
        let mut plain = trainer(Rc::new(Cpu));
        plain.gradients(FULL, &mixed, &targets).unwrap();
        assert!(evaluated(&mut ours) == evaluated(&mut plain), "{mixture:?}");
    }
}

/// A recorded step reads its learning rates and its mixture from device memory.
#[test]
fn changed_learning_rate_replays_the_same_recording() {
    let mut inner: Vec<Rc<dyn Device>> = vec![Rc::new(Cpu)];
    inner.extend(PRECISIONS.into_iter().flat_map(kernel_devices));
    for device in inner {
        let direct = bits_with_changed_rates(&mut trainer(device.clone()), false);
        let steps = [Event::Step(FULL), Event::Step(FULL)];
        let mut unchanged = trainer(device.clone());
        let same_rates = [bits(&mut unchanged, &steps, false), bits(&mut unchanged, &steps, false)].concat();
        assert!(direct != same_rates, "the learning rates change the result");
        // The device's own recordings, if it makes any.
        assert!(direct == bits_with_changed_rates(&mut trainer(device.clone()), true), "{}", device.name());
        let recording = Rc::new(RecordingDevice::new(device));
        let recorded = bits_with_changed_rates(&mut trainer(recording.clone()), true);
        assert_eq!((recording.recordings.get(), recording.replays.get()), (1, 4));
        assert!(direct == recorded, "{}", recording.name());
    }
}

const SEEDS: [u64; 3] = [0, 1, 2];

/// The order in which kernels add does not depend on the order of their blocks.
#[test]
fn steps_of_kernels_give_the_same_bits_whatever_the_schedule() {
    let events = [Event::Step(FULL), Event::Evaluate(SHORT), Event::Step(SHORT), Event::Step(FULL)];
    for precision in PRECISIONS {
        let trainers = SEEDS.into_iter().filter_map(|seed| emulator(precision, seed)).map(trainer);
        let all: Vec<Vec<u32>> = trainers.map(|mut trainer| bits(&mut trainer, &events, true)).collect();
        assert!(all.iter().all(|bits| *bits == all[0]), "the schedule changes results in {precision}");
    }
}

/// Recorded and not recorded, before and after the arena grows.
#[test]
fn recorded_steps_of_kernels_give_the_bits_of_direct_ones() {
    let events = [Event::Step(SHORT), Event::Step(FULL), Event::Prepare(LARGER), Event::Step(FULL), Event::Step(SHORT)];
    for precision in PRECISIONS {
        for device in kernel_devices(precision) {
            let direct = bits(&mut trainer(device.clone()), &events, false);
            assert!(direct == bits(&mut trainer(device.clone()), &events, true), "{}, {precision}", device.name());
            let recorded = trainer(Rc::new(RecordingDevice::new(device)));
            assert!(direct == bits(&mut { recorded }, &events, true), "{precision}");
        }
    }
}
