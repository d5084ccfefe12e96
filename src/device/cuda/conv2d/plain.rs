//! Launches of `kernels/conv2d.cu`: float32 arithmetic on either storage type, any shape.

use super::finish::{Conv2dFinish, finished_work};
use super::geometry::Conv2dGeometry;
use crate::device::cuda::arguments::kernel_arguments;
use crate::device::cuda::driver::{ArithmeticUnit, Work};
use crate::device::cuda::engine::{COUNTERS, Cuda, WORKERS, of_type};
use crate::device::cuda::statistics::{self, PIXELS_PER_BLOCK};
use crate::device::interface::{
    BatchNormForward, Conv2dForward, Conv2dInputGradient, Conv2dPass, Conv2dShape, Conv2dWeightGradient,
};
use crate::error::{Error, Result};
use crate::tensor::{ElementType, Tensor};

const THREADS: usize = 128;
/// A tile of the result.
const ROWS: usize = PIXELS_PER_BLOCK;
const COLUMNS: usize = 64;
/// Depth of a step of the weight gradient: the pixels of every split but the last are a multiple of it.
const DEPTH: usize = 8;
/// Blocks that a multiprocessor can hold at once.
const BLOCKS_PER_MULTIPROCESSOR: usize = 3;
/// With more splits, the addition of their sums, by one block per tile, takes longer than they save.
const MOST_SPLITS: usize = 64;
/// Fewer pixels per split are not worth the traffic of its sums.
const LEAST_PIXELS_PER_SPLIT: usize = 128;

kernel_arguments! {
    struct Conv2dForwardArguments {
        input: u64,
        weight: u64,
        output: u64,
        statistics: u64,
        counters: u64,
        geometry: Conv2dGeometry,
        column_tiles: i32,
        vectors: i32,
        result_vectors: i32,
    }
}

kernel_arguments! {
    struct Conv2dBatchNormArguments {
        convolution: Conv2dForwardArguments,
        finish: Conv2dFinish,
    }
}

kernel_arguments! {
    struct Conv2dInputGradientArguments {
        output_gradient: u64,
        weight: u64,
        input_gradient: u64,
        geometry: Conv2dGeometry,
        column_tiles: i32,
        accumulate: i32,
        vectors: i32,
        result_vectors: i32,
        reserved: i32,
    }
}

kernel_arguments! {
    struct Conv2dWeightGradientArguments {
        input: u64,
        output_gradient: u64,
        weight_gradient: u64,
        partial: u64,
        counters: u64,
        geometry: Conv2dGeometry,
        column_tiles: i32,
        pixels_per_split: i32,
        vectors: i32,
        column_vectors: i32,
        reserved: i32,
    }
}

fn output_pixels(shape: &Conv2dShape) -> usize {
    shape.batch * shape.output_height() * shape.output_width()
}

/// Rows and columns of the weight's matrix: `[K, R S C]`.
fn depth(shape: &Conv2dShape) -> usize {
    shape.kernel_height * shape.kernel_width * shape.input_channels
}

/// The kernels count pixels, rows of the weight and steps in 32 bits, elements in 64.
fn check(shape: &Conv2dShape) -> Result<()> {
    let reached = (shape.height + 2 * shape.padding) * (shape.width + 2 * shape.padding);
    let largest = (shape.batch * reached).max(output_pixels(shape)).max(depth(shape));
    let largest = largest.max(shape.output_channels * shape.kernel_height * shape.kernel_width);
    // Taps are added to rows far outside the image.
    if largest >= (1 << 31) - (1 << 16) || shape.kernel_height.max(shape.kernel_width) >= 1 << 20 {
        return Err(Error::new(format!("a convolution of {shape:?} is too large")).hint("use smaller batches"));
    }
    Ok(())
}

/// Whether four neighbouring channels can be accessed at once: groups of four do not cross a pixel.
fn vectors(channels: usize, tensors: &[&Tensor]) -> bool {
    let aligned = |tensor: &&Tensor| tensor.address().is_multiple_of(4 * tensor.element_type().size() as u64);
    channels.is_multiple_of(4) && tensors.iter().all(aligned)
}

/// Elements of the input that a window covers: with a filter smaller than the stride there are gaps.
fn covered_input(shape: &Conv2dShape) -> usize {
    let rows = shape.height.min(shape.output_height() * shape.kernel_height);
    let columns = shape.width.min(shape.output_width() * shape.kernel_width);
    shape.batch * rows * columns * shape.input_channels
}

fn operations(shape: &Conv2dShape) -> u64 {
    2 * shape.multiply_adds() as u64
}

fn element(cuda: &Cuda) -> usize {
    cuda.precision.activation_type().size()
}

/// Tiles of the weight gradient, and the number of parts into which the pixels are split: enough to fill [`WORKERS`] once.
fn splits(shape: &Conv2dShape) -> (usize, usize) {
    let tiles = depth(shape).div_ceil(ROWS) * shape.output_channels.div_ceil(COLUMNS);
    if tiles == 0 || tiles > COUNTERS {
        return (tiles, 1);
    }
    let room = BLOCKS_PER_MULTIPROCESSOR * WORKERS / tiles;
    let pixels = output_pixels(shape);
    let wanted = room.min(MOST_SPLITS).min(pixels.div_ceil(LEAST_PIXELS_PER_SPLIT)).max(1);
    (tiles, pixels.div_ceil(pixels_per_split(pixels, wanted)).max(1))
}

fn pixels_per_split(pixels: usize, splits: usize) -> usize {
    pixels.div_ceil(splits).next_multiple_of(DEPTH).max(DEPTH)
}

/// Only the weight gradient needs any: the sums of its splits.
pub(super) fn workspace_bytes(shape: &Conv2dShape, pass: Conv2dPass) -> usize {
    match (pass, splits(shape).1) {
        (Conv2dPass::WeightGradient, splits) if splits > 1 => splits * shape.weight_len() * 4,
        _ => 0,
    }
}

/// With `batch_norm`, it is applied as well: [`Device::conv2d_batch_norm`](crate::device::interface::Device::conv2d_batch_norm).
pub(super) fn forward(
    cuda: &Cuda,
    shape: &Conv2dShape,
    arguments: &Conv2dForward,
    batch_norm: Option<&BatchNormForward>,
) -> Result<()> {
    check(shape)?;
    let Conv2dForward { input, weight, output, .. } = arguments;
    let pixel_blocks = output_pixels(shape).div_ceil(ROWS);
    let column_tiles = shape.output_channels.div_ceil(COLUMNS);
    let counters = match arguments.statistics {
        Some(_) => cuda.counters_for(column_tiles * statistics::counters(pixel_blocks))?,
        None => 0,
    };
    let statistics_bytes = arguments.statistics.map_or(0, Tensor::bytes);
    let residual = batch_norm.and_then(|batch_norm| batch_norm.residual);
    let results: Vec<&Tensor> = [*output].into_iter().chain(residual).collect();
    let convolution = Conv2dForwardArguments {
        input: input.address(),
        weight: weight.address(),
        output: output.address(),
        statistics: arguments.statistics.map_or(0, Tensor::address),
        counters,
        geometry: Conv2dGeometry::new(shape),
        column_tiles: column_tiles as i32,
        vectors: i32::from(vectors(shape.input_channels, &[input, weight])),
        result_vectors: i32::from(vectors(shape.output_channels, &results)),
    };
    let work = Work {
        operations: operations(shape),
        unit: ArithmeticUnit::Float32,
        bytes_read: ((covered_input(shape) + shape.weight_len()) * element(cuda)) as u64,
        bytes_written: (shape.output_len() * element(cuda) + statistics_bytes) as u64,
    };
    let grid = [pixel_blocks * column_tiles, 1, 1];
    let Some(batch_norm) = batch_norm else {
        let kernel = of_type(input.element_type(), "conv2d_forward_fp32", "conv2d_forward_bf16");
        return cuda.launch(kernel, grid, THREADS, 0, &convolution, work);
    };
    let kernel = of_type(input.element_type(), "conv2d_batch_norm_fp32", "conv2d_batch_norm_bf16");
    let finished = Conv2dBatchNormArguments { convolution, finish: Conv2dFinish::new(batch_norm)? };
    cuda.launch(kernel, grid, THREADS, 0, &finished, finished_work(work, batch_norm))
}

pub(super) fn input_gradient(cuda: &Cuda, shape: &Conv2dShape, arguments: &Conv2dInputGradient) -> Result<()> {
    check(shape)?;
    let Conv2dInputGradient { output_gradient, weight, .. } = arguments;
    let input_gradient = &arguments.input_gradient.tensor;
    let accumulate = arguments.input_gradient.accumulate;
    // The grid of the largest class; blocks past the end of a smaller one return immediately.
    let pixels = shape.batch * shape.height.div_ceil(shape.stride) * shape.width.div_ceil(shape.stride);
    let column_tiles = shape.input_channels.div_ceil(COLUMNS);
    // Pixels that no output reads have no gradient: there is nothing to add.
    let changed = if accumulate { covered_input(shape) } else { shape.input_len() };
    let read_back = if accumulate { changed } else { 0 };
    cuda.launch(
        of_type(output_gradient.element_type(), "conv2d_input_gradient_fp32", "conv2d_input_gradient_bf16"),
        [pixels.div_ceil(ROWS) * column_tiles, 1, shape.stride * shape.stride],
        THREADS,
        0,
        &Conv2dInputGradientArguments {
            output_gradient: output_gradient.address(),
            weight: weight.address(),
            input_gradient: input_gradient.address(),
            geometry: Conv2dGeometry::new(shape),
            column_tiles: column_tiles as i32,
            accumulate: i32::from(accumulate),
            vectors: i32::from(vectors(shape.output_channels, &[output_gradient])),
            result_vectors: i32::from(vectors(shape.input_channels, &[input_gradient, weight])),
            reserved: 0,
        },
        Work {
            operations: operations(shape),
            unit: ArithmeticUnit::Float32,
            bytes_read: ((shape.output_len() + shape.weight_len() + read_back) * element(cuda)) as u64,
            bytes_written: (changed * element(cuda)) as u64,
        },
    )
}

pub(super) fn weight_gradient(cuda: &Cuda, shape: &Conv2dShape, arguments: &Conv2dWeightGradient) -> Result<()> {
    check(shape)?;
    let Conv2dWeightGradient { input, output_gradient, weight_gradient, workspace } = arguments;
    if weight_gradient.element_type() != ElementType::F32 {
        return Err(Error::new(format!("the gradient of a weight is float32, not {weight_gradient:?}")));
    }
    let (tiles, splits) = splits(shape);
    let partial_bytes = workspace_bytes(shape, Conv2dPass::WeightGradient);
    if workspace.bytes() < partial_bytes {
        return Err(Error::new(format!("a workspace of {} bytes, not {partial_bytes}", workspace.bytes())));
    }
    let input_vectors = vectors(shape.input_channels, &[input, weight_gradient])
        && (splits == 1 || workspace.address().is_multiple_of(16));
    cuda.launch(
        of_type(input.element_type(), "conv2d_weight_gradient_fp32", "conv2d_weight_gradient_bf16"),
        [tiles, splits, 1],
        THREADS,
        0,
        &Conv2dWeightGradientArguments {
            input: input.address(),
            output_gradient: output_gradient.address(),
            weight_gradient: weight_gradient.address(),
            partial: workspace.address(),
            counters: cuda.counters.address(),
            geometry: Conv2dGeometry::new(shape),
            column_tiles: shape.output_channels.div_ceil(COLUMNS) as i32,
            pixels_per_split: pixels_per_split(output_pixels(shape), splits) as i32,
            vectors: i32::from(input_vectors),
            column_vectors: i32::from(vectors(shape.output_channels, &[output_gradient])),
            reserved: 0,
        },
        Work {
            operations: operations(shape),
            unit: ArithmeticUnit::Float32,
            bytes_read: ((covered_input(shape) + shape.output_len()) * element(cuda) + partial_bytes) as u64,
            bytes_written: (shape.weight_len() * 4 + partial_bytes) as u64,
        },
    )
}
