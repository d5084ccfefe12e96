//! URLs on the command line, where only files and folders of this machine are read.

use std::ffi::OsStr;

use clap::ArgMatches;

use super::fetch::What;
use crate::error::{Error, Result};
use crate::fetch::hub::HubName;

/// Arguments that name what a command writes.
const OUTPUTS: [&str; 3] = ["out", "output", "per_image"];

/// Rejects a URL as the value of any argument.
pub fn refuse_urls(arguments: &ArgMatches) -> Result<()> {
    for id in arguments.ids().map(clap::Id::as_str) {
        // A group of arguments has no values of its own.
        let values = arguments.try_get_raw(id).ok().flatten().into_iter().flatten();
        if let Some(url) = values.filter_map(OsStr::to_str).find(|value| is_url(value)) {
            return Err(match OUTPUTS.contains(&id) {
                true => refusal(url).hint("write to a file or folder, and upload it afterwards"),
                false => refusal(url),
            });
        }
    }
    Ok(())
}

/// The error for a URL in the place of a path, with what to do.
pub fn refusal(url: &str) -> Error {
    Error::usage(format!("{url}: expected a path on this machine, found a URL")).hint(advice(url))
}

/// Whether it is a URL.
pub fn is_url(value: &str) -> bool {
    let scheme = value.split_once("://").map_or("", |(scheme, _)| scheme);
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

fn advice(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    if scheme.eq_ignore_ascii_case("file") {
        return format!("give its path: {rest}");
    }
    if let Some(name) = What::name_of(file) {
        return format!("`retune fetch {name}` downloads it");
    }
    let model = path.strip_prefix("huggingface.co/").map(|path| path.split('/').take(2).collect::<Vec<_>>().join("/"));
    if let Some(name) = model.filter(|name| HubName::parse(name).is_some() && !name.starts_with("datasets/")) {
        return format!("give a model on the Hugging Face Hub as OWNER/NAME: {name}");
    }
    let is_archive = [".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"];
    let unpack = if is_archive.iter().any(|end| file.to_lowercase().ends_with(end)) { " and unpack it" } else { "" };
    match scheme.to_lowercase().as_str() {
        "http" | "https" | "ftp" => {
            format!("download it{unpack} first, for example with `curl -LO`, and give its path")
        }
        _ => format!("download it{unpack} first, and give its path"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_from_paths() {
        for url in ["https://example.org/a.jpg", "s3://bucket/data", "HTTP://x", "file:///a.png", "git+ssh://x"] {
            assert!(is_url(url), "{url}");
        }
        for path in ["photos/a.jpg", "timm/resnet18.tv_in1k", r"C:\photos", "://x", "a b://c", "", "1://x", "http:/x"] {
            assert!(!is_url(path), "{path}");
        }
    }

    #[test]
    fn each_kind_of_url_has_its_advice() {
        for (url, expected) in [
            ("https://example.org/a.jpg", "download it first, for example with `curl -LO`, and give its path"),
            (
                "https://x.org/photos.tar.gz?raw=1",
                "download it and unpack it first, for example with `curl -LO`, and give its path",
            ),
            ("s3://bucket/photos", "download it first, and give its path"),
            ("file:///home/me/a.png", "give its path: /home/me/a.png"),
            ("https://download.pytorch.org/models/resnet18-f37072fd.pth", "`retune fetch resnet18` downloads it"),
            (
                "https://huggingface.co/timm/resnet18.tv_in1k/tree/main",
                "give a model on the Hugging Face Hub as OWNER/NAME: timm/resnet18.tv_in1k",
            ),
            (
                "https://huggingface.co/datasets/food101",
                "download it first, for example with `curl -LO`, and give its path",
            ),
        ] {
            assert_eq!(advice(url), expected, "{url}");
        }
    }
}
