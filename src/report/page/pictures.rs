//! Images that a click, or Enter, enlarges. A browser does that by itself, without a script, and Escape closes them.

use maud::{Markup, html};

use super::super::contact_sheet::Tile;
use crate::error::Result;

/// An image and what it shows, for those who do not see it.
pub(super) type Described<'a> = (&'a Tile, String);

/// A figure of one image, or of several that belong together. `id` must be the only one of its name on the page.
///
/// # Errors
/// When an image cannot be encoded as JPEG.
pub(super) fn figure(id: &str, images: &[Described], caption: &Markup) -> Result<Markup> {
    let encoded: Vec<(&Tile, &str, String)> =
        images.iter().map(|(tile, text)| Ok((*tile, text.as_str(), tile.data_uri()?))).collect::<Result<_>>()?;
    let name = images.first().map_or(String::new(), |(_, text)| format!("Enlarge: {text}"));
    Ok(html! {
        figure {
            div.frame {
                span.view id=(id) popover="auto" {
                    span.images {
                        @for (tile, text, source) in &encoded {
                            img src=(source) alt=(text) width=(tile.size) height=(tile.size);
                        }
                    }
                    span.caption { (caption) }
                    button.close type="button" popovertarget=(id) popovertargetaction="hide" aria-label="Close" {}
                }
                button.enlarge type="button" popovertarget=(id) aria-label=(name) {}
            }
            figcaption { (caption) }
        }
    })
}

/// Rows of labelled images. The names of their figures begin with `id`.
///
/// # Errors
/// When an image cannot be encoded as JPEG.
pub(super) fn sheet(id: &str, rows: &[Vec<Tile>]) -> Result<Markup> {
    let mut figures = Vec::new();
    for (row, tiles) in rows.iter().enumerate().filter(|(_, row)| !row.is_empty()) {
        let figures_of_row = tiles.iter().enumerate().map(|(column, tile)| {
            figure(&format!("{id}-{row}-{column}"), &[(tile, tile.label.clone())], &html! { (tile.label) })
        });
        figures.push(figures_of_row.collect::<Result<Vec<Markup>>>()?);
    }
    Ok(html! {
        @for row in &figures {
            div.sheet { @for figure in row { (figure) } }
        }
    })
}
