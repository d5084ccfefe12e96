//! The averaged network: the moving average of the parameters, with running statistics that belong to it.

use std::collections::BTreeMap;

use super::evaluate::batch_shape;
use super::network::{Network, Purpose};
use crate::data::Batches;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::BatchShape;
use crate::ops::batch_norm::MOMENTUM;
use crate::tensor::Tensor;

/// Images after which no further batch is used for the running statistics. More hardly change them (Wu and Johnson, *Rethinking "Batch"
/// in BatchNorm*, 2021).
pub const STATISTICS_IMAGES: usize = 4096;

/// Running statistics that are computed again, as by `torch.optim.swa_utils.update_bn`: the mean, over batches, of their means and
/// unbiased variances.
#[derive(Default)]
pub struct Statistics {
    /// Sums over batches, by the name of the statistic.
    sums: BTreeMap<String, Vec<f64>>,
    batches: i64,
}

impl Statistics {
    /// Adds those of a batch: a forward pass in training mode. Frozen batch norms that use their running statistics keep them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn add(
        &mut self,
        network: &mut Network,
        shape: BatchShape,
        write: impl FnOnce(&dyn Device, &Tensor) -> Result<()>,
    ) -> Result<()> {
        network.prepare(shape, Purpose::Training)?;
        let modules = network.executor(shape, Purpose::Training)?.graph().counted_batch_norms().to_vec();
        let names: Vec<String> = modules
            .iter()
            .flat_map(|module| ["running_mean", "running_var"].map(|statistic| format!("{module}.{statistic}")))
            .collect();
        // From zero, a forward pass leaves MOMENTUM times the statistics of the batch.
        for name in &names {
            let count = network.parameters().value_of(name)?.len();
            network.write(name, &vec![0.0; count])?;
        }
        network.fill_by(shape, Purpose::Training, write, &vec![0; shape.batch])?;
        network.executor(shape, Purpose::Training)?.forward(network.device())?;
        for name in names {
            let values = network.parameters().read(network.device(), &name)?;
            let sums = self.sums.entry(name).or_insert_with(|| vec![0.0; values.len()]);
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(value) / f64::from(MOMENTUM));
        }
        self.batches += 1;
        Ok(())
    }

    /// Writes the statistics into the network that they are of.
    ///
    /// # Errors
    /// When there was no batch, or the device fails.
    pub fn finish(self, network: &mut Network) -> Result<()> {
        if self.batches == 0 {
            return Err(Error::new("there was no batch to compute running statistics from"));
        }
        for (name, sums) in self.sums {
            let mean: Vec<f32> = sums.iter().map(|sum| (sum / self.batches as f64) as f32).collect();
            network.write(&name, &mean)?;
            if let Some(module) = name.strip_suffix(".running_mean") {
                network.parameters_mut().set_batches_tracked(module, self.batches);
            }
        }
        Ok(())
    }
}

/// Computes the running statistics of `network` again: those of the batches of this epoch, as they come, until they have
/// [`STATISTICS_IMAGES`] images. `see` is called with the number of batches so far and of all, and ends the work with its error.
///
/// # Errors
/// When `see` fails, an image cannot be read, or the device fails.
pub fn recompute_statistics(
    network: &mut Network,
    batches: &mut Batches,
    epoch: u64,
    image_size: usize,
    mut see: impl FnMut(usize, usize) -> Result<()>,
) -> Result<()> {
    let fewest = network.fewest_images(image_size);
    let of = STATISTICS_IMAGES.div_ceil(batches.loader().options().batch_size).min(batches.loader().batch_count());
    let mut statistics = Statistics::default();
    let mut epoch = batches.epoch_from(epoch, 0);
    let mut number = 0;
    while number < of
        && let Some(batch) = epoch.next_batch()
    {
        let batch = batch?;
        number += 1;
        if batch.targets.len() >= fewest {
            let write = |device: &dyn Device, input: &Tensor| batch.write(device, input);
            statistics.add(network, batch_shape(&batch, image_size), write)?;
        }
        see(number, of)?;
    }
    statistics.finish(network)
}
