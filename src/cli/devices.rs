//! `retune devices`

use std::process::ExitCode;

use serde::Serialize;

use super::{GlobalArguments, print_json, print_result};
use crate::device::Device;
use crate::device::cpu::Cpu;
use crate::error::Result;

/// List what there is to compute on, and why not what is missing
#[derive(clap::Args)]
pub struct DevicesArguments {}

#[derive(Serialize)]
struct Row {
    name: String,
    available: bool,
    description: String,
}

pub fn run(global: &GlobalArguments, _arguments: &DevicesArguments) -> Result<ExitCode> {
    let missing = |name: &str, reason: &str| Row { name: name.into(), available: false, description: reason.into() };
    let rows = [
        Row { name: Cpu.name(), available: true, description: Cpu.description() },
        missing("cuda", "not available: this build has no CUDA engine"),
        if cfg!(feature = "emulator") {
            let description = "the CUDA kernels on the CPU, for tests".into();
            Row { name: "emulator".into(), available: true, description }
        } else {
            missing("emulator", "not available: this build has no emulator; build with `--features emulator`")
        },
    ];
    if global.json {
        print_json(&rows)?;
    } else {
        for row in rows {
            print_result(&format!("{:<10}{}", row.name, row.description))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
