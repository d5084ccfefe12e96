//! Images: folders of them, decoding, transforms, batches.

pub mod augmenter;
pub mod batches;
pub mod decode;
pub mod image_folder;
mod jpeg;
pub mod loader;
mod orientation;
mod pipeline;
pub mod random;
mod resident;
pub mod store;
pub mod transform;
pub mod transformer;

pub use augmenter::Augmenter;
pub use batches::{BatchEpoch, Batches, InputBatch, Placement};
pub use decode::{DecodeOptions, Decoder, Image, PaddedImage, RgbImage, decode_file};
pub use image_folder::{ImageFolder, Sample, Splits, open_dataset};
pub use loader::{Batch, Epoch, Loader, LoaderOptions, Mode, SkippedSample, epoch_order};
pub use store::{ImageStore, Stored};
pub use transform::{Augmentation, CropBox, Draw, Operation, Transform};
pub use transformer::Transformer;
