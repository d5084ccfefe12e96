//! The trait that every device implements, and the arguments of its methods.

use std::rc::Rc;

pub use super::activation::Activation;
pub use super::augment::{Augment, ImageView, Resampling};
pub use super::conv2d::{Conv2dPass, Conv2dShape};
pub use super::edits::{AffineMap, Colour, Edits, Erased};
pub use super::mixture::Mixture;
pub use super::update::{Clip, MOST_SLOTS, UpdateArguments, UpdatePiece, UpdateRule};
use crate::error::{Error, Result};
use crate::tensor::{ElementType, Memory, Shape, Tensor};

/// The number format of a device's multiplications. Accumulation, statistics, gradients of parameters and the parameters
/// themselves are float32 in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// IEEE single precision throughout.
    Fp32,
    /// Operands of convolutions are rounded to ten bits of mantissa; storage is float32.
    Tf32,
    /// Activations, their gradients, and the compute copies of convolution weights are stored as bf16.
    Bf16,
}

impl Precision {
    /// The element type of activations and their gradients.
    pub fn activation_type(self) -> ElementType {
        match self {
            Self::Fp32 | Self::Tf32 => ElementType::F32,
            Self::Bf16 => ElementType::Bf16,
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        })
    }
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let named = [Self::Fp32, Self::Tf32, Self::Bf16].into_iter().find(|precision| precision.to_string() == name);
        named.ok_or_else(|| Error::new(format!("unknown precision {name:?}: expected fp32, tf32 or bf16")))
    }
}

/// Recorded work that can be issued again as a whole.
pub trait Recording {
    /// Issues all of it, in order.
    fn replay(&self) -> Result<()>;
}

/// The destination of a gradient.
#[derive(Debug, Clone)]
pub struct Gradient {
    /// The buffer of the gradient.
    pub tensor: Tensor,
    /// Whether to add to the existing values (a value with several consumers) or to overwrite them.
    pub accumulate: bool,
}

/// Arguments of [`Device::conv2d_forward`].
pub struct Conv2dForward<'a> {
    /// `[N, H, W, C]`
    pub input: &'a Tensor,
    /// `[K, R, S, C]`
    pub weight: &'a Tensor,
    /// `[N, OH, OW, K]`
    pub output: &'a Tensor,
    /// `[rows, 2, K]`: for each block of output pixels, per channel, the sum and the sum of squared deviations from the
    /// block's own mean, of the output as it is stored. `rows` is [`Device::statistics_rows`].
    pub statistics: Option<&'a Tensor>,
    /// Of the size that [`Device::conv2d_workspace`] returns.
    pub workspace: &'a Tensor,
}

/// Arguments of [`Device::conv2d_input_gradient`].
pub struct Conv2dInputGradient<'a> {
    /// `[N, OH, OW, K]`
    pub output_gradient: &'a Tensor,
    /// `[K, R, S, C]`
    pub weight: &'a Tensor,
    /// `[N, H, W, C]`
    pub input_gradient: &'a Gradient,
    /// The batch norm whose output is the input of the convolution, if this pass completes its output gradient: it also
    /// computes what [`BatchNormBackward::is_reduced`] names. Only if [`Device::reducing_workspace`] returns a size.
    pub batch_norm: Option<&'a BatchNormBackward<'a>>,
    /// Of the size that [`Device::conv2d_workspace`] returns.
    pub workspace: &'a Tensor,
}

/// Arguments of [`Device::conv2d_weight_gradient`].
pub struct Conv2dWeightGradient<'a> {
    /// `[N, H, W, C]`
    pub input: &'a Tensor,
    /// `[N, OH, OW, K]`
    pub output_gradient: &'a Tensor,
    /// `[K, R, S, C]`
    pub weight_gradient: &'a Tensor,
    /// Of the size that [`Device::conv2d_workspace`] returns.
    pub workspace: &'a Tensor,
}

/// The statistics by which batch normalisation normalises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BatchNormMode {
    /// The batch's own mean and biased variance; the running statistics are updated (torch's training mode).
    Training,
    /// The running statistics, which do not change (torch's evaluation mode, and frozen layers).
    Running,
}

/// Arguments of [`Device::batch_norm_forward`]: normalise, scale and shift, then add `residual`, then
/// apply the activation.
pub struct BatchNormForward<'a> {
    /// The statistics to use.
    pub mode: BatchNormMode,
    /// `[N, H, W, C]`
    pub input: &'a Tensor,
    /// In training mode the partial sums of [`Conv2dForward::statistics`] or of [`Device::batch_norm_statistics`].
    pub statistics: Option<&'a Tensor>,
    /// `[C]`
    pub weight: &'a Tensor,
    /// `[C]`
    pub bias: &'a Tensor,
    /// `[C]`, updated in training mode.
    pub running_mean: &'a Tensor,
    /// `[C]`, updated in training mode with the unbiased variance.
    pub running_variance: &'a Tensor,
    /// `[4, C]`, saved for the backward pass: the mean and the inverse standard deviation that were used, then the
    /// scale and the shift that result from them, weight and bias.
    pub saved_statistics: &'a Tensor,
    /// `[N, H, W, C]`, added after the shift.
    pub residual: Option<&'a Tensor>,
    /// The activation, applied last.
    pub activation: Activation,
    /// `[N, H, W, C]`
    pub output: &'a Tensor,
    /// Added to the variance before its root.
    pub epsilon: f32,
    /// Weight of the new value in the running statistics.
    pub momentum: f32,
}

/// Arguments of [`Device::batch_norm_backward`].
pub struct BatchNormBackward<'a> {
    /// As in the forward pass.
    pub mode: BatchNormMode,
    /// The forward pass's input, `[N, H, W, C]`. May be absent if it is not needed: in running mode, with no
    /// gradient of the weight requested and no argument of the activation to recompute.
    pub input: Option<&'a Tensor>,
    /// The forward pass's output: needed if an activation followed an added residual, to find the activation's
    /// derivative. Without a residual the activation's argument is recomputed from `input`.
    pub output: Option<&'a Tensor>,
    /// As in the forward pass.
    pub activation: Activation,
    /// `[N, H, W, C]`
    pub output_gradient: &'a Tensor,
    /// Whether the gradient's last writer was [`Device::conv2d_input_gradient`] with this batch norm as
    /// [`Conv2dInputGradient::batch_norm`]: then `output_gradient` is that of the activation's argument, and the gradients of
    /// weight and bias are complete.
    pub is_reduced: bool,
    /// `[C]`
    pub weight: &'a Tensor,
    /// `[C]`
    pub bias: &'a Tensor,
    /// From the forward pass.
    pub saved_statistics: &'a Tensor,
    /// Gradient of `input`.
    pub input_gradient: Option<&'a Gradient>,
    /// Gradient of the residual: the masked output gradient.
    pub residual_gradient: Option<&'a Gradient>,
    /// `[C]`
    pub weight_gradient: Option<&'a Tensor>,
    /// `[C]`
    pub bias_gradient: Option<&'a Tensor>,
    /// Of the size that [`Device::batch_norm_workspace`] returns; if it is reduced, of [`Device::reducing_workspace`].
    pub workspace: &'a Tensor,
}

/// Sizes of a pooling window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MaxPoolWindow {
    /// Rows and columns of the window; at most 15.
    pub size: usize,
    /// Step of the window.
    pub stride: usize,
    /// Padding, which is never the maximum.
    pub padding: usize,
}

impl MaxPoolWindow {
    /// Size of the output for a size of the input.
    pub fn output_extent(&self, extent: usize) -> usize {
        (extent + 2 * self.padding - self.size) / self.stride + 1
    }
}

/// How the losses of the rows are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LossReduction {
    /// Their sum, as in the lesson: its learning rate applies to the sum.
    Sum,
    /// Their mean, which is PyTorch's default. If classes have weights, it is the sum over the sum of the targets' weights, unless
    /// targets are mixed: then it is the sum over the number of rows.
    Mean,
}

/// Arguments of [`Device::cross_entropy`].
pub struct CrossEntropy<'a> {
    /// `[N, classes]`
    pub logits: &'a Tensor,
    /// `[N]`, int32.
    pub targets: &'a Tensor,
    /// `[1]`: the share of each row's own target. The rest is that of the target of the row before it, or of the last row for the first.
    /// It lies in device memory so that recorded work reads what the host wrote last. 1 without it.
    pub share: Option<&'a Tensor>,
    /// `[classes]`: the weight of each class; all 1 without it.
    pub class_weights: Option<&'a Tensor>,
    /// The share of the loss that is spread evenly over all classes, from 0 to 1.
    pub label_smoothing: f32,
    /// How the losses of the rows are combined.
    pub reduction: LossReduction,
    /// `[2]`: the loss after reduction, and how many rows have their largest logit (the first, when tied) at the
    /// target; at that of the larger share, if targets are mixed, and at their own if both are equal.
    pub result: &'a Tensor,
    /// `[N, classes]`: gradient of the reduced loss.
    pub logits_gradient: Option<&'a Tensor>,
}

/// Arguments of [`Device::mix`].
#[derive(Clone, Copy)]
pub struct Mix<'a> {
    /// `[N, H, W, 3]`, of the type of activations; changed in place.
    pub images: &'a Tensor,
    /// `[Mixture::WORDS]`: [`Mixture::words`]. They lie in device memory so that recorded work reads what the host wrote last.
    pub words: &'a Tensor,
}

/// Arguments of [`Device::accumulate`]: `sums = words[0] * sums + words[1] * values`.
#[derive(Clone, Copy)]
pub struct Accumulate<'a> {
    /// Read only.
    pub values: &'a Tensor,
    /// As long as the values, and updated.
    pub sums: &'a Tensor,
    /// `[2]`: the factors of the sums and of the values. They lie in device memory so that recorded work reads what the host wrote last. If
    /// the first is 0, the sums may contain anything before.
    pub words: &'a Tensor,
    /// The loss, as the first value: if it is not finite, nothing changes.
    pub loss: Option<&'a Tensor>,
    /// `[1]`: the norm of all gradients; if it is not finite, nothing changes.
    pub norm: Option<&'a Tensor>,
}

/// The optional features of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// Whether it has [`Device::augment`]. Without it, the threads that decode images also compute pixels, in [`crate::data`].
    pub augment: bool,
    /// Whether it has [`Device::conv2d_batch_norm`].
    pub conv2d_batch_norm: bool,
    /// Whether [`Device::free_bytes`] is memory of the host, which loading data needs as well.
    pub shares_host_memory: bool,
}

/// A device and its kernels. All methods are called from one thread, in order; results of a kernel are visible to the
/// next. Implementations may run asynchronously until [`Device::download`] or [`Device::synchronize`].
pub trait Device {
    /// Short name as on the command line: `cpu`, `cuda:0`.
    fn name(&self) -> String;

    /// One line about the hardware.
    fn description(&self) -> String;

    /// Its optional features.
    fn features(&self) -> Features;

    /// The precision in which it computes.
    fn precision(&self) -> Precision {
        Precision::Fp32
    }

    /// Bytes that can still be allocated, if the device reports them.
    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }

    /// Zeroed memory, aligned to at least 256 bytes.
    fn allocate(&self, bytes: usize) -> Result<Rc<Memory>>;

    /// Copies from the host. `source` must be as large as `target`.
    fn upload(&self, source: &[u8], target: &Tensor) -> Result<()>;

    /// Copies to the host and waits for it. `target` must be as large as `source`.
    fn download(&self, source: &Tensor, target: &mut [u8]) -> Result<()>;

    /// Waits for everything issued so far.
    fn synchronize(&self) -> Result<()>;

    /// Records the work that `step` issues, to be issued later as a whole; `step` may neither copy nor synchronise.
    /// `None` if the device cannot record: then `step` was not called.
    fn record(&self, _step: &mut dyn FnMut() -> Result<()>) -> Result<Option<Rc<dyn Recording>>> {
        Ok(None)
    }

    /// Turns decoded images into the pixels of the network's input: crops, scales, flips, normalises. Only available if
    /// [`Features::augment`] is true.
    fn augment(&self, _arguments: &Augment) -> Result<()> {
        Err(Error::new(format!("{} does not support augment", self.name())))
    }

    /// Mixes each image of a batch with the one before it, as [`Mixture`] describes: `MixUp` and `CutMix` of
    /// `torchvision.transforms.v2`. A single image stays as it is.
    fn mix(&self, arguments: &Mix) -> Result<()>;

    /// Rows of the partial statistics of an activation of `shape`. Each device divides the pixels in its own way.
    fn statistics_rows(&self, shape: Shape) -> usize;

    /// Bytes of workspace that a pass needs.
    fn conv2d_workspace(&self, shape: &Conv2dShape, pass: Conv2dPass) -> usize;

    /// Convolution: cross-correlation with zero padding, as `torch.nn.functional.conv2d`.
    fn conv2d_forward(&self, shape: &Conv2dShape, arguments: &Conv2dForward) -> Result<()>;

    /// [`Device::conv2d_forward`], then [`Device::batch_norm_forward`] in running mode, in one pass: the convolution's
    /// output, the batch norm's input and its output are one tensor, which ends up with the final output. Only available if
    /// [`Features::conv2d_batch_norm`] is true.
    fn conv2d_batch_norm(
        &self,
        _shape: &Conv2dShape,
        _convolution: &Conv2dForward,
        _batch_norm: &BatchNormForward,
    ) -> Result<()> {
        Err(Error::new(format!("{} does not support conv2d_batch_norm", self.name())))
    }

    /// Bytes of workspace of a batch norm that [`Conv2dInputGradient::batch_norm`] names; `None` if the device does not support it
    /// for this shape of the convolution.
    fn reducing_workspace(&self, _shape: &Conv2dShape) -> Option<usize> {
        None
    }

    /// The gradient of `conv2d` with respect to the input.
    fn conv2d_input_gradient(&self, shape: &Conv2dShape, arguments: &Conv2dInputGradient) -> Result<()>;

    /// The gradient of `conv2d` with respect to the weight.
    fn conv2d_weight_gradient(&self, shape: &Conv2dShape, arguments: &Conv2dWeightGradient) -> Result<()>;

    /// Partial sums as in [`Conv2dForward::statistics`], for an input that no convolution wrote.
    fn batch_norm_statistics(&self, input: &Tensor, statistics: &Tensor) -> Result<()>;

    /// Bytes of workspace that [`Device::batch_norm_backward`] needs for an activation of `shape`.
    fn batch_norm_workspace(&self, shape: Shape) -> usize;

    /// Batch normalisation, as `torch.nn.functional.batch_norm`.
    fn batch_norm_forward(&self, arguments: &BatchNormForward) -> Result<()>;

    /// The gradients of batch normalisation.
    fn batch_norm_backward(&self, arguments: &BatchNormBackward) -> Result<()>;

    /// Maximum over windows, as `torch.nn.functional.max_pool2d`. `indices` (one byte per output element, if the
    /// backward pass needs it) is the index in the window of the first maximum in scan order.
    fn max_pool_forward(
        &self,
        window: MaxPoolWindow,
        input: &Tensor,
        output: &Tensor,
        indices: Option<&Tensor>,
    ) -> Result<()>;

    /// The gradient of max pooling: the gradient of each output goes to its maximum.
    fn max_pool_backward(
        &self,
        window: MaxPoolWindow,
        indices: &Tensor,
        output_gradient: &Tensor,
        input_gradient: &Gradient,
    ) -> Result<()>;

    /// Whether the device has [`Device::batch_norm_max_pool_forward`] and [`Device::batch_norm_max_pool_backward`] for this window.
    fn has_batch_norm_max_pool(&self, _window: MaxPoolWindow) -> bool {
        false
    }

    /// [`Device::batch_norm_forward`] without a residual, then [`Device::max_pool_forward`], in one pass: the output of the batch
    /// norm is that of the pooling, and the activation between them is not written. Only if
    /// [`Device::has_batch_norm_max_pool`] is true.
    fn batch_norm_max_pool_forward(
        &self,
        _window: MaxPoolWindow,
        _batch_norm: &BatchNormForward,
        _indices: &Tensor,
    ) -> Result<()> {
        Err(Error::new(format!("{} does not support batch_norm_max_pool", self.name())))
    }

    /// [`Device::max_pool_backward`], then [`Device::batch_norm_backward`]: the output gradient of the batch norm is that of the
    /// pooling, and the gradient between them is not written. Its input must be there.
    fn batch_norm_max_pool_backward(
        &self,
        _window: MaxPoolWindow,
        _batch_norm: &BatchNormBackward,
        _indices: &Tensor,
    ) -> Result<()> {
        Err(Error::new(format!("{} does not support batch_norm_max_pool", self.name())))
    }

    /// Mean over the image: `[N, H, W, C]` to `[N, C]`.
    fn avg_pool_forward(&self, input: &Tensor, output: &Tensor) -> Result<()>;

    /// The gradient of average pooling.
    fn avg_pool_backward(&self, output_gradient: &Tensor, input_gradient: &Gradient) -> Result<()>;

    /// Bytes of workspace that the passes of `linear` need.
    fn linear_workspace(&self, batch: usize, inputs: usize, outputs: usize, pass: Conv2dPass) -> usize;

    /// `output = input * weight^T + bias`; weight `[outputs, inputs]`.
    fn linear_forward(
        &self,
        input: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        output: &Tensor,
        workspace: &Tensor,
    ) -> Result<()>;

    /// Gradient of `linear` with respect to its input.
    fn linear_input_gradient(
        &self,
        output_gradient: &Tensor,
        weight: &Tensor,
        input_gradient: &Gradient,
        workspace: &Tensor,
    ) -> Result<()>;

    /// Gradients of `linear` with respect to its weight, which needs the input, and its bias.
    fn linear_weight_gradient(
        &self,
        input: Option<&Tensor>,
        output_gradient: &Tensor,
        weight_gradient: Option<&Tensor>,
        bias_gradient: Option<&Tensor>,
        workspace: &Tensor,
    ) -> Result<()>;

    /// Softmax cross entropy with its gradient, as `torch.nn.functional.cross_entropy` with `weight` and `label_smoothing`.
    /// Mixed targets are its class probabilities.
    fn cross_entropy(&self, arguments: &CrossEntropy) -> Result<()>;

    /// Adds values to weighted sums of those before them: gradients of the batches of a step, or parameters in a moving average.
    fn accumulate(&self, arguments: &Accumulate) -> Result<()>;

    /// Number of float32 elements that [`Device::gradient_norm`] needs for its sums, given the lengths of the gradients.
    fn gradient_norm_sums(&self, gradients: &[usize]) -> usize;

    /// The Euclidean norm of all `gradients` together, to `norm` `[1]`. `sums` has [`Device::gradient_norm_sums`] elements.
    fn gradient_norm(&self, gradients: &[&Tensor], sums: &Tensor, norm: &Tensor) -> Result<()>;

    /// One step of an optimiser over a group of parameters.
    fn update(&self, arguments: &UpdateArguments) -> Result<()>;
}
