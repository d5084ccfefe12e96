//! `retune gradcheck`

use std::path::PathBuf;
use std::process::ExitCode;

use super::{GlobalArguments, print_json, print_result};
use crate::error::{Error, Result};
use crate::gradcheck::gradcheck;

const EXAMPLES: &str = "\
Examples:
  retune gradcheck tests/fixtures/odd.safetensors
  retune gradcheck tests/fixtures/odd.safetensors --device cuda --precision bf16";

/// Compare gradients and updates with a PyTorch reference file
///
/// Compares logits, gradients, running statistics and updated parameters. The relative error of a tensor is ||a - b|| / ||b||,
/// where b is the reference. Its limit is four times PyTorch's own error for that tensor and precision, which is recorded in
/// the file, but at least the floor. The exit status is 1 if the error of any tensor exceeds its limit.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct GradcheckArguments {
    /// Reference file: safetensors in the format retune-reference-1
    file: PathBuf,

    /// Smallest limit of the relative error; raise it for files made without a ReLU margin. In tf32 and bf16 it is also the
    /// limit of tensors without a recorded PyTorch error, which are otherwise not compared [default: 0.00005]
    #[arg(long, value_name = "ERROR")]
    floor: Option<f64>,
}

pub fn run(global: &GlobalArguments, arguments: &GradcheckArguments) -> Result<ExitCode> {
    if let Some(floor) = arguments.floor
        && !(floor.is_finite() && floor >= 0.0)
    {
        return Err(Error::usage(format!("--floor {floor}: expected a number of at least 0")));
    }
    let report = gradcheck(global.open_device()?, &arguments.file, arguments.floor)?;
    if global.json {
        print_json(&report)?;
    } else {
        let width = report.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0).max(6);
        print_result(&format!("{:<width$}  {:<18} {:>9} {:>9}", "tensor", "shape", "error", "limit"))?;
        for tensor in &report.tensors {
            let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
            let verdict = if tensor.ok { "ok" } else { "FAIL" };
            print_result(&format!(
                "{:<width$}  {:<18} {:>9.1e} {:>9.1e}  {verdict}",
                tensor.name,
                shape.join("x"),
                tensor.error,
                tensor.limit
            ))?;
        }
        let failed = report.tensors.iter().filter(|tensor| !tensor.ok).count();
        let not_compared = match report.not_compared.len() {
            0 => String::new(),
            count => format!(", {count} not compared"),
        };
        print_result(&format!("{} tensors compared, {failed} over their limit{not_compared}", report.tensors.len()))?;
        if global.verbose {
            report.not_compared.iter().for_each(|reason| super::say(&format!("not compared: {reason}")));
        }
    }
    if let Some(contradiction) = &report.contradiction {
        super::warn(&format!("the file contradicts itself: {contradiction}"));
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
