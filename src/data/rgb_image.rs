//! Decoded images.

/// Buffers that grew beyond this size for one huge image are freed.
pub(super) const KEPT_BYTES: usize = 64 << 20;

/// An 8-bit RGB image, with rows from top to bottom and no padding.
pub type RgbImage = Image<3>;

/// The same with an unused byte after each pixel, because processors handle four bytes faster than three: scaling a
/// photo's crop to 224 x 224 takes half the time.
pub type PaddedImage = Image<4>;

/// An image whose pixels begin with red, green and blue and have `BYTES` bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image<const BYTES: usize> {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `height * width * BYTES` bytes.
    pub pixels: Vec<u8>,
}

impl<const BYTES: usize> Image<BYTES> {
    /// Frees the buffer of a huge image, which later small images do not need.
    pub(super) fn free_large_buffer(&mut self) {
        if self.pixels.capacity() > KEPT_BYTES {
            *self = Self::default();
        }
    }
}
