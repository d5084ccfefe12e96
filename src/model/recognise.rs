//! Which network a state dict belongs to.

use super::architecture::{Architecture, Block};
use super::resnet::ResNet;

/// The network that follows from the shapes of a state dict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recognised {
    /// The row of the table.
    pub architecture: Architecture,
    /// Channels after the first convolution.
    pub width: usize,
    /// Outputs of the final layer; `None` if the state dict has no final layer.
    pub classes: Option<usize>,
}

impl Recognised {
    /// The network, with `classes` outputs if the state dict has no final layer.
    pub fn resnet(&self, classes: usize) -> ResNet {
        ResNet { architecture: self.architecture, width: self.width, classes: self.classes.unwrap_or(classes) }
    }
}

/// Finds the architecture that a state dict belongs to. `shape_of` looks up the shape of a tensor by torchvision's key, without
/// prefix, in torch's layout. Whether every other key fits is left to the comparison with the network's own keys.
///
/// # Errors
/// The reason, as a clause such as `there is no conv1.weight`, if no row of the table fits.
pub fn recognise<'a>(shape_of: impl Fn(&str) -> Option<&'a [usize]>) -> Result<Recognised, String> {
    let convolution = |name: &str| match shape_of(&format!("{name}.weight")) {
        None => Err(format!("there is no {name}.weight")),
        Some(&[outputs, inputs, height, width]) if outputs > 0 && inputs > 0 => Ok([outputs, inputs, height, width]),
        Some(shape) => Err(format!("{name}.weight has shape {shape:?}, which is not that of a convolution")),
    };
    let [width, ..] = convolution("conv1")?;
    let classes = match shape_of("fc.weight") {
        None => None,
        Some(&[classes, _]) if classes > 0 => Some(classes),
        Some(shape) => return Err(format!("fc.weight has shape {shape:?}, which is not that of a linear layer")),
    };
    let has_block = |stage: usize, block: usize| shape_of(&format!("layer{stage}.{block}.conv1.weight")).is_some();
    // One more than the table's most is enough to tell that no row fits.
    let most = Architecture::all().flat_map(Architecture::blocks).max().unwrap_or(0);
    let blocks = [1, 2, 3, 4].map(|stage| (0..=most).take_while(|&block| has_block(stage, block)).count());
    let [inner, inner_inputs, ..] = convolution("layer1.0.conv2")?;
    let block = match shape_of("layer1.0.conv3.weight") {
        None => Block::Basic,
        Some(_) if inner != inner_inputs => {
            return Err("its 3 x 3 convolutions are grouped (ResNeXt)".into());
        }
        Some(_) => Block::Bottleneck { widening: inner / width },
    };
    match Architecture::all().find(|row| (row.block(), row.blocks()) == (block, blocks)) {
        Some(architecture) => Ok(Recognised { architecture, width, classes }),
        None => {
            let [first, second, third, fourth] = blocks;
            let kind = match block {
                Block::Basic => "basic blocks".to_string(),
                Block::Bottleneck { widening: 1 } => "bottleneck blocks".to_string(),
                Block::Bottleneck { widening } => format!("bottleneck blocks of {widening} x the width"),
            };
            Err(format!("no known architecture has {first}, {second}, {third} and {fourth} {kind}"))
        }
    }
}
