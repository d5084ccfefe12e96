//! The first part of the page: title, key figures and training curves.

use maud::{Markup, PreEscaped, html};

use super::super::curves::{inline, plots};
use super::super::measures::Measures;
use super::super::record::RunRecord;
use super::settings::network_name;
use super::text::{counted, percent};
use super::times;
use crate::data::Role;
use crate::printable::plain_number;
use crate::train::{HeldOut, Metric, Trial, TriedPenalty};

/// The maximum number of classes in a window title.
const CLASSES_IN_TITLE: usize = 4;

pub(in super::super) fn best_accuracy(run: &RunRecord) -> f64 {
    run.final_test().map_or_else(|| best_held_out(run), |(_, accuracy)| accuracy)
}

/// The accuracy of the saved model on the images that choose it, or would have.
pub(in super::super) fn best_held_out(run: &RunRecord) -> f64 {
    if run.keeps_last() {
        return run.since_change().iter().rev().find_map(accuracy_of).unwrap_or(0.0);
    }
    run.since_change().iter().filter_map(accuracy_of).fold(0.0, f64::max)
}

fn accuracy_of(metric: &Metric) -> Option<f64> {
    match metric {
        Metric::Epoch { held_out, .. } | Metric::Changed { held_out, .. } => Some(held_out.accuracy()),
        _ => None,
    }
}

fn number_of(metric: &Metric) -> usize {
    match metric {
        Metric::Epoch { epoch, .. } => *epoch,
        _ => 0,
    }
}

fn name_of(metric: &Metric) -> Option<&'static str> {
    match metric {
        Metric::Epoch { held_out, .. } => Some(held_out.name()),
        _ => None,
    }
}

fn last_accuracy(run: &RunRecord) -> f64 {
    let last = || run.epochs().last().and_then(accuracy_of).unwrap_or(0.0);
    run.final_test().map_or_else(last, |(_, accuracy)| accuracy)
}

/// What chose the epoch whose model is kept, and what that does to the figure.
fn choice(run: &RunRecord, held_out: &HeldOut) -> String {
    let trained = counted(run.epochs().filter(|metric| number_of(metric) > 0).count(), "epoch", "epochs");
    let epochs = match run.config.recipe.fit_head {
        true => format!("the fitted final layer and {trained}"),
        false => trained,
    };
    if run.keeps_last() {
        let last = run.epochs().last().map_or(0, number_of);
        let model =
            if last == 0 { "with the fitted final layer".to_string() } else { format!("of the last epoch, {last}") };
        return format!("The saved model is that {model}. The {} images had no part in choosing it.", held_out.name());
    }
    match (held_out, run.final_test()) {
        (HeldOut::Validation { .. }, Some((epoch, _))) => format!(
            "The validation images chose the model that is saved, that of {}, among {epochs}. The test images had no part in that: they \
             were classified once, at the end, by this model.",
            if epoch == 0 { "the fitted final layer".to_string() } else { format!("epoch {epoch}") }
        ),
        (HeldOut::Validation { .. }, None) => {
            "The validation images choose the epoch whose model is saved. The test images are classified at the end."
                .into()
        }
        (HeldOut::Test { .. }, _) if run.epochs().count() == 1 => {
            "There was one model only, so the test images had no part in choosing the one that is saved.".into()
        }
        (HeldOut::Test { .. }, _) => format!(
            "The saved model is that with the best test accuracy, among {epochs}. As the same images chose it and measured it, the \
             figure is a little flattering. A folder val/ beside train/ and test/ avoids that: it then chooses the model, and the test \
             images are used once, at the end."
        ),
    }
}

pub(super) fn title(run: &RunRecord) -> String {
    match run.epochs().last() {
        Some(_) => {
            let classes = &run.config.classes;
            let more = if classes.len() > CLASSES_IN_TITLE { ", ..." } else { "" };
            format!("{}: {}{more}", run.name, classes[..classes.len().min(CLASSES_IN_TITLE)].join(", "))
        }
        None => format!("{}: no epoch finished yet", run.name),
    }
}

pub(super) fn headline(run: &RunRecord) -> String {
    match run.epochs().last() {
        Some(Metric::Epoch { held_out: HeldOut::Validation { .. }, .. }) if run.final_test().is_none() => {
            format!("{} validation accuracy", percent(best_accuracy(run)))
        }
        Some(_) => format!("{} test accuracy", percent(best_accuracy(run))),
        None => "No epoch finished yet".into(),
    }
}

pub(super) fn lead(run: &RunRecord) -> String {
    let config = &run.config;
    let is_leaked = run.data_check.as_ref().is_some_and(|check| check.leaked(Role::Test, Role::Train) > 0);
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
    let validated = config.validation_images.map_or(String::new(), |images| {
        let images = counted(images, "validation image", "validation images");
        if run.keeps_last() { format!(", evaluated on {images}") } else { format!(", chosen by {images}") }
    });
    format!(
        "{}, {training} on {} of {}{validated} and tested on {}.",
        network_name(&config.recipe),
        counted(config.train_images, "image", "images"),
        counted(config.classes.len(), "class", "classes"),
        match is_leaked {
            true => counted(config.test_images, "image", "images"),
            false => counted(config.test_images, "other image", "other images"),
        },
    )
}

pub(super) fn figures(run: &RunRecord) -> Markup {
    let Some(Metric::Epoch { epoch, train_loss, train_acc, held_out, .. }) = run.epochs().last() else {
        return html! {};
    };
    let images_per_second = Metric::images_per_second(run.epochs()).unwrap_or_default();
    let wanted = if run.has_fixed_body() { 0 } else { run.config.recipe.epochs };
    html! {
        section {
            h2 { "Results" }
            dl.figures {
                @if let Some((_, accuracy)) = run.final_test() {
                    div { dt { "test accuracy" } dd { (percent(accuracy)) } }
                }
                @let keeps_best = !run.keeps_last() && run.epochs().count() > 1;
                div { dt { @if keeps_best { "best " } (held_out.name()) " accuracy" } dd { (percent(best_held_out(run))) } }
                @if run.final_test().is_none() && *epoch > 0 && keeps_best {
                    div { dt { "final " (held_out.name()) " accuracy" } dd { (percent(held_out.accuracy())) } }
                }
                div { dt { "training accuracy" } dd { (percent(*train_acc)) } }
                div { dt { "training loss" } dd { (format!("{train_loss:.3}")) } }
                div { dt { "images/s" } dd { (format!("{images_per_second:.1}")) } }
                @if wanted > 0 { div { dt { "epochs" } dd { (epoch) @if *epoch < wanted { " of " (wanted) } } } }
            }
            p.summary {
                (format!(
                    "loss {train_loss:.3}, train acc {train_acc:.3}, {} acc {:.3}; {images_per_second:.1} examples/sec on {}",
                    if run.final_test().is_some() { "test" } else { held_out.short_name() },
                    last_accuracy(run),
                    run.config.device
                ))
            }
            (measures(run))
            p.note {
                "Accuracy is the share of images that are classified correctly. " (choice(run, held_out))
                @match (*epoch, run.config.recipe.mixing()) {
                    (0, _) => {}
                    (_, None) => " Training accuracy is measured on randomly cropped images, which are harder to classify than whole ones.",
                    (_, Some(_)) => {
                        " Training accuracy is measured on images that are randomly cropped and mixed with others, and counts the class with the \
                         larger share, so it is lower than on plain images."
                    }
                }
            }
            (trials(run))
            (head_fit(run))
            (times::summary(run))
            (times::epochs(run))
        }
    }
}

/// How the final layer was fitted, if it was.
fn head_fit(run: &RunRecord) -> Markup {
    let Some((penalty, tried)) = run.head_fit() else { return html! {} };
    html! {
        p {
            @if run.has_fixed_body() { "Only the final layer was trained" } @else { "Before the first epoch, the final layer was fitted" }
            ": to the features that the other layers compute of " (run.config.recipe.fitted_to()) ". Its weights are kept small by a \
             penalty of " (penalty) ", which did best on training images that were held out in turn."
            @if let Some(end) = end_of_range(penalty, tried) {
                " It is the " (end) " of those that were tried."
            }
        }
        details {
            summary { "Penalties that were tried" }
            div.scroll {
                table {
                    thead {
                        tr { th.number { "penalty" } th.number { "loss on held-out images" } th.number { "accuracy on held-out images" } }
                    }
                    tbody {
                        @for one in tried {
                            tr {
                                td.number { (one.penalty) }
                                td.number { (format!("{:.3}", one.loss)) }
                                td.number { (percent(one.accuracy)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Whether a penalty is at an end of the range that was tried.
fn end_of_range(penalty: f64, tried: &[TriedPenalty]) -> Option<&'static str> {
    let is_end = |is_beyond: fn(f64, f64) -> bool| !tried.iter().any(|one| is_beyond(one.penalty, penalty));
    match (tried.len() > 1, is_end(|other, this| other > this), is_end(|other, this| other < this)) {
        (true, true, _) => Some("largest"),
        (true, _, true) => Some("smallest"),
        _ => None,
    }
}

/// How the learning rate was chosen, if some were tried.
fn trials(run: &RunRecord) -> Markup {
    let Some(Metric::Trials { held_back, epochs, trials, chosen, .. }) = run.trials() else { return html! {} };
    let Some((alone, others)) = trials.split_first() else { return html! {} };
    let winner = others.iter().find(|trial| trial.learning_rate == *chosen);
    let images = counted(*held_back, "training image", "training images");
    let most = others.iter().map(|trial| trial.gained + trial.lost).max().unwrap_or(0);
    html! {
        p {
            "Before training, " (images) " were held back to choose how to train. A final layer that was fitted to the others, with all other \
             layers unchanged, classified " (percent(alone.accuracy)) " of them correctly. Then all layers were trained for "
            (counted(*epochs, "epoch", "epochs")) " with each of " (counted(others.len(), "learning rate", "learning rates")) ". "
            @match winner {
                Some(trial) => {
                    "A learning rate of " (plain_number(trial.learning_rate.unwrap_or_default())) " did best: it lowered the loss from "
                    (loss(alone.loss)) " to " (loss(trial.loss))
                    @if let Some(error) = trial.standard_error.filter(|error| error.is_finite()) {
                        ", which is more than the uncertainty of this difference, " (format!("{error:.3}"))
                    }
                    ", and classified " (percent(trial.accuracy)) " correctly. So all layers were \
                     trained with it, on all training images."
                }
                None => {
                    "None of them had a loss below that of the fitted final layer alone, " (loss(alone.loss))
                    @if others.iter().any(|trial| trial.standard_error.is_some()) {
                        ", by more than the uncertainty of the difference"
                    }
                    ". So only the final layer was trained, on all training images."
                }
            }
            @if run.config.recipe.calibrate { " (The losses are those after calibration, so that certainty alone does not decide.)" }
            " The choice is uncertain, because the held-back images are a sample: "
            @if most == 0 { "all trials classified the same images correctly." } @else {
                "the trials differ from the fitted final layer alone in at most " (counted(most, "image", "images")) "."
            }
        }
        details {
            summary { "Learning rates that were tried" }
            div.scroll {
                table {
                    thead {
                        tr {
                            th { "learning rate" } th.number { "loss" } th.number { "difference" } th.number { "accuracy" }
                            th.number { "images gained" } th.number { "images lost" }
                        }
                    }
                    tbody {
                        @for trial in trials {
                            tr {
                                td { (trial.learning_rate.map_or("fitted final layer alone".to_string(), plain_number)) }
                                td.number { (loss(trial.loss)) }
                                td.number { (difference(trial, alone)) }
                                td.number { (percent(trial.accuracy)) }
                                td.number { (trial.gained) }
                                td.number { (trial.lost) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The difference of the losses with its standard error.
fn difference(trial: &Trial, alone: &Trial) -> String {
    match (trial.loss, alone.loss, trial.standard_error) {
        (Some(loss), Some(alone), Some(error)) if error.is_finite() => format!("{:+.3} ± {error:.3}", loss - alone),
        _ => "–".into(),
    }
}

fn loss(loss: Option<f64>) -> String {
    loss.map_or("not finite".into(), |loss| format!("{loss:.3}"))
}

/// What the test images say of the saved model, with the uncertainty that their number leaves.
fn measures(run: &RunRecord) -> Markup {
    let Ok(test) = &run.test else { return html! {} };
    let Measures { accuracy_interval: [low, high], balanced_accuracy, top5_accuracy, calibration_error } =
        test.measures;
    let images = test.totals.images as usize;
    html! {
        p {
            "The saved model classifies " (test.totals.correct) " of " (counted(images, "test image", "test images")) " correctly, "
            (percent(test.totals.accuracy())) ". As this is a sample, the accuracy on all such images is likely between " (percent(low))
            " and " (percent(high)) " (95 % interval, Wilson). Models whose intervals overlap may be equally good."
        }
        dl.figures {
            div { dt { "balanced accuracy" } dd { (percent(balanced_accuracy)) } }
            @if let Some(share) = top5_accuracy { div { dt { "top-5 accuracy" } dd { (percent(share)) } } }
            @if let Some(error) = calibration_error { div { dt { "calibration error" } dd { (percent(error)) } } }
        }
        p.note {
            "Balanced accuracy is the mean recall of the classes, so that small classes count as much as large ones. "
            @if top5_accuracy.is_some() { "Top-5 accuracy is the share of images whose class is among the five most probable. " }
            @if calibration_error.is_some() {
                "The calibration error says how far predicted probabilities are from the share of correct predictions, on average."
            } @else {
                "For a calibration error, there are too few test images."
            }
        }
    }
}

pub(super) fn curves(runs: &[&RunRecord]) -> Markup {
    // One point is no curve.
    if !runs
        .iter()
        .flat_map(|run| run.metrics.iter())
        .any(|metric| matches!(metric, Metric::Progress { .. }) || number_of(metric) > 0)
    {
        return html! {};
    }
    let [loss, accuracy] = plots(runs);
    let mut names: Vec<&str> = runs.iter().filter_map(|run| run.epochs().last()).filter_map(name_of).collect();
    names.dedup();
    let held_out = if names.is_empty() { "test".to_string() } else { names.join(" or ") };
    html! {
        section {
            h2 { "Training curves" }
            div.plots {
                (PreEscaped(inline(&loss, "loss per epoch")))
                (PreEscaped(inline(&accuracy, "accuracy per epoch")))
            }
            p.note {
                "An epoch is one pass over all training images. Solid lines: " (held_out) " images, after each epoch. Dashed lines: training \
                 images, averaged since the start of the epoch. The loss measures how far the predicted probabilities are from the \
                 correct classes; lower is better."
                @if runs.iter().any(|run| !run.config.recipe.trains_on_plain_loss()) {
                    " The training loss contains what the recipe adds to it: class weights, label smoothing, mixed images. That of the \
                     solid lines does not."
                }
                @if runs.iter().any(|run| run.config.recipe.ema.is_some()) {
                    " Where weights are averaged, the solid lines are those of the averages, and the dashed lines those of the weights that \
                     are trained."
                }
            }
        }
    }
}
