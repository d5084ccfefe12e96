//! What mixup and CutMix do to a batch, and the numbers that describe it to a device.

/// How each image of a batch, with its target, is mixed with the image before it; the first image with the last.
///
/// Inside of the rectangle, a pixel becomes `weight` times itself plus `1 - weight` times that of the other image. The target becomes
/// `share` times the image's own class plus `1 - share` times that of the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mixture {
    /// The share of the image's own class in its target, from 0 to 1.
    pub share: f32,
    /// The weight of the image's own pixels in the rectangle, from 0 to 1.
    pub weight: f32,
    /// The first row of the rectangle.
    pub top: u32,
    /// Its first column.
    pub left: u32,
    /// The row after its last one.
    pub bottom: u32,
    /// The column after its last one.
    pub right: u32,
}

impl Mixture {
    /// Leaves images and targets as they are.
    pub const NONE: Self = Self { share: 1.0, weight: 1.0, top: 0, left: 0, bottom: 0, right: 0 };

    /// The number of [`Mixture::words`].
    pub const WORDS: usize = 6;

    /// The fields in their order. Rows and columns are exact up to 2^24.
    pub fn words(&self) -> [f32; Self::WORDS] {
        let Self { share, weight, top, left, bottom, right } = *self;
        [share, weight, top as f32, left as f32, bottom as f32, right as f32]
    }
}
