//! WebP, through the crate `image`: lossless, lossy, and the first frame of an animation.

use std::io::Cursor;

use image::codecs::webp::WebPDecoder;
use image::{ImageDecoder, ImageError, Limits};

use super::orientation;
use super::samples::{Form, RequirePixels};

/// What the decoder may allocate before it knows the size of the image: profiles and text.
const MAX_HEADER_BYTES: u64 = 256 << 20;

pub(super) fn decode(bytes: &[u8], require: RequirePixels, samples: &mut Vec<u8>) -> Result<Form, String> {
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(describe)?;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_HEADER_BYTES);
    decoder.set_limits(limits.clone()).map_err(describe)?;
    let (width, height) = decoder.dimensions();
    let pixels = require(width, height)?;
    // A false header must not cost more memory than the image it describes: 16-bit RGBA twice, and some room.
    limits.max_alloc = Some(2 * 8 * pixels as u64 + (1 << 20));
    decoder.set_limits(limits).map_err(describe)?;
    // Invalid metadata is ignored.
    let exif = decoder.exif_metadata().ok().flatten();
    let xmp = decoder.xmp_metadata().ok().flatten();
    let orientation = orientation::of(exif.as_deref(), xmp.as_deref());
    let channels = usize::from(decoder.color_type().bytes_per_pixel());
    samples.resize(pixels * channels, 0);
    decoder.read_image(samples).map_err(describe)?;
    Ok(Form { orientation, ..Form::upright(width, height, channels) })
}

fn describe(cause: ImageError) -> String {
    format!("broken or unsupported WebP data: {cause}")
}
