//! The table of architectures. An architecture of known blocks needs only a row: names on the command line, graphs,
//! parameters, recognition of weights and the ONNX file follow from it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The unit that a ResNet repeats (He et al., 2015).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Two 3 x 3 convolutions.
    Basic,
    /// A 1 x 1, a 3 x 3 and a 1 x 1 convolution. The last has four times the stage's channels; the stride is on the 3 x 3,
    /// as in torchvision ("v1.5").
    Bottleneck {
        /// Channels of the first two convolutions, as a multiple of the stage's.
        widening: usize,
    },
}

impl Block {
    /// Channels of a block's output, as a multiple of the stage's.
    pub fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck { .. } => 4,
        }
    }
}

struct Row {
    /// Also the name of torchvision's constructor.
    name: &'static str,
    title: &'static str,
    block: Block,
    blocks: [usize; 4],
}

const BOTTLENECK: Block = Block::Bottleneck { widening: 1 };
const WIDE_BOTTLENECK: Block = Block::Bottleneck { widening: 2 };

static ARCHITECTURES: &[Row] = &[
    Row { name: "resnet18", title: "ResNet-18", block: Block::Basic, blocks: [2, 2, 2, 2] },
    Row { name: "resnet34", title: "ResNet-34", block: Block::Basic, blocks: [3, 4, 6, 3] },
    Row { name: "resnet50", title: "ResNet-50", block: BOTTLENECK, blocks: [3, 4, 6, 3] },
    Row { name: "resnet101", title: "ResNet-101", block: BOTTLENECK, blocks: [3, 4, 23, 3] },
    Row { name: "resnet152", title: "ResNet-152", block: BOTTLENECK, blocks: [3, 8, 36, 3] },
    Row { name: "wide_resnet50_2", title: "Wide ResNet-50-2", block: WIDE_BOTTLENECK, blocks: [3, 4, 6, 3] },
    Row { name: "wide_resnet101_2", title: "Wide ResNet-101-2", block: WIDE_BOTTLENECK, blocks: [3, 4, 23, 3] },
];

/// An architecture: a row of the table. The default is the first, ResNet-18.
#[derive(Clone, Copy)]
pub struct Architecture(&'static Row);

impl Architecture {
    /// All architectures, in the order of the table.
    pub fn all() -> impl ExactSizeIterator<Item = Self> {
        ARCHITECTURES.iter().map(Self)
    }

    /// The name on the command line and in files, which is also that of torchvision's constructor: `resnet18`.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// The name in prose: `ResNet-18`.
    pub fn title(self) -> &'static str {
        self.0.title
    }

    /// The block that it repeats.
    pub fn block(self) -> Block {
        self.0.block
    }

    /// Blocks in each of the four stages.
    pub fn blocks(self) -> [usize; 4] {
        self.0.blocks
    }
}

impl Default for Architecture {
    fn default() -> Self {
        Self(&ARCHITECTURES[0])
    }
}

impl PartialEq for Architecture {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Architecture {}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Architecture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::all().find(|architecture| architecture.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::all().map(Self::name).collect();
            Error::usage(format!("unknown architecture {name:?}: expected one of {}", names.join(", ")))
        })
    }
}
