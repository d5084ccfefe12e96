//! The hardware probe: launches of `kernels/probe/`, and a model of what an sm_90 GPU does with bulk copies (TMA) and wgmma.
//!
//! Kernels that use these instructions rely on facts that only hardware can confirm. Each case runs one instruction on numbers
//! that tell every element apart, and compares with the model. No GPU has run it yet.

mod answer;
mod load;
mod multiply;
mod swizzle;

use super::driver::Driver;
use crate::error::{Error, Result};
pub use answer::Answer;

/// Runs all cases, one for each call of `next`. After an error of the GPU, the others fail too.
///
/// # Errors
/// When the driver has no tensor maps, or a kernel fails. The error names the case.
pub fn run(driver: &dyn Driver) -> impl Iterator<Item = Result<Answer>> {
    let loads = load::cases().into_iter().map(move |case| {
        let name = case.name();
        load::run(driver, case).map_err(|error| error.about(&name))
    });
    let products = multiply::cases().into_iter().map(move |case| {
        let name = case.name();
        multiply::run(driver, case).map_err(|error| error.about(&name))
    });
    loads.chain(products)
}

/// Checks that a GPU of this compute capability can run the probe, if the build has its kernels.
///
/// # Errors
/// When it is another one than 9.0, or there are no kernels.
pub fn require(gpu: &str, compute_capability: u32, has_kernels: bool) -> Result<()> {
    let (major, minor) = (compute_capability / 10, compute_capability % 10);
    if compute_capability != 90 {
        return Err(Error::new(format!(
            "{gpu} has compute capability {major}.{minor}, and the probe runs on 9.0 only"
        ))
        .hint("run it on an H100 or H200"));
    }
    if !has_kernels {
        return Err(Error::new("this build has no kernels of the probe")
            .hint("build with nvcc 12.0 or later, and with 90 in RETUNE_CUDA_ARCHS if it is set"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_gpus_and_builds_without_kernels_are_refused() {
        assert!(require("GPU X", 90, true).is_ok());
        for capability in [80, 89, 100, 120] {
            let text = require("GPU X", capability, true).unwrap_err().to_string();
            let number = format!("{}.{}", capability / 10, capability % 10);
            assert!(text.starts_with(&format!("GPU X has compute capability {number}, and the probe")), "{text}");
        }
        assert!(require("GPU X", 90, false).unwrap_err().to_string().contains("hint: build with nvcc 12.0"));
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = load::cases().iter().map(load::Load::name).collect();
        names.extend(multiply::cases().iter().map(multiply::Multiply::name));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
