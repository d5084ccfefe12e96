//! Opens the CUDA device of `--device`, and explains why one is unavailable.

use super::output::warn;
use crate::device::cuda::driver::Driver;
use crate::device::cuda::modules::MODULES;
use crate::device::cuda::nvidia::{self, Gpu, Nvidia};
use crate::error::{Error, Result};

/// The number of the GPU in `cuda:N`; `None` for other names.
pub(super) fn numbered_gpu(name: &str) -> Option<usize> {
    name.strip_prefix("cuda:").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

/// Opens the GPU of `--device cuda:N`.
pub(super) fn open_cuda(name: &str, index: usize) -> Result<Box<dyn Driver>> {
    let about = format!("--device {name}");
    require_kernels().map_err(|error| error.about(&about))?;
    let driver = Nvidia::open(index, MODULES).map_err(|error| error.about(&about))?;
    Ok(Box::new(driver))
}

/// Opens the first GPU; `None` if there is none. Warns if there is a GPU that cannot be used.
pub(super) fn first_cuda() -> Result<Option<Box<dyn Driver>>> {
    if MODULES.is_empty() || !nvidia::is_driver_present() {
        return Ok(None);
    }
    let opened = match nvidia::gpus() {
        Ok(gpus) if gpus.is_empty() => return Ok(None),
        Ok(_) => Nvidia::open(0, MODULES),
        Err(error) => Err(error),
    };
    match opened {
        Ok(driver) => Ok(Some(Box::new(driver))),
        Err(error) => {
            warn(&format!("using the CPU: {}", error.message()));
            Ok(None)
        }
    }
}

fn require_kernels() -> Result<()> {
    match MODULES.is_empty() {
        true => Err(Error::new("this build has no CUDA kernels").hint(
            "run scripts/install-nvcc.sh, which installs the CUDA compiler without root, then `cargo build --release`",
        )),
        false => Ok(()),
    }
}

/// A GPU and the reasons why it is unavailable; without a GPU, `description` is `None`.
pub(super) struct CudaState {
    pub name: String,
    pub description: Option<String>,
    pub missing: Vec<Error>,
}

/// The state of every GPU, or one entry that explains why there is none.
pub(super) fn cuda_states() -> Vec<CudaState> {
    let kernels = require_kernels().err();
    let state = |gpu: Gpu| {
        let missing = match &kernels {
            Some(error) => Some(error.clone()),
            // Only the driver knows whether it can load the kernels.
            None => Nvidia::open(gpu.index, MODULES).err(),
        };
        let description = Some(gpu.description());
        CudaState { name: format!("cuda:{}", gpu.index), description, missing: missing.into_iter().collect() }
    };
    let none = |error: Error| {
        let missing = kernels.iter().cloned().chain([error]).collect();
        vec![CudaState { name: "cuda".into(), description: None, missing }]
    };
    match nvidia::gpus() {
        Ok(gpus) if gpus.is_empty() => none(nvidia::no_device()),
        Ok(gpus) => gpus.into_iter().map(state).collect(),
        Err(error) => none(error),
    }
}

#[cfg(test)]
mod tests {
    use super::numbered_gpu;

    #[test]
    fn names_of_gpus_are_numbers() {
        assert_eq!(numbered_gpu("cuda:0"), Some(0));
        assert_eq!(numbered_gpu("cuda:12"), Some(12));
        for name in [
            "cuda",
            "cuda:",
            "cuda:x",
            "cuda:-1",
            "cuda:+1",
            "cuda1",
            "cuda:1:2",
            "cpu",
            "CUDA",
            "cuda:99999999999999999999",
        ] {
            assert_eq!(numbered_gpu(name), None, "{name}");
        }
    }
}
