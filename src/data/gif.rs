//! GIF: the first frame, on the screen that the file describes.

use weezl::{BitOrder, LzwStatus, decode::Decoder};

use super::samples::{Form, Palette, RequirePixels};

const TRUNCATED: &str = "truncated GIF: the data end before the first frame does";

pub(super) fn decode(bytes: &[u8], require: RequirePixels, samples: &mut Vec<u8>) -> Result<Form, String> {
    let mut file = Reader { bytes, place: 6 };
    let (mut width, mut height) = (file.number()?, file.number()?);
    let [flags, _, _] = file.take()?;
    let mut palette = file.palette(flags)?;
    // Where the frame does not cover the screen, Pillow shows the transparent colour.
    let mut backdrop = 0;
    loop {
        match file.take()? {
            [b'!'] => {
                let [label] = file.take()?;
                let block = file.block()?;
                if let (0xF9, &[flags, _, _, transparent, ..]) = (label, block)
                    && flags & 1 == 1
                {
                    backdrop = transparent;
                }
                if !block.is_empty() {
                    while !file.block()?.is_empty() {}
                }
            }
            [b','] => break,
            [b';'] => return Err("the GIF holds no frame".into()),
            // Pillow skips other bytes between blocks.
            _ => {}
        }
    }
    let (left, top, columns, rows) = (file.number()?, file.number()?, file.number()?, file.number()?);
    let [flags] = file.take()?;
    if let Some(own) = file.palette(flags)? {
        palette = Some(own);
    }
    let [bits] = file.take()?;
    if !(1..=11).contains(&bits) {
        return Err(format!("broken GIF data: codes of {bits} bits; expected 2 to 8"));
    }

    (width, height) = (width.max(left + columns), height.max(top + rows));
    let pixels = require(width, height)?;
    samples.clear();
    samples.resize(pixels, backdrop);
    let mut codes = Codes { file, decoder: Decoder::new(BitOrder::Lsb, bits), block: &[], has_ended: false };
    let mut row = vec![0; columns as usize];
    for place in order(rows, flags & 0x40 != 0) {
        codes.fill(&mut row)?;
        let start = (top + place) as usize * width as usize + left as usize;
        samples[start..start + row.len()].copy_from_slice(&row);
    }
    let channels = match palette {
        Some(palette) => {
            palette.apply(samples);
            3
        }
        None => 1,
    };
    Ok(Form::upright(width, height, channels))
}

/// The order in which rows are stored: if interlaced, every eighth row first, then those between.
fn order(rows: u32, is_interlaced: bool) -> Box<dyn Iterator<Item = u32>> {
    match is_interlaced {
        false => Box::new(0..rows),
        true => Box::new(
            [(0, 8), (4, 8), (2, 4), (1, 2)].into_iter().flat_map(move |(first, step)| (first..rows).step_by(step)),
        ),
    }
}

#[derive(Debug, Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    place: usize,
}

impl<'a> Reader<'a> {
    fn slice(&mut self, length: usize) -> Result<&'a [u8], String> {
        let slice = self.bytes.get(self.place..self.place + length).ok_or(TRUNCATED)?;
        self.place += length;
        Ok(slice)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.slice(N)?.try_into().expect("the slice has this length"))
    }

    fn number(&mut self) -> Result<u32, String> {
        self.take().map(|bytes| u16::from_le_bytes(bytes).into())
    }

    /// A block of data; an empty one ends them.
    fn block(&mut self) -> Result<&'a [u8], String> {
        let [length] = self.take()?;
        self.slice(length.into())
    }

    /// The palette, if the flags say that there is one.
    fn palette(&mut self, flags: u8) -> Result<Option<Palette>, String> {
        if flags & 0x80 == 0 {
            return Ok(None);
        }
        let colors = self.slice(3 << ((flags & 7) + 1))?;
        Ok(Some(Palette::new(colors.as_chunks().0.iter().copied())))
    }
}

/// The indices of the colours, compressed in blocks.
struct Codes<'a> {
    file: Reader<'a>,
    decoder: Decoder,
    block: &'a [u8],
    has_ended: bool,
}

impl Codes<'_> {
    fn fill(&mut self, mut row: &mut [u8]) -> Result<(), String> {
        while !row.is_empty() {
            if self.block.is_empty() && !self.has_ended {
                // Pillow reads a file without the empty block that ends the frame.
                let is_over = self.file.place == self.file.bytes.len();
                self.block = if is_over { &[] } else { self.file.block()? };
                self.has_ended = self.block.is_empty();
            }
            let result = self.decoder.decode_bytes(self.block, row);
            self.block = &self.block[result.consumed_in..];
            row = &mut row[result.consumed_out..];
            match result.status {
                Ok(LzwStatus::Ok) => {}
                Ok(LzwStatus::NoProgress) if !self.has_ended => {}
                Ok(LzwStatus::Done) if row.is_empty() => {}
                Ok(_) => return Err(TRUNCATED.into()),
                Err(cause) => return Err(format!("broken GIF data: {cause}")),
            }
        }
        Ok(())
    }
}
