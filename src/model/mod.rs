//! Networks, independent of a device: the table of architectures, the layers that follow from a row, and the initialisation of
//! parameters.

mod architecture;
pub mod init;
mod recognise;
mod resnet;

pub use architecture::{Architecture, Block};
pub use recognise::{Recognised, recognise};
pub use resnet::{FEATURES, FULL_WIDTH, HEAD, ResNet, STAGES, is_head, stage_of};

pub use crate::graph::{BatchShape, Freezing, NetworkGraph, Phase};
