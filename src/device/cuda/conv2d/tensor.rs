//! Launches of `kernels/conv2d_tensor.cu`: forward and gradient of the input on tensor cores.

use super::finish::{Conv2dFinish, finished_work};
use super::geometry::Conv2dGeometry;
use crate::device::cuda::arguments::kernel_arguments;
use crate::device::cuda::batch_norm::BatchNormSums;
use crate::device::cuda::driver::{ArithmeticUnit, Work};
use crate::device::cuda::engine::{COUNTERS, Cuda};
use crate::device::cuda::statistics::{self, PIXELS_PER_BLOCK};
use crate::device::interface::{
    Activation, BatchNormForward, Conv2dForward, Conv2dInputGradient, Conv2dPass, Conv2dShape, Precision,
};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

const THREADS: usize = 128;
/// Shared memory of a step of one pixel or one channel, and the number of steps that are kept.
const STEP_BYTES: usize = 64;
const STAGES: usize = 3;
/// The filter's rows and columns are bits of half a word.
const LARGEST_FILTER: usize = 16;

kernel_arguments! {
    struct Conv2dTensorForwardArguments {
        input: u64,
        weight: u64,
        output: u64,
        statistics: u64,
        counters: u64,
        geometry: Conv2dGeometry,
        channel_tiles: i32,
    }
}

kernel_arguments! {
    struct Conv2dTensorBatchNormArguments {
        convolution: Conv2dTensorForwardArguments,
        finish: Conv2dFinish,
    }
}

kernel_arguments! {
    struct Conv2dTensorInputGradientArguments {
        output_gradient: u64,
        weight: u64,
        input_gradient: u64,
        geometry: Conv2dGeometry,
        channel_tiles: i32,
        accumulate: i32,
        reserved: i32,
    }
}

kernel_arguments! {
    struct Conv2dTensorReduceArguments {
        convolution: Conv2dTensorInputGradientArguments,
        input: u64,
        output: u64,
        saved_statistics: u64,
        sums: BatchNormSums,
        activation: Activation,
        padding: i32,
    }
}

/// Whether these kernels compute a pass. They copy 16 bytes of channels at a time, count pixels and bytes of the weight
/// in 31 bits, and each tile of channels counts its blocks by itself. Tensors begin at multiples of 16 bytes, as plans
/// and parameter groups place them.
pub(super) fn takes(cuda: &Cuda, shape: &Conv2dShape, pass: Conv2dPass) -> bool {
    let vector = match cuda.precision {
        Precision::Fp32 => return false,
        Precision::Tf32 => 4,
        Precision::Bf16 => 8,
    };
    let channels_fit = match pass {
        Conv2dPass::Forward => shape.input_channels.is_multiple_of(vector),
        Conv2dPass::InputGradient => {
            shape.input_channels.is_multiple_of(vector) && shape.output_channels.is_multiple_of(vector)
        }
        Conv2dPass::WeightGradient => return false,
    };
    let input_pixels = shape.batch * (shape.height + shape.padding) * (shape.width + shape.padding);
    let output_pixels = shape.batch * shape.output_height() * shape.output_width();
    let channels = shape.input_channels.max(shape.output_channels);
    let tiles = (input_pixels.max(output_pixels) / PIXELS_PER_BLOCK + 1) * channels.div_ceil(64);
    let counters = statistics::counters(output_pixels.div_ceil(PIXELS_PER_BLOCK)) * channels.div_ceil(64);
    let largest = [input_pixels, output_pixels, tiles, shape.weight_len() * 4].into_iter().max();
    channels_fit
        && counters <= COUNTERS
        && shape.kernel_height.max(shape.kernel_width) <= LARGEST_FILTER
        && largest.is_some_and(|largest| largest < (1 << 31) - (1 << 16))
}

/// Channels of a block. A narrow tile is estimated to take five eighths of a wide one's time: it is preferred where wide
/// ones leave too many multiprocessors idle in the last round.
fn channels_per_block(cuda: &Cuda, pixel_blocks: usize, channels: usize) -> usize {
    let multiprocessors = (cuda.capabilities.multiprocessors as usize).max(1);
    let rounds = |width: usize| (pixel_blocks * channels.div_ceil(width)).div_ceil(multiprocessors);
    if channels <= 64 || rounds(64) * 5 <= rounds(128) * 8 { 64 } else { 128 }
}

fn ring_bytes(channels: usize) -> usize {
    STAGES * (PIXELS_PER_BLOCK + channels) * STEP_BYTES
}

fn unit(cuda: &Cuda) -> ArithmeticUnit {
    match cuda.precision {
        Precision::Bf16 => ArithmeticUnit::TensorBf16,
        Precision::Tf32 | Precision::Fp32 => ArithmeticUnit::TensorTf32,
    }
}

/// Elements of the input that a window covers: with a filter smaller than the stride there are gaps.
fn covered_input(shape: &Conv2dShape) -> usize {
    let rows = shape.height.min(shape.output_height() * shape.kernel_height);
    let columns = shape.width.min(shape.output_width() * shape.kernel_width);
    shape.batch * rows * columns * shape.input_channels
}

/// With `batch_norm`, it is applied as well: [`Device::conv2d_batch_norm`](crate::device::interface::Device::conv2d_batch_norm).
pub(super) fn forward(
    cuda: &Cuda,
    shape: &Conv2dShape,
    arguments: &Conv2dForward,
    batch_norm: Option<&BatchNormForward>,
) -> Result<()> {
    let pixels = shape.batch * shape.output_height() * shape.output_width();
    let pixel_blocks = pixels.div_ceil(PIXELS_PER_BLOCK);
    let channels = channels_per_block(cuda, pixel_blocks, shape.output_channels);
    let channel_tiles = shape.output_channels.div_ceil(channels);
    let element = cuda.precision.activation_type().size();
    let statistics = arguments.statistics.map_or(0, |statistics| statistics.bytes());
    let convolution = Conv2dTensorForwardArguments {
        input: arguments.input.address(),
        weight: arguments.weight.address(),
        output: arguments.output.address(),
        statistics: arguments.statistics.map_or(0, |statistics| statistics.address()),
        counters: cuda.counters.address(),
        geometry: Conv2dGeometry::new(shape),
        channel_tiles: channel_tiles as i32,
    };
    let work = Work {
        operations: 2 * shape.multiply_adds() as u64,
        unit: unit(cuda),
        bytes_read: ((covered_input(shape) + shape.weight_len()) * element) as u64,
        bytes_written: (shape.output_len() * element + statistics) as u64,
    };
    let (grid, shared_bytes) = ([pixel_blocks * channel_tiles, 1, 1], ring_bytes(channels));
    let Some(batch_norm) = batch_norm else {
        let kernel = match (cuda.precision, channels) {
            (Precision::Bf16, 64) => "conv2d_forward_64_bf16",
            (Precision::Bf16, _) => "conv2d_forward_128_bf16",
            (_, 64) => "conv2d_forward_64_tf32",
            (_, _) => "conv2d_forward_128_tf32",
        };
        return cuda.launch(kernel, grid, THREADS, shared_bytes, &convolution, work);
    };
    let kernel = match (cuda.precision, channels) {
        (Precision::Bf16, 64) => "conv2d_batch_norm_64_bf16",
        (Precision::Bf16, _) => "conv2d_batch_norm_128_bf16",
        (_, 64) => "conv2d_batch_norm_64_tf32",
        (_, _) => "conv2d_batch_norm_128_tf32",
    };
    let finished = Conv2dTensorBatchNormArguments { convolution, finish: Conv2dFinish::new(batch_norm)? };
    cuda.launch(kernel, grid, THREADS, shared_bytes, &finished, finished_work(work, batch_norm))
}

pub(super) fn input_gradient(cuda: &Cuda, shape: &Conv2dShape, arguments: &Conv2dInputGradient) -> Result<()> {
    let classes = shape.stride * shape.stride;
    let pixel_blocks = class_pixels(shape).div_ceil(PIXELS_PER_BLOCK);
    let channels = channels_per_block(cuda, pixel_blocks * classes, shape.input_channels);
    let channel_tiles = shape.input_channels.div_ceil(channels);
    let element = cuda.precision.activation_type().size();
    let accumulate = arguments.input_gradient.accumulate;
    // Pixels that no output reads have no gradient: there is nothing to add.
    let changed = if accumulate { covered_input(shape) } else { shape.input_len() };
    let read_back = if accumulate { changed } else { 0 };
    let convolution = Conv2dTensorInputGradientArguments {
        output_gradient: arguments.output_gradient.address(),
        weight: arguments.weight.address(),
        input_gradient: arguments.input_gradient.tensor.address(),
        geometry: Conv2dGeometry::new(shape),
        channel_tiles: channel_tiles as i32,
        accumulate: i32::from(accumulate),
        reserved: 0,
    };
    let work = Work {
        operations: 2 * shape.multiply_adds() as u64,
        unit: unit(cuda),
        bytes_read: ((shape.output_len() + shape.weight_len() + read_back) * element) as u64,
        bytes_written: (changed * element) as u64,
    };
    let grid = [pixel_blocks * channel_tiles, 1, classes];
    let shared_bytes = ring_bytes(channels) + PIXELS_PER_BLOCK * size_of::<i32>();
    let Some(batch_norm) = arguments.batch_norm else {
        let kernel = match (cuda.precision, channels) {
            (Precision::Bf16, 64) => "conv2d_input_gradient_64_bf16",
            (Precision::Bf16, _) => "conv2d_input_gradient_128_bf16",
            (_, 64) => "conv2d_input_gradient_64_tf32",
            (_, _) => "conv2d_input_gradient_128_tf32",
        };
        return cuda.launch(kernel, grid, THREADS, shared_bytes, &convolution, work);
    };
    let kernel = match (cuda.precision, channels) {
        (Precision::Bf16, 64) => "conv2d_reduce_64_bf16",
        (Precision::Bf16, _) => "conv2d_reduce_128_bf16",
        (_, 64) => "conv2d_reduce_64_tf32",
        (_, _) => "conv2d_reduce_128_tf32",
    };
    let input =
        batch_norm.input.ok_or_else(|| Error::new("conv2d_reduce: the sums need the input of the batch norm"))?;
    let output = batch_norm.output.filter(|_| batch_norm.activation != Activation::None);
    let rows = statistics::rows_of(pixel_blocks * classes) * 2 * shape.input_channels * 4;
    let reduction = Conv2dTensorReduceArguments {
        convolution,
        input: input.address(),
        output: output.map_or(0, Tensor::address),
        saved_statistics: batch_norm.saved_statistics.address(),
        sums: BatchNormSums::new(cuda, batch_norm, pixel_blocks * classes, channel_tiles)?,
        activation: batch_norm.activation,
        padding: 0,
    };
    // Pixels that no output reads are masked as well.
    let read_back = if accumulate { shape.input_len() } else { 0 };
    let read = shape.output_len() + shape.weight_len() + read_back;
    let gradients = [batch_norm.weight_gradient, batch_norm.bias_gradient];
    let work = Work {
        bytes_read: (read * element + input.bytes() + output.map_or(0, Tensor::bytes) + rows) as u64,
        bytes_written: (shape.input_len() * element + rows) as u64
            + gradients.into_iter().flatten().map(|gradient| gradient.bytes() as u64).sum::<u64>(),
        ..work
    };
    cuda.launch(kernel, grid, THREADS, shared_bytes, &reduction, work)
}

/// The largest of the parity classes; blocks past the end of a smaller one return immediately, or have sums of zero.
fn class_pixels(shape: &Conv2dShape) -> usize {
    shape.batch * shape.height.div_ceil(shape.stride) * shape.width.div_ceil(shape.stride)
}

/// [`Device::reducing_workspace`](crate::device::interface::Device::reducing_workspace) of a shape that these kernels take.
pub(super) fn reducing_workspace(shape: &Conv2dShape) -> Option<usize> {
    let blocks = class_pixels(shape).div_ceil(PIXELS_PER_BLOCK) * shape.stride * shape.stride;
    let counters = statistics::counters(blocks) * shape.input_channels.div_ceil(64);
    (counters <= COUNTERS).then(|| statistics::rows_of(blocks) * 2 * shape.input_channels * 4)
}
