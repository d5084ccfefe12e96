//! Predictions of the best model for the test images: confusion matrix, per-class results, mistakes and other images, Grad-CAM.

use std::collections::HashSet;

use maud::{Markup, html};

use super::super::confusion::Pair;
use super::super::grad_cam::legend;
use super::super::record::{PredictedImage, RunRecord, TestRecord};
use super::pictures::figure;
use super::text::percent;
use crate::error::Result;

/// A confusion matrix of more classes does not fit the page.
const WIDEST_MATRIX: usize = 24;
/// Pairs of confused classes, in place of a matrix and below one.
const LISTED: usize = 20;
const LISTED_BELOW_MATRIX: usize = 8;
/// A second class of a lower probability is not named.
const NOTABLE: f64 = 0.1;
/// With more classes than this, the table of per-class results starts folded.
const MOST_UNFOLDED: usize = 12;

/// The section of a run's report. If the test images could not be evaluated, it states the reason.
pub(super) fn confusion(run: &RunRecord) -> Markup {
    html! {
        section {
            h2 { (heading(run)) }
            @match &run.test {
                Ok(test) => { (matrix(run, test)) (pairs(run, test)) (per_class(run, test)) }
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
                (pairs(run, test))
                (per_class(run, test))
            }
        }
    }
}

fn heading(run: &RunRecord) -> &'static str {
    if run.config.classes.len() <= WIDEST_MATRIX { "Confusion matrix" } else { "Confusions" }
}

fn matrix(run: &RunRecord, test: &TestRecord) -> Markup {
    let classes = &run.config.classes;
    let rows = test.confusion.rows();
    let heat = |count: usize, row: &[usize]| {
        let all: usize = row.iter().sum();
        if all == 0 { 0.0 } else { 100.0 * count as f64 / all as f64 }
    };
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
        }
    }
}

/// The pairs of classes that are confused most often.
fn pairs(run: &RunRecord, test: &TestRecord) -> Markup {
    let classes = &run.config.classes;
    let pairs = test.confusion.pairs();
    let listed = if classes.len() <= WIDEST_MATRIX { LISTED_BELOW_MATRIX } else { LISTED };
    html! {
        @if !pairs.is_empty() {
            h3 { "Most confused pairs" }
            div.scroll {
                table {
                    thead { tr { th { "actual" } th { "predicted" } th.number { "test images" } th.number { "of the class" } } }
                    tbody {
                        @for Pair { actual, predicted, images, of } in pairs.iter().take(listed) {
                            tr { td { (classes[*actual]) } td { (classes[*predicted]) } td.number { (images) } td.number { (percent(*images as f64 / *of as f64)) } }
                        }
                    }
                }
            }
            @if pairs.len() > listed { p.note { "Only the first " (listed) " of " (pairs.len()) " pairs are listed." } }
        }
    }
}

/// Stands for a number that there is not.
const NONE: &str = "–";

fn per_class(run: &RunRecord, test: &TestRecord) -> Markup {
    let classes = &run.config.classes;
    html! {
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
                                td.number { (class.precision.map_or(NONE.into(), percent)) }
                                td.number { (class.recall.map_or(NONE.into(), percent)) }
                                td.number { (class.f1.map_or(NONE.into(), |f1| format!("{f1:.3}"))) }
                            }
                        }
                    }
                }
            }
            p.note {
                "Precision: of the images predicted as this class, the share that belongs to it. Recall: of the images of this class, the \
                 share that is predicted correctly. F1: the harmonic mean of the two. A dash stands where there are no such images."
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
    let lead = "The misclassified test images with the highest predicted probability. If many are labelled wrongly, correct the data set.";
    gallery("mistake", &of_run("Most confident mistakes", name), lead, &test.mistakes)
}

/// The test images of which the model is least certain.
pub(super) fn least_certain(run: &RunRecord, name: Option<&str>) -> Result<Markup> {
    let Ok(test) = &run.test else { return Ok(html! {}) };
    let lead = "The test images with the lowest predicted probability. More training images like these would help the model most.";
    gallery("doubt", &of_run("Least certain images", name), lead, &test.least_certain)
}

/// Some images of each class that are classified correctly.
pub(super) fn correct(run: &RunRecord, name: Option<&str>) -> Result<Markup> {
    let Ok(test) = &run.test else { return Ok(html! {}) };
    let shown = test.correct.iter().map(|image| image.actual.as_str()).collect::<HashSet<&str>>().len();
    let lead = if shown < run.config.classes.len() {
        format!(
            "The correctly classified test images with the highest predicted probability, for {shown} of the {} classes.",
            run.config.classes.len()
        )
    } else {
        "The correctly classified test images with the highest predicted probability, for every class.".into()
    };
    gallery("correct", &of_run("Correct predictions", name), &lead, &test.correct)
}

/// A section of images with their predictions; empty without images.
fn gallery(id: &str, heading: &str, lead: &str, images: &[PredictedImage]) -> Result<Markup> {
    let figure = |(index, image): (usize, &PredictedImage)| {
        let caption = html! { (caption(image)) br; span.file { (file_name(image)) } };
        figure(&format!("{id}-{index}"), &[(&image.tile, outcome(image))], &caption)
    };
    let figures = images.iter().enumerate().map(figure).collect::<Result<Vec<Markup>>>()?;
    Ok(html! {
        @if !figures.is_empty() {
            section {
                h2 { (heading) }
                p { (lead) }
                div.gallery { @for figure in &figures { (figure) } }
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
        "predicted " b { (image.predicted) } (format!(" ({:.0}\u{a0}%), ", 100.0 * image.probability))
        @if let Some((class, probability)) = image.second.as_ref().filter(|(_, probability)| *probability >= NOTABLE) {
            (format!("or {class} ({:.0}\u{a0}%), ", 100.0 * probability))
        }
        @if image.is_correct() { span.correct { "correct" } } @else { "actually " b.wrong { (image.actual) } }
    }
}

fn file_name(image: &PredictedImage) -> String {
    image.path.file_name().unwrap_or(image.path.as_os_str()).to_string_lossy().into_owned()
}

pub(super) fn grad_cams(run: &RunRecord, name: Option<&str>) -> Result<Markup> {
    let Ok(test) = &run.test else { return Ok(html! {}) };
    let mut figures = Vec::new();
    for (index, image) in test.grad_cams.iter().enumerate() {
        if let Some(grad_cam) = &image.grad_cam {
            let areas = format!("areas that influenced the prediction {}", image.predicted);
            figures.push(figure(
                &format!("grad-cam-{index}"),
                &[(&image.tile, outcome(image)), (grad_cam, areas)],
                &caption(image),
            )?);
        }
    }
    if figures.is_empty() {
        return Ok(html! {});
    }
    Ok(html! {
        section {
            h2 { (of_run("Influential areas (Grad-CAM)", name)) }
            p {
                "Yellow areas influenced the prediction most. Grad-CAM computes them from the gradients of the predicted class; they are \
                 coarse because the network's last feature map is small."
            }
            div.legend {
                span { "no influence" }
                span.colours style=(format!("background:linear-gradient(90deg,{})", legend())) {}
                span { "most influence" }
            }
            div.gallery.pairs { @for figure in &figures { (figure) } }
            p.note { "Left: the part of the image that the network sees. Right: the same in grey, tinted with its influence on the prediction, relative to the most influential place of the image." }
        }
    })
}
