//! The objects in the images. Each function draws one at a random position, with random size, colours and details.

use super::canvas::{Canvas, Colour, Frame, any_colour, between, chance, lit, mix, near, segment};
use crate::data::random::RandomStream;

const BREAD: Colour = [0.80, 0.56, 0.28];
const SAUSAGE: Colour = [0.66, 0.24, 0.14];
const MUSTARD: Colour = [0.93, 0.78, 0.12];
const KETCHUP: Colour = [0.78, 0.07, 0.05];
const BANANA: Colour = [0.94, 0.82, 0.22];
const LETTUCE: Colour = [0.36, 0.66, 0.20];
const MEAT: Colour = [0.34, 0.18, 0.10];
const WOOD: Colour = [0.85, 0.68, 0.45];
const CARROT: Colour = [0.92, 0.46, 0.10];
const CHOCOLATE: Colour = [0.27, 0.14, 0.08];
const CREAM: Colour = [0.95, 0.90, 0.78];
const CHEESE: Colour = [0.95, 0.76, 0.30];
const YOLK: Colour = [0.97, 0.70, 0.10];
const WHITE: Colour = [0.96, 0.95, 0.92];
const SCALES: Colour = [0.45, 0.58, 0.68];

/// Range of the scale of an object, relative to the canvas.
const THING: (f32, f32) = (0.27, 0.46);

/// A table: two blended colours with stripes, checks, boards or no pattern.
pub fn table(canvas: &mut Canvas, random: &mut RandomStream) {
    let base = any_colour(random);
    let (other, pattern) = (near(base, 0.2, random), near(base, 0.3, random));
    let frame = Frame::random(canvas, (0.26, 0.42), random).bent(0.2);
    let (kind, frequency) = (random.below(4), between(3.0, 14.0, random));
    canvas.cover(frame, |u, v| {
        let wave = match kind {
            0 => (frequency * v).sin(),
            1 => ((frequency * u).sin() * (frequency * v).sin()).signum(),
            2 => (3.0 * (frequency * v).sin() + (1.7 * u + 4.0 * (2.0 * v).sin()).sin()).sin(),
            _ => 0.0,
        };
        mix(mix(base, other, 0.5 + 0.3 * u), pattern, 0.25 + 0.25 * wave)
    });
}

/// Objects in the background of images of all classes: a plate, crumbs, sticks, balls.
pub fn clutter(canvas: &mut Canvas, random: &mut RandomStream) {
    if chance(0.45, random) {
        let plate = Frame::random(canvas, (0.42, 0.6), random);
        let colour = if chance(0.7, random) { near([0.88, 0.88, 0.86], 0.1, random) } else { any_colour(random) };
        canvas.shade(plate, 0.03, |u, v| u.hypot(v) - 0.9);
        canvas.paint(plate, 1.0, 1.5, |u, v| {
            let distance = u.hypot(v);
            (distance - 0.9, lit(colour, if distance > 0.66 { 1.0 } else { 0.9 }))
        });
    }
    for _ in 0..random.below(5) {
        odd_thing(canvas, (0.03, 0.13), random);
    }
}

/// Small objects of any colour that may hide part of the subject.
pub fn in_front(canvas: &mut Canvas, random: &mut RandomStream) {
    for _ in 0..random.below(3) {
        odd_thing(canvas, (0.02, 0.07), random);
    }
}

fn odd_thing(canvas: &mut Canvas, scale: (f32, f32), random: &mut RandomStream) {
    let size = canvas.size as f32;
    let centre = [0; 2].map(|_| between(0.0, size, random));
    let frame = Frame { centre, reach: 2.7, ..Frame::random(canvas, scale, random) };
    let colour = any_colour(random);
    match random.below(3) {
        0 => canvas.rod(frame, between(0.6, 2.4, random), between(0.2, 0.6, random), colour),
        1 => {
            canvas.shade(frame, 0.1, |u, v| u.hypot(v) - 0.9);
            canvas
                .paint(frame, 1.0, 1.3, |u, v| (u.hypot(v) - 0.9, lit(colour, 1.05 - 0.4 * (u + 0.4).hypot(v + 0.4))));
        }
        _ => {
            let (width, height) = (between(0.5, 1.2, random), between(0.5, 1.2, random));
            let box_distance = |u: f32, v: f32| (u.abs() - width).max(v.abs() - height);
            canvas.shade(frame, 0.08, box_distance);
            canvas.paint(frame, 1.0, 1.3, |u, v| (box_distance(u, v), lit(colour, 1.0 - 0.1 * v)));
        }
    }
}

pub fn hot_dog(canvas: &mut Canvas, random: &mut RandomStream) {
    let frame = Frame::random(canvas, THING, random).bent(between(-0.25, 0.25, random));
    let bread = near(BREAD, 0.09, random);
    let width = between(0.30, 0.42, random);
    canvas.rod(frame, between(0.85, 1.0, random), width, bread);
    // The cut with the sausage in it.
    canvas.paint(frame, 0.6, 3.0, |u, v| (segment(u, v, 0.7) - 0.6 * width, lit(bread, 0.5)));
    if chance(0.3, random) {
        let side = width * between(0.25, 0.4, random);
        leafy(canvas, frame, side, random);
    }
    let sausage = near(SAUSAGE, 0.09, random);
    canvas.rod(frame, between(0.95, 1.15, random), width * between(0.42, 0.6, random), sausage);
    if chance(0.75, random) {
        sauce(canvas, frame, 0.75, width, random);
    }
}

/// Salad that is visible on one side.
fn leafy(canvas: &mut Canvas, frame: Frame, across: f32, random: &mut RandomStream) {
    let colour = near(LETTUCE, 0.08, random);
    canvas.paint(frame, 1.0, 1.5, |u, v| (segment(u, v - across - 0.04 * (15.0 * u).sin(), 0.7) - 0.12, colour));
}

/// A line of mustard or ketchup.
fn sauce(canvas: &mut Canvas, frame: Frame, half_length: f32, width: f32, random: &mut RandomStream) {
    let colour = near(if chance(0.6, random) { MUSTARD } else { KETCHUP }, 0.04, random);
    let (frequency, amplitude) = (between(9.0, 16.0, random), between(0.0, 0.3, random) * width);
    let radius = width * between(0.10, 0.2, random);
    canvas.paint(frame, 0.95, 1.2, |u, v| {
        (segment(u, v - amplitude * (frequency * u).sin(), half_length) - radius, colour)
    });
}

/// One to three sausages without bread, grilled or with sauce.
pub fn sausage(canvas: &mut Canvas, random: &mut RandomStream) {
    let count = 1 + random.below(3);
    let frame = Frame::random(canvas, THING, random).bent(between(-0.35, 0.35, random));
    let (colour, radius) = (near(SAUSAGE, 0.1, random), between(0.13, 0.22, random));
    let grilled = chance(0.5, random);
    for number in 0..count {
        let across = (number as f32 - 0.5 * (count - 1) as f32) * 2.3 * radius;
        let frame = frame.shifted(between(-0.1, 0.1, random), across).turned(between(-0.06, 0.06, random));
        canvas.rod(frame, between(0.85, 1.1, random), radius, colour);
        if grilled {
            canvas.paint(frame, 0.6, 1.3, |u, v| {
                let stripe = 0.5 - (8.0 * u + 4.0 * v).sin();
                ((segment(u, v, 0.75) - 0.8 * radius).max(0.2 * stripe), lit(MEAT, 0.7))
            });
        } else if chance(0.5, random) {
            sauce(canvas, frame, 0.75, 2.0 * radius, random);
        }
    }
}

/// The parts of a hot dog side by side.
pub fn sausage_beside_bread(canvas: &mut Canvas, random: &mut RandomStream) {
    let frame = Frame::random(canvas, (THING.0, 0.38), random).bent(between(-0.2, 0.2, random));
    let width = between(0.28, 0.38, random);
    let side = if chance(0.5, random) { 1.0 } else { -1.0 };
    let bread = near(BREAD, 0.09, random);
    canvas.rod(frame.shifted(0.0, -0.5 * side * width), between(0.85, 1.0, random), width, bread);
    let radius = width * between(0.42, 0.6, random);
    let beside = frame.shifted(between(-0.2, 0.2, random), side * (0.62 * width + radius + 0.04));
    let beside = beside.turned(between(-0.25, 0.25, random));
    canvas.rod(beside, between(0.9, 1.1, random), radius, near(SAUSAGE, 0.09, random));
    if chance(0.5, random) {
        sauce(canvas, beside, 0.7, 1.6 * radius, random);
    }
}

/// Bread without a sausage: cut, or with sauce, or plain.
pub fn bread_roll(canvas: &mut Canvas, random: &mut RandomStream) {
    let frame = Frame::random(canvas, THING, random).bent(between(-0.2, 0.2, random));
    let colour = near(BREAD, 0.09, random);
    let width = between(0.30, 0.5, random);
    canvas.rod(frame, between(0.8, 1.0, random), width, colour);
    match random.below(4) {
        0 => sauce(canvas, frame, 0.6, width, random),
        1 => canvas.paint(frame, 0.55, 3.0, |u, v| (segment(u, v, 0.65) - 0.25 * width, lit(colour, 0.5))),
        _ => {
            for cut in 0..2 + random.below(3) {
                let at = -0.5 + 0.35 * cut as f32;
                canvas.paint(frame, 0.5, 2.0, |u, v| {
                    (segment(v, u - at - 0.3 * v, 0.6 * width) - 0.03, lit(colour, 0.55))
                });
            }
        }
    }
}

/// Choux pastry in the shape of a roll, with icing in place of the sausage.
pub fn eclair(canvas: &mut Canvas, random: &mut RandomStream) {
    let frame = Frame::random(canvas, THING, random).bent(between(-0.15, 0.15, random));
    let width = between(0.28, 0.4, random);
    canvas.rod(frame, between(0.85, 1.0, random), width, near(BREAD, 0.09, random));
    let icing = match random.below(3) {
        0 => near(CHOCOLATE, 0.05, random),
        1 => near([0.90, 0.55, 0.62], 0.08, random),
        _ => near(CREAM, 0.05, random),
    };
    canvas.paint(frame, 1.0, 1.4, |u, v| {
        let edge = 0.05 * (9.0 * u).sin() * (7.0 * v + 1.0).cos();
        (segment(u, v + 0.1 * width, 0.62) - (0.62 + edge) * width, lit(icing, 1.05 - 0.6 * v.abs()))
    });
    if chance(0.6, random) {
        let (line, frequency) = (if icing[0] > 0.6 { CHOCOLATE } else { CREAM }, between(10.0, 18.0, random));
        canvas.paint(frame, 0.95, 1.2, |u, v| {
            (segment(u, v + 0.1 * width - 0.35 * width * (frequency * u).sin(), 0.6) - 0.035, line)
        });
    }
}

pub fn pencil(canvas: &mut Canvas, random: &mut RandomStream) {
    let frame = Frame::random(canvas, THING, random);
    let colour = any_colour(random);
    let radius = between(0.08, 0.2, random);
    let tapered = |u: f32, v: f32| (v.abs() - radius.min((1.1 - u) * 0.4)).max(-1.1 - u);
    canvas.shade(frame, 0.06, tapered);
    canvas.paint(frame, 1.0, 1.2, |u, v| {
        let light = 1.0 - 0.25 * (v / radius * 1.5).round();
        let part = match u {
            _ if u > 1.0 => lit(colour, 0.5),
            _ if u > 1.1 - radius / 0.4 => WOOD,
            _ if u < -0.95 => KETCHUP,
            _ if u < -0.8 => [0.7; 3],
            _ => colour,
        };
        (tapered(u, v), lit(part, light))
    });
}

pub fn banana(canvas: &mut Canvas, random: &mut RandomStream) {
    let frame = Frame::random(canvas, THING, random).bent(between(0.35, 0.7, random));
    let (colour, radius) = (near(BANANA, 0.07, random), between(0.17, 0.27, random));
    canvas.rod(frame, 1.05, 0.07, MEAT);
    canvas.rod(frame, 0.97, radius, colour);
    canvas.paint(frame, 0.35, 1.5, |u, v| (segment(u, v - 0.3 * radius, 0.75) - 0.015, MEAT));
    for _ in 0..random.below(6) {
        let (at, across) = (between(-0.7, 0.7, random), between(-0.5, 0.5, random) * radius);
        canvas.paint(frame, 0.5, 1.5, |u, v| ((u - at).hypot(v - across) - 0.05, MEAT));
    }
}

/// From the side: bun, lettuce, meat, bun.
pub fn burger(canvas: &mut Canvas, random: &mut RandomStream) {
    let frame = Frame::random(canvas, THING, random).scaled(0.85);
    let frame = Frame { angle: between(-0.6, 0.6, random), ..frame };
    let bread = near(BREAD, 0.09, random);
    let outline = |u: f32, v: f32| u.hypot(1.2 * v) - 0.95;
    canvas.shade(frame, 0.08, outline);
    canvas.paint(frame, 1.0, 1.2, |u, v| (outline(u, v), lit(bread, 0.95 - 0.3 * v * v - 0.15 * v)));
    let layers = [(LETTUCE, -0.12, 0.08), (MEAT, 0.10, 0.13), (CHEESE, 0.0, 0.04), (KETCHUP, 0.26, 0.04)];
    for (colour, position, radius) in layers {
        if radius > 0.05 || chance(0.5, random) {
            let colour = near(colour, 0.07, random);
            canvas.paint(frame, 1.0, 1.2, |u, v| {
                (segment(u, v - position - 0.02 * (14.0 * u).sin(), 0.9) - radius, colour)
            });
        }
    }
    for _ in 0..random.below(7) {
        let (at, up) = (between(-0.5, 0.5, random), between(-0.6, -0.3, random));
        canvas.paint(frame, 0.9, 1.2, |u, v| (segment(u - at, v - up, 0.03) - 0.025, CREAM));
    }
}

pub fn carrot(canvas: &mut Canvas, random: &mut RandomStream) {
    let frame = Frame::random(canvas, THING, random);
    let colour = near(CARROT, 0.07, random);
    let width = between(0.18, 0.3, random);
    for leaf in 0..3 {
        let side = (leaf as f32 - 1.0) * 0.3;
        canvas
            .paint(frame.turned(side * 0.3), 1.0, 1.5, |u, v| (segment(u + 1.0, v - 0.1 * side, 0.3) - 0.05, LETTUCE));
    }
    let thickness = |u: f32| width * (1.0 - 0.42 * (u + 0.95)).max(0.0);
    let shape = |u: f32, v: f32| (v.abs() - thickness(u)).max(-0.95 - u);
    canvas.shade(frame, 0.06, shape);
    canvas.paint(frame, 1.0, 1.5, |u, v| {
        let rings = if (17.0 * u + 3.0 * v).sin() > 0.93 { 0.8 } else { 1.0 };
        let height = 1.0 - (v / thickness(u).max(0.02)).powi(2);
        (shape(u, v), lit(colour, rings * (0.65 + 0.35 * height.clamp(0.0, 1.0))))
    });
}

pub fn apple(canvas: &mut Canvas, random: &mut RandomStream) {
    let frame = Frame::random(canvas, THING, random).scaled(0.75);
    let frame = Frame { angle: between(-0.7, 0.7, random), ..frame };
    let colour = match random.below(3) {
        0 => near([0.76, 0.10, 0.10], 0.08, random),
        1 => near([0.50, 0.72, 0.18], 0.08, random),
        _ => near([0.88, 0.74, 0.22], 0.06, random),
    };
    let cheek = near([0.80, 0.20, 0.12], 0.08, random);
    let outline = |u: f32, v: f32| u.hypot(v) - 0.9 - 0.14 * (u.abs() - 0.35) * (1.0 - v).clamp(0.0, 1.5);
    canvas.shade(frame, 0.1, outline);
    canvas.paint(frame, 1.0, 1.3, |u, v| {
        let shine = (1.0 - 3.0 * (u + 0.35).hypot(v + 0.35)).max(0.0);
        let skin = mix(colour, cheek, (0.5 + 0.6 * u).clamp(0.0, 1.0) * 0.6);
        (outline(u, v), mix(lit(skin, 1.1 - 0.45 * (u + 0.3).hypot(v + 0.3)), WHITE, 0.6 * shine))
    });
    let tilt = between(-0.3, 0.3, random);
    canvas.paint(frame, 1.0, 1.3, |u, v| (segment(v + 0.95, u - tilt * (v + 0.95), 0.22) - 0.05, MEAT));
    if chance(0.5, random) {
        canvas
            .paint(frame.shifted(0.3, -1.0).turned(-0.4), 1.0, 1.3, |u, v| (segment(u, 2.0 * v, 0.15) - 0.16, LETTUCE));
    }
}

pub fn doughnut(canvas: &mut Canvas, random: &mut RandomStream) {
    let frame = Frame::random(canvas, THING, random).scaled(0.85);
    let (dough, ring, radius) = (near(BREAD, 0.09, random), between(0.55, 0.62, random), between(0.28, 0.38, random));
    let icing = any_colour(random);
    let distance = |u: f32, v: f32| (u.hypot(v) - ring).abs();
    canvas.shade(frame, 0.08, |u, v| distance(u, v) - radius);
    canvas.paint(frame, 1.0, 1.3, |u, v| {
        let height = (1.0 - (distance(u, v) / radius).powi(2)).max(0.0).sqrt();
        (distance(u, v) - radius, lit(dough, 0.55 + 0.45 * height))
    });
    if chance(0.75, random) {
        canvas.paint(frame, 1.0, 1.5, |u, v| {
            let edge = radius * (0.72 + 0.08 * (7.0 * v.atan2(u)).sin());
            let height = (1.0 - (distance(u, v) / edge).powi(2)).max(0.0).sqrt();
            (distance(u, v) - edge, lit(icing, 0.75 + 0.3 * height))
        });
        for _ in 0..random.below(14) {
            let (turn, out) = (between(0.0, std::f32::consts::TAU, random), between(-0.5, 0.5, random) * radius);
            let at = frame.shifted((ring + out) * turn.cos(), (ring + out) * turn.sin());
            let colour = any_colour(random);
            canvas.paint(at.turned(between(0.0, 3.1, random)), 1.0, 1.0, |u, v| (segment(u, v, 0.06) - 0.03, colour));
        }
    }
}

/// A fried egg with its yolk near the middle.
pub fn egg(canvas: &mut Canvas, random: &mut RandomStream) {
    let frame = Frame::random(canvas, THING, random);
    let waves: [f32; 3] = std::array::from_fn(|_| between(0.0, std::f32::consts::TAU, random));
    let outline = |u: f32, v: f32| {
        let turn = v.atan2(u);
        let edge = 0.1 * (2.0 * turn + waves[0]).sin()
            + 0.07 * (3.0 * turn + waves[1]).sin()
            + 0.04 * (5.0 * turn + waves[2]).sin();
        u.hypot(v) - 0.8 - edge
    };
    canvas.shade(frame, 0.03, outline);
    canvas.paint(frame, 1.0, 1.6, |u, v| {
        let rim = (outline(u, v) * 8.0 + 1.0).clamp(0.0, 1.0);
        (outline(u, v), mix(WHITE, [0.75, 0.55, 0.30], 0.5 * rim))
    });
    let yolk = frame.shifted(between(-0.2, 0.2, random), between(-0.2, 0.2, random));
    let (colour, radius) = (near(YOLK, 0.05, random), between(0.28, 0.38, random));
    canvas.paint(yolk, 1.0, 1.5, |u, v| {
        let shine = (1.0 - 6.0 * (u + 0.12).hypot(v + 0.12)).max(0.0);
        (u.hypot(v) - radius, mix(lit(colour, 1.05 - 0.5 * u.hypot(v)), WHITE, 0.7 * shine))
    });
}

pub fn fish(canvas: &mut Canvas, random: &mut RandomStream) {
    let frame = Frame::random(canvas, THING, random).bent(between(-0.15, 0.15, random));
    let colour = if chance(0.6, random) { near(SCALES, 0.12, random) } else { any_colour(random) };
    let height = between(0.32, 0.48, random);
    let body = |u: f32, v: f32| (u / 0.8).hypot(v / height) - 1.0;
    let tail = |u: f32, v: f32| ((v.abs() - 0.75 * (u - 0.65)).max(u - 1.15)).max(0.6 - u);
    let outline = |u: f32, v: f32| (body(u, v) * height).min(tail(u, v));
    canvas.shade(frame, 0.06, outline);
    canvas.paint(frame, 1.0, 1.3, |u, v| {
        let scales = if ((22.0 * u).sin() * (22.0 * v).sin()) > 0.4 { 0.85 } else { 1.0 };
        let belly = mix(colour, WHITE, (0.5 + v / height).clamp(0.0, 1.0) * 0.5);
        (outline(u, v), lit(belly, scales * (1.0 - 0.2 * (v / height).powi(2))))
    });
    canvas.paint(frame, 1.0, 1.2, |u, v| ((u + 0.5).hypot(v + 0.1) - 0.09, WHITE));
    canvas.paint(frame, 1.0, 1.2, |u, v| ((u + 0.5).hypot(v + 0.1) - 0.045, [0.05; 3]));
}

/// From the side: cap and stem.
pub fn mushroom(canvas: &mut Canvas, random: &mut RandomStream) {
    let frame = Frame::random(canvas, THING, random).scaled(0.85);
    let frame = Frame { angle: between(-0.8, 0.8, random), ..frame };
    let colour = match random.below(3) {
        0 => near(KETCHUP, 0.06, random),
        1 => near([0.55, 0.36, 0.20], 0.08, random),
        _ => near(CREAM, 0.06, random),
    };
    let (stem, width) = (near(CREAM, 0.05, random), between(0.2, 0.32, random));
    let stalk = |u: f32, v: f32| segment(v - 0.45, u, 0.4) - width * (0.85 + 0.25 * v);
    let cap = |u: f32, v: f32| (u.hypot(1.25 * (v - 0.1)) - 0.95).max(v - 0.1 - 0.08 * (3.0 * u).cos());
    canvas.shade(frame, 0.08, |u, v| stalk(u, v).min(cap(u, v)));
    canvas.paint(frame, 1.0, 1.3, |u, v| (stalk(u, v), lit(stem, 1.0 - 0.5 * (u - 0.1).abs())));
    canvas.paint(frame, 1.0, 1.3, |u, v| (cap(u, v), lit(colour, 1.1 - 0.4 * (u + 0.3).hypot(v + 0.5))));
    if chance(0.5, random) {
        for _ in 0..3 + random.below(5) {
            let (at, up, radius) =
                (between(-0.6, 0.6, random), between(-0.5, -0.05, random), between(0.05, 0.12, random));
            canvas.paint(frame, 0.95, 1.2, |u, v| (((u - at).hypot(v - up) - radius).max(cap(u, v)), WHITE));
        }
    }
}

/// A slice of pizza.
pub fn pizza(canvas: &mut Canvas, random: &mut RandomStream) {
    let frame = Frame::random(canvas, THING, random);
    let opening = between(0.32, 0.5, random);
    let slice = |u: f32, v: f32| (v.abs() - opening * (u + 0.95)).max((u + 0.95).hypot(v) - 1.85);
    canvas.shade(frame, 0.05, slice);
    let (crust, cheese) = (near(BREAD, 0.08, random), near(CHEESE, 0.06, random));
    canvas.paint(frame, 1.0, 1.3, |u, v| {
        let from_tip = (u + 0.95).hypot(v);
        let melted = 0.92 + 0.08 * (9.0 * u).sin() * (11.0 * v).cos();
        (
            slice(u, v),
            if from_tip > 1.6 { lit(crust, 1.0 - 0.4 * (from_tip - 1.72).abs()) } else { lit(cheese, melted) },
        )
    });
    for _ in 0..3 + random.below(5) {
        let at = between(-0.4, 0.55, random);
        let across = between(-0.75, 0.75, random) * opening * (at + 0.95);
        let (colour, radius) = match random.below(3) {
            0 | 1 => (near(SAUSAGE, 0.06, random), between(0.1, 0.17, random)),
            _ => (near(LETTUCE, 0.1, random), 0.07),
        };
        canvas.paint(frame, 1.0, 1.3, |u, v| (((u - at).hypot(v - across) - radius).max(slice(u, v)), colour));
    }
}
