//! `retune devices`

use std::process::ExitCode;

use serde::Serialize;

use super::{GlobalArguments, device, print_json, print_result};
use crate::device::Device;
use crate::device::cpu::Cpu;
use crate::device::cpu::simd::Level;
use crate::error::{Error, Result};

/// List available devices, and why others are unavailable
#[derive(clap::Args)]
pub struct DevicesArguments {}

#[derive(Serialize)]
struct Row {
    name: String,
    available: bool,
    description: String,
    /// How to make the device available.
    hints: Vec<String>,
}

impl Row {
    fn available(name: String, description: String) -> Self {
        Self { name, available: true, description, hints: Vec::new() }
    }

    fn unavailable(name: &str, reason: &str) -> Self {
        Self { name: name.into(), available: false, description: format!("unavailable: {reason}"), hints: Vec::new() }
    }
}

/// One row per GPU, or one that explains why there is none.
fn cuda_rows() -> impl Iterator<Item = Row> {
    device::cuda_states().into_iter().map(|state| {
        let reasons: Vec<&str> = state.missing.iter().map(Error::message).collect();
        let reasons = (!reasons.is_empty()).then(|| format!("unavailable: {}", reasons.join("; ")));
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
        Row::available("emulator".into(), "runs the CUDA kernels on the CPU, for tests".into())
    } else {
        Row::unavailable("emulator", "this build has no emulator; build with `--features emulator`")
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
