//! Images: folders of them, decoding, transforms, batches.

pub mod augmenter;
pub mod batches;
mod bmp;
pub mod dataset;
pub mod decode;
pub mod duplicates;
mod fingerprint;
pub mod format;
mod gif;
pub mod image_folder;
mod jpeg;
mod labels;
pub mod loader;
pub mod not_read;
mod orientation;
mod pipeline;
mod png;
mod pnm;
pub mod random;
mod resident;
mod resizer;
mod rgb_image;
mod samples;
pub mod store;
mod tiff;
pub mod transform;
pub mod transformer;
mod webp;

pub use augmenter::Augmenter;
pub use batches::{BatchEpoch, Batches, InputBatch, Placement};
pub use dataset::{
    Labelled, Role, Splits, open_dataset, open_labelled, open_labelled_by, open_table, open_training_images,
};
pub use decode::{DecodeOptions, Decoder, decode_file};
pub use duplicates::{Duplicates, Examination, Member};
pub use format::FileKind;
pub use image_folder::{ImageFolder, Sample, counted, first_names, images_below};
pub use loader::{Batch, Epoch, Loader, LoaderOptions, Mode, SkippedSample, epoch_order};
pub use not_read::NotRead;
pub use rgb_image::{Image, PaddedImage, RgbImage};
pub use store::{ImageStore, Stored};
pub use transform::{Augmentation, CropBox, Draw, Operation, Transform};
pub use transformer::Transformer;
