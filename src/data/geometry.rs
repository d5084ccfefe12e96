//! The affine map of an image: that of torchvision's `F.affine`, followed by that of TrivialAugment.

use crate::device::AffineMap;

/// What is drawn for it. Angles are in degrees.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Geometry {
    /// Clockwise.
    pub(super) angle: Option<f64>,
    /// To the right and down, in pixels.
    pub(super) translate: Option<[f64; 2]>,
    pub(super) scale: Option<f64>,
    /// Along the rows, and along the columns.
    pub(super) shear: Option<[f64; 2]>,
    /// The map that follows, as [`inverse_affine_matrix`] returns it.
    pub(super) then: Option<[f64; 6]>,
}

impl Geometry {
    /// The map of a square image of this size; none if nothing was drawn.
    pub(super) fn map(&self, image_size: u32) -> Option<AffineMap> {
        let Self { angle, translate, scale, shear, then } = *self;
        let centre = f64::from(image_size) * 0.5;
        let drawn = angle.is_some() || translate.is_some() || scale.is_some() || shear.is_some();
        let first = drawn.then(|| {
            let (angle, translate, scale) = (angle.unwrap_or(0.0), translate.unwrap_or([0.0; 2]), scale.unwrap_or(1.0));
            inverse_affine_matrix(centre, angle, translate, scale, shear.unwrap_or([0.0; 2]))
        });
        let map = match (first, then) {
            // An output pixel is a pixel of the image in between, which is a pixel of the first image.
            (Some(first), Some(then)) => composed(first, then),
            (first, then) => first.or(then)?,
        };
        Some(AffineMap::new(map))
    }
}

/// torchvision's `_get_inverse_affine_matrix`, with the same coordinate of the centre on both axes: the coefficients with which an output
/// pixel is mapped to a pixel of the image.
pub(super) fn inverse_affine_matrix(
    centre: f64,
    angle: f64,
    [right, below]: [f64; 2],
    scale: f64,
    shear: [f64; 2],
) -> [f64; 6] {
    let (angle, [x, y]) = (angle.to_radians(), shear.map(f64::to_radians));
    let a = (angle - y).cos() / y.cos();
    let b = -(angle - y).cos() * x.tan() / y.cos() - angle.sin();
    let c = (angle - y).sin() / y.cos();
    let d = -(angle - y).sin() * x.tan() / y.cos() + angle.cos();
    let [a, b, c, d] = [d, -b, -c, a].map(|value| value / scale);
    let offset = |x: f64, y: f64| x * (-centre - right) + y * (-centre - below) + centre;
    [a, b, offset(a, b), c, d, offset(c, d)]
}

/// The map that applies `then` to an output pixel and `first` to the result.
fn composed(first: [f64; 6], then: [f64; 6]) -> [f64; 6] {
    let [a, b, c, d, e, f] = then;
    let row = |x: f64, y: f64, offset: f64| [x * a + y * d, x * b + y * e, x * c + y * f + offset];
    let [across, down] = [row(first[0], first[1], first[2]), row(first[3], first[4], first[5])];
    [across[0], across[1], across[2], down[0], down[1], down[2]]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MATRIX: [f64; 6] = [
        0.6329774009740674,
        0.5283335604872094,
        -4.0684843111733215,
        -0.3393860758747206,
        0.7278157884379205,
        14.705195553236003,
    ];

    fn at([a, b, c, d, e, f]: [f64; 6], [x, y]: [f64; 2]) -> [f64; 2] {
        [a * x + b * y + c, d * x + e * y + f]
    }

    fn assert_near<const N: usize>(found: [f64; N], expected: [f64; N]) {
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12), "{found:?}");
    }

    #[test]
    fn the_matrix_is_that_of_torchvision() {
        // functional._get_inverse_affine_matrix([20, 20], 30, [3, -2], 1.25, [10, 5])
        assert_near(inverse_affine_matrix(20.0, 30.0, [3.0, -2.0], 1.25, [10.0, 5.0]), MATRIX);
    }

    #[test]
    fn the_map_of_trivial_augment_follows() {
        let first = Geometry { angle: Some(20.0), scale: Some(0.5), ..Geometry::default() };
        let then = inverse_affine_matrix(4.0, 0.0, [1.0, 2.0], 1.0, [30.0, 0.0]);
        let both = composed(inverse_affine_matrix(4.0, 20.0, [0.0; 2], 0.5, [0.0; 2]), then);
        let pixel = [3.0, 5.0];
        let through = at(inverse_affine_matrix(4.0, 20.0, [0.0; 2], 0.5, [0.0; 2]), at(then, pixel));
        assert_near(at(both, pixel), through);
        let map = Geometry { then: Some(then), ..first }.map(8);
        assert_eq!(map, Some(AffineMap::new(both)));
        assert_eq!(Geometry { then: Some(then), ..Geometry::default() }.map(8), Some(AffineMap::new(then)));
        assert_eq!(Geometry::default().map(8), None);
        // A shift to the right shows the pixel to the left.
        let shift = Geometry { translate: Some([2.0, 0.0]), ..Geometry::default() }.map(8).unwrap();
        assert_eq!((shift.across[0], shift.across[2]), (1 << 32, -3 << 31));
    }
}
