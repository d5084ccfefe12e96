//! `retune fetch`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;

use super::progress::Progress;
use super::{GlobalArguments, print_json, print_result};
use crate::data::open_dataset;
use crate::error::{Error, Result};
use crate::fetch::{Limits, Source, Transfer, download, unpack};

const EXAMPLES: &str = "\
Examples:
  Fine-tune torchvision's ResNet-18 on the hot dog images:
    retune fetch resnet18
    retune fetch hotdog
    retune train data/hotdog";

/// Download pretrained weights or the hot dog data set
///
/// Resumes interrupted downloads and verifies checksums. To download from a mirror, set the environment variable
/// RETUNE_FETCH_BASE to its URL.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct FetchArguments {
    /// What to download
    what: What,

    /// Folder to download to [default: data for images, weights for weights]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// 2800 images of hot dogs and other food, from the fine-tuning chapter of Dive into Deep Learning
    Hotdog,
    /// ImageNet weights of torchvision's ResNet-18
    Resnet18,
    /// ImageNet weights of torchvision's ResNet-34
    Resnet34,
}

impl What {
    fn source(self) -> Source {
        match self {
            Self::Hotdog => Source::HOTDOG,
            Self::Resnet18 => Source::RESNET18,
            Self::Resnet34 => Source::RESNET34,
        }
    }

    /// The name of the download that is this file.
    pub fn name_of(file: &str) -> Option<String> {
        let what = Self::value_variants().iter().find(|what| what.source().file == file)?;
        what.to_possible_value().map(|value| value.get_name().to_string())
    }
}

pub fn run(global: &GlobalArguments, arguments: &FetchArguments) -> Result<ExitCode> {
    let source = arguments.what.source();
    let folder = if arguments.what == What::Hotdog { "data" } else { "weights" };
    let folder = arguments.out.clone().unwrap_or_else(|| folder.into());
    let (path, next) = match arguments.what {
        What::Hotdog => {
            let data = hotdog(global, &source, &folder)?;
            let next = format!("retune train {} --weights weights/{}", data.display(), Source::RESNET18.file);
            (data, next)
        }
        _ => {
            let path = folder.join(source.file);
            weights(global, &source, &path)?;
            let next = format!("retune train photos --weights {}", path.display());
            (path, next)
        }
    };
    if global.json {
        print_json(&serde_json::json!({ "path": path.to_string_lossy(), "url": source.url() }))?;
    } else {
        print_result(&path.display().to_string())?;
    }
    global.note(&format!("next: {next}"));
    Ok(ExitCode::SUCCESS)
}

fn weights(global: &GlobalArguments, source: &Source, path: &Path) -> Result<()> {
    if path.exists() {
        source.digest.check(path).map_err(|error| error.hint("remove it and run the command again"))?;
        global.note(&format!("{} already exists, and its checksum is correct", path.display()));
        return Ok(());
    }
    get(global, source, path)
}

fn hotdog(global: &GlobalArguments, source: &Source, folder: &Path) -> Result<PathBuf> {
    let data = folder.join("hotdog");
    if data.exists() {
        let splits = open_dataset(&data, None, 0).map_err(|error| {
            Error::new(format!("{} exists, but is incomplete: {}", data.display(), error.message()))
                .hint("remove it and run the command again")
        })?;
        let images = splits.train.len() + splits.test.len();
        global.note(&format!("{} already exists, with {images} images", data.display()));
        return Ok(data);
    }
    let archive = folder.join(source.file);
    if !archive.exists() || source.digest.check(&archive).is_err() {
        get(global, source, &archive)?;
    }
    let files = unpack(&archive, &data, Limits::default())?;
    global.note(&format!("unpacked {files} files"));
    // The archive is no longer needed; if it cannot be removed, it only wastes space.
    let _ = std::fs::remove_file(&archive);
    Ok(data)
}

fn get(global: &GlobalArguments, source: &Source, path: &Path) -> Result<()> {
    let url = source.url();
    global.note(&format!("downloading {url} to {}", path.display()));
    let progress = Progress::of_bytes(global);
    let transfer = Transfer { url: &url, token: None, digest: Some(source.digest) };
    let result = download(transfer, path, |done, total| progress.bytes(done, total));
    progress.finish();
    result
}
