//! TIFF and BigTIFF: the first page, as Pillow reads it, and some kinds beyond that.

mod color;
mod compression;
mod directory;
mod fax;
mod lab;

use image::metadata::Orientation;

use super::jpeg::{self, Markers, Samples};
use super::rgb_image::RgbImage;
use super::samples::{Form, Palette, RequirePixels, packed};
use color::YCbCr;
use compression::{Compression, Source};
use directory::{Directory, TRUNCATED, tag, unsupported};

/// What the samples mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    WhiteIsZero,
    BlackIsZero,
    Rgb,
    Palette,
    Cmyk,
    YCbCr,
    Lab,
}

impl Meaning {
    fn name(self) -> &'static str {
        match self {
            Self::WhiteIsZero => "grey from white to black",
            Self::BlackIsZero => "grey",
            Self::Rgb => "RGB",
            Self::Palette => "palette",
            Self::Cmyk => "CMYK",
            Self::YCbCr => "YCbCr",
            Self::Lab => "CIELAB",
        }
    }
}

/// What numbers the samples are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbers {
    Unsigned,
    Signed,
    Float,
}

/// What the tags of the page say.
struct Page {
    width: u32,
    height: u32,
    meaning: Meaning,
    numbers: Numbers,
    bits: u32,
    /// Samples of a pixel, and how many of them are used.
    samples: usize,
    used: usize,
    /// Whether the colours are multiplied by their alpha.
    is_premultiplied: bool,
    is_planar: bool,
    is_big_endian: bool,
    predictor: u64,
    compression: Compression,
    /// Pixels of YCbCr that share a colour, across and down.
    subsampling: (u32, u32),
    chunk_width: u32,
    chunk_height: u32,
}

pub(super) fn decode(bytes: &[u8], require: RequirePixels, samples: &mut Vec<u8>) -> Result<Form, String> {
    let directory = Directory::read(bytes)?;
    let page = read_page(&directory)?;
    let pixels = require(page.width, page.height)?;
    samples.clear();
    samples.resize(pixels * page.used, 0);
    fill(bytes, &directory, &page, samples, require)?;
    let channels = page.convert(&directory, samples)?;
    let orientation = directory.number(tag::ORIENTATION)?.and_then(|number| u8::try_from(number).ok());
    let orientation = orientation.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms);
    Ok(Form { orientation, ..Form::upright(page.width, page.height, channels) })
}

fn read_page(directory: &Directory) -> Result<Page, String> {
    let size = |tag, name: &str| {
        let size = directory.number(tag)?.ok_or_else(|| format!("broken TIFF data: its {name} is missing"))?;
        u32::try_from(size).map_err(|_| format!("the TIFF image has a {name} of {size}"))
    };
    let (width, height) = (size(tag::WIDTH, "width")?, size(tag::HEIGHT, "height")?);
    let compression = Compression::new(directory)?;
    let meaning = match directory.number(tag::MEANING)?.unwrap_or(0) {
        0 => Meaning::WhiteIsZero,
        1 => Meaning::BlackIsZero,
        2 => Meaning::Rgb,
        3 => Meaning::Palette,
        5 => Meaning::Cmyk,
        6 => Meaning::YCbCr,
        8 => Meaning::Lab,
        other => return Err(unsupported(&format!("{} colours", name_of_meaning(other)))),
    };
    let of_meaning = match meaning {
        Meaning::WhiteIsZero | Meaning::BlackIsZero | Meaning::Palette => 1,
        Meaning::Rgb | Meaning::YCbCr | Meaning::Lab => 3,
        Meaning::Cmyk => 4,
    };
    let samples = directory.number(tag::SAMPLES)?.unwrap_or(1) as usize;
    let all_bits = directory.numbers(tag::BITS)?.unwrap_or_else(|| vec![1]);
    let bits = all_bits.first().copied().unwrap_or(1);
    if all_bits.iter().take(samples).any(|&other| other != bits) {
        return Err(unsupported("samples of different widths"));
    }
    let formats = directory.numbers(tag::NUMBERS)?.unwrap_or_default();
    let numbers = match formats.first().copied().unwrap_or(1) {
        1 | 4 => Numbers::Unsigned,
        2 => Numbers::Signed,
        3 => Numbers::Float,
        _ => return Err(unsupported("samples that are complex numbers")),
    };
    // YCbCr of one sample is grey.
    let meaning = if meaning == Meaning::YCbCr && samples == 1 { Meaning::BlackIsZero } else { meaning };
    let of_meaning = if meaning == Meaning::BlackIsZero { 1 } else { of_meaning };
    if !(of_meaning..=32).contains(&samples) {
        return Err(format!("broken TIFF data: {samples} samples for each pixel; expected {of_meaning} or more"));
    }
    let is_single = of_meaning == 1;
    let is_known = match numbers {
        Numbers::Unsigned => match bits {
            8 | 16 => meaning != Meaning::Palette || bits == 8,
            1 | 2 | 4 => is_single && samples == 1,
            12 | 32 => is_single && samples == 1 && meaning != Meaning::Palette,
            _ => false,
        },
        Numbers::Signed => matches!(bits, 8 | 16 | 32) && is_single && meaning != Meaning::Palette,
        Numbers::Float => bits == 32 && is_single && meaning != Meaning::Palette,
    };
    if !is_known || (matches!(meaning, Meaning::YCbCr | Meaning::Lab) && bits != 8) {
        let numbers = format!("{numbers:?}").to_lowercase();
        return Err(unsupported(&format!(
            "{samples} {numbers} samples of {bits} bits in the colours {}",
            meaning.name()
        )));
    }
    let extra = directory.numbers(tag::EXTRA_SAMPLES)?.unwrap_or_default();
    const PREMULTIPLIED: u64 = 1;
    let is_premultiplied = extra.first() == Some(&PREMULTIPLIED)
        && samples > of_meaning
        && matches!(meaning, Meaning::Rgb | Meaning::BlackIsZero)
        && matches!(bits, 8 | 16);
    let subsampling = match directory.numbers(tag::SUBSAMPLING)?.as_deref() {
        Some(&[across, down, ..]) => (across as u32, down as u32),
        _ => (2, 2),
    };
    let is_subsampled = meaning == Meaning::YCbCr && compression != Compression::Jpeg;
    let is_planar = directory.number(tag::PLANES)? == Some(2) && samples > 1;
    if is_subsampled && !matches!(subsampling, (1 | 2 | 4, 1 | 2 | 4)) {
        return Err(format!("broken TIFF data: colours shared by {} x {} pixels", subsampling.0, subsampling.1));
    }
    if is_subsampled && is_planar && subsampling != (1, 1) {
        return Err(unsupported("YCbCr in planes of different sizes"));
    }
    let is_tiled = directory.has(tag::TILE_OFFSETS);
    let (chunk_width, chunk_height) = match is_tiled {
        true => (size(tag::TILE_WIDTH, "width of tiles")?, size(tag::TILE_HEIGHT, "height of tiles")?),
        // Many programs write the largest number if one strip has all rows.
        false => (width, directory.number(tag::STRIP_ROWS)?.unwrap_or(u64::MAX).min(height.into()) as u32),
    };
    if chunk_width == 0 || chunk_height == 0 {
        return Err("broken TIFF data: its strips or tiles have no pixels".into());
    }
    Ok(Page {
        width,
        height,
        meaning,
        numbers,
        bits: bits as u32,
        samples,
        used: of_meaning + usize::from(is_premultiplied),
        is_premultiplied,
        is_planar,
        is_big_endian: directory.is_big_endian,
        predictor: directory.number(tag::PREDICTOR)?.unwrap_or(1),
        compression,
        subsampling: if is_subsampled { subsampling } else { (1, 1) },
        chunk_width,
        chunk_height,
    })
}

fn name_of_meaning(number: u64) -> String {
    match number {
        4 => "transparency mask".into(),
        9 => "ICC Lab".into(),
        10 => "ITU Lab".into(),
        32803 => "raw camera (CFA)".into(),
        32844 | 32845 => "LogLuv".into(),
        34892 => "raw camera (linear)".into(),
        other => format!("kind {other} of"),
    }
}

/// Decodes all strips or tiles.
fn fill(
    bytes: &[u8],
    directory: &Directory,
    page: &Page,
    samples: &mut [u8],
    require: RequirePixels,
) -> Result<(), String> {
    let (offsets, lengths) = match directory.has(tag::TILE_OFFSETS) {
        true => (tag::TILE_OFFSETS, tag::TILE_LENGTHS),
        false => (tag::STRIP_OFFSETS, tag::STRIP_LENGTHS),
    };
    let offsets = directory.numbers(offsets)?.ok_or("broken TIFF data: it has no strips or tiles")?;
    let lengths = directory.numbers(lengths)?.unwrap_or_default();
    let across = page.width.div_ceil(page.chunk_width) as usize;
    let down = page.height.div_ceil(page.chunk_height) as usize;
    let planes = if page.is_planar { page.used } else { 1 };
    let count = across * down * planes;
    if offsets.len() < count {
        return Err(format!("broken TIFF data: {} strips or tiles; expected {count}", offsets.len()));
    }
    // What lies beside the image is decoded too. It must not take longer than the image does.
    let chunk_pixels = u64::from(page.chunk_width) * u64::from(page.chunk_height);
    let image_pixels = u64::from(page.width) * u64::from(page.height);
    if chunk_pixels.saturating_mul((across * down) as u64) > (1 << 26) + 64 * image_pixels {
        return Err("broken TIFF data: its tiles are far larger than the image".into());
    }
    let reversed: Vec<u8>;
    let bytes = match directory.number(tag::FILL_ORDER)? {
        Some(2) if page.compression != Compression::Jpeg => {
            reversed = bytes.iter().map(|byte| byte.reverse_bits()).collect();
            &reversed
        }
        _ => bytes,
    };
    let tables = directory.raw(tag::JPEG_TABLES)?.unwrap_or_default();
    for (index, &offset) in offsets.iter().take(count).enumerate() {
        let place = index % (across * down);
        let chunk = Chunk {
            plane: index / (across * down),
            left: (place % across) as u32 * page.chunk_width,
            top: (place / across) as u32 * page.chunk_height,
        };
        let data = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).ok_or(TRUNCATED)?;
        // Lengths are not needed where nothing is compressed, and often wrong.
        let data = match lengths.get(index) {
            Some(&length) if page.compression != Compression::None => {
                &data[..data.len().min(usize::try_from(length).unwrap_or(usize::MAX))]
            }
            _ => data,
        };
        if page.compression == Compression::Jpeg {
            page.read_jpeg(chunk, data, tables, samples, require)?;
        } else {
            let chunk_bytes = chunk_pixels.saturating_mul(page.samples as u64 * u64::from(page.bits)) / 8;
            let mut source = Source::new(data, page.compression, page.chunk_width, chunk_bytes)?;
            page.read_chunk(chunk, &mut source, samples)?;
        }
    }
    Ok(())
}

/// A strip or tile: where its pixels belong.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    plane: usize,
    left: u32,
    top: u32,
}

impl Page {
    /// Rows and columns of a chunk that are part of the image.
    fn visible(&self, chunk: Chunk) -> (u32, u32) {
        (self.chunk_height.min(self.height - chunk.top), self.chunk_width.min(self.width - chunk.left))
    }

    fn place(&self, chunk: Chunk, row: u32) -> usize {
        ((chunk.top + row) as usize * self.width as usize + chunk.left as usize) * self.used
    }

    fn read_jpeg(
        &self,
        chunk: Chunk,
        data: &[u8],
        tables: &[u8],
        samples: &mut [u8],
        require: RequirePixels,
    ) -> Result<(), String> {
        let is_usual = match self.meaning {
            Meaning::Rgb => true,
            Meaning::YCbCr => !self.is_planar,
            Meaning::Cmyk => self.is_planar,
            Meaning::BlackIsZero | Meaning::WhiteIsZero => true,
            Meaning::Palette | Meaning::Lab => false,
        };
        let is_usual = is_usual && !self.is_premultiplied && (self.samples == self.used || self.is_planar);
        // Samples of which the JPEG does not know the meaning.
        let is_mixed = !self.is_planar
            && matches!(self.samples, 2 | 4)
            && matches!(self.meaning, Meaning::Rgb | Meaning::BlackIsZero | Meaning::Cmyk);
        if !(is_usual || is_mixed) || self.bits != 8 || self.numbers != Numbers::Unsigned {
            return Err(unsupported(&format!(
                "JPEG compression of {} samples in the colours {}",
                self.samples,
                self.meaning.name()
            )));
        }
        // Limits the memory that false lengths can cost.
        let most = 4096 + 8 * self.chunk_width as usize * self.chunk_height as usize * self.samples;
        let tables = &tables[..tables.len().min(1 << 16)];
        let file = compression::complete_jpeg(&data[..data.len().min(most)], tables, self.meaning == Meaning::YCbCr)?;
        let (rows, columns) = self.visible(chunk);
        let accept = |width, height| {
            let is_size = (columns..=self.chunk_width).contains(&width) && (rows..=self.chunk_height).contains(&height);
            match is_size {
                true => require(width, height).map(|_| height),
                false => Err(format!(
                    "broken TIFF data: a strip or tile of {columns} x {rows} is a JPEG of {width} x {height}"
                )),
            }
        };
        let markers = Markers::read(&file);
        let Samples { width, channels, values } = if is_usual {
            let mut image = RgbImage::default();
            jpeg::decode(&file, &markers, &mut image, accept)?;
            Samples { width: image.width, channels: 3, values: image.pixels }
        } else {
            jpeg::decode_samples(&file, &markers, |width, height| accept(width, height).map(|_| ()))?
        };
        if !is_usual && channels != self.samples {
            return Err(format!("broken TIFF data: a JPEG of {channels} components; expected {}", self.samples));
        }
        let invert = if self.meaning == Meaning::WhiteIsZero { 0xFF } else { 0 };
        let kept = if self.is_planar { 1 } else { self.used };
        for row in 0..rows {
            let source = &values[row as usize * width as usize * channels..][..columns as usize * channels];
            let target = &mut samples[self.place(chunk, row)..][..columns as usize * self.used];
            for (target, source) in target.chunks_exact_mut(self.used).zip(source.chunks_exact(channels)) {
                for (target, source) in target[chunk.plane..chunk.plane + kept].iter_mut().zip(source) {
                    *target = source ^ invert;
                }
            }
        }
        Ok(())
    }

    fn read_chunk(&self, chunk: Chunk, source: &mut Source, samples: &mut [u8]) -> Result<(), String> {
        if self.subsampling != (1, 1) {
            return self.read_subsampled(chunk, source, samples);
        }
        let in_chunk = if self.is_planar { 1 } else { self.samples };
        let row_samples = self.chunk_width as usize * in_chunk;
        let row_bytes = (row_samples as u64 * u64::from(self.bits)).div_ceil(8);
        // A wide tile must not cost more memory than the image.
        if row_bytes > (1 << 20) + 64 * u64::from(self.width) * in_chunk as u64 {
            return Err("broken TIFF data: its tiles are far wider than the image".into());
        }
        let mut row = vec![0; row_bytes as usize];
        let mut values = Vec::with_capacity(row_samples);
        let (rows, columns) = self.visible(chunk);
        for index in 0..rows {
            source.read(&mut row)?;
            self.undo_prediction(&mut row, in_chunk)?;
            values.clear();
            self.extend_values(&row, &mut values);
            let target = &mut samples[self.place(chunk, index)..][..columns as usize * self.used];
            let kept = if self.is_planar { 1 } else { self.used };
            for (target, source) in target.chunks_exact_mut(self.used).zip(values.chunks_exact(in_chunk)) {
                target[chunk.plane..chunk.plane + kept].copy_from_slice(&source[..kept]);
            }
        }
        Ok(())
    }

    /// Blocks of the brightness of several pixels and the colour that they share.
    fn read_subsampled(&self, chunk: Chunk, source: &mut Source, samples: &mut [u8]) -> Result<(), String> {
        let (across, down) = self.subsampling;
        let (rows, columns) = self.visible(chunk);
        let block_bytes = (across * down) as usize + 2;
        let blocks = self.chunk_width.div_ceil(across) as usize;
        if blocks as u64 > (1 << 18) + 16 * u64::from(self.width) {
            return Err("broken TIFF data: its tiles are far wider than the image".into());
        }
        let mut row = vec![0; blocks * block_bytes];
        for top in (0..rows).step_by(down as usize) {
            source.read(&mut row)?;
            self.undo_prediction(&mut row, 1)?;
            for (index, block) in row.chunks_exact(block_bytes).enumerate() {
                let colors = &block[block_bytes - 2..];
                for (place, &brightness) in block[..block_bytes - 2].iter().enumerate() {
                    let (y, x) = (top + place as u32 / across, index as u32 * across + place as u32 % across);
                    if y < rows && x < columns {
                        let place = self.place(chunk, y) + 3 * x as usize;
                        samples[place..place + 3].copy_from_slice(&[brightness, colors[0], colors[1]]);
                    }
                }
            }
        }
        Ok(())
    }

    /// Turns differences of neighbours into values, if rows contain differences.
    fn undo_prediction(&self, row: &mut [u8], in_chunk: usize) -> Result<(), String> {
        const DIFFERENCES: u64 = 2;
        const FLOATS: u64 = 3;
        if !self.compression.may_predict() {
            return Ok(());
        }
        match (self.predictor, self.bits) {
            (DIFFERENCES, 8) => {
                for place in in_chunk..row.len() {
                    row[place] = row[place].wrapping_add(row[place - in_chunk]);
                }
            }
            (DIFFERENCES, 16 | 32) => {
                let width = self.bits as usize / 8;
                for place in (in_chunk * width..row.len()).step_by(width) {
                    let sum = self
                        .number(&row[place..place + width])
                        .wrapping_add(self.number(&row[place - in_chunk * width..place - in_chunk * width + width]));
                    self.write(sum, &mut row[place..place + width]);
                }
            }
            (FLOATS, 32) => {
                for place in in_chunk..row.len() {
                    row[place] = row[place].wrapping_add(row[place - in_chunk]);
                }
                // The most significant bytes of all values come first.
                let count = row.len() / 4;
                let bytes = row.to_vec();
                for (place, value) in row.chunks_exact_mut(4).enumerate() {
                    let value_bytes = std::array::from_fn(|byte| bytes[byte * count + place]);
                    let number = u32::from_be_bytes(value_bytes);
                    value.copy_from_slice(&if self.is_big_endian {
                        number.to_be_bytes()
                    } else {
                        number.to_le_bytes()
                    });
                }
            }
            (DIFFERENCES | FLOATS, bits) => {
                return Err(unsupported(&format!("predictor {} for samples of {bits} bits", self.predictor)));
            }
            _ => {}
        }
        Ok(())
    }

    fn number(&self, bytes: &[u8]) -> u32 {
        let append = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
        if self.is_big_endian { bytes.iter().fold(0, append) } else { bytes.iter().rev().fold(0, append) }
    }

    fn write(&self, number: u32, bytes: &mut [u8]) {
        let length = bytes.len();
        match self.is_big_endian {
            true => bytes.copy_from_slice(&number.to_be_bytes()[4 - length..]),
            false => bytes.copy_from_slice(&number.to_le_bytes()[..length]),
        }
    }

    /// The samples of a row as bytes. Grey of 12 and 16 bits is scaled, other wide numbers are cut off at 255, as in Pillow.
    fn extend_values(&self, row: &[u8], values: &mut Vec<u8>) {
        let invert = if self.meaning == Meaning::WhiteIsZero { 0xFF } else { 0 };
        match (self.bits, self.numbers) {
            (1 | 2 | 4, _) => {
                let scale = if self.meaning == Meaning::Palette { 1 } else { 0xFF / ((1u16 << self.bits) - 1) as u8 };
                values.extend(packed(row, self.bits).map(|value| (value * scale) ^ invert));
            }
            (8, _) => values.extend(row.iter().map(|value| value ^ invert)),
            (12, _) => {
                // The upper eight of twelve bits, which begin with a byte or in the middle of one.
                let upper = |pair: usize| row.get(pair).copied().unwrap_or(0);
                let count = row.len() * 2 / 3;
                values.extend((0..count).map(|index| {
                    let place = index / 2 * 3;
                    let value =
                        if index % 2 == 0 { upper(place) } else { upper(place + 1) << 4 | upper(place + 2) >> 4 };
                    value ^ invert
                }));
            }
            (16, Numbers::Unsigned) => {
                values.extend(row.chunks_exact(2).map(|value| (self.number(value) >> 8) as u8 ^ invert));
            }
            (16, _) => {
                values.extend(row.chunks_exact(2).map(|value| (self.number(value) as u16 as i16).clamp(0, 255) as u8))
            }
            (_, Numbers::Unsigned) => values.extend(row.chunks_exact(4).map(|value| self.number(value).min(255) as u8)),
            (_, Numbers::Signed) => {
                values.extend(row.chunks_exact(4).map(|value| (self.number(value) as i32).clamp(0, 255) as u8));
            }
            // The conversion cuts off what is out of range.
            (_, Numbers::Float) => {
                values.extend(row.chunks_exact(4).map(|value| f32::from_bits(self.number(value)) as u8))
            }
        }
    }

    /// Makes red, green and blue, or grey, of the samples. Returns how many of them a pixel has.
    fn convert(&self, directory: &Directory, samples: &mut Vec<u8>) -> Result<usize, String> {
        match self.meaning {
            Meaning::Palette => {
                let colors = directory.numbers(tag::PALETTE)?.ok_or("broken TIFF data: it has no palette")?;
                let third = colors.len() / 3;
                let high = |place: usize| (colors[place] >> 8) as u8;
                Palette::new((0..third).map(|color| [high(color), high(third + color), high(2 * third + color)]))
                    .apply(samples);
                Ok(3)
            }
            Meaning::Cmyk => {
                color::convert(samples, 4, color::of_cmyk);
                Ok(3)
            }
            Meaning::YCbCr if self.compression == Compression::Jpeg => Ok(3),
            Meaning::YCbCr => {
                let table = YCbCr::new(directory, self.compression == Compression::None)?;
                color::convert(samples, 3, |pixel| table.rgb(pixel));
                Ok(3)
            }
            Meaning::Lab => {
                color::convert(samples, 3, lab::rgb);
                Ok(3)
            }
            Meaning::Rgb | Meaning::WhiteIsZero | Meaning::BlackIsZero => {
                if self.is_premultiplied {
                    samples.chunks_exact_mut(self.used).for_each(color::divide_by_alpha);
                }
                Ok(self.used)
            }
        }
    }
}
