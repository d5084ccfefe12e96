//! How strips and tiles are compressed.

use std::io::Read;

use ruzstd::decoding::{StreamingDecoder, errors::FrameDecoderError};
use weezl::{BitOrder, LzwStatus, decode::Decoder};

use super::directory::{Directory, TRUNCATED, tag, unsupported};
use super::fax::{Rows, Scheme};

const DAMAGED: &str = "broken TIFF data: its compressed rows are damaged";
const LARGE_WINDOW: &str = "broken TIFF data: its Zstandard window is far larger than its rows";

/// The compressions that are supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Fax(Scheme),
    Lzw,
    Jpeg,
    Deflate,
    PackBits,
    Zstd,
}

impl Compression {
    pub(super) fn new(directory: &Directory) -> Result<Self, String> {
        Ok(match directory.number(tag::COMPRESSION)?.unwrap_or(1) {
            1 => Self::None,
            2 => Self::Fax(Scheme::Runs),
            3 if directory.number(tag::FAX_OPTIONS)?.unwrap_or(0) & 1 == 1 => Self::Fax(Scheme::Group3Mixed),
            3 => Self::Fax(Scheme::Group3),
            4 => Self::Fax(Scheme::Group4),
            5 => Self::Lzw,
            7 => Self::Jpeg,
            8 | 32946 => Self::Deflate,
            32773 => Self::PackBits,
            50000 => Self::Zstd,
            other => {
                let name = match other {
                    6 => "old-style JPEG".into(),
                    9 | 10 => "JBIG".into(),
                    32771 => "word-aligned fax".into(),
                    32809 => "ThunderScan".into(),
                    34661 => "JBIG".into(),
                    34676 | 34677 => "LogLuv".into(),
                    33003..=33005 | 34712 => "JPEG 2000".into(),
                    34887 => "LERC".into(),
                    34925 => "LZMA".into(),
                    50001 => "WebP".into(),
                    50002 | 52546 => "JPEG XL".into(),
                    other => format!("unknown ({other})"),
                };
                return Err(unsupported(&format!("{name} compression")));
            }
        })
    }

    /// Whether rows may contain differences.
    pub(super) fn may_predict(self) -> bool {
        matches!(self, Self::Lzw | Self::Deflate | Self::Zstd)
    }
}

/// The rows of a strip or tile.
pub(super) enum Source<'a> {
    Bytes(Box<dyn Read + 'a>),
    Fax(Rows<'a>),
}

impl<'a> Source<'a> {
    /// Reads `data`, which has rows of `width` pixels and `bytes` bytes when decompressed.
    pub(super) fn new(data: &'a [u8], compression: Compression, width: u32, bytes: u64) -> Result<Self, String> {
        Ok(Self::Bytes(match compression {
            Compression::Fax(scheme) => return Ok(Self::Fax(Rows::new(data, width, scheme))),
            Compression::Lzw => {
                Box::new(Lzw { data, decoder: Decoder::with_tiff_size_switch(BitOrder::Msb, 8), has_ended: false })
            }
            Compression::Deflate => Box::new(flate2::bufread::ZlibDecoder::new(data)),
            Compression::PackBits => Box::new(PackBits { data, literal: 0, run: (0, 0) }),
            Compression::Zstd => {
                // Decoders have to support this much, and a header can claim more.
                const MAX_WINDOW_BYTES: u64 = 8 << 20;
                let decoder = StreamingDecoder::new_with_max_window_size(data, bytes.max(MAX_WINDOW_BYTES));
                Box::new(decoder.map_err(|cause| match cause {
                    FrameDecoderError::WindowSizeTooBig { .. } => LARGE_WINDOW,
                    _ => DAMAGED,
                })?)
            }
            Compression::None | Compression::Jpeg => Box::new(data),
        }))
    }

    /// The next row, all of it.
    pub(super) fn read(&mut self, row: &mut [u8]) -> Result<(), String> {
        match self {
            Self::Fax(rows) => rows.read(row),
            Self::Bytes(bytes) => bytes.read_exact(row).map_err(|cause| match cause.kind() {
                std::io::ErrorKind::UnexpectedEof => TRUNCATED.into(),
                // The decoders' own words are for their programmers.
                _ => DAMAGED.into(),
            }),
        }
    }
}

struct Lzw<'a> {
    data: &'a [u8],
    decoder: Decoder,
    has_ended: bool,
}

impl Read for Lzw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while !self.has_ended && !buffer.is_empty() {
            let result = self.decoder.decode_bytes(self.data, buffer);
            self.data = &self.data[result.consumed_in..];
            match result.status {
                Ok(LzwStatus::Ok) => {}
                Ok(LzwStatus::Done | LzwStatus::NoProgress) => self.has_ended = true,
                Err(cause) => return Err(std::io::Error::other(cause)),
            }
            if result.consumed_out > 0 {
                return Ok(result.consumed_out);
            }
        }
        Ok(0)
    }
}

/// Decodes PackBits: literal bytes and runs of one byte.
struct PackBits<'a> {
    data: &'a [u8],
    literal: usize,
    run: (u8, usize),
}

impl Read for PackBits<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.literal == 0 && self.run.1 == 0 {
            match *self.data {
                [count @ 0..=127, ref rest @ ..] => (self.literal, self.data) = (usize::from(count) + 1, rest),
                [128, ref rest @ ..] => self.data = rest,
                [count, byte, ref rest @ ..] => (self.run, self.data) = ((byte, 257 - usize::from(count)), rest),
                _ => return Ok(0),
            }
        }
        if self.literal > 0 {
            let count = self.literal.min(buffer.len()).min(self.data.len());
            buffer[..count].copy_from_slice(&self.data[..count]);
            self.data = &self.data[count..];
            self.literal -= count;
            return Ok(count);
        }
        let count = self.run.1.min(buffer.len());
        buffer[..count].fill(self.run.0);
        self.run.1 -= count;
        Ok(count)
    }
}

/// Completes a strip or tile that is a JPEG with its tables, which may be elsewhere in the file.
pub(super) fn complete_jpeg(data: &[u8], tables: &[u8], is_ycbcr: bool) -> Result<Vec<u8>, String> {
    const START: &[u8] = &[0xFF, 0xD8];
    const END: &[u8] = &[0xFF, 0xD9];
    let tables = tables.strip_prefix(START).unwrap_or(tables);
    let tables = tables.strip_suffix(END).unwrap_or(tables);
    let data = data.strip_prefix(START).ok_or("broken TIFF data: a strip or tile is not a JPEG")?;
    // The TIFF, not the JPEG, says what the samples mean. An Adobe marker says it within a JPEG.
    let meaning = [&b"\xFF\xEE\0\x0EAdobe\0\x64\0\0\0\0"[..], &[u8::from(is_ycbcr)]].concat();
    Ok([START, &meaning, tables, data].concat())
}
