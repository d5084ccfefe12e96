//! Launches of `kernels/batch_norm.cu`.

use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use super::engine::{Cuda, group_length, of_type};
use super::statistics::{self, rows_of, total};
use crate::device::interface::{Activation, BatchNormBackward, BatchNormForward, BatchNormMode, Gradient};
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// Threads per block, in all these kernels.
pub(super) const THREADS: usize = 256;
/// Maximum number of channel groups of a block, in a pass over all elements.
const GROUPS_PER_TILE: usize = 32;
/// Places of a thread whose loads are in flight at once: it has at least as many.
const ROUNDS: usize = 4;
/// Blocks of such a pass that a multiprocessor runs at once.
const RESIDENT_BLOCKS: usize = 2;
/// Minimum number of elements per block of a reduction, and maximum number of blocks: the same on every GPU, because it determines
/// the order of the sums.
const REDUCED_ELEMENTS: usize = 16384;
const REDUCTION_BLOCKS: usize = 264;

kernel_arguments! {
    pub(super) struct BatchNormChannels {
        statistics: u64,
        weight: u64,
        bias: u64,
        running_mean: u64,
        running_variance: u64,
        saved_statistics: u64,
        pixels: i32,
        channels: i32,
        epsilon: f32,
        momentum: f32,
    }
}

impl BatchNormChannels {
    pub(super) fn new(arguments: &BatchNormForward) -> Result<Self> {
        let statistics = match arguments.mode {
            BatchNormMode::Training => {
                let statistics = arguments.statistics;
                total(statistics.ok_or_else(|| Error::new("batch_norm: training mode needs statistics"))?)?.address()
            }
            BatchNormMode::Running => 0,
        };
        Ok(Self {
            statistics,
            weight: arguments.weight.address(),
            bias: arguments.bias.address(),
            running_mean: arguments.running_mean.address(),
            running_variance: arguments.running_variance.address(),
            saved_statistics: arguments.saved_statistics.address(),
            pixels: pixel_count(arguments.input)?,
            channels: arguments.input.shape().channels() as i32,
            epsilon: arguments.epsilon,
            momentum: arguments.momentum,
        })
    }

    /// Bytes that a forward pass reads, and writes, beside the activations.
    pub(super) fn bytes(&self) -> u64 {
        6 * self.channels as u64 * 4
    }
}

kernel_arguments! {
    pub(super) struct BatchNormSums {
        rows: u64,
        weight_gradient: u64,
        bias_gradient: u64,
        counters: u64,
    }
}

impl BatchNormSums {
    /// For the sums of so many blocks, in each of `tiles` tiles of channels.
    pub(super) fn new(cuda: &Cuda, arguments: &BatchNormBackward, blocks: usize, tiles: usize) -> Result<Self> {
        let address = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::address);
        Ok(Self {
            rows: arguments.workspace.address(),
            weight_gradient: address(arguments.weight_gradient),
            bias_gradient: address(arguments.bias_gradient),
            counters: cuda.counters_for(statistics::counters(blocks) * tiles)?,
        })
    }
}

kernel_arguments! {
    struct BatchNormForwardArguments {
        input: u64,
        residual: u64,
        output: u64,
        norm: BatchNormChannels,
        activation: Activation,
        vectorised: i32,
        pixels_per_block: i32,
        padding: i32,
    }
}

kernel_arguments! {
    struct BatchNormStatisticsArguments {
        input: u64,
        statistics: u64,
        counters: u64,
        pixels: i32,
        channels: i32,
    }
}

kernel_arguments! {
    struct BatchNormReduceArguments {
        input: u64,
        output: u64,
        output_gradient: u64,
        saved_statistics: u64,
        sums: BatchNormSums,
        pixels: i32,
        channels: i32,
        activation: Activation,
        vectorised: i32,
        pixels_per_block: i32,
        padding: i32,
    }
}

kernel_arguments! {
    struct BatchNormBackwardArguments {
        input: u64,
        output: u64,
        output_gradient: u64,
        saved_statistics: u64,
        sums: u64,
        input_gradient: u64,
        residual_gradient: u64,
        pixels: i32,
        channels: i32,
        activation: Activation,
        vectorised: i32,
        accumulate_input: i32,
        accumulate_residual: i32,
        pixels_per_block: i32,
        padding: i32,
    }
}

/// The division of a pass over all elements: blocks of places along x, tiles of channels along y. A place is a pixel, or several.
pub(super) struct Pass {
    pub(super) places_per_block: usize,
    pub(super) grid: [usize; 3],
}

impl Pass {
    /// As many blocks as the GPU runs at once, or fewer if a thread would have less than [`ROUNDS`] groups of `length` channels.
    pub(super) fn new(cuda: &Cuda, places: usize, channels: usize, length: usize) -> Self {
        let groups = channels / length;
        let tiles = groups.div_ceil(GROUPS_PER_TILE).max(1);
        let lanes = THREADS / groups.clamp(1, GROUPS_PER_TILE);
        let blocks = (RESIDENT_BLOCKS * cuda.capabilities.multiprocessors as usize / tiles).max(1);
        let places_per_block = places.div_ceil(blocks).next_multiple_of(lanes * ROUNDS).max(1);
        Self { places_per_block, grid: [places.div_ceil(places_per_block), tiles, 1] }
    }
}

/// The division of a reduction over the pixels, by shape alone.
pub(super) struct Reduction {
    pub(super) pixels_per_block: usize,
    pub(super) blocks: usize,
}

impl Reduction {
    pub(super) fn new(shape: Shape) -> Self {
        let blocks = (shape.len() / REDUCED_ELEMENTS).clamp(1, REDUCTION_BLOCKS);
        let pixels_per_block = shape.rows().div_ceil(blocks).max(1);
        Self { pixels_per_block, blocks: shape.rows().div_ceil(pixels_per_block).max(1) }
    }
}

/// The number of pixels, which kernels count in 32 bits.
pub(super) fn pixel_count(activation: &Tensor) -> Result<i32> {
    i32::try_from(activation.shape().rows())
        .map_err(|_| Error::new(format!("batch_norm: {activation:?} has too many pixels")).hint("use smaller batches"))
}

pub(super) fn statistics(cuda: &Cuda, input: &Tensor, statistics: &Tensor) -> Result<()> {
    let blocks = input.shape().rows().div_ceil(statistics::PIXELS_PER_BLOCK);
    cuda.launch(
        of_type(input.element_type(), "batch_norm_statistics_fp32", "batch_norm_statistics_bf16"),
        [blocks, 1, 1],
        THREADS,
        0,
        &BatchNormStatisticsArguments {
            input: input.address(),
            statistics: statistics.address(),
            counters: cuda.counters_for(statistics::counters(blocks))?,
            pixels: pixel_count(input)?,
            channels: input.shape().channels() as i32,
        },
        Work {
            operations: 4 * input.len() as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: input.bytes() as u64,
            bytes_written: statistics.bytes() as u64,
        },
    )
}

pub(super) fn workspace(shape: Shape) -> usize {
    rows_of(Reduction::new(shape).blocks) * 2 * shape.channels() * 4
}

pub(super) fn forward(cuda: &Cuda, arguments: &BatchNormForward) -> Result<()> {
    let input = arguments.input;
    let norm = BatchNormChannels::new(arguments)?;
    let length = group_length(input);
    let pass = Pass::new(cuda, input.shape().rows(), input.shape().channels(), length);
    let work = Work {
        operations: 4 * input.len() as u64,
        unit: ArithmeticUnit::Float32,
        bytes_read: (input.bytes() + arguments.residual.map_or(0, Tensor::bytes)) as u64 + norm.bytes(),
        bytes_written: arguments.output.bytes() as u64 + norm.bytes(),
    };
    cuda.launch(
        of_type(input.element_type(), "batch_norm_forward_fp32", "batch_norm_forward_bf16"),
        pass.grid,
        THREADS,
        0,
        &BatchNormForwardArguments {
            input: input.address(),
            residual: arguments.residual.map_or(0, Tensor::address),
            output: arguments.output.address(),
            norm,
            activation: arguments.activation,
            vectorised: i32::from(length > 1),
            pixels_per_block: pass.places_per_block as i32,
            padding: 0,
        },
        work,
    )
}

pub(super) fn backward(cuda: &Cuda, arguments: &BatchNormBackward) -> Result<()> {
    let gradient = arguments.output_gradient;
    let shape = gradient.shape();
    let channels = shape.channels();
    let address = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::address);
    let bytes = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::bytes) as u64;
    let training = arguments.mode == BatchNormMode::Training;
    // If a residual was added before the activation, the derivative depends on the output; otherwise on the argument,
    // which is recomputed from the input.
    let activation = if arguments.is_reduced { Activation::None } else { arguments.activation };
    let has_activation = activation != Activation::None;
    let output = arguments.output.filter(|_| has_activation);
    let has_slope = training && arguments.input_gradient.is_some();
    let wants_sums = arguments.weight_gradient.is_some() || arguments.bias_gradient.is_some() || has_slope;
    let reads_argument = has_activation && output.is_none();
    let sums_need_input = arguments.weight_gradient.is_some() || has_slope;
    if arguments.input.is_none() && (reads_argument || sums_need_input) {
        return Err(Error::new("batch_norm: these gradients need the input"));
    }
    if wants_sums && !arguments.is_reduced {
        let input = arguments.input.filter(|_| reads_argument || sums_need_input);
        let Reduction { pixels_per_block, blocks } = Reduction::new(shape);
        cuda.launch(
            of_type(gradient.element_type(), "batch_norm_reduce_fp32", "batch_norm_reduce_bf16"),
            [blocks, 1, 1],
            THREADS,
            THREADS * group_length(gradient) * 4,
            &BatchNormReduceArguments {
                input: address(input),
                output: address(output),
                output_gradient: gradient.address(),
                saved_statistics: arguments.saved_statistics.address(),
                sums: BatchNormSums::new(cuda, arguments, blocks, 1)?,
                pixels: pixel_count(gradient)?,
                channels: channels as i32,
                activation,
                vectorised: i32::from(group_length(gradient) > 1),
                pixels_per_block: pixels_per_block as i32,
                padding: 0,
            },
            Work {
                operations: 6 * gradient.len() as u64,
                unit: ArithmeticUnit::Float32,
                bytes_read: gradient.bytes() as u64 + bytes(input) + bytes(output) + workspace(shape) as u64,
                bytes_written: workspace(shape) as u64
                    + bytes(arguments.weight_gradient)
                    + bytes(arguments.bias_gradient),
            },
        )?;
    }
    if arguments.input_gradient.is_none() && arguments.residual_gradient.is_none() {
        return Ok(());
    }
    let target = |gradient: Option<&Gradient>| gradient.map_or(0, |gradient| gradient.tensor.address());
    let accumulates = |gradient: Option<&Gradient>| gradient.is_some_and(|gradient| gradient.accumulate);
    let targets = [arguments.input_gradient, arguments.residual_gradient];
    let written: usize = targets.iter().flatten().map(|gradient| gradient.tensor.bytes()).sum();
    let added: usize =
        targets.iter().flatten().filter(|gradient| gradient.accumulate).map(|gradient| gradient.tensor.bytes()).sum();
    // The input is read for the activation's argument, and in training mode for the normalised value.
    let input = arguments.input.filter(|_| has_slope || reads_argument);
    let length = group_length(gradient);
    let pass = Pass::new(cuda, shape.rows(), channels, length);
    cuda.launch(
        of_type(gradient.element_type(), "batch_norm_backward_fp32", "batch_norm_backward_bf16"),
        pass.grid,
        THREADS,
        0,
        &BatchNormBackwardArguments {
            input: address(input),
            output: address(output),
            output_gradient: gradient.address(),
            saved_statistics: arguments.saved_statistics.address(),
            sums: if has_slope { arguments.workspace.address() } else { 0 },
            input_gradient: target(arguments.input_gradient),
            residual_gradient: target(arguments.residual_gradient),
            pixels: pixel_count(gradient)?,
            channels: channels as i32,
            activation,
            vectorised: i32::from(length > 1),
            accumulate_input: i32::from(accumulates(arguments.input_gradient)),
            accumulate_residual: i32::from(accumulates(arguments.residual_gradient)),
            pixels_per_block: pass.places_per_block as i32,
            padding: 0,
        },
        Work {
            operations: 6 * gradient.len() as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: (gradient.bytes() + added) as u64 + bytes(input) + bytes(output),
            bytes_written: written as u64,
        },
    )
}
