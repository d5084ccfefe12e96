//! Features of images: the numbers that the body of a network passes to its head, one vector per image.

use super::evaluate::batch_shape;
use super::network::Network;
use crate::data::{Batches, InputBatch};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The features of images.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Features {
    /// `[N, D]`: the mean of each channel of the last stage over rows and columns.
    pub values: Vec<f32>,
    /// The class of each image.
    pub targets: Vec<usize>,
    /// The index of each image in its folder's list. Images that could not be read are missing.
    pub indices: Vec<usize>,
}

impl Features {
    const EMPTY: Self = Self { values: Vec::new(), targets: Vec::new(), indices: Vec::new() };

    /// Those of some images, chosen by their index. `dimension` is D.
    pub fn select(&self, dimension: usize, wanted: impl Fn(usize) -> bool) -> Self {
        let mut selected = Self::default();
        let rows = self.values.chunks_exact(dimension).zip(&self.targets).zip(&self.indices);
        for ((row, &target), &index) in rows.filter(|(_, index)| wanted(**index)) {
            selected.values.extend(row);
            selected.targets.push(target);
            selected.indices.push(index);
        }
        selected
    }

    /// Adds those of other images.
    pub fn extend(&mut self, other: Self) {
        self.values.extend(other.values);
        self.targets.extend(other.targets);
        self.indices.extend(other.indices);
    }

    fn append(&mut self, values: Vec<f32>, batch: &InputBatch) {
        self.values.extend(values);
        self.targets.extend(batch.targets.iter().map(|&target| target as usize));
        self.indices.extend(&batch.indices);
    }
}

/// Computes the features of every image of an epoch, with the running statistics of batch norms. The batches of a training
/// loader are augmented, each epoch in another way. `visit` sees each batch, for its skipped images and for a progress line.
///
/// # Errors
/// When `visit` fails, or a feature is not finite ([`crate::error::ErrorKind::NotFinite`]).
pub fn features(
    network: &mut Network,
    batches: &mut Batches,
    epoch: u64,
    image_size: usize,
    visit: impl FnMut(&InputBatch) -> Result<()>,
) -> Result<Features> {
    let [features] = features_of_forms(network, batches, epoch, image_size, [Form::Upright], visit)?;
    Ok(features)
}

/// The form of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    Upright,
    /// With left and right exchanged.
    Mirrored,
}

/// Like [`features`], for several forms of each image, which is decoded once.
pub fn features_of_forms<const N: usize>(
    network: &mut Network,
    batches: &mut Batches,
    epoch: u64,
    image_size: usize,
    forms: [Form; N],
    mut visit: impl FnMut(&InputBatch) -> Result<()>,
) -> Result<[Features; N]> {
    let mut features = [const { Features::EMPTY }; N];
    let dimension = network.resnet().features();
    let dataset = batches.loader().dataset().clone();
    let mut epoch = batches.epoch_from(epoch, 0);
    while let Some(batch) = epoch.next_batch() {
        let batch = batch?;
        if !batch.targets.is_empty() {
            for (form, features) in forms.into_iter().zip(&mut features) {
                let write = |device: &dyn Device, input: &Tensor| match form {
                    Form::Upright => batch.write(device, input),
                    Form::Mirrored => batch.write_mirrored(device, input),
                };
                let values = network.features_by(batch_shape(&batch, image_size), write)?;
                let is_finite = |row: &[f32]| row.iter().all(|value| value.is_finite());
                if let Some(position) = values.chunks_exact(dimension).position(|row| !is_finite(row)) {
                    let path = &dataset.samples[batch.indices[position]].path;
                    return Err(Error::not_finite(format!(
                        "{}: the features are not finite: the weights of the network are too large to compute with",
                        path.display()
                    )));
                }
                features.append(values, &batch);
            }
        }
        visit(&batch)?;
    }
    Ok(features)
}
