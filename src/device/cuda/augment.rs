//! Launches of `kernels/augment.cu`.

use super::arguments::kernel_arguments;
use super::driver::{ArithmeticUnit, Work};
use super::engine::Cuda;
use crate::device::interface::{Augment, ImageView};
use crate::error::{Error, Result};
use crate::tensor::ElementType;

/// Rows and columns that a block computes.
const TILE: usize = 32;
const THREADS: usize = 256;
/// Rows and columns of the largest images with edits: a kernel counts their pixels in 32 bits.
const LARGEST_EDITED: usize = 1 << 15;

kernel_arguments! {
    struct AugmentArguments {
        views: u64,
        lookup_table: u64,
        output: u64,
        workspace: u64,
        image_size: i32,
        tiles: i32,
    }
}

pub(super) fn run(cuda: &Cuda, arguments: &Augment) -> Result<()> {
    let Augment { views, lookup_table, output, source_pixels, workspace } = *arguments;
    let &[images, height, width, 3] = output.shape().dims() else {
        return Err(Error::new(format!("augment: {output:?} is not a batch of images")));
    };
    let kernel = match (output.element_type(), lookup_table, workspace) {
        (ElementType::F32, Some(_), None) => "augment_fp32",
        (ElementType::Bf16, Some(_), None) => "augment_bf16",
        (ElementType::U8, None, None) => "augment_bytes",
        (ElementType::F32, Some(_), Some(_)) => "augment_edited_fp32",
        (ElementType::Bf16, Some(_), Some(_)) => "augment_edited_bf16",
        (ElementType::U8, None, Some(_)) => "augment_edited_bytes",
        _ => return Err(Error::new(format!("augment: {output:?} with lookup table {lookup_table:?}"))),
    };
    let fits = height == width
        && i32::try_from(height).is_ok()
        && views.bytes() == images * ImageView::BYTES
        && views.address().is_multiple_of(8)
        && lookup_table.is_none_or(|table| table.element_type() == ElementType::F32 && table.len() == 3 * 256);
    if !fits {
        return Err(Error::new(format!("augment: {views:?} and {lookup_table:?} do not belong to {output:?}")));
    }
    if let Some(workspace) = workspace {
        let bytes = Augment::workspace_bytes(height);
        let fits = matches!(*workspace.shape().dims(), [rows, columns] if rows >= images && columns == bytes)
            && workspace.element_type() == ElementType::U8
            && workspace.address().is_multiple_of(16)
            && height <= LARGEST_EDITED;
        if !fits {
            return Err(Error::new(format!("augment: {workspace:?} is not the memory for edits of {output:?}")));
        }
    }
    if output.is_empty() {
        return Ok(());
    }
    let tiles = height.div_ceil(TILE);
    let read = source_pixels * 3;
    // A source pixel contributes to two scaled pixels of its row, a scaled row in two output rows.
    let multiply_adds = 2 * read + 2 * output.len() as u64;
    // At most, an edited pixel is written and read twice, and read once more for a mean or a histogram.
    let [staged_read, staged_written] = [3, 2].map(|times| match workspace {
        Some(_) => times * 4 * (images * height * width) as u64,
        None => 0,
    });
    cuda.launch(
        kernel,
        [images * tiles * tiles, 1, 1],
        THREADS,
        0,
        &AugmentArguments {
            views: views.address(),
            lookup_table: lookup_table.map_or(0, |table| table.address()),
            output: output.address(),
            workspace: workspace.map_or(0, |workspace| workspace.address()),
            image_size: height as i32,
            tiles: tiles as i32,
        },
        Work {
            operations: 2 * multiply_adds,
            unit: ArithmeticUnit::Float32,
            bytes_read: read + views.bytes() as u64 + staged_read,
            bytes_written: output.bytes() as u64 + staged_written,
        },
    )
}
