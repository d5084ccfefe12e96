//! Executes transforms on the CPU.

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8x3, U8x4};
use fast_image_resize::{FilterType, ImageView, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use super::rgb_image::{Image, KEPT_BYTES};
use super::transform::{CropBox, Draw, Transform, lookup_table};
use crate::device::Resampling;
use crate::error::{Error, Result};

/// A part of an image, whose borders need not lie between pixels.
#[derive(Debug, Clone, Copy)]
struct Region {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

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

    /// The part of a source axis of `source` pixels that scales to the pixels taken, when all of it scales to `scaled`.
    fn source_range(&self, source: u32, scaled: u32) -> (f64, f64) {
        if self.taken == scaled {
            return (0.0, f64::from(source));
        }
        let scale = f64::from(source) / f64::from(scaled);
        (f64::from(self.skipped) * scale, f64::from(self.taken) * scale)
    }
}

/// Transforms images, one after the other, in the same buffers.
#[derive(Debug, Default)]
pub struct Transformer {
    resizer: Resizer,
    rows: Vec<u8>,
    scaled: Vec<u8>,
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
        map_pixels::<BYTES, u8>(&pixels, drawn, size, &mut output, |&pixel| [0, 1, 2].map(|channel| pixel[channel]))?;
        Ok(output)
    }

    /// Applies a resampling except its flips, which [`normalize_pixels`] applies in the same pass. `output` has the image's kind of
    /// pixels, `[image_size, image_size, BYTES]`.
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
        // Computes only the pixels that the output takes.
        let (region_left, region_width) = across.source_range(width, scaled_width);
        let (region_top, region_height) = down.source_range(height, scaled_height);
        let region = Region { left: region_left, top: region_top, width: region_width, height: region_height };
        if across.taken == image_size && down.taken == image_size {
            self.scale(image, part, region, (image_size, image_size), output)?;
        } else {
            output.fill(0);
            if across.taken > 0 && down.taken > 0 {
                let mut scaled = std::mem::take(&mut self.scaled);
                scaled.resize(across.taken as usize * down.taken as usize * BYTES, 0);
                self.scale(image, part, region, (across.taken, down.taken), &mut scaled)?;
                let row_bytes = across.taken as usize * BYTES;
                let rows = output.chunks_exact_mut(image_size as usize * BYTES).skip(down.padding as usize);
                for (row, scaled_row) in rows.zip(scaled.chunks_exact(row_bytes)) {
                    row[across.padding as usize * BYTES..][..row_bytes].copy_from_slice(scaled_row);
                }
                self.scaled = scaled;
            }
        }
        self.free_large_buffers();
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
        let region = Region { left: 0.0, top: 0.0, width: f64::from(crop.width), height: f64::from(crop.height) };
        self.scale(image, crop, region, (width, height), output)?;
        self.free_large_buffers();
        Ok(())
    }

    /// Scales a region of a part of the image to (width, height), first the rows and then the columns, with bytes in between: the
    /// order in which Pillow rounds. In one call the crate scales columns first, which is faster, and then 14 % of the values
    /// are off by one instead of 0.13 %.
    fn scale<const BYTES: usize>(
        &mut self,
        image: &Image<BYTES>,
        part: CropBox,
        region: Region,
        size: (u32, u32),
        output: &mut [u8],
    ) -> Result<()> {
        match BYTES {
            3 => self.scale_pixels::<U8x3, BYTES>(image, part, region, size, output),
            4 => self.scale_pixels::<U8x4, BYTES>(image, part, region, size, output),
            _ => Err(impossible(format!("its pixels have {BYTES} bytes"))),
        }
    }

    fn scale_pixels<P: PixelTrait, const BYTES: usize>(
        &mut self,
        image: &Image<BYTES>,
        part: CropBox,
        region: Region,
        (width, height): (u32, u32),
        output: &mut [u8],
    ) -> Result<()> {
        let mut target = target_view::<P>(width, height, output)?;
        let source = TypedImageRef::<P>::from_buffer(image.width, image.height, &image.pixels).map_err(impossible)?;
        let source =
            TypedCroppedImage::new(source, part.left, part.top, part.width, part.height).map_err(impossible)?;
        // The filter reaches one pixel, or the width of one target pixel if it shrinks; one more is for rounding.
        let reach = (region.height / f64::from(height)).max(1.0) + 1.0;
        let first = (region.top - reach).floor().max(0.0) as u32;
        let last = ((region.top + region.height + reach).ceil() as u32).min(source.height());
        let rows = TypedCroppedImage::from_ref(&source, 0, first, source.width(), last.saturating_sub(first))
            .map_err(impossible)?;
        self.rows.resize(width as usize * rows.height() as usize * BYTES, 0);
        let mut scaled_rows = target_view(width, rows.height(), &mut self.rows)?;
        let across = bilinear().crop(region.left, 0.0, region.width, f64::from(rows.height()));
        self.resizer.resize_typed(&rows, &mut scaled_rows, &across).map_err(impossible)?;
        let down = bilinear().crop(0.0, region.top - f64::from(first), f64::from(width), region.height);
        self.resizer.resize_typed(&scaled_rows, &mut target, &down).map_err(impossible)
    }

    fn free_large_buffers(&mut self) {
        if self.resizer.size_of_internal_buffers() > KEPT_BYTES {
            self.resizer.reset_internal_buffers();
        }
        if self.rows.capacity() > KEPT_BYTES {
            self.rows = Vec::new();
        }
    }
}

/// Normalises 8-bit RGB pixels by [`lookup_table`]. `output` has the same length and order.
///
/// # Errors
/// When the lengths differ or are not a multiple of three.
pub fn normalize(pixels: &[u8], output: &mut [f32]) -> Result<()> {
    let width = pixels.len() / 3;
    normalize_pixels::<3>(pixels, &Resampling::whole(width as u32, 1), width, output)
}

/// The same for pixels of `BYTES` bytes in rows of `width`. Also applies the flips of `drawn`.
pub(super) fn normalize_pixels<const BYTES: usize>(
    pixels: &[u8],
    drawn: &Resampling,
    width: usize,
    output: &mut [f32],
) -> Result<()> {
    let [red, green, blue] = lookup_table();
    map_pixels(pixels, drawn, width, output, |pixel: &[u8; BYTES]| {
        [red[usize::from(pixel[0])], green[usize::from(pixel[1])], blue[usize::from(pixel[2])]]
    })
}

/// Maps each pixel to its three channels, in rows of `width`, and applies the flips of `drawn`.
fn map_pixels<const BYTES: usize, T>(
    pixels: &[u8],
    drawn: &Resampling,
    width: usize,
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
    for (number, mapped_row) in mapped.chunks_mut(width).enumerate() {
        let row = if drawn.flip_rows { rows - 1 - number } else { number };
        let row = &pixels[row * width..][..width];
        if drawn.flip_columns {
            row.iter().rev().zip(mapped_row).for_each(|(pixel, mapped)| *mapped = channels(pixel));
        } else {
            row.iter().zip(mapped_row).for_each(|(pixel, mapped)| *mapped = channels(pixel));
        }
    }
    Ok(())
}

fn bilinear() -> ResizeOptions {
    // The fourth byte of a pixel is not alpha.
    ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false)
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

fn target_view<P: PixelTrait>(width: u32, height: u32, pixels: &mut [u8]) -> Result<TypedImage<'_, P>> {
    TypedImage::from_buffer(width, height, pixels).map_err(impossible)
}

fn impossible(cause: impl std::fmt::Display) -> Error {
    Error::new(format!("cannot scale the image: {cause}"))
}
