//! The compiled kernels that `build/cuda.rs` embedded in this build, if there was an nvcc.

/// The fatbin of one `.cu` file.
pub struct Module {
    /// Name of the file.
    pub source: &'static str,
    /// The bytes that the driver loads.
    pub image: &'static [u8],
    /// Its `extern "C"` kernels.
    pub kernels: &'static [&'static str],
}

#[cfg(cuda_kernels)]
mod compiled {
    use super::Module;

    /// The driver reads whole words of an image.
    #[repr(C, align(16))]
    struct Aligned<Bytes>(Bytes);

    include!(concat!(env!("OUT_DIR"), "/cuda/modules.rs"));
}

#[cfg(not(cuda_kernels))]
mod compiled {
    use super::Module;

    /// The CUDA version of the nvcc that compiled the kernels.
    pub const CUDA_VERSION: (u32, u32) = (0, 0);
    /// The architectures that they were compiled for.
    pub const CODES: &[&str] = &[];
    /// One per `.cu` file.
    pub static MODULES: &[Module] = &[];
    /// Those of the hardware probe.
    pub static PROBE: &[Module] = &[];
}

pub use compiled::{CODES, CUDA_VERSION, MODULES, PROBE};
