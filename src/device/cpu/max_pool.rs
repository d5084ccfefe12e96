//! Maximum over windows, NHWC. Bound by memory: each pass moves input and output once, and one byte per output element.
//!
//! Both directions gather: a group of channels of one pixel stays in registers during a loop over the taps of its
//! window, or over the windows that contain it. So every float is written once, and the rows of an image are
//! independent jobs.

use super::jobs::{self, Pieces};
use super::memory::Views;
use super::vectorised::vectorised;
use crate::device::interface::{Gradient, MaxPoolWindow};
use crate::tensor::Tensor;

/// Channels that are kept in registers together.
const GROUP: usize = 16;

/// The maximum number of taps in a window, and so of windows over a pixel, whose positions are kept on the stack.
const MOST_TAPS: usize = 15 * 15;

/// One tap of a window: its index in the window, and the offset of the pixel under it.
#[derive(Clone, Copy, Default)]
struct Tap {
    index: u32,
    start: usize,
}

fn activation(tensor: &Tensor) -> [usize; 4] {
    tensor.shape().dims().try_into().expect("max_pool works on activations")
}

/// The part of a window that output row or column `output` covers: `(index in the window, input index)`.
fn taps(window: MaxPoolWindow, output: usize, extent: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..window.size).filter_map(move |tap| {
        let input = (output * window.stride + tap).checked_sub(window.padding)?;
        (input < extent).then_some((tap, input))
    })
}

/// The windows that contain input row or column `input`: `(index in the window, output index)`, in order of outputs.
fn windows(window: MaxPoolWindow, input: usize, outputs: usize) -> impl Iterator<Item = (usize, usize)> {
    let first = (input + window.padding + 1).saturating_sub(window.size).div_ceil(window.stride);
    let last = ((input + window.padding) / window.stride + 1).min(outputs);
    (first..last).map(move |output| (input + window.padding - output * window.stride, output))
}

pub(super) fn forward(window: MaxPoolWindow, input: &Tensor, output: &Tensor, indices: Option<&Tensor>) {
    let [_, height, width, channels] = activation(input);
    let [_, output_height, output_width, _] = activation(output);
    let mut views = Views::default();
    let input = views.read::<f32>(input);
    let output = views.write::<f32>(output);
    let row_length = output_width * channels;
    let run = |index: usize, output: &mut [f32], indices: &mut [u8]| {
        let (image, output_row) = (index / output_height, index % output_height);
        let mut found = [Tap::default(); MOST_TAPS];
        for output_column in 0..output_width {
            let mut count = 0;
            for (row_tap, row) in taps(window, output_row, height) {
                for (column_tap, column) in taps(window, output_column, width) {
                    let start = ((image * height + row) * width + column) * channels;
                    found[count] = Tap { index: (row_tap * window.size + column_tap) as u32, start };
                    count += 1;
                }
            }
            let range = output_column * channels..(output_column + 1) * channels;
            let indices = if indices.is_empty() { &mut [] } else { &mut indices[range.clone()] };
            largest(input, &found[..count], &mut output[range], indices);
        }
    };
    match indices.map(|tensor| Pieces::new(views.write::<u8>(tensor), row_length)) {
        Some(indices) => jobs::for_each_piece(output, row_length, |index, output| {
            // SAFETY: each job has its own index.
            run(index, output, unsafe { indices.piece(index) });
        }),
        None => jobs::for_each_piece(output, row_length, |index, output| run(index, output, &mut [])),
    }
}

pub(super) fn backward(window: MaxPoolWindow, indices: &Tensor, output_gradient: &Tensor, target: &Gradient) {
    let [_, height, width, channels] = activation(&target.tensor);
    let [_, output_height, output_width, _] = activation(output_gradient);
    let mut views = Views::default();
    let indices = views.read::<u8>(indices);
    let gradient = views.read::<f32>(output_gradient);
    let accumulate = target.accumulate;
    jobs::for_each_piece(views.write::<f32>(&target.tensor), width * channels, |index, target_row| {
        let (image, row) = (index / height, index % height);
        let mut found = [Tap::default(); MOST_TAPS];
        for (column, pixel) in target_row.chunks_exact_mut(channels).enumerate() {
            let mut count = 0;
            for (row_tap, output_row) in windows(window, row, output_height) {
                for (column_tap, output_column) in windows(window, column, output_width) {
                    let start = ((image * output_height + output_row) * output_width + output_column) * channels;
                    found[count] = Tap { index: (row_tap * window.size + column_tap) as u32, start };
                    count += 1;
                }
            }
            if !accumulate {
                pixel.fill(0.0);
            }
            collect(gradient, indices, &found[..count], pixel);
        }
    });
}

vectorised! {
    /// The largest value under the taps and, unless `indices` is empty, the index of the first tap with that value. A
    /// NaN is larger than any number, and the last NaN wins, as in PyTorch.
    fn largest(input: &[f32], taps: &[Tap], output: &mut [f32], indices: &mut [u8]) {
        let whole = output.len() / GROUP * GROUP;
        for channel in (0..whole).step_by(GROUP) {
            largest_of_group::<GROUP>(input, taps, channel, output, indices);
        }
        for channel in whole..output.len() {
            largest_of_group::<1>(input, taps, channel, output, indices);
        }
    }

    /// Adds the gradients of the outputs whose maximum is this pixel.
    fn collect(gradient: &[f32], indices: &[u8], windows: &[Tap], target: &mut [f32]) {
        let whole = target.len() / GROUP * GROUP;
        for channel in (0..whole).step_by(GROUP) {
            collect_group::<GROUP>(gradient, indices, windows, channel, target);
        }
        for channel in whole..target.len() {
            collect_group::<1>(gradient, indices, windows, channel, target);
        }
    }
}

#[inline(always)]
fn group<T: Copy, const SIZE: usize>(values: &[T], start: usize) -> [T; SIZE] {
    *values[start..].first_chunk().expect("the group lies in the tensor")
}

#[inline(always)]
fn largest_of_group<const SIZE: usize>(
    input: &[f32],
    taps: &[Tap],
    channel: usize,
    output: &mut [f32],
    indices: &mut [u8],
) {
    let mut best = [f32::NEG_INFINITY; SIZE];
    // If nothing is larger than minus infinity, the first pixel is the maximum.
    let mut position = [taps.first().map_or(0, |tap| tap.index); SIZE];
    for tap in taps {
        let values: [f32; SIZE] = group(input, tap.start + channel);
        // Uses masks, because the compiler would turn conditions into branches.
        for lane in 0..SIZE {
            let value = values[lane];
            let wins = u32::from((value > best[lane]) | value.is_nan()).wrapping_neg();
            position[lane] = (tap.index & wins) | (position[lane] & !wins);
            best[lane] = f32::from_bits((value.to_bits() & wins) | (best[lane].to_bits() & !wins));
        }
    }
    output[channel..channel + SIZE].copy_from_slice(&best);
    if !indices.is_empty() {
        indices[channel..channel + SIZE].copy_from_slice(&position.map(|position| position as u8));
    }
}

#[inline(always)]
fn collect_group<const SIZE: usize>(
    gradient: &[f32],
    indices: &[u8],
    windows: &[Tap],
    channel: usize,
    target: &mut [f32],
) {
    let mut sums: [f32; SIZE] = group(target, channel);
    for window in windows {
        let gradients: [f32; SIZE] = group(gradient, window.start + channel);
        let indices: [u8; SIZE] = group(indices, window.start + channel);
        for lane in 0..SIZE {
            sums[lane] += if u32::from(indices[lane]) == window.index { gradients[lane] } else { 0.0 };
        }
    }
    target[channel..channel + SIZE].copy_from_slice(&sums);
}
