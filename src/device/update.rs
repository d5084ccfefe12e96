//! The update of parameters by an optimiser, and the norm that their gradients are clipped by.

use crate::tensor::Tensor;

/// The maximum number of slots that an optimiser keeps for each parameter.
pub const MOST_SLOTS: usize = 2;

/// The rule by which an optimiser updates contiguous values. It is all that devices know of an optimiser.
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
    /// The same rule on the CPU.
    pub cpu: fn(UpdatePiece),
}

/// The arguments of a rule on the CPU. All slices have the same length.
pub struct UpdatePiece<'a> {
    /// Updated.
    pub values: &'a mut [f32],
    /// Read only.
    pub gradients: &'a [f32],
    /// Updated; unused ones are empty.
    pub slots: [&'a mut [f32]; MOST_SLOTS],
    /// Gradients are multiplied by this first: 1 where they are not clipped.
    pub scale: f32,
    /// See [`UpdateArguments::words`].
    pub words: &'a [f32],
}

/// Arguments of [`super::Device::update`]. Values, gradients, slots and compute copy are flat and equally long.
#[derive(Clone, Copy)]
pub struct UpdateArguments<'a> {
    /// The optimiser's rule.
    pub rule: &'static UpdateRule,
    /// Updated.
    pub values: &'a Tensor,
    /// Read only.
    pub gradients: &'a Tensor,
    /// Updated; as many as the rule has, zero before the first step.
    pub slots: &'a [Tensor],
    /// The new values rounded to bf16, on devices whose convolutions read them.
    pub compute_copy: Option<&'a Tensor>,
    /// `[words]`: learning rate, hyperparameters and what follows from the number of the step, in the rule's own order. They
    /// lie in device memory so that a recorded step reads what the host wrote last.
    pub words: &'a Tensor,
    /// The loss, as the first value: if it is not finite, nothing is updated.
    pub loss: Option<&'a Tensor>,
    /// Clipping of the norm of all gradients of a step together.
    pub clip: Option<Clip<'a>>,
}

/// Gradients of a larger norm are scaled down, as by `torch.nn.utils.clip_grad_norm_`.
#[derive(Clone, Copy)]
pub struct Clip<'a> {
    /// `[1]`: their norm, from [`super::Device::gradient_norm`]. If it is not finite, nothing is updated.
    pub norm: &'a Tensor,
    /// The largest norm that passes unchanged.
    pub max_norm: f32,
}

impl Clip<'_> {
    /// The factor for gradients of this norm.
    pub fn factor(max_norm: f32, norm: f32) -> f32 {
        (max_norm / (norm + 1e-6)).min(1.0)
    }
}
