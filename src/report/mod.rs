//! The report of a run: training curves, contact sheets, Grad-CAM, and the HTML page that shows them. Nothing here prints.

mod calibration;
mod confusion;
mod contact_sheet;
mod curves;
mod examples;
mod findings;
mod grad_cam;
mod jpeg;
mod measures;
mod page;
mod preview;
mod raster;
mod record;
mod student;
mod sweep;

pub use calibration::{Bin, Calibration};
pub use confusion::{ClassResult, Confusion, Pair};
pub use contact_sheet::{ContactSheet, Tile, augmented_tiles, first_and_last, tile, tiles_of_classes};
pub use curves::{curves_png, curves_svg};
pub use findings::{Finding, divergence};
pub use grad_cam::{attention, overlay};
pub use measures::{Measures, interval};
pub use page::{Introduction, PageContent, Section, comparison_page, comparison_verdict, run_page, sweep_page};
pub use preview::preview;
pub use record::{ImageRecord, PredictedImage, RunRecord, TestRecord};
pub use sweep::{SweepRecord, sweep_table};
