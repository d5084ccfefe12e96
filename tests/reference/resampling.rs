//! Pillow's `resize(..., BILINEAR)` with the formulas of its Resample.c, in float64 as in Pillow, and the output of
//! views.

use std::ops::Range;

use retune::data::RgbImage;
use retune::device::Resampling;

const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The source pixels of one scaled pixel, and their coefficients.
fn coefficients(source: u32, scaled: u32, pixel: u32) -> (Range<usize>, Vec<i64>) {
    let scale = f64::from(source) / f64::from(scaled);
    let support = scale.max(1.0);
    let center = (f64::from(pixel) + 0.5) * scale;
    let first = ((center - support + 0.5) as i64).max(0);
    let last = ((center + support + 0.5) as i64).min(i64::from(source));
    let triangle = |x: f64| if x.abs() < 1.0 { 1.0 - x.abs() } else { 0.0 };
    let weights: Vec<f64> =
        (first..last).map(|x| triangle((x as f64 - center + 0.5) * (1.0 / scale.max(1.0)))).collect();
    let sum: f64 = weights.iter().sum();
    let fixed = weights.iter().map(|weight| (0.5 + weight / sum * f64::from(1 << PRECISION_BITS)) as i64);
    (first as usize..last as usize, fixed.collect())
}

fn weighted(bytes: impl Iterator<Item = u8>, coefficients: &[i64]) -> u8 {
    let half = 1 << (PRECISION_BITS - 1);
    let sum: i64 = bytes.zip(coefficients).map(|(byte, coefficient)| i64::from(byte) * coefficient).sum();
    ((half + sum) >> PRECISION_BITS).clamp(0, 255) as u8
}

/// The output of a view: `[size, size, 3]`, black outside the scaled rectangle.
pub fn resample(image: &RgbImage, resampling: &Resampling, size: usize) -> Vec<u8> {
    let Resampling {
        top,
        left,
        height,
        width,
        scaled_height,
        scaled_width,
        window_top,
        window_left,
        flip_columns,
        flip_rows,
    } = *resampling;
    let scaled = |begin: i32, index: usize, all: u32| {
        u32::try_from(i64::from(begin) + index as i64).ok().filter(|&pixel| pixel < all)
    };
    let mut output = vec![0; size * size * 3];
    for column in 0..size {
        let Some(pixel) = scaled(window_left, if flip_columns { size - 1 - column } else { column }, scaled_width)
        else {
            continue;
        };
        let (across, factors) = coefficients(width, scaled_width, pixel);
        let source = |row: usize, column: usize, channel: usize| {
            let position = (row + top as usize) * image.width as usize + column + left as usize;
            image.pixels[position * 3 + channel]
        };
        let line: Vec<[u8; 3]> = (0..height as usize)
            .map(|row| [0, 1, 2].map(|channel| weighted(across.clone().map(|x| source(row, x, channel)), &factors)))
            .collect();
        for row in 0..size {
            let place = if flip_rows { size - 1 - row } else { row };
            let Some(pixel) = scaled(window_top, place, scaled_height) else { continue };
            let (down, factors) = coefficients(height, scaled_height, pixel);
            for channel in 0..3 {
                let bytes = line[down.clone()].iter().map(|pixel| pixel[channel]);
                output[(row * size + column) * 3 + channel] = weighted(bytes, &factors);
            }
        }
    }
    output
}
