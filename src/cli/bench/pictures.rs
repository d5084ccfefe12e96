//! The pictures of a benchmark: noise, where training has its pictures.

use super::CLASSES;
use crate::data::transform::normalized_levels;
use crate::device::{Augment, Device, PictureView, Resampling, write_f32};
use crate::error::Result;
use crate::model::BatchShape;
use crate::tensor::{ElementType, Tensor};

/// A batch of noise, the same in every run.
pub(super) enum Pictures {
    /// Normalised, `[N, H, W, 3]`.
    Host(Vec<f32>),
    /// On the device as decoded pictures, from which every step makes its pixels.
    Device {
        /// The kernel reads them there.
        _decoded: Tensor,
        views: Vec<u8>,
        table: Tensor,
        levels: Tensor,
        source_pixels: u64,
    },
}

/// A photo, and the half of it that a training step cuts out.
const PHOTO: [usize; 3] = [375, 500, 3];
const CROP: usize = 306;

/// Decoded pictures, at most: 72 MB, more than the second-level cache of a GPU. Larger batches use them again.
const DECODED: usize = 128;

impl Pictures {
    pub fn new(device: &dyn Device, shape: BatchShape) -> Result<Self> {
        let mut state = 1_u64;
        // A linear congruential generator (Knuth's constants).
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 40
        };
        if !device.has_augment() {
            let len = shape.batch * shape.height * shape.width * 3;
            return Ok(Self::Host((0..len).map(|_| 2.0 * (next() as f32 / (1 << 23) as f32 - 1.0)).collect()));
        }
        let allocate = |shape: crate::tensor::Shape, element_type: ElementType| -> Result<Tensor> {
            Ok(Tensor::new(device.allocate(shape.len() * element_type.size())?, 0, shape, element_type))
        };
        let values = PHOTO.iter().product::<usize>();
        let pictures = shape.batch.min(DECODED);
        let decoded = allocate([pictures * values].into(), ElementType::U8)?;
        let noise: Vec<u8> = (0..decoded.len()).map(|_| (next() >> 16) as u8).collect();
        device.upload(&noise, &decoded)?;
        let views = (0..shape.batch).map(|place| {
            let resampling = Resampling {
                top: (place * 7 % (PHOTO[0] - CROP)) as u32,
                left: (place * 11 % (PHOTO[1] - CROP)) as u32,
                height: CROP as u32,
                width: CROP as u32,
                scaled_height: shape.height as u32,
                scaled_width: shape.width as u32,
                window_top: 0,
                window_left: 0,
                flip: place % 2 == 1,
            };
            PictureView { picture: decoded.part(place % pictures * values, PHOTO.into()), resampling }.bytes()
        });
        let views = views.collect::<Result<Vec<_>>>()?.concat();
        let table = allocate([views.len()].into(), ElementType::U8)?;
        let levels = allocate([3, 256].into(), ElementType::F32)?;
        write_f32(device, normalized_levels(), &levels)?;
        let source_pixels = (shape.batch * CROP * CROP) as u64;
        Ok(Self::Device { _decoded: decoded, views, table, levels, source_pixels })
    }

    /// Writes the normalised pixels, `[N, H, W, 3]`, as a step of training does.
    pub fn write(&self, device: &dyn Device, input: &Tensor) -> Result<()> {
        match self {
            Self::Host(images) => write_f32(device, images, input),
            Self::Device { views, table, levels, source_pixels, .. } => {
                device.upload(views, table)?;
                let (levels, source_pixels) = (Some(levels), *source_pixels);
                device.augment(&Augment { views: table, levels, output: input, source_pixels })
            }
        }
    }
}

/// A class for each picture of a batch.
pub(super) fn targets(shape: BatchShape) -> Vec<u32> {
    (0..shape.batch).map(|image| (image % CLASSES) as u32).collect()
}
