//! `retune recipes`

use std::process::ExitCode;

use clap::builder::{PossibleValue, PossibleValuesParser};

use super::{GlobalArguments, print_json, print_result};
use crate::error::Result;
use crate::train::{NamedRecipe, RECIPES};

const EXAMPLES: &str = "\
Examples:
  Change a recipe, and train by it:
    retune recipes best > my.toml
    retune train photos --config my.toml
  Train by the recipe of an earlier run:
    retune train photos --config runs/1/recipe.toml";

/// List the recipes of `train --recipe`, or print one
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RecipesArguments {
    /// Print this recipe, as a file for `train --config`
    #[arg(value_parser = recipe_names())]
    name: Option<String>,
}

/// The names of the recipes, with their purposes.
pub(super) fn recipe_names() -> PossibleValuesParser {
    RECIPES.iter().map(|recipe| PossibleValue::new(recipe.name).help(recipe.purpose)).collect::<Vec<_>>().into()
}

pub fn run(global: &GlobalArguments, arguments: &RecipesArguments) -> Result<ExitCode> {
    match &arguments.name {
        Some(name) => {
            let named = NamedRecipe::find(name)?;
            match global.json {
                true => print_json(&named.recipe()?)?,
                false => named.text.lines().try_for_each(print_result)?,
            }
        }
        None if global.json => {
            let row = |recipe: &NamedRecipe| serde_json::json!({ "name": recipe.name, "purpose": recipe.purpose });
            print_json(&RECIPES.iter().map(row).collect::<Vec<_>>())?;
        }
        None => {
            for NamedRecipe { name, purpose, .. } in &RECIPES {
                print_result(&format!("{name:<10}{purpose}"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
