//! The meanings of the driver's error codes, each with a hint how to fix the problem.

use std::ffi::CStr;

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::CUresult;

use super::gpu::{Gpu, SYNC_VARIABLE};
use crate::error::Error;

pub(super) fn no_such_device(index: usize, all: &[Gpu]) -> Error {
    if all.is_empty() {
        return no_device();
    }
    let there: Vec<String> = all.iter().map(|gpu| format!("cuda:{} ({})", gpu.index, gpu.name)).collect();
    Error::usage(format!("there is no cuda:{index}")).hint(format!("use {}", there.join(" or ")))
}

/// The driver works but lists no GPU.
pub fn no_device() -> Error {
    Error::new("NVIDIA's driver finds no GPU")
        .hint("check CUDA_VISIBLE_DEVICES, which hides GPUs that it does not list")
}

/// The oldest version of NVIDIA's driver that runs the kernels of CUDA 13, with which release builds are made.
pub(super) const CUDA_13_DRIVER: u32 = 580;

/// 13000 is CUDA 13.0.
pub(super) fn split_version(version: i32) -> (u32, u32) {
    let version = u32::try_from(version).unwrap_or(0);
    (version / 1000, version % 1000 / 10)
}

pub(super) fn initialisation_failure(code: CUresult, description: &str) -> Error {
    match code {
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            Error::new("NVIDIA's driver library and its kernel module are of different versions")
                .hint("restart the machine after an update of the driver")
        }
        CUresult::CUDA_ERROR_STUB_LIBRARY => Error::new("libcuda.so.1 is the toolkit's stub, not the driver")
            .hint("remove the folder `stubs` from LD_LIBRARY_PATH"),
        _ => Error::new(format!("NVIDIA's driver does not start: {description}"))
            .hint("run nvidia-smi, which shows the state of the driver"),
    }
}

/// The compiler and the architectures of a build's kernels.
pub(super) struct Build {
    pub cuda: (u32, u32),
    pub codes: &'static [&'static str],
}

/// Why the driver refused the kernels of a source file.
pub(super) fn load_failure(code: CUresult, description: &str, source: &str, gpu: &Gpu, build: &Build) -> Error {
    let (built, driver) = (build.cuda, gpu.driver);
    let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    let is_refused = matches!(
        code,
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_INVALID_PTX
    );
    if is_refused && driver < built {
        return Error::new(format!(
            "the driver is too old: it runs CUDA {}, and the kernels of this build need {}",
            version(driver),
            version(built)
        ))
        .hint(match built.0 {
            13 => format!("update NVIDIA's driver to {CUDA_13_DRIVER} or later, or build with an older nvcc ($NVCC)"),
            _ => format!(
                "update NVIDIA's driver to one for CUDA {}, or build with an older nvcc ($NVCC)",
                version(built)
            ),
        });
    }
    let (major, minor) = (gpu.compute_capability / 10, gpu.compute_capability % 10);
    if code == CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU {
        let message = format!(
            "this build has no kernels for {} (compute capability {major}.{minor}), only {}",
            gpu.name,
            build.codes.join(", ")
        );
        return Error::new(message).hint(match gpu.compute_capability {
            0..75 => "GPUs before compute capability 7.5 are not supported; use --device cpu".to_string(),
            capability => format!("build with RETUNE_CUDA_ARCHS={capability}"),
        });
    }
    Error::new(format!("cannot load the kernels of {source}: {description}"))
        .hint("run `retune devices` to see the driver and the GPU")
}

/// Whether an error is about a kernel that ran, whichever call reports it. After such an error, every call in the context fails
/// with it.
pub(super) fn is_fault(code: CUresult) -> bool {
    matches!(
        code,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUresult::CUDA_ERROR_CONTAINED
    )
}

/// The error for a fault, with the kernels that may have caused it, in the order of their launches.
pub(super) fn kernel_fault(device: &str, description: &str, launched: &[&str]) -> Error {
    let mut kernels: Vec<&str> = Vec::new();
    for kernel in launched.iter().rev() {
        if !kernels.contains(kernel) {
            kernels.push(kernel);
        }
    }
    let most = 12;
    let rest = kernels.len().saturating_sub(most);
    kernels.truncate(most);
    kernels.reverse();
    let and_others = if rest > 0 { format!("{rest} others, ") } else { String::new() };
    match kernels.as_slice() {
        [] => Error::new(format!("{device}: {description}")).hint("run the command again: the GPU has lost its memory"),
        [kernel] => Error::new(format!("{device}: kernel {kernel}: {description}"))
            .hint("this is a bug: please report it with the command that causes it"),
        _ => Error::new(format!("{device}: {description}, in one of the kernels {and_others}{}", kernels.join(", ")))
            .hint(format!("run the command again with {SYNC_VARIABLE}=1 to find the kernel, and please report it")),
    }
}

pub(super) fn describe(code: CUresult) -> String {
    let error = DriverError(code);
    let text = error.error_string().map(CStr::to_string_lossy).unwrap_or_default();
    format!("{text} ({code:?})")
}

pub(super) fn failure(doing: &str, DriverError(code): DriverError) -> Error {
    Error::new(format!("{doing}: {}", describe(code)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::driver::Capabilities;

    const BUILD: Build = Build { cuda: (13, 0), codes: &["sm_80", "sm_90", "compute_90"] };

    fn gpu(compute_capability: u32, driver: (u32, u32)) -> Gpu {
        let capabilities = Capabilities { compute_capability, multiprocessors: 1, shared_bytes_per_block: 1 };
        Gpu { index: 0, name: "GPU X".into(), compute_capability, bytes: 1 << 30, driver, capabilities }
    }

    fn refused(code: CUresult, gpu: Gpu) -> String {
        load_failure(code, "the driver's reason", "sgd.cu", &gpu, &BUILD).to_string()
    }

    #[test]
    fn versions_are_split() {
        assert_eq!(split_version(13000), (13, 0));
        assert_eq!(split_version(12040), (12, 4));
        assert_eq!(split_version(-1), (0, 0));
    }

    #[test]
    fn refused_kernels_tell_driver_and_gpu_apart() {
        let no_binary = CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU;
        for code in [no_binary, CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION, CUresult::CUDA_ERROR_INVALID_IMAGE] {
            let text = refused(code, gpu(90, (12, 4)));
            assert!(text.contains("runs CUDA 12.4, and the kernels of this build need 13.0\nhint: "), "{text}");
            assert!(text.contains("580"), "{text}");
        }
        let text = refused(no_binary, gpu(75, (13, 0)));
        assert!(text.contains("GPU X (compute capability 7.5), only sm_80, sm_90, compute_90"), "{text}");
        assert!(text.contains("RETUNE_CUDA_ARCHS=75"), "{text}");
        let text = refused(no_binary, gpu(61, (13, 0)));
        assert!(text.contains("--device cpu"), "{text}");
        let text = refused(CUresult::CUDA_ERROR_OUT_OF_MEMORY, gpu(90, (12, 4)));
        assert!(text.contains("cannot load the kernels of sgd.cu: the driver's reason"), "{text}");
    }

    #[test]
    fn a_fault_names_every_kernel_once_and_the_last_last() {
        let one = kernel_fault("cuda:0", "illegal address", &["sgd_step"]);
        assert_eq!(one.message(), "cuda:0: kernel sgd_step: illegal address");
        let some = kernel_fault("cuda:0", "illegal address", &["a", "b", "a", "c"]);
        assert_eq!(some.message(), "cuda:0: illegal address, in one of the kernels b, a, c");
        assert!(some.to_string().contains("RETUNE_CUDA_SYNC=1"));
        let names: Vec<String> = (0..40).map(|number| format!("k{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let many = kernel_fault("cuda:0", "illegal address", &names);
        assert!(many.message().contains("kernels 28 others, k28, "), "{many}");
        assert!(many.message().ends_with("k39"), "{many}");
        assert!(!kernel_fault("cuda:0", "illegal address", &[]).message().contains("kernel"));
    }
}
