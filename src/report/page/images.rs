//! Contact sheets, and the section about the data set.

use maud::{Markup, html};

use super::super::contact_sheet::Tile;
use super::super::record::RunRecord;
use super::settings::augmentation;
use super::text::counted;
use crate::data::NotRead;
use crate::error::Result;

/// A longer list of files starts folded.
const FEW_FILES: usize = 10;
/// Files in a list at most.
const MOST_FILES: usize = 200;

fn gallery(rows: &[Vec<Tile>]) -> Result<Markup> {
    let mut tiles = Vec::new();
    for row in rows.iter().filter(|row| !row.is_empty()) {
        let row: Result<Vec<(&Tile, String)>> = row.iter().map(|tile| Ok((tile, tile.data_uri()?))).collect();
        tiles.push(row?);
    }
    Ok(html! {
        @for row in &tiles {
            div.sheet {
                @for (tile, source) in row {
                    figure {
                        img src=(source) alt=(tile.label) width=(tile.size) height=(tile.size);
                        figcaption { (tile.label) }
                    }
                }
            }
        }
    })
}

pub(super) fn section(heading: &str, text: &str, rows: &[Vec<Tile>]) -> Result<Markup> {
    let gallery = gallery(rows)?;
    Ok(html! {
        section {
            h2 { (heading) }
            @if !text.is_empty() { p { (text) } }
            (gallery)
        }
    })
}

/// Files that could not be read, and why.
fn unreadable(skipped: &[(&str, &str)]) -> Markup {
    html! {
        @if !skipped.is_empty() {
            h3 { (counted(skipped.len(), "unreadable image was", "unreadable images were")) " skipped" }
            ul { @for (path, reason) in skipped { li { code { (path) } ": " (reason) } } }
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
            details open[files.len() <= FEW_FILES] {
                summary { (counted(files.len(), "file", "files")) }
                ul {
                    @for file in files.iter().take(MOST_FILES) { li { code { (file.path.display()) } ": " (file.kind) } }
                    @if files.len() > MOST_FILES { li { (files.len() - MOST_FILES) " more" } }
                }
            }
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
    let (sheet, augmented) = (gallery(&images.sheet)?, gallery(&images.augmented)?);
    let counts = run.config.classes.iter().enumerate().map(|(class, name)| {
        let validation = images.validation_counts.as_ref().map(|counts| counts[class]);
        (name, images.train_counts[class], validation, images.test_counts[class])
    });
    let is_validated = images.validation_counts.is_some();
    let is_cut = run.config.classes.len() > images.sheet.len();
    let size = run.config.recipe.image_size;
    let operations = augmentation(&run.config.recipe);
    Ok(html! {
        section {
            h2 { "Data set" }
            div.scroll {
                table {
                    thead { tr { th { "class" } th.number { "training images" } @if is_validated { th.number { "validation images" } } th.number { "test images" } } }
                    tbody {
                        @for (class, train, validation, test) in counts {
                            tr { td { (class) } td.number { (train) } @if let Some(count) = validation { td.number { (count) } } td.number { (test) } }
                        }
                    }
                }
            }
            (sheet)
            @if is_cut { p.note { "Only the first " (images.sheet.len()) " classes are shown." } }
            h3 { "Augmented training images" }
            p {
                "In each epoch, these random operations are applied to every training image anew: " (operations) ". The result has "
                (size) " x " (size) " pixels. These are results of the first epoch."
            }
            (augmented)
            (unreadable(&skipped))
            (unsupported(&images.not_read))
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
