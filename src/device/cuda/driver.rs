//! The seam between launch code and what runs the launches: the NVIDIA driver, the emulator, or nothing (a dry run).

use std::rc::Rc;
use std::time::Duration;

use crate::device::interface::Recording;
use crate::error::Result;
use crate::tensor::Memory;

/// The unit of a multiprocessor that bounds a kernel's arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ArithmeticUnit {
    /// Float32 fused multiply-add.
    Float32,
    /// Tensor cores with tf32 operands.
    TensorTf32,
    /// Tensor cores with bf16 operands.
    TensorBf16,
}

/// The minimal cost of a launch, for the roofline: every operand is read once, every result written once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Additions and multiplications, each counted as one.
    pub operations: u64,
    /// The unit that computes them.
    pub unit: ArithmeticUnit,
    /// Bytes of device memory read.
    pub bytes_read: u64,
    /// Bytes of device memory written.
    pub bytes_written: u64,
}

/// One kernel launch.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// The `extern "C"` name of the `__global__` function.
    pub kernel: &'static str,
    /// Blocks in x, y and z. At most 65535 in y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
    /// The bytes of the kernel's only parameter, a struct passed by value.
    pub arguments: &'a [u8],
    /// The minimal cost, for the roofline.
    pub work: Work,
}

/// The properties of the hardware that launch code needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// 90 for compute capability 9.0.
    pub compute_capability: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Maximum dynamic shared memory of a block, in bytes.
    pub shared_bytes_per_block: u32,
}

/// Memory, copies and launches on one device. All work is issued from one thread to one stream, in order.
pub trait Driver {
    /// Short name as on the command line: `cuda:0`, `emulator`.
    fn name(&self) -> String;

    /// One line about the hardware.
    fn description(&self) -> String;

    /// The properties that launch code needs.
    fn capabilities(&self) -> Capabilities;

    /// Bytes that can still be allocated, if the device reports them.
    fn free_bytes(&self) -> Result<Option<usize>>;

    /// Zeroed memory, aligned to at least 256 bytes.
    fn allocate(&self, bytes: usize) -> Result<Rc<Memory>>;

    /// Copies from the host. The source may be reused when it returns.
    fn upload(&self, source: &[u8], address: u64) -> Result<()>;

    /// Copies to the host, after everything that was issued before.
    fn download(&self, address: u64, target: &mut [u8]) -> Result<()>;

    /// Issues a kernel launch.
    fn launch(&self, launch: &Launch) -> Result<()>;

    /// Waits for everything issued so far. A fault of a kernel is reported here at the latest, with the kernel's name if
    /// it is known.
    fn synchronize(&self) -> Result<()>;

    /// Whether launches can be recorded: not while each one is waited for.
    fn can_record(&self) -> bool {
        true
    }

    /// Records the launches that `step` issues instead of running them. `step` may neither copy nor synchronise.
    fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Rc<dyn Recording>>;

    /// Measures how long the device takes for the launches of `work`.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration>;
}
