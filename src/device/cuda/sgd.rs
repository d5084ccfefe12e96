//! Launches of `kernels/sgd.cu`.

use super::Cuda;
use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use crate::device::SgdStep;
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: usize = 256;
/// Values of a thread.
const GROUP: usize = 4;

kernel_arguments! {
    struct SgdArguments {
        values: u64,
        gradients: u64,
        velocity: u64,
        copy: u64,
        count: u64,
        learning_rate: f32,
        momentum: f32,
        weight_decay: f32,
        vectorised: i32,
    }
}

pub(super) fn step(cuda: &Cuda, arguments: &SgdStep) -> Result<()> {
    let SgdStep { values, gradients, velocity, copy, learning_rate, momentum, weight_decay } = *arguments;
    let length = values.len();
    let bytes = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::bytes);
    if length == 0 {
        return Ok(());
    }
    let vectorised = [Some(values), Some(gradients), velocity, copy]
        .into_iter()
        .flatten()
        .all(|tensor| tensor.address().is_multiple_of((GROUP * tensor.element_type().size()) as u64));
    cuda.launch(
        "sgd",
        [length.div_ceil(GROUP * THREADS), 1, 1],
        THREADS,
        0,
        &SgdArguments {
            values: values.address(),
            gradients: gradients.address(),
            velocity: velocity.map_or(0, Tensor::address),
            copy: copy.map_or(0, Tensor::address),
            count: length as u64,
            learning_rate,
            momentum,
            weight_decay,
            vectorised: i32::from(vectorised),
        },
        Work {
            operations: (length * if velocity.is_some() { 6 } else { 4 }) as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: (values.bytes() + gradients.bytes() + bytes(velocity)) as u64,
            bytes_written: (values.bytes() + bytes(velocity) + bytes(copy)) as u64,
        },
    )
}
