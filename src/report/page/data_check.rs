//! What was found in the images before the run.

use maud::{Markup, html};

use super::super::findings::capitalised;
use super::super::record::{ImageRecord, RunRecord};
use super::pictures::sheet;
use crate::error::Result;
use crate::train::{DataCheck, few_steps};

/// Duplicates side by side, and what makes the results uncertain; empty for a run of an earlier version, and if nothing was found.
pub(super) fn data_check(run: &RunRecord, images: &ImageRecord) -> Result<Markup> {
    let mut warnings = run.data_check.as_ref().map(DataCheck::warnings).unwrap_or_default();
    warnings.extend(few_steps(&run.config.recipe, run.config.train_images));
    if warnings.is_empty() {
        return Ok(html! {});
    }
    let duplicates = sheet("duplicates", &images.duplicates)?;
    let found = run.data_check.as_ref().map_or(0, |check| check.duplicates.len());
    Ok(html! {
        h3 { "Found before training" }
        ul { @for warning in &warnings { li { (capitalised(warning)) "." } } }
        @if !images.duplicates.is_empty() {
            p.note {
                "Images that look the same are in one row: identical files, or copies of another size, quality or format."
                @if found > images.duplicates.len() {
                    " These are " (images.duplicates.len()) " of " (found) " rows, first those in several splits or classes; "
                    code { "data_check.json" } " lists all."
                }
            }
            (duplicates)
        }
        h3 { "Training images of each class" }
    })
}
