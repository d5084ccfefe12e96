//! Files from the network: data sets and weights that people begin with. Everything is checked before it gets its name.

mod digest;
mod download;
pub mod hub;
mod unpack;

pub use digest::Digest;
pub use download::{Transfer, download};
pub use unpack::{Limits, unpack};

/// Replaces the servers of all [`Source`]s: a mirror that has their files under their names.
pub const MIRROR_VARIABLE: &str = "RETUNE_FETCH_BASE";

/// A file that is known by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The file's name.
    pub file: &'static str,
    /// The folder of its server.
    pub base: &'static str,
    /// What it has to come to.
    pub digest: Digest<'static>,
}

impl Source {
    /// The lesson's pictures (*Dive into Deep Learning*): `hotdog/train/hotdog/*.png` and so on, in a zip archive.
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

    /// Where the file is: on its server, or on the mirror that the environment names.
    pub fn url(&self) -> String {
        let base = std::env::var(MIRROR_VARIABLE).ok().filter(|base| !base.is_empty());
        format!("{}/{}", base.as_deref().unwrap_or(self.base).trim_end_matches('/'), self.file)
    }
}
