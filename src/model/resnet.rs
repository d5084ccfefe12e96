//! ResNets (He et al., 2015), as torchvision builds them.

use std::fmt;

use super::architecture::{Architecture, Block};
use crate::graph::{
    Activation, ConvolutionOptions, MaxPoolWindow, ParameterRole, ParameterSpecification, Source, Specification,
};
use crate::weights::NamedShape;

/// The name of the head: torchvision's final layer.
pub const HEAD: &str = "fc";

/// The name of the layer whose output the head gets: the features of the images.
pub const FEATURES: &str = "avgpool";

/// Whether a parameter belongs to the head.
pub fn is_head(name: &str) -> bool {
    name.strip_prefix(HEAD).is_some_and(|rest| rest.starts_with('.'))
}

/// Stages of a network without its head: the stem, and `layer1` to `layer4`.
pub const STAGES: usize = 5;

/// The stage to which a parameter belongs, counted from 0 at the input; none for the head.
pub fn stage_of(name: &str) -> Option<usize> {
    if is_head(name) {
        return None;
    }
    let number = name.strip_prefix("layer").and_then(|rest| rest.split('.').next()?.parse().ok());
    Some(number.unwrap_or(0))
}

/// The width of torchvision's networks.
pub const FULL_WIDTH: usize = 64;

/// A network without its weights. `Display` gives `resnet18`, or `resnet18 of width 8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResNet {
    /// Its row of the table.
    pub architecture: Architecture,
    /// Channels after the first convolution: 64 in torchvision's networks.
    pub width: usize,
    /// Outputs of the final layer.
    pub classes: usize,
}

impl ResNet {
    /// The layers. Names are torchvision's.
    pub fn specification(&self) -> Specification {
        let mut network = Specification::new(self.architecture.name(), 3);
        let stem = ConvolutionOptions { channels: self.width, kernel: 7, stride: 2, padding: 3 };
        let mut value = network.conv2d_batch_norm(Source::Pixels, ["conv1", "bn1"], stem, None, Activation::Relu);
        value = network.max_pool(value, "maxpool", MaxPoolWindow { size: 3, stride: 2, padding: 1 });
        for (stage, blocks) in self.architecture.blocks().into_iter().enumerate() {
            for block in 0..blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let name = format!("layer{}.{block}", stage + 1);
                value = push_block(&mut network, value, &name, self.architecture.block(), self.width << stage, stride);
            }
        }
        value = network.avg_pool(value, FEATURES);
        network.linear(value, HEAD, self.classes);
        network
    }

    /// The number of features of an image.
    pub fn features(&self) -> usize {
        self.specification().layer(HEAD).map_or(0, |head| head.input_channels)
    }

    /// Every parameter and running statistic, in order of computation.
    pub fn parameters(&self) -> Vec<ParameterSpecification> {
        self.specification().parameters()
    }

    /// The keys of the state dict with their shapes in torch's layout, in order of computation.
    pub fn state_dict(&self) -> Vec<NamedShape> {
        let mut keys = Vec::new();
        for parameter in self.parameters() {
            let counter = match (parameter.role, parameter.name.rsplit_once('.')) {
                (ParameterRole::RunningVariance, Some((module, _))) => Some(format!("{module}.num_batches_tracked")),
                _ => None,
            };
            let shape = parameter.torch_shape();
            keys.push(NamedShape { name: parameter.name, shape });
            keys.extend(counter.map(|name| NamedShape { name, shape: Vec::new() }));
        }
        keys
    }

    /// The Python expression that makes this network in torchvision; `None` for a width that torchvision does not build.
    pub fn torchvision_call(&self) -> Option<String> {
        let Self { architecture, width, classes } = self;
        (*width == FULL_WIDTH).then(|| format!("torchvision.models.{architecture}(num_classes={classes})"))
    }
}

impl fmt::Display for ResNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.width {
            FULL_WIDTH => write!(f, "{}", self.architecture),
            width => write!(f, "{} of width {width}", self.architecture),
        }
    }
}

/// A block of a stage of `planes` channels (before the expansion), which may halve rows and columns.
fn push_block(
    network: &mut Specification,
    input: Source,
    name: &str,
    block: Block,
    planes: usize,
    stride: usize,
) -> Source {
    let part = |part: &str| format!("{name}.{part}");
    let options = |channels, kernel, stride| ConvolutionOptions { channels, kernel, stride, padding: kernel / 2 };
    let channels = planes * block.expansion();
    let shortcut = if stride == 1 && network.channels(input) == channels {
        input
    } else {
        let names = [&*part("downsample.0"), &*part("downsample.1")];
        network.conv2d_batch_norm(input, names, options(channels, 1, stride), None, Activation::None)
    };
    // After the shortcut, so that in the backward pass the gradient of these comes first and writes all of the input's, and
    // the shortcut, a quarter of whose taps exist, adds to it.
    let convolutions = match block {
        Block::Basic => vec![options(planes, 3, stride), options(planes, 3, 1)],
        Block::Bottleneck { widening } => {
            let inner = planes * widening;
            vec![options(inner, 1, 1), options(inner, 3, stride), options(channels, 1, 1)]
        }
    };
    let last = convolutions.len();
    let mut value = input;
    for (number, options) in (1..).zip(convolutions) {
        let names = [&*part(&format!("conv{number}")), &*part(&format!("bn{number}"))];
        let residual = (number == last).then_some(shortcut);
        value = network.conv2d_batch_norm(value, names, options, residual, Activation::Relu);
    }
    network.end_module(name);
    value
}
