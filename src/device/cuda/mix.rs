//! Launches of `kernels/mix.cu`.

use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use super::engine::Cuda;
use crate::device::interface::{Mix, Mixture};
use crate::error::{Error, Result};
use crate::tensor::ElementType;

const THREADS: usize = 256;
/// Elements of an image that a thread processes.
const GROUP: usize = 4;

kernel_arguments! {
    struct MixArguments {
        images: u64,
        words: u64,
        count: u32,
        width: u32,
        length: u32,
        vectorised: u32,
    }
}

pub(super) fn run(cuda: &Cuda, arguments: &Mix) -> Result<()> {
    let Mix { images, words } = *arguments;
    let kernel = match images.element_type() {
        ElementType::F32 => "mix_fp32",
        ElementType::Bf16 => "mix_bf16",
        _ => return Err(Error::new(format!("mix: {images:?} are not activations"))),
    };
    let (&[count, height, width, 3], Mixture::WORDS) = (images.shape().dims(), words.len()) else {
        return Err(Error::new(format!("mix: {images:?} is not a batch of images, or {words:?} are not its words")));
    };
    let length = height * width * 3;
    // The kernel counts elements of an image in 32 bits, also those of the last threads that lie beyond its end.
    if length + THREADS * GROUP > u32::MAX as usize || count > u32::MAX as usize {
        return Err(Error::new(format!("mix: {images:?}: the images are too large")));
    }
    if count < 2 || length == 0 {
        return Ok(());
    }
    let bytes = GROUP * images.element_type().size();
    let is_aligned = images.address().is_multiple_of(bytes as u64) && length.is_multiple_of(GROUP);
    cuda.launch(
        kernel,
        [length.div_ceil(GROUP * THREADS), 1, 1],
        THREADS,
        0,
        &MixArguments {
            images: images.address(),
            words: words.address(),
            count: count as u32,
            width: width as u32,
            length: length as u32,
            vectorised: u32::from(is_aligned),
        },
        Work {
            operations: 3 * images.len() as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: images.bytes() as u64,
            bytes_written: images.bytes() as u64,
        },
    )
}
