//! Fax codes (ITU-T T.4 and T.6), which TIFF uses for black and white pages.

use std::convert::Infallible;
use std::iter::{Chain, RepeatN};

use fax::maps::{Mode, black, mode, white};
use fax::{BitReader, ByteReader};

const BROKEN: &str = "broken fax data";

/// How the rows are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// Lengths of runs; each row begins with a byte.
    Runs,
    /// Lengths of runs, and marks between the rows.
    Group3,
    /// The same, where a row may be the difference to the one above.
    Group3Mixed,
    /// Differences to the row above.
    Group4,
}

type Bytes<'a> = Chain<
    std::iter::Map<std::iter::Copied<std::slice::Iter<'a, u8>>, fn(u8) -> Result<u8, Infallible>>,
    RepeatN<Result<u8, Infallible>>,
>;

/// Decodes row after row.
pub(super) struct Rows<'a> {
    scheme: Scheme,
    width: u32,
    bits: ByteReader<Bytes<'a>>,
    /// Where the colour changes in the row above and in this one; rows begin white.
    above: Vec<u32>,
    current: Vec<u32>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(data: &'a [u8], width: u32, scheme: Scheme) -> Self {
        // The reader needs whole codes at the end. Zeros are not a code.
        let bytes: Bytes = data.iter().copied().map(Ok as fn(u8) -> _).chain(std::iter::repeat_n(Ok(0), 4));
        let bits = match ByteReader::new(bytes) {
            Ok(bits) => bits,
            Err(never) => match never {},
        };
        Self { scheme, width, bits, above: Vec::new(), current: Vec::new() }
    }

    /// Writes the next row, one bit per pixel, which is set for black.
    pub(super) fn read(&mut self, row: &mut [u8]) -> Result<(), String> {
        self.current.clear();
        match self.scheme {
            Scheme::Runs => {
                self.read_runs()?;
                let rest = self.bits.bits_to_byte_boundary();
                self.consume(rest);
            }
            Scheme::Group3 => {
                self.skip_mark();
                self.read_runs()?;
            }
            Scheme::Group3Mixed => {
                self.skip_mark();
                let is_runs = self.bits.peek(1) == Some(1);
                self.consume(1);
                if is_runs { self.read_runs()? } else { self.read_differences()? }
            }
            Scheme::Group4 => self.read_differences()?,
        }
        row.fill(0);
        for run in self.current.chunks(2) {
            blacken(row, run[0], run.get(1).copied().unwrap_or(self.width));
        }
        std::mem::swap(&mut self.above, &mut self.current);
        Ok(())
    }

    fn consume(&mut self, bits: u8) {
        match self.bits.consume(bits) {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }

    /// A mark between rows is eleven zeros or more and a one. No code of a run begins with that many.
    fn skip_mark(&mut self) {
        if self.bits.peek(11) != Some(0) {
            // The last row may have ended within a byte.
            return;
        }
        while self.bits.peek(1) == Some(0) {
            self.consume(1);
        }
        self.consume(1);
    }

    fn run(&mut self, is_black: bool) -> Result<u32, String> {
        let mut length = 0;
        loop {
            let code = if is_black { black::decode(&mut self.bits) } else { white::decode(&mut self.bits) };
            let code = u32::from(code.ok_or(BROKEN)?);
            length += code;
            if length > self.width {
                return Err(BROKEN.into());
            }
            // Longer runs have a code for their multiple of 64 before that for the rest.
            if code < 64 {
                return Ok(length);
            }
        }
    }

    /// Notes that the colour changes here.
    fn change(&mut self, place: u32) -> Result<(), String> {
        if place > self.width || self.current.last().is_some_and(|&last| last > place) {
            return Err(BROKEN.into());
        }
        self.current.push(place);
        Ok(())
    }

    fn read_runs(&mut self) -> Result<(), String> {
        let (mut place, mut is_black) = (0, false);
        while place < self.width {
            place += self.run(is_black)?;
            self.change(place)?;
            is_black = !is_black;
        }
        Ok(())
    }

    fn read_differences(&mut self) -> Result<(), String> {
        let (mut place, mut is_black, mut is_start) = (0, false, true);
        while place < self.width {
            // The next change above to the other colour, and the one after it.
            let next = self.above.iter().enumerate().skip(self.skippable(place));
            let mut next = next.skip_while(|&(index, &change)| {
                (index % 2 == 1) != is_black || (change <= place && !(is_start && change == 0))
            });
            let first = next.next().map_or(self.width, |(_, &change)| change);
            let second = next.next().map_or(self.width, |(_, &change)| change);
            match mode::decode(&mut self.bits).ok_or(BROKEN)? {
                Mode::Pass => place = second,
                Mode::Vertical(shift) => {
                    place = first.checked_add_signed(shift.into()).ok_or(BROKEN)?;
                    self.change(place)?;
                    is_black = !is_black;
                }
                Mode::Horizontal => {
                    for color in [is_black, !is_black] {
                        place += self.run(color)?;
                        self.change(place)?;
                    }
                }
                Mode::Extension | Mode::EOF => return Err(BROKEN.into()),
            }
            is_start = false;
        }
        Ok(())
    }

    /// How many changes of the row above certainly lie before this place.
    fn skippable(&self, place: u32) -> usize {
        self.above.partition_point(|&change| change < place)
    }
}

fn blacken(row: &mut [u8], from: u32, to: u32) {
    for place in from..to {
        if let Some(byte) = row.get_mut(place as usize / 8) {
            *byte |= 0x80 >> (place % 8);
        }
    }
}
