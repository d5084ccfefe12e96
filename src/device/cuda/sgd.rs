//! Launches of `kernels/sgd.cu`.

use super::Cuda;
use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use crate::device::SgdStep;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

const THREADS: usize = 256;
/// Values of a thread at a time.
const GROUP: usize = 4;

kernel_arguments! {
    struct SgdArguments {
        values: u64,
        gradients: u64,
        velocity: u64,
        copy: u64,
        length: i64,
        learning_rate: f32,
        momentum: f32,
        weight_decay: f32,
        padding: i32,
    }
}

pub(super) fn step(cuda: &Cuda, arguments: &SgdStep) -> Result<()> {
    let SgdStep { values, gradients, velocity, copy, learning_rate, momentum, weight_decay } = *arguments;
    let length = values.len();
    let bytes = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::bytes);
    if length == 0 {
        return Ok(());
    }
    if !length.is_multiple_of(GROUP) {
        return Err(Error::new(format!("sgd: {length} values are no multiple of {GROUP}")));
    }
    let groups = length / GROUP;
    cuda.launch(
        "sgd",
        [groups.div_ceil(THREADS).min(cuda.capabilities.multiprocessors as usize * 8), 1, 1],
        THREADS,
        0,
        &SgdArguments {
            values: values.address(),
            gradients: gradients.address(),
            velocity: velocity.map_or(0, Tensor::address),
            copy: copy.map_or(0, Tensor::address),
            length: length as i64,
            learning_rate,
            momentum,
            weight_decay,
            padding: 0,
        },
        Work {
            operations: (length * if velocity.is_some() { 6 } else { 4 }) as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: (values.bytes() + gradients.bytes() + bytes(velocity)) as u64,
            bytes_written: (values.bytes() + bytes(velocity) + bytes(copy)) as u64,
        },
    )
}
