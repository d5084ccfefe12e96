//! Every batch norm of ResNet-18 at 224 x 224 in training, batch 32, each with its ReLU.
//!
//! Bytes: whole activations, counted each time one is read or written, because none fits in the cache.
//!
//! | | read | written |
//! |---|---|---|
//! | statistics | input | |
//! | forward | input | output |
//! | forward with residual | input, residual | output |
//! | backward | input and output gradient, twice: for the sums, then for the result | input gradient |
//! | backward with residual | the same and the output, whose sign is the mask, twice | input and residual gradient |

mod measurement;
mod tensors;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use retune::device::cpu::Cpu;
use retune::device::{Activation, BatchNormBackward, BatchNormForward, BatchNormMode, Device, Gradient};
use tensors::{filled, workspace};

const BATCH: usize = 32;
/// Height (and width) and channels of the activation: those of the stem, then those of the four stages.
const LAYERS: [[usize; 2]; 5] = [[112, 64], [56, 64], [28, 128], [14, 256], [7, 512]];

fn layers(criterion: &mut Criterion) {
    for layer @ [side, channels] in LAYERS {
        let activation = || filled([BATCH, side, side, channels]);
        let (input, other, output, output_gradient) = (activation(), activation(), activation(), activation());
        let statistics = filled([Cpu.statistics_rows(input.shape()), 2, channels]);
        let [weight, bias, running_mean, running_variance] = std::array::from_fn(|_| filled([channels]));
        let (weight_gradient, bias_gradient) = (filled([channels]), filled([channels]));
        let saved_statistics = filled([4, channels]);
        let workspace = workspace(Cpu.batch_norm_workspace(input.shape()));
        let input_gradient = Gradient { tensor: activation(), accumulate: false };
        let residual_gradient = Gradient { tensor: other, accumulate: false };
        // The residual and its gradient are never needed at the same time.
        let residual = &residual_gradient.tensor;

        let forward = |residual| {
            let arguments = BatchNormForward {
                mode: BatchNormMode::Training,
                input: &input,
                statistics: Some(&statistics),
                weight: &weight,
                bias: &bias,
                running_mean: &running_mean,
                running_variance: &running_variance,
                saved_statistics: &saved_statistics,
                residual,
                activation: Activation::Relu,
                output: &output,
                epsilon: 1e-5,
                momentum: 0.1,
            };
            Cpu.batch_norm_forward(&arguments).unwrap();
        };
        let backward = |output, residual_gradient| {
            let arguments = BatchNormBackward {
                mode: BatchNormMode::Training,
                input: Some(&input),
                output,
                activation: Activation::Relu,
                output_gradient: &output_gradient,
                is_reduced: false,
                weight: &weight,
                bias: &bias,
                saved_statistics: &saved_statistics,
                input_gradient: Some(&input_gradient),
                residual_gradient,
                weight_gradient: Some(&weight_gradient),
                bias_gradient: Some(&bias_gradient),
                workspace: &workspace,
            };
            Cpu.batch_norm_backward(&arguments).unwrap();
        };
        // Inputs of the backward passes, needed whichever benchmarks are selected.
        Cpu.batch_norm_statistics(&input, &statistics).unwrap();
        forward(None);

        let mut group = criterion.benchmark_group(format!("batch_norm {side}x{side} {channels}"));
        let mut measure = |name, activations, run: &dyn Fn()| {
            group.throughput(Throughput::Bytes((activations * input.bytes()) as u64));
            group.bench_function(name, |bencher| bencher.iter(run));
        };
        measure("statistics", 1, &|| Cpu.batch_norm_statistics(&input, &statistics).unwrap());
        measure("forward", 2, &|| forward(None));
        measure("backward", 5, &|| backward(None, None));
        // The stem has no residual.
        if layer != LAYERS[0] {
            measure("forward with residual", 3, &|| forward(Some(residual)));
            measure("backward with residual", 8, &|| backward(Some(&output), Some(&residual_gradient)));
        }
    }
}

criterion_group! {
    name = benches;
    config = measurement::brief();
    targets = layers
}
criterion_main!(benches);
