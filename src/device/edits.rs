//! What happens to the scaled pixels of an image, in this order: one affine map, operations on colours, and an erased rectangle.

/// Operations on the colours of an image at most: the four of colour jitter, and that of TrivialAugment.
pub const MOST_COLOURS: usize = 5;

/// The number of fractional bits of an [`AffineMap`].
const FRACTION_BITS: i32 = 32;

/// An operation on the colours of a whole image, with the bits of Pillow's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Colour {
    /// `ImageEnhance.Brightness` with this factor.
    Brightness(f32),
    /// `ImageEnhance.Contrast` with this factor.
    Contrast(f32),
    /// `ImageEnhance.Color` with this factor.
    Saturation(f32),
    /// Adds this to the hue of an HSV image, modulo 256; torchvision's `adjust_hue`.
    Hue(u8),
    /// `ImageEnhance.Sharpness` with this factor.
    Sharpness(f32),
    /// `ImageOps.posterize` to this many bits, 1 to 8.
    Posterize(u32),
    /// `ImageOps.solarize`: bytes from this one on are inverted; at most 256.
    Solarize(u32),
    /// `ImageOps.autocontrast`.
    AutoContrast,
    /// `ImageOps.equalize`.
    Equalize,
}

impl Colour {
    /// Its number and its value in the table of views.
    pub(super) fn entry(self) -> [u32; 2] {
        match self {
            Self::Brightness(factor) => [0, factor.to_bits()],
            Self::Contrast(factor) => [1, factor.to_bits()],
            Self::Saturation(factor) => [2, factor.to_bits()],
            Self::Hue(shift) => [3, shift.into()],
            Self::Sharpness(factor) => [4, factor.to_bits()],
            Self::Posterize(bits) => [5, bits],
            Self::Solarize(threshold) => [6, threshold],
            Self::AutoContrast => [7, 0],
            Self::Equalize => [8, 0],
        }
    }
}

/// The pixel of the image that each output pixel is, in fixed point with 32 fractional bits: output pixel (x, y) is at
/// (`across[0]` x + `across[1]` y + `across[2]`, `down[0]` x + `down[1]` y + `down[2]`), where the first pixel extends from 0 to 1. Pixels
/// are interpolated as by Pillow's `transform(..., AFFINE, ..., BILINEAR)`, and outside of the image black.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AffineMap {
    /// The coefficients of the column.
    pub across: [i64; 3],
    /// The coefficients of the row.
    pub down: [i64; 3],
}

impl AffineMap {
    /// That of Pillow's six coefficients, which apply to the centre of an output pixel, at half a pixel.
    pub fn new([a, b, c, d, e, f]: [f64; 6]) -> Self {
        let fixed = |value: f64| (value * f64::from(FRACTION_BITS).exp2()).round() as i64;
        let row = |x: f64, y: f64, offset: f64| [fixed(x), fixed(y), fixed(offset + 0.5 * x + 0.5 * y)];
        Self { across: row(a, b, c), down: row(d, e, f) }
    }

    /// The six numbers in the table of views.
    pub(super) fn entry(self) -> [i64; 6] {
        let ([a, b, c], [d, e, f]) = (self.across, self.down);
        [a, b, c, d, e, f]
    }
}

/// A rectangle of output pixels that get the mean colour, which is zero after normalisation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Erased {
    /// Rows above it.
    pub top: u32,
    /// Columns to the left of it.
    pub left: u32,
    /// Number of rows.
    pub height: u32,
    /// Number of columns.
    pub width: u32,
}

/// See the module documentation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Edits {
    /// The affine map.
    pub affine: Option<AffineMap>,
    /// The operations on colours, in order; those that there are come first.
    pub colours: [Option<Colour>; MOST_COLOURS],
    /// The erased rectangle.
    pub erased: Option<Erased>,
}

impl Edits {
    /// Whether there is more than an erased rectangle.
    pub fn change_pixels(&self) -> bool {
        self.affine.is_some() || self.colours[0].is_some()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        !self.change_pixels() && self.erased.is_none()
    }

    /// Adds an operation on colours, if there is a free place for it.
    pub fn push(&mut self, colour: Colour) {
        if let Some(free) = self.colours.iter_mut().find(|place| place.is_none()) {
            *free = Some(colour);
        }
    }
}
