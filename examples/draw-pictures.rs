//! Draws a small data set of two classes, hot dogs and things that are none, to try `retune train` without a download.
//!
//!     cargo run --release --example draw-pictures -- pictures
//!
//! writes `pictures/train/<class>/*.png` and `pictures/test/<class>/*.png`. The same arguments give the same files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use image::RgbImage;

/// Draw hot dogs and things that are none
#[derive(Parser)]
struct Arguments {
    /// Where to write; must not hold `train` or `test` yet
    folder: PathBuf,

    /// Training pictures of each class; a quarter as many are drawn for testing
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    per_class: u64,

    /// Rows and columns of a picture
    #[arg(long, value_name = "PIXELS", default_value_t = 96, value_parser = clap::value_parser!(u32).range(16..=2048))]
    size: u32,

    /// Another seed gives other pictures
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(pictures) => {
            println!("{pictures} pictures in {}", arguments.folder.display());
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<u64, String> {
    let splits = [("train", arguments.per_class), ("test", arguments.per_class.div_ceil(4))];
    for (split, _) in splits {
        let folder = arguments.folder.join(split);
        if folder.exists() {
            return Err(format!("{} is already there\nhint: give another folder", folder.display()));
        }
    }
    let mut drawn = 0;
    for (split_index, (split, count)) in splits.into_iter().enumerate() {
        for (class_index, class) in ["hotdog", "not-hotdog"].into_iter().enumerate() {
            let folder = arguments.folder.join(split).join(class);
            std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            for index in 0..count {
                // Each picture has random numbers of its own: asking for more leaves the others as they were.
                let stream = [arguments.seed, split_index as u64, class_index as u64, index];
                let picture = draw(arguments.size, class_index == 0, &mut Random::new(&stream));
                write(&picture, &folder.join(format!("{index:04}.png")))?;
                drawn += 1;
            }
        }
    }
    Ok(drawn)
}

fn write(picture: &RgbImage, path: &Path) -> Result<(), String> {
    picture.save(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Steele, Lea and Flood's SplitMix64.
struct Random(u64);

impl Random {
    fn new(stream: &[u64]) -> Self {
        let mut random = Self(0);
        for number in stream {
            random.0 ^= number;
            random.0 = random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniform.
    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn chance(&mut self, probability: f32) -> bool {
        self.between(0.0, 1.0) < probability
    }

    /// A colour near this one.
    fn near(&mut self, colour: Colour, spread: f32) -> Colour {
        colour.map(|channel| channel + self.between(-spread, spread))
    }

    fn any_colour(&mut self) -> Colour {
        [0; 3].map(|_| self.between(0.05, 0.95))
    }
}

/// Red, green, blue; 0 to 1.
type Colour = [f32; 3];

const BREAD: Colour = [0.80, 0.56, 0.28];
const SAUSAGE: Colour = [0.66, 0.24, 0.14];
const MUSTARD: Colour = [0.93, 0.78, 0.12];
const KETCHUP: Colour = [0.78, 0.07, 0.05];
const BANANA: Colour = [0.94, 0.82, 0.22];
const LETTUCE: Colour = [0.36, 0.66, 0.20];
const MEAT: Colour = [0.34, 0.18, 0.10];
const WOOD: Colour = [0.85, 0.68, 0.45];

/// Where an object lies. In its own coordinates it reaches from about -1 to 1; `bend` makes its long axis a parabola.
#[derive(Clone, Copy)]
struct Frame {
    centre: [f32; 2],
    angle: f32,
    /// Pixels a unit.
    scale: f32,
    bend: f32,
}

impl Frame {
    fn random(size: f32, random: &mut Random) -> Self {
        Self {
            centre: [0; 2].map(|_| size * random.between(0.38, 0.62)),
            angle: random.between(0.0, std::f32::consts::TAU),
            scale: size * random.between(0.26, 0.42),
            bend: 0.0,
        }
    }

    fn bent(self, bend: f32) -> Self {
        Self { bend, ..self }
    }

    /// The same object, moved by so many pixels.
    fn moved(self, by: f32) -> Self {
        Self { centre: self.centre.map(|coordinate| coordinate + by), ..self }
    }

    fn to_object(self, x: f32, y: f32) -> [f32; 2] {
        let (x, y) = (x - self.centre[0], y - self.centre[1]);
        let (sine, cosine) = self.angle.sin_cos();
        let (u, v) = ((x * cosine + y * sine) / self.scale, (y * cosine - x * sine) / self.scale);
        [u, v - self.bend * (u * u - 0.33)]
    }
}

struct Canvas {
    size: u32,
    pixels: Vec<Colour>,
}

impl Canvas {
    /// Calls `change(x, y, pixel)` for every pixel.
    fn each(&mut self, mut change: impl FnMut(f32, f32, &mut Colour)) {
        for (index, pixel) in (0..).zip(&mut self.pixels) {
            change((index % self.size) as f32, (index / self.size) as f32, pixel);
        }
    }

    /// Mixes in an object. `object(u, v)` tells the distance to its edge, negative inside, and its colour there.
    /// `softness` is the width of the edge in pixels.
    fn paint(&mut self, frame: Frame, opacity: f32, softness: f32, object: impl Fn(f32, f32) -> (f32, Colour)) {
        self.each(|x, y, pixel| {
            let [u, v] = frame.to_object(x, y);
            let (distance, colour) = object(u, v);
            let coverage = (0.5 - distance * frame.scale / softness).clamp(0.0, 1.0) * opacity;
            *pixel = mix(*pixel, colour, coverage);
        });
    }

    /// A rod with round ends, lit from one side, with its shadow.
    fn rod(&mut self, frame: Frame, half_length: f32, radius: f32, colour: Colour) {
        let straight = half_length - radius;
        self.paint(frame.moved(0.06 * frame.scale), 0.4, 5.0, |u, v| (rod(u, v, straight) - radius, [0.0; 3]));
        self.paint(frame, 1.0, 1.2, |u, v| {
            let distance = rod(u, v, straight);
            let height = (1.0 - (distance / radius).powi(2)).max(0.0).sqrt();
            (distance - radius, scaled(colour, 0.62 + 0.38 * height - 0.16 * v / radius))
        });
    }
}

/// Distance from a point to the axis of a rod.
fn rod(u: f32, v: f32, straight: f32) -> f32 {
    (u.abs() - straight).max(0.0).hypot(v)
}

fn mix(from: Colour, to: Colour, share: f32) -> Colour {
    std::array::from_fn(|channel| from[channel] + (to[channel] - from[channel]) * share)
}

fn scaled(colour: Colour, factor: f32) -> Colour {
    colour.map(|channel| channel * factor)
}

fn draw(size: u32, is_hot_dog: bool, random: &mut Random) -> RgbImage {
    let mut canvas = Canvas { size, pixels: vec![[0.0; 3]; (size * size) as usize] };
    background(&mut canvas, random);
    clutter(&mut canvas, random);
    let frame = Frame::random(size as f32, random);
    if is_hot_dog {
        hot_dog(&mut canvas, frame, random);
    } else {
        match random.below(5) {
            0 => pencil(&mut canvas, frame, random),
            1 => banana(&mut canvas, frame, random),
            2 => burger(&mut canvas, frame, random),
            3 => bread_roll(&mut canvas, frame, random),
            _ => carrot(&mut canvas, frame, random),
        }
    }
    expose(&mut canvas, random)
}

/// A surface: two colours that run into each other, with stripes or checks, or plain.
fn background(canvas: &mut Canvas, random: &mut Random) {
    let base = random.any_colour();
    let (other, pattern) = (random.near(base, 0.2), random.near(base, 0.3));
    let frame = Frame { bend: 0.2, ..Frame::random(canvas.size as f32, random) };
    let (kind, frequency) = (random.below(3), random.between(3.0, 14.0));
    canvas.each(|x, y, pixel| {
        let [u, v] = frame.to_object(x, y);
        let wave = match kind {
            0 => (frequency * v).sin(),
            1 => ((frequency * u).sin() * (frequency * v).sin()).signum(),
            _ => 0.0,
        };
        *pixel = mix(mix(base, other, 0.5 + 0.3 * u), pattern, 0.25 + 0.25 * wave);
    });
}

/// Things that lie around on pictures of both classes: a plate, crumbs, sticks.
fn clutter(canvas: &mut Canvas, random: &mut Random) {
    let size = canvas.size as f32;
    if random.chance(0.4) {
        let plate = Frame { scale: size * 0.5, ..Frame::random(size, random) };
        let colour = random.near([0.88, 0.88, 0.86], 0.1);
        canvas.paint(plate.moved(2.0), 0.4, 6.0, |u, v| (u.hypot(v) - 0.9, [0.0; 3]));
        canvas.paint(plate, 1.0, 1.5, |u, v| {
            let distance = u.hypot(v);
            (distance - 0.9, scaled(colour, if distance > 0.66 { 1.0 } else { 0.9 }))
        });
    }
    for _ in 0..random.below(5) {
        let centre = [0; 2].map(|_| random.between(0.0, size));
        let frame = Frame { centre, scale: size * random.between(0.04, 0.16), ..Frame::random(size, random) };
        let (half_length, radius) = (random.between(0.6, 2.0), random.between(0.2, 0.6));
        let colour = random.any_colour();
        canvas.rod(frame, half_length, radius, colour);
    }
}

fn hot_dog(canvas: &mut Canvas, frame: Frame, random: &mut Random) {
    let frame = frame.bent(random.between(-0.25, 0.25));
    let (bread, sausage) = (random.near(BREAD, 0.08), random.near(SAUSAGE, 0.08));
    let width = random.between(0.30, 0.42);
    canvas.rod(frame, random.between(0.85, 1.0), width, bread);
    // The cut, and in it the sausage.
    canvas.paint(frame, 0.6, 3.0, |u, v| (rod(u, v, 0.7) - 0.6 * width, scaled(bread, 0.5)));
    canvas.rod(frame, random.between(0.95, 1.15), width * random.between(0.42, 0.6), sausage);
    if random.chance(0.7) {
        let sauce = if random.chance(0.6) { MUSTARD } else { KETCHUP };
        let (frequency, amplitude) = (random.between(9.0, 16.0), random.between(0.0, 0.3) * width);
        let radius = width * random.between(0.12, 0.2);
        canvas.paint(frame, 0.95, 1.2, |u, v| (rod(u, v - amplitude * (frequency * u).sin(), 0.75) - radius, sauce));
    }
}

fn pencil(canvas: &mut Canvas, frame: Frame, random: &mut Random) {
    let colour = random.any_colour();
    let radius = random.between(0.08, 0.2);
    let tapered = |u: f32, v: f32| (v.abs() - radius.min((1.1 - u) * 0.4)).max(-1.1 - u);
    canvas.paint(frame.moved(0.06 * frame.scale), 0.4, 4.0, |u, v| (tapered(u, v), [0.0; 3]));
    canvas.paint(frame, 1.0, 1.2, |u, v| {
        let lit = 1.0 - 0.25 * (v / radius * 1.5).round();
        let part = match u {
            _ if u > 1.0 => scaled(colour, 0.5),
            _ if u > 1.1 - radius / 0.4 => WOOD,
            _ if u < -0.95 => KETCHUP,
            _ if u < -0.8 => [0.7; 3],
            _ => colour,
        };
        (tapered(u, v), scaled(part, lit))
    });
}

fn banana(canvas: &mut Canvas, frame: Frame, random: &mut Random) {
    let frame = frame.bent(random.between(0.35, 0.7));
    let (colour, radius) = (random.near(BANANA, 0.06), random.between(0.17, 0.27));
    canvas.rod(frame, 1.05, 0.07, MEAT);
    canvas.rod(frame, 0.97, radius, colour);
    canvas.paint(frame, 0.35, 1.5, |u, v| (rod(u, v - 0.3 * radius, 0.75) - 0.015, MEAT));
}

/// From the side: bun, lettuce, meat, bun.
fn burger(canvas: &mut Canvas, frame: Frame, random: &mut Random) {
    let frame = Frame { angle: random.between(-0.5, 0.5), scale: frame.scale * 0.85, ..frame };
    let bread = random.near(BREAD, 0.08);
    let flat = |v: f32, height: f32| v * height;
    canvas.paint(frame.moved(0.08 * frame.scale), 0.4, 5.0, |u, v| (u.hypot(flat(v, 1.2)) - 0.95, [0.0; 3]));
    canvas.paint(frame, 1.0, 1.2, |u, v| (u.hypot(flat(v, 1.2)) - 0.95, scaled(bread, 0.95 - 0.3 * v * v - 0.15 * v)));
    let layers = [(LETTUCE, -0.12, 0.08), (MEAT, 0.10, 0.13), (BANANA, 0.0, 0.04), (KETCHUP, 0.26, 0.04)];
    for (colour, position, radius) in layers {
        if radius > 0.05 || random.chance(0.5) {
            let colour = random.near(colour, 0.06);
            canvas
                .paint(frame, 1.0, 1.2, |u, v| (rod(u, v - position - 0.02 * (14.0 * u).sin(), 0.9) - radius, colour));
        }
    }
}

/// Bread without a sausage.
fn bread_roll(canvas: &mut Canvas, frame: Frame, random: &mut Random) {
    let frame = frame.bent(random.between(-0.2, 0.2));
    let colour = random.near(BREAD, 0.08);
    let width = random.between(0.30, 0.5);
    canvas.rod(frame, random.between(0.8, 1.0), width, colour);
    for cut in 0..2 + random.below(3) {
        let at = -0.5 + 0.35 * cut as f32;
        canvas.paint(frame, 0.5, 2.0, |u, v| (rod(v, u - at - 0.3 * v, 0.6 * width) - 0.03, scaled(colour, 0.55)));
    }
}

fn carrot(canvas: &mut Canvas, frame: Frame, random: &mut Random) {
    let colour = random.near([0.92, 0.46, 0.10], 0.06);
    let width = random.between(0.18, 0.3);
    for leaf in 0..3 {
        let side = (leaf as f32 - 1.0) * 0.3;
        let leaves = Frame { angle: frame.angle + side * 0.3, ..frame };
        canvas.paint(leaves, 1.0, 1.5, |u, v| (rod(u + 1.0, v - 0.1 * side, 0.3) - 0.05, LETTUCE));
    }
    let thickness = |u: f32| width * (1.0 - 0.42 * (u + 0.95)).max(0.0);
    let shape = |u: f32, v: f32| (v.abs() - thickness(u)).max(-0.95 - u);
    canvas.paint(frame.moved(0.06 * frame.scale), 0.4, 4.0, |u, v| (shape(u, v), [0.0; 3]));
    canvas.paint(frame, 1.0, 1.5, |u, v| {
        let rings = if (17.0 * u + 3.0 * v).sin() > 0.93 { 0.8 } else { 1.0 };
        let height = 1.0 - (v / thickness(u).max(0.02)).powi(2);
        (shape(u, v), scaled(colour, rings * (0.65 + 0.35 * height.clamp(0.0, 1.0))))
    });
}

/// The camera's part: brightness, tint, a darker side, noise.
fn expose(canvas: &mut Canvas, random: &mut Random) -> RgbImage {
    let size = canvas.size as f32;
    let brightness = random.between(0.65, 1.15);
    let tint = [0; 3].map(|_| brightness * random.between(0.9, 1.1));
    let (fall, direction) = (random.between(0.0, 0.4), random.between(0.0, std::f32::consts::TAU));
    let noise = random.between(0.01, 0.06);
    canvas.each(|x, y, pixel| {
        let along = (x / size - 0.5) * direction.cos() + (y / size - 0.5) * direction.sin();
        for (channel, tint) in pixel.iter_mut().zip(tint) {
            *channel = *channel * tint * (1.0 - fall * along) + random.between(-noise, noise);
        }
    });
    RgbImage::from_fn(canvas.size, canvas.size, |x, y| {
        let pixel = canvas.pixels[(y * canvas.size + x) as usize];
        image::Rgb(pixel.map(|channel| (channel.clamp(0.0, 1.0) * 255.0).round() as u8))
    })
}
