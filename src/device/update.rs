//! The update of parameters by an optimiser, and the norm that their gradients are clipped by.

use crate::tensor::Tensor;

/// The most slots that an optimiser keeps for each parameter.
pub const MOST_SLOTS: usize = 2;

/// How an optimiser updates values that lie one behind another. Devices know no optimiser; they know this.
#[derive(Debug)]
pub struct UpdateRule {
    /// The `extern "C"` name of its kernel in `kernels/`, which takes the arguments of `kernels/optimizer.cuh`.
    pub kernel: &'static str,
    /// Slots that each value has; at most [`MOST_SLOTS`].
    pub slots: usize,
    /// Numbers that a step reads from device memory: [`UpdateArguments::words`].
    pub words: usize,
    /// Additions and multiplications for each value, for the roofline.
    pub operations: usize,
    /// The same on the CPU.
    pub cpu: fn(UpdatePiece),
}

/// What a loop on the CPU updates at a time. All slices are equally long.
pub struct UpdatePiece<'a> {
    /// Updated.
    pub values: &'a mut [f32],
    /// Read only.
    pub gradients: &'a [f32],
    /// Updated; those beyond the rule's own are empty.
    pub slots: [&'a mut [f32]; MOST_SLOTS],
    /// Gradients are multiplied by this first: 1 where they are not clipped.
    pub scale: f32,
    /// See [`UpdateArguments::words`].
    pub words: &'a [f32],
}

/// Arguments of [`super::Device::update`]. Values, gradients, slots and compute copy are flat and equally long.
#[derive(Clone, Copy)]
pub struct UpdateArguments<'a> {
    /// The optimiser's.
    pub rule: &'static UpdateRule,
    /// Updated.
    pub values: &'a Tensor,
    /// Read only.
    pub gradients: &'a Tensor,
    /// Updated; as many as the rule has, zero before the first step.
    pub slots: &'a [Tensor],
    /// Where the new values go rounded to bf16, on devices whose convolutions read that.
    pub compute_copy: Option<&'a Tensor>,
    /// `[words]`: learning rate, hyperparameters and what follows from the number of the step, in the rule's own order. They
    /// lie in device memory so that a recorded step reads what the host wrote there last.
    pub words: &'a Tensor,
    /// The loss, first of its values: where it is not finite, nothing is updated.
    pub loss: Option<&'a Tensor>,
    /// The largest norm of the gradients of a step together.
    pub clip: Option<Clip<'a>>,
}

/// Gradients of a larger norm are scaled down, as by `torch.nn.utils.clip_grad_norm_`.
#[derive(Clone, Copy)]
pub struct Clip<'a> {
    /// `[1]`: their norm, from [`super::Device::gradient_norm`]. Where it is not finite, nothing is updated.
    pub norm: &'a Tensor,
    /// The largest that passes unchanged.
    pub max_norm: f32,
}

impl Clip<'_> {
    /// What gradients of this norm are multiplied by.
    pub fn factor(max_norm: f32, norm: f32) -> f32 {
        (max_norm / (norm + 1e-6)).min(1.0)
    }
}
