//! Paints shapes given by signed distance functions, and simulates a camera.

use crate::data::random::RandomStream;

/// Red, green, blue; 0 to 1.
pub type Colour = [f32; 3];

/// The position of an object. In its own coordinates it extends from about -1 to 1; `bend` makes its long axis a
/// parabola.
#[derive(Clone, Copy)]
pub struct Frame {
    pub centre: [f32; 2],
    pub angle: f32,
    /// Pixels per unit.
    pub scale: f32,
    pub bend: f32,
    /// Radius that contains the whole object, in units.
    pub reach: f32,
}

impl Frame {
    /// A random position and direction on the canvas; `scale` is a range relative to the canvas.
    pub fn random(canvas: &Canvas, scale: (f32, f32), random: &mut RandomStream) -> Self {
        let size = canvas.size as f32;
        let scale = size * between(scale.0, scale.1, random);
        // The centre of the object, and most of the object, stays inside the image.
        let room = (0.5 * size - 0.95 * scale).max(0.04 * size);
        Self {
            centre: [0; 2].map(|_| 0.5 * size + between(-room, room, random)),
            angle: between(0.0, std::f32::consts::TAU, random),
            scale,
            bend: 0.0,
            reach: 1.7,
        }
    }

    pub fn bent(self, bend: f32) -> Self {
        Self { bend, ..self }
    }

    pub fn turned(self, by: f32) -> Self {
        Self { angle: self.angle + by, ..self }
    }

    pub fn scaled(self, by: f32) -> Self {
        Self { scale: self.scale * by, ..self }
    }

    /// Moves the object along its two axes, in its own units.
    pub fn shifted(self, along: f32, across: f32) -> Self {
        let (sine, cosine) = self.angle.sin_cos();
        let by = [along * cosine - across * sine, along * sine + across * cosine];
        Self { centre: [self.centre[0] + by[0] * self.scale, self.centre[1] + by[1] * self.scale], ..self }
    }

    /// The frame of its shadow; the light comes from the upper left.
    pub fn shadow(self, height: f32) -> Self {
        Self { centre: self.centre.map(|coordinate| coordinate + height * self.scale), ..self }
    }

    fn to_object(self, x: f32, y: f32) -> [f32; 2] {
        let (x, y) = (x - self.centre[0], y - self.centre[1]);
        let (sine, cosine) = self.angle.sin_cos();
        let (u, v) = ((x * cosine + y * sine) / self.scale, (y * cosine - x * sine) / self.scale);
        [u, v - self.bend * (u * u - 0.33)]
    }
}

pub struct Canvas {
    pub size: u32,
    pixels: Vec<Colour>,
}

impl Canvas {
    pub fn new(size: u32) -> Self {
        Self { size, pixels: vec![[0.0; 3]; (size * size) as usize] }
    }

    /// Calls `change(x, y, pixel)` for every pixel.
    fn each(&mut self, mut change: impl FnMut(f32, f32, &mut Colour)) {
        for (index, pixel) in (0..).zip(&mut self.pixels) {
            change((index % self.size) as f32, (index / self.size) as f32, pixel);
        }
    }

    /// Covers the whole canvas with the colours `surface(u, v)`.
    pub fn cover(&mut self, frame: Frame, surface: impl Fn(f32, f32) -> Colour) {
        self.each(|x, y, pixel| {
            let [u, v] = frame.to_object(x, y);
            *pixel = surface(u, v);
        });
    }

    /// Paints an object. `object(u, v)` returns the distance to its edge, negative inside, and its colour. `softness` is the width
    /// of the edge in pixels.
    pub fn paint(&mut self, frame: Frame, opacity: f32, softness: f32, object: impl Fn(f32, f32) -> (f32, Colour)) {
        let radius = frame.reach * frame.scale + softness;
        let range = |centre: f32| {
            let (low, high) =
                ((centre - radius).floor().max(0.0), (centre + radius).ceil().min(self.size as f32 - 1.0));
            low as u32..(high + 1.0).max(0.0) as u32
        };
        for y in range(frame.centre[1]) {
            for x in range(frame.centre[0]) {
                let [u, v] = frame.to_object(x as f32, y as f32);
                let (distance, colour) = object(u, v);
                let coverage = (0.5 - distance * frame.scale / softness).clamp(0.0, 1.0) * opacity;
                if coverage > 0.0 {
                    let pixel = &mut self.pixels[(y * self.size + x) as usize];
                    *pixel = mix(*pixel, colour, coverage);
                }
            }
        }
    }

    /// Paints the shadow of an object with this outline.
    pub fn shade(&mut self, frame: Frame, height: f32, outline: impl Fn(f32, f32) -> f32) {
        let softness = (0.1 * frame.scale).max(2.0);
        self.paint(frame.shadow(height), 0.42, softness, |u, v| (outline(u, v), [0.0; 3]));
    }

    /// Paints a rod with round ends and its shadow.
    pub fn rod(&mut self, frame: Frame, half_length: f32, radius: f32, colour: Colour) {
        let straight = half_length - radius;
        self.shade(frame, 0.06, |u, v| segment(u, v, straight) - radius);
        self.paint(frame, 1.0, 1.3, |u, v| {
            let distance = segment(u, v, straight);
            let height = (1.0 - (distance / radius).powi(2)).max(0.0).sqrt();
            (distance - radius, lit(colour, 0.6 + 0.4 * height - 0.14 * v / radius))
        });
    }

    /// Simulates the camera: brightness, tint, a darker side, noise. Returns RGB bytes, `[size, size, 3]`.
    pub fn photograph(mut self, random: &mut RandomStream) -> Vec<u8> {
        let size = self.size as f32;
        let brightness = between(0.6, 1.15, random);
        let tint = [0; 3].map(|_| brightness * between(0.88, 1.12, random));
        let (fall, direction) = (between(0.0, 0.45, random), between(0.0, std::f32::consts::TAU, random));
        let noise = between(0.01, 0.07, random);
        self.each(|x, y, pixel| {
            let along = (x / size - 0.5) * direction.cos() + (y / size - 0.5) * direction.sin();
            for (channel, tint) in pixel.iter_mut().zip(tint) {
                *channel = *channel * tint * (1.0 - fall * along) + between(-noise, noise, random);
            }
        });
        let byte = |channel: f32| (channel.clamp(0.0, 1.0) * 255.0).round() as u8;
        self.pixels.into_iter().flat_map(|pixel| pixel.map(byte)).collect()
    }
}

/// A uniform random number.
pub fn between(low: f32, high: f32, random: &mut RandomStream) -> f32 {
    random.uniform(low.into(), high.into()) as f32
}

pub fn chance(probability: f64, random: &mut RandomStream) -> bool {
    random.unit() < probability
}

/// A random colour near `colour`.
pub fn near(colour: Colour, spread: f32, random: &mut RandomStream) -> Colour {
    colour.map(|channel| channel + between(-spread, spread, random))
}

pub fn any_colour(random: &mut RandomStream) -> Colour {
    [0; 3].map(|_| between(0.05, 0.95, random))
}

pub fn mix(from: Colour, to: Colour, share: f32) -> Colour {
    std::array::from_fn(|channel| from[channel] + (to[channel] - from[channel]) * share)
}

/// The colour at this brightness.
pub fn lit(colour: Colour, light: f32) -> Colour {
    colour.map(|channel| channel * light)
}

/// Distance from a point to the segment of the u axis from `-half_length` to `half_length`.
pub fn segment(u: f32, v: f32, half_length: f32) -> f32 {
    (u.abs() - half_length).max(0.0).hypot(v)
}
