//! Recipes as TOML files: those of this program, and those of users.
//!
//! A file names the fields of a [`Recipe`] that it sets. The others are those of the recipe that its key `recipe` names, or of the
//! lesson.

use std::path::Path;

use serde_json::{Map, Value};
use toml::Table;

use super::recipe::Recipe;
use crate::error::{Context, Error, Result};
use crate::optim::OPTIMIZERS;

/// A recipe of this program.
#[derive(Debug)]
pub struct NamedRecipe {
    /// The value of `--recipe`.
    pub name: &'static str,
    /// Its purpose, in a line.
    pub purpose: &'static str,
    /// The file.
    pub text: &'static str,
}

/// All recipes of this program; the first is the default.
pub static RECIPES: [NamedRecipe; 3] = [
    NamedRecipe {
        name: "best",
        purpose: "a high accuracy in a short time, with no number to choose",
        text: include_str!("recipes/best.toml"),
    },
    NamedRecipe {
        name: "head",
        purpose: "only the final layer, in one pass over the images",
        text: include_str!("recipes/head.toml"),
    },
    NamedRecipe {
        name: "lesson",
        purpose: "the fine-tuning chapter of Dive into Deep Learning",
        text: include_str!("recipes/lesson.toml"),
    },
];

/// The field that says when a run was extended. A new run by the same recipe begins at the beginning.
const OF_RUN: &str = "schedule_from";

/// The key that names the recipe on which a file is based.
const BASE: &str = "recipe";

impl NamedRecipe {
    /// The recipe with this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(name: &str) -> Result<&'static Self> {
        RECIPES.iter().find(|recipe| recipe.name == name).ok_or_else(|| {
            let names: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
            Error::usage(format!("recipe {name:?}: expected {}", names.join(" or ")))
        })
    }

    /// The recipe.
    ///
    /// # Errors
    /// When its file is not valid, which a test rules out.
    pub fn recipe(&self) -> Result<Recipe> {
        let table = self.text.parse().context(|| format!("cannot read the recipe {}", self.name))?;
        overlay(&Recipe::fine_tuning(), &table)
    }
}

/// A recipe that was read from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct RecipeFile {
    /// The recipe.
    pub recipe: Recipe,
    /// The fields that the file sets.
    keys: Vec<String>,
}

impl RecipeFile {
    /// Whether the file sets this field.
    pub fn sets(&self, field: &str) -> bool {
        self.keys.iter().any(|key| key == field)
    }
}

/// Reads a recipe. A path in it is relative to the folder of the file.
///
/// # Errors
/// When the file cannot be read, or a key is unknown or has a value of another type.
pub fn read_recipe(path: &Path) -> Result<RecipeFile> {
    const EXPECTED: &str = "a recipe is a TOML file with lines such as `epochs = 5`; retune recipes best prints one";
    let bytes = std::fs::read(path).context(|| format!("cannot read {}", path.display()))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::new(format!("{}: expected text in UTF-8", path.display())).hint(EXPECTED))?;
    let table: Table = text.parse().map_err(|cause: toml::de::Error| {
        let before = cause.span().and_then(|span| text.as_bytes().get(..span.start)).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Error::new(format!("{}, line {line}: {}", path.display(), cause.message().trim().replace('\n', "; ")))
            .hint(EXPECTED)
    })?;
    if table.is_empty() {
        return Err(Error::new(format!("{}: expected a recipe, found no setting", path.display()))
            .hint("a recipe is a TOML file with lines such as `epochs = 5`; retune recipes best prints one"));
    }
    let recipe = || {
        let base = match table.get(BASE) {
            None => Recipe::fine_tuning(),
            Some(toml::Value::String(name)) => NamedRecipe::find(name)?.recipe()?,
            Some(other) => return Err(Error::new(format!("{BASE}: expected the name of a recipe, found {other}"))),
        };
        let mut recipe = overlay(&base, &table)?;
        if let Some(labels) = &mut recipe.labels {
            let beside = path.parent().unwrap_or(Path::new("")).join(&*labels);
            let absolute = std::path::absolute(beside).context(|| format!("labels: cannot find {labels}"))?;
            *labels = absolute.to_string_lossy().into_owned();
        }
        Ok(RecipeFile { recipe, keys: table.keys().cloned().collect() })
    };
    recipe().map_err(|error| error.about(&path.display().to_string()))
}

/// A recipe as a file that [`read_recipe`] reads.
///
/// # Errors
/// When it cannot be written as TOML.
pub fn recipe_text(recipe: &Recipe) -> Result<String> {
    let doing = || "cannot write a recipe";
    let mut table = Table::from_iter([(BASE.to_string(), toml::Value::from("lesson"))]);
    for (key, value) in fields(recipe)?.into_iter().filter(|(key, _)| key != OF_RUN) {
        // TOML has no numbers beyond 64 bits with a sign.
        let value = match value {
            Value::Null => continue,
            Value::Number(number) if number.as_i64().is_none() && number.is_u64() => number.to_string().into(),
            value => toml::Value::try_from(value).context(doing)?,
        };
        table.insert(key, value);
    }
    toml::to_string(&table).context(doing)
}

/// The fields of a recipe by name.
fn fields(recipe: &Recipe) -> Result<Map<String, Value>> {
    match serde_json::to_value(recipe).context(|| "cannot write a recipe")? {
        Value::Object(fields) => Ok(fields),
        other => Err(Error::new(format!("a recipe became {other}"))),
    }
}

/// `base` with the fields of `table`.
fn overlay(base: &Recipe, table: &Table) -> Result<Recipe> {
    let mut recipe = base.clone();
    // The optimiser decides which hyperparameters there are, so it comes first and brings its own.
    if let Some(toml::Value::String(name)) = table.get("optimizer")
        && *name != recipe.optimizer
    {
        recipe.optimizer.clone_from(name);
        recipe.hyperparameters.0.clear();
    }
    for (key, given) in table.iter().filter(|(key, _)| *key != BASE) {
        if key == OF_RUN {
            return Err(unknown(key));
        }
        let mut all = fields(&recipe)?;
        let of_optimizer =
            |name: &str| OPTIMIZERS.iter().any(|kind| kind.hyperparameters.iter().any(|of| of.name == name));
        let value = serde_json::to_value(given).context(|| format!("{key}: cannot read the value"))?;
        let value = match (key.as_str(), &value) {
            ("seed", Value::String(text)) => text.parse::<u64>().map_or(value, Value::from),
            _ => value,
        };
        all.insert(key.clone(), value);
        recipe = serde_json::from_value(Value::Object(all)).map_err(|cause| match cause.to_string() {
            text if text.starts_with("unknown field") => unknown(key),
            text => Error::new(match expected_by(&text) {
                Some(expected) => format!("{key}: expected {expected}, found {given}"),
                None => format!("{key}: {text}"),
            }),
        })?;
        if recipe.hyperparameters.0.contains_key(key) && !of_optimizer(key) {
            return Err(unknown(key));
        }
    }
    let defaults = recipe.optimizer()?;
    for (of, value) in defaults.values() {
        recipe.hyperparameters.0.insert(of.name.into(), value);
    }
    Ok(recipe)
}

/// What an error of serde about a value's type expects, in words for readers who do not know Rust.
fn expected_by(text: &str) -> Option<&str> {
    let (_, expected) =
        text.strip_prefix("invalid type: ").or(text.strip_prefix("invalid value: "))?.split_once(", expected ")?;
    Some(match expected {
        "f32" | "f64" => "a number",
        "u32" | "u64" | "usize" => "a whole number of at least 0",
        "a boolean" => "true or false",
        "a string" => "text in quotes",
        "a sequence" => "a list",
        other => other,
    })
}

fn unknown(key: &str) -> Error {
    Error::new(format!("{key}: a recipe has no such key")).hint("retune recipes best prints a recipe")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Hyperparameters;

    fn read(text: &str) -> Result<Recipe> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        std::fs::write(&path, text).unwrap();
        read_recipe(&path)
            .map(|file| file.recipe)
            .map_err(|error| Error::new(error.message().replace(path.to_str().unwrap(), "FILE")))
    }

    #[test]
    fn the_recipes_of_the_program_are_valid() {
        assert_eq!(NamedRecipe::find("lesson").unwrap().recipe().unwrap(), Recipe::fine_tuning());
        for named in &RECIPES {
            let recipe = named.recipe().unwrap();
            recipe.trainable(None).unwrap();
            recipe.schedule(10).unwrap();
            assert_eq!(read(&recipe_text(&recipe).unwrap()).unwrap(), recipe);
            assert_eq!(read(&format!("recipe = \"{}\"", named.name)).unwrap(), recipe);
        }
    }

    #[test]
    fn a_recipe_is_read_as_it_was_written() {
        let recipe = Recipe {
            seed: u64::MAX,
            test_fraction: Some(0.25),
            optimizer: "adamw".into(),
            hyperparameters: Hyperparameters::from([("beta1", 0.5), ("beta2", 0.999), ("epsilon", 1e-300)]),
            learning_rate: 1.25e-7,
            freeze: vec!["conv1".into()],
            augment: vec!["vertical-flip=0.5".parse().unwrap()],
            warm_up: Some("10%".parse().unwrap()),
            ..Recipe::from_scratch()
        };
        assert_eq!(read(&recipe_text(&recipe).unwrap()).unwrap(), recipe);
        let extended = Recipe { schedule_from: 3, ..recipe.clone() };
        assert_eq!(read(&recipe_text(&extended).unwrap()).unwrap(), recipe);
    }

    #[test]
    fn keys_change_the_recipe_that_the_file_names() {
        let best = NamedRecipe::find("best").unwrap().recipe().unwrap();
        assert_eq!(read("recipe = 'best'\nepochs = 9").unwrap(), Recipe { epochs: 9, ..best });
        let recipe = read("optimizer = 'adamw'\nbeta1 = 0.8").unwrap();
        assert_eq!(
            recipe.hyperparameters,
            Hyperparameters::from([("beta1", 0.8), ("beta2", 0.999), ("epsilon", 1e-8)])
        );
    }

    #[test]
    fn errors_name_the_file_and_the_key() {
        for (text, expected) in [
            ("epochs = 'five'", "FILE: epochs: expected a whole number of at least 0, found \"five\""),
            ("epochs = -1", "FILE: epochs: expected a whole number of at least 0, found -1"),
            ("learning_rate = 'small'", "FILE: learning_rate: expected a number, found \"small\""),
            ("balanced_sampling = 1", "FILE: balanced_sampling: expected true or false, found 1"),
            ("augment = 'rotation=5'", "FILE: augment: expected a list, found \"rotation=5\""),
            ("try_learning_rates = ['a']", "FILE: try_learning_rates: expected a number, found [\"a\"]"),
            ("optimizer = 3", "FILE: optimizer: expected text in quotes, found 3"),
            ("epoch = 5", "FILE: epoch: a recipe has no such key"),
            ("schedule_from = 2", "FILE: schedule_from: a recipe has no such key"),
            ("é = 1", "FILE, line 1: "),
            ("epochs = 5\nname = 'é", "FILE, line 2: "),
            ("colour = 'red'", "FILE: colour: a recipe has no such key"),
            ("beta1 = 0.5", "FILE: optimizer sgd: there is no hyperparameter beta1, only momentum"),
            ("recipe = 'fast'", "FILE: recipe \"fast\": expected best or head or lesson"),
            ("recipe = 3", "FILE: recipe: expected the name of a recipe, found 3"),
            ("epochs = 5\nlr 3", "FILE, line 2: "),
        ] {
            let found = read(text).unwrap_err();
            assert!(found.message().starts_with(expected), "{:?}", found.message());
        }
    }
}
