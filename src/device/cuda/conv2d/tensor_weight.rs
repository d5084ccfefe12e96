//! Launches of `kernels/conv2d_weight_gradient.cu`: gradient of the weight on tensor cores.

use super::geometry::Conv2dGeometry;
use crate::device::cuda::arguments::kernel_arguments;
use crate::device::cuda::driver::{ArithmeticUnit, Work};
use crate::device::cuda::engine::{COUNTERS, Cuda};
use crate::device::interface::{Conv2dShape, Conv2dWeightGradient, Precision};
use crate::error::Result;

const THREADS: usize = 128;
/// Shared memory of a step of one channel or one column, and the number of steps that are kept.
const STEP_BYTES: usize = 64;
const STAGES: usize = 3;
/// The filter's rows and columns are bits of half a word, of which one is kept for "none".
const LARGEST_FILTER: usize = 15;

kernel_arguments! {
    struct Conv2dTensorWeightGradientArguments {
        input: u64,
        output_gradient: u64,
        weight_gradient: u64,
        workspace: u64,
        counters: u64,
        geometry: Conv2dGeometry,
        channel_tiles: i32,
        column_tiles: i32,
        splits: i32,
        split_steps: i32,
        group_splits: i32,
    }
}

/// Channels of the output and columns of the gradient (R S C) that one block computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    channels: usize,
    columns: usize,
}

/// The division of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    tile: Tile,
    channel_tiles: usize,
    column_tiles: usize,
    splits: usize,
    /// Steps per split; the last split has the remaining ones.
    split_steps: usize,
    /// Splits per group, which are added before the groups; the last group has the remaining ones.
    group_splits: usize,
}

impl Cut {
    /// Minimises the time of a multiprocessor, counted in steps of one block: 400 clocks, in each of which 64 bytes can come from L2. Each
    /// further split costs filling and draining a pipeline, writing a tile and, in the last block to arrive, reading one;
    /// a single block of four warps does not keep a multiprocessor busy.
    fn new(cuda: &Cuda, shape: &Conv2dShape) -> Self {
        let columns = columns(shape);
        let tile = if shape.output_channels <= 64 {
            Tile { channels: 64, columns: 192 }
        } else {
            Tile { channels: 128, columns: 128 }
        };
        let channel_tiles = shape.output_channels.div_ceil(tile.channels);
        let column_tiles = columns.div_ceil(tile.columns);
        let tiles = channel_tiles * column_tiles;
        let steps = pixels(shape).div_ceil(step_pixels(cuda)).max(1);
        let multiprocessors = (cuda.capabilities.multiprocessors as usize).max(1);

        const CLOCKS_A_STEP: usize = 400;
        const BYTES_A_CLOCK: usize = 64;
        const PIPELINE_STEPS: usize = 4;
        let floats = tile.channels.min(shape.output_channels) * tile.columns.min(columns);
        let tile_steps = (floats * 4).div_ceil(CLOCKS_A_STEP * BYTES_A_CLOCK);
        let cost = |split_steps: usize| {
            let splits = steps.div_ceil(split_steps);
            let blocks = (tiles * splits).div_ceil(multiprocessors);
            let group_splits = group_splits(splits);
            let (stored, read) = match splits {
                1 => (0, 0),
                _ => (tile_steps, tile_steps * (group_splits + splits.div_ceil(group_splits))),
            };
            let rounds = if blocks == 1 { 4 } else { blocks * 3 };
            rounds * (split_steps + PIPELINE_STEPS + stored) + 3 * read
        };
        // More than six blocks for each multiprocessor never pay.
        let most_splits = (6 * multiprocessors / tiles).min(COUNTERS / tiles.saturating_mul(2)).clamp(1, steps);
        let split_steps = (1..=most_splits).map(|splits| steps.div_ceil(splits)).min_by_key(|&steps| cost(steps));
        let split_steps = split_steps.unwrap_or(steps);
        let splits = steps.div_ceil(split_steps);
        Self { tile, channel_tiles, column_tiles, splits, split_steps, group_splits: group_splits(splits) }
    }

    fn tiles(&self) -> usize {
        self.channel_tiles * self.column_tiles
    }
}

/// About the square root: then the last blocks of a tile read the fewest partial sums one after the other.
fn group_splits(splits: usize) -> usize {
    let root = splits.isqrt();
    if splits <= 4 { splits } else { root + usize::from(root * root < splits) }
}

/// Pixels of a step.
fn step_pixels(cuda: &Cuda) -> usize {
    STEP_BYTES / cuda.precision.activation_type().size()
}

fn pixels(shape: &Conv2dShape) -> usize {
    shape.batch * shape.output_height() * shape.output_width()
}

/// Elements of the gradient for one channel of the output.
fn columns(shape: &Conv2dShape) -> usize {
    shape.kernel_height * shape.kernel_width * shape.input_channels
}

/// Whether this kernel computes it. It copies 16 bytes of channels at a time, and counts pixels in 31 bits.
pub(super) fn takes(cuda: &Cuda, shape: &Conv2dShape) -> bool {
    let vector = match cuda.precision {
        Precision::Fp32 => return false,
        Precision::Tf32 => 4,
        Precision::Bf16 => 8,
    };
    let input_pixels = shape.batch * (shape.height + shape.padding) * (shape.width + shape.padding);
    let window = (shape.kernel_height * shape.width + shape.kernel_width) * shape.input_channels;
    let tiles = shape.output_channels.div_ceil(64) * columns(shape).div_ceil(128);
    let largest = [input_pixels, pixels(shape), window, columns(shape), tiles].into_iter().max();
    shape.input_channels.is_multiple_of(vector)
        && shape.output_channels.is_multiple_of(vector)
        && shape.kernel_height.max(shape.kernel_width) <= LARGEST_FILTER
        && largest.is_some_and(|largest| largest < (1 << 31) - (1 << 16))
}

/// Bytes of the parts of all splits: whole tiles, but nothing with one split.
pub(super) fn workspace_bytes(cuda: &Cuda, shape: &Conv2dShape) -> usize {
    let cut = Cut::new(cuda, shape);
    match cut.splits {
        1 => 0,
        splits => splits * cut.tiles() * cut.tile.channels * cut.tile.columns * size_of::<f32>(),
    }
}

pub(super) fn weight_gradient(cuda: &Cuda, shape: &Conv2dShape, arguments: &Conv2dWeightGradient) -> Result<()> {
    let cut = Cut::new(cuda, shape);
    let (kernel, unit) = match (cuda.precision, cut.tile.channels) {
        (Precision::Bf16, 64) => ("conv2d_weight_gradient_64x192_bf16", ArithmeticUnit::TensorBf16),
        (Precision::Bf16, _) => ("conv2d_weight_gradient_128x128_bf16", ArithmeticUnit::TensorBf16),
        (_, 64) => ("conv2d_weight_gradient_64x192_tf32", ArithmeticUnit::TensorTf32),
        (_, _) => ("conv2d_weight_gradient_128x128_tf32", ArithmeticUnit::TensorTf32),
    };
    let element = cuda.precision.activation_type().size();
    let covered_rows = shape.height.min(shape.output_height() * shape.kernel_height);
    let covered_columns = shape.width.min(shape.output_width() * shape.kernel_width);
    let covered = shape.batch * covered_rows * covered_columns * shape.input_channels;
    // Partial sums that are written to the workspace and read again: those of the splits and of the groups.
    let groups = cut.splits.div_ceil(cut.group_splits);
    let parts = match (cut.splits, groups) {
        (1, _) => 0,
        (splits, 1) => splits,
        (splits, groups) => splits + groups,
    };
    let gradient = shape.weight_len() * size_of::<f32>();
    cuda.launch(
        kernel,
        [cut.tiles() * cut.splits, 1, 1],
        THREADS,
        STAGES * STEP_BYTES * (cut.tile.channels + cut.tile.columns),
        &Conv2dTensorWeightGradientArguments {
            input: arguments.input.address(),
            output_gradient: arguments.output_gradient.address(),
            weight_gradient: arguments.weight_gradient.address(),
            workspace: if cut.splits > 1 { arguments.workspace.address() } else { 0 },
            counters: cuda.counters.address(),
            geometry: Conv2dGeometry::new(shape),
            channel_tiles: cut.channel_tiles as i32,
            column_tiles: cut.column_tiles as i32,
            splits: cut.splits as i32,
            split_steps: cut.split_steps as i32,
            group_splits: cut.group_splits as i32,
        },
        Work {
            operations: 2 * shape.multiply_adds() as u64,
            unit,
            bytes_read: ((covered + shape.output_len()) * element + parts * gradient) as u64,
            bytes_written: (gradient + parts * gradient) as u64,
        },
    )
}
