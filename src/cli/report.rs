//! `retune report`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use super::progress::Progress;
use super::{GlobalArguments, print_json, print_result};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::file::write_atomically;
use crate::report::{Introduction, RunRecord, comparison_page, curves_png, curves_svg, run_page};
use crate::train::RunFolder;

const EXAMPLES: &str = "\
Examples:
  retune report runs/1
Several runs on one page:
  retune report runs/1 runs/2 runs/3 -o comparison.html";

/// Make the page of a run again, or one that compares several
///
/// The page is one file: curves, results, recipe, pictures, who is taken for whom, the surest mistakes, and where the network
/// looked. `train` writes it too, with curves.svg and curves.png.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ReportArguments {
    /// Folders of runs, as `train` writes them
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,

    /// Where to write the page [default: report.html in the run's folder; of several runs: comparison.html here]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Where the pictures are now, if not where the run had them
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,

    /// Do not look at the pictures: curves, results and recipe only
    #[arg(long)]
    no_pictures: bool,
}

pub fn run(global: &GlobalArguments, arguments: &ReportArguments) -> Result<ExitCode> {
    let mut records = Vec::new();
    for path in &arguments.runs {
        records.push(RunRecord::open(&RunFolder { path: path.clone() })?);
    }
    name_apart(&mut records);
    if !arguments.no_pictures {
        let device = global.open_device()?;
        records.iter_mut().for_each(|record| look(global, record, arguments.data.as_deref(), &device));
    }
    let page = match records.as_slice() {
        [record] => {
            let page = arguments.output.clone().unwrap_or_else(|| record.folder.join("report.html"));
            write(&page, run_page(record)?.as_bytes())?;
            write_curves(record)?;
            page
        }
        _ => {
            let page = arguments.output.clone().unwrap_or_else(|| PathBuf::from("comparison.html"));
            let runs: Vec<&RunRecord> = records.iter().collect();
            let title = format!("{} runs compared", runs.len());
            write(&page, comparison_page(&Introduction { title, ..Introduction::default() }, &runs)?.as_bytes())?;
            page
        }
    };
    if global.json {
        print_json(&serde_json::json!({ "page": page.to_string_lossy() }))?;
    } else {
        print_result(&page.display().to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Looks at a run's pictures, with a line that tells how far that is.
pub fn look(global: &GlobalArguments, record: &mut RunRecord, data: Option<&Path>, device: &Rc<dyn Device>) {
    let progress = Progress::new(global, 1, "batches looked at");
    record.look_at_pictures(data, device.clone(), |batch, batches| {
        progress.length(batches as u64);
        progress.position(batch as u64);
    });
    progress.finish();
    if let Err(reason) = &record.test {
        super::warn(&format!("the page goes without the test pictures: {reason}"));
    }
}

/// Writes the page of a run, and its curves, into the run's folder. Returns the page.
pub fn write_page(record: &RunRecord) -> Result<PathBuf> {
    write_curves(record)?;
    let page = record.folder.join("report.html");
    write(&page, run_page(record)?.as_bytes())?;
    Ok(page)
}

fn write_curves(record: &RunRecord) -> Result<()> {
    write(&record.folder.join("curves.svg"), curves_svg(&[record]).as_bytes())?;
    write(&record.folder.join("curves.png"), &curves_png(&[record])?)
}

/// Writes a file in one step.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |writer| writer.write_all(bytes))
}

/// Gives runs whose folders have the same name the names of the folders above as well.
fn name_apart(records: &mut [RunRecord]) {
    let names: Vec<String> = records.iter().map(|record| record.name.clone()).collect();
    for record in records.iter_mut() {
        if names.iter().filter(|name| **name == record.name).count() > 1 {
            record.name = record.folder.display().to_string();
        }
    }
    let mut seen = std::collections::HashSet::new();
    for (number, record) in records.iter_mut().enumerate() {
        if !seen.insert(record.name.clone()) {
            record.name = format!("{} ({})", record.name, number + 1);
        }
    }
}

/// What stands in the way of a page must not fail the run that it is about.
pub fn after_training(global: &GlobalArguments, folder: &RunFolder, data: &Path, device: &Rc<dyn Device>) {
    let page = RunRecord::open(folder).and_then(|mut record| {
        look(global, &mut record, Some(data), device);
        write_page(&record)
    });
    match page {
        Ok(page) => global.note(&format!("what it looks like: {}", page.display())),
        Err(error) => super::warn(&format!("no page was written: {}", Error::message(&error))),
    }
}
