//! The static autograd graph: made once from a [`Specification`], planned once for its batch shape by [`Plan`], run many
//! times by an [`Executor`] without allocating.

mod executor;
mod freezing;
mod nodes;
mod parameters;
mod plan;
mod specification;

pub use executor::Executor;
pub use freezing::Freezing;
pub use nodes::{Graph, Node, Value, ValueInfo};
pub use parameters::{Initialisation, ParameterGroup, ParameterId, ParameterRole, ParameterSpecification, Parameters};
pub use plan::{Arena, BufferKind, Plan, PlannedBuffer};
pub use specification::{
    BatchShape, ConvolutionOptions, Layer, LayerSpecification, NetworkGraph, OnnxAttribute, OnnxOperator, Operands,
    Phase, Source, Specification,
};

pub use crate::device::{Activation, MaxPoolWindow};
