//! A trained model as ONNX, for runtimes that know nothing of this program.
//!
//! The graph is torchvision's: convolutions, batch norms, ReLUs, additions, the pools and the head, in float32, of any
//! number of pictures at a time. Classes and what has to be done to a picture first are in the file's metadata.

use crate::data::transform::{MEAN, STANDARD_DEVIATION, test_shorter_side};
use crate::device::cpu::Cpu;
use crate::error::Result;
use crate::model::ResNet;
use crate::protobuf::Message;
use crate::train::ModelFile;
use crate::weights::{HeadPolicy, MatchReport, NamedShape, TensorFile, match_state_dict};

/// The version of the format: that of ONNX 1.12.
const IR_VERSION: i64 = 8;
/// The version of the operators.
const OPSET: i64 = 17;

// `onnx.proto`, as far as it is needed: field numbers and enumerations.
const FLOAT: i64 = 1;
const ATTRIBUTE_FLOAT: i64 = 1;
const ATTRIBUTE_INTEGER: i64 = 2;
const ATTRIBUTE_INTEGERS: i64 = 7;

/// The bytes of an ONNX file of the model in `file`.
///
/// The input is `input`, `[batch, 3, size, size]` normalised pixels; the output is `logits`, `[batch, classes]`. Metadata:
/// `classes` and `preprocessing`, both JSON.
///
/// # Errors
/// When the file does not hold a ResNet of basic blocks with its head.
pub fn export(file: &TensorFile) -> Result<Vec<u8>> {
    let model = ModelFile::describe(file)?;
    let specifications = model.resnet.parameters(&Cpu)?;
    let expected: Vec<NamedShape> = specifications
        .iter()
        .map(|specification| NamedShape { name: specification.name.clone(), shape: specification.torch_shape() })
        .chain(specifications.iter().filter_map(|specification| {
            let module = specification.name.strip_suffix(".running_var")?;
            Some(NamedShape { name: format!("{module}.num_batches_tracked"), shape: Vec::new() })
        }))
        .collect();
    let report = match_state_dict(&expected, file, HeadPolicy::Exact);
    report.check(&model.resnet.architecture.to_string()).map_err(|error| error.with_details(report.to_string()))?;
    let mut writer = Writer { graph: Message::new(), file, report: &report };
    writer.network(&model.resnet)?;
    for NamedShape { name, shape } in expected.iter().filter(|expected| !expected.shape.is_empty()) {
        writer.initializer(name, shape)?;
    }
    let size = model.image_size as i64;
    let classes = model.resnet.classes as i64;
    let extent = |value: i64| Message::new().integer(1, value);
    let batch = Message::new().bytes(2, "batch");
    let input = tensor("input", [batch.clone(), extent(3), extent(size), extent(size)]);
    let output = tensor("logits", [batch, extent(classes)]);
    let graph = writer.graph.bytes(2, model.resnet.architecture.to_string()).message(11, input).message(12, output);
    let shorter_side = test_shorter_side(model.image_size as u32);
    let preprocessing = serde_json::json!({
        "resize": shorter_side,
        "interpolation": "bilinear, antialias",
        "center_crop": model.image_size,
        "scale": "0..1",
        "mean": MEAN.map(|value| (f64::from(value) * 1e3).round() / 1e3),
        "std": STANDARD_DEVIATION.map(|value| (f64::from(value) * 1e3).round() / 1e3),
        "layout": "NCHW, RGB",
    });
    let property = |key: &str, value: String| Message::new().bytes(1, key).bytes(2, value);
    let classes = serde_json::Value::from(model.classes).to_string();
    let message = Message::new()
        .integer(1, IR_VERSION)
        .bytes(2, "retune")
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
    report: &'a MatchReport,
}

enum Attribute<'a> {
    Integer(&'a str, i64),
    Integers(&'a str, &'a [i64]),
    Float(&'a str, f32),
}

impl Attribute<'_> {
    fn message(&self) -> Message {
        match *self {
            Self::Integer(name, value) => {
                Message::new().bytes(1, name).integer(3, value).integer(20, ATTRIBUTE_INTEGER)
            }
            Self::Float(name, value) => Message::new().bytes(1, name).float(2, value).integer(20, ATTRIBUTE_FLOAT),
            Self::Integers(name, values) => {
                let message = Message::new().bytes(1, name);
                values.iter().fold(message, |message, &value| message.integer(8, value)).integer(20, ATTRIBUTE_INTEGERS)
            }
        }
    }
}

impl Writer<'_> {
    fn network(&mut self, resnet: &ResNet) -> Result<()> {
        self.convolution("input", "conv1", "bn1", 7, 2);
        self.relu("bn1", "relu");
        let window = [
            Attribute::Integers("kernel_shape", &[3, 3]),
            Attribute::Integers("strides", &[2, 2]),
            Attribute::Integers("pads", &[1, 1, 1, 1]),
        ];
        self.node("MaxPool", &["relu"], "maxpool", &window);
        let mut value = "maxpool".to_string();
        for (stage, blocks) in resnet.architecture.blocks().into_iter().enumerate() {
            for block in 0..blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                value = self.basic_block(&value, &format!("layer{}.{block}", stage + 1), stride);
            }
        }
        self.node("GlobalAveragePool", &[&value], "avgpool", &[]);
        self.node("Flatten", &["avgpool"], "flatten", &[Attribute::Integer("axis", 1)]);
        self.node("Gemm", &["flatten", "fc.weight", "fc.bias"], "logits", &[Attribute::Integer("transB", 1)]);
        Ok(())
    }

    fn basic_block(&mut self, input: &str, name: &str, stride: i64) -> String {
        let part = |part: &str| format!("{name}.{part}");
        self.convolution(input, &part("conv1"), &part("bn1"), 3, stride);
        self.relu(&part("bn1"), &part("relu1"));
        self.convolution(&part("relu1"), &part("conv2"), &part("bn2"), 3, 1);
        let shortcut = if stride == 1 {
            input.to_string()
        } else {
            self.convolution(input, &part("downsample.0"), &part("downsample.1"), 1, stride);
            part("downsample.1")
        };
        self.node("Add", &[&part("bn2"), &shortcut], &part("add"), &[]);
        self.relu(&part("add"), name);
        name.into()
    }

    fn convolution(&mut self, input: &str, convolution: &str, normalization: &str, kernel: i64, stride: i64) {
        let padding = kernel / 2;
        let attributes = [
            Attribute::Integers("kernel_shape", &[kernel, kernel]),
            Attribute::Integers("strides", &[stride, stride]),
            Attribute::Integers("pads", &[padding, padding, padding, padding]),
        ];
        self.node("Conv", &[input, &format!("{convolution}.weight")], convolution, &attributes);
        let parts = ["weight", "bias", "running_mean", "running_var"].map(|part| format!("{normalization}.{part}"));
        let inputs = [convolution, &parts[0], &parts[1], &parts[2], &parts[3]];
        self.node("BatchNormalization", &inputs, normalization, &[Attribute::Float("epsilon", 1e-5)]);
    }

    fn relu(&mut self, input: &str, output: &str) {
        self.node("Relu", &[input], output, &[]);
    }

    /// A node with the name of its only output.
    fn node(&mut self, operator: &str, inputs: &[&str], output: &str, attributes: &[Attribute]) {
        let node = inputs.iter().fold(Message::new(), |node, input| node.bytes(1, input));
        let node = node.bytes(2, output).bytes(3, output).bytes(4, operator);
        let node = attributes.iter().fold(node, |node, attribute| node.message(5, attribute.message()));
        self.add(1, node);
    }

    fn initializer(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        let values = self.file.read_f32(&self.report.key(name))?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = shape.iter().fold(Message::new(), |tensor, &extent| tensor.integer(1, extent as i64));
        self.add(5, tensor.integer(2, FLOAT).bytes(8, name).bytes(9, bytes));
        Ok(())
    }

    fn add(&mut self, field: u32, message: Message) {
        self.graph = std::mem::take(&mut self.graph).message(field, message);
    }
}
