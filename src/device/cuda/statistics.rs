//! Tables of rows that blocks leave for each other: the host's side of `kernels/statistics.cuh`.

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Output pixels of one block of a forward convolution, of whichever kernel: the pixels of a row of partial statistics.
pub(super) const PIXELS_PER_BLOCK: usize = 128;
/// Rows that the last block of a group to arrive combines.
const BLOCKS_PER_GROUP: usize = 64;

/// Rows of a table: the total, one per group of blocks, one per block.
pub(super) fn rows_of(blocks: usize) -> usize {
    1 + blocks.div_ceil(BLOCKS_PER_GROUP) + blocks
}

/// Counters that a table needs: one per group, and one for the groups.
pub(super) fn counters(blocks: usize) -> usize {
    1 + blocks.div_ceil(BLOCKS_PER_GROUP)
}

/// The row with the sums over everything: `[2, C]`.
pub(super) fn total(statistics: &Tensor) -> Result<Tensor> {
    match *statistics.shape().dims() {
        [_, 2, channels] => Ok(statistics.part(0, [2, channels].into())),
        _ => Err(Error::new(format!("expected statistics of [rows, 2, C], found {statistics:?}"))),
    }
}
