//! Launches of the optimisers' kernels, which share `kernels/optimizer.cuh`.

use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use super::engine::Cuda;
use crate::device::update::UpdateArguments;
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: usize = 256;
/// Values per thread.
const GROUP: usize = 4;

kernel_arguments! {
    struct UpdateKernelArguments {
        values: u64,
        gradients: u64,
        first_slot: u64,
        second_slot: u64,
        compute_copy: u64,
        count: u64,
        words: u64,
        loss: u64,
        norm: u64,
        max_norm: f32,
        vectorised: i32,
    }
}

pub(super) fn run(cuda: &Cuda, arguments: &UpdateArguments) -> Result<()> {
    let UpdateArguments { rule, values, gradients, slots, compute_copy, words, loss, clip } = *arguments;
    assert_eq!(slots.len(), rule.slots, "{}", rule.kernel);
    let length = values.len();
    if length == 0 {
        return Ok(());
    }
    let vectorised = [values, gradients]
        .into_iter()
        .chain(slots)
        .chain(compute_copy)
        .all(|tensor| tensor.address().is_multiple_of((GROUP * tensor.element_type().size()) as u64));
    let address = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::address);
    let slot_bytes: usize = slots.iter().map(Tensor::bytes).sum();
    cuda.launch(
        rule.kernel,
        [length.div_ceil(GROUP * THREADS), 1, 1],
        THREADS,
        0,
        &UpdateKernelArguments {
            values: values.address(),
            gradients: gradients.address(),
            first_slot: address(slots.first()),
            second_slot: address(slots.get(1)),
            compute_copy: address(compute_copy),
            count: length as u64,
            words: words.address(),
            loss: address(loss),
            norm: address(clip.map(|clip| clip.norm)),
            max_norm: clip.map_or(0.0, |clip| clip.max_norm),
            vectorised: i32::from(vectorised),
        },
        Work {
            operations: (length * rule.operations) as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: (values.bytes() + gradients.bytes() + slot_bytes) as u64,
            bytes_written: (values.bytes() + slot_bytes + compute_copy.map_or(0, Tensor::bytes)) as u64,
        },
    )
}
