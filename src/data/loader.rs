//! Batches of normalised pixels, prepared by worker threads ahead of the computation.
//!
//! Workers take single pictures, in the order of the epoch, so that all of them share one batch. Whoever finishes the
//! last picture of a batch puts it together. What a batch holds depends on the data set, the options and the epoch;
//! never on the workers.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::decode::{Decoder, RgbImage};
use super::image_folder::ImageFolder;
use super::random::{Purpose, RandomStream};
use super::transform::{Augmentation, Transformer, normalize};
use crate::error::{Context, Error, Result};

/// How many batches are prepared ahead of the one that the consumer works on.
const PREFETCHED_BATCHES: usize = 2;

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
        let job = PictureJob { dataset: Arc::clone(&self.dataset), options: self.options, epoch };
        let order = epoch_order(self.dataset.len(), self.options.mode, epoch);
        Epoch::start(job, order, first_batch, Arc::clone(&self.pool))
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

/// A worker that panics leaves a consistent state behind and reports itself, so that a poisoned lock says nothing new.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is done with one sample. The tests put another one in the place of pictures.
trait Job: Send + Sync + 'static {
    /// What a worker keeps from sample to sample.
    type Scratch: Default;

    fn dataset(&self) -> &ImageFolder;
    fn options(&self) -> &LoaderOptions;

    /// Fills `pixels` with 8-bit RGB, [image_size, image_size, 3].
    fn prepare(&self, scratch: &mut Self::Scratch, index: usize, pixels: &mut [u8]) -> Result<()>;
}

struct PictureJob {
    dataset: Arc<ImageFolder>,
    options: LoaderOptions,
    epoch: u64,
}

#[derive(Default)]
struct PictureScratch {
    decoder: Decoder,
    image: RgbImage,
    transformer: Transformer,
}

impl Job for PictureJob {
    type Scratch = PictureScratch;

    fn dataset(&self) -> &ImageFolder {
        &self.dataset
    }

    fn options(&self) -> &LoaderOptions {
        &self.options
    }

    fn prepare(&self, scratch: &mut PictureScratch, index: usize, pixels: &mut [u8]) -> Result<()> {
        let PictureScratch { decoder, image, transformer } = scratch;
        decoder.decode_file(&self.dataset.samples[index].path, image)?;
        let size = self.options.image_size;
        let result = match self.options.mode {
            Mode::Train { seed } => {
                let augmentation = Augmentation::sample(seed, self.epoch, index, image.width, image.height);
                transformer.augment(image, &augmentation, size, pixels)
            }
            Mode::Evaluate => transformer.resize_and_center_crop(image, size, pixels),
        };
        image.give_back_large_buffer();
        result
    }
}

/// The batches of one epoch; see [`Loader::epoch`].
pub struct Epoch {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    order: Vec<usize>,
    batch_size: usize,
    pool: Arc<Pool>,
    state: Mutex<State>,
    /// Signals a batch that is complete, or a failure.
    ready: Condvar,
    /// Signals that more samples may be prepared, or that none are wanted any more.
    room: Condvar,
}

struct State {
    /// The next position in the order that a worker will take.
    next_position: usize,
    /// The number of the batch that the consumer gets next.
    next_batch: usize,
    /// Batches in the making; the first is number `next_batch`.
    assemblies: VecDeque<Assembly>,
    failure: Option<Error>,
    stopped: bool,
}

struct Assembly {
    samples: Vec<Option<Result<Vec<u8>>>>,
    missing: usize,
    batch: Option<Result<Batch>>,
}

impl Epoch {
    fn start<J: Job>(job: J, order: Vec<usize>, first_batch: usize, pool: Arc<Pool>) -> Self {
        let batch_size = job.options().batch_size;
        let state = State {
            next_position: first_batch.saturating_mul(batch_size).min(order.len()),
            next_batch: first_batch,
            assemblies: VecDeque::new(),
            failure: None,
            stopped: false,
        };
        let threads = job.options().workers.clamp(1, (order.len() - state.next_position).max(1));
        let shared = Arc::new(Shared {
            order,
            batch_size,
            pool,
            state: Mutex::new(state),
            ready: Condvar::new(),
            room: Condvar::new(),
        });
        let job = Arc::new(job);
        let mut workers = Vec::with_capacity(threads);
        for number in 0..threads {
            let (job, shared_of_worker) = (Arc::clone(&job), Arc::clone(&shared));
            let spawned = std::thread::Builder::new()
                .name(format!("data worker {number}"))
                .spawn(move || work(&*job, &shared_of_worker))
                .context(|| "cannot start a data worker");
            match spawned {
                Ok(worker) => workers.push(worker),
                // Fewer workers give the same batches.
                Err(error) if workers.is_empty() => lock(&shared.state).failure = Some(error),
                Err(_) => break,
            }
        }
        Self { shared, workers }
    }

    fn batch_count(&self) -> usize {
        self.shared.order.len().div_ceil(self.shared.batch_size)
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        let batch_count = self.batch_count();
        let mut state = lock(&self.shared.state);
        if state.stopped || state.next_batch >= batch_count {
            return None;
        }
        loop {
            if state.assemblies.front().is_some_and(|assembly| assembly.batch.is_some()) {
                let batch = state.assemblies.pop_front().and_then(|assembly| assembly.batch);
                state.next_batch += 1;
                state.stopped = matches!(batch, Some(Err(_)));
                self.shared.room.notify_all();
                return batch;
            }
            if let Some(error) = state.failure.take() {
                state.stopped = true;
                self.shared.room.notify_all();
                return Some(Err(error));
            }
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        lock(&self.shared.state).stopped = true;
        self.shared.room.notify_all();
        for worker in self.workers.drain(..) {
            // A panic was reported when it happened.
            let _ = worker.join();
        }
    }
}

/// Turns a panic of its worker into an error for the consumer, who would otherwise wait for ever.
struct PanicReporter<'a> {
    shared: &'a Shared,
    doing: PathBuf,
}

impl Drop for PanicReporter<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = Error::new(format!("a data worker failed on {}", self.doing.display()))
                .hint("this is a defect of the program; moving the file away gets round it");
            lock(&self.shared.state).failure.get_or_insert(error);
            self.shared.ready.notify_all();
        }
    }
}

fn work<J: Job>(job: &J, shared: &Shared) {
    let mut reporter = PanicReporter { shared, doing: PathBuf::new() };
    let mut scratch = J::Scratch::default();
    let bytes = job.options().image_size as usize * job.options().image_size as usize * 3;
    while let Some(position) = shared.claim() {
        let index = shared.order[position];
        reporter.doing.clone_from(&job.dataset().samples[index].path);
        let mut pixels = shared.pool.take_pixels();
        pixels.resize(bytes, 0);
        let sample = match job.prepare(&mut scratch, index, &mut pixels) {
            Ok(()) => Ok(pixels),
            Err(error) => {
                shared.pool.return_pixels(pixels);
                Err(error)
            }
        };
        if let Some(samples) = shared.deliver(position, sample) {
            let number = position / shared.batch_size;
            let batch = assemble(job, shared, &shared.order[number * shared.batch_size..], samples);
            shared.complete(number, batch);
        }
    }
}

impl Shared {
    /// The next position in the order, once the consumer is near enough to it; none at the end.
    fn claim(&self) -> Option<usize> {
        let mut state = lock(&self.state);
        loop {
            let position = state.next_position;
            if state.stopped || state.failure.is_some() || position >= self.order.len() {
                return None;
            }
            let ahead = position / self.batch_size - state.next_batch;
            if ahead < PREFETCHED_BATCHES {
                if ahead == state.assemblies.len() {
                    let size = self.batch_size.min(self.order.len() - position);
                    let samples = (0..size).map(|_| None).collect();
                    state.assemblies.push_back(Assembly { samples, missing: size, batch: None });
                }
                state.next_position += 1;
                return Some(position);
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts a sample into its batch, and gives back all samples of the batch when this was the last.
    fn deliver(&self, position: usize, sample: Result<Vec<u8>>) -> Option<Vec<Option<Result<Vec<u8>>>>> {
        let mut state = lock(&self.state);
        let number = position / self.batch_size - state.next_batch;
        let assembly = state.assemblies.get_mut(number)?;
        assembly.samples[position % self.batch_size] = Some(sample);
        assembly.missing -= 1;
        (assembly.missing == 0).then(|| std::mem::take(&mut assembly.samples))
    }

    fn complete(&self, number: usize, batch: Result<Batch>) {
        let mut state = lock(&self.state);
        let ahead = number - state.next_batch;
        if let Some(assembly) = state.assemblies.get_mut(ahead) {
            assembly.batch = Some(batch);
        }
        self.ready.notify_all();
    }
}

/// Puts the samples of a batch together, in their order, without those that failed.
fn assemble<J: Job>(job: &J, shared: &Shared, order: &[usize], samples: Vec<Option<Result<Vec<u8>>>>) -> Result<Batch> {
    let present = samples.iter().filter(|sample| matches!(sample, Some(Ok(_)))).count();
    let values = job.options().image_size as usize * job.options().image_size as usize * 3;
    let mut images = shared.pool.take_images();
    images.resize(present * values, 0.0);
    let mut batch = Batch {
        images,
        targets: Vec::with_capacity(present),
        indices: Vec::with_capacity(present),
        skipped: Vec::new(),
        pool: Arc::clone(&shared.pool),
    };
    for (&index, sample) in order.iter().zip(samples) {
        let picture = &job.dataset().samples[index];
        match sample {
            Some(Ok(pixels)) => {
                let start = batch.indices.len() * values;
                normalize(&pixels, &mut batch.images[start..start + values])?;
                shared.pool.return_pixels(pixels);
                batch.targets.push(picture.class as u32);
                batch.indices.push(index);
            }
            Some(Err(error)) if job.options().strict => return Err(error),
            Some(Err(error)) => batch.skipped.push(SkippedSample {
                index,
                path: picture.path.clone(),
                reason: error.message().to_owned(),
            }),
            None => return Err(Error::new(format!("{} was not prepared", picture.path.display()))),
        }
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::super::image_folder::Sample;
    use super::*;

    /// Panics on one sample.
    struct PanickingJob {
        dataset: ImageFolder,
        options: LoaderOptions,
        fatal: usize,
    }

    impl Job for PanickingJob {
        type Scratch = ();

        fn dataset(&self) -> &ImageFolder {
            &self.dataset
        }

        fn options(&self) -> &LoaderOptions {
            &self.options
        }

        fn prepare(&self, _: &mut (), index: usize, _: &mut [u8]) -> Result<()> {
            assert_ne!(index, self.fatal, "on purpose");
            Ok(())
        }
    }

    #[test]
    fn a_panic_of_a_worker_is_an_error() {
        for workers in [1, 4] {
            let samples = (0..20).map(|n| Sample { path: format!("{n}.jpg").into(), class: 0 }).collect();
            let dataset = ImageFolder { root: "".into(), classes: vec!["only".into()], samples };
            let mode = Mode::Evaluate;
            let options = LoaderOptions { batch_size: 3, image_size: 2, mode, workers, strict: false };
            let order = (0..20).collect();
            let mut epoch = Epoch::start(PanickingJob { dataset, options, fatal: 7 }, order, 0, Arc::default());
            // Batches that were complete before the panic may still come.
            let error = epoch.find_map(Result::err).expect("an error");
            assert_eq!(error.message(), "a data worker failed on 7.jpg");
            assert!(epoch.next().is_none());
        }
    }
}
