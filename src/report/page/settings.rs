//! The settings of a run, and the differences between runs.

use maud::{Markup, html};

use super::super::record::RunRecord;
use crate::data::{Operation, ResizeMode};
use crate::model::{Architecture, FULL_WIDTH};
use crate::optim::{OptimizerSettings, ScheduleKind, WarmUp};
use crate::printable::plain_number;
use crate::train::{Recipe, RunConfig};

/// `ResNet-18`, with its width if it is not torchvision's.
pub(super) fn network_name(recipe: &Recipe) -> String {
    let title = |architecture: Architecture| architecture.title().to_string();
    let name = recipe.architecture.parse().map_or_else(|_| recipe.architecture.clone(), title);
    if recipe.width == FULL_WIDTH { name } else { format!("{name} (width {})", recipe.width) }
}

/// The operations on each training image.
pub(super) fn augmentation(recipe: &Recipe) -> String {
    let transform = recipe.training_transform();
    transform.operations().iter().map(Operation::to_string).collect::<Vec<_>>().join(", ")
}

/// Name, value and meaning of a setting.
struct Row {
    name: &'static str,
    value: String,
    meaning: &'static str,
}

/// The rows of the table.
struct Rows {
    rows: Vec<Row>,
    /// Whether there are epochs. Otherwise only the final layer is fitted.
    has_epochs: bool,
}

impl Rows {
    fn add(&mut self, name: &'static str, value: String, meaning: &'static str) {
        self.rows.push(Row { name, value, meaning });
    }

    /// Adds a setting that has a part in epochs only.
    fn add_of_epochs(&mut self, name: &'static str, value: String, meaning: &'static str) {
        if self.has_epochs {
            self.add(name, value, meaning);
        }
    }
}

/// All settings of a run. Every field of the recipe is in one of them.
fn rows(config: &RunConfig) -> Vec<Row> {
    let recipe = &config.recipe;
    let Recipe {
        architecture: _,
        width: _,
        from_scratch,
        epochs,
        batch_size,
        accumulate,
        balanced_sampling,
        learning_rate,
        head_lr_multiplier,
        layer_lr_decay,
        schedule,
        warm_up,
        schedule_from,
        patience,
        steps,
        try_learning_rates,
        keep_last: _,
        validation_chooses: _,
        ema,
        weight_decay,
        no_decay_norm_bias,
        optimizer,
        hyperparameters: _,
        loss_reduction,
        label_smoothing,
        class_weights,
        mixup,
        cutmix,
        clip_gradient_norm,
        freeze,
        freeze_batch_norm,
        head_from,
        new_head,
        fit_head,
        feature_copies: _,
        image_size,
        train_size,
        resize,
        average_mirror,
        calibrate,
        exif,
        drop_duplicates,
        augment: _,
        test_fraction,
        labels,
        seed,
    } = recipe;
    let mut rows = Rows { rows: Vec::new(), has_epochs: !recipe.fits_only() };
    rows.add("network", network_name(recipe), "the architecture");
    let weights = match &config.weights {
        Some(weights) => weights.display().to_string(),
        None if *from_scratch => "random".into(),
        None => "pretrained".into(),
    };
    rows.add("initial weights", weights, "the weights before the first step");
    if let Some(numbers) = head_from {
        let numbers = numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        rows.add(
            "initial final layer",
            format!("rows {numbers}"),
            "the rows of the pretrained final layer that the new one starts with",
        );
    }
    if *new_head {
        rows.add("initial final layer", "random".into(), "a new one, even if that of the weights has the same classes");
    }
    if *fit_head {
        let value = format!("fitted to {}", recipe.fitted_to());
        rows.add("start of the final layer", value, "before the first epoch, with the other layers as they are");
    }
    let is_tried = !try_learning_rates.is_empty();
    let none = if is_tried { ", or none if the trials choose the fitted final layer" } else { "" };
    rows.add_of_epochs("epochs", format!("{epochs}{none}"), "passes over the training images");
    if *accumulate == 1 {
        rows.add("batch size", batch_size.to_string(), "images per step");
    } else {
        rows.add("batch size", batch_size.to_string(), "images that are computed at once");
        rows.add_of_epochs(
            "batches per step",
            accumulate.to_string(),
            "batches whose gradients are added before each update",
        );
    }
    let [rate, rate_of_head] = match is_tried {
        true => {
            ["chosen by trials".into(), format!("{} times that of the other layers", plain_number(*head_lr_multiplier))]
        }
        false => [*learning_rate, learning_rate * head_lr_multiplier].map(plain_number),
    };
    rows.add_of_epochs("learning rate", rate, "the step size for all layers but the final one");
    if *balanced_sampling {
        rows.add_of_epochs("sampling", "balanced".into(), "images are drawn so that every class is equally likely");
    }
    rows.add_of_epochs(
        "learning rate of the final layer",
        rate_of_head,
        "the step size for the layer that outputs the classes",
    );
    if *layer_lr_decay != 1.0 {
        let value = format!("{} times that of the stage above", plain_number(*layer_lr_decay));
        rows.add_of_epochs(
            "learning rate of lower layers",
            value,
            "of each stage, from layer3 down to the first layer",
        );
    }
    let known = ScheduleKind::find(schedule).ok();
    rows.add_of_epochs("schedule", schedule.clone(), "how the learning rates change over the steps");
    if let Some(warm_up) =
        warm_up.or_else(|| known.map(|kind| kind.warm_up)).filter(|warm_up| *warm_up != WarmUp::Steps(0))
    {
        rows.add_of_epochs("warm-up", warm_up.to_string(), "the steps over which the learning rates rise");
    }
    if *schedule_from > 0 {
        rows.add("start of the schedule", format!("after epoch {schedule_from}"), "the run was extended then");
    }
    if is_tried {
        let rates: Vec<String> = try_learning_rates.iter().map(|&rate| plain_number(rate)).collect();
        rows.add(
            "tried learning rates",
            rates.join(", "),
            "learning rates that were tried on held-back training images",
        );
    }
    if recipe.keeps_last(config.validation_images.is_some()) {
        rows.add_of_epochs("saved model", "that of the last epoch".into(), "no images chose the epoch");
    }
    if let Some(decay) = ema {
        let value = format!("moving average, decay {decay}");
        rows.add_of_epochs(
            "evaluated weights",
            value,
            "the average over steps of the weights, which is the saved model",
        );
    }
    if let Some(steps) = steps {
        rows.add_of_epochs(
            "fewest steps",
            steps.to_string(),
            "the number of epochs is the smallest that has so many steps",
        );
    }
    if let Some(patience) = patience {
        rows.add_of_epochs("patience", patience.to_string(), "epochs without a better model after which the run ends");
    }
    rows.add_of_epochs("optimizer", optimizer.clone(), "the rule that turns gradients into updates");
    let known = recipe.optimizer().ok();
    for (of, value) in known.iter().flat_map(OptimizerSettings::values) {
        rows.add_of_epochs(of.name, format!("{value:?}"), of.meaning);
    }
    rows.add_of_epochs("weight decay", plain_number(*weight_decay), "how strongly weights are pulled towards zero");
    if *no_decay_norm_bias {
        rows.add_of_epochs(
            "without weight decay",
            "batch norms, biases".into(),
            "parameters that are not pulled towards zero",
        );
    }
    rows.add_of_epochs("loss reduction", loss_reduction.clone(), "how the losses of a batch's images are combined");
    if *label_smoothing > 0.0 {
        rows.add_of_epochs(
            "label smoothing",
            plain_number(*label_smoothing),
            "the share of the loss that is spread over all classes",
        );
    }
    if let Some(weights) = class_weights {
        rows.add("class weights", weights.to_string(), "how much an image of each class counts in the loss");
    }
    if let Some(alpha) = mixup {
        let meaning =
            "each training image and its label are mixed with another one of its batch; alpha decides how much";
        rows.add_of_epochs("mixup", format!("alpha {}", plain_number(*alpha)), meaning);
    }
    if let Some(alpha) = cutmix {
        let meaning = "a rectangle of each training image is that of another one of its batch, and their labels are mixed by area";
        rows.add_of_epochs("CutMix", format!("alpha {}", plain_number(*alpha)), meaning);
    }
    let clipping = clip_gradient_norm.map_or("off".into(), |norm| format!("norm {norm}"));
    rows.add_of_epochs("gradient clipping", clipping, "the largest norm of all gradients together");
    let frozen = if freeze.is_empty() { "none".into() } else { freeze.join(", ") };
    rows.add("frozen layers", frozen, "layers that are not trained");
    if *freeze_batch_norm {
        rows.add("frozen batch norms", "running statistics".into(), "what frozen batch norms normalise by");
    }
    rows.add("image size", format!("{image_size} x {image_size}"), "pixels of the images that the network sees");
    if let Some(size) = train_size {
        rows.add_of_epochs(
            "size of training images",
            format!("{size} x {size}"),
            "pixels of the images that the network is trained on",
        );
    }
    if *average_mirror {
        rows.add("tests and predictions", "image and mirror image".into(), "the outputs for both are averaged");
    }
    if *calibrate {
        let meaning = "a number by which the outputs are divided, so that probabilities agree with how often predictions are right";
        rows.add("temperature", "fitted".into(), meaning);
    }
    if !resize.is_default() {
        let meaning = match resize {
            ResizeMode::Crop => "images are cut to squares",
            ResizeMode::Squash => "images are scaled to squares, whatever their aspect ratio",
            ResizeMode::Pad => "images are padded with black to squares",
        };
        rows.add("resize mode", resize.to_string(), meaning);
    }
    if recipe.augments() {
        rows.add(
            "augmentation",
            augmentation(recipe),
            "how training images are changed at random, so that the network does not learn them by heart",
        );
    }
    let orientation = if *exif { "applied" } else { "ignored" };
    rows.add(
        "EXIF orientation",
        orientation.into(),
        "whether photos are rotated as the camera was held; torchvision ignores it",
    );
    if *drop_duplicates {
        rows.add("duplicates", "left out".into(), "images that the data set contains more than once");
    }
    if let Some(fraction) = test_fraction {
        rows.add("held out for testing", format!("{fraction} of each class"), "images that are not trained on");
    }
    rows.add("seed", seed.to_string(), "the same seed gives the same result");
    rows.add("data set", config.data.display().to_string(), "the folder of the images");
    if let Some(table) = labels {
        rows.add("labels", table.clone(), "the CSV file with the classes of the images");
    }
    rows.add(
        "device",
        format!("{}, {}", config.device, config.precision),
        "where the run was computed, and in which precision",
    );
    rows.add("version", format!("retune {}", config.retune), "the program that started the run");
    rows.rows
}

pub(super) fn settings(run: &RunRecord) -> Markup {
    html! {
        section {
            h2 { "Settings" }
            div.scroll {
                table.settings {
                    tbody {
                        @for Row { name, value, meaning } in rows(&run.config) {
                            tr { th scope="row" { (name) } td { (value) } td.meaning { (meaning) } }
                        }
                    }
                }
            }
        }
    }
}

/// The settings that differ between several runs, side by side. A run that does not have a setting has a dash.
pub(super) fn differences(runs: &[&RunRecord]) -> Markup {
    let runs_of_rows: Vec<Vec<Row>> = runs.iter().map(|run| rows(&run.config)).collect();
    let mut names: Vec<&str> = Vec::new();
    for row in runs_of_rows.iter().flatten() {
        if !names.contains(&row.name) {
            names.push(row.name);
        }
    }
    let value = |rows: &Vec<Row>, name: &str| {
        let row = rows.iter().find(|row| row.name == name);
        row.map_or_else(|| "–".to_string(), |row| row.value.clone())
    };
    let values = |name: &str| runs_of_rows.iter().map(|rows| value(rows, name)).collect::<Vec<String>>();
    let all = names.into_iter().map(|name| (name, values(name)));
    let (same, different): (Vec<_>, Vec<_>) =
        all.partition(|(_, values)| values.iter().all(|value| *value == values[0]));
    let same: Vec<String> = same.iter().map(|(name, values)| format!("{name} {}", values[0])).collect();
    html! {
        section {
            h2 { "Differences in settings" }
            @if different.is_empty() {
                p { "The runs have the same settings." }
            } @else {
                div.scroll {
                    table {
                        thead { tr { th {} @for run in runs { th { (run.name) } } } }
                        tbody {
                            @for (name, values) in different {
                                tr { th scope="row" { (name) } @for value in values { td { (value) } } }
                            }
                        }
                    }
                }
            }
            p.note { "The same in all runs: " (same.join("; ")) "." }
        }
    }
}
