//! Launches of `kernels/conv2d_stem.cu`: a 7 x 7 convolution with stride 2 of three channels, and its weight gradient,
//! on tensor cores.

use super::finish::{Conv2dFinish, finished_work};
use super::geometry::Conv2dGeometry;
use crate::device::cuda::arguments::kernel_arguments;
use crate::device::cuda::driver::{ArithmeticUnit, Work};
use crate::device::cuda::engine::{COUNTERS, Cuda, WORKERS};
use crate::device::cuda::statistics::{self, PIXELS_PER_BLOCK};
use crate::device::interface::{
    BatchNormForward, Conv2dForward, Conv2dPass, Conv2dShape, Conv2dWeightGradient, Precision,
};
use crate::error::Result;

const THREADS: usize = 128;
const FILTER: usize = 7;
const INPUT_CHANNELS: usize = 3;
const STRIDE: usize = 2;
/// Channels of the output that a block computes.
const CHANNELS: usize = 64;
const WORD: usize = 4;
/// Float32 sums of a block of the weight gradient: 64 channels x 160 of depth.
const GRADIENT_SUMS: usize = CHANNELS * 160;
/// The launch that adds the splits: its threads, and the sums that one of its blocks adds.
const SUM_THREADS: usize = 256;
const SUMS_PER_BLOCK: usize = 32 * 4;

kernel_arguments! {
    struct Conv2dStemForwardArguments {
        input: u64,
        weight: u64,
        output: u64,
        statistics: u64,
        counters: u64,
        geometry: Conv2dGeometry,
        patch_pitch: i32,
    }
}

kernel_arguments! {
    struct Conv2dStemBatchNormArguments {
        convolution: Conv2dStemForwardArguments,
        finish: Conv2dFinish,
    }
}

kernel_arguments! {
    struct Conv2dStemWeightGradientArguments {
        input: u64,
        output_gradient: u64,
        workspace: u64,
        geometry: Conv2dGeometry,
        patch_pitch: i32,
        split_tiles: i32,
        reserved: i32,
    }
}

kernel_arguments! {
    struct Conv2dStemWeightGradientSumArguments {
        workspace: u64,
        weight_gradient: u64,
        output_channels: i32,
        splits: i32,
    }
}

/// The layout of a precision in shared memory, in words of four bytes; `Words` in the kernel.
struct Format {
    /// Words of a row of the filter.
    row: usize,
    /// Words from one output pixel to the next.
    pixel: usize,
    /// Words of a run in addition to those of its pixels.
    run: usize,
    /// Words of the weights of one channel.
    weight_pitch: usize,
}

impl Format {
    fn of(cuda: &Cuda) -> Self {
        match cuda.precision {
            Precision::Bf16 => Self { row: 11, pixel: 3, run: 8, weight_pitch: 84 },
            Precision::Tf32 | Precision::Fp32 => Self { row: 21, pixel: 6, run: 15, weight_pitch: 156 },
        }
    }

    /// Words of one row of the patch: as many as the tile with the most runs (pixels of one output row) needs, and such
    /// that rows of the filter follow each other in the banks as they do in the weights.
    fn patch_pitch(&self, shape: &Conv2dShape) -> usize {
        let runs = ((PIXELS_PER_BLOCK - 1).div_ceil(shape.output_width()) + 1).min(PIXELS_PER_BLOCK);
        let words = PIXELS_PER_BLOCK * self.pixel + runs * self.run;
        self.row + (words - self.row).next_multiple_of(32)
    }

    /// The patch and the offsets of the pixels in it.
    fn patch_bytes(&self, shape: &Conv2dShape) -> usize {
        (FILTER * self.patch_pitch(shape) + PIXELS_PER_BLOCK) * WORD
    }

    fn forward_bytes(&self, shape: &Conv2dShape) -> usize {
        CHANNELS * self.weight_pitch * WORD + self.patch_bytes(shape)
    }

    fn weight_gradient_bytes(&self, cuda: &Cuda, shape: &Conv2dShape) -> usize {
        PIXELS_PER_BLOCK * CHANNELS * cuda.precision.activation_type().size() + self.patch_bytes(shape)
    }
}

fn unit(cuda: &Cuda) -> ArithmeticUnit {
    match cuda.precision {
        Precision::Bf16 => ArithmeticUnit::TensorBf16,
        Precision::Tf32 | Precision::Fp32 => ArithmeticUnit::TensorTf32,
    }
}

fn pixel_tiles(shape: &Conv2dShape) -> usize {
    (shape.batch * shape.output_height() * shape.output_width()).div_ceil(PIXELS_PER_BLOCK)
}

fn channel_tiles(shape: &Conv2dShape) -> usize {
    shape.output_channels.div_ceil(CHANNELS)
}

/// Blocks over the pixels: as many as run at once on so many multiprocessors, each with a share of the tiles.
fn pixel_blocks(cuda: &Cuda, shape: &Conv2dShape, multiprocessors: usize) -> usize {
    let resident = if cuda.precision == Precision::Bf16 { 4 } else { 3 };
    let blocks = multiprocessors * resident / channel_tiles(shape);
    blocks.clamp(1, pixel_tiles(shape))
}

/// Tiles of pixels of each split, and how many splits there are.
fn splits(cuda: &Cuda, shape: &Conv2dShape) -> (usize, usize) {
    let tiles = pixel_tiles(shape);
    let split_tiles = tiles.div_ceil(pixel_blocks(cuda, shape, WORKERS));
    (split_tiles, tiles.div_ceil(split_tiles))
}

/// Whether these kernels compute a pass; never the gradient of the input. Pixels are counted in 31 bits; images of a
/// few columns, of which many rows make a tile, may need more shared memory than there is.
pub(super) fn takes(cuda: &Cuda, shape: &Conv2dShape, pass: Conv2dPass) -> bool {
    let format = Format::of(cuda);
    let vector = match cuda.precision {
        Precision::Fp32 => return false,
        Precision::Tf32 => 4,
        Precision::Bf16 => 8,
    };
    let geometry = (shape.kernel_height, shape.kernel_width, shape.input_channels, shape.stride);
    if geometry != (FILTER, FILTER, INPUT_CHANNELS, STRIDE) {
        return false;
    }
    let shared_bytes = match pass {
        Conv2dPass::Forward => format.forward_bytes(shape),
        Conv2dPass::InputGradient => return false,
        Conv2dPass::WeightGradient if !shape.output_channels.is_multiple_of(vector) => return false,
        Conv2dPass::WeightGradient => format.weight_gradient_bytes(cuda, shape),
    };
    let counters = channel_tiles(shape) * statistics::counters(pixel_tiles(shape));
    let input_pixels = shape.batch * (shape.height + shape.padding);
    let input_row = (shape.width + 2 * shape.padding) * INPUT_CHANNELS;
    let largest =
        [input_pixels, input_row, pixel_tiles(shape) * PIXELS_PER_BLOCK, shape.weight_len()].into_iter().max();
    // Leaves space for static shared memory.
    shared_bytes + 1024 <= cuda.capabilities.shared_bytes_per_block as usize
        && counters <= COUNTERS
        && channel_tiles(shape) <= 65535
        && largest.is_some_and(|largest| largest < (1 << 31) - (1 << 16))
}

/// Bytes of the parts of the weight gradient.
pub(super) fn workspace_bytes(cuda: &Cuda, shape: &Conv2dShape, pass: Conv2dPass) -> usize {
    match pass {
        Conv2dPass::WeightGradient => {
            let (_, splits) = splits(cuda, shape);
            splits * channel_tiles(shape) * GRADIENT_SUMS * size_of::<f32>()
        }
        Conv2dPass::Forward | Conv2dPass::InputGradient => 0,
    }
}

/// With `batch_norm`, it is applied as well: [`Device::conv2d_batch_norm`](crate::device::interface::Device::conv2d_batch_norm).
pub(super) fn forward(
    cuda: &Cuda,
    shape: &Conv2dShape,
    arguments: &Conv2dForward,
    batch_norm: Option<&BatchNormForward>,
) -> Result<()> {
    let format = Format::of(cuda);
    let element = cuda.precision.activation_type().size();
    let statistics = arguments.statistics.map_or(0, |statistics| statistics.bytes());
    let row = 2 * shape.output_channels * size_of::<f32>();
    let convolution = Conv2dStemForwardArguments {
        input: arguments.input.address(),
        weight: arguments.weight.address(),
        output: arguments.output.address(),
        statistics: arguments.statistics.map_or(0, |statistics| statistics.address()),
        counters: cuda.counters.address(),
        geometry: Conv2dGeometry::new(shape),
        patch_pitch: format.patch_pitch(shape) as i32,
    };
    let work = Work {
        operations: 2 * shape.multiply_adds() as u64,
        unit: unit(cuda),
        // All rows of statistics but the total are read again.
        bytes_read: ((shape.input_len() + shape.weight_len()) * element + statistics.saturating_sub(row)) as u64,
        bytes_written: (shape.output_len() * element + statistics) as u64,
    };
    let grid = [pixel_blocks(cuda, shape, cuda.capabilities.multiprocessors as usize), channel_tiles(shape), 1];
    let shared_bytes = format.forward_bytes(shape);
    let Some(batch_norm) = batch_norm else {
        let kernel = match cuda.precision {
            Precision::Bf16 => "conv2d_stem_forward_bf16",
            Precision::Tf32 | Precision::Fp32 => "conv2d_stem_forward_tf32",
        };
        return cuda.launch(kernel, grid, THREADS, shared_bytes, &convolution, work);
    };
    let kernel = match cuda.precision {
        Precision::Bf16 => "conv2d_stem_batch_norm_bf16",
        Precision::Tf32 | Precision::Fp32 => "conv2d_stem_batch_norm_tf32",
    };
    let finished = Conv2dStemBatchNormArguments { convolution, finish: Conv2dFinish::new(batch_norm)? };
    cuda.launch(kernel, grid, THREADS, shared_bytes, &finished, finished_work(work, batch_norm))
}

/// Two launches: the partial sums, and their addition.
pub(super) fn weight_gradient(cuda: &Cuda, shape: &Conv2dShape, arguments: &Conv2dWeightGradient) -> Result<()> {
    let format = Format::of(cuda);
    let (kernel, sum_kernel) = match cuda.precision {
        Precision::Bf16 => ("conv2d_stem_weight_gradient_bf16", "conv2d_stem_weight_gradient_sum_bf16"),
        Precision::Tf32 | Precision::Fp32 => {
            ("conv2d_stem_weight_gradient_tf32", "conv2d_stem_weight_gradient_sum_tf32")
        }
    };
    let (split_tiles, splits) = splits(cuda, shape);
    let parts = (splits * channel_tiles(shape) * GRADIENT_SUMS * size_of::<f32>()) as u64;
    let element = cuda.precision.activation_type().size();
    cuda.launch(
        kernel,
        [splits, channel_tiles(shape), 1],
        THREADS,
        format.weight_gradient_bytes(cuda, shape),
        &Conv2dStemWeightGradientArguments {
            input: arguments.input.address(),
            output_gradient: arguments.output_gradient.address(),
            workspace: arguments.workspace.address(),
            geometry: Conv2dGeometry::new(shape),
            patch_pitch: format.patch_pitch(shape) as i32,
            split_tiles: split_tiles as i32,
            reserved: 0,
        },
        Work {
            operations: 2 * shape.multiply_adds() as u64,
            unit: unit(cuda),
            bytes_read: ((shape.input_len() + shape.output_len()) * element) as u64,
            bytes_written: parts,
        },
    )?;
    cuda.launch(
        sum_kernel,
        [GRADIENT_SUMS / SUMS_PER_BLOCK, channel_tiles(shape), 1],
        SUM_THREADS,
        0,
        &Conv2dStemWeightGradientSumArguments {
            workspace: arguments.workspace.address(),
            weight_gradient: arguments.weight_gradient.address(),
            output_channels: shape.output_channels as i32,
            splits: splits as i32,
        },
        Work {
            operations: parts / 4,
            unit: ArithmeticUnit::Float32,
            bytes_read: parts,
            bytes_written: (shape.weight_len() * size_of::<f32>()) as u64,
        },
    )
}
