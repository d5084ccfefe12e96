//! The device itself: a driver, what its hardware offers, and what the launch code of every operation shares.

use super::arguments::KernelArguments;
use super::driver::{Capabilities, Driver, Launch, Work};
use crate::device::interface::Precision;
use crate::error::{Error, Result};
use crate::tensor::{ElementType, Tensor};

/// Counters of arrived blocks. Zero between launches: the last block to arrive resets its counter.
pub(super) const COUNTERS: usize = 1 << 16;

/// The multiprocessors for which sums are divided into parts: those of an H100, on every GPU, so that the order of additions
/// follows from the shape alone. What changes no sum depends on the GPU's own number, and so do weight gradients on tensor cores.
pub(super) const WORKERS: usize = 132;

/// A device that runs the kernels of `kernels/`.
pub struct Cuda {
    pub(super) driver: Box<dyn Driver>,
    pub(super) capabilities: Capabilities,
    pub(super) precision: Precision,
    pub(super) counters: Tensor,
}

impl Cuda {
    /// Creates a device that computes in this precision on this driver.
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
        // An emulator may fill fresh memory with other values.
        driver.upload(&vec![0; counters.bytes()], counters.address())?;
        Ok(Self { driver, capabilities, precision, counters })
    }

    /// The driver that runs the kernels.
    pub fn driver(&self) -> &dyn Driver {
        self.driver.as_ref()
    }

    /// The address of `count` counters of arrived blocks, all zero, for one launch.
    pub(super) fn counters_for(&self, count: usize) -> Result<u64> {
        match count <= COUNTERS {
            true => Ok(self.counters.address()),
            false => Err(Error::new(format!("{count} groups of blocks, expected at most {COUNTERS}"))
                .hint("use smaller batches")),
        }
    }

    /// Launches a kernel with blocks of `block` threads.
    pub(super) fn launch(
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

/// The kernel for this element type.
pub(super) fn of_type(element_type: ElementType, fp32: &'static str, bf16: &'static str) -> &'static str {
    if element_type == ElementType::Bf16 { bf16 } else { fp32 }
}

/// The number of elements in 16 bytes, if groups of that many do not cross a pixel; otherwise 1.
pub(super) fn group_length(tensor: &Tensor) -> usize {
    let length = 16 / tensor.element_type().size();
    if tensor.shape().channels().is_multiple_of(length) { length } else { 1 }
}

/// The number of groups of `length` elements in a tensor. Kernels that compute positions by division count them in 32 bits,
/// because 64-bit divisions would take longer than the memory accesses.
pub(super) fn group_count(tensor: &Tensor, length: usize) -> Result<u32> {
    u32::try_from(tensor.len() / length)
        .ok()
        .filter(|&count| count <= u32::MAX - 1024)
        .ok_or_else(|| Error::new(format!("{tensor:?} has too many elements")).hint("use smaller batches"))
}
