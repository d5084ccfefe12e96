//! The report of a run and the comparison of several: one HTML file each, without scripts.

mod comparison;
mod confidence;
mod data_check;
mod images;
mod notices;
mod pictures;
mod predictions;
pub(super) mod results;
mod settings;
mod sweep;
pub(super) mod text;
mod times;
mod usage;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::contact_sheet::Tile;
use super::curves::themed_rules;
use super::record::RunRecord;
use super::sweep::SweepRecord;
use crate::error::Result;
use crate::printable::{is_hidden, printable};

const STYLE: &str = include_str!("page.css");
/// A comparison of more runs than this shows no confusion matrices.
const MOST_MATRICES: usize = 4;

/// The name of the element that says what a page shows.
const CONTENT: &str = "retune-content";

/// For how many runs a page shows what needs the images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageContent {
    /// Runs with images of the data set.
    pub images: usize,
    /// Runs with results of the test images.
    pub tests: usize,
}

impl PageContent {
    /// What a page of these runs shows.
    pub fn of(runs: &[&RunRecord]) -> Self {
        let count = |shown: fn(&RunRecord) -> bool| runs.iter().filter(|run| shown(run)).count();
        Self { images: count(|run| run.images.is_ok()), tests: count(|run| run.test.is_ok()) }
    }

    /// What an existing page shows. Those of earlier versions do not say so; they show images if they contain any.
    pub fn of_page(page: &str) -> Self {
        let start = format!("<meta name=\"{CONTENT}\" content=\"");
        let said = page.split_once(&start).and_then(|(_, rest)| rest.split_once('"')).map(|(said, _)| said);
        let numbers = said.and_then(|said| said.strip_prefix("images=")?.split_once(" tests="));
        match numbers.map(|(images, tests)| (images.parse(), tests.parse())) {
            Some((Ok(images), Ok(tests))) => Self { images, tests },
            _ if page.contains("data:image/") => Self { images: 1, tests: 1 },
            _ => Self::default(),
        }
    }

    /// Whether a page of `runs` runs lacks something that the other page shows.
    pub fn is_poorer_than(&self, other: &Self, runs: usize) -> bool {
        let lacks = |this: usize, other: usize| this < runs && this < other;
        lacks(self.images, other.images) || lacks(self.tests, other.tests)
    }
}

impl std::fmt::Display for PageContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "images={} tests={}", self.images, self.tests)
    }
}

/// The texts of a comparison besides its results.
#[derive(Debug, Clone, Default)]
pub struct Introduction {
    /// The page's title.
    pub title: String,
    /// A paragraph below the title; may be empty.
    pub lead: String,
    /// Sections that follow the results.
    pub sections: Vec<Section>,
}

/// A section of a comparison: text and rows of images.
#[derive(Debug, Clone, Default)]
pub struct Section {
    /// Its heading.
    pub heading: String,
    /// A paragraph; may be empty.
    pub text: String,
    /// Rows of images.
    pub images: Vec<Vec<Tile>>,
}

/// The report of one run.
///
/// # Errors
/// When an image cannot be encoded as JPEG.
pub fn run_page(run: &RunRecord) -> Result<String> {
    let original = run;
    let run = &original.with_printable_names();
    let body = html! {
        header {
            p.eyebrow { "retune" @if let Some(started) = times::started(run) { span.when { (started) } } }
            h1 { (results::headline(run)) }
            p.lead { (results::lead(run)) }
        }
        (notices::notices(run))
        (results::figures(run))
        (results::curves(&[run]))
        (predictions::confusion(run))
        (confidence::confidence(run))
        (predictions::mistakes(run, None)?)
        (predictions::least_certain(run, None)?)
        (predictions::correct(run, None)?)
        (predictions::grad_cams(run, None)?)
        (images::data_set(run)?)
        (settings::settings(run))
        // Names in the program are those of the run, escaped as in Python.
        (usage::usage(original))
    };
    Ok(document(&results::title(run), PageContent::of(&[run]), &body))
}

/// A comparison of several runs.
///
/// # Errors
/// When an image cannot be encoded as JPEG.
pub fn comparison_page(introduction: &Introduction, runs: &[&RunRecord]) -> Result<String> {
    let runs: Vec<RunRecord> = runs.iter().map(|run| run.with_printable_names()).collect();
    let runs: &[&RunRecord] = &runs.iter().collect::<Vec<_>>();
    let runs = &*comparison::sorted(runs);
    let body = html! {
        header {
            p.eyebrow { "retune" }
            h1 { (introduction.title) }
            @if !introduction.lead.is_empty() { p.lead { (introduction.lead) } }
        }
        (comparison::comparison(runs))
        (results::curves(runs))
        (settings::differences(runs))
        @for (index, section) in introduction.sections.iter().enumerate() {
            (images::section(&format!("section-{index}"), &section.heading, &section.text, &section.images)?)
        }
        @if runs.len() <= MOST_MATRICES {
            @for run in runs { (predictions::confusion_of(run)) }
        }
        @if let Some(best) = runs.first() {
            (predictions::mistakes(best, Some(&best.name))?)
            (predictions::least_certain(best, Some(&best.name))?)
            (predictions::grad_cams(best, Some(&best.name))?)
        }
    };
    Ok(document(&introduction.title, PageContent::of(runs), &body))
}

/// The winner of a comparison, or why there is none, as the page says it; none for a single run.
pub fn comparison_verdict(runs: &[&RunRecord]) -> Option<String> {
    comparison::verdict_of(runs)
}

/// The page of a sweep, which refers to the pages of its runs in the folders beside it.
pub fn sweep_page(sweep: &SweepRecord) -> String {
    let (title, shown, body) = sweep::content(sweep);
    document(&title, PageContent::of(&shown.iter().collect::<Vec<_>>()), &body)
}

fn document(title: &str, content: PageContent, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="generator" content=(concat!("retune ", env!("CARGO_PKG_VERSION")));
                meta name=(CONTENT) content=(content.to_string());
                title { (title) }
                style { (PreEscaped(STYLE)) (PreEscaped(themed_rules())) }
            }
            body {
                main { (body) }
                footer { "Written by retune " (env!("CARGO_PKG_VERSION")) ". This file contains the whole page." }
            }
        }
    };
    // Names were made visible where they are on the page; whatever else is hidden follows here. Lines of the markup stay lines.
    let page = page.into_string();
    match page.contains(|c| c != '\n' && is_hidden(c)) {
        true => page.split('\n').map(printable).collect::<Vec<_>>().join("\n"),
        false => page,
    }
}
