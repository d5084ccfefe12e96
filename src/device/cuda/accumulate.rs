//! Launches of `kernels/accumulate.cu`.

use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use super::engine::Cuda;
use crate::device::interface::Accumulate;
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: usize = 256;
/// Values per thread.
const GROUP: usize = 4;

kernel_arguments! {
    struct AccumulateArguments {
        values: u64,
        sums: u64,
        words: u64,
        loss: u64,
        norm: u64,
        count: u64,
        vectorised: i32,
        padding: i32,
    }
}

pub(super) fn run(cuda: &Cuda, arguments: &Accumulate) -> Result<()> {
    let Accumulate { values, sums, words, loss, norm } = *arguments;
    let length = values.len();
    if length == 0 {
        return Ok(());
    }
    let is_aligned = |tensor: &Tensor| tensor.address().is_multiple_of((GROUP * size_of::<f32>()) as u64);
    cuda.launch(
        "accumulate",
        [length.div_ceil(GROUP * THREADS), 1, 1],
        THREADS,
        0,
        &AccumulateArguments {
            values: values.address(),
            sums: sums.address(),
            words: words.address(),
            loss: loss.map_or(0, Tensor::address),
            norm: norm.map_or(0, Tensor::address),
            count: length as u64,
            vectorised: i32::from(is_aligned(values) && is_aligned(sums)),
            padding: 0,
        },
        Work {
            operations: 3 * length as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: (values.bytes() + sums.bytes()) as u64,
            bytes_written: sums.bytes() as u64,
        },
    )
}
