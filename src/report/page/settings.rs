//! The settings of a run, the differences between runs, and how to use the model.

use maud::{Markup, html};

use super::super::record::RunRecord;
use crate::data::{Operation, Transform};
use crate::model::{Architecture, FULL_WIDTH, ResNet};
use crate::train::Recipe;

/// `ResNet-18`, with its width if it is not torchvision's.
pub(super) fn network_name(recipe: &Recipe) -> String {
    let title = |architecture: Architecture| architecture.title().to_string();
    let name = recipe.architecture.parse().map_or_else(|_| recipe.architecture.clone(), title);
    if recipe.width == FULL_WIDTH { name } else { format!("{name} (width {})", recipe.width) }
}

/// What is drawn for each training image.
fn augmentation(recipe: &Recipe) -> String {
    let transform = Transform::training(recipe.image_size as u32, &recipe.augment);
    transform.operations().iter().map(Operation::to_string).collect::<Vec<_>>().join(", ")
}

/// Name, value and meaning of every setting.
fn rows(recipe: &Recipe) -> Vec<(&'static str, String, &'static str)> {
    let head = recipe.learning_rate * recipe.head_lr_multiplier;
    vec![
        ("network", network_name(recipe), "the architecture"),
        (
            "initial weights",
            if recipe.from_scratch { "random" } else { "pretrained" }.into(),
            "the weights before the first step",
        ),
        ("epochs", recipe.epochs.to_string(), "passes over the training images"),
        ("batch size", recipe.batch_size.to_string(), "images per step"),
        ("learning rate", format!("{:e}", recipe.learning_rate), "the step size for all layers but the final one"),
        (
            "learning rate of the final layer",
            format!("{head:e}"),
            "the step size for the layer that outputs the classes",
        ),
        ("optimizer", recipe.optimizer.clone(), "the rule that turns gradients into updates"),
        ("momentum", recipe.momentum.to_string(), "the share of the previous update that is added to the next"),
        ("weight decay", format!("{:e}", recipe.weight_decay), "how strongly weights are pulled towards zero"),
        ("loss reduction", recipe.loss_reduction.clone(), "how the losses of a batch's images are combined"),
        (
            "gradient clipping",
            recipe.clip_gradient_norm.map_or("off".into(), |norm| format!("norm {norm}")),
            "the largest norm of all gradients together",
        ),
        (
            "frozen layers",
            if recipe.freeze.is_empty() { "none".into() } else { recipe.freeze.join(", ") },
            "layers that are not trained",
        ),
        ("image size", format!("{0} x {0}", recipe.image_size), "pixels of the images that the network sees"),
        (
            "augmentation",
            augmentation(recipe),
            "how training images are changed at random, so that the network does not learn them by heart",
        ),
        (
            "EXIF orientation",
            if recipe.exif { "applied" } else { "ignored" }.into(),
            "whether photos are rotated as the camera was held; torchvision ignores it",
        ),
        ("seed", recipe.seed.to_string(), "the same seed gives the same result"),
    ]
}

pub(super) fn settings(run: &RunRecord) -> Markup {
    let config = &run.config;
    html! {
        section {
            h2 { "Settings" }
            div.scroll {
                table {
                    tbody {
                        @for (name, value, meaning) in rows(&config.recipe) {
                            tr { th scope="row" { (name) } td { (value) } td.meaning { (meaning) } }
                        }
                        tr { th scope="row" { "device" } td { (config.device) ", " (config.precision) } td.meaning { "where the run was computed, and in which precision" } }
                        tr { th scope="row" { "version" } td { "retune " (config.retune) } td.meaning { "the program that started the run" } }
                    }
                }
            }
        }
    }
}

/// The settings that differ between several runs, side by side.
pub(super) fn differences(runs: &[&RunRecord]) -> Markup {
    let recipes: Vec<_> = runs.iter().map(|run| rows(&run.config.recipe)).collect();
    let Some(first) = recipes.first() else { return html! {} };
    let differs = |row: &usize| recipes.iter().any(|recipe| recipe[*row].1 != first[*row].1);
    let (different, same): (Vec<usize>, Vec<usize>) = (0..first.len()).partition(differs);
    let same: Vec<String> = same.iter().map(|&row| format!("{} {}", first[row].0, first[row].1)).collect();
    html! {
        section {
            h2 { "Differences in settings" }
            @if !different.is_empty() {
                div.scroll {
                    table {
                        thead { tr { th {} @for run in runs { th { (run.name) } } } }
                        tbody {
                            @for row in different {
                                tr { th scope="row" { (first[row].0) } @for recipe in &recipes { td { (recipe[row].1) } } }
                            }
                        }
                    }
                }
            }
            p.note { "The same in all runs: " (same.join("; ")) "." }
        }
    }
}

pub(super) fn usage(run: &RunRecord) -> Markup {
    let model = run.folder.join("model.safetensors");
    let (recipe, classes) = (&run.config.recipe, run.config.classes.len());
    let resnet = recipe.architecture.parse().map(|architecture| ResNet { architecture, width: recipe.width, classes });
    let torchvision = resnet.ok().and_then(|resnet| resnet.torchvision_call());
    html! {
        section {
            h2 { "Using the model" }
            pre { code {
                "retune predict " (model.display()) " new.jpg\n"
                "retune eval " (model.display()) " more-photos\n"
                "retune convert " (model.display()) " model.onnx"
            } }
            @if let Some(torchvision) = torchvision {
                p { "In Python:" }
                pre { code {
                    "net = " (torchvision) "\n"
                    "net.load_state_dict(safetensors.torch.load_file(\"model.safetensors\"))"
                } }
            } @else {
                p { "torchvision has no network of this width. Other programs can run the model as ONNX." }
            }
        }
    }
}
