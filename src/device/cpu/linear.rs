//! Fully connected layer: a 1 x 1 convolution of one-pixel images, and a bias.

use super::conv2d;
use super::memory::Views;
use crate::device::interface::{Conv2dPass, Conv2dShape, Gradient};
use crate::tensor::Tensor;

fn shape(batch: usize, inputs: usize, outputs: usize) -> Conv2dShape {
    Conv2dShape {
        batch,
        height: 1,
        width: 1,
        input_channels: inputs,
        output_channels: outputs,
        kernel_height: 1,
        kernel_width: 1,
        stride: 1,
        padding: 0,
    }
}

fn shape_of(input_like: &Tensor, output_like: &Tensor) -> Conv2dShape {
    let (inputs, outputs) = (input_like.shape(), output_like.shape());
    shape(outputs.rows(), inputs.channels(), outputs.channels())
}

pub(super) fn workspace_len(batch: usize, inputs: usize, outputs: usize, pass: Conv2dPass) -> usize {
    conv2d::workspace_len(&shape(batch, inputs, outputs), pass)
}

pub(super) fn forward(input: &Tensor, weight: &Tensor, bias: &Tensor, output: &Tensor, workspace: &Tensor) {
    let shape = shape_of(input, output);
    let mut views = Views::default();
    let workspace = views.workspace(workspace);
    let bias = views.read::<f32>(bias);
    let output = views.write::<f32>(output);
    conv2d::forward(&shape, views.read(input), views.read(weight), output, workspace);
    for row in output.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    }
}

pub(super) fn input_gradient(output_gradient: &Tensor, weight: &Tensor, target: &Gradient, workspace: &Tensor) {
    let shape = shape_of(&target.tensor, output_gradient);
    let mut views = Views::default();
    let workspace = views.workspace(workspace);
    let input_gradient = views.write(&target.tensor);
    let (output_gradient, weight) = (views.read(output_gradient), views.read(weight));
    conv2d::input_gradient(&shape, output_gradient, weight, input_gradient, target.accumulate, workspace);
}

pub(super) fn weight_gradient(input: &Tensor, output_gradient: &Tensor, target: &Tensor, workspace: &Tensor) {
    let shape = shape_of(input, output_gradient);
    let mut views = Views::default();
    let workspace = views.workspace(workspace);
    let weight_gradient = views.write(target);
    conv2d::weight_gradient(&shape, views.read(input), views.read(output_gradient), weight_gradient, workspace);
}

pub(super) fn bias_gradient(output_gradient: &Tensor, target: &Tensor) {
    let mut views = Views::default();
    let output_gradient = views.read::<f32>(output_gradient);
    let target = views.write::<f32>(target);
    let outputs = target.len();
    for (output, target) in target.iter_mut().enumerate() {
        let column = output_gradient.iter().skip(output).step_by(outputs);
        *target = column.map(|&value| f64::from(value)).sum::<f64>() as f32;
    }
}
