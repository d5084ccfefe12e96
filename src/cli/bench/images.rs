//! The images of a benchmark: noise, stored where training stores its images.

use crate::data::{Augmenter, Placement};
use crate::device::{Device, ImageView, Resampling, write_f32};
use crate::error::Result;
use crate::model::BatchShape;
use crate::tensor::{ElementType, Tensor};

/// A batch of noise, the same in every run.
pub(super) struct Images(Placement<Vec<f32>, Decoded>);

/// Decoded images on the device, from which every step computes its pixels.
struct Decoded {
    views: Vec<ImageView>,
    augmenter: Augmenter,
}

/// The size of a photo, and the half of it that a training step crops.
const PHOTO: [usize; 3] = [375, 500, 3];
const CROP: usize = 306;

/// The maximum number of decoded images: 72 MB, more than the second-level cache of a GPU. Larger batches reuse them.
const DECODED: usize = 128;

impl Images {
    pub fn new(device: &dyn Device, shape: BatchShape) -> Result<Self> {
        let mut state = 1_u64;
        // A linear congruential generator (Knuth's constants).
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 40
        };
        Ok(Self(match Placement::of(device) {
            Placement::Host(()) => {
                let len = shape.batch * shape.height * shape.width * 3;
                Placement::Host((0..len).map(|_| 2.0 * (next() as f32 / (1 << 23) as f32 - 1.0)).collect())
            }
            Placement::Device(()) => Placement::Device(Decoded::new(device, shape, || (next() >> 16) as u8)?),
        }))
    }

    /// Writes the normalised pixels, `[N, H, W, 3]`, as a step of training does.
    pub fn write(&self, device: &dyn Device, input: &Tensor) -> Result<()> {
        match &self.0 {
            Placement::Host(images) => write_f32(device, images, input),
            Placement::Device(decoded) => decoded.augmenter.augment(device, &decoded.views, input),
        }
    }
}

impl Decoded {
    fn new(device: &dyn Device, shape: BatchShape, mut next: impl FnMut() -> u8) -> Result<Self> {
        let values = PHOTO.iter().product::<usize>();
        let images = shape.batch.min(DECODED);
        let bytes = images * values;
        let decoded = Tensor::new(device.allocate(bytes)?, 0, [bytes].into(), ElementType::U8);
        let noise: Vec<u8> = (0..bytes).map(|_| next()).collect();
        device.upload(&noise, &decoded)?;
        let views = (0..shape.batch).map(|place| {
            let resampling = Resampling {
                top: (place * 7 % (PHOTO[0] - CROP)) as u32,
                left: (place * 11 % (PHOTO[1] - CROP)) as u32,
                height: CROP as u32,
                width: CROP as u32,
                flip_columns: place % 2 == 1,
                ..Resampling::whole(shape.width as u32, shape.height as u32)
            };
            ImageView { image: decoded.part(place % images * values, PHOTO.into()), resampling }
        });
        Ok(Self { views: views.collect(), augmenter: Augmenter::new(device, shape.batch)? })
    }
}

/// The number of classes hardly affects the speed.
pub(super) const CLASSES: usize = 2;

/// A class for each image of a batch.
pub(super) fn targets(shape: BatchShape) -> Vec<u32> {
    (0..shape.batch).map(|image| (image % CLASSES) as u32).collect()
}
