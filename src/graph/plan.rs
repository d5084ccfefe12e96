//! Decides, before anything runs, which gradients are needed, how long every buffer lives, and where in one arena it
//! lies.
//!
//! Time is counted in steps: the inputs are filled at 0, node `i` of `n` runs forward at `1 + i` and backward at
//! `2n - i`, and the outputs are read at `2n + 1`. Two buffers may share bytes if their lifetimes do not overlap.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::nodes::{Graph, Value};
use super::parameters::ParameterId;
use crate::device::Device;
use crate::error::Result;
use crate::ops::Wanted;
use crate::tensor::Memory;

/// The contents of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BufferKind {
    /// An input or a node's output.
    Value,
    /// Data that a node's forward pass leaves for its backward pass.
    Saved,
    /// The gradient of a value.
    Gradient,
    /// Scratch memory of one step.
    Workspace,
}

/// A buffer of the arena with its lifetime.
#[derive(Debug, Clone)]
pub struct PlannedBuffer {
    /// The module that it belongs to.
    pub name: String,
    /// Its contents.
    pub kind: BufferKind,
    /// Size.
    pub bytes: usize,
    /// The step that first writes it.
    pub first: usize,
    /// The last step that reads it.
    pub last: usize,
    /// Its offset in the arena.
    pub offset: usize,
}

impl PlannedBuffer {
    fn lives_with(&self, other: &PlannedBuffer) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// The destination of an input's gradient.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlannedGradient {
    pub buffer: usize,
    pub accumulate: bool,
}

/// A node's backward pass.
#[derive(Debug)]
pub(super) struct PlannedBackward {
    pub wanted: Wanted,
    pub reads_inputs: Vec<bool>,
    pub reads_outputs: Vec<bool>,
    pub output_gradient: Option<usize>,
    pub input_gradients: Vec<Option<PlannedGradient>>,
    pub workspace: Option<usize>,
    /// The node whose output gradient this one completes and reduces.
    pub reduces: Option<usize>,
    /// Whether the output gradient is reduced.
    pub is_reduced: bool,
}

/// A node's buffers, as indices into [`Plan::buffers`].
#[derive(Debug)]
pub(super) struct PlannedNode {
    pub saved: Vec<usize>,
    pub workspace: Option<usize>,
    pub backward: Option<PlannedBackward>,
}

/// Everything that is decided before a graph runs.
#[derive(Debug)]
pub struct Plan {
    buffers: Vec<PlannedBuffer>,
    arena_bytes: usize,
    pub(super) nodes: Vec<PlannedNode>,
    pub(super) values: Vec<usize>,
}

impl Plan {
    /// Plans forward passes only: nothing is kept longer than its last reader.
    pub fn inference(graph: &Graph, device: &dyn Device) -> Self {
        Self::new(graph, device, vec![None; graph.nodes().len()])
    }

    /// Plans forward and backward passes. A gradient is computed only if it leads to a trainable parameter, and a
    /// value is kept only if such a gradient reads it.
    pub fn training(graph: &Graph, device: &dyn Device, is_trainable: impl Fn(ParameterId) -> bool) -> Self {
        Self::new(graph, device, wanted_gradients(graph, is_trainable, None))
    }

    /// Plans forward passes, and the part of the backward pass that leads from the loss to one value. It computes the gradient of this value
    /// and of no parameter.
    pub fn gradient_of(graph: &Graph, device: &dyn Device, value: Value) -> Self {
        Self::new(graph, device, wanted_gradients(graph, |_| false, Some(value)))
    }

    fn new(graph: &Graph, device: &dyn Device, mut wanted: Vec<Option<Wanted>>) -> Self {
        let count = graph.nodes().len();
        let (forward_step, backward_step, end) = (|node| 1 + node, |node| 2 * count - node, 2 * count + 1);
        let mut buffers: Vec<PlannedBuffer> = Vec::new();
        let add = |buffers: &mut Vec<PlannedBuffer>, name: &str, kind, bytes, first, last| -> usize {
            buffers.push(PlannedBuffer { name: name.into(), kind, bytes, first, last, offset: 0 });
            buffers.len() - 1
        };
        let reductions = reductions(graph, device, &wanted);

        let mut last_use = vec![0; graph.values.len()];
        let mut used = |value: Value, step: usize| last_use[value.0] = last_use[value.0].max(step);
        for (index, node) in graph.nodes().iter().enumerate() {
            node.inputs.iter().chain(&node.outputs).for_each(|&value| used(value, forward_step(index)));
            if let Some(wanted) = &wanted[index] {
                let reads = node.operation.backward_reads(wanted);
                let inputs = node.inputs.iter().zip(&reads.inputs);
                let outputs = node.outputs.iter().zip(&reads.outputs);
                inputs
                    .chain(outputs)
                    .filter(|(_, read)| **read)
                    .for_each(|(&value, _)| used(value, backward_step(index)));
            }
        }
        graph.outputs().iter().for_each(|&value| used(value, end));
        let values: Vec<usize> = graph
            .values
            .iter()
            .zip(&last_use)
            .map(|(info, &last)| {
                let first = info.producer.map_or(0, forward_step);
                let bytes = info.shape.len() * info.element_type.size();
                add(&mut buffers, &info.name, BufferKind::Value, bytes, first, last)
            })
            .collect();

        // Backward steps run from the last node to the first, so the last consumer is the first to write a gradient.
        let mut gradients: BTreeMap<Value, usize> = BTreeMap::new();
        let mut nodes: Vec<PlannedNode> = Vec::with_capacity(count);
        for (index, node) in graph.nodes().iter().enumerate().rev() {
            let name = &node.name;
            let operation = &node.operation;
            let reduces = reductions.iter().find(|reduction| reduction.by == index);
            let reduced = reductions.iter().find(|reduction| reduction.node == index);
            let backward = wanted[index].take().map(|wanted| {
                let step = backward_step(index);
                let output_gradient = gradients.get(&node.outputs[0]).copied();
                let inputs = node.inputs.iter().zip(&wanted.inputs).enumerate();
                let input_gradients = inputs.map(|(position, (&value, &wanted))| {
                    wanted.then(|| {
                        let known = gradients.get(&value).copied();
                        let info = graph.value(value);
                        let producer = info.producer.expect("only a node's output has a gradient");
                        // A reduced output gradient is that of the residual, and is not written once more.
                        let shared = output_gradient.filter(|_| reduced.is_some() && position > 0);
                        let buffer = known.or(shared).unwrap_or_else(|| {
                            let bytes = info.shape.len() * info.element_type.size();
                            add(&mut buffers, &info.name, BufferKind::Gradient, bytes, step, backward_step(producer))
                        });
                        buffers[buffer].last = buffers[buffer].last.max(backward_step(producer));
                        gradients.insert(value, buffer);
                        PlannedGradient { buffer, accumulate: known.is_some() }
                    })
                });
                let input_gradients = input_gradients.collect();
                let reads = operation.backward_reads(&wanted);
                let (bytes, first) = match reduced {
                    Some(reduction) => (reduction.workspace, backward_step(reduction.by)),
                    None => (operation.backward_workspace(device, &wanted), step),
                };
                let workspace = (bytes > 0).then(|| add(&mut buffers, name, BufferKind::Workspace, bytes, first, step));
                PlannedBackward {
                    wanted,
                    reads_inputs: reads.inputs,
                    reads_outputs: reads.outputs,
                    output_gradient,
                    input_gradients,
                    workspace,
                    reduces: reduces.map(|reduction| reduction.node),
                    is_reduced: reduced.is_some(),
                }
            });
            let step = forward_step(index);
            let last = if backward.is_some() { backward_step(index) } else { step };
            let saved = operation.saved(backward.is_some()).into_iter().map(|(shape, element_type)| {
                add(&mut buffers, name, BufferKind::Saved, shape.len() * element_type.size(), step, last)
            });
            let saved = saved.collect();
            let bytes = operation.forward_workspace(device);
            let workspace = (bytes > 0).then(|| add(&mut buffers, name, BufferKind::Workspace, bytes, step, step));
            nodes.push(PlannedNode { saved, workspace, backward });
        }
        nodes.reverse();
        let arena_bytes = place(&mut buffers);
        Self { buffers, arena_bytes, nodes, values }
    }

    /// All buffers with their lifetimes and offsets.
    pub fn buffers(&self) -> &[PlannedBuffer] {
        &self.buffers
    }

    /// Size of the arena that holds them all.
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// The maximum number of bytes in use at any one step: no placement can need less.
    pub fn peak_bytes(&self) -> usize {
        let alive = |step| self.buffers.iter().filter(move |buffer| (buffer.first..=buffer.last).contains(&step));
        let end = self.buffers.iter().map(|buffer| buffer.last).max().unwrap_or(0);
        (0..=end).map(|step| alive(step).map(|buffer| buffer.bytes).sum()).max().unwrap_or(0)
    }

    /// Whether the node at this index of [`Graph::nodes`] has a backward pass.
    pub fn has_backward(&self, node: usize) -> bool {
        self.nodes[node].backward.is_some()
    }
}

/// The gradients that each node's backward pass must produce; `None` if it has nothing to do. `watched` is a value whose gradient
/// the caller requested.
fn wanted_gradients(
    graph: &Graph,
    is_trainable: impl Fn(ParameterId) -> bool,
    watched: Option<Value>,
) -> Vec<Option<Wanted>> {
    let mut carries_gradient = vec![false; graph.values.len()];
    let mut wanted: Vec<Option<Wanted>> = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes() {
        let inputs = node.inputs.iter().enumerate();
        let inputs: Vec<bool> =
            inputs.map(|(index, value)| carries_gradient[value.0] && node.operation.is_differentiable(index)).collect();
        let parameters: Vec<bool> = node.parameters.iter().map(|&id| is_trainable(id)).collect();
        let any = inputs.iter().chain(&parameters).any(|&wanted| wanted);
        carries_gradient[node.outputs[0].0] = any || watched == Some(node.outputs[0]);
        wanted.push(any.then_some(Wanted { inputs, parameters }));
    }
    // Only what a loss depends on has a gradient at all.
    let mut reached = vec![false; graph.values.len()];
    for (node, wanted) in graph.nodes().iter().zip(&mut wanted).rev() {
        if !(node.operation.is_loss() || reached[node.outputs[0].0]) {
            *wanted = None;
        }
        if let Some(wanted) = wanted {
            let inputs = node.inputs.iter().zip(&wanted.inputs);
            inputs.filter(|(_, wanted)| **wanted).for_each(|(value, _)| reached[value.0] = true);
        }
    }
    wanted
}

/// A node whose output gradient is reduced by the node that completes it.
struct Reduction {
    node: usize,
    by: usize,
    /// Bytes, from the one's step to the other's.
    workspace: usize,
}

/// Every output gradient whose last writer can reduce it. Backward steps run from the last node to the first, so the last writer
/// is the first node that reads the value.
fn reductions(graph: &Graph, device: &dyn Device, wanted: &[Option<Wanted>]) -> Vec<Reduction> {
    let nodes = graph.nodes().iter().zip(wanted).enumerate();
    let reduction = |(index, (node, node_wanted)): (usize, (&super::Node, &Option<Wanted>))| {
        let value = node.outputs[0];
        node_wanted.as_ref().filter(|wanted| node.operation.has_reduction(wanted))?;
        let adds = |by: &usize| {
            let inputs = wanted[*by].iter().flat_map(|wanted| graph.nodes()[*by].inputs.iter().zip(&wanted.inputs));
            inputs.into_iter().any(|(&input, &wanted)| wanted && input == value)
        };
        let by = (index + 1..graph.nodes().len()).find(adds)?;
        let writer = &graph.nodes()[by];
        let workspace = writer.operation.reducing_workspace(device).filter(|_| writer.inputs[0] == value)?;
        Some(Reduction { node: index, by, workspace })
    };
    nodes.filter_map(reduction).collect()
}

/// Offsets are multiples of this many bytes.
const ALIGNMENT: usize = 256;

/// Places buffers, largest first, each at the lowest offset where it fits beside those that are in use at the same time.
/// Returns the size of the arena.
fn place(buffers: &mut [PlannedBuffer]) -> usize {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(buffers[index].bytes), buffers[index].first));
    let mut placed: Vec<usize> = Vec::with_capacity(buffers.len());
    let mut arena = 0;
    for index in order {
        let mut neighbours: Vec<(usize, usize)> = placed
            .iter()
            .map(|&other| &buffers[other])
            .filter(|other| other.lives_with(&buffers[index]))
            .map(|other| (other.offset, other.offset + other.bytes))
            .collect();
        neighbours.sort_unstable();
        let mut offset: usize = 0;
        for (start, end) in neighbours {
            if offset + buffers[index].bytes <= start {
                break;
            }
            offset = offset.max(end.next_multiple_of(ALIGNMENT));
        }
        buffers[index].offset = offset;
        arena = arena.max(offset + buffers[index].bytes);
        placed.push(index);
    }
    arena
}

/// The memory in which a plan's buffers lie. Plans that run one after another may share one.
#[derive(Clone)]
pub struct Arena {
    memory: Rc<Memory>,
}

impl Arena {
    /// Allocates `bytes` on the device.
    pub fn new(device: &dyn Device, bytes: usize) -> Result<Self> {
        Ok(Self { memory: device.allocate(bytes)? })
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    pub(super) fn memory(&self) -> &Rc<Memory> {
        &self.memory
    }
}
