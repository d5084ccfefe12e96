//! Winograd's minimal filtering F(4x4, 3x3): 3 x 3 convolutions of stride 1 and padding 1 with a quarter of the
//! multiplications.
//!
//! A row of 6 inputs and 3 taps gives 4 outputs: both are interpreted as polynomials, evaluated at 0, +-p, +-q and
//! infinity, multiplied point by point, and interpolated. In two dimensions, with a tile of 6 x 6 inputs `d`, a filter
//! `w` and 4 x 4 outputs `y`:
//!
//! ```text
//! forward              y  = At [ (G w Gt) . (Bt d B) ] A      summed over input channels inside the brackets
//! weight gradient      dw = Gt [ (A dy At) . (Bt d B) ] G     summed over tiles inside the brackets
//! ```
//!
//! The second formula is the transpose of the first. The input gradient is the forward pass over the output gradient,
//! with filters rotated by 180 degrees and the channels exchanged. Inside the brackets, each of the 36 points is a
//! matrix product of its own.
//!
//! The points are (p, q) = (2/3, 3/2): with p * q = 1 several factors vanish, and the rounding error is half of that of
//! the usual (1, 2), about 1e-6 relative in float32.
//!
//! A tile that extends over the edge of an image has fewer outputs, and so needs fewer points: see [`Side`].
//!
//! Bound by the multiply-add units in the products: 36 / 16 = 2.25 multiply-adds for each output and pair of channels,
//! compared with 9. The transforms need about 300 vector operations per tile and channel vector, and read and write 36
//! / 16 of an image. With AVX2 they take 40 % of a forward pass at 64 channels and 15 % at 256. At 512 channels,
//! reading the 36 / 9 times larger filters takes as long.

use super::batch_norm::Finish;
use super::gemm::{self, Grid, Order, Product, WIDEST_STRIP};
use super::jobs::{self, LINE, Shared, lines};
use super::simd::{Level, Vector, instantiate};
use crate::device::conv2d::Conv2dShape;
use crate::device::threads;

/// Points in a tile.
const POINTS: usize = 36;
/// Outputs along the side of a tile.
const SIDE: usize = 4;

const P: f32 = 2.0 / 3.0;
const Q: f32 = 1.5;
const P2: f32 = P * P;
const Q2: f32 = Q * Q;
/// Factors of interpolation at +-p and at +-q.
const GP: f32 = 1.0 / (2.0 * P2 * (P2 - Q2));
const GQ: f32 = 1.0 / (2.0 * Q2 * (Q2 - P2));

/// Whether this algorithm supports the shape and is faster.
pub fn suits(shape: &Conv2dShape) -> bool {
    let tiles = Tiles::new(shape);
    let filter = (shape.kernel_height, shape.kernel_width, shape.stride, shape.padding);
    let channels = [shape.input_channels, shape.output_channels];
    filter == (3, 3, 1, 1)
        && channels.iter().all(|&count| count >= 32 && count.is_multiple_of(16))
        // There must be enough tiles to outweigh the transform of the filters, and enough savings to outweigh that of
        // the tiles.
        && tiles.total >= 32
        && 2 * tiles.products() <= shape.batch * shape.height * shape.width * 9
}

/// The number of outputs of a tile along a side: four, or the remainder at the edge of an image. Fewer outputs need
/// fewer points, and the products at the others are omitted. The points of a filter stay the same, so the factors of
/// interpolation that differ are in the matrix of the inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// All points.
    Four,
    /// Without -q.
    Three,
    /// One or two outputs: without +-q.
    Two,
}

impl Side {
    /// Whether the products at a point are needed.
    #[inline(always)]
    fn has(self, point: usize) -> bool {
        match self {
            Side::Four => true,
            Side::Three => point != 4,
            Side::Two => point != 3 && point != 4,
        }
    }
}

/// The sides of all tiles except those at the edges of an image.
const WHOLE: (Side, Side) = (Side::Four, Side::Four);

/// One matrix of the formulas above, applied to a row of six vectors; unused vectors have no meaning.
trait Transform {
    /// Number of input values along a side.
    const INPUT: usize;
    /// Number of output values.
    const OUTPUT: usize;
    /// # Safety
    /// As for [`Vector`].
    unsafe fn apply<V: Vector>(side: Side, values: [V; 6]) -> [V; 6];
}

/// `a * x + y`
#[inline(always)]
unsafe fn axpy<V: Vector>(a: f32, x: V, y: V) -> V {
    // SAFETY: by the caller.
    unsafe { x.mul_add(V::splat(a), y) }
}

/// Bt: inputs to points.
struct Inputs;

impl Transform for Inputs {
    const INPUT: usize = 6;
    const OUTPUT: usize = 6;

    #[inline(always)]
    unsafe fn apply<V: Vector>(side: Side, d: [V; 6]) -> [V; 6] {
        // SAFETY: by the caller.
        unsafe {
            match side {
                Side::Four => {
                    let (even_p, odd_p) = (axpy(-Q2, d[2], d[4]), axpy(-Q2, d[1], d[3]));
                    let (even_q, odd_q) = (axpy(-P2, d[2], d[4]), axpy(-P2, d[1], d[3]));
                    [
                        axpy(-(P2 + Q2), d[2], d[0].add(d[4])),
                        axpy(P, odd_p, even_p),
                        axpy(-P, odd_p, even_p),
                        axpy(Q, odd_q, even_q),
                        axpy(-Q, odd_q, even_q),
                        axpy(-(P2 + Q2), d[3], d[1].add(d[5])),
                    ]
                }
                Side::Three => [
                    axpy(Q, d[3], axpy(-Q2, d[2], axpy(-P, d[1], d[0]))),
                    V::splat(P + Q).mul(axpy(P - Q, d[2], d[3].sub(d[1]))),
                    V::splat(Q - P).mul(axpy(-(P + Q), d[2], d[3].add(d[1]))),
                    V::splat(2.0 * Q).mul(axpy(-P2, d[1], d[3])),
                    d[5],
                    axpy(P, d[1], axpy(-P2, d[2], axpy(-Q, d[3], d[4]))),
                ],
                Side::Two => {
                    let (even, odd) = (V::splat(P2 - Q2).mul(d[2]), V::splat((P2 - Q2) * P).mul(d[1]));
                    [axpy(-Q2, d[2], d[0]), even.add(odd), even.sub(odd), d[5], d[5], axpy(-P2, d[1], d[3])]
                }
            }
        }
    }
}

/// At: points to outputs.
struct Outputs;

impl Transform for Outputs {
    const INPUT: usize = 6;
    const OUTPUT: usize = 4;

    #[inline(always)]
    unsafe fn apply<V: Vector>(side: Side, m: [V; 6]) -> [V; 6] {
        // SAFETY: by the caller.
        unsafe {
            let (sum_p, difference_p) = (m[1].add(m[2]), m[1].sub(m[2]));
            let unused = m[0];
            match side {
                Side::Four => {
                    let (sum_q, difference_q) = (m[3].add(m[4]), m[3].sub(m[4]));
                    [
                        m[0].add(sum_p.add(sum_q)),
                        axpy(P, difference_p, V::splat(Q).mul(difference_q)),
                        axpy(P2, sum_p, V::splat(Q2).mul(sum_q)),
                        axpy(P2 * P, difference_p, axpy(Q2 * Q, difference_q, m[5])),
                        unused,
                        unused,
                    ]
                }
                Side::Three => [
                    m[0].add(sum_p.add(m[3])),
                    axpy(P, difference_p, V::splat(Q).mul(m[3])),
                    axpy(P2, sum_p, axpy(Q2, m[3], m[5])),
                    unused,
                    unused,
                    unused,
                ],
                Side::Two => [m[0].add(sum_p), axpy(P, difference_p, m[5]), unused, unused, unused, unused],
            }
        }
    }
}

/// A: gradients of outputs to points.
struct Gradients;

impl Transform for Gradients {
    const INPUT: usize = 4;
    const OUTPUT: usize = 6;

    #[inline(always)]
    unsafe fn apply<V: Vector>(side: Side, y: [V; 6]) -> [V; 6] {
        // SAFETY: by the caller.
        unsafe {
            match side {
                Side::Four => {
                    let (even_p, odd_p) = (axpy(P2, y[2], y[0]), axpy(P2, y[3], y[1]));
                    let (even_q, odd_q) = (axpy(Q2, y[2], y[0]), axpy(Q2, y[3], y[1]));
                    [
                        y[0],
                        axpy(P, odd_p, even_p),
                        axpy(-P, odd_p, even_p),
                        axpy(Q, odd_q, even_q),
                        axpy(-Q, odd_q, even_q),
                        y[3],
                    ]
                }
                Side::Three => {
                    let even = axpy(P2, y[2], y[0]);
                    let q = axpy(Q2, y[2], axpy(Q, y[1], y[0]));
                    [y[0], axpy(P, y[1], even), axpy(-P, y[1], even), q, q, y[2]]
                }
                Side::Two => [y[0], axpy(P, y[1], y[0]), axpy(-P, y[1], y[0]), y[0], y[0], y[1]],
            }
        }
    }
}

/// G: filter taps to points.
struct Filters;

impl Transform for Filters {
    const INPUT: usize = 3;
    const OUTPUT: usize = 6;

    #[inline(always)]
    unsafe fn apply<V: Vector>(_side: Side, w: [V; 6]) -> [V; 6] {
        // SAFETY: by the caller.
        unsafe {
            let (even_p, odd_p) = (V::splat(GP).mul(axpy(P2, w[2], w[0])), V::splat(GP * P).mul(w[1]));
            let (even_q, odd_q) = (V::splat(GQ).mul(axpy(Q2, w[2], w[0])), V::splat(GQ * Q).mul(w[1]));
            [w[0], even_p.add(odd_p), even_p.sub(odd_p), even_q.add(odd_q), even_q.sub(odd_q), w[2]]
        }
    }
}

/// Gt: points to gradients of filter taps.
struct FilterGradients;

impl Transform for FilterGradients {
    const INPUT: usize = 6;
    const OUTPUT: usize = 3;

    #[inline(always)]
    unsafe fn apply<V: Vector>(_side: Side, u: [V; 6]) -> [V; 6] {
        // SAFETY: by the caller.
        unsafe {
            let (gp, gq) = (V::splat(GP), V::splat(GQ));
            let (sum_p, difference_p) = (gp.mul(u[1].add(u[2])), V::splat(GP * P).mul(u[1].sub(u[2])));
            let (sum_q, difference_q) = (gq.mul(u[3].add(u[4])), V::splat(GQ * Q).mul(u[3].sub(u[4])));
            let unused = u[0];
            [
                u[0].add(sum_p.add(sum_q)),
                difference_p.add(difference_q),
                axpy(P2, sum_p, axpy(Q2, sum_q, u[5])),
                unused,
                unused,
                unused,
            ]
        }
    }
}

/// Applies the matrix to all columns of a tile, which `load(row, column)` returns, then to all rows; `store(row,
/// values)` receives the result. The intermediate values pass through memory, because no machine has 36 registers to
/// spare. `sides` is the size of the tile: rows, columns. Whole tiles have their own copy of the code.
#[inline(always)]
unsafe fn two_dimensional<V: Vector, T: Transform, const IS_WHOLE: bool>(
    sides: (Side, Side),
    load: impl Fn(usize, usize) -> V,
    mut store: impl FnMut(usize, [V; 6]),
) {
    let sides = if IS_WHOLE { WHOLE } else { sides };
    // SAFETY: by the caller.
    unsafe {
        let mut half = [[V::splat(0.0); 6]; 6];
        for j in 0..T::INPUT {
            let mut column = [V::splat(0.0); 6];
            for (i, value) in column.iter_mut().enumerate().take(T::INPUT) {
                *value = load(i, j);
            }
            for (row, value) in half.iter_mut().zip(T::apply(sides.0, column)).take(T::OUTPUT) {
                row[j] = value;
            }
        }
        for (i, row) in half.into_iter().enumerate().take(T::OUTPUT) {
            store(i, T::apply(sides.1, row));
        }
    }
}

/// The tiles that cover a batch of images. Tiles that share a set of points are numbered consecutively, over all
/// images: first the ends of rows, then the whole tiles, then the ends of columns, then the corners.
#[derive(Clone, Copy)]
struct Tiles {
    height: usize,
    width: usize,
    /// Whole tiles along a column and along a row of tiles.
    whole: (usize, usize),
    /// Sizes of the tiles at the end of a column and of a row.
    ends: (Side, Side),
    /// The numbers at which the whole tiles, the ends of columns and the corners begin.
    begins: [usize; 3],
    total: usize,
}

impl Tiles {
    fn new(shape: &Conv2dShape) -> Tiles {
        let end = |extent: usize| match extent % SIDE {
            0 => Side::Four,
            3 => Side::Three,
            _ => Side::Two,
        };
        let (height, width) = (shape.height, shape.width);
        let whole = (height / SIDE, width / SIDE);
        let (row_ends, column_ends) = (width.div_ceil(SIDE) - whole.1, height.div_ceil(SIDE) - whole.0);
        let sections = [whole.0 * row_ends, whole.0 * whole.1, column_ends * whole.1, column_ends * row_ends]
            .map(|n| n * shape.batch);
        let begins = [sections[0], sections[0] + sections[1], sections[0] + sections[1] + sections[2]];
        Tiles { height, width, whole, ends: (end(height), end(width)), begins, total: begins[2] + sections[3] }
    }

    /// Image, row and column of a tile's first pixel, and its sides.
    #[inline(always)]
    fn place(&self, tile: usize) -> (usize, usize, usize, (Side, Side)) {
        let [whole, column_ends, corners] = self.begins;
        let (rows, columns) = self.whole;
        let (last_row, last_column) = (rows * SIDE, columns * SIDE);
        if tile < whole {
            (tile / rows, tile % rows * SIDE, last_column, (Side::Four, self.ends.1))
        } else if tile < column_ends {
            let tile = tile - whole;
            (tile / (rows * columns), tile / columns % rows * SIDE, tile % columns * SIDE, WHOLE)
        } else if tile < corners {
            let tile = tile - column_ends;
            (tile / columns, last_row, tile % columns * SIDE, (self.ends.0, Side::Four))
        } else {
            (tile - corners, last_row, last_column, self.ends)
        }
    }

    /// The tiles among `count` starting at `first` that need the products at a point: their distance from `first`, and
    /// their number.
    fn with_point(&self, point: usize, first: usize, count: usize) -> (usize, usize) {
        let [whole, column_ends, corners] = self.begins;
        let ends_have = (self.ends.0.has(point / 6), self.ends.1.has(point % 6));
        let begin = if ends_have.1 { 0 } else { whole };
        let end = match ends_have {
            (true, true) => self.total,
            (true, false) => corners,
            (false, _) => column_ends,
        };
        let (begin, end) = (begin.clamp(first, first + count), end.clamp(first, first + count));
        (begin - first, end.saturating_sub(begin))
    }

    /// Multiplications for one pair of input and output channels.
    fn products(&self) -> usize {
        (0..POINTS).map(|point| self.with_point(point, 0, self.total).1).sum()
    }
}

/// The layout of transformed tiles: `[point][channel / strip][tile][channel % strip]`.
#[derive(Clone, Copy)]
struct Layout {
    point: usize,
    strip: usize,
    strip_stride: usize,
    tile: usize,
}

impl Layout {
    /// All channels of a tile together.
    fn tiles_first(tiles: usize, channels: usize) -> Layout {
        Layout { point: odd_lines(tiles * channels), strip: channels, strip_stride: 0, tile: channels }
    }

    /// Strips of channels, the layout of the right matrix of a product.
    fn strips_first(tiles: usize, channels: usize, strip: usize) -> Layout {
        let len = tiles * channels.next_multiple_of(WIDEST_STRIP);
        Layout { point: odd_lines(len), strip, strip_stride: tiles * strip, tile: strip }
    }

    fn len(&self) -> usize {
        POINTS * self.point
    }

    #[inline(always)]
    fn place(&self, tile: usize, channel: usize) -> usize {
        channel / self.strip * self.strip_stride + tile * self.tile + channel % self.strip
    }
}

/// An odd number of cache lines: a tile is stored at 36 addresses with this distance, which would all map to the same
/// set of the L1 cache if it were a power of two.
fn odd_lines(len: usize) -> usize {
    (len.div_ceil(LINE) | 1) * LINE
}

/// Some tiles, and the image from which they are read or to which they are written.
struct Span<'a> {
    tiles: &'a Tiles,
    first: usize,
    count: usize,
    channels: usize,
}

instantiate! {
    /// Transforms the inputs of some tiles.
    unsafe fn transform_inputs = transform_generic_inputs(
        span: &Span, source: *const f32, zeros: *const f32, layout: &Layout, target: *mut f32)
}

#[inline(always)]
unsafe fn transform_generic_inputs<V: Vector>(
    span: &Span,
    source: *const f32,
    zeros: *const f32,
    layout: &Layout,
    target: *mut f32,
) {
    // SAFETY: by the caller.
    unsafe { transform_tiles::<V, Inputs>(span, source, zeros, layout, target) }
}

instantiate! {
    /// Transforms the output gradients of some tiles.
    unsafe fn transform_gradients = transform_generic_gradients(
        span: &Span, source: *const f32, zeros: *const f32, layout: &Layout, target: *mut f32)
}

#[inline(always)]
unsafe fn transform_generic_gradients<V: Vector>(
    span: &Span,
    source: *const f32,
    zeros: *const f32,
    layout: &Layout,
    target: *mut f32,
) {
    // SAFETY: by the caller.
    unsafe { transform_tiles::<V, Gradients>(span, source, zeros, layout, target) }
}

/// Floats of images that fit in a cache. Larger images are prefetched one tile ahead.
const CACHED: usize = 4 << 20;

/// Reads tiles from an image and stores them transformed, the first at tile 0 of the target. `zeros` is read where a
/// tile extends outside the image.
#[inline(always)]
unsafe fn transform_tiles<V: Vector, T: Transform>(
    span: &Span,
    source: *const f32,
    zeros: *const f32,
    layout: &Layout,
    target: *mut f32,
) {
    let tiles = span.tiles;
    // The six inputs begin one pixel before the outputs.
    let margin = (T::INPUT - SIDE) / 2;
    let pixels_of = |tile: usize| {
        let mut pixels = [[zeros; 6]; 6];
        if tile >= tiles.total {
            return (pixels, WHOLE);
        }
        let (image, row, column, sides) = tiles.place(tile);
        for (i, pixels) in pixels.iter_mut().enumerate().take(T::INPUT) {
            let Some(y) = (row + i).checked_sub(margin).filter(|&y| y < tiles.height) else { continue };
            for (j, pixel) in pixels.iter_mut().enumerate().take(T::INPUT) {
                let Some(x) = (column + j).checked_sub(margin).filter(|&x| x < tiles.width) else { continue };
                *pixel = source.wrapping_add(((image * tiles.height + y) * tiles.width + x) * span.channels);
            }
        }
        (pixels, sides)
    };
    let far = tiles.total * SIDE * SIDE * span.channels > CACHED;
    let mut next = pixels_of(span.first);
    for tile in 0..span.count {
        let (pixels, sides) = next;
        next = pixels_of(span.first + tile + 1);
        macro_rules! transform {
            ($is_whole:literal) => {
                for channel in (0..span.channels).step_by(V::LANES) {
                    // SAFETY: every pixel, and `zeros`, has this many channels; the caller guarantees the target.
                    unsafe {
                        let target = target.add(layout.place(tile, channel));
                        two_dimensional::<V, T, $is_whole>(
                            sides,
                            |i, j| {
                                if far && channel % LINE == 0 && j >= 2 * margin {
                                    V::prefetch(next.0[i][j].wrapping_add(channel));
                                }
                                V::load(pixels[i][j].add(channel))
                            },
                            |i, row| {
                                for (j, value) in row.into_iter().enumerate() {
                                    if $is_whole || (sides.0.has(i) && sides.1.has(j)) {
                                        value.store(target.add((6 * i + j) * layout.point));
                                    }
                                }
                            },
                        );
                    }
                }
            };
        }
        if sides == WHOLE { transform!(true) } else { transform!(false) }
    }
}

instantiate! {
    /// Transforms products back to outputs, and stores those inside the image.
    unsafe fn transform_outputs = transform_generic_outputs(
        span: &Span, source: *const f32, layout: &Layout, target: *mut f32, accumulate: bool)
}

#[inline(always)]
unsafe fn transform_generic_outputs<V: Vector>(
    span: &Span,
    source: *const f32,
    layout: &Layout,
    target: *mut f32,
    accumulate: bool,
) {
    let tiles = span.tiles;
    for tile in 0..span.count {
        let (image, row, column, sides) = tiles.place(span.first + tile);
        let (rows, columns) = (SIDE.min(tiles.height - row), SIDE.min(tiles.width - column));
        let pixel = (image * tiles.height + row) * tiles.width + column;
        macro_rules! transform {
            ($is_whole:literal) => {
                for channel in (0..span.channels).step_by(V::LANES) {
                    // SAFETY: the caller guarantees the source; the target is written only inside the image.
                    unsafe {
                        let source = source.add(layout.place(tile, channel));
                        let target = target.add(pixel * span.channels + channel);
                        two_dimensional::<V, Outputs, $is_whole>(
                            sides,
                            |i, j| V::load(source.add((6 * i + j) * layout.point)),
                            |i, row| {
                                for (j, value) in row.into_iter().enumerate().take(SIDE) {
                                    if $is_whole || (i < rows && j < columns) {
                                        let target = target.add((i * tiles.width + j) * span.channels);
                                        let value = if accumulate { value.add(V::load(target)) } else { value };
                                        value.store(target);
                                    }
                                }
                            },
                        );
                    }
                }
            };
        }
        if sides == WHOLE { transform!(true) } else { transform!(false) }
    }
}

instantiate! {
    /// Transforms filters: `taps[9][count][one strip]` to `target[point][count][one strip]`.
    unsafe fn transform_filters =
        transform_generic_filters(taps: *const f32, count: usize, strip: usize, target: *mut f32, point: usize)
}

#[inline(always)]
unsafe fn transform_generic_filters<V: Vector>(
    taps: *const f32,
    count: usize,
    strip: usize,
    target: *mut f32,
    point: usize,
) {
    for place in (0..count * strip).step_by(V::LANES) {
        // SAFETY: the caller guarantees the sizes; a strip is two vectors.
        unsafe {
            two_dimensional::<V, Filters, true>(
                WHOLE,
                |i, j| V::load(taps.add((3 * i + j) * count * strip + place)),
                |i, row| {
                    for (j, value) in row.into_iter().enumerate() {
                        value.store(target.add((6 * i + j) * point + place));
                    }
                },
            );
        }
    }
}

instantiate! {
    /// Transforms sums back to one filter, `target[9][channels]`.
    unsafe fn transform_filter_gradients =
        transform_generic_filter_gradients(sums: *const f32, point: usize, channels: usize, target: *mut f32)
}

#[inline(always)]
unsafe fn transform_generic_filter_gradients<V: Vector>(
    sums: *const f32,
    point: usize,
    channels: usize,
    target: *mut f32,
) {
    for channel in (0..channels).step_by(V::LANES) {
        // SAFETY: the caller guarantees the sizes; channels are a multiple of sixteen.
        unsafe {
            two_dimensional::<V, FilterGradients, true>(
                WHOLE,
                |i, j| V::load(sums.add((6 * i + j) * point + channel)),
                |i, row| {
                    for (j, value) in row.into_iter().enumerate().take(3) {
                        value.store(target.add((3 * i + j) * channels + channel));
                    }
                },
            );
        }
    }
}

/// The maximum number of tiles in a block: enough to use each transformed filter often.
const BLOCK_TILES: usize = 32;
/// The same if the filters do not fit in a cache, because each block reads all of them.
const BLOCK_TILES_OF_MANY_FILTERS: usize = 64;
/// The number of channel pairs from which the filters do not fit in a cache.
const MANY_FILTERS: usize = 1 << 17;
/// Filter channels that one job transforms, along the depth of the product.
const FILTER_BLOCK: usize = 64;

/// The division of a forward pass (or an input gradient, which is one) into jobs. It changes no sum.
struct Plan {
    tiles: Tiles,
    /// Input and output channels.
    from: usize,
    to: usize,
    /// Tiles in a block.
    block: usize,
    /// Distance between two points of the transformed filters, in floats.
    filter_point: usize,
}

impl Plan {
    fn new(shape: &Conv2dShape, turned: bool) -> Plan {
        let tiles = Tiles::new(shape);
        let (from, to) = if turned {
            (shape.output_channels, shape.input_channels)
        } else {
            (shape.input_channels, shape.output_channels)
        };
        // Blocks of nearly equal size, a multiple of the threads. The result of a tile does not depend on its block.
        let most = if from * to < MANY_FILTERS { BLOCK_TILES } else { BLOCK_TILES_OF_MANY_FILTERS };
        let blocks = tiles.total.div_ceil(most).next_multiple_of(threads::count());
        let block = tiles.total.div_ceil(blocks);
        let filter_point = odd_lines(from * to.next_multiple_of(WIDEST_STRIP));
        Plan { tiles, from, to, block, filter_point }
    }

    fn scratch(&self) -> usize {
        let blocks = Layout::tiles_first(self.block, self.from).len() + Layout::tiles_first(self.block, self.to).len();
        (blocks + lines(self.from)).max(9 * FILTER_BLOCK * WIDEST_STRIP)
    }
}

pub fn convolution_workspace(shape: &Conv2dShape, turned: bool) -> usize {
    let plan = Plan::new(shape, turned);
    POINTS * plan.filter_point + jobs::scratch_total(plan.scratch())
}

/// The two passes that are the same computation.
pub enum Direction<'a> {
    Forward {
        /// The operation applied to the output.
        finish: Option<&'a Finish<'a>>,
    },
    /// `source` is the output gradient, `target` the input gradient.
    InputGradient {
        /// Whether to add to the values in `target`.
        accumulate: bool,
    },
}

/// Computes the forward pass or the input gradient.
pub fn convolution(
    level: Level,
    shape: &Conv2dShape,
    direction: Direction,
    source: &[f32],
    weight: &[f32],
    target: &mut [f32],
    workspace: &mut [f32],
) {
    let (turned, accumulate, finish) = match direction {
        Direction::Forward { finish } => (false, false, finish),
        Direction::InputGradient { accumulate } => (true, accumulate, None),
    };
    let plan = Plan::new(shape, turned);
    let scratch_len = plan.scratch();
    let Plan { tiles, from, to, block, filter_point } = plan;
    let strip = gemm::strip(level);
    let (filters, scratch) = workspace.split_at_mut(POINTS * filter_point);
    let filters = Shared(filters.as_mut_ptr());
    let depth_blocks = from.div_ceil(FILTER_BLOCK);
    // `filters[point][strip][from][to % strip]`
    let transform = |job: usize, scratch: &mut [f32]| {
        let (first_to, first_from) = (job / depth_blocks * strip, job % depth_blocks * FILTER_BLOCK);
        let count = FILTER_BLOCK.min(from - first_from);
        let lanes = strip.min(to - first_to);
        let taps = &mut scratch[..9 * count * strip];
        for (tap, taps) in taps.chunks_exact_mut(count * strip).enumerate() {
            for (index, target) in taps.chunks_exact_mut(strip).enumerate() {
                let channel = first_from + index;
                if turned {
                    // `weight[from][8 - tap][to]`
                    let begin = (channel * 9 + 8 - tap) * to + first_to;
                    target[..lanes].copy_from_slice(&weight[begin..begin + lanes]);
                } else {
                    for (lane, value) in target[..lanes].iter_mut().enumerate() {
                        *value = weight[((first_to + lane) * 9 + tap) * from + channel];
                    }
                }
                target[lanes..].fill(0.0);
            }
        }
        // SAFETY: `taps` has the size above; each job writes its own strip and channels of all points.
        unsafe {
            let target = filters.at((first_to / strip * from + first_from) * strip);
            transform_filters(level, taps.as_ptr(), count, strip, target, filter_point);
        }
    };
    let target = Shared(target.as_mut_ptr());
    let (inputs, products) = (Layout::tiles_first(block, from), Layout::tiles_first(block, to));
    let convolve = |job: usize, scratch: &mut [f32]| {
        let first = job * block;
        let count = block.min(tiles.total - first);
        let (input, rest) = scratch.split_at_mut(inputs.len());
        let (product, zeros) = rest.split_at_mut(products.len());
        zeros[..from].fill(0.0);
        // SAFETY: the layouts fit the two parts of scratch memory, the filters have the layout written above, and each
        // job writes the pixels of its own tiles.
        unsafe {
            let span = Span { tiles: &tiles, first, count, channels: from };
            transform_inputs(level, &span, source.as_ptr(), zeros.as_ptr(), &inputs, input.as_mut_ptr());
            for point in 0..POINTS {
                let (begin, count) = tiles.with_point(point, first, count);
                for channel in (0..to).step_by(strip) {
                    gemm::multiply(
                        level,
                        &Product {
                            rows: count,
                            columns: strip.min(to - channel),
                            segments: 1,
                            depth: from,
                            left: input.as_ptr().add(point * inputs.point + begin * from),
                            left_order: Order::Rows(Grid::even(from)),
                            left_segment: 0,
                            right: filters.at(point * filter_point + channel * from),
                            result: product.as_mut_ptr().add(point * products.point + begin * to + channel),
                            result_rows: Grid::even(to),
                            accumulate: false,
                        },
                    );
                }
            }
            let span = Span { tiles: &tiles, first, count, channels: to };
            transform_outputs(level, &span, product.as_ptr(), &products, target.at(0), accumulate);
        }
        let Some(finish) = finish else { return };
        for tile in first..first + count {
            let (image, row, column, _) = tiles.place(tile);
            let len = SIDE.min(tiles.width - column) * to;
            for y in row..tiles.height.min(row + SIDE) {
                let place = ((image * tiles.height + y) * tiles.width + column) * to;
                // SAFETY: a row of pixels of the tile, which only this job writes.
                let pixels = unsafe { std::slice::from_raw_parts_mut(target.at(place), len) };
                finish.pixels(pixels, place);
            }
        }
    };
    let jobs = [to.div_ceil(strip) * depth_blocks, tiles.total.div_ceil(block)];
    jobs::run_phases(
        2,
        |phase| jobs[phase],
        scratch,
        scratch_len,
        |phase, job, scratch| match phase {
            0 => transform(job, scratch),
            _ => convolve(job, scratch),
        },
    );
}

/// Floats of transformed inputs and gradients that are multiplied at a time, and the smallest number of tiles for which
/// reading and writing the sums pays off.
const WEIGHT_BLOCK: usize = 3 << 18;
const WEIGHT_TILES: usize = 256;

/// The division of a weight gradient into jobs. Blocks determine the order of the sums, so they depend only on the
/// shape.
struct WeightPlan {
    tiles: Tiles,
    /// Tiles that are transformed before they are multiplied.
    block: usize,
    /// Distance between two points of the sums, in floats.
    point: usize,
}

impl WeightPlan {
    fn new(shape: &Conv2dShape) -> WeightPlan {
        let tiles = Tiles::new(shape);
        let (from, to) = (shape.input_channels, shape.output_channels);
        let most = (WEIGHT_BLOCK / (POINTS * (from + to))).max(WEIGHT_TILES);
        let block = tiles.total.div_ceil(tiles.total.div_ceil(most));
        WeightPlan { tiles, block, point: odd_lines(from * to) }
    }

    fn layouts(&self, shape: &Conv2dShape, strip: usize) -> (Layout, Layout) {
        (
            Layout::strips_first(self.block, shape.input_channels, strip),
            Layout::strips_first(self.block, shape.output_channels, strip),
        )
    }

    /// Floats of a block of transformed inputs and gradients.
    fn block_len(&self, shape: &Conv2dShape) -> usize {
        let (inputs, gradients) = self.layouts(shape, WIDEST_STRIP);
        inputs.len() + gradients.len()
    }
}

/// Tiles that one job transforms.
const TILES_OF_JOB: usize = 8;

pub fn weight_gradient_workspace(shape: &Conv2dShape) -> usize {
    let plan = WeightPlan::new(shape);
    let channels = shape.input_channels.max(shape.output_channels);
    POINTS * plan.point + plan.block_len(shape) + lines(channels) + jobs::scratch_total(1)
}

pub fn weight_gradient(
    level: Level,
    shape: &Conv2dShape,
    input: &[f32],
    output_gradient: &[f32],
    weight_gradient: &mut [f32],
    workspace: &mut [f32],
) {
    let plan = WeightPlan::new(shape);
    let WeightPlan { tiles, block, point: sums_point } = plan;
    let (from, to) = (shape.input_channels, shape.output_channels);
    let strip = gemm::strip(level);
    let (inputs, gradients) = plan.layouts(shape, strip);
    let (sums, rest) = workspace.split_at_mut(POINTS * sums_point);
    let (transformed, rest) = rest.split_at_mut(plan.block_len(shape));
    let (zeros, scratch) = rest.split_at_mut(lines(from.max(to)));
    zeros.fill(0.0);
    let (sums, transformed, zeros) = (Shared(sums.as_mut_ptr()), Shared(transformed.as_mut_ptr()), &*zeros);
    let strips = to.div_ceil(strip);
    let count = |first: usize| block.min(tiles.total - first);
    let transform = |first: usize, job: usize| {
        let place = job * TILES_OF_JOB;
        let span = |channels| Span {
            tiles: &tiles,
            first: first + place,
            count: TILES_OF_JOB.min(count(first) - place),
            channels,
        };
        // SAFETY: the layouts fit the memory, and each job has its own tiles.
        unsafe {
            let (input, gradient) = (input.as_ptr(), output_gradient.as_ptr());
            let target = transformed.at(inputs.place(place, 0));
            transform_inputs(level, &span(from), input, zeros.as_ptr(), &inputs, target);
            let target = transformed.at(inputs.len() + gradients.place(place, 0));
            transform_gradients(level, &span(to), gradient, zeros.as_ptr(), &gradients, target);
        }
    };
    // `sums[point][to][from]`; a job computes one point and one strip of `to`.
    let multiply = |first: usize, job: usize| {
        let (point, first_to) = (job / strips, job % strips * strip);
        let (begin, depth) = tiles.with_point(point, first, count(first));
        for first_from in (0..from).step_by(strip) {
            // SAFETY: the layouts fit the memory, and each job has its own sums.
            unsafe {
                gemm::multiply(
                    level,
                    &Product {
                        rows: strip.min(to - first_to),
                        columns: strip.min(from - first_from),
                        segments: 1,
                        depth,
                        left: transformed.at(inputs.len() + point * gradients.point + gradients.place(begin, first_to)),
                        left_order: Order::Columns(strip),
                        left_segment: 0,
                        right: transformed.at(point * inputs.point + inputs.place(begin, first_from)),
                        result: sums.at(point * sums_point + first_to * from + first_from),
                        result_rows: Grid::even(from),
                        accumulate: first > 0,
                    },
                );
            }
        }
    };
    let target = Shared(weight_gradient.as_mut_ptr());
    let transform_back = |filter: usize| {
        // SAFETY: the sums are complete, and each job writes its own filter.
        unsafe {
            let (sums, target) = (sums.at(filter * from), target.at(filter * 9 * from));
            transform_filter_gradients(level, sums, sums_point, from, target);
        }
    };
    // Two phases per block, and one at the end.
    let phases = 2 * tiles.total.div_ceil(block) + 1;
    let jobs = |phase: usize| match phase {
        last if last + 1 == phases => to,
        even if even % 2 == 0 => count(even / 2 * block).div_ceil(TILES_OF_JOB),
        _ => POINTS * strips,
    };
    jobs::run_phases(phases, jobs, scratch, 1, |phase, job, _| match phase {
        last if last + 1 == phases => transform_back(job),
        even if even % 2 == 0 => transform(even / 2 * block, job),
        odd => multiply(odd / 2 * block, job),
    });
}
