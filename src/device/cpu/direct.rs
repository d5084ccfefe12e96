//! Convolution of any shape as an implicit matrix product: the matrix of taps is never built.
//!
//! In NHWC the taps of one output pixel within one image row are contiguous (`tap_columns * channels` floats), and
//! those of its right neighbour begin `step * channels` floats later. So the left matrix of the product can be the
//! image itself: neighbouring output pixels are rows with a constant stride, lines and images follow each other at
//! strides of their own, and each tap row is one segment of the depth. Where taps fall outside the image, the job
//! first copies the part that it needs, with zeros around, to scratch memory.
//!
//! *Forward*: left is the input, right the packed weight.
//!
//! *Gradient of the input*: with stride `s`, input row `y` gets terms from output row `o` through filter row `r` where
//! `y + padding = s * o + r`. For the rows of one residue `y mod s` only every s-th filter row takes part, and then `o`
//! moves by one when `y / s` does: an ordinary convolution of stride 1 with fewer taps. So it is `s * s` convolutions
//! over the gradient of the output, one for each residue of row and column, each of which writes every s-th pixel.
//! Nothing is multiplied by an inserted zero, and no two write the same float.
//!
//! *Gradient of the weight*: the same left matrix, transposed (rows are taps, the depth is the output pixels), times
//! the gradient of the output. The batch is divided into groups by shape alone; each sums in its own buffer, and the buffers
//! are added in order.
//!
//! Bound by the multiply-add units: a multiply-add per tap and channel, while each float of a patch is used `taps *
//! output_channels / step^2` times.

use super::batch_norm::Finish;
use super::gemm::{self, Grid, Order, Product, WIDEST_STRIP};
use super::jobs::{self, Shared, lines};
use super::simd::Level;
use crate::device::conv2d::Conv2dShape;

/// Maximum number of output pixels of a job: enough to use each packed weight often, few enough for the second-level cache.
const PIXELS: usize = 224;
/// Minimum number of jobs of a pass, if there are enough pixels.
const JOBS: usize = 16;
/// Maximum number of taps whose weight gradients a job computes for all output channels, if it packs them: a panel of taps of a
/// block of pixels takes 100 KB and stays in the second-level cache.
const PANEL: usize = 112;
/// Distance of neighbouring pixels, in floats, from which taps are packed: their cache lines then compete for the same few places
/// of the first-level cache, and the image would be read from memory again for every strip of output channels.
const PACKED_DISTANCE: usize = 512;
/// Number of taps that are transposed at a time: a cache line of them, because the filters lie far apart.
const TRANSPOSED: usize = 16;
/// Maximum number of partial sums of a weight gradient, and of the floats that they take together.
const GROUPS: usize = 8;
const GROUP_FLOATS: usize = 4 << 20;

/// Which source pixels each destination pixel reads: pixel `(i, j)` of the destination grid sees source rows `i * step
/// + origin_row ..` and columns `j * step + origin_column ..`.
#[derive(Clone, Copy)]
struct Stencil {
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
    tap_rows: usize,
    tap_columns: usize,
    step: usize,
    origin_row: isize,
    origin_column: isize,
    /// Number of destination pixels to compute.
    rows: usize,
    columns: usize,
}

/// The position of the destination grid in its image: pixel `(i, j)` is image pixel `(first_row + i * spacing,
/// first_column + j * spacing)`.
#[derive(Clone, Copy)]
struct Placement {
    height: usize,
    width: usize,
    channels: usize,
    first_row: usize,
    first_column: usize,
    spacing: usize,
    /// Whether to add to the existing values.
    accumulate: bool,
}

impl Stencil {
    fn depth(&self) -> usize {
        self.tap_rows * self.tap_columns * self.channels
    }

    /// Source rows (or columns) that `count` neighbouring destination pixels see.
    fn patch_side(&self, count: usize, taps: usize) -> usize {
        (count - 1) * self.step + taps
    }

    /// Whether no tap of the whole grid falls outside the image.
    fn is_inside(&self) -> bool {
        let fits = |origin: isize, count, taps, size: usize| {
            origin >= 0 && origin as usize + self.patch_side(count, taps) <= size
        };
        fits(self.origin_row, self.rows, self.tap_rows, self.height)
            && fits(self.origin_column, self.columns, self.tap_columns, self.width)
    }
}

/// A division of the destination grid into blocks of images, rows and columns.
#[derive(Clone, Copy)]
struct Blocks {
    images: usize,
    rows: usize,
    columns: usize,
    row_blocks: usize,
    column_blocks: usize,
    count: usize,
}

/// One block: its position and its size.
struct Block {
    image: usize,
    images: usize,
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
}

impl Blocks {
    fn new(stencil: &Stencil, pixels: usize, most_images: usize) -> Blocks {
        let columns = stencil.columns.min(pixels);
        let rows = (pixels / columns).clamp(1, stencil.rows);
        let images = if columns == stencil.columns && rows == stencil.rows {
            (pixels / (rows * columns)).clamp(1, most_images.min(stencil.batch))
        } else {
            1
        };
        let row_blocks = stencil.rows.div_ceil(rows);
        let column_blocks = stencil.columns.div_ceil(columns);
        let count = stencil.batch.div_ceil(images) * row_blocks * column_blocks;
        Blocks { images, rows, columns, row_blocks, column_blocks, count }
    }

    fn block(&self, stencil: &Stencil, index: usize) -> Block {
        let image = index / (self.row_blocks * self.column_blocks) * self.images;
        let row = index / self.column_blocks % self.row_blocks * self.rows;
        let column = index % self.column_blocks * self.columns;
        Block {
            image,
            images: self.images.min(stencil.batch - image),
            row,
            rows: self.rows.min(stencil.rows - row),
            column,
            columns: self.columns.min(stencil.columns - column),
        }
    }

    /// Floats of the patch under one image of a block; 0 if the image is read in place.
    fn patch_len(&self, stencil: &Stencil) -> usize {
        if stencil.is_inside() {
            return 0;
        }
        stencil.patch_side(self.rows, stencil.tap_rows)
            * stencil.patch_side(self.columns, stencil.tap_columns)
            * stencil.channels
    }
}

/// The taps of a block of one image: the image itself, or a copy with zeros around.
struct Patch {
    first: *const f32,
    /// Floats from one source row to the next.
    pitch: usize,
}

/// Finds the taps of image `image` of the block; copies them to `scratch` if the stencil leaves the image.
fn patch(stencil: &Stencil, source: &[f32], block: &Block, image: usize, scratch: &mut [f32]) -> Patch {
    let pixels = &source[image * stencil.height * stencil.width * stencil.channels..];
    let pitch = stencil.width * stencil.channels;
    let top = (block.row * stencil.step) as isize + stencil.origin_row;
    let left = (block.column * stencil.step) as isize + stencil.origin_column;
    if stencil.is_inside() {
        return Patch { first: pixels[top as usize * pitch + left as usize * stencil.channels..].as_ptr(), pitch };
    }
    let rows = stencil.patch_side(block.rows, stencil.tap_rows);
    let columns = stencil.patch_side(block.columns, stencil.tap_columns);
    let patch_pitch = columns * stencil.channels;
    let begin = left.clamp(0, stencil.width as isize);
    let end = (left + columns as isize).clamp(begin, stencil.width as isize);
    let zeros_before = ((begin - left) as usize).min(columns) * stencil.channels;
    let inside = (end - begin) as usize * stencil.channels;
    for (y, target) in scratch[..rows * patch_pitch].chunks_exact_mut(patch_pitch).enumerate() {
        let row = top + y as isize;
        if row < 0 || row >= stencil.height as isize {
            target.fill(0.0);
            continue;
        }
        let from = row as usize * pitch + begin as usize * stencil.channels;
        target[..zeros_before].fill(0.0);
        target[zeros_before..zeros_before + inside].copy_from_slice(&pixels[from..from + inside]);
        target[zeros_before + inside..].fill(0.0);
    }
    Patch { first: scratch.as_ptr(), pitch: patch_pitch }
}

/// A convolution whose filter is a single pixel is a product over all pixels of the batch, and so is one whose filter
/// covers the whole image: the same computation as a 1 x 1 convolution of one long row.
fn flattened(shape: &Conv2dShape) -> Conv2dShape {
    let single = |pixels: usize, channels: usize| Conv2dShape {
        batch: 1,
        height: 1,
        width: pixels,
        input_channels: channels,
        kernel_height: 1,
        kernel_width: 1,
        stride: 1,
        ..*shape
    };
    let filter = (shape.kernel_height, shape.kernel_width);
    if shape.padding == 0 && filter == (1, 1) && shape.stride == 1 {
        single(shape.batch * shape.height * shape.width, shape.input_channels)
    } else if shape.padding == 0 && filter == (shape.height, shape.width) {
        single(shape.batch, shape.height * shape.width * shape.input_channels)
    } else {
        *shape
    }
}

/// The convolution of the forward pass.
fn forward_stencil(shape: &Conv2dShape) -> Stencil {
    Stencil {
        batch: shape.batch,
        height: shape.height,
        width: shape.width,
        channels: shape.input_channels,
        tap_rows: shape.kernel_height,
        tap_columns: shape.kernel_width,
        step: shape.stride,
        origin_row: -(shape.padding as isize),
        origin_column: -(shape.padding as isize),
        rows: shape.output_height(),
        columns: shape.output_width(),
    }
}

/// The taps of one residue in one direction.
#[derive(Clone, Copy)]
struct Residue {
    /// First input row of this residue.
    first: usize,
    /// Number of input rows that have it.
    count: usize,
    /// First filter row that takes part; the others follow at distance `stride`.
    first_tap: usize,
    taps: usize,
    /// Output row under the last tap (taps run backwards) of the first input row.
    origin: isize,
}

impl Residue {
    fn new(residue: usize, size: usize, kernel: usize, shape: &Conv2dShape) -> Residue {
        let first_tap = (residue + shape.padding) % shape.stride;
        let taps = kernel.saturating_sub(first_tap).div_ceil(shape.stride);
        Residue {
            first: residue,
            count: size.saturating_sub(residue).div_ceil(shape.stride),
            first_tap,
            taps,
            origin: ((residue + shape.padding) / shape.stride) as isize - taps as isize + 1,
        }
    }
}

/// The convolutions that make up the gradient of the input.
fn residues(shape: Conv2dShape) -> impl Iterator<Item = (Residue, Residue, Stencil)> {
    (0..shape.stride * shape.stride).map(move |index| {
        let row = Residue::new(index / shape.stride, shape.height, shape.kernel_height, &shape);
        let column = Residue::new(index % shape.stride, shape.width, shape.kernel_width, &shape);
        let stencil = Stencil {
            batch: shape.batch,
            height: shape.output_height(),
            width: shape.output_width(),
            channels: shape.output_channels,
            tap_rows: row.taps,
            tap_columns: column.taps,
            step: 1,
            origin_row: row.origin,
            origin_column: column.origin,
            rows: row.count,
            columns: column.count,
        };
        (row, column, stencil)
    })
}

fn is_empty(stencil: &Stencil) -> bool {
    stencil.depth() == 0 || stencil.rows * stencil.columns == 0
}

fn packed_len(depth: usize, columns: usize) -> usize {
    lines(depth * columns.next_multiple_of(WIDEST_STRIP))
}

/// Blocks of a convolution. Their size changes no sum.
fn convolution_blocks(stencil: &Stencil) -> Blocks {
    let total = stencil.batch * stencil.rows * stencil.columns;
    Blocks::new(stencil, (total / JOBS).next_multiple_of(14).clamp(28, PIXELS), usize::MAX)
}

fn convolution_scratch(stencil: &Stencil) -> usize {
    let blocks = convolution_blocks(stencil);
    lines(blocks.patch_len(stencil)) * blocks.images
}

/// Computes the destination grid. `packed` is the weight: for each strip of destination channels, `depth` rows of it.
/// Pixels that `finish` processes are adjacent.
#[allow(clippy::too_many_arguments)]
fn convolve(
    level: Level,
    stencil: &Stencil,
    placement: &Placement,
    source: &[f32],
    packed: &[f32],
    destination: &mut [f32],
    finish: Option<&Finish>,
    scratch: &mut [f32],
) {
    let strip = gemm::strip(level);
    let blocks = convolution_blocks(stencil);
    let patch_len = lines(blocks.patch_len(stencil));
    let destination = Shared(destination.as_mut_ptr());
    assert!(packed.len() >= stencil.depth() * placement.channels.next_multiple_of(strip));
    jobs::run(blocks.count, scratch, convolution_scratch(stencil), |index, scratch| {
        let block = blocks.block(stencil, index);
        let mut find = |image: usize| {
            let scratch = &mut scratch[image * patch_len..][..patch_len];
            patch(stencil, source, &block, block.image + image, scratch)
        };
        for image in 1..block.images {
            find(image);
        }
        let Patch { first, pitch } = find(0);
        // One pointer must reach the patches of all images.
        let first = if stencil.is_inside() { first } else { scratch.as_ptr() };
        let y = placement.first_row + block.row * placement.spacing;
        let x = placement.first_column + block.column * placement.spacing;
        let pixel = (block.image * placement.height + y) * placement.width + x;
        let image_len = if stencil.is_inside() { stencil.height * stencil.width * stencil.channels } else { patch_len };
        let pixels = Grid {
            columns: block.columns,
            lines: block.rows,
            column: stencil.step * stencil.channels,
            line: stencil.step * pitch,
            image: image_len,
        };
        let results = Grid {
            column: placement.spacing * placement.channels,
            line: placement.spacing * placement.width * placement.channels,
            image: placement.height * placement.width * placement.channels,
            ..pixels
        };
        for channel in (0..placement.channels).step_by(strip) {
            // SAFETY: the patches, or the images themselves, hold the taps of all pixels of the block, `packed` holds
            // `depth` strips (asserted), and this job alone writes these pixels, which lie inside the destination
            // because the grid does.
            unsafe {
                gemm::multiply(
                    level,
                    &Product {
                        rows: block.images * block.rows * block.columns,
                        columns: strip.min(placement.channels - channel),
                        segments: stencil.tap_rows,
                        depth: stencil.tap_columns * stencil.channels,
                        left: first,
                        left_order: Order::Rows(pixels),
                        left_segment: pitch,
                        right: packed.as_ptr().add(channel * stencil.depth()),
                        result: destination.at(pixel * placement.channels + channel),
                        result_rows: results,
                        accumulate: placement.accumulate,
                    },
                );
            }
        }
        if let Some(finish) = finish {
            for line in 0..block.images * block.rows {
                let line = line / block.rows * placement.height + line % block.rows;
                let place = (pixel + line * placement.width) * placement.channels;
                let len = block.columns * placement.channels;
                // SAFETY: a line of the block, which this job alone writes.
                finish.pixels(unsafe { std::slice::from_raw_parts_mut(destination.at(place), len) }, place);
            }
        }
    });
}

pub fn forward_workspace(shape: &Conv2dShape) -> usize {
    let stencil = forward_stencil(&flattened(shape));
    packed_len(stencil.depth(), shape.output_channels) + jobs::scratch_total(convolution_scratch(&stencil))
}

pub fn forward(
    level: Level,
    shape: &Conv2dShape,
    input: &[f32],
    weight: &[f32],
    output: &mut [f32],
    finish: Option<&Finish>,
    workspace: &mut [f32],
) {
    let shape = &flattened(shape);
    let stencil = forward_stencil(shape);
    let depth = stencil.depth();
    let strip = gemm::strip(level);
    let (packed, scratch) = workspace.split_at_mut(packed_len(depth, shape.output_channels));
    let target = Shared(packed.as_mut_ptr());
    // `packed[channel / strip][tap][channel % strip]`, with zeros where there is no channel.
    jobs::run(shape.output_channels.div_ceil(strip), scratch, 1, |job, _| {
        // SAFETY: each job has a piece of its own of `packed`, which has room for whole strips.
        let target = unsafe { std::slice::from_raw_parts_mut(target.at(job * strip * depth), strip * depth) };
        let first = job * strip;
        let count = strip.min(shape.output_channels - first);
        for (index, target) in target.chunks_mut(TRANSPOSED * strip).enumerate() {
            let taps = target.len() / strip;
            for lane in 0..strip {
                let from = (first + lane) * depth + index * TRANSPOSED;
                for tap in 0..taps {
                    target[tap * strip + lane] = if lane < count { weight[from + tap] } else { 0.0 };
                }
            }
        }
    });
    let placement = Placement {
        height: stencil.rows,
        width: stencil.columns,
        channels: shape.output_channels,
        first_row: 0,
        first_column: 0,
        spacing: 1,
        accumulate: false,
    };
    convolve(level, &stencil, &placement, input, packed, output, finish, scratch);
}

pub fn input_gradient_workspace(shape: &Conv2dShape) -> usize {
    let shape = flattened(shape);
    let largest = |len: fn(&Stencil, usize) -> usize| {
        let lens = residues(shape).filter(|(_, _, stencil)| !is_empty(stencil));
        lens.map(|(_, _, stencil)| len(&stencil, shape.input_channels)).max().unwrap_or(0)
    };
    largest(|stencil, channels| packed_len(stencil.depth(), channels))
        + jobs::scratch_total(largest(|stencil, _| convolution_scratch(stencil)))
}

pub fn input_gradient(
    level: Level,
    shape: &Conv2dShape,
    output_gradient: &[f32],
    weight: &[f32],
    input_gradient: &mut [f32],
    accumulate: bool,
    workspace: &mut [f32],
) {
    let shape = &flattened(shape);
    let strip = gemm::strip(level);
    if !accumulate && residues(*shape).any(|(_, _, stencil)| is_empty(&stencil)) {
        input_gradient.fill(0.0);
    }
    for (row, column, stencil) in residues(*shape).filter(|(_, _, stencil)| !is_empty(stencil)) {
        let depth = stencil.depth();
        let (packed, scratch) = workspace.split_at_mut(packed_len(depth, shape.input_channels));
        let target = Shared(packed.as_mut_ptr());
        // `packed[channel / strip][tap row][tap column][output channel][channel % strip]`, taps backwards.
        jobs::run(shape.input_channels.div_ceil(strip), scratch, 1, |job, _| {
            // SAFETY: each job has a piece of its own of `packed`, which has room for whole strips.
            let target = unsafe { std::slice::from_raw_parts_mut(target.at(job * strip * depth), strip * depth) };
            let first = job * strip;
            let count = strip.min(shape.input_channels - first);
            for (index, target) in target.chunks_exact_mut(strip).enumerate() {
                let output_channel = index % shape.output_channels;
                let tap = index / shape.output_channels;
                let r = row.first_tap + (row.taps - 1 - tap / column.taps) * shape.stride;
                let s = column.first_tap + (column.taps - 1 - tap % column.taps) * shape.stride;
                let from = ((output_channel * shape.kernel_height + r) * shape.kernel_width + s) * shape.input_channels;
                target[..count].copy_from_slice(&weight[from + first..from + first + count]);
                target[count..].fill(0.0);
            }
        });
        let placement = Placement {
            height: shape.height,
            width: shape.width,
            channels: shape.input_channels,
            first_row: row.first,
            first_column: column.first,
            spacing: shape.stride,
            accumulate,
        };
        convolve(level, &stencil, &placement, output_gradient, packed, input_gradient, None, scratch);
    }
}

/// The division of a weight gradient: `blocks` are summed in `groups` buffers, by shape alone.
struct WeightPlan {
    stencil: Stencil,
    blocks: Blocks,
    groups: usize,
    /// Floats of one group's buffer.
    group_len: usize,
    patch_len: usize,
    /// Whether each job packs the taps of a panel. Otherwise they are read in place, and a panel is one row of taps.
    packed: bool,
    /// Taps of a panel.
    panel: usize,
}

impl WeightPlan {
    fn new(shape: &Conv2dShape) -> WeightPlan {
        let stencil = forward_stencil(shape);
        let blocks = Blocks::new(&stencil, PIXELS, 1);
        let group_len = packed_len(stencil.depth(), shape.output_channels);
        let groups = (GROUP_FLOATS / group_len).clamp(1, GROUPS).min(blocks.count);
        let patch_len = lines(blocks.patch_len(&stencil));
        let row_len = stencil.tap_columns * stencil.channels;
        let packed = stencil.is_inside() && stencil.step * stencil.channels >= PACKED_DISTANCE;
        let panel = if packed { row_len.div_ceil(row_len.div_ceil(PANEL)) } else { row_len };
        WeightPlan { stencil, blocks, groups, group_len, patch_len, packed, panel }
    }

    /// Floats of a packed panel.
    fn panel_len(&self) -> usize {
        if self.packed { lines(self.blocks.rows * self.blocks.columns * self.panel) } else { 0 }
    }

    /// Floats of scratch memory: a patch, a packed panel, and one strip of the gradients of its pixels.
    fn scratch(&self) -> usize {
        self.patch_len + self.panel_len() + self.blocks.rows * self.blocks.columns * WIDEST_STRIP
    }
}

pub fn weight_gradient_workspace(shape: &Conv2dShape) -> usize {
    let plan = WeightPlan::new(&flattened(shape));
    plan.groups * plan.group_len + jobs::scratch_total(plan.scratch())
}

pub fn weight_gradient(
    level: Level,
    shape: &Conv2dShape,
    input: &[f32],
    output_gradient: &[f32],
    weight_gradient: &mut [f32],
    workspace: &mut [f32],
) {
    let shape = &flattened(shape);
    let plan = WeightPlan::new(shape);
    let WeightPlan { stencil, blocks, groups, group_len, patch_len, packed, panel } = plan;
    let scratch_len = plan.scratch();
    let strip = gemm::strip(level);
    let depth = stencil.depth();
    let channels = shape.output_channels;
    let strips = channels.div_ceil(strip);
    let row_len = stencil.tap_columns * stencil.channels;
    let panels_per_row = row_len.div_ceil(panel);
    let panels = stencil.tap_rows * panels_per_row;
    // A job that packs takes one panel, others take all panels. Jobs take several strips, to share the panel or the patch among
    // them, but there should be enough jobs.
    let panels_per_job = if packed { 1 } else { panels };
    let panel_jobs = panels / panels_per_job;
    let strips_per_job = (strips * groups * panel_jobs / JOBS).clamp(1, strips);
    let strip_jobs = strips.div_ceil(strips_per_job);
    let (sums, scratch) = workspace.split_at_mut(groups * group_len);
    let shared_sums = Shared(sums.as_mut_ptr());
    jobs::run(groups * panel_jobs * strip_jobs, scratch, scratch_len, |job, scratch| {
        let (group, job) = (job / (panel_jobs * strip_jobs), job % (panel_jobs * strip_jobs));
        let (first_panel, strips_from) = (job / strip_jobs * panels_per_job, job % strip_jobs * strips_per_job);
        let strips_to = (strips_from + strips_per_job).min(strips);
        let first_block = group * blocks.count / groups;
        let (patch_scratch, scratch) = scratch.split_at_mut(patch_len);
        let (taps, gradients) = scratch.split_at_mut(plan.panel_len());
        for index in first_block..(group + 1) * blocks.count / groups {
            let block = blocks.block(&stencil, index);
            let pixels = block.rows * block.columns;
            let patch = patch(&stencil, input, &block, block.image, patch_scratch);
            let panel_at = |index: usize| {
                let (tap_row, first_tap) = (index / panels_per_row, index % panels_per_row * panel);
                (tap_row, first_tap, panel.min(row_len - first_tap))
            };
            if packed {
                let (tap_row, first_tap, len) = panel_at(first_panel);
                for (pixel, taps) in taps[..pixels * len].chunks_exact_mut(len).enumerate() {
                    let (row, column) = (pixel / block.columns, pixel % block.columns);
                    let from = (tap_row + row * stencil.step) * patch.pitch + column * stencil.step * stencil.channels;
                    // SAFETY: no tap of the block lies outside the image, which is not written.
                    let source = unsafe { std::slice::from_raw_parts(patch.first.add(from + first_tap), len) };
                    taps.copy_from_slice(source);
                }
            }
            for strip_index in strips_from..strips_to {
                let first = strip_index * strip;
                let count = strip.min(channels - first);
                for row in 0..block.rows {
                    let line = (block.image * stencil.rows + block.row + row) * stencil.columns + block.column;
                    let from = &output_gradient[line * channels + first..][..(block.columns - 1) * channels + count];
                    let to = &mut gradients[row * block.columns * strip..][..block.columns * strip];
                    // SAFETY: the slices have the lengths that the copy needs.
                    unsafe { gemm::pack(level, from.as_ptr(), channels, block.columns, count, to.as_mut_ptr()) };
                }
                for panel_index in first_panel..first_panel + panels_per_job {
                    let (tap_row, first_tap, len) = panel_at(panel_index);
                    let offset = group * group_len + (strip_index * depth + tap_row * row_len + first_tap) * strip;
                    // SAFETY: the patch holds the taps of the block, `taps` those of a packed panel, `gradients` the strip
                    // of its pixels, and only this job writes the sums of this group, panel and strip.
                    unsafe {
                        let (left, step, segments) = match packed {
                            true => (taps.as_ptr(), len, 1),
                            false => {
                                let place = tap_row * patch.pitch + first_tap;
                                (patch.first.add(place), stencil.step * stencil.channels, block.rows)
                            }
                        };
                        gemm::multiply(
                            level,
                            &Product {
                                rows: len,
                                columns: strip,
                                segments,
                                depth: pixels / segments,
                                left,
                                left_order: Order::Columns(step),
                                left_segment: stencil.step * patch.pitch,
                                right: gradients.as_ptr(),
                                result: shared_sums.at(offset),
                                result_rows: Grid::even(strip),
                                accumulate: index > first_block,
                            },
                        );
                    }
                }
            }
        }
    });
    // Adds the groups in order, and turns `[strip][tap][channel]` to `[channel][tap]`.
    let sums = &*sums;
    let target = Shared(weight_gradient.as_mut_ptr());
    jobs::run(strips, scratch, 1, |job, _| {
        let first = job * strip;
        let count = strip.min(channels - first);
        // SAFETY: each job writes the filters of its own channels.
        let target = unsafe { std::slice::from_raw_parts_mut(target.at(first * depth), count * depth) };
        for first_tap in (0..depth).step_by(TRANSPOSED) {
            let taps = TRANSPOSED.min(depth - first_tap);
            let mut totals = [0.0; TRANSPOSED * WIDEST_STRIP];
            let totals = &mut totals[..taps * strip];
            let place = (job * depth + first_tap) * strip;
            totals.copy_from_slice(&sums[place..place + taps * strip]);
            for group in 1..groups {
                let sums = &sums[group * group_len + place..][..taps * strip];
                totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
            }
            for lane in 0..count {
                for (tap, target) in target[lane * depth + first_tap..][..taps].iter_mut().enumerate() {
                    *target = totals[tap * strip + lane];
                }
            }
        }
    });
}
