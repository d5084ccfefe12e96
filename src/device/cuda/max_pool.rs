//! Launches of `kernels/max_pool.cu`.

use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use super::engine::{Cuda, group_count, group_length, of_type};
use crate::device::interface::{Gradient, MaxPoolWindow};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

const THREADS: usize = 256;

kernel_arguments! {
    struct MaxPoolGeometry {
        height: i32,
        width: i32,
        channels: i32,
        output_height: i32,
        output_width: i32,
        size: i32,
        stride: i32,
        padding: i32,
    }
}

kernel_arguments! {
    struct MaxPoolForwardArguments {
        input: u64,
        output: u64,
        indices: u64,
        groups: u32,
        geometry: MaxPoolGeometry,
        vectorised: i32,
    }
}

kernel_arguments! {
    struct MaxPoolBackwardArguments {
        indices: u64,
        output_gradient: u64,
        input_gradient: u64,
        groups: u32,
        geometry: MaxPoolGeometry,
        vectorised: i32,
        accumulate: i32,
        unused: i32,
    }
}

impl MaxPoolGeometry {
    fn new(window: MaxPoolWindow, input: &Tensor, output: &Tensor) -> Result<Self> {
        let [_, height, width, channels] = activation(input)?;
        let [_, output_height, output_width, _] = activation(output)?;
        Ok(Self {
            height: height as i32,
            width: width as i32,
            channels: channels as i32,
            output_height: output_height as i32,
            output_width: output_width as i32,
            size: window.size as i32,
            stride: window.stride as i32,
            padding: window.padding as i32,
        })
    }
}

fn activation(tensor: &Tensor) -> Result<[usize; 4]> {
    let shape = tensor.shape();
    shape.dims().try_into().map_err(|_| Error::new(format!("max_pool: expected [N, H, W, C], found {shape:?}")))
}

pub(super) fn forward(
    cuda: &Cuda,
    window: MaxPoolWindow,
    input: &Tensor,
    output: &Tensor,
    indices: Option<&Tensor>,
) -> Result<()> {
    let geometry = MaxPoolGeometry::new(window, input, output)?;
    let length = group_length(input);
    let groups = group_count(output, length)?;
    cuda.launch(
        of_type(input.element_type(), "max_pool_forward_fp32", "max_pool_forward_bf16"),
        [(groups as usize).div_ceil(THREADS), 1, 1],
        THREADS,
        0,
        &MaxPoolForwardArguments {
            input: input.address(),
            output: output.address(),
            indices: indices.map_or(0, Tensor::address),
            groups,
            geometry,
            vectorised: i32::from(length > 1),
        },
        Work {
            operations: (output.len() * window.size * window.size) as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: input.bytes() as u64,
            bytes_written: (output.bytes() + indices.map_or(0, Tensor::bytes)) as u64,
        },
    )
}

pub(super) fn backward(
    cuda: &Cuda,
    window: MaxPoolWindow,
    indices: &Tensor,
    output_gradient: &Tensor,
    input_gradient: &Gradient,
) -> Result<()> {
    let Gradient { tensor, accumulate } = input_gradient;
    let geometry = MaxPoolGeometry::new(window, tensor, output_gradient)?;
    let length = group_length(tensor);
    let groups = group_count(tensor, length)?;
    let before = if *accumulate { tensor.bytes() } else { 0 };
    cuda.launch(
        of_type(tensor.element_type(), "max_pool_backward_fp32", "max_pool_backward_bf16"),
        [(groups as usize).div_ceil(THREADS), 1, 1],
        THREADS,
        0,
        &MaxPoolBackwardArguments {
            indices: indices.address(),
            output_gradient: output_gradient.address(),
            input_gradient: tensor.address(),
            groups,
            geometry,
            vectorised: i32::from(length > 1),
            accumulate: i32::from(*accumulate),
            unused: 0,
        },
        Work {
            operations: (output_gradient.len() * window.size * window.size) as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: (indices.bytes() + output_gradient.bytes() + before) as u64,
            bytes_written: tensor.bytes() as u64,
        },
    )
}
