//! The CUDA back end: launch code for the kernels of `kernels/`, written against [`driver::Driver`].

mod accumulate;
mod arguments;
mod augment;
mod avg_pool;
mod batch_norm;
mod batch_norm_max_pool;
mod conv2d;
mod cross_entropy;
pub mod driver;
pub mod dry_run;
#[cfg(feature = "emulator")]
pub mod emulator;
mod engine;
pub mod gpus;
mod gradient_norm;
mod linear;
mod max_pool;
mod mix;
pub mod modules;
pub mod nvidia;
pub mod probe;
mod statistics;
mod update;

use std::rc::Rc;

use crate::device::interface::{
    Accumulate, Augment, BatchNormBackward, BatchNormForward, Conv2dForward, Conv2dInputGradient, Conv2dPass,
    Conv2dShape, Conv2dWeightGradient, CrossEntropy, Device, Features, Gradient, MaxPoolWindow, Mix, Precision,
    Recording, UpdateArguments,
};
use crate::error::{Error, Result};
use crate::tensor::{Memory, Shape, Tensor};
pub use engine::Cuda;

impl Device for Cuda {
    fn name(&self) -> String {
        self.driver.name()
    }

    fn description(&self) -> String {
        self.driver.description()
    }

    fn features(&self) -> Features {
        Features { augment: true, conv2d_batch_norm: true, ..Features::default() }
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        self.driver.free_bytes()
    }

    fn allocate(&self, bytes: usize) -> Result<Rc<Memory>> {
        self.driver.allocate(bytes)
    }

    fn upload(&self, source: &[u8], target: &Tensor) -> Result<()> {
        check_copy(source.len(), target)?;
        self.driver.upload(source, target.address())
    }

    fn download(&self, source: &Tensor, target: &mut [u8]) -> Result<()> {
        check_copy(target.len(), source)?;
        self.driver.download(source.address(), target)
    }

    fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }

    fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Option<Rc<dyn Recording>>> {
        match self.driver.can_record() {
            true => self.driver.record(step).map(Some),
            false => Ok(None),
        }
    }

    fn augment(&self, arguments: &Augment) -> Result<()> {
        augment::run(self, arguments)
    }

    fn mix(&self, arguments: &Mix) -> Result<()> {
        mix::run(self, arguments)
    }

    fn statistics_rows(&self, shape: Shape) -> usize {
        conv2d::statistics_rows(shape)
    }

    fn conv2d_workspace(&self, shape: &Conv2dShape, pass: Conv2dPass) -> usize {
        conv2d::workspace(self, shape, pass)
    }

    fn conv2d_forward(&self, shape: &Conv2dShape, arguments: &Conv2dForward) -> Result<()> {
        conv2d::forward(self, shape, arguments, None)
    }

    fn conv2d_batch_norm(
        &self,
        shape: &Conv2dShape,
        convolution: &Conv2dForward,
        batch_norm: &BatchNormForward,
    ) -> Result<()> {
        conv2d::forward(self, shape, convolution, Some(batch_norm))
    }

    fn reducing_workspace(&self, shape: &Conv2dShape) -> Option<usize> {
        conv2d::reducing_workspace(self, shape)
    }

    fn conv2d_input_gradient(&self, shape: &Conv2dShape, arguments: &Conv2dInputGradient) -> Result<()> {
        conv2d::input_gradient(self, shape, arguments)
    }

    fn conv2d_weight_gradient(&self, shape: &Conv2dShape, arguments: &Conv2dWeightGradient) -> Result<()> {
        conv2d::weight_gradient(self, shape, arguments)
    }

    fn batch_norm_statistics(&self, input: &Tensor, statistics: &Tensor) -> Result<()> {
        batch_norm::statistics(self, input, statistics)
    }

    fn batch_norm_workspace(&self, shape: Shape) -> usize {
        batch_norm::workspace(shape)
    }

    fn batch_norm_forward(&self, arguments: &BatchNormForward) -> Result<()> {
        batch_norm::forward(self, arguments)
    }

    fn batch_norm_backward(&self, arguments: &BatchNormBackward) -> Result<()> {
        batch_norm::backward(self, arguments)
    }

    fn max_pool_forward(
        &self,
        window: MaxPoolWindow,
        input: &Tensor,
        output: &Tensor,
        indices: Option<&Tensor>,
    ) -> Result<()> {
        max_pool::forward(self, window, input, output, indices)
    }

    fn max_pool_backward(
        &self,
        window: MaxPoolWindow,
        indices: &Tensor,
        output_gradient: &Tensor,
        input_gradient: &Gradient,
    ) -> Result<()> {
        max_pool::backward(self, window, indices, output_gradient, input_gradient)
    }

    fn has_batch_norm_max_pool(&self, window: MaxPoolWindow) -> bool {
        window == batch_norm_max_pool::WINDOW
    }

    fn batch_norm_max_pool_forward(
        &self,
        window: MaxPoolWindow,
        batch_norm: &BatchNormForward,
        indices: &Tensor,
    ) -> Result<()> {
        batch_norm_max_pool::forward(self, window, batch_norm, indices)
    }

    fn batch_norm_max_pool_backward(
        &self,
        window: MaxPoolWindow,
        batch_norm: &BatchNormBackward,
        indices: &Tensor,
    ) -> Result<()> {
        batch_norm_max_pool::backward(self, window, batch_norm, indices)
    }

    fn avg_pool_forward(&self, input: &Tensor, output: &Tensor) -> Result<()> {
        avg_pool::forward(self, input, output)
    }

    fn avg_pool_backward(&self, output_gradient: &Tensor, input_gradient: &Gradient) -> Result<()> {
        avg_pool::backward(self, output_gradient, input_gradient)
    }

    fn linear_workspace(&self, _batch: usize, _inputs: usize, _outputs: usize, _pass: Conv2dPass) -> usize {
        0
    }

    fn linear_forward(
        &self,
        input: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        output: &Tensor,
        _workspace: &Tensor,
    ) -> Result<()> {
        linear::forward(self, input, weight, bias, output)
    }

    fn linear_input_gradient(
        &self,
        output_gradient: &Tensor,
        weight: &Tensor,
        input_gradient: &Gradient,
        _workspace: &Tensor,
    ) -> Result<()> {
        linear::input_gradient(self, output_gradient, weight, input_gradient)
    }

    fn linear_weight_gradient(
        &self,
        input: Option<&Tensor>,
        output_gradient: &Tensor,
        weight_gradient: Option<&Tensor>,
        bias_gradient: Option<&Tensor>,
        _workspace: &Tensor,
    ) -> Result<()> {
        linear::weight_gradient(self, input, output_gradient, weight_gradient, bias_gradient)
    }

    fn cross_entropy(&self, arguments: &CrossEntropy) -> Result<()> {
        cross_entropy::run(self, arguments)
    }

    fn accumulate(&self, arguments: &Accumulate) -> Result<()> {
        accumulate::run(self, arguments)
    }

    fn gradient_norm_sums(&self, gradients: &[usize]) -> usize {
        gradients.len() * gradient_norm::BLOCKS
    }

    fn gradient_norm(&self, gradients: &[&Tensor], sums: &Tensor, norm: &Tensor) -> Result<()> {
        gradient_norm::run(self, gradients, sums, norm)
    }

    fn update(&self, arguments: &UpdateArguments) -> Result<()> {
        update::run(self, arguments)
    }
}

fn check_copy(bytes: usize, tensor: &Tensor) -> Result<()> {
    if bytes != tensor.bytes() {
        return Err(Error::new(format!("a copy of {bytes} bytes to or from a tensor of {}", tensor.bytes())));
    }
    Ok(())
}
