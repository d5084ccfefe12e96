//! Launches of `kernels/batch_norm.cu`.

use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use super::statistics::{self, rows_of, total};
use super::{Cuda, group_length, of_type};
use crate::device::{BatchNormBackward, BatchNormForward, BatchNormMode, Gradient};
use crate::error::Result;
use crate::tensor::{Shape, Tensor};

/// Threads of a block, in all these kernels.
const THREADS: usize = 256;
/// Elements of a reduction's block, at least, and its blocks, at most: four on each multiprocessor of a large GPU.
const REDUCED_ELEMENTS: usize = 16384;
const REDUCTION_BLOCKS: usize = 512;

kernel_arguments! {
    struct BatchNormForwardArguments {
        input: u64,
        residual: u64,
        output: u64,
        statistics: u64,
        weight: u64,
        bias: u64,
        running_mean: u64,
        running_variance: u64,
        normaliser: u64,
        pixels: i32,
        channels: i32,
        epsilon: f32,
        momentum: f32,
        relu: i32,
        vectorised: i32,
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
        normaliser: u64,
        rows: u64,
        weight_gradient: u64,
        bias_gradient: u64,
        counters: u64,
        pixels: i32,
        channels: i32,
        relu: i32,
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
        normaliser: u64,
        sums: u64,
        input_gradient: u64,
        residual_gradient: u64,
        pixels: i32,
        channels: i32,
        relu: i32,
        vectorised: i32,
        accumulate_input: i32,
        accumulate_residual: i32,
    }
}

/// Blocks of a pass over all elements: four groups a thread, and no more than run at the same time.
fn pass_blocks(cuda: &Cuda, tensor: &Tensor) -> usize {
    let groups = tensor.len() / group_length(tensor);
    groups.div_ceil(THREADS * 4).clamp(1, cuda.capabilities.multiprocessors as usize * 8)
}

/// How a reduction over the pixels is cut, by shape alone.
struct Reduction {
    pixels_per_block: usize,
    blocks: usize,
}

impl Reduction {
    fn new(shape: Shape) -> Self {
        let blocks = (shape.len() / REDUCED_ELEMENTS).clamp(1, REDUCTION_BLOCKS);
        let pixels_per_block = shape.rows().div_ceil(blocks).max(1);
        Self { pixels_per_block, blocks: shape.rows().div_ceil(pixels_per_block).max(1) }
    }
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
            pixels: input.shape().rows() as i32,
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
    let channels = input.shape().channels();
    let address = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::address);
    let bytes = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::bytes);
    let statistics = match arguments.mode {
        BatchNormMode::Training => arguments.statistics.map(total).transpose()?,
        BatchNormMode::Running => None,
    };
    cuda.launch(
        of_type(input.element_type(), "batch_norm_forward_fp32", "batch_norm_forward_bf16"),
        [pass_blocks(cuda, input), 1, 1],
        THREADS,
        2 * channels * 4,
        &BatchNormForwardArguments {
            input: input.address(),
            residual: address(arguments.residual),
            output: arguments.output.address(),
            statistics: address(statistics.as_ref()),
            weight: arguments.weight.address(),
            bias: arguments.bias.address(),
            running_mean: arguments.running_mean.address(),
            running_variance: arguments.running_variance.address(),
            normaliser: arguments.normaliser.address(),
            pixels: input.shape().rows() as i32,
            channels: channels as i32,
            epsilon: arguments.epsilon,
            momentum: arguments.momentum,
            relu: i32::from(arguments.relu),
            vectorised: i32::from(group_length(input) > 1),
        },
        Work {
            operations: 4 * input.len() as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: (input.bytes() + bytes(arguments.residual) + 6 * channels * 4) as u64,
            bytes_written: (arguments.output.bytes() + 6 * channels * 4) as u64,
        },
    )
}

pub(super) fn backward(cuda: &Cuda, arguments: &BatchNormBackward) -> Result<()> {
    let gradient = arguments.output_gradient;
    let shape = gradient.shape();
    let channels = shape.channels();
    let address = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::address);
    let bytes = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::bytes) as u64;
    let training = arguments.mode == BatchNormMode::Training;
    // The mask is the output's sign where something was added before the ReLU; else it is computed from the input.
    let output = arguments.output.filter(|_| arguments.relu);
    let vectorised = i32::from(group_length(gradient) > 1);
    let wants_sums = arguments.weight_gradient.is_some()
        || arguments.bias_gradient.is_some()
        || (training && arguments.input_gradient.is_some());
    if let Some(input) = arguments.input.filter(|_| wants_sums) {
        let Reduction { pixels_per_block, blocks } = Reduction::new(shape);
        cuda.launch(
            of_type(gradient.element_type(), "batch_norm_reduce_fp32", "batch_norm_reduce_bf16"),
            [blocks, 1, 1],
            THREADS,
            THREADS * group_length(gradient) * 4,
            &BatchNormReduceArguments {
                input: input.address(),
                output: address(output),
                output_gradient: gradient.address(),
                normaliser: arguments.normaliser.address(),
                rows: arguments.workspace.address(),
                weight_gradient: address(arguments.weight_gradient),
                bias_gradient: address(arguments.bias_gradient),
                counters: cuda.counters_for(statistics::counters(blocks))?,
                pixels: shape.rows() as i32,
                channels: channels as i32,
                relu: i32::from(arguments.relu),
                vectorised,
                pixels_per_block: pixels_per_block as i32,
                padding: 0,
            },
            Work {
                operations: 6 * gradient.len() as u64,
                unit: ArithmeticUnit::Float32,
                bytes_read: (input.bytes() + gradient.bytes()) as u64 + bytes(output) + workspace(shape) as u64,
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
    // The input is read where the mask is computed from it, or where the sums of training mode want the normalised value.
    let has_slope = training && arguments.input_gradient.is_some();
    let input = arguments.input.filter(|_| has_slope || (arguments.relu && output.is_none()));
    cuda.launch(
        of_type(gradient.element_type(), "batch_norm_backward_fp32", "batch_norm_backward_bf16"),
        [pass_blocks(cuda, gradient), 1, 1],
        THREADS,
        5 * channels * 4,
        &BatchNormBackwardArguments {
            input: address(input),
            output: address(output),
            output_gradient: gradient.address(),
            normaliser: arguments.normaliser.address(),
            sums: if has_slope { arguments.workspace.address() } else { 0 },
            input_gradient: target(arguments.input_gradient),
            residual_gradient: target(arguments.residual_gradient),
            pixels: shape.rows() as i32,
            channels: channels as i32,
            relu: i32::from(arguments.relu),
            vectorised,
            accumulate_input: i32::from(accumulates(arguments.input_gradient)),
            accumulate_residual: i32::from(accumulates(arguments.residual_gradient)),
        },
        Work {
            operations: 6 * gradient.len() as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: (gradient.bytes() + added) as u64 + bytes(input) + bytes(output),
            bytes_written: written as u64,
        },
    )
}
