//! Batches of normalised pixels, prepared by worker threads ahead of the computation.
//!
//! Workers take single pictures, in the order of the epoch, so that all of them share one batch. Whoever finishes the
//! last picture of a batch puts it together. What a batch holds depends on the data set, the options and the epoch;
//! never on the workers.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::decode::{Decoder, PaddedImage, RgbImage};
use super::image_folder::ImageFolder;
use super::pipeline::{Job, Pipeline, lock};
use super::random::{Purpose, RandomStream};
use super::transform::{Augmentation, CropBox, Transformer, normalize_pixels};
use crate::error::{Error, Result};

/// How many batches are prepared ahead of the one that the consumer works on.
const PREFETCHED_BATCHES: usize = 2;

/// No picture is decoded while those that wait for the consumer have more bytes.
const DECODED_BYTES: usize = 512 << 20;

/// What the pictures are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The training transform, in an order that each epoch shuffles anew.
    Train {
        /// Decides the order, and every crop and flip.
        seed: u64,
    },
    /// The test transform, in the order of the data set.
    Evaluate,
}

/// How a [`Loader`] makes batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Pictures in a batch, at least one; the last batch of an epoch may be shorter.
    pub batch_size: usize,
    /// Height and width of the network's input in pixels, at least one.
    pub image_size: u32,
    /// What the pictures are for.
    pub mode: Mode,
    /// Threads that decode and transform; zero counts as one.
    pub workers: usize,
    /// Whether a picture that cannot be decoded is an error. Otherwise it is skipped and reported.
    pub strict: bool,
}

impl LoaderOptions {
    /// Bytes that the batches of an epoch over so many pictures take at once, when the consumer drops each before the next:
    /// those that are ready, the one that it works on, and one that is being put together.
    pub fn bytes_at_once(&self, pictures: usize) -> usize {
        let picture = (self.image_size as usize).pow(2).saturating_mul(3 * size_of::<f32>());
        picture.saturating_mul(self.batch_size.min(pictures)).saturating_mul(PREFETCHED_BATCHES + 2)
    }
}

/// A picture that was left out of its batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedSample {
    /// An index into [`ImageFolder::samples`].
    pub index: usize,
    /// The file.
    pub path: PathBuf,
    /// One line that names the file and says what is wrong with it.
    pub reason: String,
}

/// Pictures for one step. Its buffer goes back to the loader when it is dropped.
#[derive(Debug)]
pub struct Batch {
    /// Normalised pixels, [n, image_size, image_size, 3]; n is `targets.len()`, and zero if every picture was skipped.
    pub images: Vec<f32>,
    /// The class of each picture, `[n]`.
    pub targets: Vec<u32>,
    /// The index of each picture in [`ImageFolder::samples`], `[n]`.
    pub indices: Vec<usize>,
    /// What was left out.
    pub skipped: Vec<SkippedSample>,
    pool: Arc<Pool>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.pool.return_images(std::mem::take(&mut self.images));
    }
}

/// Makes the batches of a data set, epoch after epoch.
#[derive(Debug)]
pub struct Loader {
    dataset: Arc<ImageFolder>,
    options: LoaderOptions,
    pool: Arc<Pool>,
}

impl Loader {
    /// A loader for `dataset`. No thread runs before [`Loader::epoch`].
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
        Ok(Self { dataset, options, pool: Arc::default() })
    }

    /// The pictures.
    pub fn dataset(&self) -> &Arc<ImageFolder> {
        &self.dataset
    }

    /// How batches are made.
    pub fn options(&self) -> &LoaderOptions {
        &self.options
    }

    /// Batches in an epoch.
    pub fn batch_count(&self) -> usize {
        self.dataset.len().div_ceil(self.options.batch_size)
    }

    /// The batches of an epoch. Workers begin at once. The iterator blocks until its next batch is there, and ends
    /// after an error; dropping it stops the workers.
    pub fn epoch(&self, epoch: u64) -> Epoch {
        self.epoch_from(epoch, 0)
    }

    /// The batches of an epoch from number `first_batch` on, the same as [`Loader::epoch`] gives there.
    pub fn epoch_from(&self, epoch: u64, first_batch: usize) -> Epoch {
        let pool = Arc::clone(&self.pool);
        let job = BatchJob { dataset: Arc::clone(&self.dataset), options: self.options, epoch, pool };
        let order = epoch_order(self.dataset.len(), self.options.mode, epoch);
        Epoch { pipeline: Pipeline::start(job, order, first_batch, self.options.workers) }
    }

    /// These samples as they are decoded, in this order. Workers begin at once.
    pub(super) fn decode(&self, samples: Vec<usize>) -> Pictures {
        let job = DecodeJob { dataset: Arc::clone(&self.dataset), options: self.options };
        Pictures { pipeline: Pipeline::start(job, samples, 0, self.options.workers) }
    }
}

/// The order of the samples of a data set in an epoch: shuffled to train, as they are to evaluate.
pub fn epoch_order(samples: usize, mode: Mode, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..samples).collect();
    if let Mode::Train { seed } = mode {
        RandomStream::new(seed, Purpose::Order, epoch, 0).shuffle(&mut order);
    }
    order
}

/// Buffers that are used again.
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

    /// Keeps as many as are in use when the consumer drops each batch before the next; a hoarder's surplus is freed.
    fn return_images(&self, buffer: Vec<f32>) {
        let mut kept = lock(&self.images);
        if kept.len() <= PREFETCHED_BATCHES {
            kept.push(buffer);
        }
    }
}

/// Batches of normalised pixels.
struct BatchJob {
    dataset: Arc<ImageFolder>,
    options: LoaderOptions,
    epoch: u64,
    pool: Arc<Pool>,
}

struct BatchScratch {
    decoder: Decoder,
    image: PaddedImage,
    transformer: Transformer,
}

impl BatchJob {
    fn picture_pixels(&self) -> usize {
        self.options.image_size as usize * self.options.image_size as usize
    }

    /// Fills `pixels`, padded RGB, [image_size, image_size, 4], and says whether they are still to be flipped.
    fn transform(&self, scratch: &mut BatchScratch, index: usize, pixels: &mut [u8]) -> Result<bool> {
        let BatchScratch { decoder, image, transformer } = scratch;
        let path = &self.dataset.samples[index].path;
        let size = self.options.image_size;
        let mut flip = false;
        let result = match self.options.mode {
            Mode::Train { seed } => {
                let mut crop = CropBox { top: 0, left: 0, height: 0, width: 0 };
                decoder.decode_file_rows(path, image, |width, height| {
                    Augmentation { crop, flip } = Augmentation::sample(seed, self.epoch, index, width, height);
                    crop.top + crop.height
                })?;
                transformer.resized_crop(image, crop, size, size, pixels)
            }
            Mode::Evaluate => {
                decoder.decode_file(path, image)?;
                transformer.resize_and_center_crop(image, size, pixels)
            }
        };
        image.give_back_large_buffer();
        result.map(|()| flip)
    }
}

/// A picture of a batch before it is normalised.
struct Scaled {
    /// Padded RGB, [image_size, image_size, 4].
    pixels: Vec<u8>,
    /// Whether left and right are to change places.
    flip: bool,
}

impl Job for BatchJob {
    type Scratch = BatchScratch;
    type Item = Scaled;
    type Group = Batch;

    fn scratch(&self) -> BatchScratch {
        BatchScratch {
            decoder: Decoder::new(self.dataset.decoding),
            image: PaddedImage::default(),
            transformer: Transformer::default(),
        }
    }

    fn group_size(&self) -> usize {
        self.options.batch_size
    }

    fn groups_ahead(&self) -> usize {
        PREFETCHED_BATCHES
    }

    fn prepare(&self, scratch: &mut BatchScratch, index: usize) -> Result<Scaled> {
        let mut pixels = self.pool.take_pixels();
        pixels.resize(self.picture_pixels() * 4, 0);
        match self.transform(scratch, index, &mut pixels) {
            Ok(flip) => Ok(Scaled { pixels, flip }),
            Err(error) => {
                self.pool.return_pixels(pixels);
                Err(error)
            }
        }
    }

    fn assemble(&self, order: &[usize], samples: Vec<Result<Scaled>>) -> Result<Batch> {
        let present = samples.iter().filter(|sample| sample.is_ok()).count();
        let values = self.picture_pixels() * 3;
        let mut images = self.pool.take_images();
        images.resize(present * values, 0.0);
        let mut batch = Batch {
            images,
            targets: Vec::with_capacity(present),
            indices: Vec::with_capacity(present),
            skipped: Vec::new(),
            pool: Arc::clone(&self.pool),
        };
        for (&index, sample) in order.iter().zip(samples) {
            match skip(&self.dataset, &self.options, index, sample)? {
                Ok(Scaled { pixels, flip }) => {
                    let start = batch.indices.len() * values;
                    let normalized = &mut batch.images[start..start + values];
                    normalize_pixels::<4>(&pixels, self.options.image_size as usize, flip, normalized)?;
                    self.pool.return_pixels(pixels);
                    batch.targets.push(self.dataset.samples[index].class as u32);
                    batch.indices.push(index);
                }
                Err(skipped) => batch.skipped.push(skipped),
            }
        }
        Ok(batch)
    }

    fn panicked(&self, index: usize) -> Error {
        panicked(&self.dataset, index)
    }
}

/// Pictures as they are decoded, one by one.
struct DecodeJob {
    dataset: Arc<ImageFolder>,
    options: LoaderOptions,
}

impl Job for DecodeJob {
    type Scratch = Decoder;
    type Item = RgbImage;
    type Group = DecodedPicture;

    fn scratch(&self) -> Decoder {
        Decoder::new(self.dataset.decoding)
    }

    fn group_size(&self) -> usize {
        1
    }

    fn groups_ahead(&self) -> usize {
        self.options.batch_size.saturating_mul(PREFETCHED_BATCHES)
    }

    fn bytes_ahead(&self) -> usize {
        DECODED_BYTES
    }

    fn bytes(picture: &RgbImage) -> usize {
        picture.pixels.len()
    }

    fn prepare(&self, decoder: &mut Decoder, index: usize) -> Result<RgbImage> {
        let mut image = RgbImage::default();
        decoder.decode_file(&self.dataset.samples[index].path, &mut image)?;
        Ok(image)
    }

    fn assemble(&self, order: &[usize], samples: Vec<Result<RgbImage>>) -> Result<DecodedPicture> {
        let mut pictures = order.iter().zip(samples);
        let (&index, sample) = pictures.next().ok_or_else(|| Error::new("no picture was prepared"))?;
        Ok(DecodedPicture { index, image: skip(&self.dataset, &self.options, index, sample)? })
    }

    fn panicked(&self, index: usize) -> Error {
        panicked(&self.dataset, index)
    }
}

/// The error for a worker that panicked on a file.
fn panicked(dataset: &ImageFolder, index: usize) -> Error {
    Error::new(format!("a data worker failed on {}", dataset.samples[index].path.display()))
        .hint("this is a defect of the program; moving the file away avoids it")
}

/// An unreadable picture is an error or is skipped, as the options say.
fn skip<T>(
    dataset: &ImageFolder,
    options: &LoaderOptions,
    index: usize,
    sample: Result<T>,
) -> Result<Result<T, SkippedSample>> {
    match sample {
        Ok(sample) => Ok(Ok(sample)),
        Err(error) if options.strict => Err(error),
        Err(error) => {
            let path = dataset.samples[index].path.clone();
            Ok(Err(SkippedSample { index, path, reason: error.message().to_owned() }))
        }
    }
}

/// A picture of a data set as it was decoded, or why it could not be.
pub(super) struct DecodedPicture {
    /// An index into [`ImageFolder::samples`].
    pub(super) index: usize,
    pub(super) image: Result<RgbImage, SkippedSample>,
}

/// See [`Loader::decode`].
pub(super) struct Pictures {
    pipeline: Pipeline<DecodeJob>,
}

impl Iterator for Pictures {
    type Item = Result<DecodedPicture>;

    fn next(&mut self) -> Option<Result<DecodedPicture>> {
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
