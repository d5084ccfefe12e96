//! The values of `--try`: flags of the recipe with the values that a sweep tries.

use std::error::Error as _;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, Command, FromArgMatches};

use super::plain_words::in_plain_words;
use super::recipe_arguments::RecipeArguments;
use crate::error::{Error, Result};
use crate::train::NamedRecipe;

/// The name in `--try` for a recipe of the program.
const RECIPE: &str = "recipe";
/// Flags with one value in which the runs of a sweep cannot differ: what the images are, and those whose values contain commas.
const NOT_TRIED: [&str; 4] = ["class-weights", "labels", "seed", "test-fraction"];

/// A flag with values to try.
#[derive(Clone)]
pub struct Tried {
    /// The flag without dashes.
    pub flag: String,
    /// The values as they were given.
    pub values: Vec<TriedValue>,
}

/// A value to try.
#[derive(Clone)]
pub struct TriedValue {
    /// As it was given.
    pub text: String,
    /// The flag with this value; empty for a recipe.
    pub arguments: RecipeArguments,
    /// The recipe, if that is what is tried.
    pub recipe: Option<String>,
}

impl Tried {
    /// `lr=1e-3,3e-3`.
    ///
    /// # Errors
    /// When there is no such flag, or it does not accept a value.
    pub fn parse(text: &str) -> Result<Self> {
        let about = |problem: String| Error::usage(format!("--try {text}: {problem}"));
        let Some((flag, values)) = text.split_once('=') else {
            return Err(about("expected a flag and its values".into()).hint("for example --try lr=1e-3,3e-3"));
        };
        let flag = flag.trim().trim_start_matches("--");
        check_flag(flag, &about)?;
        let mut found: Vec<TriedValue> = Vec::new();
        for value in values.split(',').map(str::trim) {
            if value.is_empty() {
                return Err(about("a value is empty".into()).hint("for example --try lr=1e-3,3e-3"));
            }
            if found.iter().any(|known| known.text == value) {
                return Err(about(format!("{value} is given twice")));
            }
            found.push(TriedValue::new(flag, value).map_err(|problem| about(problem))?);
        }
        Ok(Self { flag: flag.into(), values: found })
    }
}

impl TriedValue {
    /// A flag with a value, or why it does not accept it.
    pub fn new(flag: &str, value: &str) -> Result<Self, String> {
        if flag == RECIPE {
            NamedRecipe::find(value).map_err(|error| error.message().to_string())?;
            return Ok(Self { text: value.into(), arguments: parse(&[])?, recipe: Some(value.into()) });
        }
        let words = [format!("--{flag}={value}")];
        Ok(Self { text: value.into(), arguments: parse(&words)?, recipe: None })
    }
}

/// Refuses what is no flag that a sweep can try.
fn check_flag(flag: &str, about: &impl Fn(String) -> Error) -> Result<()> {
    let offered = offered();
    if flag == RECIPE || offered.iter().any(|name| name == flag) {
        return Ok(());
    }
    if flag == "seed" {
        return Err(about("the seed is no setting to choose".into()).hint("--seeds 5 trains with five seeds"));
    }
    let all = RecipeArguments::augment_args(Command::new("train"));
    if all.get_arguments().any(|argument| argument.get_long() == Some(flag)) {
        return Err(about(format!("--{flag} is no flag with a number or a name as its value"))
            .hint(format!("flags that can be tried: {}, {RECIPE}", offered.join(", "))));
    }
    // The parser of the command line knows which name is the nearest.
    let names = offered.iter().map(String::as_str).chain([RECIPE]);
    let parser = Command::new("train")
        .no_binary_name(true)
        .args(names.map(|name| clap::Arg::new(name.to_string()).long(name.to_string())));
    let refusal = parser.try_get_matches_from([format!("--{flag}=1")]).err();
    let nearest = refusal.and_then(|refusal| match refusal.get(ContextKind::SuggestedArg)? {
        ContextValue::String(name) => Some(name.trim_start_matches("--").to_string()),
        _ => None,
    });
    Err(about(format!("there is no flag --{flag} of the recipe")).hint(match nearest {
        Some(name) => format!("the nearest is {name}"),
        None => format!("flags that can be tried: {}, {RECIPE}", offered.join(", ")),
    }))
}

/// The flags of the recipe that a sweep can try, without dashes: those with a number or a name as their value.
fn offered() -> Vec<String> {
    let all = RecipeArguments::augment_args(Command::new("train"));
    let has_one_value =
        |argument: &&clap::Arg| argument.get_action().takes_values() && argument.get_value_delimiter().is_none();
    let names = all.get_arguments().filter(has_one_value).filter_map(|argument| argument.get_long());
    names.filter(|name| !NOT_TRIED.contains(name)).map(String::from).collect()
}

/// The flags of the recipe in these words, or what is wrong with a value.
fn parse(words: &[String]) -> Result<RecipeArguments, String> {
    let accept = |argument: clap::Arg| match argument.get_action().takes_values() {
        true => argument.allow_negative_numbers(true),
        false => argument,
    };
    let parser = RecipeArguments::augment_args(Command::new("train").no_binary_name(true)).mut_args(accept);
    let matches = parser.try_get_matches_from(words);
    matches.and_then(|matches| RecipeArguments::from_arg_matches(&matches)).map_err(|refusal| problem(&refusal))
}

/// What is wrong with the value of a flag.
fn problem(refusal: &clap::Error) -> String {
    let text = |kind| match refusal.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let value = text(ContextKind::InvalidValue).unwrap_or_default();
    let expected = match (refusal.get(ContextKind::ValidValue), refusal.source()) {
        (Some(ContextValue::Strings(names)), _) if !names.is_empty() => format!("expected {}", names.join(" or ")),
        (_, Some(cause)) => in_plain_words(cause.to_string()),
        _ => "the flag does not accept it".into(),
    };
    match text(ContextKind::SuggestedValue) {
        Some(nearest) => format!("{value}: {expected}; the nearest is {nearest}"),
        None => format!("{value}: {expected}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Recipe;

    fn refusal(text: &str) -> String {
        match Tried::parse(text) {
            Ok(_) => format!("{text} is accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn values_are_those_of_the_flag() {
        let tried = Tried::parse("lr=1e-3,0.003").unwrap();
        assert_eq!(tried.flag, "lr");
        let rates = tried.values.iter().map(|value| {
            let mut recipe = Recipe::fine_tuning();
            value.arguments.overlay(&mut recipe, |_| Ok(())).unwrap();
            (value.text.as_str(), recipe.learning_rate)
        });
        assert_eq!(rates.collect::<Vec<_>>(), [("1e-3", 1e-3), ("0.003", 3e-3)]);
        for text in [
            "schedule=constant,cosine",
            "optimizer=sgd,adamw",
            "momentum=0,0.9",
            "warm-up=50,10%",
            "resize=pad",
            "epochs=1",
        ] {
            assert!(Tried::parse(text).is_ok(), "{text}");
        }
        let recipes = Tried::parse("recipe=best,lesson").unwrap();
        assert_eq!(recipes.values[1].recipe.as_deref(), Some("lesson"));
    }

    #[test]
    fn what_cannot_be_tried_is_refused_with_the_nearest_name() {
        for (text, expected) in [
            (
                "batch-sise=8",
                "--try batch-sise=8: there is no flag --batch-sise of the recipe\nhint: the nearest is batch-size",
            ),
            (
                "recipes=best",
                "--try recipes=best: there is no flag --recipes of the recipe\nhint: the nearest is recipe",
            ),
            ("lr", "--try lr: expected a flag and its values\nhint: for example --try lr=1e-3,3e-3"),
            ("lr=", "--try lr=: a value is empty\nhint: for example --try lr=1e-3,3e-3"),
            ("lr=1e-3,1e-3", "--try lr=1e-3,1e-3: 1e-3 is given twice"),
            ("lr=fast", "--try lr=fast: fast: expected a number"),
            ("epochs=-1", "--try epochs=-1: -1: expected a whole number that is not negative"),
            (
                "schedule=cosin",
                "--try schedule=cosin: cosin: expected constant or cosine or one-cycle; the nearest is cosine",
            ),
            ("recipe=fast", "--try recipe=fast: recipe \"fast\": expected best or head or lesson"),
            ("seed=1,2", "--try seed=1,2: the seed is no setting to choose\nhint: --seeds 5 trains with five seeds"),
        ] {
            assert_eq!(refusal(text), expected);
        }
        for text in ["freeze=conv1", "balanced-sampling=yes", "test-fraction=0.1", "class-weights=1,2", "try-lr=1e-3"] {
            assert!(
                refusal(text)
                    .contains(" is no flag with a number or a name as its value\nhint: flags that can be tried: "),
                "{text}"
            );
        }
    }
}
