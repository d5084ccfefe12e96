//! The matrix kernel of both convolution algorithms: `result (+)= left * right`, for a strip of `right` that is two
//! vectors wide.
//!
//! The sums of `rows` x two vectors stay in registers over the whole depth: 14 x 32 floats with AVX-512 (28 of 32
//! registers), 6 x 16 with AVX2 (12 of 16). One step of the depth is 28 multiply-adds on 2 vector loads and 14
//! broadcast loads, so the two load ports are idle almost half of the time. The multiply-add units are the limit as
//! long as a step's 128 bytes of `right` and 56 of `left` come from the L1 or L2 cache: 64 operations per cycle on a
//! core with two 512-bit units.
//!
//! `left` is never packed. Its rows are `left_row` floats apart, so a convolution reads its pixels in place: a row of
//! the matrix is one output pixel, whose taps in one image row are contiguous in NHWC, and an image row is one
//! *segment* of the depth. In the transposed form, the rows are adjacent and the depth has the stride.

use super::simd::{Level, Vector, instantiate};

/// Steps of the depth by which the right matrix is prefetched.
const AHEAD: usize = 64;

/// The widest strip of any level, two vectors of sixteen. It determines the size of buffers.
pub const WIDEST_STRIP: usize = 32;

/// Columns of a strip at this level: two vectors.
pub fn strip(level: Level) -> usize {
    2 * level.lanes()
}

instantiate! {
    /// Copies the first `columns` of `rows` rows, `stride` floats apart, to whole strips padded with zeros.
    ///
    /// # Safety
    /// `source` must be valid for the rows, `target` for `rows` strips.
    pub unsafe fn pack = pack_generic(source: *const f32, stride: usize, rows: usize, columns: usize, target: *mut f32)
}

#[inline(always)]
unsafe fn pack_generic<V: Vector>(source: *const f32, stride: usize, rows: usize, columns: usize, target: *mut f32) {
    for row in 0..rows {
        for lane in [0, V::LANES] {
            // SAFETY: guaranteed by the caller; lanes starting at `columns` are not read.
            unsafe {
                let source = source.wrapping_add(row * stride + lane);
                let value = V::load_first(source, columns.saturating_sub(lane));
                value.store(target.add(row * 2 * V::LANES + lane));
            }
        }
    }
}

/// The positions of the rows of a matrix. Rows in a line, lines in an image, and images each have a constant distance.
#[derive(Clone, Copy)]
pub struct Grid {
    /// Rows in a line.
    pub columns: usize,
    /// Lines in an image.
    pub lines: usize,
    /// Distance of the rows of a line.
    pub column: usize,
    /// Distance of lines.
    pub line: usize,
    /// Distance of images.
    pub image: usize,
}

impl Grid {
    /// Rows with a constant distance.
    pub fn even(distance: usize) -> Grid {
        Grid { columns: usize::MAX, lines: 1, column: distance, line: 0, image: 0 }
    }

    #[inline(always)]
    fn offset(&self, row: usize) -> usize {
        if row < self.columns {
            return row * self.column;
        }
        let line = row / self.columns;
        row % self.columns * self.column + line % self.lines * self.line + line / self.lines * self.image
    }
}

/// `left` (`rows` x `segments * depth`) times `right` (`segments * depth` x one strip).
#[derive(Clone, Copy)]
pub struct Product {
    /// Rows of `left` and `result`.
    pub rows: usize,
    /// Columns of `result` to store; at most the strip.
    pub columns: usize,
    /// Number of contiguous segments of the depth.
    pub segments: usize,
    /// Length of a segment.
    pub depth: usize,
    /// The left matrix.
    pub left: *const f32,
    /// The layout of its rows and its depth.
    pub left_order: Order,
    /// Distance between its segments.
    pub left_segment: usize,
    /// The right matrix: contiguous, `segments * depth` rows of one strip.
    pub right: *const f32,
    /// The product.
    pub result: *mut f32,
    /// The positions of its rows.
    pub result_rows: Grid,
    /// Whether to add to the values in `result`.
    pub accumulate: bool,
}

/// The layout of the left matrix in memory.
#[derive(Clone, Copy)]
pub enum Order {
    /// The depth is contiguous; the rows have these positions.
    Rows(Grid),
    /// The rows are adjacent; the steps of the depth are this far apart.
    Columns(usize),
}

instantiate! {
    /// Computes the product.
    ///
    /// # Safety
    /// The pointers must be valid for the sizes in the fields, and nothing else may access `result`.
    pub unsafe fn multiply = multiply_generic(product: &Product)
}

#[inline(always)]
unsafe fn multiply_generic<V: Vector>(product: &Product) {
    // Groups of nearly equal height: 32 rows are 11 + 11 + 10 rather than 14 + 14 + 4.
    let groups = product.rows.div_ceil(V::BLOCK_ROWS);
    let mut row = 0;
    for group in 0..groups {
        let rows = (product.rows - row).div_ceil(groups - group);
        // SAFETY: `row + rows <= product.rows`; the caller guarantees the pointers.
        unsafe {
            match product.left_order {
                Order::Rows(_) => group_of_rows::<V, false>(product, row, rows),
                Order::Columns(_) => group_of_rows::<V, true>(product, row, rows),
            }
        }
        row += rows;
    }
}

#[inline(always)]
unsafe fn group_of_rows<V: Vector, const COLUMNS: bool>(product: &Product, row: usize, rows: usize) {
    macro_rules! pick {
        ($($count:literal)*) => {
            match rows {
                // The guard lets narrower levels omit the kernels that they never call.
                // SAFETY: as for this function; `rows` rows starting at `row` are inside the matrices.
                $($count if $count <= V::BLOCK_ROWS => unsafe { block::<V, $count, COLUMNS>(product, row) },)*
                _ => unreachable!("a group has at most BLOCK_ROWS rows"),
            }
        };
    }
    pick!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// Computes `ROWS` rows of the product, starting at `row`.
#[inline(always)]
unsafe fn block<V: Vector, const ROWS: usize, const COLUMNS: bool>(product: &Product, row: usize) {
    // SAFETY: reads `ROWS` x `segments * depth` of left and `segments * depth` strips of right, and writes `ROWS` x
    // `columns` of the result. The caller guarantees that all are valid, and `instantiate!` that the instruction set is
    // available.
    unsafe {
        let mut sums = [[V::splat(0.0); 2]; ROWS];
        let mut right = product.right;
        let (first, step) = match product.left_order {
            Order::Rows(grid) => (std::array::from_fn(|i| product.left.add(grid.offset(row + i))), 1),
            Order::Columns(step) => ([product.left.add(row); ROWS], step),
        };
        for segment in 0..product.segments {
            let mut left: [*const f32; ROWS] = first.map(|left| left.add(segment * product.left_segment));
            for k in 0..product.depth {
                let first = V::load(right);
                let second = V::load(right.add(V::LANES));
                right = right.add(2 * V::LANES);
                // Usually the next strip begins after the end of this one.
                V::prefetch(right.wrapping_add(AHEAD * 2 * V::LANES));
                V::prefetch(right.wrapping_add(AHEAD * 2 * V::LANES + V::LANES));
                for (i, sum) in sums.iter_mut().enumerate() {
                    let value = V::splat(*if COLUMNS { left[0].add(i) } else { left[i].add(k) });
                    sum[0] = value.mul_add(first, sum[0]);
                    sum[1] = value.mul_add(second, sum[1]);
                }
                if COLUMNS {
                    left[0] = left[0].wrapping_add(step);
                }
            }
        }
        for (i, sum) in sums.into_iter().enumerate() {
            let result = product.result.wrapping_add(product.result_rows.offset(row + i));
            for (half, value) in sum.into_iter().enumerate() {
                let target = result.wrapping_add(half * V::LANES);
                let columns = product.columns.saturating_sub(half * V::LANES);
                if columns >= V::LANES {
                    let value = if product.accumulate { value.add(V::load(target)) } else { value };
                    value.store(target);
                } else if columns > 0 {
                    let value = if product.accumulate { value.add(V::load_first(target, columns)) } else { value };
                    value.store_first(target, columns);
                }
            }
        }
    }
}
