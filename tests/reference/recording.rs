//! A device that can record, based on one that cannot: it stores the calls and makes them later.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use retune::device::{
    Accumulate, BatchNormBackward, BatchNormForward, Clip, Conv2dForward, Conv2dInputGradient, Conv2dShape,
    Conv2dWeightGradient, CrossEntropy, Device, Features, Gradient, MaxPoolWindow, Mix, Recording, UpdateArguments,
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
        self.issue(move |device| {
            device.conv2d_input_gradient(
                &shape,
                &Conv2dInputGradient {
                    output_gradient: &output_gradient,
                    weight: &weight,
                    input_gradient: &input_gradient,
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
        let &BatchNormForward { mode, activation, epsilon, momentum, .. } = arguments;
        let [input, weight, bias, running_mean, running_variance, saved_statistics, output] = [
            arguments.input,
            arguments.weight,
            arguments.bias,
            arguments.running_mean,
            arguments.running_variance,
            arguments.saved_statistics,
            arguments.output,
        ]
        .map(Tensor::clone);
        let [statistics, residual] = [arguments.statistics, arguments.residual].map(Option::<&Tensor>::cloned);
        self.issue(move |device| {
            device.batch_norm_forward(&BatchNormForward {
                mode,
                input: &input,
                statistics: statistics.as_ref(),
                weight: &weight,
                bias: &bias,
                running_mean: &running_mean,
                running_variance: &running_variance,
                saved_statistics: &saved_statistics,
                residual: residual.as_ref(),
                activation,
                output: &output,
                epsilon,
                momentum,
            })
        })
    }

    fn batch_norm_backward(&self, arguments: &BatchNormBackward) -> Result<()> {
        let &BatchNormBackward { mode, activation, .. } = arguments;
        let [output_gradient, weight, bias, saved_statistics, workspace] = [
            arguments.output_gradient,
            arguments.weight,
            arguments.bias,
            arguments.saved_statistics,
            arguments.workspace,
        ]
        .map(Tensor::clone);
        let [input, output, weight_gradient, bias_gradient] =
            [arguments.input, arguments.output, arguments.weight_gradient, arguments.bias_gradient]
                .map(Option::<&Tensor>::cloned);
        let [input_gradient, residual_gradient] =
            [arguments.input_gradient, arguments.residual_gradient].map(Option::<&Gradient>::cloned);
        self.issue(move |device| {
            device.batch_norm_backward(&BatchNormBackward {
                mode,
                input: input.as_ref(),
                output: output.as_ref(),
                activation,
                output_gradient: &output_gradient,
                weight: &weight,
                bias: &bias,
                saved_statistics: &saved_statistics,
                input_gradient: input_gradient.as_ref(),
                residual_gradient: residual_gradient.as_ref(),
                weight_gradient: weight_gradient.as_ref(),
                bias_gradient: bias_gradient.as_ref(),
                workspace: &workspace,
            })
        })
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
