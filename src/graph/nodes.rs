//! The graph: nodes in the order of computation, and the values between them.

use super::parameters::{ParameterId, ParameterSpecification};
use crate::ops::Operation;
use crate::tensor::{ElementType, Shape};

/// A result in the graph: an input, or one output of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(super) usize);

/// The properties of a value that are known before planning.
#[derive(Debug, Clone)]
pub struct ValueInfo {
    /// Its shape.
    pub shape: Shape,
    /// The type of its elements.
    pub element_type: ElementType,
    /// The node that writes it; `None` for an input of the graph.
    pub producer: Option<usize>,
    /// The module that it comes from, by torch's name, for messages.
    pub name: String,
}

/// One operation with its connections.
pub struct Node {
    /// The operation.
    pub operation: Box<dyn Operation>,
    /// The module that it belongs to, by torch's name: `layer1.0.conv1`.
    pub name: String,
    /// Its inputs.
    pub inputs: Vec<Value>,
    /// Its outputs.
    pub outputs: Vec<Value>,
    /// Its parameters and running statistics.
    pub parameters: Vec<ParameterId>,
}

/// A network for one batch shape, in an order in which it can be computed.
#[derive(Default)]
pub struct Graph {
    pub(super) nodes: Vec<Node>,
    pub(super) values: Vec<ValueInfo>,
    pub(super) parameters: Vec<ParameterSpecification>,
    pub(super) inputs: Vec<Value>,
    pub(super) outputs: Vec<Value>,
    pub(super) counted_batch_norms: Vec<String>,
}

impl Graph {
    /// The nodes in the order of computation.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The properties of a value.
    pub fn value(&self, value: Value) -> &ValueInfo {
        &self.values[value.0]
    }

    /// The value that a module wrote last: `layer1.0` is the output of that block.
    pub fn find(&self, name: &str) -> Option<Value> {
        self.values.iter().rposition(|info| info.name == name).map(Value)
    }

    /// All parameters and running statistics, in the order in which they were first used.
    pub fn parameters(&self) -> &[ParameterSpecification] {
        &self.parameters
    }

    /// A parameter or running statistic.
    pub fn parameter(&self, id: ParameterId) -> &ParameterSpecification {
        &self.parameters[id.0]
    }

    /// The inputs, which the caller fills before each run.
    pub fn inputs(&self) -> &[Value] {
        &self.inputs
    }

    /// The outputs, which the caller may read after each run.
    pub fn outputs(&self) -> &[Value] {
        &self.outputs
    }

    /// Batch norms in training mode: each forward pass counts as one more batch tracked.
    pub fn counted_batch_norms(&self) -> &[String] {
        &self.counted_batch_norms
    }

    /// Multiply-adds of one forward pass.
    pub fn multiply_adds(&self) -> usize {
        self.nodes.iter().map(|node| node.operation.multiply_adds()).sum()
    }
}
