//! `retune gradcheck`

use std::path::PathBuf;
use std::process::ExitCode;

use super::{GlobalArguments, print_json, print_result};
use crate::error::{Error, Result};
use crate::gradcheck::gradcheck;

const EXAMPLES: &str = "\
Examples:
  retune gradcheck tests/fixtures/odd.safetensors
  retune gradcheck FILE --device cuda --precision bf16";

/// Check logits, gradients, running statistics and updates against a reference file
///
/// The error of a tensor is ||ours - truth|| / ||truth||. It passes up to four times the error that PyTorch itself makes
/// on that tensor in the same precision (the file tells), or the floor. Exit status 1 if any tensor is over its limit.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct GradcheckArguments {
    /// A safetensors file of format retune-reference-1
    file: PathBuf,

    /// The smallest limit; raise it for files made without a ReLU margin. In tf32 and bf16 also the limit of tensors
    /// whose error in PyTorch the file does not tell: without it they are not compared [default: 0.00005]
    #[arg(long, value_name = "ERROR", allow_negative_numbers = true)]
    floor: Option<f64>,
}

pub fn run(global: &GlobalArguments, arguments: &GradcheckArguments) -> Result<ExitCode> {
    if let Some(floor) = arguments.floor
        && !(floor.is_finite() && floor >= 0.0)
    {
        return Err(Error::usage(format!("--floor {floor}: expected a number that is not negative")));
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
