//! Launches of `kernels/linear.cu`.

use super::Cuda;
use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use crate::device::Gradient;
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;

kernel_arguments! {
    struct LinearForwardArguments {
        input: u64,
        weight: u64,
        bias: u64,
        output: u64,
        batch: i32,
        inputs: i32,
        outputs: i32,
        padding: i32,
    }
}

kernel_arguments! {
    struct LinearInputGradientArguments {
        output_gradient: u64,
        weight: u64,
        input_gradient: u64,
        batch: i32,
        inputs: i32,
        outputs: i32,
        accumulate: i32,
    }
}

kernel_arguments! {
    struct LinearWeightGradientArguments {
        input: u64,
        output_gradient: u64,
        weight_gradient: u64,
        bias_gradient: u64,
        batch: i32,
        inputs: i32,
        outputs: i32,
        padding: i32,
    }
}

fn work(multiply_adds: usize, read: usize, written: usize) -> Work {
    Work {
        operations: 2 * multiply_adds as u64,
        unit: ArithmeticUnit::Float32,
        bytes_read: read as u64,
        bytes_written: written as u64,
    }
}

pub(super) fn forward(cuda: &Cuda, input: &Tensor, weight: &Tensor, bias: &Tensor, output: &Tensor) -> Result<()> {
    let inputs = input.shape().channels();
    cuda.launch(
        "linear_forward",
        [output.len().div_ceil(WARPS), 1, 1],
        THREADS,
        0,
        &LinearForwardArguments {
            input: input.address(),
            weight: weight.address(),
            bias: bias.address(),
            output: output.address(),
            batch: input.shape().rows() as i32,
            inputs: inputs as i32,
            outputs: output.shape().channels() as i32,
            padding: 0,
        },
        work(output.len() * inputs, input.bytes() + weight.bytes() + bias.bytes(), output.bytes()),
    )
}

pub(super) fn input_gradient(
    cuda: &Cuda,
    output_gradient: &Tensor,
    weight: &Tensor,
    input_gradient: &Gradient,
) -> Result<()> {
    let Gradient { tensor, accumulate } = input_gradient;
    let before = if *accumulate { tensor.bytes() } else { 0 };
    cuda.launch(
        "linear_input_gradient",
        [tensor.len().div_ceil(THREADS), 1, 1],
        THREADS,
        0,
        &LinearInputGradientArguments {
            output_gradient: output_gradient.address(),
            weight: weight.address(),
            input_gradient: tensor.address(),
            batch: tensor.shape().rows() as i32,
            inputs: tensor.shape().channels() as i32,
            outputs: output_gradient.shape().channels() as i32,
            accumulate: i32::from(*accumulate),
        },
        work(
            output_gradient.len() * tensor.shape().channels(),
            output_gradient.bytes() + weight.bytes() + before,
            tensor.bytes(),
        ),
    )
}

pub(super) fn weight_gradient(
    cuda: &Cuda,
    input: Option<&Tensor>,
    output_gradient: &Tensor,
    weight_gradient: Option<&Tensor>,
    bias_gradient: Option<&Tensor>,
) -> Result<()> {
    // A weight's gradient without an input cannot be computed; the trait says that the input may be absent only where
    // the bias alone is wanted.
    let (input, weight_gradient) = input.zip(weight_gradient).unzip();
    let inputs = input.map_or(0, |input| input.shape().channels());
    let outputs = output_gradient.shape().channels();
    let address = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::address);
    let bytes = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::bytes);
    cuda.launch(
        "linear_weight_gradient",
        [(outputs * (inputs + 1)).div_ceil(THREADS), 1, 1],
        THREADS,
        0,
        &LinearWeightGradientArguments {
            input: address(input),
            output_gradient: output_gradient.address(),
            weight_gradient: address(weight_gradient),
            bias_gradient: address(bias_gradient),
            batch: output_gradient.shape().rows() as i32,
            inputs: inputs as i32,
            outputs: outputs as i32,
            padding: 0,
        },
        work(
            output_gradient.len() * (inputs + 1),
            bytes(input) + output_gradient.bytes(),
            bytes(weight_gradient) + bytes(bias_gradient),
        ),
    )
}
