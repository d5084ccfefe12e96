//! The two data sets of the demo, which are drawn instead of downloaded: a large one for pretraining, and a small one
//! for fine-tuning with the classes `hotdog` and `not-hotdog`.
//!
//! Every image has its own random numbers, derived from seed, data set, class and index. A larger data set therefore
//! contains the smaller one.

mod canvas;
mod things;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use image::ImageEncoder;
use image::codecs::jpeg::JpegEncoder;

use crate::data::random::{Purpose, RandomStream};
use crate::device::threads;
use crate::error::{Context, Error, Result};
use canvas::Canvas;

/// Width and height of a drawn image.
pub const PICTURE_SIZE: u32 = 128;

const JPEG_QUALITY: u8 = 90;

/// A data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Twelve classes of objects on tables, none of them a hot dog.
    Source,
    /// `hotdog` and `not-hotdog`, which shows objects with the parts, shapes and colours of a hot dog.
    Target,
}

type Draw = fn(&mut Canvas, &mut RandomStream);

impl Subject {
    /// The classes in byte order, each with the functions that draw its images.
    fn classes(self) -> Vec<(&'static str, &'static [Draw])> {
        match self {
            Self::Source => vec![
                ("apple", &[things::apple]),
                ("banana", &[things::banana]),
                ("bread-roll", &[things::bread_roll]),
                ("burger", &[things::burger]),
                ("carrot", &[things::carrot]),
                ("doughnut", &[things::doughnut]),
                ("egg", &[things::egg]),
                ("fish", &[things::fish]),
                ("mushroom", &[things::mushroom]),
                ("pencil", &[things::pencil]),
                ("pizza", &[things::pizza]),
                ("sausage", &[things::sausage]),
            ],
            Self::Target => vec![
                ("hotdog", &[things::hot_dog]),
                (
                    "not-hotdog",
                    &[
                        things::banana,
                        things::bread_roll,
                        things::burger,
                        things::carrot,
                        things::eclair,
                        things::pencil,
                        things::sausage,
                        things::sausage_beside_bread,
                    ],
                ),
            ],
        }
    }

    /// The names of the classes, in byte order.
    pub fn class_names(self) -> Vec<&'static str> {
        self.classes().into_iter().map(|(name, _)| name).collect()
    }
}

/// Number of images per class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// In `train/`.
    pub train: u64,
    /// In `test/`.
    pub test: u64,
}

/// Draws a data set: `folder/train/<class>/0000.jpg` and so on, and likewise in `folder/test`.
///
/// `drawn` is called after every image, from any thread; drawing stops when it returns false.
///
/// # Errors
/// When the folder is not writable.
pub fn draw_set(
    subject: Subject,
    folder: &Path,
    counts: Counts,
    seed: u64,
    drawn: impl Fn() -> bool + Sync,
) -> Result<()> {
    let mut pictures = Vec::new();
    for (split, (name, count)) in [("train", counts.train), ("test", counts.test)].into_iter().enumerate() {
        for (class, (class_name, _)) in subject.classes().into_iter().enumerate() {
            let folder = folder.join(name).join(class_name);
            fs::create_dir_all(&folder).context(|| format!("cannot create the folder {}", folder.display()))?;
            pictures.extend((0..count).map(|index| (split, class, index, folder.join(format!("{index:04}.jpg")))));
        }
    }
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None::<Error>);
    threads::run(threads::count(), |_| {
        while let Some((split, class, index, path)) = pictures.get(next.fetch_add(1, Ordering::Relaxed)) {
            let bytes = draw_jpeg(subject, *split as u64, *class, *index, seed);
            match bytes.and_then(|bytes| fs::write(path, bytes).context(|| format!("cannot write {}", path.display())))
            {
                Ok(()) if drawn() => {}
                Ok(()) => next.store(pictures.len(), Ordering::Relaxed),
                Err(error) => {
                    next.store(pictures.len(), Ordering::Relaxed);
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            }
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn draw_jpeg(subject: Subject, split: u64, class: usize, index: u64, seed: u64) -> Result<Vec<u8>> {
    let stream = ((subject as u64) << 32) | (split << 16) | class as u64;
    let random = &mut RandomStream::new(seed, Purpose::Drawing, stream, index);
    let pixels = draw(subject.classes()[class].1, random);
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
        .write_image(&pixels, PICTURE_SIZE, PICTURE_SIZE, image::ExtendedColorType::Rgb8)
        .context(|| "cannot encode a JPEG")?;
    Ok(bytes)
}

/// RGB, `[PICTURE_SIZE, PICTURE_SIZE, 3]`.
fn draw(motifs: &[Draw], random: &mut RandomStream) -> Vec<u8> {
    let mut canvas = Canvas::new(PICTURE_SIZE);
    things::table(&mut canvas, random);
    things::clutter(&mut canvas, random);
    motifs[random.below(motifs.len() as u64) as usize](&mut canvas, random);
    things::in_front(&mut canvas, random);
    canvas.photograph(random)
}
