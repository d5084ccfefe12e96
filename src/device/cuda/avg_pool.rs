//! Launches of `kernels/avg_pool.cu`.

use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use super::engine::{Cuda, group_count, group_length, of_type};
use crate::device::interface::Gradient;
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: usize = 256;
/// Groups of channels of a block, forward.
const GROUPS_PER_BLOCK: usize = 32;

kernel_arguments! {
    struct AvgPoolForwardArguments {
        input: u64,
        output: u64,
        pixels: i32,
        channels: i32,
        tiles: i32,
        vectorised: i32,
    }
}

kernel_arguments! {
    struct AvgPoolBackwardArguments {
        output_gradient: u64,
        input_gradient: u64,
        groups: u32,
        pixels: i32,
        channels: i32,
        vectorised: i32,
        accumulate: i32,
        unused: i32,
    }
}

pub(super) fn forward(cuda: &Cuda, input: &Tensor, output: &Tensor) -> Result<()> {
    let channels = output.shape().channels();
    let length = group_length(input);
    let tiles = (channels / length).div_ceil(GROUPS_PER_BLOCK);
    cuda.launch(
        of_type(input.element_type(), "avg_pool_forward_fp32", "avg_pool_forward_bf16"),
        [output.shape().rows() * tiles, 1, 1],
        THREADS,
        0,
        &AvgPoolForwardArguments {
            input: input.address(),
            output: output.address(),
            pixels: (input.len() / output.len().max(1)) as i32,
            channels: channels as i32,
            tiles: tiles as i32,
            vectorised: i32::from(length > 1),
        },
        Work {
            operations: input.len() as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: input.bytes() as u64,
            bytes_written: output.bytes() as u64,
        },
    )
}

pub(super) fn backward(cuda: &Cuda, output_gradient: &Tensor, input_gradient: &Gradient) -> Result<()> {
    let Gradient { tensor, accumulate } = input_gradient;
    let length = group_length(tensor);
    let groups = group_count(tensor, length)?;
    let before = if *accumulate { tensor.bytes() } else { 0 };
    cuda.launch(
        of_type(tensor.element_type(), "avg_pool_backward_fp32", "avg_pool_backward_bf16"),
        [(groups as usize).div_ceil(THREADS), 1, 1],
        THREADS,
        0,
        &AvgPoolBackwardArguments {
            output_gradient: output_gradient.address(),
            input_gradient: tensor.address(),
            groups,
            pixels: (tensor.len() / output_gradient.len().max(1)) as i32,
            channels: output_gradient.shape().channels() as i32,
            vectorised: i32::from(length > 1),
            accumulate: i32::from(*accumulate),
            unused: 0,
        },
        Work {
            operations: tensor.len() as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: (output_gradient.bytes() + before) as u64,
            bytes_written: tensor.bytes() as u64,
        },
    )
}
