//! ResNets of basic blocks (He et al., 2015), as torchvision builds them: `resnet18` and `resnet34`.

use std::fmt;
use std::str::FromStr;

use crate::device::{Activation, BatchNormMode, Device, MaxPoolWindow};
use crate::error::{Error, Result};
use crate::graph::{ConvolutionOptions, Graph, GraphBuilder, Value};
use crate::ops::LossReduction;
use crate::tensor::ElementType;

/// How many blocks the four stages have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Two blocks a stage.
    ResNet18,
    /// Three, four, six and three blocks.
    ResNet34,
}

impl Architecture {
    /// Blocks of each stage.
    pub fn blocks(self) -> [usize; 4] {
        match self {
            Self::ResNet18 => [2, 2, 2, 2],
            Self::ResNet34 => [3, 4, 6, 3],
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ResNet18 => "resnet18",
            Self::ResNet34 => "resnet34",
        })
    }
}

impl FromStr for Architecture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "resnet18" => Ok(Self::ResNet18),
            "resnet34" => Ok(Self::ResNet34),
            _ => Err(Error::usage(format!("unknown architecture {name:?}: expected resnet18 or resnet34"))),
        }
    }
}

/// Modules whose parameters are fixed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freezing {
    /// torch's module names: `conv1`, `layer2`, `layer3.0`. A module's parts are fixed with it.
    pub modules: Vec<String>,
    /// Whether the batch norms among them normalise by their running statistics and leave them as they are.
    pub batch_norm: bool,
}

impl Freezing {
    /// Whether the parameter or module of this name is fixed.
    pub fn covers(&self, name: &str) -> bool {
        self.modules.iter().any(|module| {
            name.strip_prefix(module.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }
}

/// A network without its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResNet {
    /// How many blocks there are.
    pub architecture: Architecture,
    /// Channels of the first stage: 64 in torchvision's.
    pub width: usize,
    /// Outputs of the head.
    pub classes: usize,
}

/// What a graph is for.
#[derive(Debug, Clone)]
pub enum Phase {
    /// Batch norms normalise by the batch, but for frozen ones.
    Training(Freezing),
    /// Batch norms normalise by their running statistics.
    Evaluation,
}

/// Sizes of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BatchShape {
    /// Pictures.
    pub batch: usize,
    /// Rows of each.
    pub height: usize,
    /// Columns of each.
    pub width: usize,
}

/// A network's graph and the values that its users need.
pub struct NetworkGraph {
    /// The graph itself.
    pub graph: Graph,
    /// `[N, H, W, 3]`, normalised pixels, in the device's type of activations.
    pub input: Value,
    /// `[N]`, int32 class indices.
    pub targets: Value,
    /// `[N, classes]`
    pub logits: Value,
    /// `[2]`: the reduced loss and the number of correct pictures.
    pub loss: Value,
}

impl ResNet {
    /// Writes the network for one batch shape. `kept` names modules whose outputs the caller wants to read after a run.
    pub fn graph(
        &self,
        device: &dyn Device,
        shape: BatchShape,
        phase: &Phase,
        reduction: LossReduction,
        kept: &[String],
    ) -> Result<NetworkGraph> {
        let mut builder = GraphBuilder::new(device);
        let pixels = device.precision().activation_type();
        let input = builder.input("input", [shape.batch, shape.height, shape.width, 3], pixels);
        let targets = builder.input("target", [shape.batch], ElementType::I32);
        let mut network = Writer { builder: &mut builder, phase };
        let stem = ConvolutionOptions { channels: self.width, kernel: 7, stride: 2, padding: 3 };
        let mut value = network.convolution(input, ["conv1", "bn1"], stem, None, Activation::Relu)?;
        value = network.builder.max_pool(value, "maxpool", MaxPoolWindow { size: 3, stride: 2, padding: 1 })?;
        for (stage, blocks) in self.architecture.blocks().into_iter().enumerate() {
            let channels = self.width << stage;
            for block in 0..blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                value = network.basic_block(value, &format!("layer{}.{block}", stage + 1), channels, stride)?;
            }
        }
        let pooled = builder.avg_pool(value, "avgpool")?;
        let logits = builder.linear(pooled, "fc", self.classes)?;
        let loss = builder.cross_entropy(logits, targets, reduction);
        let mut outputs = vec![logits, loss];
        for name in kept {
            outputs.extend(builder.find(name));
        }
        Ok(NetworkGraph { graph: builder.finish(&outputs), input, targets, logits, loss })
    }

    /// Names of the modules that may be frozen.
    pub fn modules(&self) -> Vec<String> {
        let stages = self.architecture.blocks().into_iter().enumerate();
        let blocks = stages.flat_map(|(stage, blocks)| {
            let stage = format!("layer{}", stage + 1);
            let blocks: Vec<String> = (0..blocks).map(|block| format!("{stage}.{block}")).collect();
            [stage].into_iter().chain(blocks)
        });
        ["conv1", "bn1"].map(String::from).into_iter().chain(blocks).chain(["fc".to_string()]).collect()
    }
}

struct Writer<'a, 'b> {
    builder: &'a mut GraphBuilder<'b>,
    phase: &'a Phase,
}

impl Writer<'_, '_> {
    fn convolution(
        &mut self,
        input: Value,
        names: [&str; 2],
        options: ConvolutionOptions,
        residual: Option<Value>,
        activation: Activation,
    ) -> Result<Value> {
        let mode = match self.phase {
            Phase::Evaluation => {
                return self.builder.evaluated_conv2d_batch_norm(input, names, options, residual, activation);
            }
            Phase::Training(freezing) if freezing.batch_norm && freezing.covers(names[1]) => BatchNormMode::Running,
            Phase::Training(_) => BatchNormMode::Training,
        };
        self.builder.conv2d_batch_norm(input, names, options, mode, residual, activation)
    }

    fn basic_block(&mut self, input: Value, name: &str, channels: usize, stride: usize) -> Result<Value> {
        let part = |part: &str| format!("{name}.{part}");
        let options = |kernel, stride| ConvolutionOptions { channels, kernel, stride, padding: kernel / 2 };
        let shortcut = if stride == 1 && self.builder.shape(input).channels() == channels {
            input
        } else {
            let names = [&*part("downsample.0"), &*part("downsample.1")];
            self.convolution(input, names, options(1, stride), None, Activation::None)?
        };
        // After the shortcut, so that in the backward pass its gradient comes first and writes all of the input's, and
        // the shortcut, a quarter of whose taps exist, adds to it.
        let inner =
            self.convolution(input, [&part("conv1"), &part("bn1")], options(3, stride), None, Activation::Relu)?;
        let output =
            self.convolution(inner, [&part("conv2"), &part("bn2")], options(3, 1), Some(shortcut), Activation::Relu)?;
        self.builder.rename(output, name);
        Ok(output)
    }
}
