//! Downloads data sets and pretrained weights, and verifies their checksums.

mod digest;
mod download;
pub mod hub;
mod unpack;

pub use digest::Digest;
pub use download::{Transfer, download};
pub use unpack::{Limits, unpack};

/// The environment variable with the URL of a mirror that replaces the servers of all [`Source`]s.
pub const MIRROR_VARIABLE: &str = "RETUNE_FETCH_BASE";

/// A known file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The file's name.
    pub file: &'static str,
    /// The URL of its folder.
    pub base: &'static str,
    /// Its checksum.
    pub digest: Digest<'static>,
}

impl Source {
    /// The images of the fine-tuning chapter of *Dive into Deep Learning*: a zip archive with `hotdog/train/hotdog/*.png` and
    /// so on.
    pub const HOTDOG: Self = Self {
        file: "hotdog.zip",
        base: "https://d2l-data.s3-accelerate.amazonaws.com",
        digest: Digest::Sha1("fba480ffa8aa7e0febbb511d181409f899b9baa5"),
    };

    /// torchvision's ResNet-18, `ResNet18_Weights.IMAGENET1K_V1`.
    pub const RESNET18: Self = Self {
        file: "resnet18-f37072fd.pth",
        base: "https://download.pytorch.org/models",
        digest: Digest::Sha256Start("f37072fd"),
    };

    /// torchvision's ResNet-34, `ResNet34_Weights.IMAGENET1K_V1`.
    pub const RESNET34: Self = Self {
        file: "resnet34-b627a593.pth",
        base: "https://download.pytorch.org/models",
        digest: Digest::Sha256Start("b627a593"),
    };

    /// The file's URL on its server, or on the mirror in [`MIRROR_VARIABLE`].
    pub fn url(&self) -> String {
        let base = std::env::var(MIRROR_VARIABLE).ok().filter(|base| !base.is_empty());
        format!("{}/{}", base.as_deref().unwrap_or(self.base).trim_end_matches('/'), self.file)
    }
}
