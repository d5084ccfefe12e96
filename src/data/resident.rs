//! The images of a data set on a device, which computes the pixels of each batch from them.
//!
//! The device receives each decoded image once and keeps it while there is room; a step then uploads only which part of
//! which image it uses. An image for which there is no room is decoded in every epoch, copied to the device, and
//! scaled there by the same kernel to bytes that wait for their batch: the pixels do not depend on the free memory.

use std::rc::Rc;

use super::augmenter::{Augmenter, allocate};
use super::loader::{DecodedImage, DecodedImages, Loader, SkippedSample};
use super::rgb_image::RgbImage;
use super::store::ImageStore;
use crate::device::{Device, Edits, ImageView, Resampling};
use crate::error::{Error, Result};
use crate::tensor::{ElementType, Tensor};

/// See the module documentation.
pub(super) struct ResidentImages {
    store: Rc<ImageStore>,
    /// The images on the device, by index in the data set.
    images: Vec<Option<Tensor>>,
    batch_size: usize,
    image_size: usize,
    augmenter: Augmenter,
    transit: Option<Transit>,
}

/// For images that do not fit in the store.
struct Transit {
    /// One decoded image.
    decoded: Tensor,
    /// Its view.
    view: Tensor,
    /// The scaled images of a batch, `[batch_size, image_size, image_size, 3]`, bytes.
    scaled: Tensor,
}

/// An epoch's batches.
pub(super) struct ResidentEpoch<'a> {
    images: &'a mut ResidentImages,
    loader: &'a Loader,
    epoch: u64,
    order: Vec<usize>,
    position: usize,
    /// The decoded images that are not on the device, in the same order.
    decoded: Option<DecodedImages>,
}

/// A batch whose pixels the device has yet to compute.
pub(super) struct ResidentBatch<'a> {
    /// The class of each image.
    pub(super) targets: Vec<u32>,
    /// The index of each image in the data set.
    pub(super) indices: Vec<usize>,
    /// The images that were skipped.
    pub(super) skipped: Vec<SkippedSample>,
    images: &'a ResidentImages,
    views: Vec<ImageView>,
}

impl ResidentBatch<'_> {
    /// Writes the normalised pixels.
    pub(super) fn write(&self, input: &Tensor) -> Result<()> {
        self.images.augmenter.augment(self.images.device(), &self.views, input)
    }

    /// The same, with left and right exchanged.
    pub(super) fn write_mirrored(&self, input: &Tensor) -> Result<()> {
        let mirrored = |view: &ImageView| {
            let flip_columns = !view.resampling.flip_columns;
            ImageView { image: view.image.clone(), resampling: Resampling { flip_columns, ..view.resampling } }
        };
        let views: Vec<ImageView> = self.views.iter().map(mirrored).collect();
        self.images.augmenter.augment(self.images.device(), &views, input)
    }
}

impl<'a> ResidentEpoch<'a> {
    /// Starts at batch number `first_batch`.
    pub(super) fn new(images: &'a mut ResidentImages, loader: &'a Loader, epoch: u64, first_batch: usize) -> Self {
        let options = loader.options();
        let order = loader.draws(epoch);
        let position = first_batch.saturating_mul(options.batch_size).min(order.len());
        let absent = |draw: &usize| images.images[loader.sample_of(*draw)].is_none();
        let absent: Vec<usize> = order[position..].iter().copied().filter(absent).collect();
        let decoded = (!absent.is_empty()).then(|| loader.decode(absent));
        Self { images, loader, epoch, order, position, decoded }
    }

    /// The next batch; `None` at the end and after an error.
    pub(super) fn next_batch(&mut self) -> Option<Result<ResidentBatch<'_>>> {
        let end = (self.position + self.loader.options().batch_size).min(self.order.len());
        let indices = self.order.get(self.position..end).filter(|indices| !indices.is_empty())?;
        let batch = self.images.batch(self.loader, self.epoch, indices, self.decoded.as_mut());
        self.position = if batch.is_ok() { end } else { self.order.len() };
        Some(batch)
    }
}

impl ResidentImages {
    pub(super) fn new(loader: &Loader, store: &Rc<ImageStore>) -> Result<Self> {
        let images = loader.dataset().len();
        let image_size = loader.options().image_size as usize;
        let batch_size = loader.options().batch_size.min(images);
        let augmenter = Augmenter::new(store.device().as_ref(), batch_size)?;
        Ok(Self { store: store.clone(), images: vec![None; images], batch_size, image_size, augmenter, transit: None })
    }

    fn device(&self) -> &dyn Device {
        self.store.device().as_ref()
    }

    /// Assembles the batch of these draws. `decoded` yields the images that are not on the device, and perhaps some that were kept when
    /// they were drawn before.
    fn batch(
        &mut self,
        loader: &Loader,
        epoch: u64,
        draws: &[usize],
        mut decoded: Option<&mut DecodedImages>,
    ) -> Result<ResidentBatch<'_>> {
        let (mut targets, mut indices, mut skipped, mut views) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for &draw in draws {
            let index = loader.sample_of(draw);
            let view = match &self.images[index] {
                Some(image) => {
                    let &[height, width, _] = image.shape().dims() else {
                        return Err(Error::new(format!("{image:?} is not an image")));
                    };
                    let resampling = loader.draw(epoch, draw, width as u32, height as u32);
                    ImageView { image: image.clone(), resampling }
                }
                None => {
                    let is_wanted =
                        |next: &Result<DecodedImage>| next.as_ref().map_or(true, |next| next.index == index);
                    let next = decoded.as_mut().and_then(|decoded| decoded.find(is_wanted)).transpose()?;
                    match next.ok_or_else(|| Error::new(format!("sample {index} was not decoded")))?.image {
                        Ok(image) => {
                            let resampling = loader.draw(epoch, draw, image.width, image.height);
                            match self.store.keep(&image)? {
                                Some(kept) => {
                                    self.images[index] = Some(kept.clone());
                                    ImageView { image: kept, resampling }
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
        Ok(ResidentBatch { targets, indices, skipped, images: self, views })
    }

    /// Scales and edits an image that the store does not keep, and returns a view of the result, at position `place` of the batch. Only
    /// an erased rectangle is left to the view, because a byte cannot be zero after normalisation.
    fn scale(&mut self, place: usize, image: &RgbImage, resampling: Resampling) -> Result<ImageView> {
        let device = self.store.device().as_ref();
        let size = self.image_size;
        let (pixels, bytes) = (&image.pixels, image.pixels.len());
        let mut transit = match self.transit.take() {
            Some(transit) => transit,
            None => Transit {
                decoded: allocate(device, [bytes].into(), ElementType::U8)?,
                view: allocate(device, [ImageView::BYTES].into(), ElementType::U8)?,
                scaled: allocate(device, [self.batch_size, size, size, 3].into(), ElementType::U8)?,
            },
        };
        if transit.decoded.bytes() < bytes {
            // Frees the old memory first, because both may not fit at once.
            let Transit { decoded, view, scaled } = transit;
            drop(decoded);
            transit = Transit { decoded: allocate(device, [bytes].into(), ElementType::U8)?, view, scaled };
        }
        let Transit { decoded, view, scaled } = self.transit.insert(transit);
        let image = decoded.part(0, [image.height as usize, image.width as usize, 3].into());
        device.upload(pixels, &image)?;
        let erased = resampling.edits.erased;
        let edits = Edits { erased: None, ..resampling.edits };
        let scaling = ImageView { image, resampling: Resampling { edits, ..resampling } };
        device.upload(&scaling.bytes()?, view)?;
        let values = size * size * 3;
        let output = &scaled.part(place * values, [1, size, size, 3].into());
        self.augmenter.launch(device, &[scaling], view, None, output)?;
        let image = scaled.part(place * values, [size, size, 3].into());
        let edits = Edits { erased, ..Edits::default() };
        Ok(ImageView { image, resampling: Resampling { edits, ..Resampling::whole(size as u32, size as u32) } })
    }
}
