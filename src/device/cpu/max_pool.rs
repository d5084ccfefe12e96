//! Maximum over windows, NHWC. Bound by memory: input and output once each way, and a byte an output element.

use rayon::prelude::*;

use super::memory::Views;
use super::vectorised::vectorised;
use crate::device::{Gradient, MaxPoolWindow};
use crate::tensor::Tensor;

fn activation(tensor: &Tensor) -> [usize; 4] {
    tensor.shape().dims().try_into().expect("max_pool works on activations")
}

/// The part of a window of which output row or column `output` consists: `(index in the window, input index)`.
fn taps(window: MaxPoolWindow, output: usize, extent: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..window.size).filter_map(move |tap| {
        let input = (output * window.stride + tap).checked_sub(window.padding)?;
        (input < extent).then_some((tap, input))
    })
}

pub(super) fn forward(window: MaxPoolWindow, input: &Tensor, output: &Tensor, positions: Option<&Tensor>) {
    let [_, height, width, channels] = activation(input);
    let [_, output_height, output_width, _] = activation(output);
    let mut views = Views::default();
    let input = views.read::<f32>(input);
    let output = views.write::<f32>(output);
    let row_length = output_width * channels;
    let run = |index: usize, output: &mut [f32], positions: &mut [u8]| {
        let (image, output_row) = (index / output_height, index % output_height);
        output.fill(f32::NEG_INFINITY);
        // Where nothing is larger than minus infinity, the first pixel is the maximum.
        let first_tap = |output, extent| taps(window, output, extent).next().map_or(0, |(tap, _)| tap);
        for (output_column, positions) in positions.chunks_exact_mut(channels).enumerate() {
            let tap = first_tap(output_row, height) * window.size + first_tap(output_column, width);
            positions.fill(tap as u8);
        }
        for (row_tap, row) in taps(window, output_row, height) {
            for output_column in 0..output_width {
                for (column_tap, column) in taps(window, output_column, width) {
                    let start = ((image * height + row) * width + column) * channels;
                    let range = output_column * channels..(output_column + 1) * channels;
                    let tap = (row_tap * window.size + column_tap) as u8;
                    let input = &input[start..start + channels];
                    if positions.is_empty() {
                        larger(&mut output[range], input);
                    } else {
                        larger_with_position(&mut output[range.clone()], &mut positions[range], input, tap);
                    }
                }
            }
        }
    };
    let rows = output.par_chunks_mut(row_length).enumerate();
    match positions.map(|tensor| views.write::<u8>(tensor)) {
        Some(positions) => rows
            .zip(positions.par_chunks_mut(row_length))
            .for_each(|((index, output), positions)| run(index, output, positions)),
        None => rows.for_each(|(index, output)| run(index, output, &mut [])),
    }
}

vectorised! {
    /// A NaN wins and stays, as in torch.
    fn larger(best: &mut [f32], input: &[f32]) {
        for (best, &value) in best.iter_mut().zip(input) {
            if value > *best || value.is_nan() {
                *best = value;
            }
        }
    }

    fn larger_with_position(best: &mut [f32], positions: &mut [u8], input: &[f32], tap: u8) {
        for ((best, position), &value) in best.iter_mut().zip(positions).zip(input) {
            let wins = value > *best || value.is_nan();
            *position = if wins { tap } else { *position };
            *best = if wins { value } else { *best };
        }
    }

    /// Adds the gradient of those outputs whose maximum was at this tap.
    fn collect(target: &mut [f32], gradient: &[f32], positions: &[u8], tap: u8) {
        for ((target, gradient), position) in target.iter_mut().zip(gradient).zip(positions) {
            *target += if *position == tap { *gradient } else { 0.0 };
        }
    }
}

pub(super) fn backward(window: MaxPoolWindow, positions: &Tensor, output_gradient: &Tensor, target: &Gradient) {
    let [_, height, width, channels] = activation(&target.tensor);
    let [_, output_height, output_width, _] = activation(output_gradient);
    let mut views = Views::default();
    let positions = views.read::<u8>(positions);
    let output_gradient = views.read::<f32>(output_gradient);
    let input_gradient = views.write::<f32>(&target.tensor);
    let accumulate = target.accumulate;
    let outputs = output_height * output_width * channels;
    let images = output_gradient.par_chunks(outputs).zip(positions.par_chunks(outputs));
    input_gradient.par_chunks_mut(height * width * channels).zip(images).for_each(|(target_image, image)| {
        let (gradient, positions) = image;
        if !accumulate {
            target_image.fill(0.0);
        }
        for output_row in 0..output_height {
            for (row_tap, row) in taps(window, output_row, height) {
                for output_column in 0..output_width {
                    for (column_tap, column) in taps(window, output_column, width) {
                        let source = (output_row * output_width + output_column) * channels;
                        let source = source..source + channels;
                        let start = (row * width + column) * channels;
                        collect(
                            &mut target_image[start..start + channels],
                            &gradient[source.clone()],
                            &positions[source],
                            (row_tap * window.size + column_tap) as u8,
                        );
                    }
                }
            }
        }
    });
}
