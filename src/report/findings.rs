//! What is wrong with the results of a run, and what to do about it. Each rule is a function.

use super::confusion::Confusion;
use super::record::RunRecord;
use crate::data::{Role, counted, first_names};
use crate::printable::plain_number;
use crate::train::{Best, ClassWeights, DataCheck, Metric, Recipe};

/// Something that the user should know about a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is found, in a few words.
    pub title: &'static str,
    /// The numbers that show it.
    pub evidence: String,
    /// What to do.
    pub advice: String,
}

/// The results of an epoch.
#[derive(Debug, Clone, Copy)]
struct Epoch {
    number: usize,
    train_loss: f64,
    train_accuracy: f64,
    /// On the images that choose the model.
    loss: f64,
    accuracy: f64,
    /// The kind of those images.
    name: &'static str,
}

/// All findings, the most serious first.
pub(super) fn findings(run: &RunRecord) -> Vec<Finding> {
    // The loss of a fitted head is that of images without augmentation; what was measured before a change of the images cannot be compared.
    let measured = run.since_change();
    let epochs: Vec<Epoch> = measured.iter().filter_map(epoch_of).filter(|epoch| epoch.number > 0).collect();
    let stopped = run.metrics.iter().rev().find_map(stopped);
    let changed = measured.first().and_then(changed);
    let leaked = run.data_check.as_ref().and_then(|check| leaked(check, run.config.test_images));
    let unskilled =
        run.test.as_ref().ok().and_then(|test| no_skill(&test.confusion, &run.config.classes, &run.config.recipe));
    let untested = run.test.as_ref().ok().and_then(|test| untested(&test.confusion, &run.config.classes));
    let counts = run.images.as_ref().ok().map(|images| images.train_counts.as_slice());
    let diverged = divergence(run, counts);
    // A network that has diverged does not learn, and classifies like a guess.
    // Mixed images have a loss that depends on the shares that are drawn.
    let is_mixed = run.config.recipe.mixing().is_some();
    let flat = if diverged.is_none() && !is_mixed { not_falling(&epochs) } else { None };
    let unskilled = if diverged.is_none() { unskilled } else { None };
    let overfitted = if is_mixed { None } else { overfitting(&epochs, run.keeps_last()) };
    // More epochs do not help a run that does not learn, or one that did not end well.
    let is_sound = stopped.is_none() && diverged.is_none() && flat.is_none() && overfitted.is_none();
    let unfinished = if is_sound { still_improving(&epochs) } else { None };
    [stopped, diverged, changed, leaked, untested, unskilled, flat, overfitted, unfinished]
        .into_iter()
        .flatten()
        .collect()
}

/// Whether the training of a run diverged, although its numbers stayed finite. `train_counts` are the numbers of training images of each
/// class, if they are known.
pub fn divergence(run: &RunRecord, train_counts: Option<&[usize]>) -> Option<Finding> {
    // The fitted final layer saw plain images, which are easier than augmented ones.
    let epochs: Vec<Epoch> = run.epochs().filter_map(epoch_of).filter(|epoch| epoch.number > 0).collect();
    let (classes, images) = (run.config.classes.len().max(1), run.config.train_images.max(1));
    let largest = train_counts.and_then(|counts| counts.iter().max().copied());
    let share = largest.map_or(1.0 / classes as f64, |largest| largest as f64 / images as f64);
    let recipe = &run.config.recipe;
    let steps = epochs.len() * recipe.steps_of(images.div_ceil(recipe.batch_size));
    if steps < FEWEST_STEPS {
        return None;
    }
    // Class weights change the training loss of a guess, and mixed images even its accuracy.
    let has_weights = recipe.class_weights.as_ref().is_some_and(|weights| *weights != ClassWeights::Balanced);
    let evidence = match recipe.mixing().is_some() || has_weights {
        true => diverged_on_held_out(&epochs, classes)?,
        false => diverged(&epochs, classes, share, images)?,
    };
    let (flag, learning_rate) = match run.trials() {
        Some(&Metric::Trials { chosen: Some(rate), .. }) => ("--try-lr", rate),
        _ => ("--lr", recipe.learning_rate),
    };
    Some(Finding {
        title: "The training diverged",
        evidence,
        advice: format!(
            "Train again with a smaller learning rate, such as {flag} {} instead of {}.",
            plain_number(learning_rate / 10.0),
            plain_number(learning_rate)
        ),
    })
}

fn epoch_of(metric: &Metric) -> Option<Epoch> {
    match *metric {
        Metric::Epoch { epoch, train_loss, train_acc, held_out, .. } => Some(Epoch {
            number: epoch,
            train_loss,
            train_accuracy: train_acc,
            loss: held_out.loss(),
            accuracy: held_out.accuracy(),
            name: held_out.name(),
        }),
        _ => None,
    }
}

/// The run continued with other images.
fn changed(metric: &Metric) -> Option<Finding> {
    let Metric::Changed { epoch, held_out, reason } = metric else { return None };
    let model = match epoch {
        0 => "the fitted final layer".to_string(),
        epoch => format!("epoch {epoch}"),
    };
    Some(Finding {
        title: "The images changed during the run",
        evidence: format!(
            "{}. The model saved until then, that of {model}, was measured again: it classifies {:.1} % of the present {} images correctly.",
            capitalised(reason),
            100.0 * held_out.accuracy(),
            held_out.name()
        ),
        advice: "Do not compare the epochs before the change with those after it. Start another run for figures that can be compared."
            .into(),
    })
}

/// The run ended because its numbers were no longer finite.
fn stopped(metric: &Metric) -> Option<Finding> {
    let Metric::Stopped { reason, hint } = metric else { return None };
    let hint = hint.as_deref().unwrap_or("use a smaller learning rate");
    Some(Finding {
        title: "The run ended early, because its numbers were no longer finite",
        evidence: format!("{}.", capitalised(reason)),
        advice: format!("{}.", capitalised(hint)),
    })
}

/// Classes without test images.
fn untested(confusion: &Confusion, classes: &[String]) -> Option<Finding> {
    let rows = confusion.rows().iter().zip(classes);
    let names: Vec<String> =
        rows.filter(|(row, _)| row.iter().all(|&count| count == 0)).map(|(_, class)| class.clone()).collect();
    if names.is_empty() || names.len() == classes.len() {
        return None;
    }
    Some(Finding {
        title: "Some classes are not tested",
        evidence: format!(
            "There is no test image of {}: the accuracy is that of the other classes.",
            first_names(&names)
        ),
        advice: "Add test images of every class.".into(),
    })
}

/// The model classifies no better than one that always predicts the most frequent class.
fn no_skill(confusion: &Confusion, classes: &[String], recipe: &Recipe) -> Option<Finding> {
    let rows = confusion.rows();
    let counts: Vec<usize> = rows.iter().map(|row| row.iter().sum()).collect();
    let (all, correct) = (counts.iter().sum::<usize>(), (0..rows.len()).map(|class| rows[class][class]).sum::<usize>());
    let (largest, &most) = counts.iter().enumerate().rev().max_by_key(|(_, count)| **count)?;
    // With images of one class only, no model is better.
    if all == 0 || most == all || correct > most {
        return None;
    }
    let predicted = (0..rows.len()).filter(|&class| rows.iter().any(|row| row[class] > 0)).collect::<Vec<usize>>();
    let habit = match predicted.as_slice() {
        [only] => format!(" It predicts {} for every image.", classes[*only]),
        _ => String::new(),
    };
    let mut advice = vec![
        "Check that the images are in the folders of their classes, and that the classes can be told apart in them.",
    ];
    if recipe.from_scratch {
        advice.push("Start from pretrained weights: leave --from-scratch out.");
    }
    match (recipe.fits_only(), recipe.try_learning_rates.is_empty()) {
        (true, _) => advice.push("Train all layers: leave --head-only out."),
        (false, true) => advice.push("Train for more epochs, or use another learning rate."),
        (false, false) => advice.push("Give more training images."),
    }
    Some(Finding {
        title: "The model is no better than a guess",
        evidence: format!(
            "It classifies {correct} of {all} test images correctly; one that always predicts {} is right for {most}.{habit}",
            classes[largest]
        ),
        advice: advice.iter().map(|sentence| sentence.to_string()).collect::<Vec<String>>().join(" "),
    })
}

/// After fewer steps, nothing is said of divergence: the loss has had no time to settle.
const FEWEST_STEPS: usize = 10;

/// Losses of more than so many times that of a guess are those of a network that has diverged.
const DIVERGED: f64 = 1.5;
/// By how much the training accuracy must have been better than that of a guess before it fell to it.
const SKILL: f64 = 0.1;

/// Both losses after the last epoch are far above that of a guess; or the network classifies the training images no better than one that
/// always predicts the most frequent class, after it did so earlier, and its loss rose.
fn diverged(epochs: &[Epoch], classes: usize, largest_share: f64, images: usize) -> Option<String> {
    let [before @ .., last] = epochs else { return None };
    if last.number == 0 {
        return None;
    }
    let guess = (classes as f64).ln();
    let best = before.iter().max_by(|a, b| a.train_accuracy.total_cmp(&b.train_accuracy));
    if last.train_loss > DIVERGED * guess && last.loss > DIVERGED * guess {
        return Some(format!(
            "In epoch {}, the last, the training loss was {:.3} and the {} loss {:.3}; that of a guess is {guess:.3}.",
            last.number, last.train_loss, last.name, last.loss
        ));
    }
    // Twice the standard deviation of the accuracy of a guess.
    let guessed = largest_share + 1.0 / (images as f64).sqrt();
    let best =
        best.filter(|best| best.train_accuracy > guessed + SKILL && last.train_loss > RISEN * best.train_loss)?;
    (last.train_accuracy <= guessed).then(|| {
        format!(
            "The training accuracy fell from {:.3} in epoch {} to {:.3} in epoch {}, the last, no better than a guess, while the \
             training loss rose from {:.3} to {:.3}.",
            best.train_accuracy, best.number, last.train_accuracy, last.number, best.train_loss, last.train_loss
        )
    })
}

/// Whether the images that are not trained on say so by themselves: after the last epoch, the accuracy is hardly better than that of a guess,
/// and the loss is far above that of a guess and above that of an earlier epoch, if there is one.
fn diverged_on_held_out(epochs: &[Epoch], classes: usize) -> Option<String> {
    let [before @ .., last] = epochs else { return None };
    let guess = (classes as f64).ln();
    let lowest = before.iter().map(|epoch| epoch.loss).fold(f64::INFINITY, f64::min);
    let is_guessing = last.accuracy <= 1.0 / classes as f64 + SKILL;
    (is_guessing && last.loss > DIVERGED * guess && (before.is_empty() || last.loss > RISEN * lowest)).then(|| {
        format!(
            "In epoch {}, the last, the {} loss was {:.3}, and the accuracy {:.3}; the loss of a guess is {guess:.3}.",
            last.number, last.name, last.loss, last.accuracy
        )
    })
}

/// The kind of images that some of a run's test images are copies of, and how many are: `2 of 9 test images are identical to training
/// images, or nearly so`. None if there are none.
pub(super) fn leak(check: &DataCheck, test_images: usize) -> Option<(Role, String)> {
    let counts = [Role::Train, Role::Validation].map(|also| (also, check.leaked(Role::Test, also)));
    let (also, count) = counts.into_iter().find(|(_, count)| *count > 0)?;
    let is = if count == 1 { "is" } else { "are" };
    let images = also.adjective();
    Some((also, format!("{count} of {test_images} test images {is} identical to {images} images, or nearly so")))
}

/// The network has seen images of the test, so that it need not recognise anything new in them.
fn leaked(check: &DataCheck, test_images: usize) -> Option<Finding> {
    let (also, evidence) = leak(check, test_images)?;
    let title = match also {
        Role::Train => "Test images are also training images",
        _ => "Test images are also validation images",
    };
    Some(Finding {
        title,
        evidence: format!("{evidence}: the test accuracy is too optimistic."),
        advice: "Train again with --drop-duplicates, or remove the copies. The section on the data set shows them."
            .into(),
    })
}

/// A later loss that is not below this share of the first one has not fallen.
const FALLEN: f64 = 0.97;
/// With a higher training accuracy, little is left to learn.
const LEARNED: f64 = 0.95;

/// The training loss of no later epoch is below that of the first.
fn not_falling(epochs: &[Epoch]) -> Option<Finding> {
    let [first, later @ ..] = epochs else { return None };
    let last = later.last()?;
    let lowest = later.iter().map(|epoch| epoch.train_loss).fold(f64::INFINITY, f64::min);
    if lowest < FALLEN * first.train_loss || last.train_accuracy >= LEARNED {
        return None;
    }
    let advice = if last.train_loss > first.train_loss / FALLEN {
        "Use a smaller learning rate, or --clip-gradient-norm 1: the steps are too large."
    } else {
        "Use a larger learning rate, or a smaller one if the curve jumps up and down. Check that the images are in the folders \
         of their classes."
    };
    Some(Finding {
        title: "The training loss is not falling",
        evidence: format!(
            "It was {:.3} in epoch {}, at best {lowest:.3} after that, and {:.3} in epoch {}.",
            first.train_loss, first.number, last.train_loss, last.number
        ),
        advice: advice.into(),
    })
}

/// By how much the loss must have risen above its minimum.
const RISEN: f64 = 1.15;
/// How many epochs must have passed since the minimum; the loss of a single one may be high by chance.
const EPOCHS_SINCE: usize = 2;

/// The loss on images that are not trained on rises, while the training loss falls.
fn overfitting(epochs: &[Epoch], keeps_last: bool) -> Option<Finding> {
    let last = epochs.last()?;
    let lowest = epochs.iter().min_by(|a, b| a.loss.total_cmp(&b.loss))?;
    let rising = &epochs[epochs.len() - EPOCHS_SINCE.min(epochs.len())..];
    let has_risen = last.number >= lowest.number + EPOCHS_SINCE
        && rising.iter().all(|epoch| epoch.loss > RISEN * lowest.loss)
        && last.train_loss < FALLEN * lowest.train_loss;
    if !has_risen {
        return None;
    }
    Some(Finding {
        title: "The network learns the training images by heart",
        evidence: format!(
            "From epoch {} to epoch {}, the {} loss rose from {:.3} to {:.3}, while the training loss fell from {:.3} to {:.3} \
             (overfitting).",
            lowest.number, last.number, last.name, lowest.loss, last.loss, lowest.train_loss, last.train_loss
        ),
        advice: format!(
            "Train on more images, or for {}. More weight decay (--weight-decay), frozen lower layers (--freeze) or more \
             augmentation (--augment) may help too.{}",
            counted(lowest.number, "epoch", "epochs"),
            if keeps_last { "" } else { " The saved model is that of the best epoch, not of the last." }
        ),
    })
}

/// The last epoch is the best one, and the losses were still falling.
fn still_improving(epochs: &[Epoch]) -> Option<Finding> {
    let [.., before, last] = epochs else { return None };
    let best = |epoch: &Epoch| Best { epoch: epoch.number, accuracy: epoch.accuracy, loss: epoch.loss };
    let is_best = epochs[..epochs.len() - 1].iter().all(|epoch| best(last).beats(&best(epoch)));
    let falls = last.loss < FALLEN * before.loss && last.train_loss < before.train_loss;
    if !is_best || !falls || last.accuracy >= 1.0 {
        return None;
    }
    Some(Finding {
        title: "More epochs may give a better model",
        evidence: format!(
            "Epoch {}, the last, is the best, and the {} loss still fell: from {:.3} to {:.3}.",
            last.number, last.name, before.loss, last.loss
        ),
        advice: format!(
            "Continue the run with more epochs: retune train DATA --resume --epochs {} --out FOLDER.",
            2 * last.number
        ),
    })
}

/// The text with a capital letter at its beginning.
pub(super) fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{DuplicateImage, DuplicateImages, Prediction};

    /// Epochs of these training losses, training accuracies, test losses and test accuracies.
    fn epochs(all: &[(f64, f64, f64, f64)]) -> Vec<Epoch> {
        let epoch = |(index, &(train_loss, train_accuracy, loss, accuracy))| Epoch {
            number: index + 1,
            train_loss,
            train_accuracy,
            loss,
            accuracy,
            name: "test",
        };
        all.iter().enumerate().map(epoch).collect()
    }

    #[test]
    fn a_run_that_stopped_says_why() {
        let metric = Metric::Stopped { reason: "in epoch 2, the loss became NaN".into(), hint: None };
        let found = stopped(&metric).unwrap();
        assert_eq!(found.evidence, "In epoch 2, the loss became NaN.");
        assert_eq!(found.advice, "Use a smaller learning rate.");
        let hint = Some("start from other weights".to_string());
        let metric = Metric::Stopped { reason: "x".into(), hint };
        assert_eq!(stopped(&metric).unwrap().advice, "Start from other weights.");
        assert_eq!(stopped(&Metric::Skipped { path: "a".into(), reason: "b".into() }), None);
    }

    #[test]
    fn classes_without_test_images_are_named() {
        let classes = ["ant", "bee"].map(String::from);
        let of = |targets: &[usize]| {
            let predictions = targets.iter().map(|&target| Prediction::new(0, target, vec![1.0, 0.0]));
            untested(&Confusion::new(&predictions.collect::<Vec<_>>(), 2), &classes)
        };
        let evidence = "There is no test image of bee: the accuracy is that of the other classes.";
        assert_eq!(of(&[0, 0]).unwrap().evidence, evidence);
        assert_eq!(of(&[0, 1]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_run_that_diverged_is_told() {
        let of = |all: &[(f64, f64, f64, f64)]| diverged(&epochs(all), 2, 0.5, 400);
        let grown = of(&[(0.6, 0.7, 0.6, 0.7), (0.5, 0.8, 0.5, 0.8), (7.0, 0.6, 9.5, 0.5)]).unwrap();
        assert_eq!(
            grown,
            "In epoch 3, the last, the training loss was 7.000 and the test loss 9.500; that of a guess is 0.693."
        );
        let fallen = of(&[(0.6, 0.7, 0.6, 0.7), (0.3, 0.9, 0.4, 0.8), (0.7, 0.52, 0.7, 0.5)]).unwrap();
        assert!(fallen.starts_with("The training accuracy fell from 0.900 in epoch 2 to 0.520 in epoch 3"), "{fallen}");
        assert!(of(&[(3.0, 0.5, 4.0, 0.5)]).is_some(), "in the first epoch");
        for (sound, why) in [
            (&[(5.0, 0.5, 9.0, 0.5), (0.6, 0.7, 0.6, 0.7)][..], "it recovered"),
            (&[(3.0, 0.5, 0.5, 0.8)], "it recovered within the epoch"),
            (&[(0.5, 0.8, 0.5, 0.7), (0.05, 1.0, 3.0, 0.6)], "it learns by heart"),
            (&[(0.7, 0.5, 0.7, 0.5), (0.69, 0.5, 0.69, 0.5)], "it never learned"),
            (&[(0.6, 0.7, 0.6, 0.7), (0.64, 0.66, 0.9, 0.5)], "still better than a guess"),
            (&[], "no epoch"),
        ] {
            assert_eq!(of(sound), None, "{why}");
        }
        // With 90 % of one class, 0.9 is a guess.
        let constant = [(0.2, 0.99, 0.3, 0.95), (0.33, 0.9, 0.33, 0.9)];
        assert_eq!(diverged(&epochs(&constant), 2, 0.5, 400), None);
        assert_eq!(diverged(&epochs(&constant), 2, 0.9, 400), None, "0.99 is not much better");
        let constant = [(0.2, 0.99, 0.3, 0.95), (0.5, 0.8, 0.5, 0.8)];
        assert!(diverged(&epochs(&constant), 2, 0.8, 400).is_some());
    }

    #[test]
    fn with_mixed_images_only_others_tell_of_divergence() {
        let of = |all: &[(f64, f64, f64, f64)]| diverged_on_held_out(&epochs(all), 2);
        // The training loss and accuracy are those of mixed images.
        assert_eq!(of(&[(0.5, 0.85, 0.7, 0.6), (0.9, 0.5, 0.6, 0.7)]), None);
        assert_eq!(of(&[(0.5, 0.85, 1.2, 0.55), (0.9, 0.5, 1.1, 0.5)]), None, "it does not rise");
        assert_eq!(of(&[(0.5, 0.85, 0.5, 0.8), (0.9, 0.5, 1.6, 0.75)]), None, "it is too certain, but not wrong");
        assert!(of(&[(0.5, 0.85, 0.6, 0.7), (9.0, 0.5, 8.0, 0.5)]).unwrap().contains("the test loss was 8.000"));
        assert!(of(&[(9.0, 0.5, 8.0, 0.5)]).is_some());
    }

    #[test]
    fn a_model_without_skill_is_named() {
        let of = |pairs: &[(usize, usize)]| {
            let prediction = |(index, &(target, predicted)): (usize, &(usize, usize))| {
                let mut logits = vec![0.0; 3];
                logits[predicted] = 1.0;
                Prediction::new(index, target, logits)
            };
            let predictions: Vec<Prediction> = pairs.iter().enumerate().map(prediction).collect();
            no_skill(&Confusion::new(&predictions, 3), &["ant", "bee", "cat"].map(String::from), &Recipe::fine_tuning())
        };
        let found = of(&[(0, 1), (1, 1), (1, 1), (2, 1)]).unwrap();
        assert_eq!(
            found.evidence,
            "It classifies 2 of 4 test images correctly; one that always predicts bee is right for 2. It predicts bee for every \
             image."
        );
        let found = of(&[(0, 0), (1, 0), (1, 2), (2, 1)]).unwrap();
        assert!(found.evidence.ends_with("always predicts bee is right for 2."), "{}", found.evidence);
        let advice = |recipe: &Recipe| {
            let confusion = Confusion::new(&[0, 1].map(|class| Prediction::new(class, class, vec![0.0, 1.0])), 2);
            no_skill(&confusion, &["ant", "bee"].map(String::from), recipe).unwrap().advice
        };
        assert!(advice(&Recipe::from_scratch()).contains("leave --from-scratch out"));
        assert!(!advice(&Recipe::fine_tuning()).contains("--from-scratch"));
        let tried = Recipe { try_learning_rates: vec![1e-4], ..Recipe::fine_tuning() };
        assert!(!advice(&tried).contains("another learning rate"), "several were tried");
        let fitted = Recipe { fit_head: true, epochs: 0, ..Recipe::fine_tuning() };
        assert!(advice(&fitted).ends_with("Train all layers: leave --head-only out."));
        assert_eq!(of(&[(0, 0), (1, 1), (1, 1), (2, 1)]), None, "3 of 4 are more than 2");
        assert_eq!(of(&[(1, 1), (1, 1)]), None, "all images are of one class");
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn images_in_two_splits_are_told() {
        let check = |splits: &[(&str, bool)]| {
            let image = |(split, left_out): &(&str, bool)| DuplicateImage {
                split: split.to_string(),
                path: "a/1.jpg".into(),
                class: "a".into(),
                left_out: *left_out,
            };
            let images = splits.iter().map(image).collect();
            DataCheck { duplicates: vec![DuplicateImages { identical: true, images }], ..DataCheck::default() }
        };
        let found = |splits| leaked(&check(splits), 9).map(|found| (found.title, found.evidence));
        let (title, evidence) =
            found(&[("train", false), ("validation", false), ("test", false), ("test", false)]).unwrap();
        assert_eq!(title, "Test images are also training images");
        assert!(
            evidence.starts_with("2 of 9 test images are identical to training images, or nearly so"),
            "{evidence}"
        );
        assert_eq!(
            found(&[("validation", false), ("test", false)]).unwrap().0,
            "Test images are also validation images"
        );
        assert_eq!(found(&[("train", true), ("test", false)]), None, "the copy is not used");
        assert_eq!(found(&[("train", false), ("train", false)]), None);
    }

    #[test]
    fn a_training_loss_that_does_not_fall_is_told() {
        let title = |all: &[(f64, f64, f64, f64)]| not_falling(&epochs(all)).map(|found| found.advice);
        let flat = title(&[(0.70, 0.5, 0.7, 0.5), (0.69, 0.5, 0.7, 0.5), (0.70, 0.5, 0.7, 0.5)]).unwrap();
        assert!(flat.starts_with("Use a larger learning rate"), "{flat}");
        let rising = title(&[(0.70, 0.5, 0.7, 0.5), (2.1, 0.5, 0.7, 0.5), (9.0, 0.5, 0.7, 0.5)]).unwrap();
        assert!(rising.starts_with("Use a smaller learning rate"), "{rising}");
        assert_eq!(title(&[(0.70, 0.5, 0.7, 0.5)]), None, "one epoch says nothing");
        assert_eq!(title(&[(0.70, 0.5, 0.7, 0.5), (0.60, 0.6, 0.7, 0.5), (0.71, 0.5, 0.7, 0.5)]), None, "it fell once");
        assert_eq!(title(&[(0.01, 0.99, 0.1, 0.9), (0.011, 0.99, 0.1, 0.9)]), None, "nothing is left to learn");
    }

    #[test]
    fn a_test_loss_that_rises_while_the_training_loss_falls_is_told() {
        let rising = [(0.9, 0.5, 0.8, 0.5), (0.6, 0.7, 0.6, 0.6), (0.3, 0.9, 0.8, 0.6), (0.1, 1.0, 1.0, 0.6)];
        let found = overfitting(&epochs(&rising), false).unwrap();
        assert_eq!(
            found.evidence,
            "From epoch 2 to epoch 4, the test loss rose from 0.600 to 1.000, while the training loss fell from 0.600 to 0.100 \
             (overfitting)."
        );
        assert!(found.advice.contains("for 2 epochs"), "{}", found.advice);
        assert!(found.advice.ends_with("The saved model is that of the best epoch, not of the last."));
        assert!(!overfitting(&epochs(&rising), true).unwrap().advice.contains("saved model"), "it is that of the last");
        assert_eq!(overfitting(&epochs(&rising[..3]), false), None, "one epoch may be high by chance");
        let mut recovered = rising;
        recovered[3].2 = 0.62;
        assert_eq!(overfitting(&epochs(&recovered), false), None);
        let mut diverged = rising;
        (diverged[2].0, diverged[3].0) = (0.9, 1.2);
        assert_eq!(overfitting(&epochs(&diverged), false), None, "the training loss rises too");
        assert_eq!(overfitting(&[], false), None);
    }

    #[test]
    fn a_run_whose_last_epoch_is_the_best_may_go_on() {
        let improving = [(0.9, 0.5, 0.8, 0.5), (0.6, 0.7, 0.6, 0.6), (0.5, 0.8, 0.5, 0.7)];
        let found = still_improving(&epochs(&improving)).unwrap();
        assert!(found.advice.contains("--resume --epochs 6"), "{}", found.advice);
        assert_eq!(still_improving(&epochs(&improving[..1])), None);
        let change = |index: usize, value: (f64, f64, f64, f64)| {
            let mut changed = improving;
            changed[index] = value;
            still_improving(&epochs(&changed))
        };
        assert_eq!(change(1, (0.6, 0.7, 0.6, 0.8)), None, "an earlier epoch is better");
        assert_eq!(change(2, (0.5, 0.8, 0.595, 0.7)), None, "the loss has settled");
        assert_eq!(change(2, (0.7, 0.8, 0.5, 0.7)), None, "the training loss rose");
        assert_eq!(change(2, (0.1, 1.0, 0.1, 1.0)), None, "no model is better");
    }
}
