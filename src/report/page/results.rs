//! The first part of the page: title, key figures, training curves, and the bars of a comparison.

use maud::{Markup, PreEscaped, html};

use super::super::curves::{COLOURS, inline, plots};
use super::super::record::RunRecord;
use super::settings::network_name;
use super::text::{counted, percent};
use crate::train::Metric;

/// The maximum number of classes in a window title.
const CLASSES_IN_TITLE: usize = 4;

pub(super) fn best_accuracy(run: &RunRecord) -> f64 {
    let accuracies =
        run.epochs().map(|metric| if let Metric::Epoch { test_acc, .. } = metric { *test_acc } else { 0.0 });
    accuracies.fold(0.0, f64::max)
}

fn last_accuracy(run: &RunRecord) -> f64 {
    match run.epochs().last() {
        Some(Metric::Epoch { test_acc, .. }) => *test_acc,
        _ => 0.0,
    }
}

pub(super) fn title(run: &RunRecord) -> String {
    match run.epochs().last() {
        Some(_) => {
            let classes: Vec<&str> = run.config.classes.iter().take(CLASSES_IN_TITLE).map(String::as_str).collect();
            format!("{}: {}", run.name, classes.join(", "))
        }
        None => format!("{}: no epoch finished yet", run.name),
    }
}

pub(super) fn headline(run: &RunRecord) -> String {
    match run.epochs().last() {
        Some(_) => format!("{} test accuracy", percent(best_accuracy(run))),
        None => "No epoch finished yet".into(),
    }
}

pub(super) fn lead(run: &RunRecord) -> String {
    let config = &run.config;
    let training = match (&config.weights, config.recipe.from_scratch) {
        (_, true) => "trained from random weights".to_string(),
        (Some(weights), false) => {
            let name = weights.file_name().unwrap_or(weights.as_os_str()).to_string_lossy();
            // The models of all runs have the same file name; their folders differ.
            let folder = weights.parent().and_then(|folder| folder.file_name()).map(|folder| folder.to_string_lossy());
            match folder {
                Some(folder) if name == "model.safetensors" => format!("fine-tuned from {folder}/{name}"),
                _ => format!("fine-tuned from {name}"),
            }
        }
        (None, false) => "fine-tuned from pretrained weights".into(),
    };
    format!(
        "{}, {training} on {} of {} and tested on {}.",
        network_name(&config.recipe),
        counted(config.train_images, "image", "images"),
        counted(config.classes.len(), "class", "classes"),
        counted(config.test_images, "other image", "other images"),
    )
}

pub(super) fn figures(run: &RunRecord) -> Markup {
    let Some(Metric::Epoch { epoch, train_loss, train_acc, test_acc, images_per_second, .. }) = run.epochs().last()
    else {
        return html! {};
    };
    let wanted = run.config.recipe.epochs;
    html! {
        section {
            h2 { "Results" }
            dl.figures {
                div { dt { "best test accuracy" } dd { (percent(best_accuracy(run))) } }
                div { dt { "final test accuracy" } dd { (percent(*test_acc)) } }
                div { dt { "training accuracy" } dd { (percent(*train_acc)) } }
                div { dt { "training loss" } dd { (format!("{train_loss:.3}")) } }
                div { dt { "images/s" } dd { (format!("{images_per_second:.1}")) } }
                div { dt { "epochs" } dd { (epoch) @if *epoch < wanted { " of " (wanted) } } }
            }
            p.summary {
                (format!(
                    "loss {train_loss:.3}, train acc {train_acc:.3}, test acc {test_acc:.3}; {images_per_second:.1} examples/sec on {}",
                    run.config.device
                ))
            }
            p.note {
                "Accuracy is the share of images that are classified correctly. The saved model is that of the epoch with the best test \
                 accuracy, which makes this figure slightly optimistic. Training accuracy is measured on randomly cropped images, which \
                 are harder to classify than the test images."
            }
        }
    }
}

pub(super) fn curves(runs: &[&RunRecord]) -> Markup {
    if runs.iter().all(|run| run.metrics.is_empty()) {
        return html! {};
    }
    let [loss, accuracy] = plots(runs);
    html! {
        section {
            h2 { "Training curves" }
            div.plots {
                (PreEscaped(inline(&loss, "loss per epoch")))
                (PreEscaped(inline(&accuracy, "accuracy per epoch")))
            }
            p.note {
                "An epoch is one pass over all training images. Solid lines: test images, after each epoch. Dashed lines: training \
                 images, averaged since the start of the epoch. The loss measures how far the predicted probabilities are from the \
                 correct classes; lower is better."
            }
        }
    }
}

pub(super) fn comparison(runs: &[&RunRecord]) -> Markup {
    html! {
        section {
            h2 { "Test accuracy" }
            div.bars {
                @for (index, run) in runs.iter().enumerate() {
                    div.bar {
                        span.name { (run.name) }
                        span.track { span class=(format!("fill f{}", index % COLOURS)) style=(format!("width:{:.1}%", 100.0 * last_accuracy(run))) {} }
                        span.value { (percent(last_accuracy(run))) }
                    }
                }
            }
            p.note { "The share of test images that are classified correctly after the last epoch." }
            div.scroll {
                table {
                    thead {
                        tr {
                            th { "run" } th.number { "final test accuracy" } th.number { "best test accuracy" }
                            th.number { "training accuracy" } th.number { "training loss" } th.number { "epochs" }
                        }
                    }
                    tbody {
                        @for run in runs {
                            @match run.epochs().last() {
                                Some(Metric::Epoch { epoch, train_loss, train_acc, test_acc, .. }) => tr {
                                    td { (run.name) }
                                    td.number { (percent(*test_acc)) }
                                    td.number { (percent(best_accuracy(run))) }
                                    td.number { (percent(*train_acc)) }
                                    td.number { (format!("{train_loss:.3}")) }
                                    td.number { (epoch) }
                                },
                                _ => tr { td { (run.name) } td colspan="5" { "no epoch finished yet" } },
                            }
                        }
                    }
                }
            }
        }
    }
}
