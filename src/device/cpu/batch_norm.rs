//! Batch normalisation over NHWC activations. Bound by memory: the forward pass reads the input twice (for the
//! statistics and for the result), and the backward pass reads the input and the output gradient twice.
//!
//! Statistics are computed over blocks of pixels that fit in a core's own cache: first the mean of the block, then the
//! squared deviations from it, which loses no digits even if the mean is far from zero. Blocks are combined in float64
//! as described by Chan, Golub and LeVeque (1983). Blocks depend only on the shape, so results do not depend on the
//! number of threads.

use super::activation::{Function, with_function};
use super::jobs::{self, Pieces};
use super::memory::Views;
use super::vectorised::vectorised;
use crate::device::interface::{Activation, BatchNormBackward, BatchNormForward, BatchNormMode, Gradient};
use crate::tensor::{Shape, Tensor};

/// Elements in a block of pixels.
const BLOCK: usize = 32 * 1024;

/// Channels whose sums of deviations are computed at a time.
const GROUP: usize = 128;

fn block_pixels(channels: usize) -> usize {
    (BLOCK / channels).max(8)
}

pub(super) fn statistics_rows(shape: Shape) -> usize {
    shape.rows().div_ceil(block_pixels(shape.channels()))
}

/// Floats of workspace for the backward pass: partial sums, then three coefficients per channel.
pub(super) fn workspace_len(shape: Shape) -> usize {
    (statistics_rows(shape) * 2 + 3) * shape.channels()
}

pub(super) fn statistics(input: &[f32], channels: usize, statistics: &mut [f32]) {
    let block = block_pixels(channels) * channels;
    jobs::for_each_piece(statistics, 2 * channels, |index, row| {
        let (sum, squares) = row.split_at_mut(channels);
        block_statistics(&input[index * block..input.len().min((index + 1) * block)], sum, squares);
    });
}

vectorised! {
    fn block_statistics(block: &[f32], sum: &mut [f32], squares: &mut [f32]) {
        let channels = sum.len();
        sum.fill(0.0);
        for pixel in block.chunks_exact(channels) {
            for (sum, value) in sum.iter_mut().zip(pixel) {
                *sum += value;
            }
        }
        let pixels = (block.len() / channels) as f32;
        squares.fill(0.0);
        for start in (0..channels).step_by(GROUP) {
            let group = start..(start + GROUP).min(channels);
            let (sum, squares) = (&mut sum[group.clone()], &mut squares[group.clone()]);
            let mut means = [0.0; GROUP];
            means.iter_mut().zip(sum.iter()).for_each(|(mean, sum)| *mean = sum / pixels);
            // A long sum of large values has a rounding error, which equals the sum of the deviations from the computed
            // mean.
            let mut errors = [0.0; GROUP];
            for pixel in block.chunks_exact(channels) {
                let accumulators = squares.iter_mut().zip(&mut errors);
                for (((squares, error), value), mean) in accumulators.zip(&pixel[group.clone()]).zip(&means) {
                    let deviation = value - mean;
                    *error += deviation;
                    *squares += deviation * deviation;
                }
            }
            for ((sum, squares), error) in sum.iter_mut().zip(squares).zip(&errors) {
                *sum += error;
                let excess = error * error / pixels;
                *squares -= if *squares < excess { *squares } else { excess };
            }
        }
    }
}

/// Mean and biased variance of one channel, from the partial sums of the blocks.
fn combine(statistics: &[f32], channels: usize, channel: usize, pixels: usize) -> (f64, f64) {
    let rows = || statistics.chunks_exact(2 * channels);
    let mean = rows().map(|row| f64::from(row[channel])).sum::<f64>() / pixels as f64;
    let mut remaining = pixels;
    let squares: f64 = rows()
        .map(|row| {
            let count = block_pixels(channels).min(remaining);
            remaining -= count;
            let deviation = f64::from(row[channel]) / count as f64 - mean;
            f64::from(row[channels + channel]) + count as f64 * deviation * deviation
        })
        .sum();
    (mean, squares / pixels as f64)
}

pub(super) fn forward(arguments: &BatchNormForward) {
    let BatchNormForward { mode, activation, epsilon, momentum, .. } = *arguments;
    let shape = arguments.input.shape();
    let (channels, pixels) = (shape.channels(), shape.rows());
    let mut views = Views::default();
    let input = views.read::<f32>(arguments.input);
    let (weight, bias) = (views.read::<f32>(arguments.weight), views.read::<f32>(arguments.bias));
    let saved_statistics = views.write::<f32>(arguments.saved_statistics);
    let output = views.write::<f32>(arguments.output);
    let residual = arguments.residual.map(|tensor| views.read::<f32>(tensor));
    match (mode, arguments.statistics) {
        (BatchNormMode::Training, Some(statistics)) => {
            let statistics = views.read::<f32>(statistics);
            let running_mean = views.write::<f32>(arguments.running_mean);
            let running_variance = views.write::<f32>(arguments.running_variance);
            for channel in 0..channels {
                let (mean, variance) = combine(statistics, channels, channel, pixels);
                saved_statistics[channel] = mean as f32;
                saved_statistics[channels + channel] = (1.0 / (variance + f64::from(epsilon)).sqrt()) as f32;
                let unbiased = variance * pixels as f64 / (pixels - 1) as f64;
                let update = |running: &mut f32, value: f64| {
                    *running = (f64::from(*running) * (1.0 - f64::from(momentum)) + value * f64::from(momentum)) as f32;
                };
                update(&mut running_mean[channel], mean);
                update(&mut running_variance[channel], unbiased);
            }
        }
        (BatchNormMode::Training, None) => panic!("batch_norm in training mode needs statistics"),
        (BatchNormMode::Running, _) => {
            let running = (views.read(arguments.running_mean), views.read(arguments.running_variance));
            running_moments(running, epsilon, saved_statistics);
        }
    }
    let (scale, shift) = factors(saved_statistics, weight, bias);
    let block = block_pixels(channels) * channels;
    jobs::for_each_piece(output, block, |index, output| {
        let range = index * block..index * block + output.len();
        match residual {
            Some(residual) => {
                normalise_and_add(output, &input[range.clone()], &residual[range], scale, shift, activation)
            }
            None => normalise(output, &input[range], scale, shift, activation),
        }
    });
}

/// Mean and inverse deviation in running mode.
fn running_moments((mean, variance): (&[f32], &[f32]), epsilon: f32, saved_statistics: &mut [f32]) {
    let (means, rest) = saved_statistics.split_at_mut(mean.len());
    means.copy_from_slice(mean);
    for (inverse_deviation, &variance) in rest.iter_mut().zip(variance) {
        *inverse_deviation = (1.0 / (f64::from(variance) + f64::from(epsilon)).sqrt()) as f32;
    }
}

/// Computes scale and shift from the moments in `saved_statistics`, and stores them there.
fn factors<'a>(saved_statistics: &'a mut [f32], weight: &[f32], bias: &[f32]) -> (&'a [f32], &'a [f32]) {
    let channels = weight.len();
    let (moments, affine) = saved_statistics.split_at_mut(2 * channels);
    let (scale, shift) = affine.split_at_mut(channels);
    for channel in 0..channels {
        scale[channel] = weight[channel] * moments[channels + channel];
        shift[channel] = bias[channel] - moments[channel] * scale[channel];
    }
    (scale, shift)
}

/// The batch norm that follows a convolution, in running mode, applied to the output while it is still in the cache.
pub struct Finish<'a> {
    scale: &'a [f32],
    shift: &'a [f32],
    residual: Option<&'a [f32]>,
    activation: Activation,
}

impl<'a> Finish<'a> {
    pub(super) fn new(arguments: &BatchNormForward<'a>, views: &mut Views) -> Self {
        assert!(arguments.mode == BatchNormMode::Running, "batch statistics need the whole batch");
        let saved_statistics = views.write::<f32>(arguments.saved_statistics);
        let running = (views.read(arguments.running_mean), views.read(arguments.running_variance));
        running_moments(running, arguments.epsilon, saved_statistics);
        let (scale, shift) = factors(saved_statistics, views.read(arguments.weight), views.read(arguments.bias));
        let residual = arguments.residual.map(|tensor| views.read(tensor));
        Finish { scale, shift, residual, activation: arguments.activation }
    }

    /// Normalises whole pixels, the first of which begins at `place` of the tensor.
    pub(super) fn pixels(&self, values: &mut [f32], place: usize) {
        match self.residual {
            Some(residual) => {
                let residual = &residual[place..place + values.len()];
                normalise_in_place_and_add(values, residual, self.scale, self.shift, self.activation);
            }
            None => normalise_in_place(values, self.scale, self.shift, self.activation),
        }
    }

    /// Normalises one value, at `place` of the tensor.
    pub(super) fn value(&self, value: f32, channel: usize, place: usize) -> f32 {
        let value = affine(value, self.scale[channel], self.shift[channel]);
        let value = self.residual.map_or(value, |residual| value + residual[place]);
        with_function!(self.activation, |function| function.apply(value))
    }
}

/// The only function that normalises a value, so that the backward pass computes the same mask, bit for bit.
#[inline(always)]
fn affine(value: f32, scale: f32, shift: f32) -> f32 {
    value * scale + shift
}

vectorised! {
    fn normalise(output: &mut [f32], input: &[f32], scale: &[f32], shift: &[f32], activation: Activation) {
        let channels = scale.len();
        with_function!(activation, |function| {
            for (output, input) in output.chunks_exact_mut(channels).zip(input.chunks_exact(channels)) {
                for channel in 0..channels {
                    output[channel] = function.apply(affine(input[channel], scale[channel], shift[channel]));
                }
            }
        });
    }

    fn normalise_in_place(values: &mut [f32], scale: &[f32], shift: &[f32], activation: Activation) {
        let channels = scale.len();
        with_function!(activation, |function| {
            for pixel in values.chunks_exact_mut(channels) {
                for channel in 0..channels {
                    pixel[channel] = function.apply(affine(pixel[channel], scale[channel], shift[channel]));
                }
            }
        });
    }

    fn normalise_in_place_and_add(
        values: &mut [f32],
        residual: &[f32],
        scale: &[f32],
        shift: &[f32],
        activation: Activation,
    ) {
        let channels = scale.len();
        with_function!(activation, |function| {
            for (pixel, residual) in values.chunks_exact_mut(channels).zip(residual.chunks_exact(channels)) {
                for channel in 0..channels {
                    let value = affine(pixel[channel], scale[channel], shift[channel]) + residual[channel];
                    pixel[channel] = function.apply(value);
                }
            }
        });
    }

    fn normalise_and_add(
        output: &mut [f32],
        input: &[f32],
        residual: &[f32],
        scale: &[f32],
        shift: &[f32],
        activation: Activation,
    ) {
        let channels = scale.len();
        with_function!(activation, |function| {
            let pixels = output.chunks_exact_mut(channels).zip(input.chunks_exact(channels));
            for ((output, input), residual) in pixels.zip(residual.chunks_exact(channels)) {
                for channel in 0..channels {
                    let value = affine(input[channel], scale[channel], shift[channel]) + residual[channel];
                    output[channel] = function.apply(value);
                }
            }
        });
    }
}

/// The tensor from which the backward pass computes the derivative of the activation.
#[derive(Clone, Copy)]
enum Decisive<'a> {
    /// The argument of the activation, recomputed from the input.
    Argument,
    /// The output, `[pixels, channels]`.
    Output(&'a [f32]),
}

impl<'a> Decisive<'a> {
    fn block(self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::Output(output) => Self::Output(&output[range]),
            Self::Argument => Self::Argument,
        }
    }
}

pub(super) fn backward<'a>(arguments: &BatchNormBackward<'a>) {
    let shape = arguments.output_gradient.shape();
    let (channels, pixels) = (shape.channels(), shape.rows());
    let mut views = Views::default();
    let output_gradient = views.read::<f32>(arguments.output_gradient);
    // If the plan kept no input, the code below only uses its length.
    let input = arguments.input.map_or(output_gradient, |tensor| views.read(tensor));
    let weight = views.read::<f32>(arguments.weight);
    let saved_statistics = views.read::<f32>(arguments.saved_statistics);
    let workspace = views.workspace(arguments.workspace);
    let activation = arguments.activation;
    let decisive = match arguments.output {
        Some(output) => Decisive::Output(views.read(output)),
        None => Decisive::Argument,
    };
    let block = block_pixels(channels) * channels;
    let range = |index: usize| index * block..(index * block + block).min(input.len());

    let training = arguments.mode == BatchNormMode::Training;
    let needs_sums = arguments.weight_gradient.is_some()
        || arguments.bias_gradient.is_some()
        || (training && arguments.input_gradient.is_some());
    let (coefficients, partial) = workspace.split_at_mut(3 * channels);
    let partial = &mut partial[..statistics_rows(shape) * 2 * channels];
    if needs_sums {
        jobs::for_each_piece(partial, 2 * channels, |index, row| {
            let (biases, weights) = row.split_at_mut(channels);
            let range = range(index);
            let (input, gradient) = (&input[range.clone()], &output_gradient[range.clone()]);
            block_sums(input, gradient, activation, decisive.block(range), saved_statistics, biases, weights);
        });
    }
    let mut weight_gradient = arguments.weight_gradient.map(|tensor| views.write::<f32>(tensor));
    let mut bias_gradient = arguments.bias_gradient.map(|tensor| views.write::<f32>(tensor));
    for channel in 0..channels {
        let mut sums = [0.0; 2];
        if needs_sums {
            for row in partial.chunks_exact(2 * channels) {
                sums[0] += f64::from(row[channel]);
                sums[1] += f64::from(row[channels + channel]);
            }
        }
        let [bias_sum, weight_sum] = sums;
        let inverse_deviation = f64::from(saved_statistics[channels + channel]);
        if let Some(gradient) = &mut weight_gradient {
            gradient[channel] = weight_sum as f32;
        }
        if let Some(gradient) = &mut bias_gradient {
            gradient[channel] = bias_sum as f32;
        }
        let share = if training { 1.0 / pixels as f64 } else { 0.0 };
        coefficients[channel] = (f64::from(weight[channel]) * inverse_deviation) as f32;
        coefficients[channels + channel] = (bias_sum * share) as f32;
        coefficients[2 * channels + channel] = (weight_sum * inverse_deviation * share) as f32;
    }

    let coefficients = &*coefficients;
    let mut pieces = |target: &'a Gradient| Pieces::new(views.write::<f32>(&target.tensor), block);
    let inputs = arguments.input_gradient.map(|target| (pieces(target), target.accumulate));
    let residuals = arguments.residual_gradient.map(|target| (pieces(target), target.accumulate));
    let targets = inputs.iter().chain(&residuals).next().map_or(0, |(pieces, _)| pieces.count());
    jobs::for_each(targets, |index| {
        let range = range(index);
        let (input, gradient) = (&input[range.clone()], &output_gradient[range.clone()]);
        let decisive = decisive.block(range);
        if let Some((pieces, accumulate)) = &residuals {
            // SAFETY: each job has its own index.
            let target = unsafe { pieces.piece(index) };
            residual_gradients(target, *accumulate, input, gradient, activation, decisive, saved_statistics);
        }
        if let Some((pieces, accumulate)) = &inputs {
            // SAFETY: as above.
            let target = unsafe { pieces.piece(index) };
            input_gradients(target, *accumulate, input, gradient, activation, decisive, saved_statistics, coefficients);
        }
    });
}

/// Calls `function(output, backward, arguments...)`, where `backward(channel, gradient, input, output)` returns the
/// gradient with respect to the argument of the activation at a channel of a pixel. There is one copy of the loop for
/// each activation and mask, so that the compiler vectorises each.
macro_rules! behind_activation {
    ($activation:expr, $decisive:expr, $saved_statistics:ident, $gradient:ident, $function:ident($($argument:expr),*)) => {
        with_function!($activation, |activation| match $decisive {
            Decisive::Argument => {
                let channels = $saved_statistics.len() / 4;
                let scale = &$saved_statistics[2 * channels..][..channels];
                let shift = &$saved_statistics[3 * channels..][..channels];
                let backward = |channel: usize, gradient: &[f32], input: &[f32], _: &[f32]| {
                    activation.backward(affine(input[channel], scale[channel], shift[channel]), gradient[channel])
                };
                $function($gradient, backward, $($argument),*)
            }
            Decisive::Output(output) => {
                let backward = |channel: usize, gradient: &[f32], _: &[f32], output: &[f32]| {
                    activation.backward(output[channel], gradient[channel])
                };
                $function(output, backward, $($argument),*)
            }
        })
    };
}

vectorised! {
    fn block_sums(
        input: &[f32],
        gradient: &[f32],
        activation: Activation,
        decisive: Decisive,
        saved_statistics: &[f32],
        biases: &mut [f32],
        weights: &mut [f32],
    ) {
        behind_activation!(
            activation,
            decisive,
            saved_statistics,
            gradient,
            add_sums(input, gradient, saved_statistics, biases, weights)
        );
    }

    fn input_gradients(
        target: &mut [f32],
        accumulate: bool,
        input: &[f32],
        gradient: &[f32],
        activation: Activation,
        decisive: Decisive,
        saved_statistics: &[f32],
        coefficients: &[f32],
    ) {
        if accumulate {
            let put = |target: &mut f32, value: f32| *target += value;
            behind_activation!(
                activation,
                decisive,
                saved_statistics,
                gradient,
                put_input_gradients(target, put, input, gradient, saved_statistics, coefficients)
            );
        } else {
            let put = |target: &mut f32, value: f32| *target = value;
            behind_activation!(
                activation,
                decisive,
                saved_statistics,
                gradient,
                put_input_gradients(target, put, input, gradient, saved_statistics, coefficients)
            );
        }
    }

    fn residual_gradients(
        target: &mut [f32],
        accumulate: bool,
        input: &[f32],
        gradient: &[f32],
        activation: Activation,
        decisive: Decisive,
        saved_statistics: &[f32],
    ) {
        if accumulate {
            let put = |target: &mut f32, value: f32| *target += value;
            behind_activation!(
                activation,
                decisive,
                saved_statistics,
                gradient,
                put_residual_gradients(target, put, input, gradient, saved_statistics)
            );
        } else {
            let put = |target: &mut f32, value: f32| *target = value;
            behind_activation!(
                activation,
                decisive,
                saved_statistics,
                gradient,
                put_residual_gradients(target, put, input, gradient, saved_statistics)
            );
        }
    }
}

#[inline(always)]
fn add_sums(
    output: &[f32],
    backward: impl Fn(usize, &[f32], &[f32], &[f32]) -> f32,
    input: &[f32],
    gradient: &[f32],
    saved_statistics: &[f32],
    biases: &mut [f32],
    weights: &mut [f32],
) {
    let channels = saved_statistics.len() / 4;
    let (mean, inverse_deviation) = (&saved_statistics[..channels], &saved_statistics[channels..][..channels]);
    let (biases, weights) = (&mut biases[..channels], &mut weights[..channels]);
    biases.fill(0.0);
    weights.fill(0.0);
    let pixels = gradient.chunks_exact(channels).zip(input.chunks_exact(channels)).zip(output.chunks_exact(channels));
    for ((gradient, input), output) in pixels {
        for channel in 0..channels {
            let gradient = backward(channel, gradient, input, output);
            biases[channel] += gradient;
            weights[channel] += gradient * (input[channel] - mean[channel]) * inverse_deviation[channel];
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn put_input_gradients(
    output: &[f32],
    backward: impl Fn(usize, &[f32], &[f32], &[f32]) -> f32,
    target: &mut [f32],
    put: impl Fn(&mut f32, f32),
    input: &[f32],
    gradient: &[f32],
    saved_statistics: &[f32],
    coefficients: &[f32],
) {
    let channels = saved_statistics.len() / 4;
    let mean = &saved_statistics[..channels];
    let [scale, bias_share, weight_share] = [0, 1, 2].map(|part| &coefficients[part * channels..][..channels]);
    let pixels = gradient.chunks_exact(channels).zip(input.chunks_exact(channels)).zip(output.chunks_exact(channels));
    for (target, ((gradient, input), output)) in target.chunks_exact_mut(channels).zip(pixels) {
        for channel in 0..channels {
            let gradient = backward(channel, gradient, input, output);
            let deviation = input[channel] - mean[channel];
            let centred = gradient - bias_share[channel] - deviation * weight_share[channel];
            put(&mut target[channel], scale[channel] * centred);
        }
    }
}

#[inline(always)]
fn put_residual_gradients(
    output: &[f32],
    backward: impl Fn(usize, &[f32], &[f32], &[f32]) -> f32,
    target: &mut [f32],
    put: impl Fn(&mut f32, f32),
    input: &[f32],
    gradient: &[f32],
    saved_statistics: &[f32],
) {
    let channels = saved_statistics.len() / 4;
    let pixels = gradient.chunks_exact(channels).zip(input.chunks_exact(channels)).zip(output.chunks_exact(channels));
    for (target, ((gradient, input), output)) in target.chunks_exact_mut(channels).zip(pixels) {
        for (channel, target) in target.iter_mut().enumerate() {
            put(target, backward(channel, gradient, input, output));
        }
    }
}

/// Computes the statistics of a tensor.
pub(super) fn statistics_of(input: &Tensor, target: &Tensor) {
    let mut views = Views::default();
    statistics(views.read(input), input.shape().channels(), views.write(target));
}
