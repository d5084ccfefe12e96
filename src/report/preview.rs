//! A picture in a terminal: with the graphics of kitty or iTerm2 where the terminal has them, else in half blocks.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::contact_sheet::ContactSheet;
use crate::data::{CropBox, RgbImage, Transformer};

/// Bytes of a piece in kitty's protocol.
const PIECE: usize = 4096;

/// What to write to a terminal of so many columns. Asks the environment what the terminal can do.
pub fn preview(sheet: &ContactSheet, columns: usize) -> Vec<u8> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let (program, terminal) = (variable("TERM_PROGRAM"), variable("TERM"));
    let is_kitty = !variable("KITTY_WINDOW_ID").is_empty() || terminal.contains("kitty") || program == "ghostty";
    let is_iterm = ["iTerm.app", "WezTerm"].contains(&program.as_str());
    // Inside a multiplexer, graphics would not reach the terminal.
    let has_graphics = variable("TMUX").is_empty() && !terminal.starts_with("screen");
    let has_colours = console::colors_enabled();
    match sheet.png() {
        Ok(png) if has_graphics && is_kitty => kitty(&png),
        Ok(png) if has_graphics && is_iterm => iterm(&png),
        _ if has_colours => half_blocks(sheet, columns).into_bytes(),
        _ => Vec::new(),
    }
}

fn kitty(png: &[u8]) -> Vec<u8> {
    let text = BASE64_STANDARD.encode(png);
    let pieces: Vec<&[u8]> = text.as_bytes().chunks(PIECE).collect();
    let mut output = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let more = u8::from(index + 1 < pieces.len());
        let keys = if index == 0 { format!("a=T,f=100,m={more}") } else { format!("m={more}") };
        output.extend_from_slice(format!("\x1b_G{keys};").as_bytes());
        output.extend_from_slice(piece);
        output.extend_from_slice(b"\x1b\\");
    }
    output.push(b'\n');
    output
}

fn iterm(png: &[u8]) -> Vec<u8> {
    let text = BASE64_STANDARD.encode(png);
    format!("\x1b]1337;File=inline=1;size={};preserveAspectRatio=1:{text}\x07\n", png.len()).into_bytes()
}

/// Two pixels a letter: the upper one is the ink, the lower one the paper.
fn half_blocks(sheet: &ContactSheet, columns: usize) -> String {
    let width = (columns.clamp(20, 200) as u32).min(sheet.width);
    let height = (u64::from(sheet.height) * u64::from(width) / u64::from(sheet.width)).max(2) as u32 & !1;
    let image = RgbImage { width: sheet.width, height: sheet.height, pixels: sheet.pixels.clone() };
    let whole = CropBox { top: 0, left: 0, height: sheet.height, width: sheet.width };
    let mut pixels = vec![0; (width * height * 3) as usize];
    if Transformer::default().resized_crop(&image, whole, width, height, &mut pixels).is_err() {
        return String::new();
    }
    let line = width as usize * 3;
    let mut text = String::new();
    for lines in pixels.chunks_exact(2 * line) {
        let (upper, lower) = lines.split_at(line);
        for (ink, paper) in upper.chunks_exact(3).zip(lower.chunks_exact(3)) {
            let _ = write!(
                text,
                "\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m\u{2580}",
                ink[0], ink[1], ink[2], paper[0], paper[1], paper[2]
            );
        }
        text.push_str("\x1b[0m\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet() -> ContactSheet {
        let pixels = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]];
        let row = |colours: [[u8; 3]; 2]| colours.into_iter().flat_map(|colour| colour.repeat(20)).collect::<Vec<u8>>();
        let rows = (0..40).flat_map(|y| row(if y < 20 { [pixels[0], pixels[1]] } else { [pixels[2], pixels[3]] }));
        ContactSheet { width: 40, height: 40, pixels: rows.collect() }
    }

    #[test]
    fn half_blocks_have_the_colours_of_the_picture() {
        let text = half_blocks(&sheet(), 20);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 10);
        assert!(lines.iter().all(|line| line.matches('\u{2580}').count() == 20 && line.ends_with("\x1b[0m")));
        assert!(lines[0].starts_with("\x1b[38;2;255;0;0m\x1b[48;2;255;0;0m"), "{:?}", lines[0]);
        assert!(lines[9].contains("\x1b[38;2;255;255;255m"), "{:?}", lines[9]);
    }

    #[test]
    fn graphics_carry_the_whole_file() {
        let png: Vec<u8> = (0..10_000u32).map(|value| value as u8).collect();
        let text = String::from_utf8(kitty(&png)).unwrap();
        let pieces = text.split("\x1b_G").skip(1).map(|piece| piece.split_once(';').unwrap());
        let pieces: Vec<(&str, &str)> = pieces.map(|(keys, rest)| (keys, rest.split_once('\x1b').unwrap().0)).collect();
        assert!(pieces[0].0.starts_with("a=T,f=100,m=1") && pieces[pieces.len() - 1].0 == "m=0");
        let joined: String = pieces.iter().map(|piece| piece.1).collect();
        assert_eq!(BASE64_STANDARD.decode(joined).unwrap(), png);
        assert!(pieces.iter().all(|piece| piece.1.len() <= PIECE));
        assert!(String::from_utf8(iterm(&png)).unwrap().contains(&BASE64_STANDARD.encode(&png)));
    }
}
