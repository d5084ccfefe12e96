//! Images in a terminal: by the graphics protocol of kitty or iTerm2 where the terminal supports one, else as half blocks.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::contact_sheet::ContactSheet;
use crate::data::{CropBox, RgbImage, Transformer};

/// The largest chunk of kitty's protocol, in bytes.
const CHUNK: usize = 4096;

/// The bytes that show a contact sheet in a terminal `columns` wide. The environment determines what the terminal supports.
pub fn preview(sheet: &ContactSheet, columns: usize) -> Vec<u8> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let (program, terminal) = (variable("TERM_PROGRAM"), variable("TERM"));
    let is_kitty = !variable("KITTY_WINDOW_ID").is_empty() || terminal.contains("kitty") || program == "ghostty";
    let is_iterm = ["iTerm.app", "WezTerm"].contains(&program.as_str());
    // A terminal multiplexer does not pass graphics on.
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
    let chunks: Vec<&[u8]> = text.as_bytes().chunks(CHUNK).collect();
    let mut output = Vec::new();
    for (index, chunk) in chunks.iter().enumerate() {
        let more = u8::from(index + 1 < chunks.len());
        let keys = if index == 0 { format!("a=T,f=100,m={more}") } else { format!("m={more}") };
        output.extend_from_slice(format!("\x1b_G{keys};").as_bytes());
        output.extend_from_slice(chunk);
        output.extend_from_slice(b"\x1b\\");
    }
    output.push(b'\n');
    output
}

fn iterm(png: &[u8]) -> Vec<u8> {
    let text = BASE64_STANDARD.encode(png);
    format!("\x1b]1337;File=inline=1;size={};preserveAspectRatio=1:{text}\x07\n", png.len()).into_bytes()
}

/// Two pixels per character: the upper one is the foreground, the lower one the background.
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
        for (upper, lower) in upper.chunks_exact(3).zip(lower.chunks_exact(3)) {
            let _ = write!(
                text,
                "\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m\u{2580}",
                upper[0], upper[1], upper[2], lower[0], lower[1], lower[2]
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
    fn half_blocks_have_the_colours_of_the_image() {
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
        let chunks = text.split("\x1b_G").skip(1).map(|chunk| chunk.split_once(';').unwrap());
        let chunks: Vec<(&str, &str)> = chunks.map(|(keys, rest)| (keys, rest.split_once('\x1b').unwrap().0)).collect();
        assert!(chunks[0].0.starts_with("a=T,f=100,m=1") && chunks[chunks.len() - 1].0 == "m=0");
        let joined: String = chunks.iter().map(|chunk| chunk.1).collect();
        assert_eq!(BASE64_STANDARD.decode(joined).unwrap(), png);
        assert!(chunks.iter().all(|chunk| chunk.1.len() <= CHUNK));
        assert!(String::from_utf8(iterm(&png)).unwrap().contains(&BASE64_STANDARD.encode(&png)));
    }
}
