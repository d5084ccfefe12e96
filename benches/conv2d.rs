//! Every convolution of ResNet-18 at 224 x 224, all three passes, batch 32.
//!
//! `cargo bench --bench conv2d` for all, `cargo bench --bench conv2d -- 3x3/1` for some.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use retune::device::cpu::conv2d;
use retune::device::{Conv2dPass, Conv2dShape};
use std::time::Duration;

/// Input size, input channels, output channels, filter size, stride.
const LAYERS: [[usize; 5]; 11] = [
    [224, 3, 64, 7, 2],
    [56, 64, 64, 3, 1],
    [56, 64, 128, 3, 2],
    [56, 64, 128, 1, 2],
    [28, 128, 128, 3, 1],
    [28, 128, 256, 3, 2],
    [28, 128, 256, 1, 2],
    [14, 256, 256, 3, 1],
    [14, 256, 512, 3, 2],
    [14, 256, 512, 1, 2],
    [7, 512, 512, 3, 1],
];

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1021) as f32 / 1021.0 - 0.5).collect()
}

fn layers(criterion: &mut Criterion) {
    for [side, input_channels, output_channels, kernel, stride] in LAYERS {
        let shape = Conv2dShape {
            batch: 32,
            height: side,
            width: side,
            input_channels,
            output_channels,
            kernel_height: kernel,
            kernel_width: kernel,
            stride,
            padding: kernel / 2,
        };
        let (mut input, mut weight) = (numbers(shape.input_len()), numbers(shape.weight_len()));
        let mut output = numbers(shape.output_len());
        let name = format!("conv2d {kernel}x{kernel}/{stride} {side}x{side} {input_channels}->{output_channels}");
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        // An element is a multiply-add of the direct algorithm.
        group.throughput(Throughput::Elements(shape.multiply_adds() as u64));
        for (pass, name) in [
            (Conv2dPass::Forward, "forward"),
            (Conv2dPass::InputGradient, "input gradient"),
            (Conv2dPass::WeightGradient, "weight gradient"),
        ] {
            let mut workspace = vec![0.0; conv2d::workspace_len(&shape, pass)];
            group.bench_function(name, |bencher| {
                bencher.iter(|| match pass {
                    Conv2dPass::Forward => conv2d::forward(&shape, &input, &weight, &mut output, &mut workspace),
                    Conv2dPass::InputGradient => {
                        conv2d::input_gradient(&shape, &output, &weight, &mut input, false, &mut workspace);
                    }
                    Conv2dPass::WeightGradient => {
                        conv2d::weight_gradient(&shape, &input, &output, &mut weight, &mut workspace);
                    }
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, layers);
criterion_main!(benches);
