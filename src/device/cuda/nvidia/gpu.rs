//! The properties of a GPU that are known before it is opened.

use crate::device::cuda::driver::Capabilities;

/// Environment variable: wait after every launch, so that a fault is reported with the name of its kernel.
pub(super) const SYNC_VARIABLE: &str = "RETUNE_CUDA_SYNC";

/// A GPU that the driver lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, as in `cuda:0`.
    pub index: usize,
    /// The vendor's name.
    pub name: String,
    /// 90 for compute capability 9.0.
    pub compute_capability: u32,
    /// Bytes of memory, including those in use.
    pub bytes: usize,
    /// The newest CUDA version that the driver supports.
    pub driver: (u32, u32),
    pub(super) capabilities: Capabilities,
}

impl Gpu {
    /// One line about it.
    pub fn description(&self) -> String {
        let Self { name, compute_capability, bytes, driver, .. } = self;
        let (major, minor) = (compute_capability / 10, compute_capability % 10);
        let memory = *bytes as f64 / (1u64 << 30) as f64;
        let (cuda, point) = driver;
        format!("{name}, compute capability {major}.{minor}, {memory:.1} GiB, driver for CUDA {cuda}.{point}")
    }
}
