//! The tensor-core weight gradient on the emulator, compared with float64 on operands rounded as the kernel rounds
//! them. The remaining difference is the order of float32 additions.

#![cfg(feature = "emulator")]

mod reference;

use std::rc::Rc;

use reference::devices::{Workbench, emulated, norm, operands, stored};
use reference::*;
use retune::device::cuda::Cuda;
use retune::device::cuda::dry_run::DryRun;
use retune::device::cuda::gpus::GpuModel;
use retune::device::{Conv2dPass, Conv2dWeightGradient, Device, Precision};

const PRECISIONS: [Precision; 2] = [Precision::Bf16, Precision::Tf32];

fn shape(sizes: [usize; 9]) -> Conv2dShape {
    let [batch, height, width, input_channels, output_channels, kernel_height, kernel_width, stride, padding] = sizes;
    Conv2dShape { batch, height, width, input_channels, output_channels, kernel_height, kernel_width, stride, padding }
}

fn squares(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| value * value).collect()
}

/// Returns the gradient that the device computes, with a different schedule for each seed.
fn gradient(shape: &Conv2dShape, precision: Precision, input: &[f32], output_gradient: &[f32], seed: u64) -> Vec<f32> {
    let cuda = emulated(seed, precision);
    let bench = Workbench::new(&cuda);
    let weight_gradient =
        bench.output([shape.output_channels, shape.kernel_height, shape.kernel_width, shape.input_channels]);
    let output_dims = [shape.batch, shape.output_height(), shape.output_width(), shape.output_channels];
    let arguments = Conv2dWeightGradient {
        input: &bench.activation([shape.batch, shape.height, shape.width, shape.input_channels], input),
        output_gradient: &bench.activation(output_dims, output_gradient),
        weight_gradient: &weight_gradient,
        workspace: &bench.workspace(cuda.conv2d_workspace(shape, Conv2dPass::WeightGradient)),
    };
    // Runs twice: the first launch must reset the counters.
    cuda.conv2d_weight_gradient(shape, &arguments).unwrap();
    let first = bench.read(&weight_gradient);
    cuda.conv2d_weight_gradient(shape, &arguments).unwrap();
    let second = bench.read(&weight_gradient);
    assert!(first == second, "the second run of {shape:?} has different bits in {precision}");
    bench.finish();
    second
}

/// Checks every element, and the norm.
///
/// Let q be the square root of the sum of squared products of an element. Its partial sums (of products with random
/// signs) stay within 4 q. Each of `pixels` additions rounds by 2^-24 of that, at most `pixels` 2^-22 q if all round in
/// the same direction. Over many elements the error grows as a random walk does: 2^-24 sqrt(pixels) of q, which is 3e-6
/// for the at most 2000 pixels here. An operand that is not rounded to tf32 causes 1e-4, a missing product 2e-2.
fn check(sizes: [usize; 9], schedules: u64) {
    let shape = shape(sizes);
    let pixels = shape.batch * shape.output_height() * shape.output_width();
    assert!(pixels <= 2000, "the limit assumes few pixels");
    for precision in PRECISIONS {
        let mut random = Random(sizes.iter().fold(0, |seed, &size| seed * 31 + size as u64));
        let input = stored(precision, &random.normals(shape.input_len()));
        let output_gradient = stored(precision, &random.normals(shape.output_len()));
        let (left, right) = (operands(precision, &input), operands(precision, &output_gradient));
        let truth = conv2d_weight_gradient(&shape, &left, &right);
        let typical = conv2d_weight_gradient(&shape, &squares(&left), &squares(&right));

        let ours = gradient(&shape, precision, &input, &output_gradient, 1);
        assert_eq!(ours.len(), truth.len());
        let mut difference = 0.0;
        for (i, ((&ours, &truth), &squares)) in ours.iter().zip(&truth).zip(&typical).enumerate() {
            let limit = pixels as f64 * 2f64.powi(-22) * squares.sqrt();
            let error = (f64::from(ours) - truth).abs();
            assert!(error <= limit, "element {i} is {ours}, expected {truth}: {precision}, {shape:?}");
            difference += error * error;
        }
        let size = norm(&truth).max(typical.iter().sum::<f64>().sqrt());
        let error = if difference == 0.0 { 0.0 } else { difference.sqrt() / size };
        assert!(error <= 3e-6, "error {error:.2e}: {precision}, {shape:?}");
        for seed in 2..=schedules {
            let other = gradient(&shape, precision, &input, &output_gradient, seed);
            assert!(other == ours, "another schedule changes bits of {shape:?} in {precision}");
        }
    }
}

/// ResNet-18's layers for small images: `[batch, height, width, C, K, R, S, stride, padding]`.
#[test]
fn layers_of_resnet() {
    for sizes in [
        [2, 28, 28, 64, 64, 3, 3, 1, 1],
        [1, 28, 28, 64, 128, 3, 3, 2, 1],
        [1, 28, 28, 64, 128, 1, 1, 2, 0],
        [1, 14, 14, 128, 128, 3, 3, 1, 1],
        [1, 14, 14, 128, 256, 3, 3, 2, 1],
        [1, 14, 14, 128, 256, 1, 1, 2, 0],
        [1, 7, 7, 256, 256, 3, 3, 1, 1],
        [1, 7, 7, 256, 512, 3, 3, 2, 1],
        [2, 7, 7, 256, 512, 1, 1, 2, 0],
    ] {
        check(sizes, 1);
    }
}

/// Sizes that are not multiples of a tile, one-pixel images, filters larger than the image, gaps between windows.
#[test]
fn odd_sizes() {
    for sizes in [
        [1, 1, 1, 8, 8, 1, 1, 1, 0],
        [1, 1, 1, 8, 8, 3, 3, 1, 1],
        [5, 1, 1, 24, 72, 3, 3, 1, 1],
        [1, 1, 1, 24, 40, 7, 7, 2, 3],
        [2, 5, 7, 24, 72, 3, 3, 1, 1],
        [1, 6, 6, 40, 200, 3, 3, 2, 1],
        [3, 7, 9, 8, 72, 1, 1, 2, 0],
        [1, 13, 11, 40, 24, 5, 3, 2, 2],
        [1, 3, 3, 16, 8, 5, 5, 1, 2],
        [3, 4, 5, 8, 8, 2, 2, 2, 0],
        [40, 3, 1, 8, 16, 2, 1, 2, 1],
        [2, 12, 12, 8, 136, 3, 3, 1, 0],
        [1, 8, 8, 72, 8, 1, 1, 1, 3],
        [1, 9, 9, 200, 8, 3, 3, 3, 1],
        [2, 16, 16, 8, 8, 15, 15, 1, 7],
        [70, 2, 2, 8, 8, 1, 1, 1, 0],
    ] {
        check(sizes, 3);
    }
}

/// Enough pixels for splits in groups, of which the last is smaller.
#[test]
fn many_splits() {
    for sizes in [[2, 31, 29, 8, 8, 3, 3, 1, 1], [3, 23, 27, 24, 72, 1, 1, 1, 0], [1, 41, 43, 40, 136, 1, 1, 1, 0]] {
        check(sizes, 4);
    }
}

/// Returns the kernel for a shape on an H200, and its shared memory.
fn launch(sizes: [usize; 9], precision: Precision) -> (&'static str, u32) {
    let driver = DryRun::new(GpuModel::find("h200").expect("in the table"));
    let log = driver.log();
    let cuda = Cuda::new(Box::new(Rc::new(driver)), precision).expect("supports every precision");
    let shape = shape(sizes);
    let bench = Workbench::new(&cuda);
    let arguments = Conv2dWeightGradient {
        input: &bench.activation_output([shape.batch, shape.height, shape.width, shape.input_channels]),
        output_gradient: &bench.activation_output([1]),
        weight_gradient: &bench.output([1]),
        workspace: &bench.workspace(cuda.conv2d_workspace(&shape, Conv2dPass::WeightGradient)),
    };
    cuda.conv2d_weight_gradient(&shape, &arguments).unwrap();
    let launches = log.take();
    assert_eq!(launches.len(), 1, "one launch");
    (launches[0].kernel, launches[0].shared_bytes)
}

/// Checks which kernel runs: the results above would be the same if the plain kernel ran instead.
#[test]
fn kernels_of_shapes() {
    let narrow = [2, 56, 56, 64, 64, 3, 3, 1, 1];
    let wide = [2, 28, 28, 128, 128, 3, 3, 1, 1];
    assert_eq!(launch(narrow, Precision::Bf16).0, "conv2d_weight_gradient_64x192_bf16");
    assert_eq!(launch(narrow, Precision::Tf32).0, "conv2d_weight_gradient_64x192_tf32");
    assert_eq!(launch(wide, Precision::Bf16).0, "conv2d_weight_gradient_128x128_bf16");
    assert_eq!(launch(wide, Precision::Tf32).0, "conv2d_weight_gradient_128x128_tf32");
    assert_eq!(launch([2, 7, 7, 24, 40, 1, 1, 2, 0], Precision::Bf16).0, "conv2d_weight_gradient_64x192_bf16");
    assert_eq!(launch(wide, Precision::Bf16).1, 49152);
    // Rows that are not a multiple of 16 bytes.
    assert_eq!(launch([2, 7, 7, 12, 40, 1, 1, 1, 0], Precision::Bf16).0, "conv2d_weight_gradient_bf16");
}
