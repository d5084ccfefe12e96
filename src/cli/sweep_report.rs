//! The outcome of a sweep: its table in the terminal, and its page.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use super::{GlobalArguments, print_json, print_result};
use crate::error::Result;
use crate::file::write_atomically;
use crate::report::{SweepRecord, sweep_page, sweep_table};
use crate::train::Sweep;

/// The name of a sweep's page.
const PAGE: &str = "comparison.html";

/// Compares the runs of a sweep, in the terminal and on its page. The exit status is 1 if one failed.
pub fn compare_runs(global: &GlobalArguments, sweep: &Sweep, folder: &Path) -> Result<ExitCode> {
    let record = SweepRecord::open(sweep, folder)?;
    let page = folder.join(PAGE);
    write_atomically(&page, |writer| writer.write_all(sweep_page(&record).as_bytes()))?;
    if global.json {
        let mut result = record.json();
        result["page"] = page.to_string_lossy().into();
        print_json(&serde_json::json!({ "sweep": result }))?;
    } else {
        global.note("");
        sweep_table(&record).iter().try_for_each(|line| print_result(line))?;
        global.note(&record.verdict());
        print_result(&page.display().to_string())?;
    }
    Ok(if record.failed().next().is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
