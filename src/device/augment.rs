//! The work of [`Device::augment`](super::Device::augment) for each image, and the table that describes it to a kernel.

use super::edits::{AffineMap, Edits, Erased};
use crate::error::{Error, Result};
use crate::tensor::{ElementType, Tensor};

/// The mapping of an image to output pixels: a rectangle is scaled, as by Pillow's `BILINEAR`, and a
/// square of the scaled pixels is mirrored and edited, which gives the output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resampling {
    /// Rows of the image above the rectangle.
    pub top: u32,
    /// Columns to the left of it.
    pub left: u32,
    /// Number of rows, at least one.
    pub height: u32,
    /// Number of columns, at least one.
    pub width: u32,
    /// Rows to which it is scaled, at least one.
    pub scaled_height: u32,
    /// Columns to which it is scaled, at least one.
    pub scaled_width: u32,
    /// The scaled row at which the output begins. Pixels outside the scaled rectangle are black.
    pub window_top: i32,
    /// The scaled column at which the output begins.
    pub window_left: i32,
    /// Whether the output is mirrored from left to right.
    pub flip_columns: bool,
    /// Whether the output is mirrored from top to bottom.
    pub flip_rows: bool,
    /// What then happens to the pixels.
    pub edits: Edits,
}

impl Resampling {
    /// Keeps an image of this size unchanged.
    pub fn whole(width: u32, height: u32) -> Self {
        let (scaled_height, scaled_width) = (height, width);
        Self {
            top: 0,
            left: 0,
            height,
            width,
            scaled_height,
            scaled_width,
            window_top: 0,
            window_left: 0,
            flip_columns: false,
            flip_rows: false,
            edits: Edits::default(),
        }
    }

    /// Whether the columns are scaled before the rows. Bytes are rounded in between, so the order matters: it is that of Pillow 13.
    pub fn columns_first(&self) -> bool {
        let saved = |before: u32, after: u32| i64::from(before) - i64::from(after);
        let (rows, columns) = (saved(self.height, self.scaled_height), saved(self.width, self.scaled_width));
        rows > 0 && rows > 2 * columns
    }
}

/// An image in device memory, and its resampling.
#[derive(Debug, Clone)]
pub struct ImageView {
    /// `[height, width, 3]`, bytes.
    pub image: Tensor,
    /// Its resampling.
    pub resampling: Resampling,
}

impl ImageView {
    /// Bytes of a view in the table that [`super::Augment::views`] is.
    pub const BYTES: usize = 144;

    /// Its entry in the table. The table does not keep the image's memory alive.
    ///
    /// # Errors
    /// When the rectangle is empty, is scaled to nothing, or lies outside of the image.
    pub fn bytes(&self) -> Result<[u8; Self::BYTES]> {
        let Resampling {
            top,
            left,
            height,
            width,
            scaled_height,
            scaled_width,
            window_top,
            window_left,
            flip_columns,
            flip_rows,
            edits: Edits { affine, colours, erased },
        } = self.resampling;
        let inside = match *self.image.shape().dims() {
            [rows, columns, 3] if self.image.element_type() == ElementType::U8 => {
                let fits = |first: u32, count: u32, all: usize| u64::from(first) + u64::from(count) <= all as u64;
                fits(top, height, rows) && fits(left, width, columns) && rows.max(columns) < 1 << 28
            }
            _ => false,
        };
        if !inside || [height, width, scaled_height, scaled_width].contains(&0) {
            return Err(Error::new(format!("{:?} of {:?}: not a part of the image", self.resampling, self.image)));
        }
        let columns = self.image.shape().dims()[1];
        let first_pixel = top as usize * columns + left as usize;
        let columns_first = self.resampling.columns_first();
        let colours: Vec<[u32; 2]> = colours.into_iter().map_while(|colour| Some(colour?.entry())).collect();
        let flags = u32::from(flip_columns)
            | u32::from(flip_rows) << 1
            | u32::from(columns_first) << 2
            | u32::from(affine.is_some()) << 3
            | (colours.len() as u32) << 8;
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&(self.image.address() + first_pixel as u64 * 3).to_ne_bytes());
        let rest = [
            (columns as u32).to_ne_bytes(),
            height.to_ne_bytes(),
            width.to_ne_bytes(),
            scaled_height.to_ne_bytes(),
            scaled_width.to_ne_bytes(),
            window_top.to_ne_bytes(),
            window_left.to_ne_bytes(),
            flags.to_ne_bytes(),
        ];
        bytes[8..40].copy_from_slice(rest.as_flattened());
        let map = affine.map_or([0; 6], AffineMap::entry).map(i64::to_ne_bytes);
        bytes[40..88].copy_from_slice(map.as_flattened());
        let Erased { top, left, height, width } = erased.unwrap_or_default();
        let erased = [top, left, height, width].map(u32::to_ne_bytes);
        bytes[88..104].copy_from_slice(erased.as_flattened());
        let colours: Vec<u8> = colours.as_flattened().iter().flat_map(|number| number.to_ne_bytes()).collect();
        bytes[104..104 + colours.len()].copy_from_slice(&colours);
        Ok(bytes)
    }
}

/// Arguments of [`super::Device::augment`].
pub struct Augment<'a> {
    /// One [`ImageView::bytes`] after the other, `[N * ImageView::BYTES]` bytes. A recording reads the contents
    /// at the time when it is replayed.
    pub views: &'a Tensor,
    /// `[3, 256]`, float32: the result for each byte of red, green and blue. `None` for an output of bytes, which are not normalised.
    pub lookup_table: Option<&'a Tensor>,
    /// `[N, S, S, 3]`, of the type of activations, or bytes.
    pub output: &'a Tensor,
    /// Total number of pixels in the views' rectangles, for the roofline.
    pub source_pixels: u64,
    /// Memory for at least N images with edits, `[M, Augment::workspace_bytes(S)]` bytes, zero before the first launch that uses it.
    /// `None` if no view has edits.
    pub workspace: Option<&'a Tensor>,
}

impl Augment<'_> {
    /// Bytes of the workspace for an image of this size: a counter, in 16 bytes, and two copies of the image with four bytes a pixel.
    pub fn workspace_bytes(image_size: usize) -> usize {
        16 + (2 * image_size * image_size * 4).next_multiple_of(16)
    }
}
