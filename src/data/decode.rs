//! From a file to 8-bit RGB, as `PIL.Image.open(file).convert("RGB")` does it.
//!
//! Alpha is dropped, not composited; palettes and grey are expanded. Sixteen-bit channels keep their high byte. So does
//! 16-bit grey, which Pillow clips to white at 256 instead. The EXIF orientation is ignored unless [`DecodeOptions::exif`]
//! asks for it; that of a TIFF, which is no EXIF, is followed always, as Pillow does it.

use std::cell::Cell;
use std::fs::File;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use image::metadata::Orientation;
use image::{DynamicImage, ExtendedColorType, ImageBuffer, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::jpeg::{self, Markers};
use crate::error::{Error, Result};

/// The maximum number of pixels of an image. It is Pillow's limit, against small files that expand to fill the memory.
pub const MAX_PIXELS: u64 = 178_956_970;

/// The maximum size of a file in bytes.
const MAX_FILE_BYTES: u64 = 1 << 31;

/// What a decoder may allocate before it knows the size of the image: profiles, comments, tables.
const MAX_HEADER_BYTES: u64 = 256 << 20;

/// What a decoder may allocate for an image: 16-bit RGBA twice, once to work in, and some room.
fn decoder_bytes(pixels: usize) -> u64 {
    2 * 8 * pixels as u64 + (1 << 20)
}

/// Buffers that grew beyond this size for one huge image are freed.
const KEPT_BYTES: usize = 64 << 20;

/// An 8-bit RGB image, with rows from top to bottom and no padding.
pub type RgbImage = Image<3>;

/// The same with an unused byte after each pixel, because processors handle four bytes faster than three. Scaling a
/// photo's crop to 224 x 224 takes 0.14 ms instead of 0.20 (Zen 3).
pub type PaddedImage = Image<4>;

/// An image whose pixels begin with red, green and blue and have `BYTES` bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image<const BYTES: usize> {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `height * width * BYTES` bytes.
    pub pixels: Vec<u8>,
}

impl<const BYTES: usize> Image<BYTES> {
    /// Frees the buffer of a huge image, which later small images do not need.
    pub(super) fn free_large_buffer(&mut self) {
        if self.pixels.capacity() > KEPT_BYTES {
            *self = Self::default();
        }
    }
}

/// Decodes a file; see [`Decoder`] to decode many.
///
/// # Errors
/// Those of [`Decoder::decode_file`].
pub fn decode_file(path: impl AsRef<Path>) -> Result<RgbImage> {
    let mut image = RgbImage::default();
    Decoder::default().decode_file(path.as_ref(), &mut image)?;
    Ok(image)
}

/// Options of a [`Decoder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Whether to rotate and mirror an image according to its EXIF orientation, as `PIL.ImageOps.exif_transpose` does.
    pub exif: bool,
    /// The maximum number of pixels; at most [`MAX_PIXELS`].
    pub max_pixels: u64,
}

impl DecodeOptions {
    /// The default options, with or without EXIF orientation.
    pub fn with_exif(exif: bool) -> Self {
        Self { exif, ..Self::default() }
    }
}

impl Default for DecodeOptions {
    /// The behaviour of torchvision's loader.
    fn default() -> Self {
        Self { exif: false, max_pixels: MAX_PIXELS }
    }
}

/// Decodes images, one after the other, in the same buffers.
#[derive(Debug, Default)]
pub struct Decoder {
    options: DecodeOptions,
    file: Vec<u8>,
    samples: Vec<u8>,
}

impl Decoder {
    /// Creates a decoder; [`Decoder::default`] has the default options.
    pub fn new(options: DecodeOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// Decodes a file into `image`, whose buffer is reused. After an error, the contents of `image` are unspecified.
    ///
    /// # Errors
    /// When the file is unreadable, empty, truncated, damaged, in an unsupported format, or has more than
    /// [`MAX_PIXELS`] pixels; the message names the file.
    pub fn decode_file<const BYTES: usize>(&mut self, path: &Path, image: &mut Image<BYTES>) -> Result<()> {
        self.decode_file_rows(path, image, |_, height| height)
    }

    /// Decodes the upper rows of a file into `image`: at least as many as `rows` returns for the image's width and height. `image.height` is the number of decoded rows. A rotated image is decoded completely.
    ///
    /// # Errors
    /// Those of [`Decoder::decode_file`].
    pub fn decode_file_rows<const BYTES: usize>(
        &mut self,
        path: &Path,
        image: &mut Image<BYTES>,
        rows: impl FnOnce(u32, u32) -> u32,
    ) -> Result<()> {
        let mut file = std::mem::take(&mut self.file);
        let result = read_file(path, &mut file)
            .and_then(|()| self.decode_rows(&file, image, rows))
            .map_err(|reason| Error::new(format!("cannot decode {}: {reason}", path.display())));
        self.file = file;
        shrink(&mut self.file);
        shrink(&mut self.samples);
        result
    }

    /// Decodes the bytes of a file into `image`, as [`Decoder::decode_file`] does.
    ///
    /// # Errors
    /// Those of [`Decoder::decode_file`], without the name of a file.
    pub fn decode_bytes<const BYTES: usize>(&mut self, bytes: &[u8], image: &mut Image<BYTES>) -> Result<()> {
        self.decode_rows(bytes, image, |_, height| height)
            .map_err(|reason| Error::new(format!("cannot decode the image: {reason}")))
    }

    /// Decodes the upper rows of a file in memory, as [`Decoder::decode_file_rows`] does.
    ///
    /// # Errors
    /// Those of [`Decoder::decode_file`], without the name of a file.
    pub fn decode_bytes_rows<const BYTES: usize>(
        &mut self,
        bytes: &[u8],
        image: &mut Image<BYTES>,
        rows: impl FnOnce(u32, u32) -> u32,
    ) -> Result<()> {
        self.decode_rows(bytes, image, rows).map_err(|reason| Error::new(format!("cannot decode the image: {reason}")))
    }

    fn decode_rows<const BYTES: usize>(
        &mut self,
        bytes: &[u8],
        image: &mut Image<BYTES>,
        rows: impl FnOnce(u32, u32) -> u32,
    ) -> Result<(), String> {
        match recognise(bytes)? {
            ImageFormat::Jpeg => guarded(|| self.decode_jpeg(bytes, image, rows)),
            format => {
                guarded(|| self.decode_other(format, bytes, image))?;
                rows(image.width, image.height);
                Ok(())
            }
        }
    }

    /// Returns the number of pixels if it is allowed.
    fn require_pixels(&self, width: u32, height: u32) -> Result<usize, String> {
        let most = self.options.max_pixels.min(MAX_PIXELS);
        match u64::from(width) * u64::from(height) {
            0 => Err(format!("it has {width} x {height} pixels")),
            pixels if pixels > most => Err(format!("it has {width} x {height} pixels; at most {most} are accepted")),
            pixels => Ok(pixels as usize),
        }
    }

    fn decode_other<const BYTES: usize>(
        &mut self,
        format: ImageFormat,
        bytes: &[u8],
        image: &mut Image<BYTES>,
    ) -> Result<(), String> {
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(MAX_HEADER_BYTES);
        reader.limits(limits.clone());
        let mut decoder = reader.into_decoder().map_err(|cause| describe_image_error(format, &cause))?;

        let (width, height) = decoder.dimensions();
        let pixels = self.require_pixels(width, height)?;
        // A false header must not cost more memory than the image it describes.
        limits.max_alloc = Some(decoder_bytes(pixels));
        decoder.set_limits(limits).map_err(|cause| describe_image_error(format, &cause))?;
        // A broken EXIF block is ignored.
        let orientation = match self.options.exif || format == ImageFormat::Tiff {
            true => decoder.orientation().unwrap_or(Orientation::NoTransforms),
            false => Orientation::NoTransforms,
        };
        (image.width, image.height) = (width, height);
        let color = decoder.color_type();
        if color == image::ColorType::Rgb8 && BYTES == 3 {
            image.pixels.resize(pixels * 3, 0);
            decoder.read_image(&mut image.pixels).map_err(|cause| describe_image_error(format, &cause))?;
        } else {
            self.samples.resize(pixels * usize::from(color.bytes_per_pixel()), 0);
            decoder.read_image(&mut self.samples).map_err(|cause| describe_image_error(format, &cause))?;
            expand(&self.samples, color.into(), image)?;
        }
        turn(image, orientation)
    }

    fn decode_jpeg<const BYTES: usize>(
        &mut self,
        bytes: &[u8],
        image: &mut Image<BYTES>,
        rows: impl FnOnce(u32, u32) -> u32,
    ) -> Result<(), String> {
        let markers = Markers::read(bytes);
        let orientation = if self.options.exif { markers.orientation() } else { Orientation::NoTransforms };
        if orientation == Orientation::NoTransforms {
            return jpeg::decode(bytes, &markers, image, |width, height| {
                self.require_pixels(width, height).map(|_| rows(width, height))
            });
        }
        jpeg::decode(bytes, &markers, image, |width, height| self.require_pixels(width, height).map(|_| height))?;
        turn(image, orientation)?;
        rows(image.width, image.height);
        Ok(())
    }
}

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Turns a panic of a third-party decoder into an error for its image, without output. In fuzzing builds, which search for
/// such panics, it stays a panic.
fn guarded(decode: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    static QUIET: Once = Once::new();
    if cfg!(fuzzing) {
        return decode();
    }
    QUIET.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                tell(panic);
            }
        }));
    });
    IS_GUARDED.set(true);
    // After an error, the contents of the buffers are unspecified; they are written before they are read.
    let result = catch_unwind(AssertUnwindSafe(decode));
    IS_GUARDED.set(false);
    result.unwrap_or_else(|_| Err("damaged data: its decoder gave up".into()))
}

fn recognise(bytes: &[u8]) -> Result<ImageFormat, String> {
    if bytes.is_empty() {
        return Err("the file is empty".into());
    }
    image::guess_format(bytes).map_err(|_| unknown_format(bytes))
}

/// Rotates and mirrors an image.
fn turn<const BYTES: usize>(image: &mut Image<BYTES>, orientation: Orientation) -> Result<(), String> {
    if orientation == Orientation::NoTransforms {
        return Ok(());
    }
    let (width, height, pixels) = (image.width, image.height, std::mem::take(&mut image.pixels));
    let turned = match BYTES {
        3 => ImageBuffer::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8),
        _ => ImageBuffer::from_raw(width, height, pixels).map(DynamicImage::ImageRgba8),
    };
    let mut turned = turned.ok_or("the number of its pixels does not match its size")?;
    turned.apply_orientation(orientation);
    (image.width, image.height) = (turned.width(), turned.height());
    image.pixels = turned.into_bytes();
    Ok(())
}

fn shrink(buffer: &mut Vec<u8>) {
    if buffer.capacity() > KEPT_BYTES {
        *buffer = Vec::new();
    }
}

fn read_file(path: &Path, bytes: &mut Vec<u8>) -> Result<(), String> {
    bytes.clear();
    let metadata = std::fs::metadata(path).map_err(|cause| cause.to_string())?;
    if !metadata.is_file() {
        return Err("it is not a file".into());
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(format!("it has {} bytes; at most {MAX_FILE_BYTES} are accepted", metadata.len()));
    }
    let file = File::open(path).map_err(|cause| cause.to_string())?;
    file.take(MAX_FILE_BYTES).read_to_end(bytes).map_err(|cause| cause.to_string())?;
    Ok(())
}

fn unknown_format(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(16)];
    format!("expected a JPEG, PNG, PNM, BMP, TIFF or WebP image, found \"{}\"", start.escape_ascii())
}

fn describe_image_error(format: ImageFormat, cause: &ImageError) -> String {
    match format.reading_enabled() {
        true => describe(format, cause),
        false => format!("{} is not supported; expected JPEG, PNG, PNM, BMP, TIFF or WebP", name(format)),
    }
}

fn describe(format: ImageFormat, cause: &impl std::fmt::Display) -> String {
    // Messages of decoders may span lines; ours are one line.
    let cause = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    format!("broken or unsupported {} data: {cause}", name(format))
}

fn name(format: ImageFormat) -> String {
    format!("{format:?}").to_uppercase()
}

fn expand<const BYTES: usize>(
    samples: &[u8],
    color: ExtendedColorType,
    image: &mut Image<BYTES>,
) -> Result<(), String> {
    use ExtendedColorType as Color;
    let pixels = &mut image.pixels;
    pixels.clear();
    let high_bytes = |pixel: &[u8]| [0, 1, 2].map(|channel| high_byte(pixel, channel));
    match color {
        Color::L8 => pixels.extend(samples.iter().flat_map(|&grey| padded::<BYTES>([grey; 3]))),
        Color::La8 => pixels.extend(samples.chunks_exact(2).flat_map(|pixel| padded::<BYTES>([pixel[0]; 3]))),
        Color::Rgb8 => pixels.extend(samples.as_chunks().0.iter().flat_map(|&pixel| padded::<BYTES>(pixel))),
        Color::Rgba8 => {
            let colors = samples.chunks_exact(4).map(|pixel| [pixel[0], pixel[1], pixel[2]]);
            pixels.extend(colors.flat_map(padded::<BYTES>));
        }
        Color::L16 => pixels.extend(samples.chunks_exact(2).flat_map(|grey| padded::<BYTES>([high_byte(grey, 0); 3]))),
        Color::La16 => pixels.extend(samples.chunks_exact(4).flat_map(|grey| padded::<BYTES>([high_byte(grey, 0); 3]))),
        Color::Rgb16 => pixels.extend(samples.chunks_exact(6).map(high_bytes).flat_map(padded::<BYTES>)),
        Color::Rgba16 => pixels.extend(samples.chunks_exact(8).map(high_bytes).flat_map(padded::<BYTES>)),
        other => return Err(format!("its pixels are {other:?}; expected 8 or 16 bits a channel")),
    }
    Ok(())
}

fn padded<const BYTES: usize>(rgb: [u8; 3]) -> [u8; BYTES] {
    std::array::from_fn(|byte| rgb.get(byte).copied().unwrap_or(u8::MAX))
}

/// The decoders give 16-bit samples in the byte order of the machine.
fn high_byte(pixel: &[u8], channel: usize) -> u8 {
    (u16::from_ne_bytes([pixel[2 * channel], pixel[2 * channel + 1]]) >> 8) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_that_panics_costs_its_image_only() {
        let defect = guarded(|| panic!("at this image"));
        assert_eq!(defect.unwrap_err(), "damaged data: its decoder gave up");
        assert!(!IS_GUARDED.get(), "later panics are reported");
        guarded(|| Ok(())).unwrap();
    }
}
