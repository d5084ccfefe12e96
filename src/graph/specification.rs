//! The description of a network, independent of device and batch: its layers in an order in which they can be computed, with
//! torch's module names. Parameters, key names, ONNX files and, for a device and a batch shape, the graph follow from it.

use std::collections::BTreeMap;

use super::freezing::Freezing;
use super::nodes::{Graph, Node, Value, ValueInfo};
use super::parameters::{Initialisation, ParameterId, ParameterRole, ParameterSpecification};
use crate::device::{Activation, BatchNormMode, Conv2dShape, Device, MaxPoolWindow};
use crate::error::{Error, Result};
use crate::ops::batch_norm::EPSILON;
use crate::ops::{
    AvgPool, BatchNorm, BatchNormMaxPool, Conv2d, Conv2dBatchNorm, CrossEntropyLoss, Linear, MaxPool, Operation,
};
use crate::tensor::{ElementType, Shape};

/// Sizes of a convolution that do not follow from its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvolutionOptions {
    /// Channels of the output.
    pub channels: usize,
    /// Rows and columns of the filter.
    pub kernel: usize,
    /// Stride of the filter.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: usize,
}

/// The operation of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// A convolution without bias (`torch.nn.Conv2d(bias=False)`).
    Conv2d(ConvolutionOptions),
    /// Batch normalisation (`torch.nn.BatchNorm2d`) of the convolution before it.
    BatchNorm {
        /// Whether the second input is added.
        residual: bool,
        /// The activation, applied last.
        activation: Activation,
    },
    /// The maximum of each window (`torch.nn.MaxPool2d`).
    MaxPool(MaxPoolWindow),
    /// The mean over rows and columns (`torch.nn.AdaptiveAvgPool2d(1)` and `flatten`).
    AvgPool,
    /// A fully connected layer with bias (`torch.nn.Linear`).
    Linear {
        /// Features of the output.
        outputs: usize,
    },
}

/// The source of a layer's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The network's input: normalised pixels.
    Pixels,
    /// The output of the layer at this index.
    Layer(usize),
}

/// A layer with its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSpecification {
    /// torch's module name: `layer1.0.conv1`. A parameter is `<name>.weight` and so on.
    pub name: String,
    /// The module whose output is that of the layer: its own, or that of the block that it ends, `layer1.0`.
    pub output: String,
    /// Its operation.
    pub layer: Layer,
    /// Its inputs: the residual, if there is one, is the second.
    pub inputs: Vec<Source>,
    /// Channels, or features, of the first input.
    pub input_channels: usize,
    /// Channels, or features, of the output.
    pub channels: usize,
}

impl LayerSpecification {
    /// The parameters and running statistics, in the order in which the operation reads them.
    pub fn parameters(&self) -> Vec<ParameterSpecification> {
        let Self { input_channels, channels, .. } = *self;
        let parameter = |part: &str, shape: Shape, role, initialisation| ParameterSpecification {
            name: format!("{}.{part}", self.name),
            shape,
            role,
            initialisation,
        };
        let of_channels = |part, role, initialisation| parameter(part, [channels].into(), role, initialisation);
        match self.layer {
            Layer::Conv2d(ConvolutionOptions { kernel, .. }) => {
                let fan_out = channels * kernel * kernel;
                vec![parameter(
                    "weight",
                    [channels, kernel, kernel, input_channels].into(),
                    ParameterRole::ConvolutionWeight,
                    Initialisation::KaimingNormal { fan_out },
                )]
            }
            Layer::BatchNorm { .. } => vec![
                of_channels("weight", ParameterRole::BatchNormWeight, Initialisation::Ones),
                of_channels("bias", ParameterRole::BatchNormBias, Initialisation::Zeros),
                of_channels("running_mean", ParameterRole::RunningMean, Initialisation::Zeros),
                of_channels("running_var", ParameterRole::RunningVariance, Initialisation::Ones),
            ],
            Layer::Linear { .. } => {
                let uniform = Initialisation::Uniform { fan_in: input_channels };
                vec![
                    parameter("weight", [channels, input_channels].into(), ParameterRole::LinearWeight, uniform),
                    of_channels("bias", ParameterRole::LinearBias, uniform),
                ]
            }
            Layer::MaxPool(_) | Layer::AvgPool => Vec::new(),
        }
    }

    /// The operators of the ONNX standard, in its version 17, that compute the layer one after the other. The first reads the
    /// layer's input, and each other one the result of the one before.
    pub fn onnx_operators(&self) -> Vec<OnnxOperator> {
        let operator = |name, operands, attributes| OnnxOperator { name, operands, attributes };
        let plain = |name| operator(name, Operands::None, Vec::new());
        let window = |size: usize, stride: usize, padding: usize| {
            let integers =
                |values: &[usize]| OnnxAttribute::Integers(values.iter().map(|&value| value as i64).collect());
            vec![
                ("kernel_shape", integers(&[size; 2])),
                ("strides", integers(&[stride; 2])),
                ("pads", integers(&[padding; 4])),
            ]
        };
        match self.layer {
            Layer::Conv2d(ConvolutionOptions { kernel, stride, padding, .. }) => {
                vec![operator("Conv", Operands::Parameters, window(kernel, stride, padding))]
            }
            Layer::BatchNorm { residual, activation } => {
                let epsilon = vec![("epsilon", OnnxAttribute::Float(EPSILON))];
                let mut operators = vec![operator("BatchNormalization", Operands::Parameters, epsilon)];
                operators.extend(residual.then(|| operator("Add", Operands::Residual, Vec::new())));
                operators.extend(match activation {
                    Activation::None => None,
                    Activation::Relu => Some(plain("Relu")),
                });
                operators
            }
            Layer::MaxPool(MaxPoolWindow { size, stride, padding }) => {
                vec![operator("MaxPool", Operands::None, window(size, stride, padding))]
            }
            Layer::AvgPool => {
                let axis = vec![("axis", OnnxAttribute::Integer(1))];
                vec![plain("GlobalAveragePool"), operator("Flatten", Operands::None, axis)]
            }
            Layer::Linear { .. } => {
                vec![operator("Gemm", Operands::Parameters, vec![("transB", OnnxAttribute::Integer(1))])]
            }
        }
    }
}

/// An operator of the ONNX standard.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxOperator {
    /// The standard's name.
    pub name: &'static str,
    /// Its inputs after the first.
    pub operands: Operands,
    /// Attributes: the standard's names, with values.
    pub attributes: Vec<(&'static str, OnnxAttribute)>,
}

/// The inputs of an operator after the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operands {
    /// Nothing.
    None,
    /// The layer's parameters, in the order of [`LayerSpecification::parameters`].
    Parameters,
    /// The layer's second input.
    Residual,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum OnnxAttribute {
    /// One integer.
    Integer(i64),
    /// A list of integers.
    Integers(Vec<i64>),
    /// A float32.
    Float(f32),
}

/// A network's layers, in order of computation. The output of the last is the logits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Specification {
    name: String,
    channels: usize,
    layers: Vec<LayerSpecification>,
}

impl Specification {
    /// A network without layers, for images of `channels` channels. The name is for messages.
    pub fn new(name: impl Into<String>, channels: usize) -> Self {
        Self { name: name.into(), channels, layers: Vec::new() }
    }

    /// The network's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Channels of the input.
    pub fn input_channels(&self) -> usize {
        self.channels
    }

    /// The layers, in order of computation.
    pub fn layers(&self) -> &[LayerSpecification] {
        &self.layers
    }

    /// The layer with this module name.
    pub fn layer(&self, name: &str) -> Option<&LayerSpecification> {
        self.layers.iter().find(|layer| layer.name == name)
    }

    /// Every parameter and running statistic, in order of computation.
    pub fn parameters(&self) -> Vec<ParameterSpecification> {
        self.layers.iter().flat_map(LayerSpecification::parameters).collect()
    }

    /// Rejects names that are not modules of the network, and names that leave nothing to train.
    ///
    /// # Errors
    /// A usage error that names the module, with the network's modules as a hint.
    pub fn check_freezing(&self, freezing: &Freezing) -> Result<()> {
        let parameters = self.parameters();
        for module in &freezing.modules {
            let one = Freezing { modules: vec![module.clone()], batch_norm: false };
            if !parameters.iter().any(|parameter| one.covers(&parameter.name)) {
                return Err(Error::usage(format!("{} has no module {module:?}", self.name()))
                    .hint(format!("its modules are {}", self.modules().join(", "))));
            }
        }
        let trains =
            |parameter: &ParameterSpecification| !parameter.role.is_buffer() && !freezing.covers(&parameter.name);
        if !parameters.iter().any(trains) {
            return Err(Error::usage("every module is frozen; nothing is left to train"));
        }
        Ok(())
    }

    /// The modules that users can name, in order of computation: stages, their blocks, and the layers outside of blocks.
    pub fn modules(&self) -> Vec<String> {
        let mut modules: Vec<String> = Vec::new();
        for layer in self.layers.iter().filter(|layer| !layer.parameters().is_empty()) {
            let parts: Vec<&str> = layer.name.split('.').take(2).collect();
            for depth in 1..=parts.len() {
                let module = parts[..depth].join(".");
                if !modules.contains(&module) {
                    modules.push(module);
                }
            }
        }
        modules
    }

    /// Channels, or features, of a layer's output or of the input.
    pub fn channels(&self, source: Source) -> usize {
        match source {
            Source::Pixels => self.channels,
            Source::Layer(index) => self.layers[index].channels,
        }
    }

    /// Appends a convolution.
    pub fn conv2d(&mut self, input: Source, name: &str, options: ConvolutionOptions) -> Source {
        self.push(name, Layer::Conv2d(options), vec![input], options.channels)
    }

    /// Appends a convolution and the batch norm of its output, with an added residual if there is one. `names` are those of
    /// the two.
    pub fn conv2d_batch_norm(
        &mut self,
        input: Source,
        names: [&str; 2],
        options: ConvolutionOptions,
        residual: Option<Source>,
        activation: Activation,
    ) -> Source {
        let convolution = self.conv2d(input, names[0], options);
        let inputs = [Some(convolution), residual].into_iter().flatten().collect();
        self.push(names[1], Layer::BatchNorm { residual: residual.is_some(), activation }, inputs, options.channels)
    }

    /// Appends a max pooling.
    pub fn max_pool(&mut self, input: Source, name: &str, window: MaxPoolWindow) -> Source {
        self.push(name, Layer::MaxPool(window), vec![input], self.channels(input))
    }

    /// Appends the mean over rows and columns.
    pub fn avg_pool(&mut self, input: Source, name: &str) -> Source {
        self.push(name, Layer::AvgPool, vec![input], self.channels(input))
    }

    /// Appends a fully connected layer.
    pub fn linear(&mut self, input: Source, name: &str, outputs: usize) -> Source {
        self.push(name, Layer::Linear { outputs }, vec![input], outputs)
    }

    /// Declares that the last layer's output is that of the enclosing module `name`.
    pub fn end_module(&mut self, name: &str) {
        if let Some(last) = self.layers.last_mut() {
            last.output = name.into();
        }
    }

    fn push(&mut self, name: &str, layer: Layer, inputs: Vec<Source>, channels: usize) -> Source {
        assert!(self.layer(name).is_none(), "two layers are named {name}");
        let input_channels = self.channels(inputs[0]);
        self.layers.push(LayerSpecification {
            name: name.into(),
            output: name.into(),
            layer,
            inputs,
            input_channels,
            channels,
        });
        Source::Layer(self.layers.len() - 1)
    }
}

/// The purpose of a graph.
#[derive(Debug, Clone)]
pub enum Phase {
    /// Training: batch norms use the statistics of the batch, except frozen ones.
    Training(Freezing),
    /// Evaluation: batch norms use their running statistics.
    Evaluation,
}

/// The sizes of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BatchShape {
    /// Images.
    pub batch: usize,
    /// Rows of each.
    pub height: usize,
    /// Columns of each.
    pub width: usize,
}

/// A network's graph and the values that its users need.
pub struct NetworkGraph {
    /// The graph.
    pub graph: Graph,
    /// `[N, H, W, C]`, normalised pixels, in the device's type of activations.
    pub input: Value,
    /// `[N]`, int32 class indices.
    pub targets: Value,
    /// `[N, classes]`
    pub logits: Value,
    /// `[2]`: the reduced loss and the number of correct images.
    pub loss: Value,
}

impl Specification {
    /// The graph for one device, batch shape and phase, with a cross-entropy loss at its end. `kept` names modules whose outputs
    /// the caller wants to read after a run.
    ///
    /// # Errors
    /// When the images are too small, or, in training, leave a batch norm a single value per channel.
    pub fn graph(
        &self,
        device: &dyn Device,
        shape: BatchShape,
        phase: &Phase,
        loss: impl Into<CrossEntropyLoss>,
        kept: &[String],
    ) -> Result<NetworkGraph> {
        let mut lowering = Lowering { device, phase, graph: Graph::default() };
        let extents = [shape.batch, shape.height, shape.width, self.channels];
        let input = lowering.input("input", extents, device.precision().activation_type());
        let targets = lowering.input("target", [shape.batch], ElementType::I32);
        let mut values = BTreeMap::from([(Source::Pixels, input)]);
        let mut logits = input;
        let readers =
            |index: usize| self.layers.iter().filter(|layer| layer.inputs.contains(&Source::Layer(index))).count();
        let mut layers = self.layers.iter().enumerate().peekable();
        while let Some((mut index, layer)) = layers.next() {
            let norm = layers.next_if(|(_, next)| {
                matches!(next.layer, Layer::BatchNorm { .. }) && next.inputs[0] == Source::Layer(index)
            });
            logits = match norm {
                Some((next, norm)) => {
                    index = next;
                    let residual = norm.inputs.get(1).map(|source| values[source]);
                    let is_kept = readers(next) > 1 || kept.contains(&norm.output);
                    let pool = layers.next_if(|(_, pool)| {
                        !is_kept
                            && residual.is_none()
                            && pool.inputs == [Source::Layer(next)]
                            && matches!(pool.layer, Layer::MaxPool(window) if lowering.pools_batch_norms(window))
                    });
                    index = pool.map_or(index, |(pool, _)| pool);
                    let pool = pool.map(|(_, pool)| pool);
                    lowering.conv2d_batch_norm(layer, norm, pool, values[&layer.inputs[0]], residual)?
                }
                None => lowering.layer(layer, values[&layer.inputs[0]])?,
            };
            lowering.graph.values[logits.0].name.clone_from(&self.layers[index].output);
            values.insert(Source::Layer(index), logits);
        }
        let loss = lowering.push_node("loss", loss.into(), vec![logits, targets], Vec::new())[0];
        let mut graph = lowering.graph;
        graph.outputs = [logits, loss].into_iter().chain(kept.iter().filter_map(|name| graph.find(name))).collect();
        Ok(NetworkGraph { graph, input, targets, logits, loss })
    }
}

/// Turns layers into nodes with operations, and checks shapes.
struct Lowering<'a> {
    /// Determines the rows of partial statistics, and whether [`Device::conv2d_batch_norm`] is available.
    device: &'a dyn Device,
    phase: &'a Phase,
    graph: Graph,
}

impl Lowering<'_> {
    fn layer(&mut self, specification: &LayerSpecification, input: Value) -> Result<Value> {
        let ValueInfo { shape, element_type, .. } = *self.graph.value(input);
        let name = &specification.name;
        match specification.layer {
            Layer::Conv2d(options) => {
                let shape = self.conv2d_shape(input, name, options)?;
                Ok(self.push(specification, Conv2d { shape, element_type, statistics_rows: 0 }, vec![input])[0])
            }
            Layer::BatchNorm { .. } => {
                Err(Error::new(format!("{name}: a batch norm must follow the convolution that it normalises")))
            }
            Layer::MaxPool(window) => {
                self.activation(input, name)?;
                Ok(self.push(specification, MaxPool { input: shape, element_type, window }, vec![input])[0])
            }
            Layer::AvgPool => {
                self.activation(input, name)?;
                Ok(self.push(specification, AvgPool { input: shape }, vec![input])[0])
            }
            Layer::Linear { outputs } => {
                let [batch, inputs] = *shape.dims() else {
                    return Err(Error::new(format!("{name}: expected [N, C], found {shape:?}")));
                };
                Ok(self.push(specification, Linear { batch, inputs, outputs }, vec![input])[0])
            }
        }
    }

    /// Whether a batch norm and the max pooling after it are one node: in training, if the device supports it.
    fn pools_batch_norms(&self, window: MaxPoolWindow) -> bool {
        matches!(self.phase, Phase::Training(_)) && self.device.has_batch_norm_max_pool(window)
    }

    /// A convolution and the batch norm after it, and the max pooling after that if [`Lowering::pools_batch_norms`]. In training mode
    /// the convolution computes the statistics that the batch norm needs, so that its output is not read once more for them. In
    /// evaluation, both are one node if the device supports it.
    fn conv2d_batch_norm(
        &mut self,
        convolution: &LayerSpecification,
        norm: &LayerSpecification,
        pool: Option<&LayerSpecification>,
        input: Value,
        residual: Option<Value>,
    ) -> Result<Value> {
        let (Layer::Conv2d(options), Layer::BatchNorm { activation, .. }) = (convolution.layer, norm.layer) else {
            return self.layer(norm, input);
        };
        let mode = match self.phase {
            Phase::Training(freezing) if !(freezing.batch_norm && freezing.covers(&norm.name)) => {
                BatchNormMode::Training
            }
            Phase::Training(_) | Phase::Evaluation => BatchNormMode::Running,
        };
        let conv2d_shape = self.conv2d_shape(input, &convolution.name, options)?;
        let output = [conv2d_shape.batch, conv2d_shape.output_height(), conv2d_shape.output_width(), options.channels];
        let shape = Shape::from(output);
        match residual.map(|residual| self.graph.value(residual).shape) {
            Some(other) if other != shape => {
                return Err(Error::new(format!("{}: cannot add {other:?} to {shape:?}", norm.name)));
            }
            _ => {}
        }
        let element_type = self.graph.value(input).element_type;
        let batch_norm = BatchNorm { shape, element_type, mode, residual: residual.is_some(), activation };
        let statistics_rows = match mode {
            BatchNormMode::Training => self.device.statistics_rows(shape),
            BatchNormMode::Running => 0,
        };
        let operation = Conv2d { shape: conv2d_shape, element_type, statistics_rows };
        if matches!(self.phase, Phase::Evaluation) && self.device.features().conv2d_batch_norm {
            let mut parameters = self.parameters(convolution);
            parameters.extend(self.parameters(norm));
            let operation = Conv2dBatchNorm { convolution: operation, batch_norm };
            let inputs = [Some(input), residual].into_iter().flatten().collect();
            return Ok(self.push_node(&norm.name, operation, inputs, parameters)[0]);
        }
        let outputs = self.push(convolution, operation, vec![input]);
        if mode == BatchNormMode::Training {
            if shape.rows() < 2 {
                return Err(Error::new(format!(
                    "{}: expected more than one value per channel, found {shape:?}",
                    norm.name
                ))
                .hint("batch norm cannot train on a single pixel: use larger batches or larger images"));
            }
            self.graph.counted_batch_norms.push(norm.name.clone());
        }
        let inputs = outputs.into_iter().chain(residual).collect();
        match pool.map(|pool| pool.layer) {
            Some(Layer::MaxPool(window)) => {
                let max_pool = MaxPool { input: shape, element_type, window };
                Ok(self.push(norm, BatchNormMaxPool { batch_norm, max_pool }, inputs)[0])
            }
            _ => Ok(self.push(norm, batch_norm, inputs)[0]),
        }
    }

    fn conv2d_shape(&self, input: Value, name: &str, options: ConvolutionOptions) -> Result<Conv2dShape> {
        let ConvolutionOptions { channels, kernel, stride, padding } = options;
        let [batch, height, width, input_channels] = self.activation(input, name)?;
        if height + 2 * padding < kernel || width + 2 * padding < kernel || stride == 0 {
            return Err(Error::new(format!(
                "{name}: a {kernel}x{kernel} filter does not fit an image of {height}x{width} with padding {padding}"
            ))
            .hint("use larger images"));
        }
        Ok(Conv2dShape {
            batch,
            height,
            width,
            input_channels,
            output_channels: channels,
            kernel_height: kernel,
            kernel_width: kernel,
            stride,
            padding,
        })
    }

    fn activation(&self, value: Value, name: &str) -> Result<[usize; 4]> {
        let shape = self.graph.value(value).shape;
        shape
            .dims()
            .try_into()
            .map_err(|_| Error::new(format!("{name}: expected an activation [N, H, W, C], found {shape:?}")))
    }

    fn input(&mut self, name: &str, shape: impl Into<Shape>, element_type: ElementType) -> Value {
        let value = self.value(ValueInfo { shape: shape.into(), element_type, producer: None, name: name.into() });
        self.graph.inputs.push(value);
        value
    }

    fn value(&mut self, info: ValueInfo) -> Value {
        self.graph.values.push(info);
        Value(self.graph.values.len() - 1)
    }

    fn parameters(&mut self, layer: &LayerSpecification) -> Vec<ParameterId> {
        let first = self.graph.parameters.len();
        self.graph.parameters.extend(layer.parameters());
        (first..self.graph.parameters.len()).map(ParameterId).collect()
    }

    fn push(
        &mut self,
        layer: &LayerSpecification,
        operation: impl Operation + 'static,
        inputs: Vec<Value>,
    ) -> Vec<Value> {
        let parameters = self.parameters(layer);
        self.push_node(&layer.name, operation, inputs, parameters)
    }

    fn push_node(
        &mut self,
        name: &str,
        operation: impl Operation + 'static,
        inputs: Vec<Value>,
        parameters: Vec<ParameterId>,
    ) -> Vec<Value> {
        let producer = Some(self.graph.nodes.len());
        let outputs: Vec<Value> = operation
            .outputs()
            .into_iter()
            .enumerate()
            .map(|(index, (shape, element_type))| {
                let name = if index == 0 { name.to_string() } else { format!("{name} statistics") };
                self.value(ValueInfo { shape, element_type, producer, name })
            })
            .collect();
        self.graph.nodes.push(Node {
            operation: Box::new(operation),
            name: name.into(),
            inputs,
            outputs: outputs.clone(),
            parameters,
        });
        outputs
    }
}
