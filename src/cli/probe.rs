//! `retune probe`

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::global::DeviceName;
use super::{GlobalArguments, print_json, print_result};
use crate::device::cuda::driver::Driver;
use crate::device::cuda::modules::PROBE;
use crate::device::cuda::nvidia::{self, Nvidia};
use crate::device::cuda::probe::{self, Answer};
use crate::error::{Context, Error, Result};
use crate::file::{require_writable, write_atomically};

/// Compare bulk copies and wgmma of an H100 or H200 with the model of these instructions
///
/// For developers of kernels. Writes what the GPU did, and exits with status 1 if it was something else than the model says.
#[derive(clap::Args)]
pub struct ProbeArguments {
    /// File for all dumps: JSON in the format retune-probe-1
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// The number of the GPU that `--device` names.
fn gpu_index(global: &GlobalArguments) -> Result<usize> {
    match global.device {
        DeviceName::Auto => Ok(0),
        DeviceName::Cuda(index, _) => Ok(index),
        DeviceName::Cpu | DeviceName::Emulator => {
            Err(Error::usage(format!("--device {}: the probe runs on a GPU", global.device)).hint("use --device cuda"))
        }
    }
}

pub fn run(global: &GlobalArguments, arguments: &ProbeArguments) -> Result<ExitCode> {
    let index = gpu_index(global)?;
    require_writable(&arguments.out)?;
    let all = nvidia::gpus()?;
    let gpu = if all.is_empty() { Err(nvidia::no_device()) } else { nvidia::gpu(index) }?;
    probe::require(&format!("cuda:{index} ({})", gpu.name), gpu.compute_capability, !PROBE.is_empty())?;
    let driver = Nvidia::open(index, PROBE)?;
    let mut answers = Vec::new();
    // What was found before a failure is written nevertheless.
    let failure = probe::run(&driver).find_map(|answer| answer.map(|answer| answers.push(answer)).err());
    let described = json!({
        "format": "retune-probe-1",
        "gpu": driver.description(),
        "cases": answers.iter().map(with_dump).collect::<Result<Vec<Value>>>()?,
    });
    let text = super::output::json(&described)?;
    write_atomically(&arguments.out, |writer| writeln!(writer, "{text}"))?;
    if let Some(error) = failure {
        return Err(error);
    }
    print(global, &answers)?;
    Ok(if answers.iter().any(Answer::is_failure) { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// An answer with its dump in base64.
fn with_dump(answer: &Answer) -> Result<Value> {
    let mut value = serde_json::to_value(answer).context(|| "cannot write JSON")?;
    value["dump"] = STANDARD.encode(&answer.dump).into();
    Ok(value)
}

fn print(global: &GlobalArguments, answers: &[Answer]) -> Result<()> {
    if global.json {
        return print_json(&answers);
    }
    // What is wrong comes last, where it is seen.
    let mut ordered: Vec<&Answer> = answers.iter().collect();
    ordered.sort_by_key(|answer| (answer.is_failure(), !answer.is_predicted));
    for answer in ordered {
        let verdict = match (answer.matches(), answer.is_predicted) {
            (true, true) => "as predicted",
            (false, true) => "NOT AS PREDICTED",
            (true, false) => "not predicted: as with base offset 0",
            (false, false) => "not predicted: not as with base offset 0",
        };
        let details = match (&answer.first_difference, answer.is_complete) {
            (_, false) => "; the copy was not complete in time".to_string(),
            (Some(first), true) => format!("; {} of {} words differ: {first}", answer.differences, answer.words),
            (None, true) => String::new(),
        };
        print_result(&format!("{}: {verdict}{details}", answer.name))?;
    }
    let predicted = answers.iter().filter(|answer| answer.is_predicted).count();
    let wrong = answers.iter().filter(|answer| answer.is_failure()).count();
    print_result(&format!(
        "{} of {predicted} predictions hold, {} cases are only recorded",
        predicted - wrong,
        answers.len() - predicted
    ))
}
