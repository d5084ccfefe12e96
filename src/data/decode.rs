//! From a file to 8-bit RGB, as `PIL.Image.open(file).convert("RGB")` does it.
//!
//! Alpha is dropped, not composited; palettes and grey are expanded; the EXIF orientation is ignored. Sixteen-bit
//! channels keep their high byte. So does 16-bit grey, which Pillow clips to white at 256 instead.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::{ExtendedColorType, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use crate::error::{Error, Result};

/// No picture may have more pixels: Pillow's own limit, against small files that unpack to fill the memory.
pub const MAX_PIXELS: u64 = 178_956_970;

/// A file may not have more bytes.
const MAX_FILE_BYTES: u64 = 1 << 31;

/// What a decoder may allocate: the largest picture in 16-bit RGBA, and some room to work in.
const MAX_DECODER_BYTES: u64 = 2 << 30;

/// A buffer that had to grow beyond this for one huge picture is given back.
const KEPT_BYTES: usize = 64 << 20;

/// A picture: 8-bit RGB, rows from the top, no padding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `height * width * 3` bytes.
    pub pixels: Vec<u8>,
}

impl RgbImage {
    /// Frees the buffer of a huge picture, so that it does not stay for the small ones after it.
    pub(super) fn give_back_large_buffer(&mut self) {
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

/// Decodes pictures, one after the other, in the same buffers.
#[derive(Debug, Default)]
pub struct Decoder {
    file: Vec<u8>,
    samples: Vec<u8>,
}

impl Decoder {
    /// Decodes a file into `image`, whose buffer is reused. After an error, `image` holds nothing of use.
    ///
    /// # Errors
    /// A file that is unreadable, empty, truncated, broken, of a format not supported, or of more than
    /// [`MAX_PIXELS`]; the message names the file.
    pub fn decode_file(&mut self, path: &Path, image: &mut RgbImage) -> Result<()> {
        let mut file = std::mem::take(&mut self.file);
        let result = read_file(path, &mut file)
            .and_then(|()| self.decode(&file, image))
            .map_err(|reason| Error::new(format!("cannot decode {}: {reason}", path.display())));
        self.file = file;
        shrink(&mut self.file);
        shrink(&mut self.samples);
        result
    }

    /// Decodes the bytes of a file into `image`, as [`Decoder::decode_file`] does.
    ///
    /// # Errors
    /// The same, without the name of a file.
    pub fn decode_bytes(&mut self, bytes: &[u8], image: &mut RgbImage) -> Result<()> {
        self.decode(bytes, image).map_err(|reason| Error::new(format!("cannot decode the picture: {reason}")))
    }

    fn decode(&mut self, bytes: &[u8], image: &mut RgbImage) -> Result<(), String> {
        if bytes.is_empty() {
            return Err("the file is empty".into());
        }
        let format = image::guess_format(bytes).map_err(|_| unknown_format(bytes))?;
        if format == ImageFormat::Jpeg {
            require_whole_jpeg(bytes)?;
        }
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(MAX_DECODER_BYTES);
        reader.limits(limits);
        let decoder = reader.into_decoder().map_err(|cause| describe(format, &cause))?;

        let (width, height) = decoder.dimensions();
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 {
            return Err(format!("it has {width} x {height} pixels"));
        }
        if pixels > MAX_PIXELS {
            return Err(format!("it has {width} x {height} pixels; at most {MAX_PIXELS} are accepted"));
        }
        (image.width, image.height) = (width, height);
        let color = decoder.color_type();
        if color == image::ColorType::Rgb8 {
            image.pixels.resize(pixels as usize * 3, 0);
            return decoder.read_image(&mut image.pixels).map_err(|cause| describe(format, &cause));
        }
        let samples = &mut self.samples;
        samples.resize(pixels as usize * usize::from(color.bytes_per_pixel()), 0);
        decoder.read_image(samples).map_err(|cause| describe(format, &cause))?;
        expand_to_rgb(samples, color.into(), &mut image.pixels)
    }
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
    format!("expected a JPEG, PNG, PNM, BMP, TIFF or WebP picture, found \"{}\"", start.escape_ascii())
}

fn describe(format: ImageFormat, cause: &ImageError) -> String {
    let name = format!("{format:?}").to_uppercase();
    // Messages of decoders may span lines; ours are one line.
    let cause = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    match format.reading_enabled() {
        true => format!("broken or unsupported {name} data: {cause}"),
        false => format!("{name} is not supported; expected JPEG, PNG, PNM, BMP, TIFF or WebP"),
    }
}

/// Follows the markers of a JPEG to its end marker. The decoder fills what is missing with grey, without a word.
fn require_whole_jpeg(bytes: &[u8]) -> Result<(), String> {
    const TRUNCATED: &str = "truncated JPEG: the data end before the end marker";
    let mut rest = bytes.get(2..).unwrap_or_default();
    loop {
        // Between segments and inside a scan alike, the next marker is an FF that neither a 00 (a data byte FF) nor
        // an FF (filler) follows.
        let start = rest.iter().position(|&byte| byte == 0xFF).ok_or(TRUNCATED)?;
        rest = &rest[start + 1..];
        let marker = *rest.first().ok_or(TRUNCATED)?;
        match marker {
            0xFF => continue,
            0x00 | 0x01 | 0xD0..=0xD8 => rest = &rest[1..],
            0xD9 => return Ok(()),
            _ => {
                let length = rest.get(1..3).map(|l| usize::from(u16::from_be_bytes([l[0], l[1]]))).ok_or(TRUNCATED)?;
                rest = rest.get(1 + length.max(2)..).ok_or(TRUNCATED)?;
            }
        }
    }
}

fn expand_to_rgb(samples: &[u8], color: ExtendedColorType, rgb: &mut Vec<u8>) -> Result<(), String> {
    use ExtendedColorType as Color;
    rgb.clear();
    match color {
        Color::L8 => rgb.extend(samples.iter().flat_map(|&grey| [grey; 3])),
        Color::La8 => rgb.extend(samples.chunks_exact(2).flat_map(|pixel| [pixel[0]; 3])),
        Color::Rgba8 => rgb.extend(samples.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])),
        Color::L16 => rgb.extend(samples.chunks_exact(2).flat_map(|pixel| [high_byte(pixel, 0); 3])),
        Color::La16 => rgb.extend(samples.chunks_exact(4).flat_map(|pixel| [high_byte(pixel, 0); 3])),
        Color::Rgb16 => rgb.extend(samples.chunks_exact(6).flat_map(|pixel| [0, 1, 2].map(|i| high_byte(pixel, i)))),
        Color::Rgba16 => rgb.extend(samples.chunks_exact(8).flat_map(|pixel| [0, 1, 2].map(|i| high_byte(pixel, i)))),
        other => return Err(format!("its pixels are {other:?}; expected 8 or 16 bits a channel")),
    }
    Ok(())
}

/// The decoders give 16-bit samples in the byte order of the machine.
fn high_byte(pixel: &[u8], channel: usize) -> u8 {
    (u16::from_ne_bytes([pixel[2 * channel], pixel[2 * channel + 1]]) >> 8) as u8
}
