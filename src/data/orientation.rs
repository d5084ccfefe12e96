//! The orientation in the metadata of an image, as `PIL.ImageOps.exif_transpose` reads it.

use image::metadata::Orientation;

const ORIENTATION: u16 = 0x0112;

/// The orientation in the metadata of a file. XMP counts only if EXIF has none.
pub(super) fn of(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    exif.and_then(from_exif).or_else(|| xmp.and_then(from_xmp)).unwrap_or(Orientation::NoTransforms)
}

/// The name before an EXIF block in a JPEG. Some programs also write it to PNG and WebP files.
pub(super) const EXIF: &[u8] = b"Exif\0\0";

/// Finds the orientation in an EXIF block, which begins with the byte order. It may be a number of any width.
fn from_exif(exif: &[u8]) -> Option<Orientation> {
    let exif = exif.strip_prefix(EXIF).unwrap_or(exif);
    let is_little = match exif.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let number = |place: usize, width: usize| {
        let bytes = exif.get(place..place.checked_add(width)?)?;
        let append = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
        Some(if is_little { bytes.iter().rev().fold(0, append) } else { bytes.iter().fold(0, append) })
    };
    let directory = number(4, 4)? as usize;
    let entries = number(directory, 2)? as usize;
    // An entry: tag, type, count, and the value if it fits in four bytes, otherwise its offset.
    for entry in (0..entries).map(|index| directory.saturating_add(2 + 12 * index)) {
        if number(entry, 2)? != u32::from(ORIENTATION) {
            continue;
        }
        let width = match number(entry + 2, 2)? {
            3 | 8 => 2,
            4 | 9 => 4,
            _ => return None,
        };
        let values = entry + 8;
        let is_inside = number(entry + 4, 4)? as usize * width <= 4;
        let place = if is_inside { values } else { number(values, 4)? as usize };
        return Some(of_number(number(place, width)?));
    }
    None
}

/// Finds the orientation in an XMP packet, where it is an attribute or an element.
fn from_xmp(xmp: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    memchr::memmem::find_iter(xmp, NAME).find_map(|place| {
        let value = &xmp[place + NAME.len()..];
        let value = value.strip_prefix(b"=\"").or_else(|| value.strip_prefix(b">"))?;
        value.first().filter(|digit| digit.is_ascii_digit()).map(|digit| of_number(u32::from(digit - b'0')))
    })
}

/// Undefined numbers mean no rotation.
fn of_number(number: u32) -> Orientation {
    u8::try_from(number).ok().and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An EXIF block with a width and the orientation, whose type and four bytes of value are given.
    fn exif(is_little: bool, kind: u8, count: u8, value: [u8; 4]) -> Vec<u8> {
        let two = |value: u16| if is_little { value.to_le_bytes() } else { value.to_be_bytes() };
        let four = |value: u32| if is_little { value.to_le_bytes() } else { value.to_be_bytes() };
        let mut block = if is_little { b"II*\0".to_vec() } else { b"MM\0*".to_vec() };
        block.extend(four(8));
        block.extend(two(2));
        for (tag, kind, count, value) in
            [(0x0100, 3, 1, [0; 4]), (ORIENTATION, u16::from(kind), u32::from(count), value)]
        {
            block.extend([two(tag), two(kind)].concat());
            block.extend(four(count));
            block.extend(value);
        }
        block
    }

    #[test]
    fn numbers_of_any_width_and_byte_order_are_read() {
        for (is_little, kind, value) in [
            (true, 3, [6, 0, 0, 0]),
            (true, 4, [6, 0, 0, 0]),
            (true, 9, [6, 0, 0, 0]),
            (false, 3, [0, 6, 0, 0]),
            (false, 4, [0, 0, 0, 6]),
            (false, 8, [0, 6, 0, 0]),
        ] {
            assert_eq!(from_exif(&exif(is_little, kind, 1, value)), Some(Orientation::Rotate90), "{kind}");
        }
        // The first of two longs, which are stored at an offset.
        let mut two = exif(false, 4, 2, [0, 0, 0, 34]);
        two.extend([0, 0, 0, 8, 0, 0, 0, 1]);
        assert_eq!(from_exif(&two), Some(Orientation::Rotate270));
        assert_eq!(from_exif(&exif(true, 3, 1, [9, 0, 0, 0])), Some(Orientation::NoTransforms));
        assert_eq!(from_exif(&exif(true, 4, 1, [6, 1, 0, 0])), Some(Orientation::NoTransforms));
        assert_eq!(from_exif(&exif(true, 2, 1, [6, 0, 0, 0])), None);
    }

    #[test]
    fn xmp_counts_if_exif_has_no_orientation() {
        let (turned, plain) = (exif(true, 3, 1, [6, 0, 0, 0]), exif(true, 2, 1, [0; 4]));
        let xmp: &[u8] = b"<a tiff:Orientation=\"3\"/>";
        assert_eq!(of(Some(&turned), Some(xmp)), Orientation::Rotate90);
        assert_eq!(of(Some(&[EXIF, &turned].concat()), None), Orientation::Rotate90);
        assert_eq!(of(Some(&plain), Some(xmp)), Orientation::Rotate180);
        assert_eq!(of(None, Some(xmp)), Orientation::Rotate180);
        assert_eq!(of(None, None), Orientation::NoTransforms);
    }

    #[test]
    fn a_block_that_is_cut_says_nothing() {
        let block = exif(true, 3, 1, [6, 0, 0, 0]);
        for length in 0..block.len() - 2 {
            assert_eq!(from_exif(&block[..length]), None, "{length}");
        }
        let mut far = block;
        far[4..8].fill(0xFF);
        assert_eq!(from_exif(&far), None);
    }

    #[test]
    fn xmp_has_it_as_an_attribute_or_an_element() {
        assert_eq!(from_xmp(b"<a tiff:Orientation=\"6\"/>"), Some(Orientation::Rotate90));
        assert_eq!(from_xmp(b"<tiff:Orientation>3</tiff:Orientation>"), Some(Orientation::Rotate180));
        assert_eq!(from_xmp(b"<tiff:Orientation rdf:x=\"1\"> tiff:Orientation=\"8\""), Some(Orientation::Rotate270));
        assert_eq!(from_xmp(b"tiff:Orientation"), None);
    }
}
