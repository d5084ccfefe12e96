//! Classifies a set of images.

use super::metrics::Totals;
use super::network::Network;
use crate::data::{Batches, InputBatch};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::BatchShape;
use crate::tensor::Tensor;

/// The prediction for one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Index of the image in its folder's list.
    pub index: usize,
    /// Its true class.
    pub target: usize,
    /// One per class.
    pub logits: Vec<f32>,
    class: usize,
}

impl Prediction {
    /// The prediction of the class with the largest logit; of the first of them if several are equal.
    pub fn new(index: usize, target: usize, logits: Vec<f32>) -> Self {
        let best = |best: usize, class: usize| if logits[class] > logits[best] { class } else { best };
        let class = (0..logits.len()).fold(0, best);
        Self { index, target, logits, class }
    }

    /// The same logits, of two classes, with a class that a threshold decides.
    fn decided_by(self, threshold: Threshold) -> Self {
        let is_reached = self.probabilities()[threshold.class] >= threshold.probability;
        Self { class: if is_reached { threshold.class } else { 1 - threshold.class }, ..self }
    }

    /// The predicted class.
    pub fn class(&self) -> usize {
        self.class
    }

    /// The prediction of a model whose outputs are divided by a temperature.
    pub fn divided_by(&self, temperature: f64) -> Self {
        let logits = self.logits.iter().map(|&logit| (f64::from(logit) / temperature) as f32).collect();
        Self { logits, ..*self }
    }

    /// The softmax of the logits.
    pub fn probabilities(&self) -> Vec<f64> {
        softmax(&self.logits)
    }

    /// The cross entropy of this image.
    pub fn loss(&self) -> f64 {
        let largest = self.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = self.logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
        sum.ln() - f64::from(self.logits[self.target] - largest)
    }
}

/// The softmax of logits.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.iter().map(|value| value / sum).collect()
}

/// How images are tested.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Testing {
    /// Rows and columns of the network's input.
    pub image_size: usize,
    /// Whether the outputs are the means of those for an image and for its mirror image.
    pub average_mirror: bool,
    /// What decides between two classes, if it is not the larger probability.
    pub threshold: Option<Threshold>,
}

/// A rule for two classes: the class is predicted if its probability is at least this large, and otherwise the other one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// An index, 0 or 1.
    pub class: usize,
    /// Above 0 and below 1.
    pub probability: f64,
}

/// The batch shape of a batch of square images.
pub fn batch_shape(batch: &InputBatch, image_size: usize) -> BatchShape {
    BatchShape { batch: batch.targets.len(), height: image_size, width: image_size }
}

/// Classifies every image, in the order of the data set, and keeps all predictions. `visit` sees each batch, for its skipped images and
/// for a progress line.
///
/// # Errors
/// Those of [`classify`]; no image can be read.
pub fn evaluate(
    network: &mut Network,
    batches: &mut Batches,
    testing: Testing,
    mut visit: impl FnMut(&InputBatch) -> Result<()>,
) -> Result<(Totals, Vec<Prediction>)> {
    let mut all = Vec::new();
    let totals = classify(network, batches, testing, |batch, predictions| {
        all.extend(predictions);
        visit(batch)
    })?;
    match totals.images {
        0 => Err(Error::new("none of the images could be read")),
        _ => Ok((totals, all)),
    }
}

/// Classifies every image, in the order of the data set. `visit` receives each batch with one prediction for each image that could be
/// read. No prediction is kept, so that the memory does not depend on the number of images.
///
/// # Errors
/// When `visit` fails, or an output is not finite ([`crate::error::ErrorKind::NotFinite`]).
pub fn classify(
    network: &mut Network,
    batches: &mut Batches,
    testing: Testing,
    mut visit: impl FnMut(&InputBatch, Vec<Prediction>) -> Result<()>,
) -> Result<Totals> {
    let classes = network.resnet().classes;
    let mut totals = Totals::default();
    let dataset = batches.loader().dataset().clone();
    let mut epoch = batches.epoch_from(0, 0);
    while let Some(batch) = epoch.next_batch() {
        let batch = batch?;
        if batch.targets.is_empty() {
            visit(&batch, Vec::new())?;
            continue;
        }
        let shape = batch_shape(&batch, testing.image_size);
        let write = |device: &dyn Device, input: &Tensor| batch.write(device, input);
        let (_, mut logits) = network.evaluate_by(shape, write, &batch.targets)?;
        if testing.average_mirror {
            let write = |device: &dyn Device, input: &Tensor| batch.write_mirrored(device, input);
            let (_, mirrored) = network.evaluate_by(shape, write, &batch.targets)?;
            logits.iter_mut().zip(mirrored).for_each(|(logit, other)| *logit = (*logit + other) / 2.0);
        }
        if let Some(position) = logits.chunks_exact(classes).position(|logits| !logits.iter().all(|x| x.is_finite())) {
            let path = &dataset.samples[batch.indices[position]].path;
            return Err(Error::not_finite(format!(
                "{}: the outputs of the network are not finite: its weights are too large to compute with",
                path.display()
            )));
        }
        let mut predictions = Vec::with_capacity(batch.indices.len());
        for ((&index, &target), logits) in batch.indices.iter().zip(&batch.targets).zip(logits.chunks_exact(classes)) {
            let prediction = Prediction::new(index, target as usize, logits.to_vec());
            predictions.push(match testing.threshold {
                Some(threshold) => prediction.decided_by(threshold),
                None => prediction,
            });
        }
        let correct = predictions.iter().filter(|prediction| prediction.class() == prediction.target).count();
        // The losses of single images, so that the result depends neither on the loss reduction nor on batches.
        let loss = predictions.iter().map(Prediction::loss).sum();
        totals.add(Totals { loss, correct: correct as u64, images: batch.targets.len() as u64 });
        visit(&batch, predictions)?;
    }
    Ok(totals)
}
