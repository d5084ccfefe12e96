//! Writes images as small JPEG files.

use std::io;
use std::panic::catch_unwind;

use mozjpeg::{ColorSpace, Compress, Marker};

use crate::error::{Context, Error, Result};

/// The largest width and height that the encoder accepts.
const LARGEST_SIDE: u32 = 65500;

/// Encodes RGB pixels, `[height, width, 3]`. Colours have half the resolution of brightness.
///
/// # Errors
/// When the image is too large for a JPEG.
pub fn encode(pixels: &[u8], width: u32, height: u32, quality: u8, comment: Option<&str>) -> Result<Vec<u8>> {
    if width.max(height) > LARGEST_SIDE {
        return Err(Error::new(format!(
            "an image of {width} x {height} pixels is too large for JPEG: expected at most {LARGEST_SIDE} in each direction"
        ))
        .hint("write it as PNG"));
    }
    let encode = || -> io::Result<Vec<u8>> {
        let mut encoder = Compress::new(ColorSpace::JCS_RGB);
        encoder.set_size(width as usize, height as usize);
        encoder.set_quality(quality.into());
        encoder.set_chroma_sampling_pixel_sizes((2, 2), (2, 2));
        let mut encoder = encoder.start_compress(Vec::new())?;
        if let Some(comment) = comment {
            encoder.write_marker(Marker::COM, comment.as_bytes());
        }
        encoder.write_scanlines(pixels)?;
        encoder.finish()
    };
    // libjpeg's errors leave its C code as the unwinding of a panic that prints nothing.
    let encoded = catch_unwind(encode).unwrap_or_else(|_| Err(io::Error::other("the encoder failed")));
    encoded.context(|| "cannot write an image as JPEG")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_come_back_almost_as_they_were() {
        let (width, height) = (50, 37);
        let pixel = |place: u32| [(place % width * 5) as u8, (place / width * 6) as u8, 90];
        let pixels: Vec<u8> = (0..width * height).flat_map(pixel).collect();
        let encoded = encode(&pixels, width, height, 80, None).unwrap();
        let decoded = image::load_from_memory(&encoded).unwrap().into_rgb8();
        assert_eq!(decoded.dimensions(), (width, height));
        let difference: u64 = pixels.iter().zip(decoded.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        assert!(difference < 4 * pixels.len() as u64, "{difference}");
        assert!(encoded.len() < pixels.len() / 3, "{} bytes", encoded.len());
    }

    #[test]
    fn an_image_that_is_too_large_is_refused() {
        let error = encode(&vec![0; 65501 * 3], 65501, 1, 80, None).unwrap_err();
        assert!(error.message().contains("65501 x 1 pixels is too large for JPEG"), "{error}");
    }
}
