//! WebP, through the crate `image`: lossless, lossy, and the first frame of an animation.

use std::borrow::Cow;
use std::io::Cursor;

use image::codecs::webp::WebPDecoder;
use image::{ImageDecoder, ImageError, Limits};

use super::orientation;
use super::samples::{Form, RequirePixels};

/// What the decoder may allocate before it knows the size of the image: profiles and text.
const MAX_HEADER_BYTES: u64 = 256 << 20;

/// Bytes of a file before its first chunk.
const FILE_HEADER: usize = 12;
/// Bytes of a chunk before its content: its name and length.
const CHUNK_HEADER: usize = 8;
/// Bytes of an animation's frame before the chunks of its image.
const FRAME_HEADER: usize = 16;
/// The place of the flags in a file that begins with `VP8X`.
const FLAGS: usize = FILE_HEADER + CHUNK_HEADER;
const ALPHA: u8 = 0x10;
const ANIMATION: u8 = 0x02;
/// Chunks that a flag announces.
const ANNOUNCED: [(&[u8; 4], u8); 3] = [(b"ALPH", ALPHA), (b"EXIF", 0x08), (b"XMP ", 0x04)];

pub(super) fn decode(bytes: &[u8], require: RequirePixels, samples: &mut Vec<u8>) -> Result<Form, String> {
    let mut decoder = WebPDecoder::new(Cursor::new(whole(bytes)?)).map_err(describe)?;
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

/// The file up to the end that it states. Like libwebp, refuses one that lacks bytes: the decoder would take what follows a gap for the
/// rest of the image. Flags of chunks that a program removed are cleared, as the decoder insists on them.
fn whole(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let length = |place: usize| bytes.get(place..)?.first_chunk().map(|four| u32::from_le_bytes(*four) as usize);
    let end = length(4).unwrap_or(0).saturating_add(8);
    let file = bytes.get(..end).ok_or_else(|| {
        format!("truncated WebP data: its header states {end} bytes, and the file has {}", bytes.len())
    })?;
    let is_extended = file[FILE_HEADER.min(end)..].starts_with(b"VP8X");
    let (mut place, mut chunks, mut is_lossy) = (FILE_HEADER, 0, false);
    let mut missing = ANNOUNCED.iter().fold(0, |flags, (_, flag)| flags | flag);
    // libwebp looks at two chunks of a file without `VP8X`.
    while place < end && (is_extended || chunks < 2) {
        let content = place + CHUNK_HEADER;
        let stated = length(place + 4).filter(|_| content <= end);
        let name = &file[place..end.min(place + 4)];
        // A content of odd length has a byte after it.
        let after = stated.map(|length| content.saturating_add(length).saturating_add(length % 2));
        let Some(after) = after.filter(|after| *after <= end) else {
            return Err(format!(
                "damaged WebP data: its part \"{}\" at byte {place} ends beyond the end of the image at byte {end}",
                name.trim_ascii().escape_ascii()
            ));
        };
        is_lossy |= name == b"VP8 ";
        let flags = ANNOUNCED.iter().filter(|(announced, _)| name == *announced);
        missing = flags.fold(missing, |missing, (_, flag)| missing & !flag);
        place = if name == b"ANMF" { content + FRAME_HEADER } else { after };
        chunks += 1;
    }
    let Some(flags) = file.get(FLAGS).filter(|_| is_extended) else { return Ok(file.into()) };
    if !is_lossy || flags & ANIMATION != 0 {
        missing &= !ALPHA;
    }
    if flags & missing == 0 {
        return Ok(file.into());
    }
    let mut file = file.to_vec();
    file[FLAGS] &= !missing;
    Ok(file.into())
}

fn describe(cause: ImageError) -> String {
    let cause = cause.to_string();
    match cause.strip_prefix("Format error decoding WebP: ").unwrap_or(&cause) {
        text if text.starts_with("Invalid Chunk header") => {
            "broken WebP data: one of its parts has an invalid header".into()
        }
        text => format!("broken or unsupported WebP data: {text}"),
    }
}
