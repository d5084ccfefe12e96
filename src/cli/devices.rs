//! `retune devices`

use std::process::ExitCode;

use serde::Serialize;

use super::{GlobalArguments, device, print_json, print_result};
use crate::device::Device;
use crate::device::cpu::Cpu;
use crate::device::cpu::simd::Level;
use crate::error::{Error, Result};

/// List what there is to compute on, and why not what is missing
#[derive(clap::Args)]
pub struct DevicesArguments {}

#[derive(Serialize)]
struct Row {
    name: String,
    available: bool,
    description: String,
    /// How to mend what is missing.
    hints: Vec<String>,
}

impl Row {
    fn available(name: String, description: String) -> Self {
        Self { name, available: true, description, hints: Vec::new() }
    }

    fn missing(name: &str, reason: &str) -> Self {
        Self { name: name.into(), available: false, description: format!("not available: {reason}"), hints: Vec::new() }
    }
}

/// The GPUs, or what is missing for one.
fn cuda_rows() -> impl Iterator<Item = Row> {
    device::cuda_states().into_iter().map(|state| {
        let reasons: Vec<&str> = state.missing.iter().map(Error::message).collect();
        let reasons = (!reasons.is_empty()).then(|| format!("not available: {}", reasons.join("; ")));
        let description: Vec<String> = state.description.into_iter().chain(reasons).collect();
        let hints = state.missing.iter().filter_map(Error::hint_text).map(String::from).collect();
        Row { name: state.name, available: state.missing.is_empty(), description: description.join("; "), hints }
    })
}

pub fn run(global: &GlobalArguments, _arguments: &DevicesArguments) -> Result<ExitCode> {
    Level::wanted()?;
    let mut rows = vec![Row::available(Cpu.name(), Cpu.description())];
    rows.extend(cuda_rows());
    rows.push(if cfg!(feature = "emulator") {
        Row::available("emulator".into(), "the CUDA kernels on the CPU, for tests".into())
    } else {
        Row::missing("emulator", "this build has no emulator; build with `--features emulator`")
    });
    if global.json {
        print_json(&rows)?;
    } else {
        for row in rows {
            print_result(&format!("{:<10}{}", row.name, row.description))?;
            for hint in row.hints {
                print_result(&format!("{:<10}hint: {hint}", ""))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
