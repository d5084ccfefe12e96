//! Windows and OS/2 bitmaps.

use super::samples::{Form, Palette, RequirePixels, packed};

const TRUNCATED: &str = "truncated BMP: the data end before the last row";

const RAW: u32 = 0;
const RLE8: u32 = 1;
const RLE4: u32 = 2;
const BIT_FIELDS: u32 = 3;
const ALPHA_BIT_FIELDS: u32 = 6;

/// What the headers say.
struct Header {
    width: u32,
    height: u32,
    is_top_down: bool,
    bits: u32,
    compression: u32,
    /// Colours in the palette, and the bytes of each.
    colors: usize,
    color_bytes: usize,
    /// The masks of red, green and blue.
    masks: Option<[u32; 3]>,
    /// Where the headers end.
    end: usize,
    /// Where the pixels begin.
    pixels: usize,
}

pub(super) fn decode(bytes: &[u8], require: RequirePixels, samples: &mut Vec<u8>) -> Result<Form, String> {
    let header = read_header(bytes)?;
    let (width, height) = (header.width as usize, header.height as usize);
    let pixels = require(header.width, header.height)?;
    let data = bytes.get(header.pixels..).ok_or(TRUNCATED)?;
    samples.clear();
    let is_run_length = matches!(header.compression, RLE8 | RLE4);
    let mut channels = 1;
    if is_run_length {
        // A pair of bytes makes at most 255 pixels, or skips at most 256 rows.
        if data.len() < 2 {
            return Err(TRUNCATED.into());
        }
        samples.resize(pixels, 0);
        fill_runs(data, header.compression == RLE4, width, samples)?;
    } else {
        let stride = (u64::from(header.width) * u64::from(header.bits)).div_ceil(32) * 4;
        let needed = stride * u64::from(header.height);
        // The last row may lack its padding.
        let least = needed - stride + (u64::from(header.width) * u64::from(header.bits)).div_ceil(8);
        if (data.len() as u64) < least {
            return Err(TRUNCATED.into());
        }
        let rows = data.chunks(stride as usize).take(height);
        match header.bits {
            1 | 2 | 4 => {
                samples.reserve_exact(pixels);
                rows.for_each(|row| samples.extend(packed(row, header.bits).take(width)));
            }
            8 => rows.for_each(|row| samples.extend_from_slice(&row[..width])),
            _ => {
                channels = 3;
                samples.reserve_exact(3 * pixels);
                rows.for_each(|row| extend_colors(samples, &header, &row[..width * header.bits as usize / 8]));
            }
        }
    }
    if !header.is_top_down {
        let row = width * channels;
        let (upper, lower) = samples.split_at_mut(height / 2 * row);
        upper.chunks_exact_mut(row).zip(lower.rchunks_exact_mut(row)).for_each(|(a, b)| a.swap_with_slice(b));
    }
    if channels == 1 {
        let colors = &bytes[header.end..header.pixels.max(header.end)];
        let colors =
            colors.chunks_exact(header.color_bytes).take(header.colors).map(|color| [color[2], color[1], color[0]]);
        Palette::new(colors).apply(samples);
    }
    Ok(Form::upright(header.width, header.height, 3))
}

fn read_header(bytes: &[u8]) -> Result<Header, String> {
    let two = |place: usize| match bytes.get(place..place + 2) {
        Some(two) => Ok(u32::from(u16::from_le_bytes([two[0], two[1]]))),
        None => Err(TRUNCATED.to_string()),
    };
    let four = |place: usize| Ok::<u32, String>(two(place)? | two(place + 2)? << 16);
    let (pixels, length) = (four(10)? as usize, four(14)?);
    let mut end = 14 + length as usize;
    if bytes.len() < end {
        return Err(TRUNCATED.into());
    }
    let mut header = match length {
        12 => Header {
            width: two(18)?,
            height: two(20)?,
            is_top_down: false,
            bits: two(24)?,
            compression: RAW,
            colors: 0,
            color_bytes: 3,
            masks: None,
            end,
            pixels,
        },
        _ => {
            let height = four(22)? as i32;
            Header {
                width: four(18)?,
                height: height.unsigned_abs(),
                is_top_down: height < 0,
                bits: two(28)?,
                compression: if length == 16 { RAW } else { four(30)? },
                colors: if length == 16 { 0 } else { four(46)? as usize },
                color_bytes: 4,
                masks: None,
                end,
                pixels,
            }
        }
    };
    if !matches!(header.bits, 1 | 2 | 4 | 8 | 16 | 24 | 32) {
        return Err(format!(
            "the BMP image has {} bits for each pixel; expected 1, 2, 4, 8, 16, 24 or 32",
            header.bits
        ));
    }
    match (header.compression, header.bits) {
        (RAW, _) => {}
        (RLE8, 8) | (RLE4, 4) if !header.is_top_down => {}
        (BIT_FIELDS | ALPHA_BIT_FIELDS, 16 | 24 | 32) => {
            // They follow a header of 40 bytes, and are part of the longer ones.
            header.masks = Some([four(54)?, four(58)?, four(62)?]);
            if length == 40 {
                end += if header.compression == BIT_FIELDS { 12 } else { 16 };
            }
        }
        (4, _) => return Err("a BMP that contains a JPEG is not supported".into()),
        (5, _) => return Err("a BMP that contains a PNG is not supported".into()),
        (other, bits) => {
            return Err(format!("a BMP of compression {other} with {bits} bits for each pixel is not supported"));
        }
    }
    if header.colors == 0 && header.bits <= 8 {
        header.colors = 1 << header.bits;
    }
    let palette_end = end + if header.bits <= 8 { header.colors.min(1 << 16) * header.color_bytes } else { 0 };
    // Some programs write no offset of the pixels, or one that does not count the palette.
    if header.pixels == 0 || (header.bits <= 8 && header.pixels == end) {
        header.pixels = palette_end;
    }
    header.end = end;
    Ok(header)
}

fn extend_colors(samples: &mut Vec<u8>, header: &Header, row: &[u8]) {
    match (header.bits, header.masks) {
        (24, None | Some([0xFF_0000, 0xFF00, 0xFF])) => {
            samples.extend(row.as_chunks().0.iter().flat_map(|&[blue, green, red]: &[u8; 3]| [red, green, blue]));
        }
        (32, None | Some([0xFF_0000, 0xFF00, 0xFF] | [0, 0, 0])) => {
            samples.extend(row.as_chunks().0.iter().flat_map(|&[blue, green, red, _]: &[u8; 4]| [red, green, blue]));
        }
        (bits, masks) => {
            let masks = masks.unwrap_or([0x7C00, 0x3E0, 0x1F]);
            let value = |pixel: &[u8]| pixel.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
            samples.extend(
                row.chunks_exact(bits as usize / 8).flat_map(|pixel| masks.map(|mask| masked(value(pixel), mask))),
            );
        }
    }
}

/// The bits of a pixel under a mask, scaled to 255 and rounded down as in Pillow.
fn masked(pixel: u32, mask: u32) -> u8 {
    let shift = mask.trailing_zeros();
    match mask.checked_shr(shift) {
        Some(most) => (u64::from((pixel & mask) >> shift) * 255 / u64::from(most)) as u8,
        None => 0,
    }
}

/// Decodes runs of equal pixels and single pixels, from the lowest row upwards. Pixels that are left out have the first colour.
fn fill_runs(data: &[u8], is_half: bool, width: usize, samples: &mut [u8]) -> Result<(), String> {
    let mut rest = data;
    let mut take = |count: usize| {
        let (taken, left) = rest.split_at_checked(count).ok_or(TRUNCATED)?;
        rest = left;
        Ok::<&[u8], String>(taken)
    };
    let (mut place, mut column) = (0, 0);
    while place < samples.len() {
        let pair = take(2)?;
        match (usize::from(pair[0]), pair[1]) {
            (0, 0) => {
                place = place.next_multiple_of(width);
                column = 0;
            }
            (0, 1) => return Ok(()),
            (0, 2) => {
                let delta = take(2)?;
                place += usize::from(delta[0]) + usize::from(delta[1]) * width;
                column = place % width;
            }
            (0, count) => {
                let count = usize::from(count);
                let bytes = if is_half { count.div_ceil(2) } else { count };
                let pixels = take(bytes + bytes % 2)?;
                let places = samples[place..].iter_mut().take(count);
                match is_half {
                    true => places.zip(packed(pixels, 4)).for_each(|(place, pixel)| *place = pixel),
                    false => places.zip(pixels).for_each(|(place, pixel)| *place = *pixel),
                }
                place += count;
                column += count;
            }
            (count, value) => {
                let count = count.min(width.saturating_sub(column));
                let values = if is_half { [value >> 4, value & 15] } else { [value; 2] };
                samples[place..]
                    .iter_mut()
                    .take(count)
                    .zip(values.iter().cycle())
                    .for_each(|(place, value)| *place = *value);
                place += count;
                column += count;
            }
        }
    }
    Ok(())
}
