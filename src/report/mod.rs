//! What a run looks like: curves, contact sheets, where a network looks, and the page that has them all. Nothing here prints.

mod confusion;
mod contact_sheet;
mod curves;
mod grad_cam;
mod page;
mod preview;
mod raster;
mod record;

pub use confusion::{ClassResult, Confusion};
pub use contact_sheet::{ContactSheet, Tile, augmented_tiles, first_and_last, tile, tiles_of_classes};
pub use curves::{curves_png, curves_svg};
pub use grad_cam::{attention, overlay};
pub use page::{Introduction, Section, comparison_page, run_page};
pub use preview::preview;
pub use record::{Looked, PictureRecord, RunConfig, RunRecord, TestRecord};
