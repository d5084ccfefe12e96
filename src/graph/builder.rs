//! Writes a graph as a sequence of calls, checking shapes as it goes.

use super::{Graph, Node, ParameterId, ParameterRole, ParameterSpecification, Value, ValueInfo};
use crate::device::{Activation, BatchNormMode, Conv2dShape, Device, MaxPoolWindow};
use crate::error::{Error, Result};
use crate::ops::{
    AvgPool, BatchNorm, Conv2d, Conv2dBatchNorm, CrossEntropyLoss, Linear, LossReduction, MaxPool, Operation,
};
use crate::tensor::{ElementType, Shape};

/// Sizes of a convolution that its input does not tell.
#[derive(Debug, Clone, Copy)]
pub struct ConvolutionOptions {
    /// Channels of the output.
    pub channels: usize,
    /// Rows and columns of the filter.
    pub kernel: usize,
    /// Step of the filter.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: usize,
}

/// Collects nodes; [`GraphBuilder::finish`] turns them into a [`Graph`].
///
/// Names are torch's module names; a parameter is `<module>.weight` and so on.
pub struct GraphBuilder<'a> {
    device: &'a dyn Device,
    graph: Graph,
}

impl<'a> GraphBuilder<'a> {
    /// An empty graph. The device says how finely it takes partial statistics, nothing else.
    pub fn new(device: &'a dyn Device) -> Self {
        let graph = Graph {
            nodes: Vec::new(),
            values: Vec::new(),
            parameters: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            counted_batch_norms: Vec::new(),
        };
        Self { device, graph }
    }

    /// The extents of a value.
    pub fn shape(&self, value: Value) -> Shape {
        self.graph.value(value).shape
    }

    /// Something that the caller fills in.
    pub fn input(&mut self, name: &str, shape: impl Into<Shape>, element_type: ElementType) -> Value {
        let value = self.value(ValueInfo { shape: shape.into(), element_type, producer: None, name: name.into() });
        self.graph.inputs.push(value);
        value
    }

    /// A convolution without bias. `[N, H, W, C]` to `[N, OH, OW, channels]`.
    pub fn conv2d(&mut self, input: Value, name: &str, options: ConvolutionOptions) -> Result<Value> {
        let shape = self.conv2d_shape(input, name, options)?;
        Ok(self.push_conv2d(input, name, shape, 0)[0])
    }

    /// A convolution and the batch norm behind it. In training mode the convolution leaves the statistics that the
    /// batch norm needs, so that its output is not read once more for them.
    pub fn conv2d_batch_norm(
        &mut self,
        input: Value,
        names: [&str; 2],
        options: ConvolutionOptions,
        mode: BatchNormMode,
        residual: Option<Value>,
        activation: Activation,
    ) -> Result<Value> {
        let shape = self.conv2d_shape(input, names[0], options)?;
        let output = [shape.batch, shape.output_height(), shape.output_width(), shape.output_channels];
        let statistics_rows = match mode {
            BatchNormMode::Training => self.device.statistics_rows(output.into()),
            BatchNormMode::Running => 0,
        };
        let outputs = self.push_conv2d(input, names[0], shape, statistics_rows);
        self.batch_norm(outputs[0], names[1], mode, outputs.get(1).copied(), residual, activation)
    }

    /// The same by running statistics, and with no backward pass: one node, on a device that can.
    pub fn evaluated_conv2d_batch_norm(
        &mut self,
        input: Value,
        names: [&str; 2],
        options: ConvolutionOptions,
        residual: Option<Value>,
        activation: Activation,
    ) -> Result<Value> {
        if !self.device.has_conv2d_batch_norm() {
            return self.conv2d_batch_norm(input, names, options, BatchNormMode::Running, residual, activation);
        }
        let convolution = self.conv2d_shape(input, names[0], options)?;
        let element_type = self.graph.value(input).element_type;
        let convolution = Conv2d { shape: convolution, element_type, statistics_rows: 0 };
        let shape = convolution.outputs()[0].0;
        self.check_residual(names[1], residual, shape)?;
        let mut parameters = vec![self.conv2d_parameter(names[0], &convolution.shape)];
        parameters.extend(self.batch_norm_parameters(names[1], shape.channels()));
        let mode = BatchNormMode::Running;
        let batch_norm = BatchNorm { shape, element_type, mode, residual: residual.is_some(), activation };
        let inputs = [Some(input), residual].into_iter().flatten().collect();
        Ok(self.push(names[1], Conv2dBatchNorm { convolution, batch_norm }, inputs, parameters)[0])
    }

    fn check_residual(&self, name: &str, residual: Option<Value>, shape: Shape) -> Result<()> {
        match residual.map(|residual| self.shape(residual)) {
            Some(other) if other != shape => Err(Error::new(format!("{name}: cannot add {other:?} to {shape:?}"))),
            _ => Ok(()),
        }
    }

    fn conv2d_parameter(&mut self, name: &str, shape: &Conv2dShape) -> ParameterId {
        let weight = [shape.output_channels, shape.kernel_height, shape.kernel_width, shape.input_channels];
        self.parameter(format!("{name}.weight"), weight, ParameterRole::ConvolutionWeight)
    }

    fn conv2d_shape(&self, input: Value, name: &str, options: ConvolutionOptions) -> Result<Conv2dShape> {
        let ConvolutionOptions { channels, kernel, stride, padding } = options;
        let [batch, height, width, input_channels] = self.activation(input, name)?;
        if height + 2 * padding < kernel || width + 2 * padding < kernel || stride == 0 {
            return Err(Error::new(format!(
                "{name}: a {kernel}x{kernel} filter does not fit a picture of {height}x{width} with padding {padding}"
            ))
            .hint("use larger pictures"));
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

    fn push_conv2d(&mut self, input: Value, name: &str, shape: Conv2dShape, statistics_rows: usize) -> Vec<Value> {
        let weight = self.conv2d_parameter(name, &shape);
        let element_type = self.graph.value(input).element_type;
        self.push(name, Conv2d { shape, element_type, statistics_rows }, vec![input], vec![weight])
    }

    fn batch_norm(
        &mut self,
        input: Value,
        name: &str,
        mode: BatchNormMode,
        statistics: Option<Value>,
        residual: Option<Value>,
        activation: Activation,
    ) -> Result<Value> {
        let shape = self.shape(input);
        self.check_residual(name, residual, shape)?;
        if mode == BatchNormMode::Training {
            if shape.rows() < 2 {
                return Err(Error::new(format!("{name}: expected more than one value per channel, found {shape:?}"))
                    .hint("batch norm cannot train on a single pixel: use larger batches or larger pictures"));
            }
            self.graph.counted_batch_norms.push(name.into());
        }
        let parameters = self.batch_norm_parameters(name, shape.channels());
        let inputs = [Some(input), statistics, residual].into_iter().flatten().collect();
        let element_type = self.graph.value(input).element_type;
        let operation = BatchNorm { shape, element_type, mode, residual: residual.is_some(), activation };
        Ok(self.push(name, operation, inputs, parameters)[0])
    }

    fn batch_norm_parameters(&mut self, name: &str, channels: usize) -> Vec<ParameterId> {
        let parts = [
            ("weight", ParameterRole::BatchNormWeight),
            ("bias", ParameterRole::BatchNormBias),
            ("running_mean", ParameterRole::RunningMean),
            ("running_var", ParameterRole::RunningVariance),
        ];
        parts.map(|(part, role)| self.parameter(format!("{name}.{part}"), [channels], role)).to_vec()
    }

    /// Maximum over windows.
    pub fn max_pool(&mut self, input: Value, name: &str, window: MaxPoolWindow) -> Result<Value> {
        self.activation(input, name)?;
        let element_type = self.graph.value(input).element_type;
        Ok(self.push(name, MaxPool { input: self.shape(input), element_type, window }, vec![input], Vec::new())[0])
    }

    /// Mean over the picture: `[N, H, W, C]` to `[N, C]`.
    pub fn avg_pool(&mut self, input: Value, name: &str) -> Result<Value> {
        self.activation(input, name)?;
        Ok(self.push(name, AvgPool { input: self.shape(input) }, vec![input], Vec::new())[0])
    }

    /// Fully connected layer with bias: `[N, C]` to `[N, outputs]`.
    pub fn linear(&mut self, input: Value, name: &str, outputs: usize) -> Result<Value> {
        let [batch, inputs] = *self.shape(input).dims() else {
            return Err(Error::new(format!("{name}: expected [N, C], found {:?}", self.shape(input))));
        };
        let weight = self.parameter(format!("{name}.weight"), [outputs, inputs], ParameterRole::LinearWeight);
        let bias = self.parameter(format!("{name}.bias"), [outputs], ParameterRole::LinearBias);
        Ok(self.push(name, Linear { batch, inputs, outputs }, vec![input], vec![weight, bias])[0])
    }

    /// Loss over class indices `[N]`; the result is `[2]`: the reduced loss and the number of correct rows.
    pub fn cross_entropy(&mut self, logits: Value, targets: Value, reduction: LossReduction) -> Value {
        let batch = self.shape(logits).rows();
        self.push("loss", CrossEntropyLoss { batch, reduction }, vec![logits, targets], Vec::new())[0]
    }

    /// Gives the value another name: that of the enclosing module whose output it is.
    pub fn rename(&mut self, value: Value, name: &str) {
        self.graph.values[value.0].name = name.into();
    }

    /// The value that a module wrote last.
    pub fn find(&self, name: &str) -> Option<Value> {
        self.graph.find(name)
    }

    /// The graph, with the values that the caller wants to read after a run.
    pub fn finish(mut self, outputs: &[Value]) -> Graph {
        self.graph.outputs = outputs.to_vec();
        self.graph
    }

    fn activation(&self, value: Value, name: &str) -> Result<[usize; 4]> {
        let shape = self.shape(value);
        shape
            .dims()
            .try_into()
            .map_err(|_| Error::new(format!("{name}: expected an activation [N, H, W, C], found {shape:?}")))
    }

    fn value(&mut self, info: ValueInfo) -> Value {
        self.graph.values.push(info);
        Value(self.graph.values.len() - 1)
    }

    fn parameter(&mut self, name: String, shape: impl Into<Shape>, role: ParameterRole) -> ParameterId {
        assert!(self.graph.parameters.iter().all(|known| known.name != name), "{name} is used by two nodes");
        self.graph.parameters.push(ParameterSpecification { name, shape: shape.into(), role });
        ParameterId(self.graph.parameters.len() - 1)
    }

    fn push(
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
