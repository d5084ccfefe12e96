//! Softmax cross entropy (`torch.nn.functional.cross_entropy`), where the backward pass begins.

use super::operation::{BackwardBuffers, ForwardBuffers, Operation, Reads, Wanted};
use crate::device::{CrossEntropy, Device};
use crate::error::Result;
use crate::tensor::{ElementType, Shape};

/// How the losses of the rows are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LossReduction {
    /// Their sum, as in the lesson: its learning rate applies to the sum.
    Sum,
    /// Their mean, which is PyTorch's default.
    Mean,
}

/// Inputs: logits `[N, classes]` and class indices `[N]`. Output `[2]`: the reduced loss, and the number of rows whose
/// largest logit is the target's.
pub struct CrossEntropyLoss {
    /// Rows.
    pub batch: usize,
    /// How the losses of the rows are combined.
    pub reduction: LossReduction,
}

impl CrossEntropyLoss {
    fn scale(&self) -> f32 {
        match self.reduction {
            LossReduction::Sum => 1.0,
            LossReduction::Mean => 1.0 / self.batch as f32,
        }
    }
}

impl Operation for CrossEntropyLoss {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn outputs(&self) -> Vec<(Shape, ElementType)> {
        vec![([2].into(), ElementType::F32)]
    }

    fn is_differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn is_loss(&self) -> bool {
        true
    }

    fn backward_reads(&self, _wanted: &Wanted) -> Reads {
        Reads { inputs: vec![true, true], outputs: vec![true] }
    }

    fn forward(&self, device: &dyn Device, buffers: &ForwardBuffers) -> Result<()> {
        device.cross_entropy(&CrossEntropy {
            logits: &buffers.inputs[0],
            targets: &buffers.inputs[1],
            result: &buffers.outputs[0],
            logits_gradient: None,
            scale: self.scale(),
        })
    }

    fn backward(&self, device: &dyn Device, buffers: &BackwardBuffers) -> Result<()> {
        let Some(gradient) = &buffers.input_gradients[0] else { return Ok(()) };
        assert!(!gradient.accumulate, "logits have one consumer, the loss");
        device.cross_entropy(&CrossEntropy {
            logits: buffers.input(0),
            targets: buffers.input(1),
            result: buffers.outputs[0].as_ref().expect("backward_reads requested it"),
            logits_gradient: Some(&gradient.tensor),
            scale: self.scale(),
        })
    }
}
