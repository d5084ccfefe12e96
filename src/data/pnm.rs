//! Portable bitmaps, greymaps, pixmaps and anymaps: P1 to P7.

use super::samples::{Form, RequirePixels, of_255, packed};

const TRUNCATED: &str = "truncated PNM: the data end before the last row";

/// The longest number in a header.
const LONGEST: usize = 10;

pub(super) fn decode(bytes: &[u8], require: RequirePixels, samples: &mut Vec<u8>) -> Result<Form, String> {
    let mut file = Reader { rest: &bytes[2..] };
    let kind = bytes[1];
    let (width, height, channels, most) = match kind {
        b'7' => file.anymap()?,
        _ => {
            let (width, height) = (file.number()?, file.number()?);
            let most = if matches!(kind, b'1' | b'4') { 1 } else { file.number()? };
            (width, height, if matches!(kind, b'3' | b'6') { 3 } else { 1 }, most)
        }
    };
    if !(1..=65535).contains(&most) {
        return Err(format!("broken PNM data: its largest value is {most}; expected 1 to 65535"));
    }
    let pixels = require(width, height)?;
    let count = pixels * channels;
    // A sample takes at least a bit.
    if file.rest.len() < count / 8 {
        return Err(TRUNCATED.into());
    }
    samples.clear();
    let is_whole = match kind {
        b'1' => {
            while samples.len() < count {
                samples.push(if file.digit()? { 0 } else { 255 });
            }
            true
        }
        b'2' | b'3' => {
            while samples.len() < count {
                match file.number()? {
                    value if value > most => {
                        return Err(format!("broken PNM data: a value is {value}, more than its largest of {most}"));
                    }
                    value => samples.push(of_255(value, most)),
                }
            }
            true
        }
        b'4' => {
            let stride = (width as usize).div_ceil(8);
            for row in file.rest.chunks_exact(stride).take(height as usize) {
                samples.extend(packed(row, 1).take(width as usize).map(|bit| if bit == 1 { 0 } else { 255 }));
            }
            samples.len() == count
        }
        _ if most < 256 => {
            let table: Vec<u8> = (0..256).map(|value| of_255(value, most)).collect();
            samples.extend(file.rest.iter().take(count).map(|&value| table[usize::from(value)]));
            samples.len() == count
        }
        _ => {
            let values = file.rest.as_chunks().0.iter().take(count).map(|&value| u16::from_be_bytes(value));
            samples.extend(values.map(|value| of_255(value.into(), most)));
            samples.len() == count
        }
    };
    match is_whole {
        true => Ok(Form::upright(width, height, channels)),
        false => Err(TRUNCATED.into()),
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Skips space, and comments, which reach to the end of their line.
    fn skip(&mut self) {
        loop {
            match self.rest {
                [b'#', ..] => {
                    let end = self.rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
                    self.rest = &self.rest[end.unwrap_or(self.rest.len())..];
                }
                [byte, rest @ ..] if is_space(*byte) => self.rest = rest,
                _ => break,
            }
        }
    }

    /// The next word. Consumes one space after it.
    fn word(&mut self) -> Result<&'a [u8], String> {
        self.skip();
        let length = self.rest.iter().position(|&byte| is_space(byte) || byte == b'#').unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(length);
        self.rest = match rest {
            [b'#', ..] => rest,
            _ => rest.get(1..).unwrap_or_default(),
        };
        if word.is_empty() { Err(TRUNCATED.into()) } else { Ok(word) }
    }

    fn number(&mut self) -> Result<u32, String> {
        let word = self.word()?;
        let text = std::str::from_utf8(word).ok().filter(|text| text.len() <= LONGEST);
        text.and_then(|text| text.parse().ok()).ok_or_else(|| {
            let start = &word[..word.len().min(LONGEST)];
            format!("broken PNM data: expected a number, found \"{}\"", start.escape_ascii())
        })
    }

    /// A pixel of a plain bitmap, where spaces between pixels are optional.
    fn digit(&mut self) -> Result<bool, String> {
        self.skip();
        let (digit, rest) = self.rest.split_first().ok_or(TRUNCATED)?;
        self.rest = rest;
        match digit {
            b'0' | b'1' => Ok(*digit == b'1'),
            other => Err(format!("broken PNM data: expected 0 or 1, found \"{}\"", other.escape_ascii())),
        }
    }

    /// The header of a P7: width, height, channels, largest value.
    fn anymap(&mut self) -> Result<(u32, u32, usize, u32), String> {
        let (mut width, mut height, mut channels, mut most) = (0, 0, 0, 0);
        loop {
            match self.word()? {
                b"WIDTH" => width = self.number()?,
                b"HEIGHT" => height = self.number()?,
                b"DEPTH" => channels = self.number()?,
                b"MAXVAL" => most = self.number()?,
                b"ENDHDR" => break,
                _ => {}
            }
        }
        match channels {
            1..=4 => Ok((width, height, channels as usize, most)),
            other => Err(format!("the PNM image has {other} channels; expected 1 to 4")),
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C)
}
