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

/// The image, darker where the map is low and warmer where it is high.
pub fn overlay(tile: &Tile, rows: usize, columns: usize, map: &[f32]) -> Tile {
    let size = tile.size as usize;
    let pixels = tile.pixels.chunks_exact(3).enumerate().flat_map(|(place, pixel)| {
        let heat = interpolated(map, rows, columns, place / size, place % size, size);
        let grey = pixel.iter().map(|&channel| f32::from(channel)).sum::<f32>() / 3.0;
        let warm = [255.0, 176.0, 32.0];
        std::array::from_fn::<u8, 3, _>(|channel| {
            let cold = 0.35 * grey + 0.1 * f32::from(pixel[channel]);
            let hot = 0.72 * f32::from(pixel[channel]) + 0.28 * warm[channel];
            (cold + (hot - cold) * heat).round().clamp(0.0, 255.0) as u8
        })
    });
    Tile { label: tile.label.clone(), size: tile.size, pixels: pixels.collect() }
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
}
