//! Launches of `kernels/linear.cu`.

use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use super::engine::Cuda;
use crate::device::interface::Gradient;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

const THREADS: usize = 256;
/// Rows and columns of the result that a block computes.
const TILE: usize = 32;

kernel_arguments! {
    struct LinearArguments {
        left: u64,
        right: u64,
        summand: u64,
        result: u64,
        sums: u64,
        rows: i32,
        columns: i32,
        depth: i32,
        tiles: i32,
        column_tiles: i32,
        accumulate: i32,
    }
}

/// A result of `rows` x `columns`, each a sum of `depth` products.
#[derive(Clone, Copy)]
struct Product {
    rows: usize,
    columns: usize,
    depth: usize,
}

/// Addresses of the operands; zero if there is none.
#[derive(Default)]
struct Operands {
    left: u64,
    right: u64,
    summand: u64,
    result: u64,
    sums: u64,
    accumulate: bool,
}

fn launch(
    cuda: &Cuda,
    kernel: &'static str,
    Product { rows, columns, depth }: Product,
    operands: Operands,
    bytes_read: usize,
    bytes_written: usize,
) -> Result<()> {
    let extent = |extent: usize| {
        i32::try_from(extent).map_err(|_| Error::new(format!("{kernel}: {rows} x {columns} x {depth} is too large")))
    };
    let column_tiles = columns.div_ceil(TILE);
    let tiles = if operands.result == 0 { 0 } else { rows.div_ceil(TILE) * column_tiles };
    let sum_blocks = if operands.sums == 0 { 0 } else { rows.div_ceil(TILE) };
    let multiply_adds = if operands.result == 0 { 0 } else { rows * columns * depth };
    let additions = if operands.sums == 0 { 0 } else { rows * depth };
    if tiles + sum_blocks == 0 {
        return Ok(());
    }
    cuda.launch(
        kernel,
        [tiles + sum_blocks, 1, 1],
        THREADS,
        0,
        &LinearArguments {
            left: operands.left,
            right: operands.right,
            summand: operands.summand,
            result: operands.result,
            sums: operands.sums,
            rows: extent(rows)?,
            columns: extent(columns)?,
            depth: extent(depth)?,
            tiles: extent(tiles)?,
            column_tiles: extent(column_tiles)?,
            accumulate: i32::from(operands.accumulate),
        },
        Work {
            operations: (2 * multiply_adds + additions) as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: bytes_read as u64,
            bytes_written: bytes_written as u64,
        },
    )
}

pub(super) fn forward(cuda: &Cuda, input: &Tensor, weight: &Tensor, bias: &Tensor, output: &Tensor) -> Result<()> {
    launch(
        cuda,
        "linear_forward",
        Product { rows: input.shape().rows(), columns: output.shape().channels(), depth: input.shape().channels() },
        Operands {
            left: input.address(),
            right: weight.address(),
            summand: bias.address(),
            result: output.address(),
            ..Operands::default()
        },
        input.bytes() + weight.bytes() + bias.bytes(),
        output.bytes(),
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
    launch(
        cuda,
        "linear_input_gradient",
        Product {
            rows: tensor.shape().rows(),
            columns: tensor.shape().channels(),
            depth: output_gradient.shape().channels(),
        },
        Operands {
            left: output_gradient.address(),
            right: weight.address(),
            result: tensor.address(),
            accumulate: *accumulate,
            ..Operands::default()
        },
        output_gradient.bytes() + weight.bytes() + before,
        tensor.bytes(),
    )
}

pub(super) fn weight_gradient(
    cuda: &Cuda,
    input: Option<&Tensor>,
    output_gradient: &Tensor,
    weight_gradient: Option<&Tensor>,
    bias_gradient: Option<&Tensor>,
) -> Result<()> {
    if weight_gradient.is_some() && input.is_none() {
        return Err(Error::new("linear: the weight's gradient needs the input"));
    }
    let input = input.filter(|_| weight_gradient.is_some());
    let address = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::address);
    let bytes = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::bytes);
    launch(
        cuda,
        "linear_weight_gradient",
        Product {
            rows: output_gradient.shape().channels(),
            columns: input.map_or(0, |input| input.shape().channels()),
            depth: output_gradient.shape().rows(),
        },
        Operands {
            left: output_gradient.address(),
            right: address(input),
            result: address(weight_gradient),
            sums: address(bias_gradient),
            ..Operands::default()
        },
        bytes(input) + output_gradient.bytes(),
        bytes(weight_gradient) + bytes(bias_gradient),
    )
}
