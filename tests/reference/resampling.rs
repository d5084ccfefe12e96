//! Pillow's `resize(..., BILINEAR)` with the formulas of its Resample.c, in float64 as in Pillow 13, and the output of
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

/// Scales the rows of an image of `[height][width]` pixels.
fn scale_rows(image: &[Vec<[u8; 3]>], scaled: u32) -> Vec<Vec<[u8; 3]>> {
    let source = image[0].len() as u32;
    let windows: Vec<_> = (0..scaled).map(|pixel| coefficients(source, scaled, pixel)).collect();
    let pixel = |row: &[[u8; 3]], (range, factors): &(Range<usize>, Vec<i64>)| {
        [0, 1, 2].map(|channel| weighted(row[range.clone()].iter().map(|pixel| pixel[channel]), factors))
    };
    image.iter().map(|row| windows.iter().map(|window| pixel(row, window)).collect()).collect()
}

fn transposed(image: &[Vec<[u8; 3]>]) -> Vec<Vec<[u8; 3]>> {
    (0..image[0].len()).map(|x| image.iter().map(|row| row[x]).collect()).collect()
}

/// The output of a view: `[size, size, 3]`, black outside the scaled rectangle.
pub fn resample(image: &RgbImage, resampling: &Resampling, size: usize) -> Vec<u8> {
    let Resampling { top, left, height, width, scaled_height, scaled_width, .. } = *resampling;
    let row = |y: u32| {
        let begin = y as usize * image.width as usize + left as usize;
        image.pixels.as_chunks::<3>().0[begin..][..width as usize].to_vec()
    };
    let part: Vec<_> = (top..top + height).map(row).collect();
    // Pillow 13 scales columns first if that removes more than twice as many rows as columns.
    let columns_first =
        height > scaled_height && i64::from(height - scaled_height) > 2 * (i64::from(width) - i64::from(scaled_width));
    let scaled = if columns_first {
        scale_rows(&transposed(&scale_rows(&transposed(&part), scaled_height)), scaled_width)
    } else {
        transposed(&scale_rows(&transposed(&scale_rows(&part, scaled_width)), scaled_height))
    };
    let place = |begin: i32, index: usize, flip: bool| {
        usize::try_from(i64::from(begin) + if flip { size - 1 - index } else { index } as i64).ok()
    };
    let mut output = vec![0; size * size * 3];
    for (index, output) in output.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let y = place(resampling.window_top, index / size, resampling.flip_rows);
        let x = place(resampling.window_left, index % size, resampling.flip_columns);
        if let (Some(y), Some(x)) = (y, x) {
            *output = scaled.get(y).and_then(|row| row.get(x)).copied().unwrap_or_default();
        }
    }
    output
}
