//! Writes a trained model as ONNX, for other runtimes.
//!
//! The graph follows from the network's specification, layer by layer, in float32, for any batch size. The
//! classes, and how an image becomes the input, are in the file's metadata.

use crate::data::ResizeMode;
use crate::data::transform::{MEAN, STANDARD_DEVIATION, test_shorter_side};
use crate::error::Result;
use crate::graph::{LayerSpecification, OnnxAttribute, OnnxOperator, Operands, Source, Specification};
use crate::protobuf::Message;
use crate::train::ModelFile;
use crate::weights::{HeadPolicy, NamedShape, TensorFile, match_state_dict};

/// The version of the format: that of ONNX 1.12.
const IR_VERSION: i64 = 8;
/// The program that a file names at its beginning.
pub const PRODUCER: &str = "retune";
/// The version of the operators.
const OPSET: i64 = 17;

// `onnx.proto`, as far as it is needed: field numbers and enumerations.
const FLOAT: i64 = 1;
const ATTRIBUTE_FLOAT: i64 = 1;
const ATTRIBUTE_INTEGER: i64 = 2;
const ATTRIBUTE_INTEGERS: i64 = 7;

/// The name of the graph's input.
const INPUT: &str = "input";
/// The name of the graph's output.
const OUTPUT: &str = "logits";

/// The bytes of an ONNX file of a model.
///
/// The input is `input`: `[batch, 3, size, size]`, normalised pixels; the output is `logits`, `[batch, classes]`. Metadata:
/// `classes` and `preprocessing`, both JSON.
///
/// # Errors
/// When the weights do not fit the network or are not finite.
pub fn export(model: &ModelFile) -> Result<Vec<u8>> {
    let (expected, file) = (model.resnet.state_dict(), &model.weights);
    let report = match_state_dict(&expected, file, HeadPolicy::Exact);
    report.check(&model.resnet.to_string()).map_err(|error| error.with_details(report.to_string()))?;
    let mut writer = Writer { graph: Message::new(), file };
    writer.network(&model.resnet.specification());
    for NamedShape { name, shape } in expected.iter().filter(|expected| !expected.shape.is_empty()) {
        writer.initializer(name, shape)?;
    }
    let size = model.image_size as i64;
    let classes = model.resnet.classes as i64;
    let extent = |value: i64| Message::new().integer(1, value);
    let batch = Message::new().bytes(2, "batch");
    let input = tensor(INPUT, [batch.clone(), extent(3), extent(size), extent(size)]);
    let output = tensor(OUTPUT, [batch, extent(classes)]);
    let graph = writer.graph.bytes(2, model.resnet.architecture.to_string()).message(11, input).message(12, output);
    let mut preprocessing = serde_json::json!({
        "interpolation": "bilinear, antialias",
        "scale": "0..1",
        "mean": MEAN,
        "std": STANDARD_DEVIATION,
        "layout": "NCHW, RGB",
    });
    match model.resize {
        ResizeMode::Crop => {
            preprocessing["resize"] = test_shorter_side(model.image_size as u32).into();
            preprocessing["center_crop"] = model.image_size.into();
        }
        ResizeMode::Squash => preprocessing["squash"] = model.image_size.into(),
        ResizeMode::Pad => preprocessing["pad"] = model.image_size.into(),
    }
    if model.average_mirror {
        preprocessing["average_mirror"] = true.into();
    }
    let property = |key: &str, value: String| Message::new().bytes(1, key).bytes(2, value);
    let classes = serde_json::Value::from(model.classes.clone()).to_string();
    let message = Message::new()
        .integer(1, IR_VERSION)
        .bytes(2, PRODUCER)
        .bytes(3, env!("CARGO_PKG_VERSION"))
        .message(7, graph)
        .message(8, Message::new().bytes(1, "").integer(2, OPSET))
        .message(14, property("classes", classes))
        .message(14, property("preprocessing", preprocessing.to_string()));
    Ok(message.into_bytes())
}

/// A `ValueInfoProto` of float32.
fn tensor<const COUNT: usize>(name: &str, extents: [Message; COUNT]) -> Message {
    let shape = extents.into_iter().fold(Message::new(), |shape, extent| shape.message(1, extent));
    let tensor_type = Message::new().integer(1, FLOAT).message(2, shape);
    Message::new().bytes(1, name).message(2, Message::new().message(1, tensor_type))
}

struct Writer<'a> {
    graph: Message,
    file: &'a TensorFile,
}

/// An `AttributeProto`.
fn attribute(name: &str, value: &OnnxAttribute) -> Message {
    let message = Message::new().bytes(1, name);
    match value {
        OnnxAttribute::Integer(value) => message.integer(3, *value).integer(20, ATTRIBUTE_INTEGER),
        OnnxAttribute::Float(value) => message.float(2, *value).integer(20, ATTRIBUTE_FLOAT),
        OnnxAttribute::Integers(values) => {
            values.iter().fold(message, |message, &value| message.integer(8, value)).integer(20, ATTRIBUTE_INTEGERS)
        }
    }
}

impl Writer<'_> {
    /// The layers of the specification, in its order. A node and its output are named after the module.
    fn network(&mut self, specification: &Specification) {
        let mut outputs: Vec<String> = Vec::new();
        for layer in specification.layers() {
            let name_of = |source: &Source| match source {
                Source::Pixels => INPUT,
                Source::Layer(index) => outputs[*index].as_str(),
            };
            let inputs: Vec<&str> = layer.inputs.iter().map(name_of).collect();
            let is_last = outputs.len() + 1 == specification.layers().len();
            let output = if is_last { OUTPUT } else { layer.output.as_str() };
            outputs.push(self.layer(layer, &inputs, output));
        }
    }

    /// Writes a layer and returns the name of its output: `output`, or a longer one where that names the output of a part.
    fn layer(&mut self, layer: &LayerSpecification, inputs: &[&str], output: &str) -> String {
        let name = layer.name.as_str();
        let parameters = layer.parameters();
        let operators = layer.onnx_operators();
        let mut value = inputs[0].to_string();
        for (index, operator) in operators.iter().enumerate() {
            let part = operator.name.to_lowercase();
            let result = match index {
                _ if operators.len() == 1 => output.to_string(),
                0 => name.to_string(),
                _ if index + 1 < operators.len() || output == name => format!("{name}.{part}"),
                _ => output.to_string(),
            };
            let others: Vec<&str> = match operator.operands {
                Operands::Parameters => parameters.iter().map(|parameter| parameter.name.as_str()).collect(),
                Operands::Residual => inputs[1..].to_vec(),
                Operands::None => Vec::new(),
            };
            let all: Vec<&str> = [value.as_str()].into_iter().chain(others).collect();
            self.node(operator, &all, &result);
            value = result;
        }
        value
    }

    /// A node with the name of its only output.
    fn node(&mut self, operator: &OnnxOperator, inputs: &[&str], output: &str) {
        let node = inputs.iter().fold(Message::new(), |node, input| node.bytes(1, input));
        let node = node.bytes(2, output).bytes(3, output).bytes(4, operator.name);
        let node = operator.attributes.iter().fold(node, |node, (name, value)| node.message(5, attribute(name, value)));
        self.add(1, node);
    }

    fn initializer(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        let values = self.file.read_finite_f32(name)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = shape.iter().fold(Message::new(), |tensor, &extent| tensor.integer(1, extent as i64));
        self.add(5, tensor.integer(2, FLOAT).bytes(8, name).bytes(9, bytes));
        Ok(())
    }

    fn add(&mut self, field: u32, message: Message) {
        self.graph = std::mem::take(&mut self.graph).message(field, message);
    }
}
