//! Pictures: folders of them, decoding, transforms, batches.

pub mod batches;
pub mod decode;
pub mod image_folder;
mod jpeg;
pub mod loader;
mod pipeline;
pub mod random;
pub mod store;
pub mod transform;

pub use batches::{BatchEpoch, Batches, InputBatch};
pub use decode::{DecodeOptions, Decoder, Image, PaddedImage, RgbImage, decode_file};
pub use image_folder::{ImageFolder, Sample, Splits, open_dataset};
pub use loader::{Batch, Epoch, Loader, LoaderOptions, Mode, SkippedSample, epoch_order};
pub use store::{PictureStore, Stored};
pub use transform::{Augmentation, CropBox, Transformer};
