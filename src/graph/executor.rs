//! Runs a planned graph.

use super::plan::PlannedGradient;
use super::{Arena, Graph, Parameters, Plan, Value};
use crate::device::{Device, Gradient};
use crate::error::{Error, Result};
use crate::ops::{BackwardBuffers, ForwardBuffers};
use crate::tensor::{ElementType, Tensor};

struct BoundNode {
    forward: ForwardBuffers,
    backward: Option<BackwardBuffers>,
    /// The node whose output gradient this one reduces.
    reduces: Option<usize>,
}

/// A graph bound to parameters and to an arena. Running it allocates nothing.
pub struct Executor {
    graph: Graph,
    plan: Plan,
    nodes: Vec<BoundNode>,
    values: Vec<Tensor>,
}

impl Executor {
    /// Binds every buffer of the plan.
    ///
    /// # Errors
    /// When the parameters are not those of the graph or the arena is too small.
    pub fn new(graph: Graph, plan: Plan, parameters: &Parameters, arena: &Arena) -> Result<Self> {
        if !parameters.specifications().eq(graph.parameters()) {
            return Err(Error::new("the parameters belong to another network"));
        }
        if arena.bytes() < plan.arena_bytes() {
            return Err(Error::new(format!("the plan needs {} bytes, not {}", plan.arena_bytes(), arena.bytes())));
        }
        let place = |buffer: usize, shape, element_type| {
            Tensor::new(arena.memory().clone(), plan.buffers()[buffer].offset, shape, element_type)
        };
        let bytes = |buffer: Option<usize>| match buffer {
            Some(buffer) => place(buffer, [plan.buffers()[buffer].bytes].into(), ElementType::U8),
            None => Tensor::new(arena.memory().clone(), 0, [0].into(), ElementType::U8),
        };
        let values: Vec<Tensor> = graph
            .values
            .iter()
            .zip(&plan.values)
            .map(|(info, &buffer)| place(buffer, info.shape, info.element_type))
            .collect();
        let nodes = graph.nodes().iter().zip(&plan.nodes).map(|(node, planned)| {
            let tensors = |values_of: &[Value]| -> Vec<Tensor> {
                values_of.iter().map(|value| values[value.0].clone()).collect()
            };
            let kept = |values_of: &[Value], reads: &[bool]| -> Vec<Option<Tensor>> {
                values_of.iter().zip(reads).map(|(value, read)| read.then(|| values[value.0].clone())).collect()
            };
            let parameter_values: Vec<Tensor> =
                node.parameters.iter().map(|&id| parameters.compute_copy(id).clone()).collect();
            let saved_types = node.operation.saved(planned.backward.is_some());
            let saved = saved_types.iter().zip(&planned.saved);
            let saved: Vec<Tensor> =
                saved.map(|(&(shape, element_type), &buffer)| place(buffer, shape, element_type)).collect();
            let gradient = |value: Value, buffer| {
                let info = graph.value(value);
                place(buffer, info.shape, info.element_type)
            };
            let backward = planned.backward.as_ref().map(|backward| BackwardBuffers {
                inputs: kept(&node.inputs, &backward.reads_inputs),
                outputs: kept(&node.outputs, &backward.reads_outputs),
                parameters: parameter_values.clone(),
                saved: saved.clone(),
                output_gradient: backward.output_gradient.map(|buffer| gradient(node.outputs[0], buffer)),
                input_gradients: node
                    .inputs
                    .iter()
                    .zip(&backward.input_gradients)
                    .map(|(&value, planned)| {
                        planned.map(|PlannedGradient { buffer, accumulate }| {
                            let tensor = gradient(value, buffer);
                            Gradient { tensor, accumulate }
                        })
                    })
                    .collect(),
                parameter_gradients: node
                    .parameters
                    .iter()
                    .zip(&backward.wanted.parameters)
                    .map(|(&id, &wanted)| if wanted { parameters.gradient(id).cloned() } else { None })
                    .collect(),
                workspace: bytes(backward.workspace),
                is_reduced: backward.is_reduced,
            });
            let forward = ForwardBuffers {
                inputs: tensors(&node.inputs),
                outputs: tensors(&node.outputs),
                parameters: parameter_values,
                saved,
                workspace: bytes(planned.workspace),
            };
            let reduces = planned.backward.as_ref().and_then(|backward| backward.reduces);
            BoundNode { forward, backward, reduces }
        });
        let nodes = nodes.collect();
        Ok(Self { graph, plan, nodes, values })
    }

    /// Returns graph and plan, to bind them to another arena.
    pub fn into_parts(self) -> (Graph, Plan) {
        (self.graph, self.plan)
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The buffer of a value: the caller fills those of inputs and reads those of outputs. Others contain their value
    /// only for part of a run.
    pub fn value(&self, value: Value) -> &Tensor {
        &self.values[value.0]
    }

    /// The buffer of a value's gradient, if the plan computes one. It contains the gradient from the backward step of the value's
    /// first reader on, until the step of the node that wrote the value. If a node reduces it, it is that of the argument of the
    /// batch norm's activation.
    pub fn gradient(&self, value: Value) -> Option<&Tensor> {
        self.graph.nodes().iter().zip(&self.nodes).find_map(|(node, bound)| {
            let backward = bound.backward.as_ref()?;
            let position = node.inputs.iter().position(|&input| input == value)?;
            backward.input_gradients[position].as_ref().map(|gradient| &gradient.tensor)
        })
    }

    /// Computes all outputs from the inputs.
    pub fn forward(&self, device: &dyn Device) -> Result<()> {
        (0..self.nodes.len()).try_for_each(|node| self.forward_node(device, node))
    }

    /// Computes the gradients of all trainable parameters, after [`Executor::forward`].
    pub fn backward(&self, device: &dyn Device) -> Result<()> {
        (0..self.nodes.len()).rev().try_for_each(|node| self.backward_node(device, node))
    }

    /// One step of [`Executor::forward`], to time it separately.
    pub fn forward_node(&self, device: &dyn Device, node: usize) -> Result<()> {
        self.graph.nodes()[node].operation.forward(device, &self.nodes[node].forward)
    }

    /// One step of [`Executor::backward`], to time it separately; does nothing if the node has no backward pass.
    pub fn backward_node(&self, device: &dyn Device, node: usize) -> Result<()> {
        let bound = &self.nodes[node];
        let Some(buffers) = &bound.backward else { return Ok(()) };
        let operation = &self.graph.nodes()[node].operation;
        let reduction = bound.reduces.and_then(|reduced| {
            let buffers = self.nodes[reduced].backward.as_ref()?;
            self.graph.nodes()[reduced].operation.reduction(buffers)
        });
        match reduction {
            Some(batch_norm) => operation.backward_and_reduce(device, buffers, &batch_norm),
            None => operation.backward(device, buffers),
        }
    }
}
