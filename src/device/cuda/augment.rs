//! Launches of `kernels/augment.cu`.

use super::Cuda;
use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use crate::device::{Augment, PictureView};
use crate::error::{Error, Result};
use crate::tensor::ElementType;

/// Rows and columns that a block makes.
const TILE: usize = 32;
const THREADS: usize = 256;

kernel_arguments! {
    struct AugmentArguments {
        views: u64,
        levels: u64,
        output: u64,
        image_size: i32,
        tiles: i32,
    }
}

pub(super) fn run(cuda: &Cuda, arguments: &Augment) -> Result<()> {
    let Augment { views, levels, output, source_pixels } = *arguments;
    let &[pictures, height, width, 3] = output.shape().dims() else {
        return Err(Error::new(format!("augment: {output:?} is no batch of pictures")));
    };
    let kernel = match (output.element_type(), levels) {
        (ElementType::F32, Some(_)) => "augment_fp32",
        (ElementType::Bf16, Some(_)) => "augment_bf16",
        (ElementType::U8, None) => "augment_bytes",
        _ => return Err(Error::new(format!("augment: {output:?} with levels {levels:?}"))),
    };
    let fits = height == width
        && i32::try_from(height).is_ok()
        && views.bytes() == pictures * PictureView::BYTES
        && views.address().is_multiple_of(8)
        && levels.is_none_or(|levels| levels.element_type() == ElementType::F32 && levels.len() == 3 * 256);
    if !fits {
        return Err(Error::new(format!("augment: {views:?} and {levels:?} do not belong to {output:?}")));
    }
    if output.is_empty() {
        return Ok(());
    }
    let tiles = height.div_ceil(TILE);
    let read = source_pixels * 3;
    // A source pixel takes part in two scaled pixels of its row, a scaled row in two output rows.
    let multiply_adds = 2 * read + 2 * output.len() as u64;
    cuda.launch(
        kernel,
        [pictures * tiles * tiles, 1, 1],
        THREADS,
        0,
        &AugmentArguments {
            views: views.address(),
            levels: levels.map_or(0, |levels| levels.address()),
            output: output.address(),
            image_size: height as i32,
            tiles: tiles as i32,
        },
        Work {
            operations: 2 * multiply_adds,
            unit: ArithmeticUnit::Float32,
            bytes_read: read + views.bytes() as u64,
            bytes_written: output.bytes() as u64,
        },
    )
}
