//! Batches on their way to a network, whichever side makes the pixels: the threads that decode, or the device.
//!
//! A device that has `augment` gets every picture as it was decoded, once, and keeps it while there is room; a step
//! then uploads what is to be cut out of which picture, and nothing else. A picture that finds no room is decoded in every
//! epoch, copied to the device, and scaled there by the same kernel to bytes that wait for their batch: what a network
//! sees does not depend on how much memory was free.

use std::rc::Rc;

use super::decode::RgbImage;
use super::loader::{Batch, Epoch, Loader, Mode, Pictures, SkippedSample, epoch_order};
use super::store::PictureStore;
use super::transform::{Augmentation, center_crop_resampling, normalized_levels, test_shorter_side};
use crate::device::{Augment, Device, PictureView, Resampling, write_f32};
use crate::error::{Error, Result};
use crate::tensor::{ElementType, Tensor};

/// The batches of a data set, epoch after epoch.
pub struct Batches {
    loader: Loader,
    /// Where the device makes the pixels.
    resident: Option<Resident>,
}

/// A data set's pictures on a device.
struct Resident {
    store: Rc<PictureStore>,
    /// By index in the data set.
    pictures: Vec<Option<Tensor>>,
    image_size: usize,
    /// What each byte becomes, `[3, 256]`.
    levels: Tensor,
    /// The views of a batch.
    table: Tensor,
    transit: Option<Transit>,
}

/// For pictures that find no room in the store.
struct Transit {
    /// One picture as it was decoded.
    decoded: Tensor,
    /// Its view.
    view: Tensor,
    /// The scaled pictures of a batch, `[batch_size, image_size, image_size, 3]`, bytes.
    scaled: Tensor,
}

/// One batch, ready to be written to a network's input.
pub struct InputBatch<'a> {
    /// The class of each picture; empty if every picture was skipped.
    pub targets: Vec<u32>,
    /// The index of each picture in [`super::ImageFolder::samples`].
    pub indices: Vec<usize>,
    /// What was left out.
    pub skipped: Vec<SkippedSample>,
    pixels: Pixels<'a>,
}

enum Pixels<'a> {
    Host(Batch),
    Device { resident: &'a Resident, views: Vec<PictureView> },
}

impl InputBatch<'_> {
    /// Writes the normalised pixels, `[n, image_size, image_size, 3]`.
    pub fn write(&self, device: &dyn Device, input: &Tensor) -> Result<()> {
        match &self.pixels {
            Pixels::Host(batch) => write_f32(device, &batch.images, input),
            Pixels::Device { resident, views } => resident.augment(views, input),
        }
    }
}

impl Batches {
    /// The batches of `loader` for the store's device, which keeps pictures there if it has a use for them.
    pub fn new(loader: Loader, store: &Rc<PictureStore>) -> Result<Self> {
        let resident = match store.device().has_augment() {
            true => Some(Resident::new(&loader, store)?),
            false => None,
        };
        Ok(Self { loader, resident })
    }

    /// The data set and how it is read.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    /// The batches of an epoch from number `first_batch` on.
    pub fn epoch_from(&mut self, epoch: u64, first_batch: usize) -> BatchEpoch<'_> {
        let source = match &self.resident {
            None => Source::Host(self.loader.epoch_from(epoch, first_batch)),
            Some(resident) => {
                let options = self.loader.options();
                let order = epoch_order(self.loader.dataset().len(), options.mode, epoch);
                let position = first_batch.saturating_mul(options.batch_size).min(order.len());
                let absent = |index: &usize| resident.pictures[*index].is_none();
                let absent: Vec<usize> = order[position..].iter().copied().filter(absent).collect();
                let decoded = (!absent.is_empty()).then(|| self.loader.decode(absent));
                Source::Device { epoch, order, position, decoded }
            }
        };
        BatchEpoch { batches: self, source }
    }
}

/// The batches of one epoch; see [`Batches::epoch_from`].
pub struct BatchEpoch<'a> {
    batches: &'a mut Batches,
    source: Source,
}

enum Source {
    Host(Epoch),
    Device {
        epoch: u64,
        order: Vec<usize>,
        position: usize,
        /// Those that are not on the device, in the same order.
        decoded: Option<Pictures>,
    },
}

impl BatchEpoch<'_> {
    /// The next batch, which has to be written before the one after it is made: they share memory on the device. Blocks
    /// until the pictures are there. None at the end, and after an error.
    pub fn next_batch(&mut self) -> Option<Result<InputBatch<'_>>> {
        match (&mut self.source, &mut self.batches.resident) {
            (Source::Host(epoch), _) => epoch.next().map(|batch| batch.map(InputBatch::of_host)),
            (Source::Device { epoch, order, position, decoded }, Some(resident)) => {
                let size = self.batches.loader.options().batch_size;
                let end = (*position + size).min(order.len());
                let indices = order.get(*position..end).filter(|indices| !indices.is_empty())?;
                let batch = resident.batch(&self.batches.loader, *epoch, indices, decoded.as_mut());
                *position = if batch.is_ok() { end } else { order.len() };
                Some(batch)
            }
            (Source::Device { .. }, None) => None,
        }
    }
}

impl InputBatch<'_> {
    fn of_host(mut batch: Batch) -> Self {
        let (targets, indices) = (std::mem::take(&mut batch.targets), std::mem::take(&mut batch.indices));
        let skipped = std::mem::take(&mut batch.skipped);
        Self { targets, indices, skipped, pixels: Pixels::Host(batch) }
    }
}

impl Resident {
    fn new(loader: &Loader, store: &Rc<PictureStore>) -> Result<Self> {
        let device = store.device().as_ref();
        let pictures = loader.dataset().len();
        let image_size = loader.options().image_size as usize;
        let batch_size = loader.options().batch_size.min(pictures);
        let levels = allocate(device, [3, 256].into(), ElementType::F32)?;
        write_f32(device, normalized_levels(), &levels)?;
        let table = allocate(device, [batch_size * PictureView::BYTES].into(), ElementType::U8)?;
        Ok(Self { store: store.clone(), pictures: vec![None; pictures], image_size, levels, table, transit: None })
    }

    /// Makes the batch of these samples. `decoded` yields those of them that are not on the device.
    fn batch(
        &mut self,
        loader: &Loader,
        epoch: u64,
        samples: &[usize],
        mut decoded: Option<&mut Pictures>,
    ) -> Result<InputBatch<'_>> {
        let (mut targets, mut indices, mut skipped, mut views) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for &index in samples {
            let resampling = |width, height| resampling(loader, epoch, index, width, height);
            let view = match &self.pictures[index] {
                Some(picture) => {
                    let &[height, width, _] = picture.shape().dims() else {
                        return Err(Error::new(format!("{picture:?} is no picture")));
                    };
                    let resampling = resampling(width as u32, height as u32);
                    PictureView { picture: picture.clone(), resampling }
                }
                None => {
                    let picture = decoded.as_mut().and_then(|decoded| decoded.next()).transpose()?;
                    let picture = picture.filter(|picture| picture.index == index);
                    match picture.ok_or_else(|| Error::new(format!("sample {index} was not decoded")))?.image {
                        Ok(image) => {
                            let resampling = resampling(image.width, image.height);
                            match self.store.keep(&image)? {
                                Some(picture) => {
                                    self.pictures[index] = Some(picture.clone());
                                    PictureView { picture, resampling }
                                }
                                None => self.scale(views.len(), &image, resampling)?,
                            }
                        }
                        Err(reason) => {
                            skipped.push(reason);
                            continue;
                        }
                    }
                }
            };
            targets.push(loader.dataset().samples[index].class as u32);
            indices.push(index);
            views.push(view);
        }
        Ok(InputBatch { targets, indices, skipped, pixels: Pixels::Device { resident: self, views } })
    }

    /// Scales a picture that is not kept, and gives a view of the result, which is place `place` of the batch.
    fn scale(&mut self, place: usize, image: &RgbImage, resampling: Resampling) -> Result<PictureView> {
        let device = self.store.device().as_ref();
        let size = self.image_size;
        let bytes = image.pixels.len();
        let mut transit = match self.transit.take() {
            Some(transit) => transit,
            None => {
                let places = self.table.len() / PictureView::BYTES;
                Transit {
                    decoded: allocate(device, [bytes].into(), ElementType::U8)?,
                    view: allocate(device, [PictureView::BYTES].into(), ElementType::U8)?,
                    scaled: allocate(device, [places, size, size, 3].into(), ElementType::U8)?,
                }
            }
        };
        if transit.decoded.bytes() < bytes {
            // The old memory goes first: two would not always fit.
            let Transit { decoded, view, scaled } = transit;
            drop(decoded);
            transit = Transit { decoded: allocate(device, [bytes].into(), ElementType::U8)?, view, scaled };
        }
        let Transit { decoded, view, scaled } = self.transit.insert(transit);
        let picture = decoded.part(0, [image.height as usize, image.width as usize, 3].into());
        device.upload(&image.pixels, &picture)?;
        device.upload(&PictureView { picture, resampling }.bytes()?, view)?;
        let values = size * size * 3;
        let source_pixels = u64::from(resampling.height) * u64::from(resampling.width);
        let output = &scaled.part(place * values, [1, size, size, 3].into());
        device.augment(&Augment { views: view, levels: None, output, source_pixels })?;
        Ok(PictureView { picture: scaled.part(place * values, [size, size, 3].into()), resampling: whole(size as u32) })
    }

    fn augment(&self, views: &[PictureView], output: &Tensor) -> Result<()> {
        let device = self.store.device().as_ref();
        let entries = views.iter().map(PictureView::bytes).collect::<Result<Vec<_>>>()?;
        let table = self.table.part(0, [entries.len() * PictureView::BYTES].into());
        device.upload(entries.as_flattened(), &table)?;
        let pixels = |view: &PictureView| u64::from(view.resampling.height) * u64::from(view.resampling.width);
        let source_pixels = views.iter().map(pixels).sum();
        device.augment(&Augment { views: &table, levels: Some(&self.levels), output, source_pixels })
    }
}

/// What the loader's transform does to a picture of this size.
fn resampling(loader: &Loader, epoch: u64, index: usize, width: u32, height: u32) -> Resampling {
    let size = loader.options().image_size;
    match loader.options().mode {
        Mode::Train { seed } => Augmentation::sample(seed, epoch, index, width, height).resampling(size),
        Mode::Evaluate => center_crop_resampling(width, height, test_shorter_side(size), size),
    }
}

/// A square picture as it is.
fn whole(size: u32) -> Resampling {
    let (height, width, scaled_height, scaled_width) = (size, size, size, size);
    Resampling {
        top: 0,
        left: 0,
        height,
        width,
        scaled_height,
        scaled_width,
        window_top: 0,
        window_left: 0,
        flip: false,
    }
}

fn allocate(device: &dyn Device, shape: crate::tensor::Shape, element_type: ElementType) -> Result<Tensor> {
    Ok(Tensor::new(device.allocate(shape.len() * element_type.size())?, 0, shape, element_type))
}
