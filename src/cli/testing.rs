//! The flags that say how images are tested.

use crate::data::first_names;
use crate::error::{Error, Result};
use crate::train::{ModelFile, Testing, Threshold};

/// `--average-mirror` and `--threshold`
#[derive(clap::Args)]
pub struct TestingArguments {
    /// Average the outputs for each image and for its mirror image, which takes twice the time [default: what the model's metadata says]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    average_mirror: Option<bool>,

    /// Of two classes, predict this one if its probability is at least P, and otherwise the other one, e.g. defect=0.2 [default: the
    /// more probable one]
    #[arg(long, value_name = "CLASS=P")]
    threshold: Option<String>,
}

impl TestingArguments {
    /// How images are tested with this model.
    ///
    /// # Errors
    /// When the threshold is not one of the model's two classes and a probability.
    pub fn testing(&self, model: &ModelFile) -> Result<Testing> {
        let testing = model.testing();
        let threshold = self.threshold.as_deref().map(|text| threshold(text, &model.classes)).transpose()?;
        let average_mirror = self.average_mirror.unwrap_or(testing.average_mirror);
        Ok(Testing { average_mirror, threshold, ..testing })
    }
}

fn threshold(text: &str, classes: &[String]) -> Result<Threshold> {
    let wrong = |message: String| Error::usage(format!("--threshold {text}: {message}"));
    // The name of a class may contain the sign.
    let (name, probability) =
        text.rsplit_once('=').ok_or_else(|| wrong("expected a class and a probability, such as CLASS=0.2".into()))?;
    if classes.len() != 2 {
        return Err(wrong(format!("the model has {} classes; a threshold decides between two", classes.len())));
    }
    let class = classes
        .iter()
        .position(|class| class == name)
        .ok_or_else(|| wrong(format!("the model has no class {name}; its classes are {}", first_names(classes))))?;
    match probability.parse() {
        Ok(probability) if probability > 0.0 && probability < 1.0 => Ok(Threshold { class, probability }),
        _ => Err(wrong(format!("expected a probability above 0 and below 1, found {probability}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_a_class_and_a_probability() {
        let classes = ["a=b", "c"].map(String::from);
        let found = |text| threshold(text, &classes).map_err(|error| error.message().to_string());
        assert_eq!(found("a=b=0.25"), Ok(Threshold { class: 0, probability: 0.25 }));
        assert_eq!(found("c=1e-3"), Ok(Threshold { class: 1, probability: 1e-3 }));
        for (text, reason) in [
            ("c", "expected a class and a probability, such as CLASS=0.2"),
            ("d=0.5", "the model has no class d; its classes are a=b, c"),
            ("c=0", "expected a probability above 0 and below 1, found 0"),
            ("c=1", "expected a probability above 0 and below 1, found 1"),
            ("c=NaN", "expected a probability above 0 and below 1, found NaN"),
            ("c=20%", "expected a probability above 0 and below 1, found 20%"),
        ] {
            assert_eq!(found(text), Err(format!("--threshold {text}: {reason}")));
        }
        let three = ["a", "b", "c"].map(String::from);
        assert!(threshold("c=0.5", &three).unwrap_err().message().contains("has 3 classes"));
    }
}
