//! The CPU engine: native Rust, float32, all cores.

mod accumulate;
mod activation;
mod avg_pool;
mod batch_norm;
pub mod conv2d;
mod cross_entropy;
mod direct;
mod few_pixels;
mod gemm;
mod gradient_norm;
mod jobs;
mod linear;
mod max_pool;
mod memory;
mod mix;
pub mod simd;
mod update;
mod vectorised;
mod winograd;

use std::rc::Rc;

use crate::device::interface::{
    Accumulate, BatchNormBackward, BatchNormForward, Conv2dForward, Conv2dInputGradient, Conv2dPass, Conv2dShape,
    Conv2dWeightGradient, CrossEntropy, Device, Features, Gradient, MaxPoolWindow, Mix, UpdateArguments,
};
use crate::device::threads;
use crate::error::{Error, Result};
use crate::tensor::{Memory, Shape, Tensor};
use memory::Views;
pub(crate) use vectorised::vectorised;

/// The processor of this machine. Work is distributed over the thread pool of [`threads`]; results do not depend on its
/// size.
pub struct Cpu;

impl Device for Cpu {
    fn name(&self) -> String {
        "cpu".into()
    }

    fn description(&self) -> String {
        let threads = threads::count();
        let unit = if threads == 1 { "thread" } else { "threads" };
        format!("{threads} {unit}, {}", simd::Level::current())
    }

    fn features(&self) -> Features {
        Features { conv2d_batch_norm: true, shares_host_memory: true, ..Features::default() }
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(memory::available())
    }

    fn allocate(&self, bytes: usize) -> Result<Rc<Memory>> {
        memory::allocate(bytes)
    }

    fn upload(&self, source: &[u8], target: &Tensor) -> Result<()> {
        check_copy(source.len(), target)?;
        memory::bytes_mut(target).copy_from_slice(source);
        Ok(())
    }

    fn download(&self, source: &Tensor, target: &mut [u8]) -> Result<()> {
        check_copy(target.len(), source)?;
        target.copy_from_slice(memory::bytes(source));
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn statistics_rows(&self, shape: Shape) -> usize {
        batch_norm::statistics_rows(shape)
    }

    fn conv2d_workspace(&self, shape: &Conv2dShape, pass: Conv2dPass) -> usize {
        conv2d::workspace_len(shape, pass) * 4
    }

    fn conv2d_forward(&self, shape: &Conv2dShape, arguments: &Conv2dForward) -> Result<()> {
        let mut views = Views::default();
        let workspace = views.workspace(arguments.workspace);
        let output = views.write(arguments.output);
        conv2d::forward(shape, views.read(arguments.input), views.read(arguments.weight), output, workspace);
        if let Some(statistics) = arguments.statistics {
            batch_norm::statistics(output, shape.output_channels, views.write(statistics));
        }
        Ok(())
    }

    fn conv2d_batch_norm(
        &self,
        shape: &Conv2dShape,
        convolution: &Conv2dForward,
        batch_norm: &BatchNormForward,
    ) -> Result<()> {
        let mut views = Views::default();
        let finish = batch_norm::Finish::new(batch_norm, &mut views);
        let workspace = views.workspace(convolution.workspace);
        let output = views.write(convolution.output);
        let (input, weight) = (views.read(convolution.input), views.read(convolution.weight));
        conv2d::forward_and_finish(shape, input, weight, output, Some(&finish), workspace);
        Ok(())
    }

    fn conv2d_input_gradient(&self, shape: &Conv2dShape, arguments: &Conv2dInputGradient) -> Result<()> {
        let mut views = Views::default();
        let workspace = views.workspace(arguments.workspace);
        let input_gradient = views.write(&arguments.input_gradient.tensor);
        let (output_gradient, weight) = (views.read(arguments.output_gradient), views.read(arguments.weight));
        let accumulate = arguments.input_gradient.accumulate;
        conv2d::input_gradient(shape, output_gradient, weight, input_gradient, accumulate, workspace);
        Ok(())
    }

    fn conv2d_weight_gradient(&self, shape: &Conv2dShape, arguments: &Conv2dWeightGradient) -> Result<()> {
        let mut views = Views::default();
        let workspace = views.workspace(arguments.workspace);
        let weight_gradient = views.write(arguments.weight_gradient);
        let (input, output_gradient) = (views.read(arguments.input), views.read(arguments.output_gradient));
        conv2d::weight_gradient(shape, input, output_gradient, weight_gradient, workspace);
        Ok(())
    }

    fn batch_norm_statistics(&self, input: &Tensor, statistics: &Tensor) -> Result<()> {
        batch_norm::statistics_of(input, statistics);
        Ok(())
    }

    fn batch_norm_workspace(&self, shape: Shape) -> usize {
        batch_norm::workspace_len(shape) * 4
    }

    fn batch_norm_forward(&self, arguments: &BatchNormForward) -> Result<()> {
        batch_norm::forward(arguments);
        Ok(())
    }

    fn batch_norm_backward(&self, arguments: &BatchNormBackward) -> Result<()> {
        batch_norm::backward(arguments);
        Ok(())
    }

    fn max_pool_forward(
        &self,
        window: MaxPoolWindow,
        input: &Tensor,
        output: &Tensor,
        indices: Option<&Tensor>,
    ) -> Result<()> {
        max_pool::forward(window, input, output, indices);
        Ok(())
    }

    fn max_pool_backward(
        &self,
        window: MaxPoolWindow,
        indices: &Tensor,
        output_gradient: &Tensor,
        input_gradient: &Gradient,
    ) -> Result<()> {
        max_pool::backward(window, indices, output_gradient, input_gradient);
        Ok(())
    }

    fn avg_pool_forward(&self, input: &Tensor, output: &Tensor) -> Result<()> {
        avg_pool::forward(input, output);
        Ok(())
    }

    fn avg_pool_backward(&self, output_gradient: &Tensor, input_gradient: &Gradient) -> Result<()> {
        avg_pool::backward(output_gradient, input_gradient);
        Ok(())
    }

    fn linear_workspace(&self, batch: usize, inputs: usize, outputs: usize, pass: Conv2dPass) -> usize {
        linear::workspace_len(batch, inputs, outputs, pass) * 4
    }

    fn linear_forward(
        &self,
        input: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        output: &Tensor,
        workspace: &Tensor,
    ) -> Result<()> {
        linear::forward(input, weight, bias, output, workspace);
        Ok(())
    }

    fn linear_input_gradient(
        &self,
        output_gradient: &Tensor,
        weight: &Tensor,
        input_gradient: &Gradient,
        workspace: &Tensor,
    ) -> Result<()> {
        linear::input_gradient(output_gradient, weight, input_gradient, workspace);
        Ok(())
    }

    fn linear_weight_gradient(
        &self,
        input: Option<&Tensor>,
        output_gradient: &Tensor,
        weight_gradient: Option<&Tensor>,
        bias_gradient: Option<&Tensor>,
        workspace: &Tensor,
    ) -> Result<()> {
        if let Some((input, target)) = input.zip(weight_gradient) {
            linear::weight_gradient(input, output_gradient, target, workspace);
        }
        if let Some(target) = bias_gradient {
            linear::bias_gradient(output_gradient, target);
        }
        Ok(())
    }

    fn cross_entropy(&self, arguments: &CrossEntropy) -> Result<()> {
        cross_entropy::run(arguments);
        Ok(())
    }

    fn mix(&self, arguments: &Mix) -> Result<()> {
        mix::run(arguments);
        Ok(())
    }

    fn accumulate(&self, arguments: &Accumulate) -> Result<()> {
        accumulate::run(arguments);
        Ok(())
    }

    fn gradient_norm_sums(&self, gradients: &[usize]) -> usize {
        gradients.iter().map(|&len| gradient_norm::sums(len)).sum()
    }

    fn gradient_norm(&self, gradients: &[&Tensor], sums: &Tensor, norm: &Tensor) -> Result<()> {
        gradient_norm::run(gradients, sums, norm);
        Ok(())
    }

    fn update(&self, arguments: &UpdateArguments) -> Result<()> {
        update::run(arguments);
        Ok(())
    }
}

fn check_copy(bytes: usize, tensor: &Tensor) -> Result<()> {
    if bytes != tensor.bytes() {
        return Err(Error::new(format!("a copy of {bytes} bytes to or from a tensor of {}", tensor.bytes())));
    }
    Ok(())
}
