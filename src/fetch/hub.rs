//! Weights from the Hugging Face Hub, in the cache folder of its own programs:
//! `models--OWNER--NAME/{refs,blobs,snapshots}`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::download::{Transfer, agent, download, header};
use crate::error::{Context, Error, Result};
use crate::file::write_atomically;

const FILE: &str = "model.safetensors";
const ENDPOINT: &str = "https://huggingface.co";
const MOST_REDIRECTS: usize = 5;

/// A model on the Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `owner/name`
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl HubName {
    /// Parses `owner/name` or `owner/name@revision`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) = repository.split_once('/')?;
        let is_word = |word: &str| {
            let starts_well = word.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
            starts_well && !word.contains("..") && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let is_file = [".safetensors", ".pth", ".pt", ".bin"].iter().any(|end| name.to_lowercase().ends_with(end));
        (is_word(owner) && is_word(name) && is_word(revision) && !is_file)
            .then(|| Self { repository: repository.into(), revision: revision.into() })
    }
}

/// The configuration that all programs of the Hub share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// The server: `HF_ENDPOINT`.
    pub endpoint: String,
    /// The cache: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, else the token saved by `huggingface-cli login`.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: no request is sent.
    pub offline: bool,
}

impl Hub {
    /// Reads the environment variables.
    pub fn from_environment() -> Result<Self> {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.trim().is_empty());
        let is_set = |name: &str| {
            variable(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()))
        };
        let home = || {
            let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| env::home_dir().map(|home| home.join(".cache")));
            variable("HF_HOME").map(PathBuf::from).or_else(|| cache.map(|cache| cache.join("huggingface")))
        };
        let no_home =
            || Error::new("no home folder for the cache of the Hugging Face Hub").hint("set HF_HOME to a folder");
        let cache = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].into_iter().find_map(variable).map(PathBuf::from);
        let cache = match cache {
            Some(cache) => cache,
            None => home().ok_or_else(no_home)?.join("hub"),
        };
        let token_file = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| home().map(|home| home.join("token")));
        let token = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(variable);
        let token = token.or_else(|| fs::read_to_string(token_file?).ok());
        let token = token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty());
        Ok(Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()).trim_end_matches('/').into(),
            cache,
            token: token.filter(|_| !is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN")),
            offline: is_set("HF_HUB_OFFLINE"),
        })
    }

    fn folder(&self, name: &HubName) -> PathBuf {
        self.cache.join(format!("models--{}", name.repository.replace('/', "--")))
    }

    /// The model's weights, if they are in the cache.
    pub fn cached(&self, name: &HubName) -> Option<PathBuf> {
        let folder = self.folder(name);
        let commit = fs::read_to_string(folder.join("refs").join(&name.revision));
        let commit = commit.map_or_else(|_| name.revision.clone(), |commit| commit.trim().to_string());
        let path = folder.join("snapshots").join(commit).join(FILE);
        path.is_file().then_some(path)
    }

    /// The path of the model's weights in the cache. Weights that are not cached are downloaded; `tell` is called with the
    /// bytes received and their total.
    ///
    /// # Errors
    /// When the weights are not cached and the Hub cannot be reached, does not have the model, the revision or the file, or
    /// denies access.
    pub fn get(&self, name: &HubName, tell: impl FnMut(u64, Option<u64>)) -> Result<PathBuf> {
        if let Some(path) = self.cached(name) {
            return Ok(path);
        }
        let HubName { repository, revision } = name;
        if self.offline {
            return Err(Error::new(format!(
                "{repository}: not cached in {}, and HF_HUB_OFFLINE is set",
                self.cache.display()
            ))
            .hint("unset HF_HUB_OFFLINE to download the model"));
        }
        let url = format!("{}/{repository}/resolve/{revision}/{FILE}", self.endpoint);
        let Found { url, commit, tag } = self.find(name, url)?;
        let folder = self.folder(name);
        let blob = folder.join("blobs").join(&tag);
        if !blob.is_file() {
            // The Hub's tag of a large file is its SHA-256.
            let digest = (tag.len() == 64).then_some(Digest::Sha256Start(&tag));
            let token = self.token.as_deref();
            download(Transfer { url: &url, token, digest }, &blob, tell).map_err(|error| error.about(repository))?;
        }
        let snapshot = folder.join("snapshots").join(&commit);
        fs::create_dir_all(&snapshot).context(|| format!("cannot create the folder {}", snapshot.display()))?;
        let path = snapshot.join(FILE);
        link(&tag, &blob, &path)?;
        if *revision != commit {
            let reference = folder.join("refs").join(revision);
            let refs = folder.join("refs");
            fs::create_dir_all(&refs).context(|| format!("cannot create the folder {}", refs.display()))?;
            write_atomically(&reference, |writer| std::io::Write::write_all(writer, commit.as_bytes()))?;
        }
        Ok(path)
    }

    /// Requests the file's commit and tag.
    fn find(&self, name: &HubName, mut url: String) -> Result<Found> {
        let HubName { repository, revision } = name;
        for _ in 0..MOST_REDIRECTS {
            let mut request = agent(0).head(&url);
            if let Some(token) = &self.token {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|cause| {
                Error::new(format!("cannot reach {url}: {cause}"))
                    .hint("check the network, or give the path of a file; a cached model needs no network")
            })?;
            let status = response.status().as_u16();
            let commit = header(&response, "x-repo-commit").filter(|commit| is_hexadecimal(commit));
            let tag = header(&response, "x-linked-etag").or_else(|| header(&response, "etag"));
            let tag = tag.map(|tag| tag.trim_start_matches("W/").trim_matches('"')).filter(|tag| is_hexadecimal(tag));
            match (status, commit, tag, header(&response, "location")) {
                (200 | 302 | 307, Some(commit), Some(tag), _) => {
                    return Ok(Found { url, commit: commit.into(), tag: tag.into() });
                }
                // A renamed model. Only redirects to the same server are followed, so that the token goes nowhere else.
                (301 | 302 | 307 | 308, _, _, Some(location))
                    if location.starts_with('/') && !location.starts_with("//") =>
                {
                    url = format!("{}{location}", self.endpoint);
                }
                (401 | 403, ..) => {
                    let error = Error::new(format!(
                        "{repository}: the Hub responded with status {status}: the model is private, gated, or does not exist"
                    ));
                    return Err(error.hint(match &self.token {
                        None => "check the name; for a private or gated model, accept its terms and set HF_TOKEN",
                        Some(_) => {
                            "check the name, the permissions of the token, and that the model's terms are accepted"
                        }
                    }));
                }
                (404, ..) => {
                    return Err(match header(&response, "x-error-code") {
                        Some("RevisionNotFound") => Error::new(format!("{repository}: no revision {revision:?}")),
                        Some("EntryNotFound") => Error::new(format!("{repository}: no file {FILE}")).hint(
                            "choose another model, or convert its weights to safetensors and give the path of the file",
                        ),
                        _ => Error::new(format!("{repository}: no such model on the Hub")).hint("check the name"),
                    });
                }
                _ => {
                    return Err(Error::new(format!(
                        "{url}: the Hub responded with status {status} and without the file's commit and tag"
                    ))
                    .hint("try again later"));
                }
            }
        }
        Err(Error::new(format!("{repository}: too many redirects")))
    }
}

struct Found {
    url: String,
    commit: String,
    tag: String,
}

/// Whether a server's text can safely name a file.
fn is_hexadecimal(text: &str) -> bool {
    (8..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// Links as the Hub's own programs do: a relative link, or a copy on file systems without links.
fn link(tag: &str, blob: &Path, path: &Path) -> Result<()> {
    // An interrupted attempt may have left a link.
    let _ = fs::remove_file(path);
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(Path::new("../../blobs").join(tag), path);
    #[cfg(not(unix))]
    let linked = fs::hard_link(blob, path);
    let _ = tag;
    linked.or_else(|_| fs::copy(blob, path).map(drop)).context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        let parsed = |text: &str| HubName::parse(text).map(|name| (name.repository, name.revision));
        let name = |repository: &str, revision: &str| Some((repository.to_string(), revision.to_string()));
        assert_eq!(parsed("timm/resnet18.tv_in1k"), name("timm/resnet18.tv_in1k", "main"));
        assert_eq!(parsed("microsoft/resnet-18@v1.0"), name("microsoft/resnet-18", "v1.0"));
        for other in [
            "resnet18",
            "weights/resnet18.pth",
            "a/b/c",
            "../x",
            "a/..",
            "/etc/passwd",
            "a/b@../c",
            "a/",
            "./b",
            "a/b.safetensors",
        ] {
            assert_eq!(parsed(other), None, "{other}");
        }
    }
}
