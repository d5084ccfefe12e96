//! Every operation in float64, with the simplest loops: the reference for the fast versions.
//!
//! Activations are NHWC, convolution weights `[output, row, column, input]`, linear weights `[output, input]`.
//! `tests/reference_check.rs` checks each backward pass against finite differences of its forward pass.

// Each test binary compiles this module and uses only part of it.
#![allow(dead_code)]

#[macro_use]
pub mod delegate;
pub mod devices;
pub mod recorder;
pub mod recording;
pub mod resampling;
pub mod rounding;
pub mod update;

use retune::device::Activation;
pub use retune::device::Conv2dShape;

/// A number type that these functions read: `f32` or `f64`.
pub trait Number: Copy + Into<f64> {}
impl<T: Copy + Into<f64>> Number for T {}

/// `||ours - truth|| / ||truth||`. If the truth is zero, only zeros give 0. NaN on either side gives NaN.
pub fn relative_error(ours: &[f32], truth: &[f64]) -> f64 {
    assert_eq!(ours.len(), truth.len(), "lengths differ");
    let difference = ours.iter().zip(truth).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>().sqrt();
    let size = truth.iter().map(|b| b * b).sum::<f64>().sqrt();
    if difference == 0.0 { 0.0 } else { difference / size }
}

/// A small seeded generator (splitmix64), so that a failing test can be repeated.
pub struct Random(pub u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `low..high`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform among `0..end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Normal with mean 0 and deviation 1.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform(0.0, 1.0)).ln()).sqrt();
        radius * self.uniform(0.0, std::f64::consts::TAU).cos()
    }

    /// Normal values that are exact in float32.
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal() as f32).collect()
    }

    /// Uniform values that are exact in float32.
    pub fn uniforms(&mut self, count: usize, low: f64, high: f64) -> Vec<f32> {
        (0..count).map(|_| self.uniform(low, high) as f32).collect()
    }

    /// Labels among `0..classes`.
    pub fn labels(&mut self, count: usize, classes: usize) -> Vec<usize> {
        (0..count).map(|_| self.below(classes)).collect()
    }
}

/// Calls `visit(input index, weight index, output index)` for every product of a convolution.
fn conv2d_products(shape: &Conv2dShape, mut visit: impl FnMut(usize, usize, usize)) {
    let (out_height, out_width) = (shape.output_height(), shape.output_width());
    for n in 0..shape.batch {
        for p in 0..out_height {
            for q in 0..out_width {
                for k in 0..shape.output_channels {
                    for r in 0..shape.kernel_height {
                        for s in 0..shape.kernel_width {
                            let (row, column) = (p * shape.stride + r, q * shape.stride + s);
                            if row < shape.padding || column < shape.padding {
                                continue;
                            }
                            let (h, w) = (row - shape.padding, column - shape.padding);
                            if h >= shape.height || w >= shape.width {
                                continue;
                            }
                            for c in 0..shape.input_channels {
                                visit(
                                    ((n * shape.height + h) * shape.width + w) * shape.input_channels + c,
                                    ((k * shape.kernel_height + r) * shape.kernel_width + s) * shape.input_channels + c,
                                    ((n * out_height + p) * out_width + q) * shape.output_channels + k,
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The output of a convolution.
pub fn conv2d<T: Number>(shape: &Conv2dShape, input: &[T], weight: &[T]) -> Vec<f64> {
    assert_eq!((input.len(), weight.len()), (shape.input_len(), shape.weight_len()));
    let mut output = vec![0.0; shape.output_len()];
    conv2d_products(shape, |i, w, o| output[o] += input[i].into() * weight[w].into());
    output
}

/// The gradient with respect to the input of a convolution.
pub fn conv2d_input_gradient<T: Number>(shape: &Conv2dShape, weight: &[T], output_gradient: &[T]) -> Vec<f64> {
    assert_eq!((weight.len(), output_gradient.len()), (shape.weight_len(), shape.output_len()));
    let mut gradient = vec![0.0; shape.input_len()];
    conv2d_products(shape, |i, w, o| gradient[i] += weight[w].into() * output_gradient[o].into());
    gradient
}

/// The gradient with respect to the weight of a convolution.
pub fn conv2d_weight_gradient<T: Number>(shape: &Conv2dShape, input: &[T], output_gradient: &[T]) -> Vec<f64> {
    assert_eq!((input.len(), output_gradient.len()), (shape.input_len(), shape.output_len()));
    let mut gradient = vec![0.0; shape.weight_len()];
    conv2d_products(shape, |i, w, o| gradient[w] += input[i].into() * output_gradient[o].into());
    gradient
}

/// The parameters of a batch norm. The number of channels is the length of `gamma`.
pub struct BatchNorm<'a, T> {
    /// The weight of each channel.
    pub gamma: &'a [T],
    /// The bias of each channel.
    pub beta: &'a [T],
    /// The epsilon that is added to the variance.
    pub epsilon: f64,
}

/// Statistics of each channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Mean of each channel.
    pub mean: Vec<f64>,
    /// Variance of each channel: biased (divided by the count) if it comes from a batch.
    pub variance: Vec<f64>,
}

/// The gradients of batch norm.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNormGradients {
    /// Gradient of the input.
    pub input: Vec<f64>,
    /// Gradient of the weight.
    pub gamma: Vec<f64>,
    /// Gradient of the bias.
    pub beta: Vec<f64>,
    /// Gradient of the residual: the output gradient where the ReLU is active.
    pub residual: Vec<f64>,
}

/// Mean and biased variance of each channel of a batch.
pub fn batch_statistics<T: Number>(input: &[T], channels: usize) -> Statistics {
    assert_eq!(input.len() % channels, 0);
    let count = (input.len() / channels) as f64;
    let mut mean = vec![0.0; channels];
    for (i, &x) in input.iter().enumerate() {
        mean[i % channels] += x.into() / count;
    }
    let mut variance = vec![0.0; channels];
    for (i, &x) in input.iter().enumerate() {
        variance[i % channels] += (x.into() - mean[i % channels]).powi(2) / count;
    }
    Statistics { mean, variance }
}

/// Running statistics after a batch of `count` values per channel. They use its unbiased variance, as in PyTorch.
pub fn running_statistics(running: &Statistics, batch: &Statistics, count: usize, momentum: f64) -> Statistics {
    let unbias = count as f64 / (count as f64 - 1.0);
    let blend = |old: &f64, new: f64| (1.0 - momentum) * old + momentum * new;
    Statistics {
        mean: running.mean.iter().zip(&batch.mean).map(|(old, new)| blend(old, *new)).collect(),
        variance: running.variance.iter().zip(&batch.variance).map(|(old, new)| blend(old, unbias * new)).collect(),
    }
}

impl<T: Number> BatchNorm<'_, T> {
    fn normalised(&self, input: &[T], statistics: &Statistics) -> Vec<f64> {
        let channels = self.gamma.len();
        let normalise = |(i, &x): (usize, &T)| {
            let c = i % channels;
            (x.into() - statistics.mean[c]) / (statistics.variance[c] + self.epsilon).sqrt()
        };
        input.iter().enumerate().map(normalise).collect()
    }

    /// The output for given statistics: those of the batch in training, the running statistics when frozen and in
    /// evaluation. Then the residual is added and the activation applied.
    pub fn forward(
        &self,
        input: &[T],
        statistics: &Statistics,
        residual: Option<&[T]>,
        activation: Activation,
    ) -> Vec<f64> {
        let channels = self.gamma.len();
        let mut output = self.normalised(input, statistics);
        for (i, y) in output.iter_mut().enumerate() {
            *y = *y * self.gamma[i % channels].into() + self.beta[i % channels].into();
            if let Some(residual) = residual {
                *y += residual[i].into();
            }
            if activation == Activation::Relu && *y <= 0.0 {
                *y = 0.0;
            }
        }
        output
    }

    /// Gradients when the statistics are constants (the running statistics). With a ReLU, `relu_output` is the output
    /// of the forward pass; no gradient passes where it is not positive.
    pub fn frozen_backward(
        &self,
        input: &[T],
        statistics: &Statistics,
        relu_output: Option<&[T]>,
        output_gradient: &[T],
    ) -> BatchNormGradients {
        let channels = self.gamma.len();
        let normalised = self.normalised(input, statistics);
        let (mut gamma, mut beta) = (vec![0.0; channels], vec![0.0; channels]);
        let (mut input_gradient, mut residual) = (vec![0.0; input.len()], vec![0.0; input.len()]);
        for i in 0..input.len() {
            let c = i % channels;
            let passes = relu_output.is_none_or(|output| output[i].into() > 0.0);
            let dy = if passes { output_gradient[i].into() } else { 0.0 };
            residual[i] = dy;
            gamma[c] += dy * normalised[i];
            beta[c] += dy;
            input_gradient[i] = dy * self.gamma[c].into() / (statistics.variance[c] + self.epsilon).sqrt();
        }
        BatchNormGradients { input: input_gradient, gamma, beta, residual }
    }

    /// Gradients in training, where the mean and variance of the batch also depend on the input.
    pub fn training_backward(
        &self,
        input: &[T],
        relu_output: Option<&[T]>,
        output_gradient: &[T],
    ) -> BatchNormGradients {
        let channels = self.gamma.len();
        let count = (input.len() / channels) as f64;
        let statistics = batch_statistics(input, channels);
        let normalised = self.normalised(input, &statistics);
        let mut gradients = self.frozen_backward(input, &statistics, relu_output, output_gradient);
        for (i, dx) in gradients.input.iter_mut().enumerate() {
            let c = i % channels;
            let factor = self.gamma[c].into() / (statistics.variance[c] + self.epsilon).sqrt();
            *dx -= factor * (gradients.beta[c] + normalised[i] * gradients.gamma[c]) / count;
        }
        gradients
    }
}

/// The geometry of a pooling operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolShape {
    /// Images in the batch.
    pub batch: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Channels of input and output.
    pub channels: usize,
    /// Rows and columns of the window.
    pub kernel: usize,
    /// Stride of the window.
    pub stride: usize,
    /// Padding around the input, which never wins.
    pub padding: usize,
}

impl PoolShape {
    /// Rows of the output.
    pub fn output_height(&self) -> usize {
        (self.height + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Columns of the output.
    pub fn output_width(&self) -> usize {
        (self.width + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Elements of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.height * self.width * self.channels
    }

    /// Elements of the output.
    pub fn output_len(&self) -> usize {
        self.batch * self.output_height() * self.output_width() * self.channels
    }
}

/// The largest value of each window, and its index in the input. Of equal values the first in scan order wins. Any NaN
/// is larger than any number, and the last NaN wins, as in PyTorch.
pub fn max_pool<T: Number>(shape: &PoolShape, input: &[T]) -> (Vec<f64>, Vec<usize>) {
    assert_eq!(input.len(), shape.input_len());
    let (mut values, mut indices) = (Vec::new(), Vec::new());
    for n in 0..shape.batch {
        for p in 0..shape.output_height() {
            for q in 0..shape.output_width() {
                for c in 0..shape.channels {
                    let mut best: Option<(f64, usize)> = None;
                    for row in p * shape.stride..p * shape.stride + shape.kernel {
                        for column in q * shape.stride..q * shape.stride + shape.kernel {
                            if row < shape.padding || column < shape.padding {
                                continue;
                            }
                            let (h, w) = (row - shape.padding, column - shape.padding);
                            if h >= shape.height || w >= shape.width {
                                continue;
                            }
                            let index = ((n * shape.height + h) * shape.width + w) * shape.channels + c;
                            let value: f64 = input[index].into();
                            if best.is_none_or(|(largest, _)| value > largest || value.is_nan()) {
                                best = Some((value, index));
                            }
                        }
                    }
                    let (value, index) = best.expect("every window contains a pixel of the input");
                    values.push(value);
                    indices.push(index);
                }
            }
        }
    }
    (values, indices)
}

/// The gradient of the input of max pooling: the gradient of each output goes to the pixel that was selected.
pub fn max_pool_backward<T: Number>(shape: &PoolShape, input: &[T], output_gradient: &[T]) -> Vec<f64> {
    let mut gradient = vec![0.0; shape.input_len()];
    for (output, index) in max_pool(shape, input).1.into_iter().enumerate() {
        gradient[index] += output_gradient[output].into();
    }
    gradient
}

/// The mean over all pixels: `[batch, pixels, channels]` to `[batch, channels]`.
pub fn avg_pool<T: Number>(batch: usize, pixels: usize, channels: usize, input: &[T]) -> Vec<f64> {
    assert_eq!(input.len(), batch * pixels * channels);
    let mut output = vec![0.0; batch * channels];
    for n in 0..batch {
        for pixel in 0..pixels {
            for c in 0..channels {
                output[n * channels + c] += input[(n * pixels + pixel) * channels + c].into() / pixels as f64;
            }
        }
    }
    output
}

/// The gradient of the input of global average pooling.
pub fn avg_pool_backward<T: Number>(batch: usize, pixels: usize, channels: usize, output_gradient: &[T]) -> Vec<f64> {
    assert_eq!(output_gradient.len(), batch * channels);
    let mut gradient = vec![0.0; batch * pixels * channels];
    for n in 0..batch {
        for pixel in 0..pixels {
            for c in 0..channels {
                let dy: f64 = output_gradient[n * channels + c].into();
                gradient[(n * pixels + pixel) * channels + c] = dy / pixels as f64;
            }
        }
    }
    gradient
}

/// `input * weight^T + bias`: `[batch, inputs]` to `[batch, outputs]`, where `outputs` is the length of the bias.
pub fn linear<T: Number>(input: &[T], weight: &[T], bias: &[T]) -> Vec<f64> {
    let (outputs, inputs) = (bias.len(), weight.len() / bias.len());
    let mut output = Vec::new();
    for row in input.chunks_exact(inputs) {
        for o in 0..outputs {
            let products = (0..inputs).map(|i| row[i].into() * weight[o * inputs + i].into());
            output.push(bias[o].into() + products.sum::<f64>());
        }
    }
    output
}

/// The gradients of a linear layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearGradients {
    /// Gradient of the input.
    pub input: Vec<f64>,
    /// Gradient of the weight.
    pub weight: Vec<f64>,
    /// Gradient of the bias.
    pub bias: Vec<f64>,
}

/// The gradients of a linear layer with this many outputs.
pub fn linear_backward<T: Number>(outputs: usize, input: &[T], weight: &[T], output_gradient: &[T]) -> LinearGradients {
    let inputs = weight.len() / outputs;
    let mut gradients =
        LinearGradients { input: vec![0.0; input.len()], weight: vec![0.0; weight.len()], bias: vec![0.0; outputs] };
    for n in 0..input.len() / inputs {
        for o in 0..outputs {
            let dy: f64 = output_gradient[n * outputs + o].into();
            gradients.bias[o] += dy;
            for i in 0..inputs {
                gradients.input[n * inputs + i] += dy * weight[o * inputs + i].into();
                gradients.weight[o * inputs + i] += dy * input[n * inputs + i].into();
            }
        }
    }
    gradients
}

/// How the losses of a batch are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// Their mean.
    Mean,
}

/// The results of cross entropy.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossEntropy {
    /// The loss of the batch.
    pub loss: f64,
    /// Its gradient with respect to the logits.
    pub gradient: Vec<f64>,
    /// Images whose largest logit (the first of equal ones) is that of the target.
    pub correct: usize,
}

/// Softmax cross entropy of `[batch, classes]` logits.
pub fn cross_entropy<T: Number>(logits: &[T], targets: &[usize], reduction: Reduction) -> CrossEntropy {
    let weights = vec![1.0; logits.len() / targets.len()];
    smoothed_cross_entropy(logits, targets, None, reduction, 0.0, &weights)
}

/// Softmax cross entropy with label smoothing and a weight for each class. With `share`, the target of a row is this share of its own class
/// and, for the rest, that of the row before it, as class probabilities.
pub fn smoothed_cross_entropy<T: Number>(
    logits: &[T],
    targets: &[usize],
    share: Option<f64>,
    reduction: Reduction,
    smoothing: f64,
    weights: &[f64],
) -> CrossEntropy {
    let classes = weights.len();
    let scale = match reduction {
        Reduction::Sum => 1.0,
        Reduction::Mean if share.is_some() => 1.0 / targets.len() as f64,
        Reduction::Mean => 1.0 / targets.iter().map(|&target| weights[target]).sum::<f64>(),
    };
    let mut result = CrossEntropy { loss: 0.0, gradient: Vec::new(), correct: 0 };
    let own = share.unwrap_or(1.0);
    let mut others = targets.to_vec();
    others.rotate_right(1);
    for ((row, &target), other) in logits.chunks_exact(classes).zip(targets).zip(others) {
        let row: Vec<f64> = row.iter().map(|&x| x.into()).collect();
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = row.iter().map(|x| (x - largest).exp()).sum();
        let expected: Vec<f64> = (0..classes)
            .map(|class| {
                let probability =
                    own * f64::from(u8::from(class == target)) + (1.0 - own) * f64::from(u8::from(class == other));
                weights[class] * ((1.0 - smoothing) * probability + smoothing / classes as f64)
            })
            .collect();
        let expected_sum: f64 = expected.iter().sum();
        for (expected, x) in expected.iter().zip(&row) {
            // Infinite distances of classes that do not count are no part of the loss.
            if *expected > 0.0 {
                result.loss += scale * expected * (total.ln() + largest - x);
            }
            result.gradient.push(scale * ((x - largest).exp() / total * expected_sum - expected));
        }
        if row.iter().position(|&x| x == largest) == Some(if own < 0.5 { other } else { target }) {
            result.correct += 1;
        }
    }
    result
}

/// Mixes each of `count` images of `[height, width, channels]` with the one before it, with the weight of its own pixels in the rectangle from
/// `top` and `left` up to `bottom` and `right`; as torchvision, in float32.
pub fn mix(
    images: &[f32],
    [count, height, width, channels]: [usize; 4],
    weight: f32,
    [top, left, bottom, right]: [usize; 4],
) -> Vec<f32> {
    let stride = height * width * channels;
    let mix = |(index, &own): (usize, &f32)| {
        let (row, column) = (index % stride / (width * channels), index / channels % width);
        let before = images[(index + (count - 1) * stride) % images.len()];
        let is_inside = (top..bottom).contains(&row) && (left..right).contains(&column);
        if is_inside { before * (1.0 - weight) + own * weight } else { own }
    };
    images.iter().enumerate().map(mix).collect()
}

/// The settings of one parameter group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// The learning rate.
    pub rate: f64,
    /// The weight decay, added to the gradient as in PyTorch's SGD.
    pub weight_decay: f64,
    /// The momentum.
    pub momentum: f64,
}

impl Sgd {
    /// One step as in PyTorch. Returns the updated parameter and the updated momentum buffer, which is `None` before
    /// the first step and then starts as the first gradient.
    pub fn step<T: Number>(&self, parameter: &[T], gradient: &[T], buffer: Option<&[f64]>) -> (Vec<f64>, Vec<f64>) {
        let (mut updated, mut buffers) = (Vec::new(), Vec::new());
        for i in 0..parameter.len() {
            let decayed = gradient[i].into() + self.weight_decay * parameter[i].into();
            let direction = buffer.map_or(decayed, |buffer| self.momentum * buffer[i] + decayed);
            updated.push(parameter[i].into() - self.rate * direction);
            buffers.push(direction);
        }
        (updated, buffers)
    }
}
