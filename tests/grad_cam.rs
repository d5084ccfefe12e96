//! Gradients of logits with respect to the output of a module, compared with known values.

mod reference;

use std::rc::Rc;

use reference::Random;
use reference::devices::devices;
use retune::device::Device;
use retune::model::{Architecture, BatchShape, ResNet};
use retune::report::attention;
use retune::train::{LogitGradients, Network, initialise, logit_gradients};

const SHAPE: BatchShape = BatchShape { batch: 3, height: 50, width: 70 };
const CLASSES: usize = 5;

struct Bench {
    network: Network,
    images: Vec<f32>,
}

impl Bench {
    /// Random weights, and running statistics from a few batches.
    fn new(device: Rc<dyn Device>) -> Self {
        let resnet = ResNet { architecture: Architecture::default(), width: 8, classes: CLASSES };
        let mut network = Network::new(device, resnet).unwrap();
        initialise(&mut network, 3).unwrap();
        let mut random = Random(11);
        let names: Vec<String> =
            network.parameters().specifications().map(|parameter| parameter.name.clone()).collect();
        for name in names {
            let mut values = network.parameters().read(network.device(), &name).unwrap();
            let noise = random.normals(values.len());
            if name.ends_with("running_var") {
                values.iter_mut().zip(&noise).for_each(|(value, noise)| *value = 0.5 + noise.abs());
            } else if name.ends_with("running_mean") || name.ends_with("bias") {
                values.iter_mut().zip(&noise).for_each(|(value, noise)| *value = 0.2 * noise);
            }
            network.write(&name, &values).unwrap();
        }
        Self { network, images: random.normals(SHAPE.batch * SHAPE.height * SHAPE.width * 3) }
    }

    fn gradients(&self, module: &str, class: usize) -> LogitGradients {
        logit_gradients(&self.network, SHAPE, &self.images, module, |_| class).unwrap()
    }

    fn logits(&mut self) -> Vec<f32> {
        self.network.evaluate(SHAPE, &self.images, &[0; 3]).unwrap().1
    }
}

/// The head is an average and a linear layer, so the gradient at each pixel of layer4's output is its share of the
/// weight.
#[test]
fn of_the_last_stage_are_the_heads_weights() {
    for device in devices() {
        let mut bench = Bench::new(device);
        let found = bench.gradients("layer4.1", 2);
        let &[batch, rows, columns, channels] = found.shape.dims() else { panic!("{:?}", found.shape) };
        assert_eq!((batch, rows, columns, channels), (3, 2, 3, 64));
        let weight = bench.network.parameters().read(bench.network.device(), "fc.weight").unwrap();
        for (place, gradient) in found.gradient.chunks_exact(channels).enumerate() {
            for (channel, &gradient) in gradient.iter().enumerate() {
                let truth = f64::from(weight[2 * channels + channel]) / (rows * columns) as f64;
                assert!(
                    (f64::from(gradient) - truth).abs() <= 1e-6 * truth.abs() + 1e-12,
                    "place {place}, channel {channel}"
                );
            }
        }
        assert_eq!(found.chosen, [2, 2, 2]);
        // An evaluation gives the same logits; on some devices it uses other kernels.
        for (one, other) in found.logits.iter().zip(bench.logits()) {
            assert!((one - other).abs() <= 1e-4 * other.abs().max(1.0), "{one} and {other}");
        }
    }
}

/// A shift of a channel before the last ReLU of a block changes the output wherever it is positive, and the logit by
/// the sum of the gradients there.
#[test]
fn of_earlier_stages_agree_with_differences() {
    const STEP: f32 = 2e-3;
    for device in devices() {
        let mut bench = Bench::new(device);
        for (module, bias) in [("layer3.1", "layer3.1.bn2.bias"), ("layer2.0", "layer2.0.bn2.bias")] {
            for class in [0, 4] {
                let found = bench.gradients(module, class);
                let channels = found.shape.channels();
                let places = found.gradient.len() / channels / SHAPE.batch;
                for channel in [0, channels / 2, channels - 1] {
                    let before = bench.network.parameters().read(bench.network.device(), bias).unwrap();
                    let mut moved = [0.0; 2].map(|_: f32| Vec::new());
                    for (moved, step) in moved.iter_mut().zip([STEP, -STEP]) {
                        let mut values = before.clone();
                        values[channel] += step;
                        bench.network.write(bias, &values).unwrap();
                        *moved = bench.logits();
                    }
                    bench.network.write(bias, &before).unwrap();
                    for image in 0..SHAPE.batch {
                        let predicted: f64 = (0..places)
                            .map(|place| (image * places + place) * channels + channel)
                            .filter(|&index| found.activation[index] > 0.0)
                            .map(|index| f64::from(found.gradient[index]))
                            .sum();
                        let logit = image * CLASSES + class;
                        let measured = f64::from(moved[0][logit] - moved[1][logit]) / f64::from(2.0 * STEP);
                        // A few of thousands of pixels cross the kink of a ReLU. Logits are exact to 1e-6, so the slope
                        // is exact to 5e-4.
                        let size =
                            found.gradient.iter().map(|g| f64::from(g.abs())).fold(0.0, f64::max) * places as f64;
                        assert!(
                            (predicted - measured).abs() <= 0.02 * size + 2e-3,
                            "{module}, class {class}, channel {channel}, image {image}: {predicted} and {measured}, {size}"
                        );
                        assert!(predicted.abs() > 0.0);
                    }
                }
            }
        }
    }
}

#[test]
fn a_map_ranges_from_zero_to_one_and_names_the_class() {
    let mut bench = Bench::new(devices().remove(0));
    let image = Random(5).normals(64 * 64 * 3);
    let (rows, columns, map, class) = attention(&bench.network, &image, 64).unwrap();
    assert_eq!((rows, columns, map.len()), (8, 8, 64), "layer2's output at 64 x 64");
    assert!(map.iter().all(|value| (0.0..=1.0).contains(value)));
    assert_eq!(map.iter().copied().fold(0.0, f32::max), 1.0);
    let shape = BatchShape { batch: 1, height: 64, width: 64 };
    let logits = bench.network.evaluate(shape, &image, &[0]).unwrap().1;
    assert!(logits.iter().all(|&logit| logit <= logits[class]));
}
