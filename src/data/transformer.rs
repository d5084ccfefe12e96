//! Executes transforms on the CPU.

use super::editor::Editor;
use super::resizer::{Axis, Resizer, Rows, RowsMut};
use super::rgb_image::Image;
use super::transform::{CropBox, Draw, MEAN, Transform, lookup_table};
use crate::device::{Erased, Resampling};
use crate::error::{Error, Result};

/// The pixels of a scaled axis that the output takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    /// Number of scaled pixels before them.
    skipped: u32,
    /// Number of pixels taken.
    taken: u32,
    /// Number of black output pixels before them.
    padding: u32,
}

impl Span {
    /// The `size` pixels starting at `begin` of an axis of `scaled` pixels.
    fn new(scaled: u32, begin: i32, size: u32) -> Self {
        let (begin, scaled) = (i64::from(begin), i64::from(scaled));
        let first = begin.clamp(0, scaled);
        let last = (begin + i64::from(size)).clamp(first, scaled);
        let padding = (-begin).clamp(0, size.into());
        Self { skipped: first as u32, taken: (last - first) as u32, padding: padding as u32 }
    }

    /// The scaled pixels taken, as a part of an axis of `source` pixels that scales to `scaled`.
    fn axis(&self, source: u32, scaled: u32) -> Axis {
        Axis { source, scaled, first: self.skipped, count: self.taken }
    }
}

/// Transforms images, one after the other, in the same buffers.
#[derive(Debug, Default)]
pub struct Transformer {
    resizer: Resizer,
    editor: Editor,
}

impl Transformer {
    /// Applies the whole transform except normalisation. The result is 8-bit RGB, `[image_size, image_size, 3]`.
    ///
    /// # Errors
    /// When the transform does not fit the image: a size is zero.
    pub fn transform<const BYTES: usize>(
        &mut self,
        image: &Image<BYTES>,
        transform: &Transform,
        draw: Draw,
    ) -> Result<Vec<u8>> {
        self.apply(image, &transform.draw(draw, image.width, image.height), transform.image_size())
    }

    /// The same for a drawn resampling.
    ///
    /// # Errors
    /// When the rectangle lies outside of the image, or a size is zero.
    pub fn apply<const BYTES: usize>(
        &mut self,
        image: &Image<BYTES>,
        drawn: &Resampling,
        image_size: u32,
    ) -> Result<Vec<u8>> {
        let size = image_size as usize;
        let mut pixels = vec![0; size * size * BYTES];
        self.resample(image, drawn, image_size, &mut pixels)?;
        let mut output = vec![0; size * size * 3];
        let mean = MEAN.map(|mean| (mean * 255.0).round() as u8);
        map_pixels::<BYTES, u8>(&pixels, drawn, size, mean, &mut output, |&pixel| {
            [0, 1, 2].map(|channel| pixel[channel])
        })?;
        Ok(output)
    }

    /// Applies a resampling except what [`normalize_pixels`] applies in the same pass: flips, if no edits follow them, and the erased
    /// rectangle. `output` has the image's kind of pixels, `[image_size, image_size, BYTES]`.
    ///
    /// # Errors
    /// When the rectangle lies outside of the image, a size is zero, or `output` has another length.
    pub(super) fn resample<const BYTES: usize>(
        &mut self,
        image: &Image<BYTES>,
        drawn: &Resampling,
        image_size: u32,
        output: &mut [u8],
    ) -> Result<()> {
        self.scale(image, drawn, image_size, output)?;
        if drawn.edits.change_pixels() {
            flip::<BYTES>(output, drawn, image_size as usize);
            self.editor.edit::<BYTES>(output, image_size as usize, &drawn.edits);
        }
        Ok(())
    }

    fn scale<const BYTES: usize>(
        &mut self,
        image: &Image<BYTES>,
        drawn: &Resampling,
        image_size: u32,
        output: &mut [u8],
    ) -> Result<()> {
        let Resampling { top, left, height, width, scaled_height, scaled_width, window_top, window_left, .. } = *drawn;
        let part = CropBox { top, left, height, width };
        require_length::<BYTES>(output, image_size, image_size)?;
        require_inside(image, part)?;
        if scaled_width == 0 || scaled_height == 0 {
            return Err(Error::new(format!(
                "cannot scale {width} x {height} pixels to {scaled_width} x {scaled_height}"
            )));
        }
        let across = Span::new(scaled_width, window_left, image_size);
        let down = Span::new(scaled_height, window_top, image_size);
        if across.taken < image_size || down.taken < image_size {
            output.fill(0);
        }
        if across.taken == 0 || down.taken == 0 {
            return Ok(());
        }
        let step = image_size as usize * BYTES;
        let begin = down.padding as usize * step + across.padding as usize * BYTES;
        self.resizer.resize::<BYTES>(
            pixels_from(image, top, left),
            across.axis(width, scaled_width),
            down.axis(height, scaled_height),
            drawn.columns_first(),
            RowsMut { bytes: &mut output[begin..], step },
        );
        Ok(())
    }

    /// Cuts `crop` out of an image and scales it to `width` x `height`, bilinear with antialiasing: Pillow's
    /// `image.crop(...).resize((width, height), BILINEAR)`. `output` has the image's kind of pixels, `[height, width, BYTES]`.
    ///
    /// # Errors
    /// When the crop lies outside of the image, or `output` has another length.
    pub fn resized_crop<const BYTES: usize>(
        &mut self,
        image: &Image<BYTES>,
        crop: CropBox,
        width: u32,
        height: u32,
        output: &mut [u8],
    ) -> Result<()> {
        require_length::<BYTES>(output, width, height)?;
        require_inside(image, crop)?;
        let CropBox { top, left, height: crop_height, width: crop_width } = crop;
        let drawn = Resampling { height: crop_height, width: crop_width, ..Resampling::whole(width, height) };
        self.resizer.resize::<BYTES>(
            pixels_from(image, top, left),
            Axis { source: crop_width, scaled: width, first: 0, count: width },
            Axis { source: crop_height, scaled: height, first: 0, count: height },
            drawn.columns_first(),
            RowsMut { bytes: output, step: width as usize * BYTES },
        );
        Ok(())
    }
}

/// Exchanges left and right, or top and bottom, of a square image.
fn flip<const BYTES: usize>(pixels: &mut [u8], drawn: &Resampling, size: usize) {
    let pixels = pixels.as_chunks_mut::<BYTES>().0;
    if drawn.flip_columns {
        pixels.chunks_mut(size).for_each(<[_]>::reverse);
    }
    if drawn.flip_rows {
        // All pixels in reverse order are rows in reverse order, each reversed.
        pixels.reverse();
        pixels.chunks_mut(size).for_each(<[_]>::reverse);
    }
}

/// The pixels of an image from this one on.
fn pixels_from<const BYTES: usize>(image: &Image<BYTES>, top: u32, left: u32) -> Rows<'_> {
    let step = image.width as usize * BYTES;
    Rows { bytes: &image.pixels[top as usize * step + left as usize * BYTES..], step }
}

/// Normalises 8-bit RGB pixels by [`lookup_table`]. `output` has the same length and order.
///
/// # Errors
/// When the lengths differ or are not a multiple of three.
pub fn normalize(pixels: &[u8], output: &mut [f32]) -> Result<()> {
    let width = pixels.len() / 3;
    normalize_pixels::<3>(pixels, &Resampling::whole(width as u32, 1), width, output)
}

/// The same for pixels of `BYTES` bytes in rows of `width`. Also applies the flips of `drawn`, if no edits follow them, and the erased
/// rectangle.
pub(super) fn normalize_pixels<const BYTES: usize>(
    pixels: &[u8],
    drawn: &Resampling,
    width: usize,
    output: &mut [f32],
) -> Result<()> {
    let [red, green, blue] = lookup_table();
    map_pixels(pixels, drawn, width, [0.0; 3], output, |pixel: &[u8; BYTES]| {
        [red[usize::from(pixel[0])], green[usize::from(pixel[1])], blue[usize::from(pixel[2])]]
    })
}

/// Maps each pixel to its three channels, in rows of `width`, and applies flips and the erased rectangle of `drawn`, whose pixels become
/// `mean`.
fn map_pixels<const BYTES: usize, T: Copy>(
    pixels: &[u8],
    drawn: &Resampling,
    width: usize,
    mean: [T; 3],
    output: &mut [T],
    channels: impl Fn(&[u8; BYTES]) -> [T; 3],
) -> Result<()> {
    let output_len = output.len();
    let ((pixels, odd), (mapped, odd_mapped)) = (pixels.as_chunks::<BYTES>(), output.as_chunks_mut::<3>());
    if pixels.len() != mapped.len() || !odd.is_empty() || !odd_mapped.is_empty() {
        return Err(Error::new(format!("{} pixels do not fit into {output_len} channel values", pixels.len())));
    }
    let width = width.max(1);
    let rows = pixels.len() / width;
    // Edits follow flips, so that these are done.
    let flips = !drawn.edits.change_pixels();
    let (flip_rows, flip_columns) = (drawn.flip_rows && flips, drawn.flip_columns && flips);
    for (number, mapped_row) in mapped.chunks_mut(width).enumerate() {
        let row = if flip_rows { rows - 1 - number } else { number };
        let row = &pixels[row * width..][..width];
        if flip_columns {
            row.iter().rev().zip(mapped_row).for_each(|(pixel, mapped)| *mapped = channels(pixel));
        } else {
            row.iter().zip(mapped_row).for_each(|(pixel, mapped)| *mapped = channels(pixel));
        }
    }
    if let Some(Erased { top, left, height, width: columns }) = drawn.edits.erased {
        for row in mapped.chunks_mut(width).skip(top as usize).take(height as usize) {
            row.iter_mut().skip(left as usize).take(columns as usize).for_each(|mapped| *mapped = mean);
        }
    }
    Ok(())
}

fn require_length<const BYTES: usize>(output: &[u8], width: u32, height: u32) -> Result<()> {
    if width == 0 || height == 0 || output.len() as u64 != u64::from(width) * u64::from(height) * BYTES as u64 {
        return Err(Error::new(format!(
            "{width} x {height} pixels of {BYTES} bytes do not fit into {} bytes",
            output.len()
        )));
    }
    Ok(())
}

fn require_inside<const BYTES: usize>(image: &Image<BYTES>, crop: CropBox) -> Result<()> {
    let right = u64::from(crop.left) + u64::from(crop.width);
    let bottom = u64::from(crop.top) + u64::from(crop.height);
    if crop.width == 0 || crop.height == 0 || right > image.width.into() || bottom > image.height.into() {
        return Err(Error::new(format!(
            "the crop {crop:?} is not inside an image of {} x {} pixels",
            image.width, image.height
        )));
    }
    Ok(())
}
