//! Images side by side, with their labels.

use std::fmt::Write;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{jpeg, raster};
use crate::data::{DecodeOptions, Decoder, Draw, ImageFolder, RgbImage, Transform, Transformer};
use crate::error::{Context, Result};

const JPEG_QUALITY: u8 = 78;
/// The JPEG quality of a contact sheet. Its text needs a higher one.
const SHEET_QUALITY: u8 = 92;

/// A square image and its label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tile {
    /// The text below it.
    pub label: String,
    /// Rows and columns.
    pub size: u32,
    /// RGB, `[size, size, 3]`.
    pub pixels: Vec<u8>,
}

impl Tile {
    /// Encodes it as JPEG in a `data:` URL.
    pub fn data_uri(&self) -> Result<String> {
        let bytes = jpeg::encode(&self.pixels, self.size, self.size, JPEG_QUALITY, None)?;
        Ok(format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(bytes)))
    }
}

/// Crops and scales the middle of an image.
pub fn tile(path: &Path, decoding: DecodeOptions, label: &str, size: u32) -> Result<Tile> {
    let mut image = RgbImage::default();
    Decoder::new(decoding).decode_file(path, &mut image)?;
    let transform = Transform::resize_and_center_crop(size, size);
    let pixels = Transformer::default().transform(&image, &transform, Draw::default())?;
    Ok(Tile { label: label.into(), size, pixels })
}

/// A first look at the data, as indices of samples: the first `count` of the first class, then the last `count` of the
/// last.
pub fn first_and_last(folder: &ImageFolder, count: usize) -> [Vec<usize>; 2] {
    let of = |class: usize| {
        let indices = folder.samples.iter().enumerate().filter(move |(_, sample)| sample.class == class);
        indices.map(|(index, _)| index).collect::<Vec<usize>>()
    };
    let (first, last) = (of(0), of(folder.classes.len().saturating_sub(1)));
    [first[..first.len().min(count)].to_vec(), last[last.len() - last.len().min(count)..].to_vec()]
}

/// Rows of a contact sheet: of two classes the first images of one and the last of the other; of
/// more classes, the first of each of the first `most_classes`. Images that cannot be read are skipped.
pub fn tiles_of_classes(folder: &ImageFolder, count: usize, most_classes: usize, size: u32) -> Vec<Vec<Tile>> {
    let tile_of = |index: &usize| {
        let sample = &folder.samples[*index];
        tile(&sample.path, folder.decoding, &folder.classes[sample.class], size).ok()
    };
    rows_of_classes(folder, count, most_classes).iter().map(|row| row.iter().filter_map(tile_of).collect()).collect()
}

/// The images of each row.
fn rows_of_classes(folder: &ImageFolder, count: usize, most_classes: usize) -> Vec<Vec<usize>> {
    if folder.classes.len() <= 2 {
        return first_and_last(folder, count).to_vec();
    }
    let mut rows = vec![Vec::new(); folder.classes.len().min(most_classes)];
    for (index, sample) in folder.samples.iter().enumerate() {
        if let Some(row) = rows.get_mut(sample.class).filter(|row| row.len() < count) {
            row.push(index);
        }
    }
    rows
}

/// The same images as the network sees them in the first epoch of a run with this transform and seed.
pub fn augmented_tiles(
    folder: &ImageFolder,
    count: usize,
    most_classes: usize,
    transform: &Transform,
    seed: u64,
) -> Vec<Vec<Tile>> {
    let (mut decoder, mut transformer) = (Decoder::new(folder.decoding), Transformer::default());
    let mut tile_of = |index: &usize| {
        let sample = &folder.samples[*index];
        let mut image = RgbImage::default();
        decoder.decode_file(&sample.path, &mut image).ok()?;
        let pixels = transformer.transform(&image, transform, Draw { seed, epoch: 0, index: *index }).ok()?;
        Some(Tile { label: folder.classes[sample.class].clone(), size: transform.image_size(), pixels })
    };
    let rows = rows_of_classes(folder, count, most_classes);
    rows.iter().map(|row| row.iter().filter_map(&mut tile_of).collect()).collect()
}

/// A contact sheet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContactSheet {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// RGB, `[height, width, 3]`.
    pub pixels: Vec<u8>,
}

/// The comment in the file of a contact sheet.
const MARK: &str = "retune contact sheet";

const GAP: u32 = 8;
const LABEL_HEIGHT: u32 = 20;
const FONT_SIZE: u32 = 13;
/// A letter takes about half of the font's size.
const LETTER_WIDTH: f32 = 0.55;

impl ContactSheet {
    /// Places tiles of one size on a white background, each above its label.
    pub fn new(rows: &[Vec<Tile>]) -> Result<Self> {
        let size = rows.iter().flatten().map(|tile| tile.size).max().unwrap_or(0);
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0) as u32;
        let width = (columns * (size + GAP) + GAP).max(1);
        let height = (rows.len() as u32 * (size + LABEL_HEIGHT + GAP) + GAP).max(1);
        let mut labels = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="{}" font-size="{FONT_SIZE}">"#,
            raster::FONT_FAMILY
        );
        let mut pixels = vec![255; (width * height * 3) as usize];
        for (row, tiles) in rows.iter().enumerate() {
            for (column, tile) in tiles.iter().enumerate() {
                let left = GAP + column as u32 * (size + GAP);
                let top = GAP + row as u32 * (size + LABEL_HEIGHT + GAP);
                for (line, source) in tile.pixels.chunks_exact((tile.size * 3) as usize).enumerate() {
                    let start = (((top + line as u32) * width + left) * 3) as usize;
                    pixels[start..start + source.len()].copy_from_slice(source);
                }
                let letters = (size as f32 / (LETTER_WIDTH * FONT_SIZE as f32)) as usize;
                let _ = write!(
                    labels,
                    r#"<text x="{}" y="{}" text-anchor="middle">{}</text>"#,
                    left + size / 2,
                    top + size + LABEL_HEIGHT - 5,
                    raster::escape(&shortened(&tile.label, letters))
                );
            }
        }
        labels.push_str("</svg>");
        let (ink, _) = raster::rgba(&labels)?;
        for (pixel, ink) in pixels.chunks_exact_mut(3).zip(ink.chunks_exact(4)) {
            for (channel, &ink_channel) in pixel.iter_mut().zip(ink) {
                // Premultiplied alpha: paper shows through where there is no ink.
                let paper = u32::from(*channel) * u32::from(255 - ink[3]) / 255;
                *channel = (paper + u32::from(ink_channel)).min(255) as u8;
            }
        }
        Ok(Self { width, height, pixels })
    }

    /// Encodes it as PNG.
    pub fn png(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder
            .add_text_chunk("Comment".into(), MARK.into())
            .and_then(|()| encoder.write_header()?.write_image_data(&self.pixels))
            .context(|| "cannot write a contact sheet as PNG")?;
        Ok(bytes)
    }

    /// Whether a file that begins with these bytes is a contact sheet.
    pub fn is_start_of(bytes: &[u8]) -> bool {
        memchr::memmem::find(bytes, MARK.as_bytes()).is_some()
    }

    /// Encodes it as JPEG.
    ///
    /// # Errors
    /// When it is larger than a JPEG can be.
    pub fn jpeg(&self) -> Result<Vec<u8>> {
        jpeg::encode(&self.pixels, self.width, self.height, SHEET_QUALITY, Some(MARK))
    }
}

/// Shortens a text to this many characters, with an ellipsis at the end.
pub(super) fn shortened(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.into();
    }
    text.chars().take(letters.saturating_sub(1)).chain(['…']).collect()
}
