//! The memory that a run needs, computed before it starts.

use super::network::Purpose;
use super::run::Run;
use crate::data::{Augmenter, LoaderOptions, Mode, Placement};
use crate::error::{Error, Result};
use crate::model::BatchShape;

/// The planned peak memory of a run, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// On the device: the arena of activations, their gradients and workspaces; the memory in which images are edited.
    pub activations: usize,
    /// On the device: parameters, their gradients and the optimiser's state.
    pub parameters: usize,
    /// On the host: batches that wait, images that are being decoded, a checkpoint that is being written, the program.
    pub host: usize,
    /// Whether the device computes in the host's memory, so that all of it has to fit there together.
    pub is_shared: bool,
}

impl MemoryPlan {
    /// Bytes that must fit in the device's memory.
    pub fn on_device(&self) -> usize {
        let shared = if self.is_shared { self.host } else { 0 };
        self.activations.saturating_add(self.parameters).saturating_add(shared)
    }
}

/// Bytes of the program itself: code, threads, tables.
const PROGRAM_BYTES: usize = 16 << 20;

/// Bytes that a worker needs to decode a photo.
const WORKER_BYTES: usize = 4 << 20;

impl Run<'_> {
    /// The memory of the run with batches of this size. Allocates nothing.
    pub fn memory(&self, batch_size: usize) -> Result<MemoryPlan> {
        let network = self.trainer.network();
        let activations = |images: usize, purpose| {
            let batch = images.min(batch_size);
            match batch {
                0 => Ok(0),
                _ => network.arena_bytes_of(self.shape(batch, purpose), purpose),
            }
        };
        let (train, held_out) = (self.splits.train.len(), self.splits.choosing().len());
        let batches = LoaderOptions {
            batch_size,
            image_size: self.recipe.image_size.max(self.recipe.training_size()) as u32,
            ..self.loader_options(Mode::Evaluate)
        }
        .bytes_at_once(train.max(held_out));
        let state =
            network.parameters().specifications().map(|specification| specification.shape.len() * 4).sum::<usize>();
        // Enough also for the copy of the weights and the model that is being written while the average is in their place.
        let with_slots = state * (1 + network.parameters().slot_names().len());
        let edits = match Placement::of(network.device()) {
            Placement::Device(()) => {
                Augmenter::bytes_of_edits(&self.recipe.training_transform(), train.min(batch_size))
            }
            Placement::Host(()) => 0,
        };
        let arena = activations(train, Purpose::Training)?.max(activations(held_out, Purpose::Evaluation)?);
        Ok(MemoryPlan {
            activations: arena.saturating_add(edits),
            parameters: self.trainer.parameter_bytes(),
            host: batches.saturating_add(with_slots + self.options.workers * WORKER_BYTES + PROGRAM_BYTES),
            is_shared: network.device().features().shares_host_memory,
        })
    }

    fn shape(&self, batch: usize, purpose: Purpose) -> BatchShape {
        let size = match purpose {
            Purpose::Training => self.recipe.training_size(),
            Purpose::Evaluation => self.recipe.image_size,
        };
        BatchShape { batch, height: size, width: size }
    }

    /// Plans every batch shape that the run will meet, so that the memory for it is allocated before anything starts.
    ///
    /// # Errors
    /// When the device does not have that much memory.
    pub fn prepare(&mut self) -> Result<()> {
        let batch_size = self.recipe.batch_size;
        let plan = self.memory(batch_size)?;
        // The parameters are allocated already; so is the arena, if this was called before.
        let asked = (plan.on_device() - plan.parameters).saturating_sub(self.trainer.network().arena_bytes());
        if let Some(free) = self.trainer.network().device().free_bytes()?.filter(|&free| free < asked) {
            return Err(Error::out_of_memory(&self.trainer.network().device().name(), asked, Some(free)));
        }
        for (images, purpose) in
            [(self.splits.train.len(), Purpose::Training), (self.splits.choosing().len(), Purpose::Evaluation)]
        {
            for batch in [images.min(batch_size), images % batch_size] {
                if batch > 0 {
                    let shape = self.shape(batch, purpose);
                    let prepared = self.trainer.network_mut().prepare(shape, purpose);
                    prepared.map_err(|error| self.single_image(error, batch, purpose))?;
                }
            }
        }
        Ok(())
    }

    /// The error for a last batch of one image, where its size is at fault: at small image sizes the deepest batch norms then see
    /// one value per channel, which has no variance.
    fn single_image(&self, error: Error, batch: usize, purpose: Purpose) -> Error {
        let (images, batch_size) = (self.splits.train.len(), &self.recipe.batch_size);
        let image_size = self.recipe.training_size();
        let plans = |batch| self.trainer.network().arena_bytes_of(self.shape(batch, purpose), purpose).is_ok();
        if batch != 1 || *batch_size == 1 || purpose != Purpose::Training || plans(1) || !plans(2) {
            return error;
        }
        // A batch size is right if it leaves no single image; one of the nearest always is.
        let leaves_one = |size: &usize| images % size == 1;
        let smaller = (2..*batch_size).rev().find(|size| !leaves_one(size));
        let larger = (*batch_size + 1..).find(|size| !leaves_one(size));
        let sizes: Vec<String> = smaller.into_iter().chain(larger).map(|size| size.to_string()).collect();
        let whole = images / batch_size;
        Error::new(format!(
            "the last batch of an epoch has one image ({images} = {whole} x {batch_size} + 1); batch norm cannot train on it at \
             {image_size} x {image_size} pixels"
        ))
        .hint(format!("use --batch-size {}, or larger images", sizes.join(" or ")))
    }

    /// The largest batch, below the recipe's, for which `bytes` more are enough; `None` if a single image needs more.
    pub fn largest_batch_within(&self, bytes: usize) -> Result<Option<usize>> {
        let takes = |batch| self.memory(batch).map(|plan| plan.on_device() - plan.parameters);
        let (mut fits, mut too_many) = (0, self.recipe.batch_size.min(self.splits.train.len()));
        while too_many - fits > 1 {
            let batch = fits + (too_many - fits) / 2;
            if takes(batch)? <= bytes { fits = batch } else { too_many = batch }
        }
        Ok((fits > 0).then_some(fits))
    }
}
