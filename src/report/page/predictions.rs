//! Predictions of the best model for the test images: confusion matrix, per-class results, mistakes, Grad-CAM.

use maud::{Markup, html};

use super::super::record::{PredictedImage, RunRecord, TestRecord};
use super::text::percent;
use crate::error::Result;

/// With more classes than this, the most frequent confusions are listed instead of a matrix.
const WIDEST_MATRIX: usize = 24;
const LISTED: usize = 20;
/// With more classes than this, the table of per-class results starts folded.
const MOST_UNFOLDED: usize = 12;

/// The section of a run's report. If the test images could not be evaluated, it states the reason.
pub(super) fn confusion(run: &RunRecord) -> Markup {
    html! {
        section {
            h2 { (heading(run)) }
            @match &run.test {
                Ok(test) => (matrix(run, test)),
                Err(reason) => p.missing { "The test images were not evaluated: " (reason) },
            }
        }
    }
}

/// The section of a comparison; empty if the test images could not be evaluated.
pub(super) fn confusion_of(run: &RunRecord) -> Markup {
    html! {
        @if let Ok(test) = &run.test {
            section {
                h2 { (heading(run)) ": " (run.name) }
                (matrix(run, test))
            }
        }
    }
}

fn heading(run: &RunRecord) -> &'static str {
    if run.config.classes.len() <= WIDEST_MATRIX { "Confusion matrix" } else { "Most frequent confusions" }
}

fn matrix(run: &RunRecord, test: &TestRecord) -> Markup {
    let classes = &run.config.classes;
    let rows = test.confusion.rows();
    let heat = |count: usize, row: &[usize]| {
        let all: usize = row.iter().sum();
        if all == 0 { 0.0 } else { 100.0 * count as f64 / all as f64 }
    };
    let mut confused: Vec<(usize, usize, usize)> = Vec::new();
    for (actual, row) in rows.iter().enumerate() {
        confused.extend(
            row.iter()
                .enumerate()
                .filter(|(predicted, count)| *predicted != actual && **count > 0)
                .map(|(predicted, &count)| (count, actual, predicted)),
        );
    }
    confused.sort_by(|a, b| b.cmp(a));
    html! {
        @if classes.len() <= WIDEST_MATRIX {
            p { "Each row counts the test images of one class by the class that was predicted. Correct predictions are on the diagonal." }
            div.scroll {
                table.matrix {
                    thead {
                        tr { th {} th colspan=(classes.len()) { "predicted" } }
                        tr { th scope="col" { "actual" } @for class in classes { th.predicted scope="col" { span { (class) } } } }
                    }
                    tbody {
                        @for (actual, row) in rows.iter().enumerate() {
                            tr {
                                th scope="row" { (classes[actual]) }
                                @for (predicted, &count) in row.iter().enumerate() {
                                    td.right[predicted == actual].zero[count == 0] style=(format!("--heat:{:.0}%", heat(count, row))) { (count) }
                                }
                            }
                        }
                    }
                }
            }
        } @else {
            div.scroll {
                table {
                    thead { tr { th { "actual" } th { "predicted" } th.number { "test images" } } }
                    tbody {
                        @for (count, actual, predicted) in confused.iter().take(LISTED) {
                            tr { td { (classes[*actual]) } td { (classes[*predicted]) } td.number { (count) } }
                        }
                    }
                }
            }
        }
        details open[classes.len() <= MOST_UNFOLDED] {
            summary { "Per-class results" }
            div.scroll {
                table {
                    thead { tr { th { "class" } th.number { "test images" } th.number { "precision" } th.number { "recall" } th.number { "F1" } } }
                    tbody {
                        @for class in test.confusion.classes(classes) {
                            tr {
                                td { (class.class) }
                                td.number { (class.images) }
                                td.number { (percent(class.precision)) }
                                @if class.images == 0 { td.number { "–" } } @else { td.number { (percent(class.recall)) } }
                                td.number { (format!("{:.3}", class.f1)) }
                            }
                        }
                    }
                }
            }
            p.note {
                "Precision: of the images predicted as this class, the share that belongs to it. Recall: of the images of this class, the \
                 share that is predicted correctly. F1: the harmonic mean of the two."
            }
        }
    }
}

/// A heading, with the run's name in a comparison.
fn of_run(heading: &str, name: Option<&str>) -> String {
    name.map_or_else(|| heading.to_string(), |name| format!("{heading}: {name}"))
}

pub(super) fn mistakes(run: &RunRecord, name: Option<&str>) -> Result<Markup> {
    let Ok(test) = &run.test else { return Ok(html! {}) };
    if test.mistakes.is_empty() {
        let heading = of_run("Mistakes", name);
        return Ok(html! { section { h2 { (heading) } p { "All test images are classified correctly." } } });
    }
    let mut figures = Vec::new();
    for image in &test.mistakes {
        figures.push((image, image.tile.data_uri()?));
    }
    Ok(html! {
        section {
            h2 { (of_run("Most confident mistakes", name)) }
            p { "The misclassified test images with the highest predicted probability." }
            div.gallery {
                @for (image, source) in &figures {
                    figure {
                        img src=(source) alt=(outcome(image)) width=(image.tile.size) height=(image.tile.size);
                        figcaption { (caption(image)) br; span.file { (file_name(image)) } }
                    }
                }
            }
        }
    })
}

/// `predicted bees (97 %), actually ants`
fn outcome(image: &PredictedImage) -> String {
    let truth = if image.is_correct() { "correct".into() } else { format!("actually {}", image.actual) };
    format!("predicted {} ({:.0} %), {truth}", image.predicted, 100.0 * image.probability)
}

fn caption(image: &PredictedImage) -> Markup {
    html! {
        "predicted " b { (image.predicted) } (format!(" ({:.0} %), ", 100.0 * image.probability))
        @if image.is_correct() { span.correct { "correct" } } @else { "actually " b.wrong { (image.actual) } }
    }
}

fn file_name(image: &PredictedImage) -> String {
    image.path.file_name().unwrap_or(image.path.as_os_str()).to_string_lossy().into_owned()
}

pub(super) fn grad_cams(run: &RunRecord, name: Option<&str>) -> Result<Markup> {
    let Ok(test) = &run.test else { return Ok(html! {}) };
    let mut figures = Vec::new();
    for image in &test.grad_cams {
        if let Some(grad_cam) = &image.grad_cam {
            figures.push((image, image.tile.data_uri()?, grad_cam.data_uri()?));
        }
    }
    if figures.is_empty() {
        return Ok(html! {});
    }
    Ok(html! {
        section {
            h2 { (of_run("Influential areas (Grad-CAM)", name)) }
            p {
                "Bright areas influenced the prediction most. Grad-CAM computes them from the gradients of the predicted class; they are \
                 coarse because the network's last feature map is small."
            }
            div.gallery.pairs {
                @for (image, source, grad_cam) in &figures {
                    figure {
                        div {
                            img src=(source) alt=(image.actual) width=(image.tile.size) height=(image.tile.size);
                            img src=(grad_cam) alt=(format!("areas that influenced the prediction {}", image.predicted)) width=(image.tile.size) height=(image.tile.size);
                        }
                        figcaption { (caption(image)) }
                    }
                }
            }
        }
    })
}
