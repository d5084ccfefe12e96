//! A device that can record, based on one that cannot: it stores the calls and makes them later.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use retune::device::{
    Accumulate, Activation, BatchNormBackward, BatchNormForward, BatchNormMode, Clip, Conv2dForward,
    Conv2dInputGradient, Conv2dShape, Conv2dWeightGradient, CrossEntropy, Device, Features, Gradient, MaxPoolWindow,
    Mix, Recording, UpdateArguments,
};
use retune::error::Result;
use retune::tensor::{Memory, Tensor};

use super::delegate::Delegate;

type Call = Box<dyn Fn(&dyn Device) -> Result<()>>;

/// See the module documentation.
pub struct RecordingDevice {
    device: Rc<dyn Device>,
    /// The calls of the recording in progress.
    calls: RefCell<Option<Vec<Call>>>,
    /// The number of recordings.
    pub recordings: Cell<usize>,
    /// The number of replays of all recordings.
    pub replays: Rc<Cell<usize>>,
    /// The number of kernels issued individually, outside recordings.
    pub direct_calls: Cell<usize>,
}

struct Recorded {
    device: Rc<dyn Device>,
    calls: Vec<Call>,
    replays: Rc<Cell<usize>>,
}

impl Recording for Recorded {
    fn replay(&self) -> Result<()> {
        self.replays.set(self.replays.get() + 1);
        self.calls.iter().try_for_each(|call| call(self.device.as_ref()))
    }
}

impl RecordingDevice {
    /// Computes on `device`.
    pub fn new(device: Rc<dyn Device>) -> Self {
        Self {
            device,
            calls: RefCell::default(),
            recordings: Cell::default(),
            replays: Rc::default(),
            direct_calls: Cell::default(),
        }
    }

    fn issue(&self, call: impl Fn(&dyn Device) -> Result<()> + 'static) -> Result<()> {
        if let Some(calls) = &mut *self.calls.borrow_mut() {
            calls.push(Box::new(call));
            return Ok(());
        }
        self.direct_calls.set(self.direct_calls.get() + 1);
        call(self.device.as_ref())
    }

    #[track_caller]
    fn not_while_recording(&self) {
        assert!(self.calls.borrow().is_none(), "a recording may neither allocate, copy nor synchronise");
    }
}

/// The arguments of a forward pass, to be used later.
struct OwnedForward {
    mode: BatchNormMode,
    activation: Activation,
    epsilon: f32,
    momentum: f32,
    tensors: [Tensor; 7],
    statistics: Option<Tensor>,
    residual: Option<Tensor>,
}

impl OwnedForward {
    fn new(arguments: &BatchNormForward) -> Self {
        let &BatchNormForward { mode, activation, epsilon, momentum, .. } = arguments;
        let tensors = [
            arguments.input,
            arguments.weight,
            arguments.bias,
            arguments.running_mean,
            arguments.running_variance,
            arguments.saved_statistics,
            arguments.output,
        ];
        let [statistics, residual] = [arguments.statistics, arguments.residual].map(Option::<&Tensor>::cloned);
        Self { mode, activation, epsilon, momentum, tensors: tensors.map(Tensor::clone), statistics, residual }
    }

    fn arguments(&self) -> BatchNormForward<'_> {
        let Self { mode, activation, epsilon, momentum, .. } = *self;
        let [input, weight, bias, running_mean, running_variance, saved_statistics, output] = &self.tensors;
        BatchNormForward {
            mode,
            input,
            statistics: self.statistics.as_ref(),
            weight,
            bias,
            running_mean,
            running_variance,
            saved_statistics,
            residual: self.residual.as_ref(),
            activation,
            output,
            epsilon,
            momentum,
        }
    }
}

/// The arguments of a backward pass, to be used later.
struct OwnedBackward {
    mode: BatchNormMode,
    activation: Activation,
    is_reduced: bool,
    tensors: [Tensor; 5],
    optional: [Option<Tensor>; 4],
    gradients: [Option<Gradient>; 2],
}

impl OwnedBackward {
    fn new(arguments: &BatchNormBackward) -> Self {
        let &BatchNormBackward { mode, activation, is_reduced, .. } = arguments;
        let tensors = [
            arguments.output_gradient,
            arguments.weight,
            arguments.bias,
            arguments.saved_statistics,
            arguments.workspace,
        ];
        let optional = [arguments.input, arguments.output, arguments.weight_gradient, arguments.bias_gradient];
        let gradients = [arguments.input_gradient, arguments.residual_gradient];
        Self {
            mode,
            activation,
            is_reduced,
            tensors: tensors.map(Tensor::clone),
            optional: optional.map(Option::<&Tensor>::cloned),
            gradients: gradients.map(Option::<&Gradient>::cloned),
        }
    }

    fn arguments(&self) -> BatchNormBackward<'_> {
        let Self { mode, activation, is_reduced, .. } = *self;
        let [output_gradient, weight, bias, saved_statistics, workspace] = &self.tensors;
        let [input, output, weight_gradient, bias_gradient] = self.optional.each_ref().map(Option::as_ref);
        let [input_gradient, residual_gradient] = self.gradients.each_ref().map(Option::as_ref);
        BatchNormBackward {
            mode,
            input,
            output,
            activation,
            output_gradient,
            is_reduced,
            weight,
            bias,
            saved_statistics,
            input_gradient,
            residual_gradient,
            weight_gradient,
            bias_gradient,
            workspace,
        }
    }
}

delegate_device!(RecordingDevice);

impl Delegate for RecordingDevice {
    fn inner(&self) -> &dyn Device {
        self.device.as_ref()
    }

    fn features(&self) -> Features {
        // Disables features whose calls it does not store.
        Features { augment: false, conv2d_batch_norm: false, ..self.device.features() }
    }

    fn allocate(&self, bytes: usize) -> Result<Rc<Memory>> {
        self.not_while_recording();
        self.device.allocate(bytes)
    }

    fn upload(&self, source: &[u8], target: &Tensor) -> Result<()> {
        self.not_while_recording();
        self.device.upload(source, target)
    }

    fn download(&self, source: &Tensor, target: &mut [u8]) -> Result<()> {
        self.not_while_recording();
        self.device.download(source, target)
    }

    fn synchronize(&self) -> Result<()> {
        self.not_while_recording();
        self.device.synchronize()
    }

    fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Option<Rc<dyn Recording>>> {
        self.not_while_recording();
        *self.calls.borrow_mut() = Some(Vec::new());
        let result = step();
        let calls = self.calls.borrow_mut().take().expect("a recording in progress");
        result?;
        self.recordings.set(self.recordings.get() + 1);
        let (device, replays) = (self.device.clone(), self.replays.clone());
        Ok(Some(Rc::new(Recorded { device, calls, replays })))
    }

    fn conv2d_forward(&self, shape: &Conv2dShape, arguments: &Conv2dForward) -> Result<()> {
        let [input, weight, output, workspace] =
            [arguments.input, arguments.weight, arguments.output, arguments.workspace].map(Tensor::clone);
        let (shape, statistics) = (*shape, arguments.statistics.cloned());
        self.issue(move |device| {
            device.conv2d_forward(
                &shape,
                &Conv2dForward {
                    input: &input,
                    weight: &weight,
                    output: &output,
                    statistics: statistics.as_ref(),
                    workspace: &workspace,
                },
            )
        })
    }

    fn conv2d_input_gradient(&self, shape: &Conv2dShape, arguments: &Conv2dInputGradient) -> Result<()> {
        let [output_gradient, weight, workspace] =
            [arguments.output_gradient, arguments.weight, arguments.workspace].map(Tensor::clone);
        let (shape, input_gradient) = (*shape, arguments.input_gradient.clone());
        let batch_norm = arguments.batch_norm.map(OwnedBackward::new);
        self.issue(move |device| {
            device.conv2d_input_gradient(
                &shape,
                &Conv2dInputGradient {
                    output_gradient: &output_gradient,
                    weight: &weight,
                    input_gradient: &input_gradient,
                    batch_norm: batch_norm.as_ref().map(OwnedBackward::arguments).as_ref(),
                    workspace: &workspace,
                },
            )
        })
    }

    fn conv2d_weight_gradient(&self, shape: &Conv2dShape, arguments: &Conv2dWeightGradient) -> Result<()> {
        let [input, output_gradient, weight_gradient, workspace] =
            [arguments.input, arguments.output_gradient, arguments.weight_gradient, arguments.workspace]
                .map(Tensor::clone);
        let shape = *shape;
        self.issue(move |device| {
            device.conv2d_weight_gradient(
                &shape,
                &Conv2dWeightGradient {
                    input: &input,
                    output_gradient: &output_gradient,
                    weight_gradient: &weight_gradient,
                    workspace: &workspace,
                },
            )
        })
    }

    fn batch_norm_statistics(&self, input: &Tensor, statistics: &Tensor) -> Result<()> {
        let [input, statistics] = [input, statistics].map(Tensor::clone);
        self.issue(move |device| device.batch_norm_statistics(&input, &statistics))
    }

    fn batch_norm_forward(&self, arguments: &BatchNormForward) -> Result<()> {
        let owned = OwnedForward::new(arguments);
        self.issue(move |device| device.batch_norm_forward(&owned.arguments()))
    }

    fn batch_norm_backward(&self, arguments: &BatchNormBackward) -> Result<()> {
        let owned = OwnedBackward::new(arguments);
        self.issue(move |device| device.batch_norm_backward(&owned.arguments()))
    }

    fn batch_norm_max_pool_forward(
        &self,
        window: MaxPoolWindow,
        batch_norm: &BatchNormForward,
        indices: &Tensor,
    ) -> Result<()> {
        let (owned, indices) = (OwnedForward::new(batch_norm), indices.clone());
        self.issue(move |device| device.batch_norm_max_pool_forward(window, &owned.arguments(), &indices))
    }

    fn batch_norm_max_pool_backward(
        &self,
        window: MaxPoolWindow,
        batch_norm: &BatchNormBackward,
        indices: &Tensor,
    ) -> Result<()> {
        let (owned, indices) = (OwnedBackward::new(batch_norm), indices.clone());
        self.issue(move |device| device.batch_norm_max_pool_backward(window, &owned.arguments(), &indices))
    }

    fn max_pool_forward(
        &self,
        window: MaxPoolWindow,
        input: &Tensor,
        output: &Tensor,
        indices: Option<&Tensor>,
    ) -> Result<()> {
        let ([input, output], indices) = ([input, output].map(Tensor::clone), indices.cloned());
        self.issue(move |device| device.max_pool_forward(window, &input, &output, indices.as_ref()))
    }

    fn max_pool_backward(
        &self,
        window: MaxPoolWindow,
        indices: &Tensor,
        output_gradient: &Tensor,
        input_gradient: &Gradient,
    ) -> Result<()> {
        let [indices, output_gradient] = [indices, output_gradient].map(Tensor::clone);
        let input_gradient = input_gradient.clone();
        self.issue(move |device| device.max_pool_backward(window, &indices, &output_gradient, &input_gradient))
    }

    fn avg_pool_forward(&self, input: &Tensor, output: &Tensor) -> Result<()> {
        let [input, output] = [input, output].map(Tensor::clone);
        self.issue(move |device| device.avg_pool_forward(&input, &output))
    }

    fn avg_pool_backward(&self, output_gradient: &Tensor, input_gradient: &Gradient) -> Result<()> {
        let (output_gradient, input_gradient) = (output_gradient.clone(), input_gradient.clone());
        self.issue(move |device| device.avg_pool_backward(&output_gradient, &input_gradient))
    }

    fn linear_forward(
        &self,
        input: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        output: &Tensor,
        workspace: &Tensor,
    ) -> Result<()> {
        let [input, weight, bias, output, workspace] = [input, weight, bias, output, workspace].map(Tensor::clone);
        self.issue(move |device| device.linear_forward(&input, &weight, &bias, &output, &workspace))
    }

    fn linear_input_gradient(
        &self,
        output_gradient: &Tensor,
        weight: &Tensor,
        input_gradient: &Gradient,
        workspace: &Tensor,
    ) -> Result<()> {
        let [output_gradient, weight, workspace] = [output_gradient, weight, workspace].map(Tensor::clone);
        let input_gradient = input_gradient.clone();
        self.issue(move |device| device.linear_input_gradient(&output_gradient, &weight, &input_gradient, &workspace))
    }

    fn linear_weight_gradient(
        &self,
        input: Option<&Tensor>,
        output_gradient: &Tensor,
        weight_gradient: Option<&Tensor>,
        bias_gradient: Option<&Tensor>,
        workspace: &Tensor,
    ) -> Result<()> {
        let [input, weight_gradient, bias_gradient] =
            [input, weight_gradient, bias_gradient].map(Option::<&Tensor>::cloned);
        let [output_gradient, workspace] = [output_gradient, workspace].map(Tensor::clone);
        self.issue(move |device| {
            device.linear_weight_gradient(
                input.as_ref(),
                &output_gradient,
                weight_gradient.as_ref(),
                bias_gradient.as_ref(),
                &workspace,
            )
        })
    }

    fn cross_entropy(&self, arguments: &CrossEntropy) -> Result<()> {
        let [logits, targets, result] = [arguments.logits, arguments.targets, arguments.result].map(Tensor::clone);
        let [logits_gradient, class_weights, share] =
            [arguments.logits_gradient, arguments.class_weights, arguments.share].map(Option::<&Tensor>::cloned);
        let CrossEntropy { label_smoothing, reduction, .. } = *arguments;
        self.issue(move |device| {
            device.cross_entropy(&CrossEntropy {
                logits: &logits,
                targets: &targets,
                share: share.as_ref(),
                class_weights: class_weights.as_ref(),
                label_smoothing,
                reduction,
                result: &result,
                logits_gradient: logits_gradient.as_ref(),
            })
        })
    }

    fn mix(&self, arguments: &Mix) -> Result<()> {
        let [images, words] = [arguments.images, arguments.words].map(Tensor::clone);
        self.issue(move |device| device.mix(&Mix { images: &images, words: &words }))
    }

    fn accumulate(&self, arguments: &Accumulate) -> Result<()> {
        let [values, sums, words] = [arguments.values, arguments.sums, arguments.words].map(Tensor::clone);
        let [loss, norm] = [arguments.loss, arguments.norm].map(Option::<&Tensor>::cloned);
        self.issue(move |device| {
            device.accumulate(&Accumulate {
                values: &values,
                sums: &sums,
                words: &words,
                loss: loss.as_ref(),
                norm: norm.as_ref(),
            })
        })
    }

    fn gradient_norm(&self, gradients: &[&Tensor], sums: &Tensor, norm: &Tensor) -> Result<()> {
        let gradients: Vec<Tensor> = gradients.iter().map(|&gradients| gradients.clone()).collect();
        let (sums, norm) = (sums.clone(), norm.clone());
        self.issue(move |device| device.gradient_norm(&gradients.iter().collect::<Vec<&Tensor>>(), &sums, &norm))
    }

    fn update(&self, arguments: &UpdateArguments) -> Result<()> {
        let rule = arguments.rule;
        let [values, gradients, words] = [arguments.values, arguments.gradients, arguments.words].map(Tensor::clone);
        let slots = arguments.slots.to_vec();
        let [compute_copy, loss] = [arguments.compute_copy, arguments.loss].map(Option::<&Tensor>::cloned);
        let clip = arguments.clip.map(|clip| (clip.norm.clone(), clip.max_norm));
        self.issue(move |device| {
            device.update(&UpdateArguments {
                rule,
                values: &values,
                gradients: &gradients,
                slots: &slots,
                compute_copy: compute_copy.as_ref(),
                words: &words,
                loss: loss.as_ref(),
                clip: clip.as_ref().map(|(norm, max_norm)| Clip { norm, max_norm: *max_norm }),
            })
        })
    }
}
