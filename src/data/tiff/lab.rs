//! CIE L*a*b* (D50) to sRGB with the bits of Pillow, for which Little CMS interpolates in a table.

use std::sync::LazyLock;

/// Colours of the table along each axis.
const POINTS: usize = 33;
/// Distances in the table from one colour to the next along each axis.
const STRIDES: [usize; 3] = [POINTS * POINTS, POINTS, 1];
/// The largest 16-bit number.
const MAX: f64 = 65535.0;
/// The light of D50.
const WHITE: [f64; 3] = [0.9642, 1.0, 0.8249];
/// From XYZ under D50 to the primaries of sRGB, whose light is D65 (Bradford).
const PRIMARIES: [[f64; 3]; 3] = [
    [3.134_186_364_2, -1.617_208_959_0, -0.490_694_064_0],
    [-0.978_748_504_2, 1.916_130_096_8, 0.033_433_399_2],
    [0.071_963_927_8, -0.228_993_873_5, 1.405_753_732_9],
];

/// sRGB with 16 bits.
static TABLE: LazyLock<Vec<[u16; 3]>> = LazyLock::new(|| {
    let value = |index: usize, stride: usize| {
        let step = index / stride % POINTS;
        (step as f64 * MAX / (POINTS - 1) as f64).round() / MAX * 255.0
    };
    (0..POINTS.pow(3)).map(|index| exact(STRIDES.map(|stride| value(index, stride)))).collect()
});

/// Converts lightness from 0 to 255, and a and b plus 128.
fn exact([lightness, a, b]: [f64; 3]) -> [u16; 3] {
    let y = (lightness * 100.0 / 255.0 + 16.0) / 116.0;
    let (x, z) = (y + (a - 128.0) / 500.0, y - (b - 128.0) / 200.0);
    let linear = |value: f64| {
        let edge = 6.0 / 29.0;
        if value > edge { value.powi(3) } else { 3.0 * edge * edge * (value - 4.0 / 29.0) }
    };
    let xyz = [linear(x) * WHITE[0], linear(y) * WHITE[1], linear(z) * WHITE[2]];
    PRIMARIES.map(|row| {
        let light = (row[0] * xyz[0] + row[1] * xyz[1] + row[2] * xyz[2]).clamp(0.0, 1.0);
        let value = if light <= 0.003_130_8 { 12.92 * light } else { 1.055 * light.powf(1.0 / 2.4) - 0.055 };
        (value * MAX).round() as u16
    })
}

/// The colour of a pixel, whose last two samples are signed.
pub(super) fn rgb(pixel: &[u8]) -> [u8; 3] {
    let mut axes = [pixel[0], pixel[1] ^ 128, pixel[2] ^ 128].map(u32::from).map(|value| {
        // The place in the table, with 16 bits of fraction.
        let scaled = value * 257 * (POINTS as u32 - 1);
        scaled + (scaled + 0x7FFF) / 0xFFFF
    });
    let mut index: usize = axes.iter().zip(STRIDES).map(|(place, stride)| (place >> 16) as usize * stride).sum();
    axes.iter_mut().for_each(|place| *place &= 0xFFFF);
    // From the corner below to the one above, along the axis with the largest fraction first: the edges of a tetrahedron.
    let mut order = [0, 1, 2];
    order.sort_by_key(|&axis| std::cmp::Reverse(axes[axis]));
    let corner = TABLE[index].map(i64::from);
    let (mut before, mut sums) = (corner, [0x8001; 3]);
    for axis in order {
        if axes[axis] > 0 {
            index += STRIDES[axis];
            let next = TABLE[index].map(i64::from);
            for channel in 0..3 {
                sums[channel] += (next[channel] - before[channel]) * i64::from(axes[axis]);
            }
            before = next;
        }
    }
    std::array::from_fn(|channel| {
        let value = corner[channel] + ((sums[channel] + (sums[channel] >> 16)) >> 16);
        ((value * 65281 + (1 << 23)) >> 24) as u8
    })
}
