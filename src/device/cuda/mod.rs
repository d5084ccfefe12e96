//! The CUDA back end: launch code for the kernels of `kernels/`, written against [`driver::Driver`].

mod arguments;
mod augment;
mod avg_pool;
mod batch_norm;
mod conv2d;
mod cross_entropy;
pub mod driver;
pub mod dry_run;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod gpus;
mod linear;
mod max_pool;
pub mod modules;
pub mod nvidia;
mod sgd;
mod statistics;

use std::rc::Rc;

use super::{
    Augment, BatchNormBackward, BatchNormForward, Conv2dForward, Conv2dInputGradient, Conv2dPass, Conv2dShape,
    Conv2dWeightGradient, CrossEntropy, Device, Gradient, MaxPoolWindow, Precision, Recording, SgdStep,
};
use crate::error::{Error, Result};
use crate::tensor::{ElementType, Memory, Shape, Tensor};
use arguments::KernelArguments;
use driver::{Capabilities, Driver, Launch, Work};

/// Counters of arrived blocks. Zero between launches: the last block to arrive sets its counter back.
const COUNTERS: usize = 1 << 16;

/// A device that runs the kernels of `kernels/`.
pub struct Cuda {
    driver: Box<dyn Driver>,
    capabilities: Capabilities,
    precision: Precision,
    counters: Tensor,
}

impl Cuda {
    /// Kernels in this precision on this driver.
    ///
    /// # Errors
    /// When the hardware has no tensor cores for the precision, or no memory is left.
    pub fn new(driver: Box<dyn Driver>, precision: Precision) -> Result<Self> {
        let capabilities = driver.capabilities();
        if precision != Precision::Fp32 && capabilities.compute_capability < 80 {
            let (major, minor) = (capabilities.compute_capability / 10, capabilities.compute_capability % 10);
            return Err(Error::new(format!(
                "precision {precision}: needs compute capability 8.0 or later, {} has {major}.{minor}",
                driver.name()
            ))
            .hint("use fp32"));
        }
        let counters = Tensor::new(driver.allocate(COUNTERS * 4)?, 0, [COUNTERS].into(), ElementType::I32);
        // An emulator may fill fresh memory otherwise.
        driver.upload(&vec![0; counters.bytes()], counters.address())?;
        Ok(Self { driver, capabilities, precision, counters })
    }

    /// Who runs the kernels.
    pub fn driver(&self) -> &dyn Driver {
        self.driver.as_ref()
    }

    /// Counters of arrived blocks for one launch, all zero: so many of them.
    fn counters_for(&self, count: usize) -> Result<u64> {
        match count <= COUNTERS {
            true => Ok(self.counters.address()),
            false => {
                Err(Error::new(format!("{count} groups of blocks, of at most {COUNTERS}")).hint("use smaller batches"))
            }
        }
    }

    fn launch(
        &self,
        kernel: &'static str,
        grid: [usize; 3],
        block: usize,
        shared_bytes: usize,
        arguments: &impl KernelArguments,
        work: Work,
    ) -> Result<()> {
        let extent = |extent: usize| {
            u32::try_from(extent).map_err(|_| Error::new(format!("{kernel}: a grid of {grid:?} blocks is too large")))
        };
        let grid = [extent(grid[0])?, extent(grid[1])?, extent(grid[2])?];
        if grid[1].max(grid[2]) > 65535 {
            return Err(Error::new(format!("{kernel}: a grid of {grid:?} blocks is too large")));
        }
        self.driver.launch(&Launch {
            kernel,
            grid,
            block: [extent(block)?, 1, 1],
            shared_bytes: extent(shared_bytes)?,
            arguments: arguments.as_bytes(),
            work,
        })
    }
}

impl Device for Cuda {
    fn name(&self) -> String {
        self.driver.name()
    }

    fn description(&self) -> String {
        self.driver.description()
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

    fn has_augment(&self) -> bool {
        true
    }

    fn augment(&self, arguments: &Augment) -> Result<()> {
        augment::run(self, arguments)
    }

    fn statistics_rows(&self, shape: Shape) -> usize {
        conv2d::statistics_rows(shape)
    }

    fn conv2d_workspace(&self, shape: &Conv2dShape, pass: Conv2dPass) -> usize {
        conv2d::workspace(self, shape, pass)
    }

    fn conv2d_forward(&self, shape: &Conv2dShape, arguments: &Conv2dForward) -> Result<()> {
        conv2d::forward(self, shape, arguments)
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
        positions: Option<&Tensor>,
    ) -> Result<()> {
        max_pool::forward(self, window, input, output, positions)
    }

    fn max_pool_backward(
        &self,
        window: MaxPoolWindow,
        positions: &Tensor,
        output_gradient: &Tensor,
        input_gradient: &Gradient,
    ) -> Result<()> {
        max_pool::backward(self, window, positions, output_gradient, input_gradient)
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

    fn gradient_norm_sums(&self, gradients: &[usize]) -> usize {
        gradients.len() * sgd::NORM_BLOCKS
    }

    fn gradient_norm(&self, gradients: &[&Tensor], sums: &Tensor, norm: &Tensor) -> Result<()> {
        sgd::gradient_norm(self, gradients, sums, norm)
    }

    fn sgd(&self, arguments: &SgdStep) -> Result<()> {
        sgd::step(self, arguments)
    }
}

/// The kernel for this element type.
fn of_type(element_type: ElementType, fp32: &'static str, bf16: &'static str) -> &'static str {
    if element_type == ElementType::Bf16 { bf16 } else { fp32 }
}

/// Elements of 16 bytes, where groups of so many do not cross a pixel; else 1.
fn group_length(tensor: &Tensor) -> usize {
    let length = 16 / tensor.element_type().size();
    if tensor.shape().channels().is_multiple_of(length) { length } else { 1 }
}

/// How many groups of `length` elements a tensor has. Kernels that find their place by division count them in 32 bits,
/// because 64-bit divisions would take longer than the memory.
fn group_count(tensor: &Tensor, length: usize) -> Result<u32> {
    u32::try_from(tensor.len() / length)
        .ok()
        .filter(|&count| count <= u32::MAX - 1024)
        .ok_or_else(|| Error::new(format!("{tensor:?} has too many elements")).hint("use smaller batches"))
}

fn check_copy(bytes: usize, tensor: &Tensor) -> Result<()> {
    if bytes != tensor.bytes() {
        return Err(Error::new(format!("a copy of {bytes} bytes to or from a tensor of {}", tensor.bytes())));
    }
    Ok(())
}
