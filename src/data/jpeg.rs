//! What the markers of a JPEG tell before anything is decoded.

const TRUNCATED: &str = "truncated JPEG: the data end before the end marker";

const EXIF: &[u8] = b"Exif\0\0";

/// The frame of a JPEG that has its end marker.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outline {
    width: u16,
    height: u16,
    /// Where the height is written.
    height_place: usize,
    frames: usize,
    scans: usize,
    /// Where the first EXIF block is.
    exif: Option<(usize, usize)>,
    /// Rows of a unit of the scan; none where a scan is not the whole image.
    unit_rows: Option<u32>,
}

impl Outline {
    /// Follows the markers to the end marker. The decoder fills what is missing with grey, without a word.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut outline = Self::default();
        let mut place = 2;
        loop {
            // Between segments and inside a scan alike, the next marker is an FF that neither a 00 (a data byte FF) nor
            // an FF (filler) follows.
            place += memchr::memchr(0xFF, bytes.get(place..).unwrap_or_default()).ok_or(TRUNCATED)? + 1;
            let marker = *bytes.get(place).ok_or(TRUNCATED)?;
            match marker {
                0xFF => {}
                0x00 | 0x01 | 0xD0..=0xD8 => place += 1,
                0xD9 => return Ok(outline),
                _ => {
                    let rest = &bytes[place + 1..];
                    let length =
                        rest.get(..2).map(|l| usize::from(u16::from_be_bytes([l[0], l[1]]))).ok_or(TRUNCATED)?;
                    let segment = rest.get(..length.max(2)).ok_or(TRUNCATED)?;
                    outline.note(marker, segment, place + 1)?;
                    place += 1 + segment.len();
                }
            }
        }
    }

    fn note(&mut self, marker: u8, segment: &[u8], place: usize) -> Result<(), String> {
        match marker {
            // A frame: length, bits of a sample, height, width, number of components, three bytes for each of them. C4,
            // C8 and CC are something else.
            0xC0..=0xCF if !matches!(marker, 0xC4 | 0xC8 | 0xCC) => {
                self.frames += 1;
                let &[_, _, _, h0, h1, w0, w1, _, ref components @ ..] = segment else { return Ok(()) };
                require_finest_first(components)?;
                (self.height, self.width) = (u16::from_be_bytes([h0, h1]), u16::from_be_bytes([w0, w1]));
                self.height_place = place + 3;
                let rows = components.chunks_exact(3).map(|component| 8 * u32::from(component[1] & 15)).max();
                // Of the others each scan refines the whole image.
                self.unit_rows = rows.filter(|_| matches!(marker, 0xC0 | 0xC1));
            }
            // An application's block: length, its name, what it holds.
            0xE1 if self.exif.is_none() && segment[2..].starts_with(EXIF) => {
                self.exif = Some((place + 2 + EXIF.len(), place + segment.len()));
            }
            // A scan: length, number of components.
            0xDA => self.scans += 1,
            _ => {}
        }
        Ok(())
    }

    /// Width and height.
    pub(super) fn dimensions(&self) -> (u32, u32) {
        (self.width.into(), self.height.into())
    }

    /// The image's EXIF block, without its name.
    pub(super) fn exif<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        self.exif.and_then(|(start, end)| bytes.get(start..end))
    }

    /// Whether the decoder gets the rows one after the other, from the top.
    pub(super) fn has_rows_in_order(&self) -> bool {
        self.frames == 1 && self.scans == 1 && self.unit_rows.is_some()
    }

    /// Makes the header of the file say that the image ends soon after the first `rows`, so that the decoder stops
    /// there. Only for files that have rows in order.
    pub(super) fn keep_rows(&self, bytes: &mut [u8], rows: u32) {
        // The last row of a unit of 16 gets its colours also from the unit below. Others than 8 and 16 are rare.
        let Some(unit @ (8 | 16)) = self.unit_rows else { return };
        let kept = (rows / unit + 1) * unit;
        if kept < self.height.into()
            && let Some(height) = bytes.get_mut(self.height_place..self.height_place + 2)
        {
            height.copy_from_slice(&(kept as u16).to_be_bytes());
        }
    }
}

/// The decoder takes the first component, which is brightness, to have the most samples, as every camera and program writes it; where it
/// has not, it may reach for places beyond its buffers' ends, and panics. Of each component: its name, samples across and down, and a table's number.
fn require_finest_first(components: &[u8]) -> Result<(), String> {
    let sampling = |component: &[u8]| (component[1] >> 4, component[1] & 15);
    let mut samplings = components.chunks_exact(3).map(sampling);
    let Some((across, down)) = samplings.next() else { return Ok(()) };
    match samplings.find(|&(other_across, other_down)| other_across > across || other_down > down) {
        Some((other_across, other_down)) => Err(format!(
            "a JPEG whose first component has {across} x {down} samples and another {other_across} x {other_down} is not supported; \
             expected the first to have the most"
        )),
        None => Ok(()),
    }
}
