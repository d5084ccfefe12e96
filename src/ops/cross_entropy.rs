//! Softmax cross entropy (`torch.nn.functional.cross_entropy`), where the backward pass begins.

use super::operation::{BackwardBuffers, ForwardBuffers, Operation, Reads, Wanted};
use crate::device::{CrossEntropy, Device, LossReduction};
use crate::error::Result;
use crate::tensor::{ElementType, Shape, Tensor};

/// Inputs: logits `[N, classes]` and class indices `[N]`. Output `[2]`: the reduced loss, and the number of rows whose
/// largest logit is the target's.
#[derive(Debug, Clone)]
pub struct CrossEntropyLoss {
    /// How the losses of the rows are combined.
    pub reduction: LossReduction,
    /// The share of the loss that is spread evenly over all classes.
    pub label_smoothing: f32,
    /// `[classes]`: the weight of each class; all 1 without it. A plan does not place it, so it lasts as long as the loss.
    pub class_weights: Option<Tensor>,
    /// `[1]`: the share of each row's own target, where targets are mixed; see [`CrossEntropy::share`]. It lasts as long as the weights.
    pub share: Option<Tensor>,
}

impl From<LossReduction> for CrossEntropyLoss {
    /// The plain loss.
    fn from(reduction: LossReduction) -> Self {
        Self { reduction, label_smoothing: 0.0, class_weights: None, share: None }
    }
}

impl CrossEntropyLoss {
    fn run(
        &self,
        device: &dyn Device,
        [logits, targets, result]: [&Tensor; 3],
        logits_gradient: Option<&Tensor>,
    ) -> Result<()> {
        device.cross_entropy(&CrossEntropy {
            logits,
            targets,
            share: self.share.as_ref(),
            class_weights: self.class_weights.as_ref(),
            label_smoothing: self.label_smoothing,
            reduction: self.reduction,
            result,
            logits_gradient,
        })
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
        self.run(device, [&buffers.inputs[0], &buffers.inputs[1], &buffers.outputs[0]], None)
    }

    fn backward(&self, device: &dyn Device, buffers: &BackwardBuffers) -> Result<()> {
        let Some(gradient) = &buffers.input_gradients[0] else { return Ok(()) };
        assert!(!gradient.accumulate, "logits have one consumer, the loss");
        let result = buffers.outputs[0].as_ref().expect("backward_reads requested it");
        self.run(device, [buffers.input(0), buffers.input(1), result], Some(&gradient.tensor))
    }
}
