//! What the decoders of all formats but JPEG return: 8-bit samples and their form.

use image::metadata::Orientation;

/// Returns the number of pixels of an image of this width and height, or an error if they are too many.
pub(super) type RequirePixels<'a> = &'a dyn Fn(u32, u32) -> Result<usize, String>;

/// The form of an image's samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub width: u32,
    pub height: u32,
    /// 1 for grey, 2 for grey and alpha, 3 for RGB, 4 for RGB and alpha.
    pub channels: usize,
    /// The orientation that the file states.
    pub orientation: Orientation,
}

impl Form {
    pub(super) fn upright(width: u32, height: u32, channels: usize) -> Self {
        Self { width, height, channels, orientation: Orientation::NoTransforms }
    }
}

/// Scales `part` from `0..=whole` to `0..=255`, rounded: 3 of 7 is 109.
pub(super) fn of_255(part: u32, whole: u32) -> u8 {
    (part.min(whole) as f64 / f64::from(whole) * 255.0).round_ties_even() as u8
}

/// An RGB palette, filled up with black.
#[derive(Debug, Clone)]
pub(super) struct Palette([[u8; 3]; 256]);

impl Palette {
    pub(super) fn new(colors: impl Iterator<Item = [u8; 3]>) -> Self {
        let mut palette = [[0; 3]; 256];
        for (place, color) in palette.iter_mut().zip(colors) {
            *place = color;
        }
        Self(palette)
    }

    /// Replaces indices by colours.
    pub(super) fn apply(&self, samples: &mut Vec<u8>) {
        let mut colors = Vec::with_capacity(3 * samples.len());
        colors.extend(samples.iter().flat_map(|&index| self.0[usize::from(index)]));
        *samples = colors;
    }
}

/// The samples of a row that has `bits` of 1, 2 or 4 for each, the first in the high bits.
pub(super) fn packed(row: &[u8], bits: u32) -> impl Iterator<Item = u8> + '_ {
    let mask = ((1u16 << bits) - 1) as u8;
    row.iter().flat_map(move |&byte| (0..8 / bits).rev().map(move |place| (byte >> (place * bits)) & mask))
}
