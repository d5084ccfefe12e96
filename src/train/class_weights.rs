//! The weights of classes in the loss.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::ImageFolder;
use crate::error::{Error, Result};

/// How the weights of classes in the loss are chosen. Written as `balanced`, or as numbers with commas between them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ClassWeights {
    /// The number of training images over the number of classes and the number of images of the class, as
    /// `class_weight="balanced"` in scikit-learn. Every class then has the same share of the loss.
    Balanced,
    /// One for each class, in their order.
    Given(Vec<f64>),
}

impl ClassWeights {
    /// The weight of each class of the training images.
    ///
    /// # Errors
    /// When there is another number of classes, or a class without images has no balanced weight.
    pub fn of(&self, train: &ImageFolder) -> Result<Vec<f64>> {
        let classes = &train.classes;
        match self {
            Self::Balanced => {
                let mut images = vec![0usize; classes.len()];
                train.samples.iter().for_each(|sample| images[sample.class] += 1);
                if let Some(empty) = images.iter().position(|&images| images == 0) {
                    return Err(Error::usage(format!(
                        "--class-weights {self}: {} has no training images",
                        classes[empty]
                    ))
                    .hint("add images of that class, or remove its folder"));
                }
                let weight = |&images: &usize| train.len() as f64 / (classes.len() * images) as f64;
                Ok(images.iter().map(weight).collect())
            }
            Self::Given(weights) if weights.len() == classes.len() => Ok(weights.clone()),
            Self::Given(weights) => Err(Error::usage(format!(
                "--class-weights {self}: expected {} numbers, one for each class, found {}",
                classes.len(),
                weights.len()
            ))
            .hint(format!("the classes are, in this order, {}", classes.join(", ")))),
        }
    }
}

impl FromStr for ClassWeights {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "balanced" {
            return Ok(Self::Balanced);
        }
        // Others have no place in float32, in which the loss reads them.
        let is_weight = |weight: &f64| (1e-30..=1e30).contains(weight);
        let weights = text.split(',').map(|weight| weight.trim().parse().ok().filter(is_weight));
        weights
            .collect::<Option<_>>()
            .map(Self::Given)
            .ok_or_else(|| Error::usage("expected balanced, or a number above 0 for each class, such as 1,2.5"))
    }
}

impl fmt::Display for ClassWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Balanced => f.write_str("balanced"),
            Self::Given(weights) => f.write_str(&weights.iter().map(f64::to_string).collect::<Vec<_>>().join(",")),
        }
    }
}

impl TryFrom<String> for ClassWeights {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ClassWeights> for String {
    fn from(weights: ClassWeights) -> Self {
        weights.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Sample;

    /// Training images of which so many are of each class.
    fn images(counts: &[usize]) -> ImageFolder {
        let samples = counts.iter().enumerate().flat_map(|(class, &count)| {
            std::iter::repeat_with(move || Sample { path: "image.png".into(), class }).take(count)
        });
        ImageFolder {
            root: "train".into(),
            classes: (0..counts.len()).map(|class| format!("class {class}")).collect(),
            spellings: vec![Vec::new(); counts.len()],
            samples: samples.collect(),
            decoding: Default::default(),
            not_read: Default::default(),
        }
    }

    #[test]
    fn balanced_weights_give_every_class_the_same_share() {
        // compute_class_weight("balanced", classes=[0, 1, 2], y=[0, 1, 1, 2, 2, 2]) of scikit-learn.
        assert_eq!(ClassWeights::Balanced.of(&images(&[1, 2, 3])).unwrap(), [2.0, 1.0, 6.0 / 9.0]);
        let error = ClassWeights::Balanced.of(&images(&[1, 0])).unwrap_err().to_string();
        assert!(error.contains("--class-weights balanced: class 1 has no training images"), "{error}");
    }

    #[test]
    fn given_weights_are_as_many_as_classes() {
        let weights: ClassWeights = "1, 2.5".parse().unwrap();
        assert_eq!(weights.of(&images(&[3, 4])).unwrap(), [1.0, 2.5]);
        let error = weights.of(&images(&[1, 1, 1])).unwrap_err().to_string();
        assert!(error.contains("--class-weights 1,2.5: expected 3 numbers, one for each class, found 2"), "{error}");
        assert!(error.contains("in this order, class 0, class 1, class 2"), "{error}");
    }

    #[test]
    fn text_and_back() {
        for text in ["balanced", "1,2.5", "0.1"] {
            assert_eq!(text.parse::<ClassWeights>().unwrap().to_string(), text);
        }
        for text in ["", "1,", "1,0", "1,-2", "1,nan", "1,inf", "1,1e-40", "Balanced", "1 2"] {
            let error = text.parse::<ClassWeights>().unwrap_err().to_string();
            assert!(error.contains("expected balanced, or a number above 0"), "{text}: {error}");
        }
    }
}
