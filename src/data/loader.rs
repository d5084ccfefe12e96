//! Batches of normalised pixels, prepared by worker threads ahead of the computation.
//!
//! The contents of a batch depend on the data set, the options and the epoch, never on the workers.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::decode::Decoder;
use super::image_folder::ImageFolder;
use super::pipeline::{Job, Pipeline, lock};
use super::random::{Purpose, RandomStream};
use super::rgb_image::{PaddedImage, RgbImage};
use super::transform::{Augmentation, Draw, ResizeMode, Transform};
use super::transformer::{Transformer, normalize_pixels};
use crate::device::Resampling;
use crate::error::{Error, Result};

/// How many batches are prepared ahead of the one that the consumer works on.
const PREFETCHED_BATCHES: usize = 2;

/// No image is decoded while the images that wait for the consumer take at least this many bytes.
const DECODED_BYTES: usize = 512 << 20;

/// The purpose of the batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Training: the training transform, in an order that is shuffled in each epoch.
    Train {
        /// Determines the order, and every crop and flip.
        seed: u64,
    },
    /// Evaluation: the test transform, in the order of the data set.
    Evaluate,
}

/// Options of a [`Loader`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Images in a batch, at least one; the last batch of an epoch may be smaller.
    pub batch_size: usize,
    /// Height and width of the network's input in pixels, at least one.
    pub image_size: u32,
    /// How images become squares.
    pub resize: ResizeMode,
    /// The purpose of the batches.
    pub mode: Mode,
    /// Number of threads that decode and transform images; zero means one.
    pub workers: usize,
    /// Whether an unreadable image is an error. Otherwise it is skipped and reported.
    pub strict: bool,
}

impl LoaderOptions {
    /// The maximum number of bytes that the batches of an epoch take if the consumer drops each batch before it requests the next:
    /// the batches that are ready, the one in use, and the one that is being assembled.
    pub fn bytes_at_once(&self, images: usize) -> usize {
        let image = (self.image_size as usize).pow(2).saturating_mul(3 * size_of::<f32>());
        image.saturating_mul(self.batch_size.min(images)).saturating_mul(PREFETCHED_BATCHES + 2)
    }
}

/// An image that was skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedSample {
    /// An index into [`ImageFolder::samples`].
    pub index: usize,
    /// The file.
    pub path: PathBuf,
    /// One line that names the file and the problem.
    pub reason: String,
}

/// The images of one step. Its buffer goes back to the loader when it is dropped.
#[derive(Debug)]
pub struct Batch {
    /// Normalised pixels, [n, image_size, image_size, 3]; n is `targets.len()`, and zero if every image was skipped.
    pub images: Vec<f32>,
    /// The class of each image, `[n]`.
    pub targets: Vec<u32>,
    /// The index of each image in [`ImageFolder::samples`], `[n]`.
    pub indices: Vec<usize>,
    /// The images that were skipped.
    pub skipped: Vec<SkippedSample>,
    pool: Arc<Pool>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.pool.return_images(std::mem::take(&mut self.images));
    }
}

/// Makes the batches of a data set, epoch after epoch.
#[derive(Debug, Clone)]
pub struct Loader {
    dataset: Arc<ImageFolder>,
    options: LoaderOptions,
    transform: Arc<Transform>,
    /// For balanced sampling, the samples of each class that has any.
    classes: Option<Arc<Vec<Vec<usize>>>>,
    pool: Arc<Pool>,
}

impl Loader {
    /// A loader for `dataset`. No thread starts before [`Loader::epoch`].
    ///
    /// # Errors
    /// When the batch size or the image size is zero.
    pub fn new(dataset: Arc<ImageFolder>, options: LoaderOptions) -> Result<Self> {
        if options.batch_size == 0 {
            return Err(Error::usage("the batch size is 0; expected at least 1"));
        }
        if options.image_size == 0 {
            return Err(Error::usage("the image size is 0; expected at least 1 pixel"));
        }
        let transform = match options.mode {
            Mode::Train { .. } => Transform::training(options.image_size, options.resize, &[]),
            Mode::Evaluate => Transform::test(options.image_size, options.resize),
        };
        Ok(Self { dataset, options, transform: Arc::new(transform), classes: None, pool: Arc::default() })
    }

    /// Sets the augmentations of the training transform; see [`Transform::training`]. The test transform has none.
    pub fn with_augmentations(self, augmentations: &[Augmentation]) -> Self {
        match self.options.mode {
            Mode::Train { .. } => {
                let LoaderOptions { image_size, resize, .. } = self.options;
                let transform = Transform::training(image_size, resize, augmentations);
                Self { transform: Arc::new(transform), ..self }
            }
            Mode::Evaluate => self,
        }
    }

    /// Draws the samples of each training epoch at random, so that every class is equally likely, as
    /// `torch.utils.data.WeightedRandomSampler` does with the weights 1 / (images of the class): as many as the data set has, some
    /// more than once and some not at all. A sample that is drawn again is augmented in another way.
    pub fn with_balanced_classes(self) -> Self {
        let mut classes = vec![Vec::new(); self.dataset.classes.len()];
        self.dataset.samples.iter().enumerate().for_each(|(index, sample)| classes[sample.class].push(index));
        classes.retain(|samples| !samples.is_empty());
        Self { classes: Some(Arc::new(classes)), ..self }
    }

    /// The images.
    pub fn dataset(&self) -> &Arc<ImageFolder> {
        &self.dataset
    }

    /// The options.
    pub fn options(&self) -> &LoaderOptions {
        &self.options
    }

    /// The draws of an epoch in their order. A draw is the index of a sample, plus the number of samples for each time that it was
    /// drawn before in this epoch.
    pub(super) fn draws(&self, epoch: u64) -> Vec<usize> {
        match (&self.classes, self.options.mode) {
            (Some(classes), Mode::Train { seed }) => {
                let mut random = RandomStream::new(seed, Purpose::BalancedSampling, epoch, 0);
                let mut drawn_before = vec![0; self.dataset.len()];
                let draw = |_| {
                    let samples = &classes[random.below(classes.len() as u64) as usize];
                    let index = samples[random.below(samples.len() as u64) as usize];
                    drawn_before[index] += 1;
                    index + (drawn_before[index] - 1) * self.dataset.len()
                };
                (0..self.dataset.len()).map(draw).collect()
            }
            _ => epoch_order(self.dataset.len(), self.options.mode, epoch),
        }
    }

    /// The index of the sample of a draw.
    pub(super) fn sample_of(&self, draw: usize) -> usize {
        draw % self.dataset.len()
    }

    /// The resampling of this draw of an epoch.
    pub(super) fn draw(&self, epoch: u64, draw: usize, width: u32, height: u32) -> Resampling {
        let seed = match self.options.mode {
            Mode::Train { seed } => seed,
            Mode::Evaluate => 0,
        };
        self.transform.draw(Draw { seed, epoch, index: draw }, width, height)
    }

    /// Batches in an epoch.
    pub fn batch_count(&self) -> usize {
        self.dataset.len().div_ceil(self.options.batch_size)
    }

    /// The batches of an epoch. The workers start immediately. The iterator blocks until its next batch is ready, and ends
    /// after an error; dropping it stops the workers.
    pub fn epoch(&self, epoch: u64) -> Epoch {
        self.epoch_from(epoch, 0)
    }

    /// The batches of an epoch from number `first_batch` on, the same as those of [`Loader::epoch`].
    pub fn epoch_from(&self, epoch: u64, first_batch: usize) -> Epoch {
        let job = BatchJob { loader: self.clone(), epoch };
        Epoch { pipeline: Pipeline::start(job, self.draws(epoch), first_batch, self.options.workers) }
    }

    /// The decoded images of these draws, in this order. The workers start immediately.
    pub(super) fn decode(&self, draws: Vec<usize>) -> DecodedImages {
        let job = DecodeJob { loader: self.clone() };
        DecodedImages { pipeline: Pipeline::start(job, draws, 0, self.options.workers) }
    }
}

/// The order of the samples of a data set in an epoch: shuffled for training, unchanged for evaluation.
pub fn epoch_order(samples: usize, mode: Mode, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..samples).collect();
    if let Mode::Train { seed } = mode {
        RandomStream::new(seed, Purpose::Order, epoch, 0).shuffle(&mut order);
    }
    order
}

/// Buffers for reuse.
#[derive(Debug, Default)]
struct Pool {
    pixels: Mutex<Vec<Vec<u8>>>,
    images: Mutex<Vec<Vec<f32>>>,
}

impl Pool {
    fn take_pixels(&self) -> Vec<u8> {
        lock(&self.pixels).pop().unwrap_or_default()
    }

    fn return_pixels(&self, buffer: Vec<u8>) {
        lock(&self.pixels).push(buffer);
    }

    fn take_images(&self) -> Vec<f32> {
        lock(&self.images).pop().unwrap_or_default()
    }

    /// Keeps as many as are in use if the consumer drops each batch before it requests the next, and frees any others.
    fn return_images(&self, buffer: Vec<f32>) {
        let mut kept = lock(&self.images);
        if kept.len() <= PREFETCHED_BATCHES {
            kept.push(buffer);
        }
    }
}

/// Batches of normalised pixels.
struct BatchJob {
    loader: Loader,
    epoch: u64,
}

struct BatchScratch {
    decoder: Decoder,
    image: PaddedImage,
    transformer: Transformer,
}

impl BatchJob {
    fn image_pixels(&self) -> usize {
        (self.loader.options.image_size as usize).pow(2)
    }

    /// Fills `pixels`, padded RGB, [image_size, image_size, 4], and returns the resampling, whose flips are still to be applied.
    fn transform(&self, scratch: &mut BatchScratch, draw: usize, pixels: &mut [u8]) -> Result<Resampling> {
        let BatchScratch { decoder, image, transformer } = scratch;
        let loader = &self.loader;
        let mut drawn = Resampling::whole(0, 0);
        decoder.decode_file_rows(&loader.dataset.samples[loader.sample_of(draw)].path, image, |width, height| {
            drawn = loader.draw(self.epoch, draw, width, height);
            drawn.top + drawn.height
        })?;
        let result = transformer.resample(image, &drawn, loader.options.image_size, pixels);
        image.free_large_buffer();
        result.map(|()| drawn)
    }
}

/// An image of a batch before it is normalised.
struct Scaled {
    /// Padded RGB, [image_size, image_size, 4].
    pixels: Vec<u8>,
    /// The resampling, whose flips are still to be applied.
    drawn: Resampling,
}

impl Job for BatchJob {
    type Scratch = BatchScratch;
    type Item = Scaled;
    type Group = Batch;

    fn scratch(&self) -> BatchScratch {
        BatchScratch {
            decoder: Decoder::new(self.loader.dataset.decoding),
            image: PaddedImage::default(),
            transformer: Transformer::default(),
        }
    }

    fn group_size(&self) -> usize {
        self.loader.options.batch_size
    }

    fn groups_ahead(&self) -> usize {
        PREFETCHED_BATCHES
    }

    fn prepare(&self, scratch: &mut BatchScratch, draw: usize) -> Result<Scaled> {
        let mut pixels = self.loader.pool.take_pixels();
        pixels.resize(self.image_pixels() * 4, 0);
        match self.transform(scratch, draw, &mut pixels) {
            Ok(drawn) => Ok(Scaled { pixels, drawn }),
            Err(error) => {
                self.loader.pool.return_pixels(pixels);
                Err(error)
            }
        }
    }

    fn assemble(&self, order: &[usize], samples: Vec<Result<Scaled>>) -> Result<Batch> {
        let present = samples.iter().filter(|sample| sample.is_ok()).count();
        let values = self.image_pixels() * 3;
        let mut images = self.loader.pool.take_images();
        images.resize(present * values, 0.0);
        let mut batch = Batch {
            images,
            targets: Vec::with_capacity(present),
            indices: Vec::with_capacity(present),
            skipped: Vec::new(),
            pool: Arc::clone(&self.loader.pool),
        };
        for (&draw, sample) in order.iter().zip(samples) {
            let index = self.loader.sample_of(draw);
            match skip(&self.loader, index, sample)? {
                Ok(Scaled { pixels, drawn }) => {
                    let start = batch.indices.len() * values;
                    let normalized = &mut batch.images[start..start + values];
                    normalize_pixels::<4>(&pixels, &drawn, self.loader.options.image_size as usize, normalized)?;
                    self.loader.pool.return_pixels(pixels);
                    batch.targets.push(self.loader.dataset.samples[index].class as u32);
                    batch.indices.push(index);
                }
                Err(skipped) => batch.skipped.push(skipped),
            }
        }
        Ok(batch)
    }

    fn panicked(&self, draw: usize) -> Error {
        panicked(&self.loader.dataset, self.loader.sample_of(draw))
    }
}

/// Decoded images, one by one.
struct DecodeJob {
    loader: Loader,
}

impl Job for DecodeJob {
    type Scratch = Decoder;
    type Item = RgbImage;
    type Group = DecodedImage;

    fn scratch(&self) -> Decoder {
        Decoder::new(self.loader.dataset.decoding)
    }

    fn group_size(&self) -> usize {
        1
    }

    fn groups_ahead(&self) -> usize {
        self.loader.options.batch_size.saturating_mul(PREFETCHED_BATCHES)
    }

    fn bytes_ahead(&self) -> usize {
        DECODED_BYTES
    }

    fn bytes(image: &RgbImage) -> usize {
        image.pixels.len()
    }

    fn prepare(&self, decoder: &mut Decoder, draw: usize) -> Result<RgbImage> {
        let mut image = RgbImage::default();
        let index = self.loader.sample_of(draw);
        decoder.decode_file(&self.loader.dataset.samples[index].path, &mut image)?;
        Ok(image)
    }

    fn assemble(&self, order: &[usize], samples: Vec<Result<RgbImage>>) -> Result<DecodedImage> {
        let mut images = order.iter().zip(samples);
        let (&draw, sample) = images.next().ok_or_else(|| Error::new("no image was prepared"))?;
        let index = self.loader.sample_of(draw);
        Ok(DecodedImage { index, image: skip(&self.loader, index, sample)? })
    }

    fn panicked(&self, draw: usize) -> Error {
        panicked(&self.loader.dataset, self.loader.sample_of(draw))
    }
}

/// The error for a worker that panicked on a file.
fn panicked(dataset: &ImageFolder, index: usize) -> Error {
    Error::new(format!("a data worker failed on {}", dataset.samples[index].path.display()))
        .hint("this is a bug: please report it, and move the file away to continue")
}

/// Returns an error for an unreadable image, or skips it, depending on the options.
fn skip<T>(loader: &Loader, index: usize, sample: Result<T>) -> Result<Result<T, SkippedSample>> {
    match sample {
        Ok(sample) => Ok(Ok(sample)),
        Err(error) if loader.options.strict => Err(error),
        Err(error) => {
            let path = loader.dataset.samples[index].path.clone();
            Ok(Err(SkippedSample { index, path, reason: error.message().to_owned() }))
        }
    }
}

/// A decoded image of a data set, or the reason why it could not be decoded.
pub(super) struct DecodedImage {
    /// An index into [`ImageFolder::samples`].
    pub(super) index: usize,
    pub(super) image: Result<RgbImage, SkippedSample>,
}

/// See [`Loader::decode`].
pub(super) struct DecodedImages {
    pipeline: Pipeline<DecodeJob>,
}

impl Iterator for DecodedImages {
    type Item = Result<DecodedImage>;

    fn next(&mut self) -> Option<Result<DecodedImage>> {
        self.pipeline.next()
    }
}

/// The batches of one epoch; see [`Loader::epoch`].
pub struct Epoch {
    pipeline: Pipeline<BatchJob>,
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        self.pipeline.next()
    }
}
