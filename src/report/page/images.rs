//! Contact sheets, and the section about the data set.

use maud::{Markup, html};

use super::super::contact_sheet::Tile;
use super::super::findings::capitalised;
use super::super::record::RunRecord;
use super::data_check::data_check;
use super::pictures::sheet;
use super::settings::augmentation;
use super::text::counted;
use crate::data::NotRead;
use crate::error::Result;

/// Images in a row.
const COLUMNS: usize = 8;
/// A table of more classes starts folded.
const FEW_CLASSES: usize = 24;
/// A longer list of files starts folded.
const FEW_FILES: usize = 10;
/// Files in a list at most.
const MOST_FILES: usize = 200;

/// A section of a comparison, with a name for its images that no other section has.
pub(super) fn section(id: &str, heading: &str, text: &str, rows: &[Vec<Tile>]) -> Result<Markup> {
    let gallery = sheet(id, rows)?;
    Ok(html! {
        section {
            h2 { (heading) }
            @if !text.is_empty() { p { (text) } }
            (gallery)
        }
    })
}

/// A table of classes, folded if it is long.
fn folded(classes: usize, table: Markup) -> Markup {
    let table = html! { div.scroll { (table) } };
    html! {
        @if classes <= FEW_CLASSES { (table) } @else { details { summary { "Images of " (classes) " classes" } (table) } }
    }
}

/// A list of files, folded and cut if it is long.
fn list(files: usize, items: impl Iterator<Item = Markup>) -> Markup {
    html! {
        details open[files <= FEW_FILES] {
            summary { (counted(files, "file", "files")) }
            ul {
                @for item in items.take(MOST_FILES) { li { (item) } }
                @if files > MOST_FILES { li { (files - MOST_FILES) " more" } }
            }
        }
    }
}

/// Files that could not be read, and why.
fn unreadable(skipped: &[(&str, &str)]) -> Markup {
    html! {
        @if !skipped.is_empty() {
            h3 { (counted(skipped.len(), "unreadable image was", "unreadable images were")) " skipped" }
            (list(skipped.len(), skipped.iter().map(|(path, reason)| html! { code { (path) } ": " (reason) })))
        }
    }
}

/// Images of types that are not supported.
fn unsupported(not_read: &NotRead) -> Markup {
    let files = &not_read.unsupported;
    html! {
        @if let Some(line) = not_read.unsupported_line() {
            h3 { (line) }
            p { "These types of images are not supported. As JPEG or PNG they would be used." }
            (list(files.len(), files.iter().map(|file| html! { code { (file.path.display()) } ": " (file.kind) })))
        }
    }
}

/// Images without a class.
fn outside(not_read: &NotRead) -> Markup {
    let files = &not_read.outside;
    html! {
        @if !files.is_empty() {
            h3 { (counted(files.len(), "image lies", "images lie")) " outside of the class folders" }
            p { "Only images in the folder of a class are used." }
            (list(files.len(), files.iter().map(|path| html! { code { (path.display()) } })))
        }
    }
}

pub(super) fn data_set(run: &RunRecord) -> Result<Markup> {
    let skipped: Vec<_> = run.skipped().collect();
    let images = match &run.images {
        Ok(images) => images,
        Err(reason) => {
            return Ok(html! {
                section {
                    h2 { "Data set" }
                    p.missing { "The images are not shown: " (reason) }
                    (unreadable(&skipped))
                }
            });
        }
    };
    let rows = images.sheet.iter().map(Vec::as_slice).collect::<Vec<&[Tile]>>();
    let is_narrow = rows.iter().all(|row| row.len() <= COLUMNS / 2);
    let rows: Vec<Vec<Tile>> = rows.chunks(if is_narrow { 2 } else { 1 }).map(<[_]>::concat).collect();
    let (sheet, augmented) = (sheet("training", &rows)?, sheet("augmented", &images.augmented)?);
    let counts = run.config.classes.iter().enumerate().map(|(class, name)| {
        let validation = images.validation_counts.as_ref().map(|counts| counts[class]);
        (name, images.train_counts[class], validation, images.test_counts[class])
    });
    let is_validated = images.validation_counts.is_some();
    let is_cut = run.config.classes.len() > images.sheet.len();
    let size = run.config.recipe.training_size();
    let operations = augmentation(&run.config.recipe);
    Ok(html! {
        section {
            h2 { "Data set" }
            (folded(run.config.classes.len(), html! {
                table {
                    thead { tr { th { "class" } th.number { "training images" } @if is_validated { th.number { "validation images" } } th.number { "test images" } } }
                    tbody {
                        @for (class, train, validation, test) in counts {
                            tr { td { (class) } td.number { (train) } @if let Some(count) = validation { td.number { (count) } } td.number { (test) } }
                        }
                    }
                }
            }))
            (data_check(run, images)?)
            (sheet)
            @if is_cut { p.note { "Only the first " (images.sheet.len()) " classes are shown." } }
            @if !images.augmented.is_empty() {
                h3 { "Augmented training images" }
                p {
                    @if run.config.recipe.fits_only() { "These random operations make the augmented copies: " } @else {
                        "In each epoch, these random operations are applied to every training image anew: "
                    }
                    (operations) ". The result has "
                    (size) " x " (size) " pixels. These are "
                    @if run.config.recipe.fits_only() { "examples." } @else { "results of the first epoch." }
                    @if run.config.recipe.mixing().is_some() { " After that, each image is mixed with another one of its batch, which is not shown." }
                }
                (augmented)
            }
            (unreadable(&skipped))
            (unsupported(&images.not_read))
            (outside(&images.not_read))
            @if let Some(line) = images.not_read.foreign_line() { p.note { (capitalised(&line)) "." } }
            p.note {
                @if run.config.recipe.exif {
                    "Images are rotated and mirrored as their EXIF orientation says."
                } @else {
                    "The EXIF orientation of images is ignored, as in torchvision. " code { "retune train --exif" } " applies it."
                }
            }
        }
    })
}
