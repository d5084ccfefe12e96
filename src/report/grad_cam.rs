//! The areas that influenced a prediction: Grad-CAM (Selvaraju et al., 2017).
//!
//! The gradient of a class's logit with respect to the output of the last convolutions, averaged over the image, weights
//! the channels of that output. Their weighted sum, where it is positive, is a map of the areas that influenced
//! the prediction. Both come from the graph's own forward and backward pass. At 224 x 224 that output is layer4's, 7 x 7.

use super::contact_sheet::Tile;
use crate::error::Result;
use crate::model::BatchShape;
use crate::train::{Network, logit_gradients};

/// A map of fewer rows is too coarse to show anything; for small images, an earlier stage is used.
const LEAST_ROWS: usize = 6;

/// How much each area of an image, `[H, W, 3]` normalised, influenced the largest logit, from 0 to 1.
/// Returns the map's rows, columns and values, and the class.
pub fn attention(network: &Network, image: &[f32], image_size: usize) -> Result<(usize, usize, Vec<f32>, usize)> {
    let shape = BatchShape { batch: 1, height: image_size, width: image_size };
    let largest = |logits: &[f32]| {
        let best = |best: usize, class: usize| if logits[class] > logits[best] { class } else { best };
        (0..logits.len()).fold(0, best)
    };
    let blocks = network.resnet().architecture.blocks();
    // The stem divides by 4, each stage but the first by 2.
    let rows_of = |stage: usize| image_size.div_ceil(4 << stage);
    let stage = (0..blocks.len()).rev().find(|&stage| rows_of(stage) >= LEAST_ROWS).unwrap_or(0);
    let module = format!("layer{}.{}", stage + 1, blocks[stage] - 1);
    let found = logit_gradients(network, shape, image, &module, largest)?;
    let &[_, rows, columns, channels] = found.shape.dims() else { unreachable!("activations have four extents") };
    let places = (rows * columns) as f32;
    let mut weights = vec![0.0; channels];
    for gradient in found.gradient.chunks_exact(channels) {
        weights.iter_mut().zip(gradient).for_each(|(weight, gradient)| *weight += gradient / places);
    }
    let weighted = found.activation.chunks_exact(channels).map(|activation| {
        activation.iter().zip(&weights).map(|(activation, weight)| activation * weight).sum::<f32>().max(0.0)
    });
    let mut map: Vec<f32> = weighted.collect();
    let most = map.iter().copied().fold(0.0, f32::max);
    if most > 0.0 {
        map.iter_mut().for_each(|value| *value /= most);
    }
    Ok((rows, columns, map, found.chosen[0]))
}

/// Colours of a map from low to high: those of viridis, whose lightness increases evenly and which colour-blind people can tell
/// apart.
const COLOURS: [[f32; 3]; 5] =
    [[68.0, 1.0, 84.0], [59.0, 82.0, 139.0], [33.0, 145.0, 140.0], [94.0, 201.0, 98.0], [253.0, 231.0, 37.0]];

/// How much of the result is the map's colour. The rest is the image in grey, which adds no colours of its own.
const OPACITY: f32 = 0.55;

/// Stops of the legend's gradient.
const LEGEND_STOPS: usize = 9;

/// The image in grey, tinted with the colours of the map.
pub fn overlay(tile: &Tile, rows: usize, columns: usize, map: &[f32]) -> Tile {
    let size = tile.size as usize;
    let pixels =
        tile.pixels.as_chunks::<3>().0.iter().enumerate().flat_map(|(place, &pixel)| {
            blend(pixel, interpolated(map, rows, columns, place / size, place % size, size))
        });
    Tile { label: tile.label.clone(), size: tile.size, pixels: pixels.collect() }
}

/// The legend of an overlay, from a map's value 0 to 1: colours of a CSS gradient, as they are on a medium grey.
pub fn legend() -> String {
    let stops = (0..LEGEND_STOPS).map(|stop| {
        let [red, green, blue] = blend([128; 3], stop as f32 / (LEGEND_STOPS - 1) as f32);
        format!("#{red:02x}{green:02x}{blue:02x}")
    });
    stops.collect::<Vec<_>>().join(",")
}

/// A pixel of an overlay. `heat` is from 0 to 1.
fn blend(pixel: [u8; 3], heat: f32) -> [u8; 3] {
    let grey = pixel.iter().map(|&channel| f32::from(channel)).sum::<f32>() / 3.0;
    let position = heat.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f32;
    let below = (position as usize).min(COLOURS.len() - 2);
    let between = position - below as f32;
    std::array::from_fn(|channel| {
        let (low, high) = (COLOURS[below][channel], COLOURS[below + 1][channel]);
        let colour = low + (high - low) * between;
        (grey + (colour - grey) * OPACITY).round().clamp(0.0, 255.0) as u8
    })
}

/// Bilinear, as if each value of the map stood in the middle of its field.
fn interpolated(map: &[f32], rows: usize, columns: usize, y: usize, x: usize, size: usize) -> f32 {
    let place = |at: usize, count: usize| {
        let position = ((at as f32 + 0.5) * count as f32 / size as f32 - 0.5).clamp(0.0, (count - 1) as f32);
        let before = position.floor() as usize;
        (before, (before + 1).min(count - 1), position.fract())
    };
    let ((top, bottom, down), (left, right, across)) = (place(y, rows), place(x, columns));
    let at = |row: usize, column: usize| map[row * columns + column];
    let upper = at(top, left) + (at(top, right) - at(top, left)) * across;
    let lower = at(bottom, left) + (at(bottom, right) - at(bottom, left)) * across;
    upper + (lower - upper) * down
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_kept_where_it_is_when_it_grows() {
        let map = [0.0, 1.0, 0.5, 0.0];
        let at = |y, x| interpolated(&map, 2, 2, y, x, 8);
        assert_eq!((at(0, 0), at(0, 7), at(7, 0), at(7, 7)), (0.0, 1.0, 0.5, 0.0));
        assert!((at(0, 3) - 0.375).abs() < 1e-6, "{}", at(0, 3));
        assert_eq!(interpolated(&[0.25], 1, 1, 5, 2, 8), 0.25);
    }

    /// CIELAB, in which the distance of two colours is about the difference that people see; 1 is just noticeable.
    fn lab(pixel: [u8; 3]) -> [f64; 3] {
        let linear = pixel.map(|channel| {
            let value = f64::from(channel) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        });
        let mix = |weights: [f64; 3]| weights.iter().zip(linear).map(|(weight, value)| weight * value).sum::<f64>();
        let (x, y, z) = (
            mix([0.4124, 0.3576, 0.1805]) / 0.9505,
            mix([0.2126, 0.7152, 0.0722]),
            mix([0.0193, 0.1192, 0.9505]) / 1.089,
        );
        let [x, y, z] = [x, y, z].map(|t| if t > 0.008856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 });
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }

    fn distance(a: [u8; 3], b: [u8; 3]) -> f64 {
        lab(a).iter().zip(lab(b)).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
    }

    /// On a black photo, a white one and everything between.
    #[test]
    fn heat_is_legible_on_every_photo() {
        let photos = [[0; 3], [20; 3], [64; 3], [128; 3], [192; 3], [255; 3], [255, 0, 0], [0, 200, 0], [0, 0, 90]];
        for photo in photos {
            let at = |heat: u8| blend(photo, f32::from(heat) / 8.0);
            assert!(distance(at(0), at(8)) > 60.0, "{photo:?}: {}", distance(at(0), at(8)));
            for heat in 0..8 {
                let (low, high) = (at(heat), at(heat + 1));
                assert!(lab(high)[0] > lab(low)[0] + 2.0, "{photo:?}: more heat is lighter: {low:?}, {high:?}");
                assert!(distance(low, high) > 6.0, "{photo:?}: {low:?} and {high:?} differ visibly");
            }
        }
    }

    #[test]
    fn the_photo_is_recognisable_under_any_heat() {
        for heat in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let lightness = |grey: u8| lab(blend([grey; 3], heat))[0];
            assert!(lightness(255) - lightness(0) > 35.0, "{heat}: {} to {}", lightness(0), lightness(255));
            assert!((0..255).all(|grey| lightness(grey + 1) >= lightness(grey)), "{heat}");
        }
    }

    #[test]
    fn the_legend_has_the_colours_of_an_overlay() {
        let tile = Tile { label: String::new(), size: 1, pixels: vec![128; 3] };
        let stops: Vec<String> = legend().split(',').map(String::from).collect();
        assert_eq!(stops.len(), LEGEND_STOPS);
        for (stop, heat) in [(0, 0.0), (4, 0.5), (8, 1.0)] {
            let pixel = overlay(&tile, 1, 1, &[heat]).pixels;
            assert_eq!(stops[stop], format!("#{:02x}{:02x}{:02x}", pixel[0], pixel[1], pixel[2]));
        }
    }
}
