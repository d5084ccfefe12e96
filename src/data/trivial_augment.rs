//! TrivialAugment, as torchvision's `TrivialAugmentWide` (Mueller and Hutter, 2021, arXiv:2103.10158).

use super::geometry::{Geometry, inverse_affine_matrix};
use super::random::RandomStream;
use crate::device::{Colour, Edits};

/// The number of steps from no effect to the strongest.
const STEPS: u64 = 30;
/// The strongest shear, brightness, saturation, contrast and sharpness.
const STRONGEST: f64 = 0.99;
/// The largest translation, in pixels of an image of any size.
const PIXELS: f64 = 32.0;
/// The largest rotation, in degrees.
const DEGREES: f64 = 135.0;
/// Fewer bits at most than the eight of a byte.
const BITS: f64 = 6.0;

/// Draws one of 14 operations with equal probabilities, its strength, and its sign.
pub(super) fn draw_trivial_augment(
    random: &mut RandomStream,
    edits: &mut Edits,
    geometry: &mut Geometry,
    image_size: u32,
) {
    let operation = random.below(14);
    if operation == 0 {
        return;
    }
    // Those without a strength.
    if operation >= 12 {
        edits.push(if operation == 12 { Colour::AutoContrast } else { Colour::Equalize });
        return;
    }
    let strength = random.below(STEPS + 1) as f64 / STEPS as f64;
    if operation >= 10 {
        edits.push(match operation {
            10 => Colour::Posterize(8 - (strength * BITS).round() as u32),
            _ => Colour::Solarize((255.0 - strength * 255.0).ceil() as u32),
        });
        return;
    }
    let strength = if random.below(2) == 0 { strength } else { -strength };
    let centre = f64::from(image_size) * 0.5;
    // torchvision shears around the upper left corner.
    let shear = |x: f64, y: f64| {
        inverse_affine_matrix(0.0, 0.0, [0.0; 2], 1.0, [x, y].map(|slope| (slope * STRONGEST).atan().to_degrees()))
    };
    let translate = |x: f64, y: f64| {
        inverse_affine_matrix(centre, 0.0, [x, y].map(|share| (share * PIXELS).trunc()), 1.0, [0.0; 2])
    };
    let factor = (1.0 + strength * STRONGEST) as f32;
    match operation {
        1 => geometry.then = Some(shear(strength, 0.0)),
        2 => geometry.then = Some(shear(0.0, strength)),
        3 => geometry.then = Some(translate(strength, 0.0)),
        4 => geometry.then = Some(translate(0.0, strength)),
        // torchvision's `rotate` goes the other way round than its `affine`.
        5 => geometry.then = Some(inverse_affine_matrix(centre, -strength * DEGREES, [0.0; 2], 1.0, [0.0; 2])),
        6 => edits.push(Colour::Brightness(factor)),
        7 => edits.push(Colour::Saturation(factor)),
        8 => edits.push(Colour::Contrast(factor)),
        _ => edits.push(Colour::Sharpness(factor)),
    }
}
