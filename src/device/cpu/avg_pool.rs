//! Mean over the image, NHWC. It processes only a few hundred kilobytes, so its speed does not matter.

use super::jobs;
use super::memory::Views;
use crate::device::interface::Gradient;
use crate::tensor::Tensor;

pub(super) fn forward(input: &Tensor, output: &Tensor) {
    let channels = input.shape().channels();
    let image = input.len() / input.shape().dims()[0];
    let mut views = Views::default();
    let input = views.read::<f32>(input);
    let output = views.write::<f32>(output);
    jobs::for_each_piece(output, channels, |index, output| {
        let image = &input[index * image..(index + 1) * image];
        output.fill(0.0);
        for pixel in image.chunks_exact(channels) {
            output.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
        }
        let pixels = (image.len() / channels) as f32;
        output.iter_mut().for_each(|sum| *sum /= pixels);
    });
}

pub(super) fn backward(output_gradient: &Tensor, target: &Gradient) {
    let channels = output_gradient.shape().channels();
    let image = target.tensor.len() / target.tensor.shape().dims()[0];
    let accumulate = target.accumulate;
    let mut views = Views::default();
    let output_gradient = views.read::<f32>(output_gradient);
    let input_gradient = views.write::<f32>(&target.tensor);
    jobs::for_each_piece(input_gradient, image, |index, image| {
        let gradient = &output_gradient[index * channels..(index + 1) * channels];
        let share = 1.0 / (image.len() / channels) as f32;
        for pixel in image.chunks_exact_mut(channels) {
            for (value, gradient) in pixel.iter_mut().zip(gradient) {
                *value = gradient * share + if accumulate { *value } else { 0.0 };
            }
        }
    });
}
