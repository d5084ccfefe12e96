//! Batches for a network, on the host or on a device.

use std::rc::Rc;

use super::loader::{Batch, Epoch, Loader, SkippedSample};
use super::resident::{ResidentBatch, ResidentEpoch, ResidentImages};
use super::store::ImageStore;
use crate::device::{Device, write_f32};
use crate::error::Result;
use crate::tensor::Tensor;

/// The place where decoded images become the network's input, with its resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement<H, D> {
    /// The threads that decode the images.
    Host(H),
    /// The device, with its `augment`.
    Device(D),
}

impl Placement<(), ()> {
    /// The device if it supports `augment`, otherwise the host.
    pub fn of(device: &dyn Device) -> Self {
        match device.features().augment {
            true => Self::Device(()),
            false => Self::Host(()),
        }
    }
}

/// The batches of a data set, epoch after epoch.
pub struct Batches {
    loader: Loader,
    placement: Placement<(), ResidentImages>,
}

/// The batches of one epoch; see [`Batches::epoch_from`].
pub struct BatchEpoch<'a> {
    source: Placement<Epoch, ResidentEpoch<'a>>,
}

/// One batch, ready to be written to a network's input.
pub struct InputBatch<'a> {
    /// The class of each image; empty if every image was skipped.
    pub targets: Vec<u32>,
    /// The index of each image in [`super::ImageFolder::samples`].
    pub indices: Vec<usize>,
    /// The images that were skipped.
    pub skipped: Vec<SkippedSample>,
    pixels: Placement<Batch, ResidentBatch<'a>>,
}

impl InputBatch<'_> {
    /// Writes the normalised pixels, `[n, image_size, image_size, 3]`.
    ///
    /// # Errors
    /// When `input` has another shape, or the device fails.
    pub fn write(&self, device: &dyn Device, input: &Tensor) -> Result<()> {
        match &self.pixels {
            Placement::Host(batch) => write_f32(device, &batch.images, input),
            Placement::Device(batch) => batch.write(input),
        }
    }

    /// Like [`InputBatch::write`], with left and right of every image exchanged after its transform, which must have no edits.
    pub fn write_mirrored(&self, device: &dyn Device, input: &Tensor) -> Result<()> {
        match &self.pixels {
            Placement::Host(batch) => write_f32(device, &mirrored(&batch.images, input.shape().dims()), input),
            Placement::Device(batch) => batch.write_mirrored(input),
        }
    }

    fn on_host(mut batch: Batch) -> Self {
        let (targets, indices) = (std::mem::take(&mut batch.targets), std::mem::take(&mut batch.indices));
        let skipped = std::mem::take(&mut batch.skipped);
        Self { targets, indices, skipped, pixels: Placement::Host(batch) }
    }
}

/// Images `[n, height, width, channels]` with left and right exchanged.
fn mirrored(images: &[f32], shape: &[usize]) -> Vec<f32> {
    let &[.., width, channels] = shape else { return images.to_vec() };
    let rows = images.chunks_exact(width * channels);
    rows.flat_map(|row| row.chunks_exact(channels).rev().flatten().copied()).collect()
}

impl<'a> InputBatch<'a> {
    fn on_device(mut batch: ResidentBatch<'a>) -> Self {
        let (targets, indices) = (std::mem::take(&mut batch.targets), std::mem::take(&mut batch.indices));
        let skipped = std::mem::take(&mut batch.skipped);
        Self { targets, indices, skipped, pixels: Placement::Device(batch) }
    }
}

impl Batches {
    /// The batches of `loader` for the store's device. If the device computes the pixels, the store keeps the images.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new(loader: Loader, store: &Rc<ImageStore>) -> Result<Self> {
        let placement = match Placement::of(store.device().as_ref()) {
            Placement::Host(()) => Placement::Host(()),
            Placement::Device(()) => Placement::Device(ResidentImages::new(&loader, store)?),
        };
        Ok(Self { loader, placement })
    }

    /// The loader, with the data set and its options.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    /// The batches of an epoch from number `first_batch` on.
    pub fn epoch_from(&mut self, epoch: u64, first_batch: usize) -> BatchEpoch<'_> {
        let loader = &self.loader;
        let source = match &mut self.placement {
            Placement::Host(()) => Placement::Host(loader.epoch_from(epoch, first_batch)),
            Placement::Device(images) => Placement::Device(ResidentEpoch::new(images, loader, epoch, first_batch)),
        };
        BatchEpoch { source }
    }
}

impl BatchEpoch<'_> {
    /// The next batch. It must be written before the following one is requested, because both use the same device memory. Blocks
    /// until the images are ready. `None` at the end and after an error.
    pub fn next_batch(&mut self) -> Option<Result<InputBatch<'_>>> {
        match &mut self.source {
            Placement::Host(epoch) => epoch.next().map(|batch| batch.map(InputBatch::on_host)),
            Placement::Device(epoch) => epoch.next_batch().map(|batch| batch.map(InputBatch::on_device)),
        }
    }
}
