//! Scales images with the bits of Pillow's `BILINEAR`.
//!
//! A scaled pixel is a weighted sum of source pixels. The weights form a triangle as wide as two scaled pixels (two source pixels
//! when it enlarges), cut off at the edges, in fixed point. One axis is scaled after the other, with bytes in between. Both passes
//! use the same loop, which adds up rows: to scale across, strips of rows are transposed and transposed back.

use super::rgb_image::KEPT_BYTES;
use crate::device::cpu::vectorised;

/// Bytes that are added up at once, and the length of a transposed column.
const LANES: usize = 64;
const PRECISION_BITS: u32 = 22;
const HALF: i32 = 1 << (PRECISION_BITS - 1);
/// Rows that are transposed at once.
const TRANSPOSED_ROWS: usize = 4;

/// An axis of the rectangle that is scaled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    /// Pixels of the rectangle along it, at least one.
    pub(super) source: u32,
    /// Pixels to which they are scaled, at least one.
    pub(super) scaled: u32,
    /// The first scaled pixel that is computed.
    pub(super) first: u32,
    /// Number of scaled pixels that are computed, at least one.
    pub(super) count: u32,
}

/// The weights of the scaled pixels of an axis.
#[derive(Debug, Default)]
struct Weights {
    windows: Vec<Window>,
    /// The weights of all windows, one after the other, in fixed point.
    factors: Vec<i32>,
    shares: Vec<f64>,
}

/// The source pixels of which a scaled pixel is the sum.
#[derive(Debug, Clone, Copy)]
struct Window {
    first: usize,
    /// The place of their weights.
    from: usize,
    to: usize,
}

impl Weights {
    /// Computes what Pillow computes, in the same order of operations: it uses float64.
    fn fill(&mut self, axis: Axis) {
        self.windows.clear();
        self.factors.clear();
        let scale = f64::from(axis.source) / f64::from(axis.scaled);
        let support = scale.max(1.0);
        let steepness = 1.0 / support;
        for pixel in axis.first..axis.first + axis.count {
            let center = (f64::from(pixel) + 0.5) * scale;
            let first = (center - support + 0.5) as u32;
            let last = ((center + support + 0.5) as u32).min(axis.source);
            let share = |pixel| (1.0 - ((f64::from(pixel) - center + 0.5) * steepness).abs()).max(0.0);
            self.shares.clear();
            self.shares.extend((first..last).map(share));
            let sum: f64 = self.shares.iter().sum();
            let from = self.factors.len();
            let fixed = |share| (0.5 + share / sum * f64::from(1 << PRECISION_BITS)) as i32;
            self.factors.extend(self.shares.iter().map(fixed));
            self.windows.push(Window { first: first as usize, from, to: self.factors.len() });
        }
    }

    /// The source pixels that the windows cover: the first, and the end.
    fn covered(&self) -> (usize, usize) {
        let first = self.windows.first().map_or(0, |window| window.first);
        let end = self.windows.last().map_or(first, |window| window.first + window.to - window.from);
        (first, end)
    }
}

vectorised! {
    /// Writes the weighted sum of source rows for each window. `source` begins at the first row that the windows cover. Source rows
    /// are `source_step` bytes apart, output rows `output_step`; the first `bytes` of each are used.
    fn add_up(
        source: &[u8],
        source_step: usize,
        weights: &Weights,
        output: &mut [u8],
        output_step: usize,
        bytes: usize,
    ) {
        let (covered, _) = weights.covered();
        for (window, row) in weights.windows.iter().zip(output.chunks_mut(output_step)) {
            let factors = &weights.factors[window.from..window.to];
            let source = &source[(window.first - covered) * source_step..];
            let (whole, rest) = row[..bytes].as_chunks_mut::<LANES>();
            let rest_begin = whole.len() * LANES;
            for (begin, chunk) in (0..).step_by(LANES).zip(whole) {
                let mut sums = [HALF; LANES];
                let mut place = begin;
                for &factor in factors {
                    let Some(bytes) = source.get(place..).and_then(|bytes| bytes.first_chunk::<LANES>()) else { break };
                    for (sum, &byte) in sums.iter_mut().zip(bytes) {
                        *sum += i32::from(byte) * factor;
                    }
                    place += source_step;
                }
                *chunk = sums.map(|sum| (sum >> PRECISION_BITS).min(255) as u8);
            }
            if rest.is_empty() {
                continue;
            }
            let mut sums = [HALF; LANES];
            for (place, &factor) in (rest_begin..).step_by(source_step).zip(factors) {
                for (sum, &byte) in sums.iter_mut().zip(&source[place..][..rest.len()]) {
                    *sum += i32::from(byte) * factor;
                }
            }
            for (byte, sum) in rest.iter_mut().zip(sums) {
                *byte = (sum >> PRECISION_BITS).min(255) as u8;
            }
        }
    }
}

/// Rows of pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    /// The pixels, from the first one that is meant.
    pub(super) bytes: &'a [u8],
    /// Bytes from one row to the next.
    pub(super) step: usize,
}

/// Rows of pixels to write.
#[derive(Debug)]
pub(super) struct RowsMut<'a> {
    /// The pixels, from the first one that is meant.
    pub(super) bytes: &'a mut [u8],
    /// Bytes from one row to the next.
    pub(super) step: usize,
}

/// Scales images, one after the other, in the same buffers.
#[derive(Debug, Default)]
pub(super) struct Resizer {
    across: Weights,
    down: Weights,
    between: Vec<u8>,
    strips: Strips,
}

impl Resizer {
    /// Scales the rectangle at the beginning of `source`, whose pixels have `BYTES` bytes.
    ///
    /// # Panics
    /// If `source` is smaller than the rectangle, or `output` than its scaled pixels.
    pub(super) fn resize<const BYTES: usize>(
        &mut self,
        source: Rows,
        across: Axis,
        down: Axis,
        columns_first: bool,
        output: RowsMut,
    ) {
        let Self { across: across_weights, down: down_weights, between, strips } = self;
        across_weights.fill(across);
        down_weights.fill(down);
        let (left, right) = across_weights.covered();
        let (top, bottom) = down_weights.covered();
        let source = Rows { bytes: &source.bytes[top * source.step + left * BYTES..], step: source.step };
        let (rows, step) = if columns_first {
            (down.count as usize, (right - left) * BYTES)
        } else {
            (bottom - top, across.count as usize * BYTES)
        };
        between.resize(rows * step, 0);
        if columns_first {
            add_up(source.bytes, source.step, down_weights, between, step, step);
            strips.add_up::<BYTES>(Rows { bytes: between, step }, rows, across_weights, output);
        } else {
            strips.add_up::<BYTES>(source, rows, across_weights, RowsMut { bytes: between, step });
            add_up(between, step, down_weights, output.bytes, output.step, step);
        }
        if between.capacity() > KEPT_BYTES {
            *between = Vec::new();
        }
    }
}

/// Transposed strips of rows: an element is a column.
#[derive(Debug, Default)]
struct Strips {
    columns: Vec<[u8; LANES]>,
    scaled: Vec<[u8; LANES]>,
}

impl Strips {
    /// Writes the weighted sum of pixels of each of `count` source rows for each window. `source` begins at the first column that
    /// the windows cover.
    fn add_up<const BYTES: usize>(&mut self, source: Rows, count: usize, weights: &Weights, output: RowsMut) {
        let rows_per_strip = LANES / (TRANSPOSED_ROWS * BYTES) * TRANSPOSED_ROWS;
        let (first, end) = weights.covered();
        self.columns.resize(end - first, [0; LANES]);
        self.scaled.resize(weights.windows.len(), [0; LANES]);
        for begin in (0..count).step_by(rows_per_strip) {
            let rows = rows_per_strip.min(count - begin);
            transpose::<BYTES>(&source.bytes[begin * source.step..], source.step, rows, &mut self.columns);
            add_up(self.columns.as_flattened(), LANES, weights, self.scaled.as_flattened_mut(), LANES, LANES);
            transpose_back::<BYTES>(&self.scaled, &mut output.bytes[begin * output.step..], output.step, rows);
        }
        for buffer in [&mut self.columns, &mut self.scaled] {
            if buffer.capacity() * LANES > KEPT_BYTES {
                *buffer = Vec::new();
            }
        }
    }
}

/// Transposes `count` rows of as many pixels as there are columns.
fn transpose<const BYTES: usize>(source: &[u8], step: usize, count: usize, columns: &mut [[u8; LANES]]) {
    let width = columns.len() * BYTES;
    for begin in (0..count).step_by(TRANSPOSED_ROWS) {
        // The last row takes the place of those that are missing.
        let row = |number: usize| source[(begin + number).min(count - 1) * step..][..width].as_chunks::<BYTES>().0;
        let place = begin * BYTES;
        for ((((column, a), b), c), d) in columns.iter_mut().zip(row(0)).zip(row(1)).zip(row(2)).zip(row(3)) {
            column[place..][..TRANSPOSED_ROWS * BYTES].copy_from_slice([*a, *b, *c, *d].as_flattened());
        }
    }
}

/// Writes the first `count` rows.
fn transpose_back<const BYTES: usize>(columns: &[[u8; LANES]], output: &mut [u8], step: usize, count: usize) {
    for (number, row) in output.chunks_mut(step).take(count).enumerate() {
        for (pixel, column) in row.as_chunks_mut::<BYTES>().0.iter_mut().zip(columns) {
            pixel.copy_from_slice(&column[number * BYTES..][..BYTES]);
        }
    }
}
