//! `config.json`: the settings with which a run was started.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::folder::RunFolder;
use super::recipe::{LARGEST_IMAGE_SIZE, Recipe};
use super::run::Run;
use crate::data::ImageFolder;
use crate::error::{Context, Error, Result};
use crate::file::write_atomically;

/// See the module documentation. A resumed run leaves all values unchanged.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunConfig {
    /// The version of the program that started the run.
    pub retune: String,
    /// When the run was started, such as `2026-11-29T10:53:26Z`; earlier versions stored no time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// The folder of the data set; an absolute path, except from earlier versions.
    pub data: PathBuf,
    /// The weights that it started from, if any: an absolute path, or the name of a model on the Hugging Face Hub.
    pub weights: Option<PathBuf>,
    /// The device's name.
    pub device: String,
    /// The device's precision.
    pub precision: String,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Training images.
    pub train_images: usize,
    /// Test images.
    pub test_images: usize,
    /// The digest of the list of images ([`super::ImageList::digest`]); earlier versions stored none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<String>,
    /// Validation images, where they are not the test images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_images: Option<usize>,
    /// The recipe.
    pub recipe: Recipe,
}

impl RunConfig {
    /// The configuration of a run on the images in `data`, started from `weights`.
    pub fn new(run: &Run, data: &Path, weights: Option<&Path>) -> Self {
        let device = run.trainer.network().device();
        Self {
            retune: env!("CARGO_PKG_VERSION").into(),
            started: Some(humantime::format_rfc3339_seconds(SystemTime::now()).to_string()),
            data: absolute(data),
            weights: weights.map(Self::name_of_weights),
            device: device.name(),
            precision: device.precision().to_string(),
            classes: run.splits.train.classes.clone(),
            train_images: run.splits.train.len(),
            test_images: run.splits.test.len(),
            images: Some(run.images.digest().to_string()),
            validation_images: run.splits.validation.as_ref().map(ImageFolder::len),
            recipe: run.recipe.clone(),
        }
    }

    /// Weights as a run records them: as an absolute path if that exists, or else as the user named them.
    pub fn name_of_weights(weights: &Path) -> PathBuf {
        if weights.exists() { absolute(weights) } else { weights.to_path_buf() }
    }

    /// Reads the configuration of a run.
    ///
    /// # Errors
    /// When there is no run in the folder, the file cannot be read, or a value is out of range.
    pub fn open(folder: &RunFolder) -> Result<Self> {
        let path = folder.config();
        let text = fs::read_to_string(&path).map_err(|cause| {
            Error::new(format!("{} is not a run: cannot read config.json: {cause}", folder.path.display()))
                .hint("give a folder that `retune train` wrote, such as runs/1")
        })?;
        let config: Self = serde_json::from_str(&text).context(|| format!("cannot read {}", path.display()))?;
        config.check().map_err(|problem| {
            Error::new(format!("{}: {problem}", path.display()))
                .hint("correct the value: `retune train` wrote another one")
        })?;
        Ok(config)
    }

    /// Refuses values that no run can have had, and with which nothing could be computed.
    fn check(&self) -> Result<(), String> {
        let Recipe { batch_size, accumulate, image_size, .. } = self.recipe;
        if batch_size == 0 {
            return Err("the recipe's batch_size is 0; expected at least 1".into());
        }
        if accumulate == 0 {
            return Err("the recipe's accumulate is 0; expected at least 1".into());
        }
        if !(1..=LARGEST_IMAGE_SIZE).contains(&image_size) {
            return Err(format!("the recipe's image_size is {image_size}; expected 1 to {LARGEST_IMAGE_SIZE}"));
        }
        Ok(())
    }

    /// Writes it atomically.
    pub fn save(&self, folder: &RunFolder) -> Result<()> {
        let doing = || "cannot write config.json";
        // A `Value` sorts the keys.
        let value = serde_json::to_value(self).context(doing)?;
        let text = serde_json::to_string_pretty(&value).context(doing)? + "\n";
        write_atomically(&folder.config(), |writer| writer.write_all(text.as_bytes()))
    }
}

fn absolute(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    // Names that are not Unicode have no place in JSON.
    PathBuf::from(path.to_string_lossy().into_owned())
}
