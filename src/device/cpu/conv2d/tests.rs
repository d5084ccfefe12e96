//! All three passes, compared with the definition in float64, at every level and over many shapes.

use super::*;
use crate::device::threads;
use proptest::prelude::*;

/// Reproducible numbers from -1 to 1.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Calls `term(input, weight, output)` with the three indices of each product in the definition of a convolution.
fn products(shape: &Conv2dShape, mut term: impl FnMut(usize, usize, usize)) {
    for image in 0..shape.batch {
        for (oy, ox) in (0..shape.output_height()).flat_map(|y| (0..shape.output_width()).map(move |x| (y, x))) {
            for (r, s) in (0..shape.kernel_height).flat_map(|r| (0..shape.kernel_width).map(move |s| (r, s))) {
                let y = (oy * shape.stride + r).wrapping_sub(shape.padding);
                let x = (ox * shape.stride + s).wrapping_sub(shape.padding);
                if y >= shape.height || x >= shape.width {
                    continue;
                }
                let pixel = (image * shape.height + y) * shape.width + x;
                let output_pixel = (image * shape.output_height() + oy) * shape.output_width() + ox;
                for k in 0..shape.output_channels {
                    let filter = ((k * shape.kernel_height + r) * shape.kernel_width + s) * shape.input_channels;
                    for c in 0..shape.input_channels {
                        term(pixel * shape.input_channels + c, filter + c, output_pixel * shape.output_channels + k);
                    }
                }
            }
        }
    }
}

fn relative_error(ours: &[f32], truth: &[f64]) -> f64 {
    let difference: f64 = ours.iter().zip(truth).map(|(&a, &b)| (f64::from(a) - b).powi(2)).sum();
    let norm: f64 = truth.iter().map(|b| b * b).sum();
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}

/// A workspace filled with values that would be visible in any result that uses them.
fn workspace(shape: &Conv2dShape, pass: Conv2dPass) -> Vec<f32> {
    vec![f32::NAN; workspace_len(shape, pass)]
}

/// The results of all passes: output, input gradient, accumulated input gradient, weight gradient.
fn all_passes(level: Level, shape: &Conv2dShape) -> [Vec<f32>; 4] {
    let input = numbers(shape.input_len(), 1);
    let weight = numbers(shape.weight_len(), 2);
    let gradient = numbers(shape.output_len(), 3);
    let mut output = vec![f32::NAN; shape.output_len()];
    forward_at(level, shape, &input, &weight, &mut output, None, &mut workspace(shape, Conv2dPass::Forward));
    let mut work = workspace(shape, Conv2dPass::InputGradient);
    let mut overwritten = vec![f32::NAN; shape.input_len()];
    input_gradient_at(level, shape, &gradient, &weight, &mut overwritten, false, &mut work);
    let mut work = workspace(shape, Conv2dPass::InputGradient);
    let mut accumulated = numbers(shape.input_len(), 4);
    input_gradient_at(level, shape, &gradient, &weight, &mut accumulated, true, &mut work);
    let mut work = workspace(shape, Conv2dPass::WeightGradient);
    let mut filter = vec![f32::NAN; shape.weight_len()];
    weight_gradient_at(level, shape, &input, &gradient, &mut filter, &mut work);
    [output, overwritten, accumulated, filter]
}

fn truth(shape: &Conv2dShape) -> [Vec<f64>; 4] {
    let wide = |len, seed| numbers(len, seed).into_iter().map(f64::from).collect::<Vec<_>>();
    let input = wide(shape.input_len(), 1);
    let weight = wide(shape.weight_len(), 2);
    let gradient = wide(shape.output_len(), 3);
    let mut output = vec![0.0; shape.output_len()];
    let mut input_gradient = vec![0.0; shape.input_len()];
    let mut filter = vec![0.0; shape.weight_len()];
    products(shape, |x, w, y| {
        output[y] += input[x] * weight[w];
        input_gradient[x] += gradient[y] * weight[w];
        filter[w] += gradient[y] * input[x];
    });
    let accumulated = wide(shape.input_len(), 4).iter().zip(&input_gradient).map(|(a, b)| a + b).collect();
    [output, input_gradient, accumulated, filter]
}

fn levels() -> impl Iterator<Item = Level> {
    [Level::Portable, Level::Avx2, Level::Avx512].into_iter().filter(|&level| level <= Level::widest())
}

fn check_shape(shape: Conv2dShape) {
    let truth = truth(&shape);
    let names = ["output", "input gradient", "accumulated input gradient", "weight gradient"];
    for level in levels() {
        for ((ours, truth), name) in all_passes(level, &shape).iter().zip(&truth).zip(names) {
            let error = relative_error(ours, truth);
            // Written so that NaN fails.
            assert!(error <= 5e-6, "{name} of {shape:?} at {level:?}: relative error {error:e}");
        }
    }
}

/// `[batch, height, width, input channels, output channels, kernel height, kernel width, stride, padding]`
fn shape(sizes: [usize; 9]) -> Conv2dShape {
    let [batch, height, width, input_channels, output_channels, kernel_height, kernel_width, stride, padding] = sizes;
    Conv2dShape { batch, height, width, input_channels, output_channels, kernel_height, kernel_width, stride, padding }
}

#[test]
fn layers_of_a_small_resnet() {
    for sizes in [
        [2, 37, 41, 3, 64, 7, 7, 2, 3],
        [2, 56, 30, 32, 64, 3, 3, 2, 1],
        [2, 28, 29, 64, 128, 1, 1, 2, 0],
        [3, 14, 14, 64, 33, 1, 1, 1, 0],
        [5, 7, 7, 96, 40, 3, 3, 2, 1],
        [128, 1, 1, 80, 10, 1, 1, 1, 0],
        [6, 5, 4, 16, 37, 5, 4, 1, 0],
    ] {
        assert!(!winograd::suits(&shape(sizes)));
        check_shape(shape(sizes));
    }
}

#[test]
fn winograd_layers() {
    for sizes in [
        [8, 8, 8, 32, 32, 3, 3, 1, 1],
        [3, 14, 14, 48, 64, 3, 3, 1, 1],
        [2, 15, 13, 64, 80, 3, 3, 1, 1],
        [10, 7, 7, 160, 128, 3, 3, 1, 1],
        [1, 29, 31, 112, 32, 3, 3, 1, 1],
    ] {
        assert!(winograd::suits(&shape(sizes)));
        check_shape(shape(sizes));
    }
}

/// Every remainder of height and width: tiles at the ends have fewer points.
#[test]
fn winograd_at_the_edges_of_images() {
    for (height, width) in (8..12).flat_map(|height| (12..16).map(move |width| (height, width))) {
        let shape = shape([6, height, width, 32, 48, 3, 3, 1, 1]);
        assert!(winograd::suits(&shape));
        check_shape(shape);
    }
}

#[test]
fn few_pixels_of_deep_layers() {
    for sizes in [
        [1, 7, 7, 64, 128, 3, 3, 1, 1],
        [1, 14, 14, 130, 70, 3, 3, 2, 1],
        [4, 7, 7, 96, 97, 3, 3, 1, 1],
        [2, 1, 1, 256, 300, 1, 1, 1, 0],
        [1, 3, 5, 100, 41, 5, 4, 1, 3],
    ] {
        assert!(few_pixels::suits(&shape(sizes)) && !winograd::suits(&shape(sizes)));
        check_shape(shape(sizes));
    }
}

#[test]
fn awkward_shapes() {
    for sizes in [
        [1, 1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 5, 17, 3, 3, 1, 1],
        [2, 2, 2, 3, 5, 7, 7, 2, 3],
        [1, 3, 9, 17, 1, 5, 3, 3, 2],
        [3, 5, 5, 4, 6, 1, 1, 3, 0],
        [1, 9, 8, 2, 3, 2, 2, 4, 0],
        [2, 4, 4, 33, 31, 1, 1, 2, 2],
        [1, 300, 3, 2, 9, 3, 3, 1, 1],
        [1, 2, 700, 3, 4, 2, 5, 2, 1],
    ] {
        check_shape(shape(sizes));
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for sizes in [
        [9, 14, 14, 64, 64, 3, 3, 1, 1],
        [9, 14, 14, 144, 128, 3, 3, 1, 1],
        [3, 40, 40, 3, 64, 7, 7, 2, 3],
        [7, 14, 14, 40, 72, 3, 3, 2, 1],
        [50, 1, 1, 100, 12, 1, 1, 1, 0],
        [1, 7, 7, 80, 150, 3, 3, 1, 1],
    ] {
        let shape = shape(sizes);
        let bits = |threads| {
            let results = threads::with(threads, || all_passes(Level::current(), &shape));
            results.map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        let one = bits(1);
        for threads in [2, 3, 7] {
            assert!(bits(threads) == one, "{shape:?} with {threads} threads");
        }
    }
}

#[test]
#[should_panic(expected = "length of the input")]
fn a_wrong_length_is_refused() {
    let shape = shape([1, 4, 4, 2, 2, 3, 3, 1, 1]);
    let mut work = workspace(&shape, Conv2dPass::Forward);
    forward(&shape, &[0.0; 31], &[0.0; 36], &mut [0.0; 32], &mut work);
}

/// Small enough for Miri: padded and in place, one image in a block and several, few pixels.
#[test]
fn the_smallest_of_every_kind() {
    for sizes in [
        [1, 3, 3, 2, 3, 2, 2, 1, 1],
        [2, 3, 2, 1, 2, 2, 2, 2, 0],
        [3, 2, 2, 2, 2, 3, 3, 1, 1],
        [1, 1, 1, 33, 2, 1, 1, 1, 0],
    ] {
        check_shape(shape(sizes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape(
        batch in 1usize..4, height in 1usize..20, width in 1usize..20, input_channels in 1usize..40,
        output_channels in 1usize..40, kernel_height in 1usize..6, kernel_width in 1usize..6, stride in 1usize..4,
        padding in 0usize..4,
    ) {
        prop_assume!(height + 2 * padding >= kernel_height && width + 2 * padding >= kernel_width);
        let image = [batch, height, width, input_channels, output_channels];
        let [n, h, w, c, k] = image;
        check_shape(shape([n, h, w, c, k, kernel_height, kernel_width, stride, padding]));
    }

    #[test]
    fn any_winograd_shape(
        batch in 1usize..5, height in 12usize..34, width in 12usize..34, input_channels in 2usize..6,
        output_channels in 2usize..6,
    ) {
        check_shape(shape([batch, height, width, 16 * input_channels, 16 * output_channels, 3, 3, 1, 1]));
    }
}
