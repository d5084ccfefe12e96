//! From a file to 8-bit RGB, as `PIL.Image.open(file).convert("RGB")` does it.
//!
//! Alpha is dropped, not composited; palettes and grey are expanded; the first frame or page is decoded. Channels of more than 8 bits are
//! scaled. So is grey, which Pillow cuts off at 255, so that most of an image would be white. The EXIF orientation is ignored unless
//! [`DecodeOptions::exif`] asks for it. The orientation tag of a TIFF, which is not EXIF, is always applied, as in Pillow.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer};

use super::format::{DECODED, FileKind, Format};
use super::jpeg::{self, Markers};
use super::rgb_image::{Image, KEPT_BYTES, RgbImage};
use super::{bmp, gif, png, pnm, tiff, webp};
use crate::error::{Error, Result};

/// The maximum number of pixels of an image. It is Pillow's limit, against small files that expand to fill the memory.
pub const MAX_PIXELS: u64 = 178_956_970;

/// The maximum size of a file in bytes.
const MAX_FILE_BYTES: u64 = 1 << 31;

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
    orientation: Option<Orientation>,
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

    /// The options.
    pub(super) fn options(&self) -> DecodeOptions {
        self.options
    }

    /// The EXIF orientation that the last decoded file states, applied or not.
    pub(super) fn orientation(&self) -> Orientation {
        self.orientation.unwrap_or(Orientation::NoTransforms)
    }

    /// Decodes a file like [`Decoder::decode_file`], and calls `see` with its bytes.
    pub(super) fn decode_file_with<const BYTES: usize>(
        &mut self,
        path: &Path,
        image: &mut Image<BYTES>,
        see: impl FnOnce(&[u8]),
    ) -> Result<()> {
        self.read_and_decode(path, image, |_, height| height, see)
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
        self.read_and_decode(path, image, rows, |_| {})
    }

    fn read_and_decode<const BYTES: usize>(
        &mut self,
        path: &Path,
        image: &mut Image<BYTES>,
        rows: impl FnOnce(u32, u32) -> u32,
        see: impl FnOnce(&[u8]),
    ) -> Result<()> {
        let mut file = std::mem::take(&mut self.file);
        let subject = path.display().to_string();
        let read = read_file(path, &mut file).inspect(|()| see(&file));
        let result = match read {
            Ok(()) => self.decode_rows(&file, image, rows).map_err(|reason| refusal(&subject, &reason, &file)),
            Err(reason) => Err(Error::new(format!("cannot decode {subject}: {reason}"))),
        };
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
        self.decode_rows(bytes, image, |_, height| height).map_err(|reason| refusal("the image", &reason, bytes))
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
        self.decode_rows(bytes, image, rows).map_err(|reason| refusal("the image", &reason, bytes))
    }

    fn decode_rows<const BYTES: usize>(
        &mut self,
        bytes: &[u8],
        image: &mut Image<BYTES>,
        rows: impl FnOnce(u32, u32) -> u32,
    ) -> Result<(), String> {
        match recognise(bytes)? {
            Format::Jpeg => guarded(|| self.decode_jpeg(bytes, image, rows)),
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
        format: Format,
        bytes: &[u8],
        image: &mut Image<BYTES>,
    ) -> Result<(), String> {
        let mut samples = std::mem::take(&mut self.samples);
        let require = |width, height| self.require_pixels(width, height);
        let form = match format {
            Format::Jpeg => unreachable!("JPEG has a decoder of its own"),
            Format::Png => png::decode(bytes, &require, &mut samples),
            Format::Gif => gif::decode(bytes, &require, &mut samples),
            Format::Bmp => bmp::decode(bytes, &require, &mut samples),
            Format::Tiff => tiff::decode(bytes, &require, &mut samples),
            Format::WebP => webp::decode(bytes, &require, &mut samples),
            Format::Pnm => pnm::decode(bytes, &require, &mut samples),
        };
        self.samples = samples;
        let form = form?;
        self.orientation = (format != Format::Tiff).then_some(form.orientation);
        (image.width, image.height) = (form.width, form.height);
        if form.channels == 3 && BYTES == 3 {
            std::mem::swap(&mut image.pixels, &mut self.samples);
        } else {
            expand(&self.samples, form.channels, image);
        }
        // The orientation of a TIFF is always applied.
        match self.options.exif || format == Format::Tiff {
            true => turn(image, form.orientation),
            false => Ok(()),
        }
    }

    fn decode_jpeg<const BYTES: usize>(
        &mut self,
        bytes: &[u8],
        image: &mut Image<BYTES>,
        rows: impl FnOnce(u32, u32) -> u32,
    ) -> Result<(), String> {
        let markers = Markers::read(bytes);
        let stated = markers.orientation();
        self.orientation = Some(stated);
        let orientation = if self.options.exif { stated } else { Orientation::NoTransforms };
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

fn recognise(bytes: &[u8]) -> Result<Format, String> {
    match FileKind::of(bytes) {
        Some(FileKind { format: Some(format), .. }) => Ok(*format),
        Some(_) if bytes.is_empty() => Err("the file is empty".into()),
        Some(kind) => Err(format!("expected a {DECODED} image, found {}", kind.noun)),
        None => {
            let start = &bytes[..bytes.len().min(16)];
            Err(format!("expected a {DECODED} image, found \"{}\"", start.escape_ascii()))
        }
    }
}

/// An error, with what to do about a file of this kind.
fn refusal(subject: &str, reason: &str, bytes: &[u8]) -> Error {
    // Messages of decoders may span lines; ours are one line.
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    let error = Error::new(format!("cannot decode {subject}: {reason}"));
    match FileKind::of(bytes) {
        Some(kind) if kind.format.is_none() => error.hint(kind.advice),
        _ => error,
    }
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

/// Makes pixels of one to four samples each: grey, grey and alpha, colours, colours and alpha.
fn expand<const BYTES: usize>(samples: &[u8], channels: usize, image: &mut Image<BYTES>) {
    let pixels = &mut image.pixels;
    pixels.clear();
    pixels.reserve_exact(samples.len() / channels * BYTES);
    match channels {
        1 | 2 => pixels.extend(samples.iter().step_by(channels).flat_map(|&grey| padded::<BYTES>([grey; 3]))),
        3 => pixels.extend(samples.as_chunks().0.iter().flat_map(|&pixel| padded::<BYTES>(pixel))),
        _ => {
            let colors = samples.chunks_exact(4).map(|pixel| [pixel[0], pixel[1], pixel[2]]);
            pixels.extend(colors.flat_map(padded::<BYTES>));
        }
    }
}

fn padded<const BYTES: usize>(rgb: [u8; 3]) -> [u8; BYTES] {
    std::array::from_fn(|byte| rgb.get(byte).copied().unwrap_or(u8::MAX))
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
