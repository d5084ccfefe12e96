//! Colours of TIFF other than red, green and blue, as Pillow and the libraries below it convert them.

use super::directory::{Directory, tag};

/// Converts pixels of three or four samples to RGB in place.
pub(super) fn convert(samples: &mut Vec<u8>, channels: usize, rgb: impl Fn(&[u8]) -> [u8; 3]) {
    let pixels = samples.len() / channels;
    for pixel in 0..pixels {
        let color = rgb(&samples[pixel * channels..(pixel + 1) * channels]);
        samples[3 * pixel..3 * pixel + 3].copy_from_slice(&color);
    }
    samples.truncate(3 * pixels);
}

pub(super) fn of_cmyk(pixel: &[u8]) -> [u8; 3] {
    let light = 255 - pixel[3];
    [0, 1, 2].map(|channel| light.saturating_sub(product(pixel[channel], light)))
}

/// The product of two fractions of 255, rounded.
fn product(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    ((product + (product >> 8)) >> 8) as u8
}

/// Undoes the multiplication of a pixel's colours by its alpha.
pub(super) fn divide_by_alpha(pixel: &mut [u8]) {
    let Some((&mut alpha, colors)) = pixel.split_last_mut() else { return };
    for color in colors {
        *color = (u32::from(*color) * 255).checked_div(alpha.into()).map_or(0, |color| color.min(255) as u8);
    }
}

/// Tables for the conversion of YCbCr, in fixed-point numbers.
pub(super) struct YCbCr {
    brightness: [i32; 256],
    red: [i32; 256],
    green: ([i32; 256], [i32; 256]),
    blue: [i32; 256],
    shift: u32,
}

impl YCbCr {
    /// Pillow converts uncompressed images itself, with the usual coefficients; libtiff converts the others.
    pub(super) fn new(directory: &Directory, is_raw: bool) -> Result<Self, String> {
        if is_raw {
            return Ok(Self::usual());
        }
        let [red, green, blue] = directory.fractions(tag::COEFFICIENTS)?.unwrap_or([0.299, 0.587, 0.114]);
        let range: [f32; 6] =
            directory.fractions(tag::REFERENCE_BLACK_WHITE)?.unwrap_or([0.0, 255.0, 128.0, 255.0, 128.0, 255.0]);
        const SHIFT: u32 = 16;
        const HALF: i32 = 1 << (SHIFT - 1);
        let fixed = |factor: f32| (f64::from(factor.clamp(0.0, 2.0)) * f64::from(1 << SHIFT) + 0.5) as i32;
        let (of_red, of_blue) = (2.0 - 2.0 * red, 2.0 - 2.0 * blue);
        let (d1, d3) = (fixed(of_red), fixed(of_blue));
        let (d2, d4) = (-fixed(red * of_red / green), -fixed(blue * of_blue / green));
        let value = |code: f32, black: f32, white: f32, most: f32| {
            let width = if white - black == 0.0 { 1.0 } else { white - black };
            ((code - black) * most / width).clamp(-128.0 * 32.0, 128.0 * 32.0) as i32
        };
        let difference = |index: usize, first: usize| {
            value(index as f32 - 128.0, range[first] - 128.0, range[first + 1] - 128.0, 127.0)
        };
        let (cb, cr) = (|index| difference(index, 2), |index| difference(index, 4));
        Ok(Self {
            brightness: std::array::from_fn(|index| value(index as f32, range[0], range[1], 255.0)),
            red: std::array::from_fn(|index| (d1 * cr(index) + HALF) >> SHIFT),
            green: (std::array::from_fn(|index| d4 * cb(index) + HALF), std::array::from_fn(|index| d2 * cr(index))),
            blue: std::array::from_fn(|index| (d3 * cb(index) + HALF) >> SHIFT),
            shift: SHIFT,
        })
    }

    fn usual() -> Self {
        const SHIFT: u32 = 6;
        let scaled = |factor: f64, index: usize| (factor * (index as f64 - 128.0) * f64::from(1 << SHIFT) + 0.5) as i32;
        Self {
            brightness: std::array::from_fn(|index| index as i32),
            red: std::array::from_fn(|index| scaled(1.402, index) >> SHIFT),
            green: (
                std::array::from_fn(|index| scaled(-0.34414, index)),
                std::array::from_fn(|index| scaled(-0.71414, index)),
            ),
            blue: std::array::from_fn(|index| scaled(1.772, index) >> SHIFT),
            shift: SHIFT,
        }
    }

    pub(super) fn rgb(&self, pixel: &[u8]) -> [u8; 3] {
        let [brightness, cb, cr] = [0, 1, 2].map(|channel| usize::from(pixel[channel]));
        let base = self.brightness[brightness];
        let green = (self.green.0[cb] + self.green.1[cr]) >> self.shift;
        [base + self.red[cr], base + green, base + self.blue[cb]].map(|value| value.clamp(0, 255) as u8)
    }
}
