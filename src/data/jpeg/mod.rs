//! Decodes JPEG with libjpeg-turbo's decoder, in the version that MozJPEG includes, to the pixels that Pillow and torchvision get.

mod markers;

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use mozjpeg::{ColorSpace, CompInfoExt, Decompress};

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
    if !matches!(markers.components, None | Some(1 | 3 | 4)) {
        return Err(
            "a JPEG must have 1, 3 or 4 components: grey, red, green and blue, or cyan, magenta, yellow and black"
                .into(),
        );
    }
    supervise(bytes, markers, |source| read(source, markers, image, rows))
}

/// Pixels of two or four samples, as they are in a JPEG.
pub(super) struct Samples {
    pub(super) width: u32,
    pub(super) channels: usize,
    /// In rows.
    pub(super) values: Vec<u8>,
}

/// Decodes a JPEG that is part of another file, which says what its two or four samples mean. `accept` gets the width and the height.
pub(super) fn decode_samples(
    bytes: &[u8],
    markers: &Markers<'_>,
    accept: impl FnOnce(u32, u32) -> Result<(), String>,
) -> Result<Samples, String> {
    supervise(bytes, markers, |source| read_samples(source, markers, accept))
}

/// Runs a decoder: turns its failures into errors, also that of data which end too early.
fn supervise<T>(
    bytes: &[u8],
    markers: &Markers<'_>,
    read: impl FnOnce(Source<'_>) -> Result<T, String>,
) -> Result<T, String> {
    if let Some(reason) = markers.unsupported {
        return Err(reason.into());
    }
    let is_ended = Cell::new(false);
    let source = Source { bytes, is_ended: &is_ended };
    let decoded = recover(|| read(source));
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
    require_few_scans(markers, width, height)?;
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

fn require_few_scans(markers: &Markers<'_>, width: usize, height: usize) -> Result<(), String> {
    match markers.scans * (width * height) as u64 > MAX_SCANNED_PIXELS {
        true => Err(format!("it has {} scans of {width} x {height} pixels, too many to decode", markers.scans)),
        false => Ok(()),
    }
}

fn read_samples(
    source: Source<'_>,
    markers: &Markers<'_>,
    accept: impl FnOnce(u32, u32) -> Result<(), String>,
) -> Result<Samples, String> {
    let decoder = Decompress::new_reader(source).map_err(describe)?;
    let (width, height) = (decoder.width(), decoder.height());
    accept(width as u32, height as u32)?;
    require_few_scans(markers, width, height)?;
    let sampling: Vec<(u8, u8)> = decoder.components().iter().map(CompInfoExt::sampling).collect();
    let channels = sampling.len();
    let mut values = vec![0; width * height * channels];
    match channels {
        4 if decoder.color_space() == ColorSpace::JCS_CMYK => {
            let mut decoder = decoder.to_colorspace(ColorSpace::JCS_CMYK).map_err(describe)?;
            for row in values.chunks_exact_mut(width * channels) {
                decoder.read_scanlines_into(row).map_err(describe)?;
            }
        }
        // The decoder has no name for such colours, so it gives each component alone. Its rows are padded.
        2 if sampling == [(1, 1); 2] => {
            let mut planes = [Vec::new(), Vec::new()];
            let padded = decoder.components().iter().map(CompInfoExt::row_stride).min().unwrap_or(width);
            let [first, second] = &mut planes;
            decoder.raw().map_err(describe)?.read_raw_data(&mut [first, second]);
            for (row, target) in values.chunks_exact_mut(width * channels).enumerate() {
                for (channel, plane) in planes.iter().enumerate() {
                    let source =
                        plane.get(row * padded..row * padded + width).ok_or("broken JPEG data: rows are missing")?;
                    target.iter_mut().skip(channel).step_by(channels).zip(source).for_each(|(to, from)| *to = *from);
                }
            }
        }
        _ => return Err(format!("a JPEG of {channels} components of such sizes is not supported")),
    }
    Ok(Samples { width: width as u32, channels, values })
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
