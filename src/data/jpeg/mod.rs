//! Decodes JPEG with libjpeg-turbo's decoder, in the version that MozJPEG includes, to the pixels that Pillow and torchvision get.

mod markers;

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use mozjpeg::{ColorSpace, Decompress};

pub(super) use markers::Markers;

use super::rgb_image::Image;

/// The maximum of pixels times scans. An image of 12 megapixels may have 1,400 scans, the largest 96; encoders write
/// about ten. Without a limit, a file of a few kilobytes could keep a decoder busy for hours, because each scan may refine every pixel.
const MAX_SCANNED_PIXELS: u64 = 1 << 34;

/// Decodes the upper rows of an image, as many as `rows` returns for its width and height; or all, if the file does not end as it
/// should, so that whether it can be read does not depend on the rows.
///
/// Damaged parts are filled in as libjpeg does it. Only data that ends before the image is an error.
pub(super) fn decode<const BYTES: usize>(
    bytes: &[u8],
    markers: &Markers<'_>,
    image: &mut Image<BYTES>,
    rows: impl FnOnce(u32, u32) -> Result<u32, String>,
) -> Result<(), String> {
    if let Some(reason) = markers.unsupported {
        return Err(reason.into());
    }
    let is_ended = Cell::new(false);
    let source = Source { bytes, is_ended: &is_ended };
    let decoded = recover(|| read(source, markers, image, rows));
    // The decoder has filled in the missing data, or failed because of it.
    if is_ended.get() { Err("truncated JPEG: the data end before the end marker".into()) } else { decoded }
}

fn read<const BYTES: usize>(
    source: Source<'_>,
    markers: &Markers<'_>,
    image: &mut Image<BYTES>,
    rows: impl FnOnce(u32, u32) -> Result<u32, String>,
) -> Result<(), String> {
    let is_ended = source.is_ended;
    let decoder = Decompress::new_reader(source).map_err(describe)?;
    let (width, height) = (decoder.width(), decoder.height());
    (image.width, image.height) = (width as u32, height as u32);
    let wanted = rows(image.width, image.height)?;
    if markers.scans * (width * height) as u64 > MAX_SCANNED_PIXELS {
        let scans = markers.scans;
        return Err(format!("it has {scans} scans of {width} x {height} pixels, too many to decode"));
    }
    if markers.can_stop_early() {
        image.height = wanted.min(image.height);
    }
    image.pixels.resize(image.height as usize * width * BYTES, 0);

    let is_four = matches!(decoder.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK);
    let colors = match BYTES {
        _ if is_four => ColorSpace::JCS_CMYK,
        4 => ColorSpace::JCS_EXT_RGBA,
        _ => ColorSpace::JCS_RGB,
    };
    let mut decoder = decoder.to_colorspace(colors).map_err(describe)?;
    let mut inks = vec![0; if is_four { width * 4 } else { 0 }];
    for row in image.pixels.chunks_exact_mut(width * BYTES) {
        if is_four {
            decoder.read_scanlines_into(&mut inks).map_err(describe)?;
            for (pixel, inks) in row.chunks_exact_mut(BYTES).zip(inks.as_chunks().0) {
                pixel.fill(u8::MAX);
                pixel[..3].copy_from_slice(&mix(*inks));
            }
        } else {
            decoder.read_scanlines_into(row).map_err(describe)?;
        }
        if is_ended.get() {
            return Ok(());
        }
    }
    if !markers.can_stop_early() {
        // Pillow reads to the end too: damage on the way is an error, a missing end is not.
        let finished = recover(|| decoder.finish().map_err(describe));
        if !is_ended.replace(false) {
            return finished;
        }
    }
    Ok(())
}

/// Converts inverted CMYK, as JPEGs store it (255 is no ink), to RGB. Rounds as Pillow does.
fn mix([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    [cyan, magenta, yellow].map(|ink| {
        let product = u32::from(!ink) * u32::from(black) + 128;
        black.saturating_sub(((product + (product >> 8)) >> 8) as u8)
    })
}

/// Turns libjpeg's errors into ours. They leave its C code as the unwinding of a panic that prints nothing.
fn recover<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // The decoder is dropped during unwinding, and the contents of the image are unspecified after an error.
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|panic| match panic.downcast::<String>() {
        Ok(message) => match message.strip_prefix("libjpeg fatal error: ") {
            Some(reason) => Err(describe(reason)),
            None => resume_unwind(message),
        },
        Err(panic) => resume_unwind(panic),
    })
}

fn describe(reason: impl std::fmt::Display) -> String {
    format!("broken or unsupported JPEG data: {}", reason.to_string().trim_end_matches('.'))
}

/// The bytes of a file, and whether the decoder asked for more.
struct Source<'a> {
    bytes: &'a [u8],
    is_ended: &'a Cell<bool>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(buffer)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.is_ended.set(self.bytes.is_empty());
        Ok(self.bytes)
    }

    fn consume(&mut self, count: usize) {
        self.bytes = &self.bytes[count..];
    }
}
