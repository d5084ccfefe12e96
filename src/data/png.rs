//! PNG, through the crate `png`, after repair of the damage that Pillow ignores.

use std::borrow::Cow;
use std::io::Cursor;

use png::{ColorType, DecodeOptions, Decoder, Limits, Transformations};

use super::orientation;
use super::samples::{Form, RequirePixels};

const SIGNATURE_BYTES: usize = 8;

/// What the decoder may allocate beside the pixels: tables, profiles and text.
const EXTRA_BYTES: usize = 8 << 20;

pub(super) fn decode(bytes: &[u8], require: RequirePixels, samples: &mut Vec<u8>) -> Result<Form, String> {
    let chunks = Chunks::read(bytes)?;
    let mut options = DecodeOptions::default();
    // Pillow compares the checksum of the decompressed data, not those of the chunks that contain it.
    options.set_ignore_crc(true);
    options.set_ignore_adler32(false);
    let mut decoder = Decoder::new_with_options(Cursor::new(&*chunks.file), options);
    decoder.set_limits(Limits { bytes: EXTRA_BYTES });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let (width, height) = decoder.read_header_info().map_err(describe)?.size();
    let pixels = require(width, height)?;
    // The decoder works on two rows at a time, of up to 8 bytes a pixel.
    decoder.set_limits(Limits { bytes: EXTRA_BYTES + 16 * width as usize });
    let mut reader = decoder.read_info().map_err(describe)?;
    let channels = match reader.output_color_type().0 {
        ColorType::Grayscale | ColorType::Indexed => 1,
        ColorType::GrayscaleAlpha => 2,
        ColorType::Rgb => 3,
        ColorType::Rgba => 4,
    };
    samples.resize(pixels * channels, 0);
    reader.next_frame(samples).map_err(describe)?;
    let orientation = orientation::of(chunks.exif, chunks.xmp);
    Ok(Form { orientation, ..Form::upright(width, height, channels) })
}

fn describe(cause: png::DecodingError) -> String {
    let cause = cause.to_string();
    if cause.starts_with("Corrupt deflate stream") {
        "broken PNG data: its compressed pixels are damaged".into()
    } else if cause.starts_with("Unrecognized critical chunk") {
        "broken or unsupported PNG data: a chunk of unknown type is marked as necessary".into()
    } else {
        format!("broken or unsupported PNG data: {cause}")
    }
}

/// The chunks of a file.
struct Chunks<'a> {
    /// The file up to the end of the image, with an end if it has none.
    file: Cow<'a, [u8]>,
    exif: Option<&'a [u8]>,
    xmp: Option<&'a [u8]>,
}

impl<'a> Chunks<'a> {
    /// Checks the chunks before the image. Pillow reads a file that is cut after the last row, so an end is appended to such a file.
    fn read(bytes: &'a [u8]) -> Result<Self, String> {
        const XMP: &[u8] = b"XML:com.adobe.xmp\0";
        let (mut exif, mut xmp) = (None, None);
        let mut place = SIGNATURE_BYTES;
        let mut has_image = false;
        // A chunk: the length of its data, its name, the data, a checksum of name and data.
        while let Some((head, rest)) = bytes.get(place..).and_then(|rest| rest.split_first_chunk::<8>()) {
            let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let name = &head[4..];
            let Some((data, &checksum)) =
                rest.split_at_checked(length).and_then(|(data, rest)| Some((data, rest.first_chunk::<4>()?)))
            else {
                break;
            };
            let is_image = name == b"IDAT";
            if !is_image && !has_image && crc32(&bytes[place + 4..place + 8 + length]).to_be_bytes() != checksum {
                return Err(format!("broken PNG data: the checksum of its {} chunk is wrong", name.escape_ascii()));
            }
            has_image |= is_image;
            match name {
                b"eXIf" => exif = Some(data),
                b"iTXt" if data.starts_with(XMP) => xmp = Some(data),
                _ => {}
            }
            place += 12 + length;
            if name == b"IEND" {
                return Ok(Self { file: bytes[..place].into(), exif, xmp });
            }
        }
        let cut = bytes.get(place + 8..).filter(|_| bytes[place + 4..].starts_with(b"IDAT"));
        if !has_image && cut.is_none() {
            return Err("truncated PNG: the data end before the image".into());
        }
        let mut file = bytes[..place].to_vec();
        if let Some(cut) = cut {
            file.extend((cut.len() as u32).to_be_bytes());
            file.extend([b"IDAT", cut, &[0; 4]].concat());
        }
        file.extend(b"\0\0\0\0IEND\xAE\x42\x60\x82");
        Ok(Self { file: file.into(), exif, xmp })
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
