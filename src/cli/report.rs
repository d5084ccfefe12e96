//! `retune report`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use super::progress::Progress;
use super::sweep_report::compare_runs;
use super::{GlobalArguments, print_json, print_result};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::file::{begins_with, require_replaceable, write_atomically};
use crate::report::{
    Introduction, PageContent, RunRecord, comparison_page, comparison_verdict, curves_png, curves_svg, run_page,
};
use crate::train::{RunFolder, Sweep};

const EXAMPLES: &str = "\
Examples:
  Write the report of a run:
    retune report runs/1
  Compare several runs:
    retune report runs/1 runs/2 runs/3 --output comparison.html";

/// Write the report of a run, or compare several runs
///
/// The report is a single HTML file with the results, notices about bad curves, training curves, confusion matrix, confidence,
/// examples, Grad-CAM, data set, settings and a Python program that uses the model. `retune train` writes it at the end of a run,
/// along with curves.svg and curves.png. A comparison sorts the runs by test accuracy and says how certain the order is.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ReportArguments {
    /// Folder of a run, or of a sweep; with more than one, the runs are compared
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,

    /// File to write [default: report.html in the run's folder, or comparison.html for several runs]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Folder of the data set, if it has moved since the run
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,

    /// Leave out everything that needs the images: confusion matrix, confidence, examples, Grad-CAM and data set
    #[arg(long)]
    no_images: bool,

    /// Replace an existing report even if it shows images that the new one lacks
    #[arg(short, long)]
    force: bool,
}

pub fn run(global: &GlobalArguments, arguments: &ReportArguments) -> Result<ExitCode> {
    if let [folder] = arguments.runs.as_slice()
        && (RunFolder { path: folder.clone() }).sweep().exists()
    {
        let others = [("--output", arguments.output.is_some()), ("--data", arguments.data.is_some())];
        return match others.into_iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) => Err(Error::usage(format!(
                "{flag}: {} is a sweep, whose page refers to the reports of its runs",
                folder.display()
            ))
            .hint(format!("leave {flag} out"))),
            None => compare_runs(global, &Sweep::open(folder)?, folder),
        };
    }
    let mut records = Vec::new();
    for path in &arguments.runs {
        records.push(RunRecord::open(&RunFolder { path: path.clone() })?);
    }
    make_names_unique(&mut records);
    let page = arguments.output.clone().unwrap_or_else(|| match records.as_slice() {
        [record] => record.folder.join("report.html"),
        _ => PathBuf::from("comparison.html"),
    });
    require_replaceable(&page, "a page", |page| begins_with(page, "<!doctype html"))?;
    if !arguments.no_images {
        let device = global.open_device()?;
        for record in &mut records {
            evaluate(global, record, arguments.data.as_deref(), &device)?;
        }
    }
    let runs: Vec<&RunRecord> = records.iter().collect();
    // Without the images because that was asked for is not by accident.
    let may_lose_images = arguments.force || arguments.no_images;
    if !may_lose_images {
        require_no_loss(&page, &runs)?;
    }
    match records.as_slice() {
        [record] => {
            write(&page, run_page(record)?.as_bytes())?;
            write_curves(record)?;
        }
        _ => {
            let title = format!("{} runs compared", runs.len());
            write(&page, comparison_page(&Introduction { title, ..Introduction::default() }, &runs)?.as_bytes())?;
        }
    }
    let verdict = comparison_verdict(&runs);
    if global.json {
        let mut result = serde_json::json!({ "page": page.to_string_lossy() });
        if let Some(verdict) = verdict {
            result["verdict"] = verdict.into();
        }
        print_json(&result)?;
    } else {
        verdict.iter().for_each(|verdict| global.note(verdict));
        print_result(&page.display().to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Evaluates a run's best model on its test images, with a progress line.
pub fn evaluate(
    global: &GlobalArguments,
    record: &mut RunRecord,
    data: Option<&Path>,
    device: &Rc<dyn Device>,
) -> Result<()> {
    let progress = Progress::new(global, 1, "test batches");
    let evaluated = record.evaluate(data, device.clone(), |batch, batches| {
        progress.length(batches as u64);
        progress.position(batch as u64);
    });
    progress.finish();
    evaluated?;
    if let Err(reason) = &record.test {
        super::warn(&format!("the report lacks the test images: {reason}"));
    }
    Ok(())
}

/// Refuses to replace a page by one that lacks what it shows.
fn require_no_loss(page: &Path, runs: &[&RunRecord]) -> Result<()> {
    // A page that cannot be read is not one of this program, or there is none.
    let Ok(existing) = std::fs::read_to_string(page) else { return Ok(()) };
    if !PageContent::of(runs).is_poorer_than(&PageContent::of_page(&existing), runs.len()) {
        return Ok(());
    }
    let reasons = runs.iter().filter_map(|run| run.images.as_ref().err().or(run.test.as_ref().err()));
    let reason = reasons.map(String::as_str).next().unwrap_or("images are missing");
    Err(Error::new(format!("{} shows images that a new report would lack: {reason}", page.display())).hint(
        "name the folder of the data set with --data, write another file with --output, or replace it with --force",
    ))
}

/// Writes a run's report and curves into its folder. Returns the path of the report.
pub fn write_page(record: &RunRecord) -> Result<PathBuf> {
    let page = record.folder.join("report.html");
    require_no_loss(&page, &[record])?;
    write_curves(record)?;
    write(&page, run_page(record)?.as_bytes())?;
    Ok(page)
}

fn write_curves(record: &RunRecord) -> Result<()> {
    write(&record.folder.join("curves.svg"), curves_svg(&[record]).as_bytes())?;
    write(&record.folder.join("curves.png"), &curves_png(&[record])?)
}

/// Writes a file atomically.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |writer| writer.write_all(bytes))
}

/// Makes the names of runs unique: by the whole path, or by a number for a run that is given twice.
fn make_names_unique(records: &mut [RunRecord]) {
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

/// Writes the report of a finished run. A failure is only a warning: the run itself succeeded.
pub fn after_training(global: &GlobalArguments, folder: &RunFolder, data: &Path, device: &Rc<dyn Device>) {
    let page = RunRecord::open(folder).and_then(|mut record| {
        evaluate(global, &mut record, Some(data), device)?;
        write_page(&record)
    });
    match page {
        Ok(page) => global.note(&format!("report: {}", page.display())),
        Err(error) => super::warn(&format!("no report was written: {}", Error::message(&error))),
    }
}
