//! Forward convolution with few output pixels and many weights: one image in the deep layers of a network.
//!
//! `direct.rs` copies the weights into strips and multiplies pixels by them. For a 7 x 7 map with 512 channels, that
//! copy moves 9.4 MB for 49 pixels and takes longer than the product. Here the roles are exchanged: the taps of the
//! pixels are copied into strips (4608 x 49 floats), and the weights, read in place, are the left matrix, whose rows
//! are output channels. The product is transposed: the pixels of one channel are contiguous. It is transposed back when
//! it is stored.
//!
//! Bound by reading the weights once: 9.4 MB at memory speed. Groups of channels that fit in the L2 cache are
//! multiplied by every strip before the next group.

use super::batch_norm::Finish;
use super::gemm::{self, Grid, Order, Product, WIDEST_STRIP};
use super::jobs::{self, Shared, lines};
use super::simd::Level;
use crate::device::conv2d::Conv2dShape;

/// The largest number of output pixels in the batch. With more, copying the weights pays off.
const PIXELS: usize = 224;
/// The smallest number of weights. With fewer, the copy is cheap.
const WEIGHTS: usize = 1 << 16;
/// Output channels per job: two groups of rows of the widest kernel.
const CHANNELS: usize = 28;

/// Whether this file computes the forward pass of the shape.
pub fn suits(shape: &Conv2dShape) -> bool {
    pixels(shape) <= PIXELS && shape.weight_len() >= WEIGHTS
}

fn pixels(shape: &Conv2dShape) -> usize {
    shape.batch * shape.output_height() * shape.output_width()
}

fn depth(shape: &Conv2dShape) -> usize {
    shape.kernel_height * shape.kernel_width * shape.input_channels
}

fn packed_len(shape: &Conv2dShape) -> usize {
    lines(depth(shape) * pixels(shape).next_multiple_of(WIDEST_STRIP))
}

/// Floats of workspace.
pub fn workspace(shape: &Conv2dShape) -> usize {
    packed_len(shape) + jobs::scratch_total(CHANNELS * WIDEST_STRIP)
}

/// Computes the output from the input and the weight.
pub fn forward(
    level: Level,
    shape: &Conv2dShape,
    input: &[f32],
    weight: &[f32],
    output: &mut [f32],
    finish: Option<&Finish>,
    workspace: &mut [f32],
) {
    let strip = gemm::strip(level);
    let (pixels, depth, channels) = (pixels(shape), depth(shape), shape.output_channels);
    let strips = pixels.div_ceil(strip);
    let (packed, scratch) = workspace.split_at_mut(packed_len(shape));
    let packed = Shared(packed.as_mut_ptr());
    // `packed[pixel / strip][tap][pixel % strip]`. Each job copies one tap of one strip.
    let taps = shape.kernel_height * shape.kernel_width;
    let pack = |job: usize| {
        let (index, tap) = (job / taps, job % taps);
        let len = shape.input_channels * strip;
        // SAFETY: each job writes its own part of `packed`, which has space for whole strips.
        let target = unsafe { std::slice::from_raw_parts_mut(packed.at((index * taps + tap) * len), len) };
        pack_tap(shape, input, index * strip, strip, tap, target);
    };
    let output = Shared(output.as_mut_ptr());
    let multiply = |job: usize, products: &mut [f32]| {
        let first = job * CHANNELS;
        let count = CHANNELS.min(channels - first);
        for index in 0..strips {
            // SAFETY: `weight` has `depth` floats for each of the `count` channels, `packed` has `depth` strips from
            // here on, and `products` has space for `count` strips.
            unsafe {
                gemm::multiply(
                    level,
                    &Product {
                        rows: count,
                        columns: strip,
                        segments: 1,
                        depth,
                        left: weight[first * depth..].as_ptr(),
                        left_order: Order::Rows(Grid::even(depth)),
                        left_segment: 0,
                        right: packed.at(index * depth * strip),
                        result: products.as_mut_ptr(),
                        result_rows: Grid::even(strip),
                        accumulate: false,
                    },
                );
            }
            for lane in 0..strip.min(pixels - index * strip) {
                let pixel = index * strip + lane;
                for channel in 0..count {
                    let (value, place) = (products[channel * strip + lane], pixel * channels + first + channel);
                    let value = finish.map_or(value, |finish| finish.value(value, first + channel, place));
                    // SAFETY: the address is inside the output, and only this job writes its channels.
                    unsafe { output.at(place).write(value) };
                }
            }
        }
    };
    let jobs = [strips * taps, channels.div_ceil(CHANNELS)];
    jobs::run_phases(
        2,
        |phase| jobs[phase],
        scratch,
        CHANNELS * WIDEST_STRIP,
        |phase, job, scratch| match phase {
            0 => pack(job),
            _ => multiply(job, scratch),
        },
    );
}

/// Writes `[channel][lane]`: the input under one tap for each pixel starting at `first`, and zero outside the image and
/// beyond the last pixel.
fn pack_tap(shape: &Conv2dShape, input: &[f32], first: usize, strip: usize, tap: usize, target: &mut [f32]) {
    let (rows, columns) = (shape.output_height(), shape.output_width());
    let (tap_row, tap_column) = (tap / shape.kernel_width, tap % shape.kernel_width);
    for lane in 0..strip {
        let pixel = first + lane;
        let (image, row, column) = (pixel / (rows * columns), pixel / columns % rows, pixel % columns);
        let y = (row * shape.stride + tap_row).checked_sub(shape.padding).filter(|&y| y < shape.height);
        let x = (column * shape.stride + tap_column).checked_sub(shape.padding).filter(|&x| x < shape.width);
        match y.zip(x).filter(|_| image < shape.batch) {
            Some((y, x)) => {
                let from = ((image * shape.height + y) * shape.width + x) * shape.input_channels;
                let values = &input[from..from + shape.input_channels];
                for (target, &value) in target[lane..].iter_mut().step_by(strip).zip(values) {
                    *target = value;
                }
            }
            None => target[lane..].iter_mut().step_by(strip).for_each(|target| *target = 0.0),
        }
    }
}
