//! The tags of a page.

use std::mem::size_of;

pub(super) const TRUNCATED: &str = "truncated TIFF: the data end before the last row";

pub(super) fn unsupported(what: &str) -> String {
    format!("a TIFF with {what} is not supported")
}

/// The tags that are read.
pub(super) mod tag {
    pub const WIDTH: u16 = 256;
    pub const HEIGHT: u16 = 257;
    pub const BITS: u16 = 258;
    pub const COMPRESSION: u16 = 259;
    pub const MEANING: u16 = 262;
    pub const FILL_ORDER: u16 = 266;
    pub const STRIP_OFFSETS: u16 = 273;
    pub const ORIENTATION: u16 = 274;
    pub const SAMPLES: u16 = 277;
    pub const STRIP_ROWS: u16 = 278;
    pub const STRIP_LENGTHS: u16 = 279;
    pub const PLANES: u16 = 284;
    pub const FAX_OPTIONS: u16 = 292;
    pub const PREDICTOR: u16 = 317;
    pub const PALETTE: u16 = 320;
    pub const TILE_WIDTH: u16 = 322;
    pub const TILE_HEIGHT: u16 = 323;
    pub const TILE_OFFSETS: u16 = 324;
    pub const TILE_LENGTHS: u16 = 325;
    pub const EXTRA_SAMPLES: u16 = 338;
    pub const NUMBERS: u16 = 339;
    pub const JPEG_TABLES: u16 = 347;
    pub const COEFFICIENTS: u16 = 529;
    pub const SUBSAMPLING: u16 = 530;
    pub const REFERENCE_BLACK_WHITE: u16 = 532;
}

const BROKEN: &str = "truncated or broken TIFF: its directory points beyond the end";

/// The first directory of a file.
pub(super) struct Directory<'a> {
    bytes: &'a [u8],
    pub is_big_endian: bool,
    is_big: bool,
    /// Where the entries are, and how many.
    start: usize,
    count: usize,
}

/// The value of a tag: its type, and the bytes of all its elements.
struct Value<'a> {
    kind: u16,
    bytes: &'a [u8],
}

impl<'a> Directory<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let is_big_endian = bytes.starts_with(b"MM");
        let is_big = bytes.get(2..4).is_some_and(|version| version.contains(&43));
        let mut directory = Self { bytes, is_big_endian, is_big, start: 0, count: 0 };
        let place = directory.at(if is_big { 8 } else { 4 }, if is_big { 8 } else { 4 })?;
        let place = usize::try_from(place).map_err(|_| BROKEN)?;
        let count_bytes = if is_big { 8 } else { 2 };
        // There are not more tags. All entries are read for every tag.
        directory.count = directory.at(place, count_bytes)?.min(1 << 16) as usize;
        directory.start = place + count_bytes;
        Ok(directory)
    }

    /// A number of `width` bytes.
    fn at(&self, place: usize, width: usize) -> Result<u64, String> {
        let bytes = place.checked_add(width).and_then(|end| self.bytes.get(place..end)).ok_or(BROKEN)?;
        Ok(self.fold(bytes))
    }

    fn fold(&self, bytes: &[u8]) -> u64 {
        let append = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        if self.is_big_endian { bytes.iter().fold(0, append) } else { bytes.iter().rev().fold(0, append) }
    }

    fn find(&self, tag: u16) -> Result<Option<Value<'a>>, String> {
        let (entry_bytes, word) = if self.is_big { (20, 8) } else { (12, 4) };
        for index in 0..self.count {
            let entry = self.start + index * entry_bytes;
            if self.at(entry, 2)? != u64::from(tag) {
                continue;
            }
            let kind = self.at(entry + 2, 2)? as u16;
            let width = match kind {
                1 | 2 | 6 | 7 => 1,
                3 | 8 => 2,
                4 | 9 | 11 | 13 => 4,
                5 | 10 | 12 | 16 | 17 | 18 => 8,
                _ => return Err(format!("broken TIFF data: tag {tag} has the unknown type {kind}")),
            };
            let count = self.at(entry + 4, word)?;
            let length = count.checked_mul(width).and_then(|length| usize::try_from(length).ok()).ok_or(BROKEN)?;
            let mut place = entry + 4 + word;
            if length > word {
                place = usize::try_from(self.at(place, word)?).map_err(|_| BROKEN)?;
            }
            let bytes = place.checked_add(length).and_then(|end| self.bytes.get(place..end)).ok_or(BROKEN)?;
            return Ok(Some(Value { kind, bytes }));
        }
        Ok(None)
    }

    pub(super) fn has(&self, tag: u16) -> bool {
        matches!(self.find(tag), Ok(Some(_)))
    }

    /// The elements of a tag that are whole numbers.
    pub(super) fn numbers(&self, tag: u16) -> Result<Option<Vec<u64>>, String> {
        let Some(value) = self.find(tag)? else { return Ok(None) };
        let width = match value.kind {
            1 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 | 13 => 4,
            16..=18 => size_of::<u64>(),
            kind => return Err(format!("broken TIFF data: tag {tag} has type {kind}; expected whole numbers")),
        };
        Ok(Some(value.bytes.chunks_exact(width).map(|bytes| self.fold(bytes)).collect()))
    }

    /// The first element of a tag.
    pub(super) fn number(&self, tag: u16) -> Result<Option<u64>, String> {
        Ok(self.numbers(tag)?.and_then(|numbers| numbers.first().copied()))
    }

    /// The elements of a tag as they are in the file.
    pub(super) fn raw(&self, tag: u16) -> Result<Option<&'a [u8]>, String> {
        Ok(self.find(tag)?.map(|value| value.bytes))
    }

    /// The first `N` elements of a tag that are fractions or floats.
    pub(super) fn fractions<const N: usize>(&self, tag: u16) -> Result<Option<[f32; N]>, String> {
        const FRACTION: u16 = 5;
        const FLOAT: u16 = 11;
        let Some(value) = self.find(tag)? else { return Ok(None) };
        let element = |index: usize| match value.kind {
            FRACTION => value.bytes.get(8 * index..8 * index + 8).map(|bytes| {
                let (upper, lower) = (self.fold(&bytes[..4]), self.fold(&bytes[4..]));
                if lower == 0 { 0.0 } else { upper as f32 / lower as f32 }
            }),
            FLOAT => value.bytes.get(4 * index..4 * index + 4).map(|bytes| f32::from_bits(self.fold(bytes) as u32)),
            _ => None,
        };
        let mut elements = [0.0; N];
        for (index, place) in elements.iter_mut().enumerate() {
            match element(index) {
                Some(value) if value.is_finite() => *place = value,
                _ => return Ok(None),
            }
        }
        Ok(Some(elements))
    }
}
