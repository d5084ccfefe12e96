//! Reads the markers of a JPEG before anything is decoded.

use image::metadata::Orientation;

use crate::data::orientation;

const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

/// The contents of the markers up to the end of the image, or of the file.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::data) struct Markers<'a> {
    /// Whether there is an end marker.
    has_end: bool,
    /// Whether the first scan contains the whole image and is followed by more than the end marker.
    has_more: bool,
    pub(super) components: Option<u8>,
    is_sequential: bool,
    is_one_scan: bool,
    /// The number of scans: how often a decoder may have to process the whole image.
    pub(super) scans: u64,
    /// Why the decoder does not support this kind of file, if it does not.
    pub(super) unsupported: Option<&'static str>,
    exif: Option<&'a [u8]>,
    xmp: Option<&'a [u8]>,
}

impl<'a> Markers<'a> {
    /// Follows the markers.
    pub(in crate::data) fn read(bytes: &'a [u8]) -> Self {
        let mut markers = Self::default();
        markers.follow(bytes);
        markers
    }

    /// Returns `None` if the data ends first.
    fn follow(&mut self, bytes: &'a [u8]) -> Option<()> {
        let mut place = 2;
        loop {
            // Between segments and inside a scan alike, the next marker is an FF that neither a 00 (a data byte FF) nor
            // an FF (filler) follows.
            place += memchr::memchr(0xFF, bytes.get(place..)?)? + 1;
            match *bytes.get(place)? {
                0xFF => {}
                // Markers without a segment. Those up to BF are reserved; libjpeg continues directly after them.
                marker @ (0x00..=0xBF | 0xD0..=0xD8) => {
                    self.has_more |= self.is_one_scan && !matches!(marker, 0x00 | 0xD0..=0xD7);
                    place += 1;
                }
                0xD9 => {
                    self.has_end = true;
                    return Some(());
                }
                marker => {
                    let rest = bytes.get(place + 1..)?;
                    let length = usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?]));
                    let segment = rest.get(..length.max(2))?;
                    self.note(marker, segment);
                    place += 1 + segment.len();
                }
            }
        }
    }

    fn note(&mut self, marker: u8, segment: &'a [u8]) {
        self.has_more |= self.is_one_scan;
        match marker {
            // A frame: length, bits of a sample, height, width, number of components. C4, C8 and CC are not frames.
            0xC0..=0xCF if !matches!(marker, 0xC4 | 0xC8 | 0xCC) && self.scans == 0 => {
                self.components = segment.get(7).copied();
                self.is_sequential = matches!(marker, 0xC0 | 0xC1 | 0xC9);
                let kind = match (marker, segment.get(2)) {
                    (0xC3 | 0xCB, _) => "lossless JPEG is not supported",
                    (0xC5..=0xC7 | 0xCD..=0xCF, _) => "hierarchical JPEG is not supported",
                    (_, Some(bits)) if *bits != 8 => "a JPEG with more than 8 bits per sample is not supported",
                    _ => return,
                };
                self.unsupported.get_or_insert(kind);
            }
            0xF7 if self.scans == 0 => {
                self.unsupported.get_or_insert("JPEG-LS is not supported");
            }
            // An application segment: length, name, contents.
            0xE1 if self.scans == 0 => {
                if let Some(exif) = segment[2..].strip_prefix(orientation::EXIF) {
                    self.exif.get_or_insert(exif);
                } else if let Some(xmp) = segment[2..].strip_prefix(XMP) {
                    self.xmp = Some(xmp);
                }
            }
            // A scan: length, number of components.
            0xDA => {
                self.is_one_scan |= self.scans == 0 && self.is_sequential && segment.get(2).copied() == self.components;
                self.scans += 1;
            }
            _ => {}
        }
    }

    /// Whether nothing after the requested rows can make the file invalid.
    pub(super) fn can_stop_early(&self) -> bool {
        self.has_end && !self.has_more
    }

    /// How the image is to be turned.
    pub(in crate::data) fn orientation(&self) -> Orientation {
        orientation::of(self.exif, self.xmp)
    }
}
