//! Executes the edits of a transform on the CPU: geometry and colours of an image that is already scaled.

use super::rgb_image::KEPT_BYTES;
use crate::device::{AffineMap, Colour, Edits};

/// What each byte becomes, for each channel.
type Tables = [[u8; 256]; 3];

/// Edits images, one after the other, in the same buffer.
#[derive(Debug, Default)]
pub(super) struct Editor {
    copy: Vec<u8>,
}

impl Editor {
    /// Applies an affine map and operations on colours to a square image, `[size, size, BYTES]`.
    pub(super) fn edit<const BYTES: usize>(&mut self, pixels: &mut [u8], size: usize, edits: &Edits) {
        if let Some(map) = &edits.affine {
            self.keep(pixels);
            transform(self.copy.as_chunks::<BYTES>().0, pixels.as_chunks_mut::<BYTES>().0, size, map);
        }
        for &colour in edits.colours.iter().flatten() {
            let pixels = pixels.as_chunks_mut::<BYTES>().0;
            match colour {
                Colour::Brightness(factor) => {
                    look_up(pixels, &[std::array::from_fn(|byte| blend(0, byte as u8, factor)); 3]);
                }
                Colour::Contrast(factor) => {
                    let mean = mean_grey(pixels);
                    look_up(pixels, &[std::array::from_fn(|byte| blend(mean, byte as u8, factor)); 3]);
                }
                Colour::Saturation(factor) => {
                    for pixel in pixels {
                        let level = grey(pixel);
                        pixel[..3].iter_mut().for_each(|byte| *byte = blend(level, *byte, factor));
                    }
                }
                Colour::Hue(shift) => pixels.iter_mut().for_each(|pixel| turn_hue(pixel, shift)),
                Colour::Sharpness(factor) => {
                    self.keep(pixels.as_flattened());
                    sharpen(self.copy.as_chunks::<BYTES>().0, pixels, size, factor);
                }
                Colour::Posterize(bits) => {
                    let mask = !0_u8 << (8 - bits.clamp(1, 8));
                    look_up(pixels, &[std::array::from_fn(|byte| byte as u8 & mask); 3]);
                }
                Colour::Solarize(threshold) => {
                    let inverted = |byte: usize| if byte < threshold as usize { byte as u8 } else { 255 - byte as u8 };
                    look_up(pixels, &[std::array::from_fn(inverted); 3]);
                }
                Colour::AutoContrast => {
                    let tables = histograms(pixels).map(|histogram| stretched(&histogram));
                    look_up(pixels, &tables);
                }
                Colour::Equalize => {
                    let tables = histograms(pixels).map(|histogram| equalized(&histogram));
                    look_up(pixels, &tables);
                }
            }
        }
        if self.copy.capacity() > KEPT_BYTES {
            self.copy = Vec::new();
        }
    }

    fn keep(&mut self, pixels: &[u8]) {
        self.copy.clear();
        self.copy.extend_from_slice(pixels);
    }
}

fn look_up<const BYTES: usize>(pixels: &mut [[u8; BYTES]], tables: &Tables) {
    for pixel in pixels {
        for (byte, table) in pixel.iter_mut().zip(tables) {
            *byte = table[usize::from(*byte)];
        }
    }
}

/// Pillow's `Image.blend` of two bytes, in float32.
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    (f32::from(from) + factor * (f32::from(to) - f32::from(from))).clamp(0.0, 255.0) as u8
}

/// Pillow's conversion to `L`.
fn grey<const BYTES: usize>(pixel: &[u8; BYTES]) -> u8 {
    let [red, green, blue] = [0, 1, 2].map(|channel| u32::from(pixel[channel]));
    ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16) as u8
}

/// The mean of a grey image, rounded as Pillow rounds it for the contrast.
fn mean_grey<const BYTES: usize>(pixels: &[[u8; BYTES]]) -> u8 {
    let count = pixels.len() as u64;
    let sum: u64 = pixels.iter().map(|pixel| u64::from(grey(pixel))).sum();
    ((2 * sum + count) / (2 * count).max(1)) as u8
}

/// Pillow's conversion to `HSV` and back, with `shift` added to the hue in between. Pillow computes in float32 and float64 by turns, and
/// truncates the hue; elsewhere, integers give the same.
fn turn_hue<const BYTES: usize>(pixel: &mut [u8; BYTES], shift: u8) {
    let [red, green, blue] = [pixel[0], pixel[1], pixel[2]];
    let (most, least) = (red.max(green).max(blue), red.min(green).min(blue));
    if most == least {
        return;
    }
    let range = f32::from(most - least);
    let share = |byte: u8| f64::from(f32::from(most - byte) / range);
    let sixths = if red == most {
        share(blue) - share(green)
    } else if green == most {
        2.0 + share(red) - share(blue)
    } else {
        4.0 + share(green) - share(red)
    };
    let turned = f64::from(sixths as f32) / 6.0 + 1.0;
    let hue = (if turned >= 1.0 { turned - 1.0 } else { turned }) as f32;
    let hue = u32::from(((f64::from(hue) * 255.0) as u8).wrapping_add(shift));
    let value = u32::from(most);
    let saturation = 255 * u32::from(most - least) / value;
    let (sector, rest) = (hue * 6 / 255, hue * 6 % 255);
    // In 1 / 255^2 of the value, rounded.
    let of_value = |share: u32| ((2 * value * share + 255 * 255) / (2 * 255 * 255)) as u8;
    let low = of_value(255 * (255 - saturation));
    let falling = of_value(255 * 255 - saturation * rest);
    let rising = of_value(255 * 255 - saturation * (255 - rest));
    let colour = match sector % 6 {
        // Pillow takes a hue without saturation as grey.
        _ if saturation == 0 => [most; 3],
        0 => [most, rising, low],
        1 => [falling, most, low],
        2 => [low, most, rising],
        3 => [low, falling, most],
        4 => [rising, low, most],
        _ => [most, low, falling],
    };
    pixel[..3].copy_from_slice(&colour);
}

/// Pillow's `ImageEnhance.Sharpness`: blends a smoothed image, of which the edges are not smoothed, with the image.
fn sharpen<const BYTES: usize>(source: &[[u8; BYTES]], output: &mut [[u8; BYTES]], size: usize, factor: f32) {
    for y in 1..size.saturating_sub(1) {
        for x in 1..size - 1 {
            let centre = y * size + x;
            for channel in 0..3 {
                let byte = |place: usize| u32::from(source[place][channel]);
                let row = |place: usize| byte(place - 1) + byte(place) + byte(place + 1);
                let sum = row(centre - size) + row(centre) + row(centre + size) + 4 * byte(centre);
                let smooth = (2 * sum + 13) / 26;
                output[centre][channel] = blend(smooth as u8, source[centre][channel], factor);
            }
        }
    }
}

/// How often each byte occurs in each channel.
fn histograms<const BYTES: usize>(pixels: &[[u8; BYTES]]) -> [[u64; 256]; 3] {
    let mut counts = [[0; 256]; 3];
    for pixel in pixels {
        for (byte, counts) in pixel.iter().zip(&mut counts) {
            counts[usize::from(*byte)] += 1;
        }
    }
    counts
}

/// Pillow's `ImageOps.autocontrast` of a channel.
fn stretched(histogram: &[u64; 256]) -> [u8; 256] {
    let occurs = |byte: &usize| histogram[*byte] > 0;
    let (lowest, highest) = ((0..256).find(occurs).unwrap_or(0), (0..256).rev().find(occurs).unwrap_or(0));
    if highest <= lowest {
        return std::array::from_fn(|byte| byte as u8);
    }
    let scale = 255.0 / (highest - lowest) as f64;
    let offset = -(lowest as f64) * scale;
    std::array::from_fn(|byte| (byte as f64 * scale + offset) as u8)
}

/// Pillow's `ImageOps.equalize` of a channel.
fn equalized(histogram: &[u64; 256]) -> [u8; 256] {
    let all: u64 = histogram.iter().sum();
    let last = histogram.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
    let step = (all - last) / 255;
    if step == 0 {
        return std::array::from_fn(|byte| byte as u8);
    }
    let mut below = step / 2;
    histogram.map(|count| {
        let level = (below / step).min(255) as u8;
        below += count;
        level
    })
}

/// Pillow's `transform(..., AFFINE, ..., BILINEAR)`, with weights of 16 bits instead of float64: some bytes differ by one.
fn transform<const BYTES: usize>(source: &[[u8; BYTES]], output: &mut [[u8; BYTES]], size: usize, map: &AffineMap) {
    let end = (size as i64) << 32;
    let last = size as i64 - 1;
    for (y, row) in (0..).zip(output.chunks_mut(size.max(1))) {
        for (x, pixel) in (0..).zip(row) {
            let at = |[of_x, of_y, offset]: [i64; 3]| of_x * x + of_y * y + offset;
            let (across, down) = (at(map.across), at(map.down));
            if across < 0 || across >= end || down < 0 || down >= end {
                *pixel = [0; BYTES];
                continue;
            }
            let half = 1 << 31;
            let (across, down) = (across - half, down - half);
            let place = |along: i64| [along >> 32, (along >> 32) + 1].map(|place| place.clamp(0, last) as usize);
            let ([left, right], [top, bottom]) = (place(across), place(down));
            let weight = |along: i64| (along >> 16) & 0xffff;
            let (of_right, of_bottom) = (weight(across), weight(down));
            for channel in 0..3 {
                let byte = |row: usize, column: usize| i64::from(source[row * size + column][channel]);
                let in_row = |row: usize| (byte(row, left) << 16) + (byte(row, right) - byte(row, left)) * of_right;
                let (above, below) = (in_row(top), in_row(bottom));
                pixel[channel] = (((above << 16) + (below - above) * of_bottom) >> 32) as u8;
            }
        }
    }
}
