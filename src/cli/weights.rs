//! Finds the file of weights that a command-line argument refers to.

use std::path::{Path, PathBuf};

use super::GlobalArguments;
use super::progress::Progress;
use crate::error::{Context, Error, Result};
use crate::fetch::hub::{Hub, HubName};
use crate::model::Architecture;
use crate::train::RunFolder;
use crate::weights::TensorFile;

/// The folder to which `retune fetch` downloads weights.
const FOLDER: &str = "weights";
const EXTENSIONS: [&str; 3] = ["safetensors", "pth", "pt"];

/// The option that selects one of several networks in a file.
#[derive(Clone, clap::Args)]
pub struct WeightsKey {
    /// Prefix of the network to use, if the file contains several, e.g. teacher or state_dict_ema
    #[arg(long, value_name = "PREFIX")]
    weights_key: Option<String>,
}

impl WeightsKey {
    /// Refuses the option for a command without weights.
    pub fn require_weights(&self, weights: Option<&Path>) -> Result<()> {
        match (&self.weights_key, weights) {
            (Some(prefix), None) => {
                let message = format!("--weights-key {prefix}: no --weights are given");
                Err(Error::usage(message).hint("leave --weights-key out"))
            }
            _ => Ok(()),
        }
    }

    /// The prefix, if it is given.
    pub fn prefix(&self) -> Option<&str> {
        self.weights_key.as_deref()
    }

    /// The option with this value.
    pub fn of(prefix: Option<&str>) -> Self {
        Self { weights_key: prefix.map(String::from) }
    }

    /// Opens a file of weights; see [`resolve`].
    pub fn open(&self, global: &GlobalArguments, name: &Path) -> Result<TensorFile> {
        let file = TensorFile::open(&resolve(global, name)?)?;
        Ok(match &self.weights_key {
            Some(prefix) => file.choosing(prefix),
            None => file,
        })
    }
}

/// The file of weights that `name` refers to: a file; the folder of a run; a name without extension, such as `resnet18`, which is a
/// file in `weights/` or else torchvision's weights on the Hugging Face Hub; or OWNER/NAME, any model on the Hub. Models on the Hub are
/// downloaded into its cache.
fn resolve(global: &GlobalArguments, name: &Path) -> Result<PathBuf> {
    if name.is_dir() {
        let folder = RunFolder { path: name.into() };
        let model = folder.model();
        return match model.exists() {
            true => Ok(model),
            false if folder.sweep().exists() => {
                Err(Error::new(format!("{} is a sweep, expected a model", name.display()))
                    .hint("give the folder of one of its runs"))
            }
            false => Err(Error::new(format!("{} is a folder without a model.safetensors", name.display()))
                .hint("give a file of weights, or the folder of a run that has completed an epoch")),
        };
    }
    if name.exists() {
        return Ok(name.into());
    }
    if let Some(hub_name) = name.to_str().and_then(HubName::parse) {
        return from_hub(global, &hub_name);
    }
    if name.components().count() != 1 || name.extension().is_some() {
        return Ok(name.into());
    }
    let name = name.to_string_lossy();
    match in_folder(&name)?.as_slice() {
        [path] => {
            global.note(&format!("using {}", path.display()));
            Ok(path.clone())
        }
        [] => match name.parse::<Architecture>().ok().and_then(|_| HubName::parse(&format!("timm/{name}.tv_in1k"))) {
            Some(hub_name) => from_hub(global, &hub_name),
            None => Err(Error::new(format!("{name}: no such file or folder, and no {FOLDER}/{name}.pth"))
                .hint("give a file of weights, the folder of a run, or a model on the Hugging Face Hub as OWNER/NAME")),
        },
        several => {
            let paths: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            Err(Error::new(format!("{name} matches several files: {}", paths.join(", ")))
                .hint("give the path of one of them"))
        }
    }
}

fn from_hub(global: &GlobalArguments, name: &HubName) -> Result<PathBuf> {
    let hub = Hub::from_environment()?;
    if hub.cached(name).is_none() && !hub.offline {
        global.note(&format!("downloading {} from {}", name.repository, hub.endpoint));
    }
    let progress = Progress::of_bytes(global);
    let path = hub.get(name, |done, total| progress.bytes(done, total));
    progress.finish();
    path
}

/// The files `NAME.EXTENSION` and `NAME-*.EXTENSION` in the folder of weights, sorted. The latter are PyTorch's names.
fn in_folder(name: &str) -> Result<Vec<PathBuf>> {
    let matches = |path: &Path| {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.strip_prefix(name));
        let extension = path.extension().and_then(|extension| extension.to_str());
        stem.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            && extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
    };
    let mut found = Vec::new();
    if Path::new(FOLDER).is_dir() {
        let doing = || format!("cannot read the folder {FOLDER}");
        for entry in std::fs::read_dir(FOLDER).context(doing)? {
            let path = entry.context(doing)?.path();
            if path.is_file() && matches(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
