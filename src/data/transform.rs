//! The operations that turn an image into a network's input, as in torchvision's `transforms`.
//!
//! A [`Transform`] is a list of operations. It is drawn once for each image and epoch: this makes the random choices and
//! combines the operations into one [`Resampling`]. [`super::Transformer`] on the CPU
//! or a device's `augment` executes it and makes no further choices. Both end with the normalisation of [`lookup_table`].

use std::str::FromStr;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::geometry::Geometry;
use super::random::{Purpose, RandomStream};
use super::trivial_augment::draw_trivial_augment;
use crate::device::{Colour, Edits, Erased, Resampling};
use crate::error::{Error, Result};

/// ImageNet's mean of red, green and blue, each from 0 to 1, which normalisation subtracts.
pub const MEAN: [f64; 3] = [0.485, 0.456, 0.406];

/// ImageNet's standard deviation of red, green and blue, by which normalisation then divides.
pub const STANDARD_DEVIATION: [f64; 3] = [0.229, 0.224, 0.225];

/// The shares of the image's area between which the crop of a training image is drawn by default.
pub const CROP_SCALE: (f64, f64) = (0.08, 1.0);

const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);
const ERASED_SCALE: (f64, f64) = (0.02, 0.33);
const ERASED_RATIO: (f64, f64) = (0.3, 3.3);
const TRIES: usize = 10;
const FLIP_PROBABILITY: f64 = 0.5;

/// How an image of any aspect ratio becomes a square.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResizeMode {
    /// Tests use the middle of the image, and training a random part of it with an aspect ratio of 3/4 to 4/3.
    #[default]
    Crop,
    /// The whole image is scaled to a square, whatever its aspect ratio, as by torchvision's `Resize((size, size))`. Training uses a
    /// random part of that square.
    Squash,
    /// The longer side is scaled and the shorter one padded with black, as by Pillow's `ImageOps.pad`. Training uses a random part of
    /// that square.
    Pad,
}

impl ResizeMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Crop, Self::Squash, Self::Pad];

    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crop => "crop",
            Self::Squash => "squash",
            Self::Pad => "pad",
        }
    }

    /// Whether it is [`ResizeMode::Crop`].
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for ResizeMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ResizeMode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let mode = Self::ALL.into_iter().find(|mode| mode.name() == name);
        mode.ok_or_else(|| Error::usage(format!("unknown resize mode {name}; expected crop, squash or pad")))
    }
}

/// One operation of a [`Transform`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    /// torchvision's `RandomResizedCrop(size, scale)`, see [`sample_random_resized_crop`]; of the squashed or padded image in the other
    /// resize modes.
    RandomResizedCrop {
        /// Height and width of the result.
        size: u32,
        /// Smallest and largest share of the area.
        scale: (f64, f64),
        /// How the image becomes a square.
        resize: ResizeMode,
    },
    /// An augmentation that the user chooses.
    Augmentation(Augmentation),
    /// Puts the operations on colours so far into a random order, as torchvision's `ColorJitter`.
    ShuffleColours,
    /// torchvision's `Resize(shorter_side)`, see [`resized_size`].
    Resize {
        /// Pixels of the shorter side of the result.
        shorter_side: u32,
    },
    /// torchvision's `CenterCrop(size)`, which pads with black where the image is smaller.
    CenterCrop {
        /// Height and width of the result.
        size: u32,
    },
    /// Scales the image to a square; see [`ResizeMode::Squash`].
    Squash {
        /// Height and width of the result.
        size: u32,
    },
    /// Pads the image to a square; see [`ResizeMode::Pad`].
    Pad {
        /// Height and width of the result.
        size: u32,
    },
}

impl Operation {
    /// Makes the operation's random choices and adds the operation to the resampling.
    fn draw(&self, random: &mut RandomStream, drawn: &mut Resampling, geometry: &mut Geometry, image_size: u32) {
        match *self {
            Self::RandomResizedCrop { size, scale, resize } => {
                let (width, height) = (drawn.width, drawn.height);
                let crop = match resize {
                    ResizeMode::Crop => sample_random_resized_crop(random, width, height, scale),
                    ResizeMode::Squash => {
                        // Squashed, the sides have the same length.
                        let ratio = f64::from(width) / f64::from(height);
                        sample_crop(random, width, height, scale, ratio, |_| true).unwrap_or(CropBox {
                            top: 0,
                            left: 0,
                            height,
                            width,
                        })
                    }
                    ResizeMode::Pad => return sample_padded(random, scale, size, drawn),
                };
                let CropBox { top, left, height, width } = crop;
                let (scaled_height, scaled_width) = (size, size);
                *drawn = Resampling { top, left, height, width, scaled_height, scaled_width, ..*drawn };
            }
            Self::Augmentation(augmentation) => augmentation.draw(random, drawn, geometry, image_size),
            Self::ShuffleColours => {
                let colours = drawn.edits.colours.iter().take_while(|colour| colour.is_some()).count();
                random.shuffle(&mut drawn.edits.colours[..colours]);
            }
            Self::Resize { shorter_side } => {
                (drawn.scaled_width, drawn.scaled_height) =
                    resized_size(drawn.scaled_width, drawn.scaled_height, shorter_side);
            }
            Self::CenterCrop { size } => {
                (drawn.window_top, drawn.window_left) =
                    (centered(drawn.scaled_height, size), centered(drawn.scaled_width, size));
            }
            Self::Squash { size } => (drawn.scaled_width, drawn.scaled_height) = (size, size),
            Self::Pad { size } => pad(size, drawn),
        }
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RandomResizedCrop { scale, resize, .. } => {
                f.write_str("random-resized-crop")?;
                if *scale != CROP_SCALE {
                    write!(f, "={}-{}", scale.0, scale.1)?;
                }
                match resize {
                    ResizeMode::Crop => Ok(()),
                    ResizeMode::Squash => f.write_str(" of the squashed image"),
                    ResizeMode::Pad => f.write_str(" of the padded image"),
                }
            }
            Self::Augmentation(augmentation) => write!(f, "{augmentation}"),
            Self::ShuffleColours => f.write_str("colours in random order"),
            Self::Resize { shorter_side } => write!(f, "resize={shorter_side}"),
            Self::CenterCrop { size } => write!(f, "center-crop={size}"),
            Self::Squash { size } => write!(f, "squash={size}"),
            Self::Pad { size } => write!(f, "pad={size}"),
        }
    }
}

/// What an [`Augmentation`] with one number draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// Rotates by up to this many degrees to either side, as `RandomAffine(degrees)`.
    Rotation,
    /// Moves by up to this share of the width and of the height, as `RandomAffine(translate)`.
    Translate,
    /// Scales by a factor of up to this much less or more than 1, as `RandomAffine(scale)`.
    Zoom,
    /// Shears along the rows by up to this many degrees, as `RandomAffine(shear)`.
    Shear,
    /// The factor of the brightness differs from 1 by up to this, as in `ColorJitter`.
    Brightness,
    /// The same for the contrast.
    Contrast,
    /// The same for the saturation.
    Saturation,
    /// Turns the hue by up to this share of a circle, as in `ColorJitter`.
    Hue,
    /// The probability of an erased rectangle, as in `RandomErasing`.
    RandomErasing,
}

impl Setting {
    /// Each with its name, the value in the help, the largest value, and what it is in the help.
    const TABLE: [(Self, &str, &str, f64, &str); 9] = [
        (Self::Rotation, "rotation", "DEGREES", 180.0, "rotates by up to this angle"),
        (Self::Translate, "translate", "SHARE", 1.0, "moves by up to this share of the size"),
        (Self::Zoom, "zoom", "SHARE", 0.9, "enlarges or shrinks by up to this share"),
        (Self::Shear, "shear", "DEGREES", 80.0, "shears by up to this angle"),
        (Self::Brightness, "brightness", "SHARE", 10.0, "changes the brightness by up to this share"),
        (Self::Contrast, "contrast", "SHARE", 10.0, "changes the contrast by up to this share"),
        (Self::Saturation, "saturation", "SHARE", 10.0, "changes the saturation by up to this share"),
        (Self::Hue, "hue", "SHARE", 0.5, "turns the hue by up to this share of a circle"),
        (Self::RandomErasing, "random-erasing", "PROBABILITY", 1.0, "erases a rectangle"),
    ];

    fn name(self) -> &'static str {
        Self::TABLE[self as usize].1
    }

    /// Whether it is one of those of `ColorJitter`.
    fn is_colour(self) -> bool {
        (Self::Brightness..=Self::Hue).contains(&self)
    }
}

impl Setting {
    fn draw(self, value: f64, random: &mut RandomStream, edits: &mut Edits, geometry: &mut Geometry, image_size: u32) {
        let mut around = |centre: f64| random.uniform(centre - value, centre + value);
        let size = f64::from(image_size);
        match self {
            Self::Rotation => geometry.angle = Some(around(0.0)),
            Self::Translate => {
                let [x, y] = [around(0.0), around(0.0)].map(|share| (share * size).round_ties_even());
                geometry.translate = Some([x, y]);
            }
            Self::Zoom => geometry.scale = Some(around(1.0)),
            Self::Shear => geometry.shear = Some([around(0.0), 0.0]),
            Self::Hue => edits.push(Colour::Hue(hue_shift(around(0.0)))),
            Self::Brightness | Self::Contrast | Self::Saturation => {
                let factor = random.uniform((1.0 - value).max(0.0), 1.0 + value) as f32;
                edits.push(match self {
                    Self::Brightness => Colour::Brightness(factor),
                    Self::Contrast => Colour::Contrast(factor),
                    _ => Colour::Saturation(factor),
                });
            }
            Self::RandomErasing if random.unit() < value => edits.erased = sample_erased(random, image_size),
            Self::RandomErasing => {}
        }
    }
}

/// What torchvision's `adjust_hue` adds to the hue, for a share of a circle.
pub fn hue_shift(share: f64) -> u8 {
    ((share * 255.0) as i32) as u8
}

/// Draws the rectangle of torchvision's `RandomErasing`: 0.02 to 0.33 of the area, aspect ratio 0.3 to 3.3 (log-uniform). None if none of
/// ten tries lies inside the image.
fn sample_erased(random: &mut RandomStream, size: u32) -> Option<Erased> {
    let area = f64::from(size) * f64::from(size);
    for _ in 0..TRIES {
        let erased = area * random.uniform(ERASED_SCALE.0, ERASED_SCALE.1);
        let ratio = random.uniform(ERASED_RATIO.0.ln(), ERASED_RATIO.1.ln()).exp();
        let height = (erased * ratio).sqrt().round_ties_even() as u32;
        let width = (erased / ratio).sqrt().round_ties_even() as u32;
        if height < size && width < size {
            let top = random.below(u64::from(size - height) + 1) as u32;
            let left = random.below(u64::from(size - width) + 1) as u32;
            return Some(Erased { top, left, height, width });
        }
    }
    None
}

/// A random operation of the training transform that the user chooses, in the form `NAME=VALUE`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Augmentation {
    /// The `scale` of torchvision's `RandomResizedCrop`: smallest and largest share of the image's area that a crop takes.
    CropScale {
        /// The smallest share, more than 0.
        from: f64,
        /// The largest share, at most 1.
        to: f64,
    },
    /// An operation with one number, which is not drawn if that is 0.
    Setting(Setting, f64),
    /// torchvision's `TrivialAugmentWide`, with bilinear interpolation: one of 14 operations.
    TrivialAugment,
    /// torchvision's `RandomHorizontalFlip(probability)`: exchanges left and right.
    HorizontalFlip {
        /// The probability, from 0 to 1.
        probability: f64,
    },
    /// torchvision's `RandomVerticalFlip(probability)`: exchanges top and bottom.
    VerticalFlip {
        /// The probability, from 0 to 1.
        probability: f64,
    },
}

impl Augmentation {
    /// The form of each augmentation, for the help of the command line.
    pub fn help() -> String {
        let mut help = String::from(
            "horizontal-flip=PROBABILITY [default: 0.5], vertical-flip=PROBABILITY, crop-scale=FROM-TO (share of an image's area that is \
             cropped) [default: 0.08-1], ",
        );
        for (_, name, value, _, meaning) in Setting::TABLE {
            help += &format!("{name}={value} ({meaning}), ");
        }
        help + "trivial-augment (one random operation, as TrivialAugment)"
    }

    /// Those that every run has.
    const DEFAULT: [Self; 2] = [
        Self::HorizontalFlip { probability: FLIP_PROBABILITY },
        Self::CropScale { from: CROP_SCALE.0, to: CROP_SCALE.1 },
    ];

    /// The default ones with those of a list; one of the list replaces an earlier one of its kind.
    fn with_default(augmentations: &[Self]) -> Vec<Self> {
        let mut chosen = Self::DEFAULT.to_vec();
        for &augmentation in augmentations {
            match chosen.iter_mut().find(|other| other.rank() == augmentation.rank()) {
                Some(other) => *other = augmentation,
                None => chosen.push(augmentation),
            }
        }
        chosen
    }

    /// Those of a list that the training transform would not do without it, each kind once.
    pub fn besides_default(augmentations: &[Self]) -> Vec<Self> {
        Self::with_default(augmentations).into_iter().filter(|one| !Self::DEFAULT.contains(one)).collect()
    }

    /// The same for two of a kind. The training transform draws them in this order.
    fn rank(&self) -> usize {
        match *self {
            Self::CropScale { .. } => 0,
            Self::HorizontalFlip { .. } => 1,
            Self::VerticalFlip { .. } => 2,
            Self::Setting(Setting::RandomErasing, _) => 20,
            Self::Setting(setting, _) => 3 + setting as usize,
            Self::TrivialAugment => 19,
        }
    }

    fn is_colour(&self) -> bool {
        matches!(self, Self::Setting(setting, _) if setting.is_colour())
    }

    fn draw(&self, random: &mut RandomStream, drawn: &mut Resampling, geometry: &mut Geometry, image_size: u32) {
        match *self {
            Self::Setting(setting, value) => setting.draw(value, random, &mut drawn.edits, geometry, image_size),
            Self::TrivialAugment => draw_trivial_augment(random, &mut drawn.edits, geometry, image_size),
            Self::HorizontalFlip { probability } => drawn.flip_columns ^= random.unit() < probability,
            Self::VerticalFlip { probability } => drawn.flip_rows ^= random.unit() < probability,
            // A property of the crop, which is drawn before.
            Self::CropScale { .. } => {}
        }
    }
}

impl FromStr for Augmentation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let probability = || {
            let probability = value.parse().ok().filter(|probability| (0.0..=1.0).contains(probability));
            probability.ok_or_else(|| Error::usage(format!("{name}={value}: expected a probability from 0 to 1")))
        };
        match name {
            "vertical-flip" => Ok(Self::VerticalFlip { probability: probability()? }),
            "horizontal-flip" => Ok(Self::HorizontalFlip { probability: probability()? }),
            "crop-scale" => {
                let limits = value.split_once('-').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
                let limits = limits.filter(|&(from, to): &(f64, f64)| 0.0 < from && from <= to && to <= 1.0);
                let (from, to) = limits.ok_or_else(|| {
                    Error::usage(format!("{text}: expected two shares of the area above 0 and up to 1, such as 0.35-1"))
                })?;
                Ok(Self::CropScale { from, to })
            }
            "trivial-augment" if text == name => Ok(Self::TrivialAugment),
            _ => {
                let found = Setting::TABLE.into_iter().find(|(_, other, ..)| *other == name);
                let (setting, _, _, largest, _) = found.ok_or_else(|| {
                    Error::usage(format!("unknown augmentation {text}; expected one of {}", Self::help()))
                })?;
                let value = value.parse().ok().filter(|value| (0.0..=largest).contains(value));
                let value =
                    value.ok_or_else(|| Error::usage(format!("{text}: expected a number from 0 to {largest}")))?;
                Ok(Self::Setting(setting, value))
            }
        }
    }
}

impl TryFrom<String> for Augmentation {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Augmentation> for String {
    fn from(augmentation: Augmentation) -> Self {
        augmentation.to_string()
    }
}

impl std::fmt::Display for Augmentation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::VerticalFlip { probability } => write!(f, "vertical-flip={probability}"),
            Self::HorizontalFlip { probability } => write!(f, "horizontal-flip={probability}"),
            Self::CropScale { from, to } => write!(f, "crop-scale={from}-{to}"),
            Self::Setting(setting, value) => write!(f, "{}={value}", setting.name()),
            Self::TrivialAugment => f.write_str("trivial-augment"),
        }
    }
}

/// The image for which a transform is drawn: the random choices depend on these numbers only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Draw {
    /// The run's seed.
    pub seed: u64,
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// The image's index in its data set.
    pub index: usize,
}

/// A list of operations that turn a decoded image into a square of pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct Transform {
    operations: Vec<Operation>,
    image_size: u32,
}

impl Transform {
    /// The training transform: a random part of the image, a horizontal flip with probability 0.5, and these augmentations. An
    /// augmentation replaces an earlier one of its kind, the default ones included.
    pub fn training(image_size: u32, resize: ResizeMode, augmentations: &[Augmentation]) -> Self {
        let mut scale = CROP_SCALE;
        let mut operations = Vec::new();
        let mut chosen = Augmentation::with_default(augmentations);
        chosen.sort_by_key(Augmentation::rank);
        for augmentation in chosen {
            match augmentation {
                Augmentation::CropScale { from, to } => scale = (from, to),
                Augmentation::Setting(_, 0.0) => {}
                other => operations.push(Operation::Augmentation(other)),
            }
        }
        let is_colour = |operation: &Operation| matches!(operation, Operation::Augmentation(one) if one.is_colour());
        if let Some(last) = operations.iter().rposition(is_colour)
            && operations.iter().filter(|operation| is_colour(operation)).count() > 1
        {
            operations.insert(last + 1, Operation::ShuffleColours);
        }
        operations.insert(0, Operation::RandomResizedCrop { size: image_size, scale, resize });
        Self { operations, image_size }
    }

    /// The test transform: the middle of the image, scaled to [`test_shorter_side`], or the squashed or padded image. It draws nothing.
    pub fn test(image_size: u32, resize: ResizeMode) -> Self {
        let operation = match resize {
            ResizeMode::Crop => return Self::resize_and_center_crop(test_shorter_side(image_size), image_size),
            ResizeMode::Squash => Operation::Squash { size: image_size },
            ResizeMode::Pad => Operation::Pad { size: image_size },
        };
        Self { operations: vec![operation], image_size }
    }

    /// The middle `image_size` pixels of the image, scaled to this shorter side. It draws nothing.
    pub fn resize_and_center_crop(shorter_side: u32, image_size: u32) -> Self {
        let operations = vec![Operation::Resize { shorter_side }, Operation::CenterCrop { size: image_size }];
        Self { operations, image_size }
    }

    /// Whether some images are mirrored.
    pub fn mirrors(&self) -> bool {
        self.operations.iter().any(|operation| {
            matches!(operation, Operation::Augmentation(Augmentation::HorizontalFlip { probability }) if *probability > 0.0)
        })
    }

    /// Whether it changes more of some images than their place, size and direction, for which a device's `augment` needs a workspace.
    pub fn has_edits(&self) -> bool {
        self.operations.iter().any(|operation| match operation {
            Operation::Augmentation(Augmentation::Setting(_, value)) => *value > 0.0,
            Operation::Augmentation(augmentation) => *augmentation == Augmentation::TrivialAugment,
            _ => false,
        })
    }

    /// The operations, in order.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Height and width of the result in pixels.
    pub fn image_size(&self) -> u32 {
        self.image_size
    }

    /// Draws the resampling of one image of this size.
    pub fn draw(&self, draw: Draw, width: u32, height: u32) -> Resampling {
        let Draw { seed, epoch, index } = draw;
        let mut random = RandomStream::new(seed, Purpose::Augmentation, epoch, index as u64);
        let mut drawn = Resampling::whole(width, height);
        let mut geometry = Geometry::default();
        for operation in &self.operations {
            operation.draw(&mut random, &mut drawn, &mut geometry, self.image_size);
        }
        drawn.edits.affine = geometry.map(self.image_size);
        drawn
    }
}

/// A rectangle of whole pixels within an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropBox {
    /// Rows above the rectangle.
    pub top: u32,
    /// Columns to the left of the rectangle.
    pub left: u32,
    /// Number of rows, at least one.
    pub height: u32,
    /// Number of columns, at least one.
    pub width: u32,
}

/// Draws the crop of torchvision's `RandomResizedCrop`: a share of the area within `scale`, aspect ratio 3/4 to 4/3 (log-uniform),
/// ten tries; then the largest central crop whose ratio is within the bounds.
pub fn sample_random_resized_crop(random: &mut RandomStream, width: u32, height: u32, scale: (f64, f64)) -> CropBox {
    sample_crop(random, width, height, scale, 1.0, |_| true).unwrap_or_else(|| central_crop(width, height))
}

/// The first of ten draws that lies inside the image and is accepted. Aspect ratios are 3/4 to 4/3 times `ratio`.
fn sample_crop(
    random: &mut RandomStream,
    width: u32,
    height: u32,
    scale: (f64, f64),
    ratio: f64,
    accepts: impl Fn(CropBox) -> bool,
) -> Option<CropBox> {
    let area = f64::from(width) * f64::from(height);
    for _ in 0..TRIES {
        let target_area = area * random.uniform(scale.0, scale.1);
        let ratio = ratio * random.uniform(RATIO.0.ln(), RATIO.1.ln()).exp();
        let crop_width = (target_area * ratio).sqrt().round_ties_even() as u32;
        let crop_height = (target_area / ratio).sqrt().round_ties_even() as u32;
        if 0 < crop_width && crop_width <= width && 0 < crop_height && crop_height <= height {
            let top = random.below(u64::from(height - crop_height) + 1) as u32;
            let left = random.below(u64::from(width - crop_width) + 1) as u32;
            let crop = CropBox { top, left, height: crop_height, width: crop_width };
            if accepts(crop) {
                return Some(crop);
            }
        }
    }
    None
}

/// Draws a part of the padded image that is not all black. After ten tries, it is the whole padded image.
fn sample_padded(random: &mut RandomStream, scale: (f64, f64), size: u32, drawn: &mut Resampling) {
    let (width, height) = (drawn.width, drawn.height);
    let side = width.max(height);
    let across = |crop: CropBox| InPadded::new(side, width, crop.left, crop.width, size);
    let down = |crop: CropBox| InPadded::new(side, height, crop.top, crop.height, size);
    let is_seen = |crop| across(crop).is_some() && down(crop).is_some();
    let crop = sample_crop(random, side, side, scale, 1.0, is_seen);
    match crop.and_then(|crop| across(crop).zip(down(crop))) {
        None => pad(size, drawn),
        Some((across, down)) => {
            *drawn = Resampling {
                top: down.first,
                left: across.first,
                height: down.count,
                width: across.count,
                scaled_height: down.scaled,
                scaled_width: across.scaled,
                window_top: -down.padding,
                window_left: -across.padding,
                ..*drawn
            }
        }
    }
}

/// One axis of a crop of a padded image.
struct InPadded {
    /// The first pixel of the image in the crop, and the number of pixels.
    first: u32,
    count: u32,
    /// The pixels to which they are scaled, and those of the output before them.
    scaled: u32,
    padding: i32,
}

impl InPadded {
    /// The crop has `count` pixels from `begin` on, of `side` pixels of which those in the middle are the `length` pixels of the image,
    /// and is scaled to `size`. None if it has no pixel of the image.
    fn new(side: u32, length: u32, begin: u32, count: u32, size: u32) -> Option<Self> {
        let before = (side - length) / 2;
        let first = begin.max(before);
        let end = (begin + count).min(before + length);
        if first >= end {
            return None;
        }
        let scaled = |pixels: u32| (f64::from(pixels) * f64::from(size) / f64::from(count)).round_ties_even() as u32;
        let padding = scaled(first - begin).min(size.saturating_sub(1));
        let scaled = scaled(end - begin).saturating_sub(padding).max(1);
        Some(Self { first: first - before, count: end - first, scaled, padding: padding as i32 })
    }
}

/// Pillow's `ImageOps.pad` to a square: scales the longer side to `size`, and puts the shorter one in the middle.
fn pad(size: u32, drawn: &mut Resampling) {
    let (width, height) = (drawn.width, drawn.height);
    let other = |short: u32, long: u32| {
        ((f64::from(short) / f64::from(long) * f64::from(size)).round_ties_even() as u32).clamp(1, size.max(1))
    };
    (drawn.scaled_width, drawn.scaled_height) =
        if width >= height { (size, other(height, width)) } else { (other(width, height), size) };
    let before = |scaled: u32| -((f64::from(size - scaled.min(size)) * 0.5).round_ties_even() as i32);
    (drawn.window_top, drawn.window_left) = (before(drawn.scaled_height), before(drawn.scaled_width));
}

/// The fallback of [`sample_random_resized_crop`]: the whole image if its aspect ratio is within 3/4 to 4/3, otherwise the
/// largest part of its middle that has such a ratio.
pub fn central_crop(width: u32, height: u32) -> CropBox {
    let ratio = f64::from(width) / f64::from(height);
    let (crop_width, crop_height) = if ratio < RATIO.0 {
        (width, (f64::from(width) / RATIO.0).round_ties_even() as u32)
    } else if ratio > RATIO.1 {
        ((f64::from(height) * RATIO.1).round_ties_even() as u32, height)
    } else {
        (width, height)
    };
    // Rounding may make a crop one pixel too large if the image has nearly that ratio.
    let (crop_width, crop_height) = (crop_width.min(width), crop_height.min(height));
    CropBox { top: (height - crop_height) / 2, left: (width - crop_width) / 2, height: crop_height, width: crop_width }
}

/// The size (width, height) of torchvision's `Resize(shorter_side)`: the longer side is truncated.
pub fn resized_size(width: u32, height: u32, shorter_side: u32) -> (u32, u32) {
    let (short, long) = (width.min(height), width.max(height));
    let new_long = (f64::from(shorter_side) * f64::from(long) / f64::from(short)) as u32;
    if width <= height { (shorter_side, new_long) } else { (new_long, shorter_side) }
}

/// The shorter side to which the test transform scales an image before it takes the central `image_size` pixels:
/// 256 for 224, and in proportion for other sizes.
pub fn test_shorter_side(image_size: u32) -> u32 {
    (f64::from(image_size) * 256.0 / 224.0).round_ties_even() as u32
}

/// Where torchvision's `CenterCrop` begins along an axis: before its first pixel if the axis is shorter than the crop.
fn centered(length: u32, crop: u32) -> i32 {
    // Half of a 32-bit number fits.
    if length < crop {
        return -(((crop - length) / 2) as i32);
    }
    (f64::from(length - crop) / 2.0).round_ties_even() as i32
}

/// The normalised value of each byte of red, green and blue, `[3, 256]`: the byte scaled to 0..1, minus [`MEAN`],
/// divided by [`STANDARD_DEVIATION`], in float32 as PyTorch computes it.
pub fn lookup_table() -> &'static [[f32; 256]; 3] {
    static TABLE: LazyLock<[[f32; 256]; 3]> = LazyLock::new(|| {
        std::array::from_fn(|channel| {
            let (mean, deviation) = (MEAN[channel] as f32, STANDARD_DEVIATION[channel] as f32);
            std::array::from_fn(|byte| (byte as f32 / 255.0 - mean) / deviation)
        })
    });
    &TABLE
}
