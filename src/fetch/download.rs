//! Downloads one file: interrupted downloads resume, and the file gets its name once its checksum is verified.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::Agent;
use ureq::http::Response;
use ureq::{Body, Error as RequestError};

use super::digest::Digest;
use crate::error::{Context, Error, Result};

const ATTEMPTS: u32 = 4;
/// The pause before the second attempt; it doubles before every further one.
const FIRST_PAUSE: Duration = Duration::from_millis(300);

/// A file to download.
#[derive(Debug, Clone, Copy)]
pub struct Transfer<'a> {
    /// Its URL.
    pub url: &'a str,
    /// A bearer token, sent to the server of `url` only and never to one that it redirects to.
    pub token: Option<&'a str>,
    /// The expected checksum, if known.
    pub digest: Option<Digest<'a>>,
}

pub(super) fn agent(redirects: u32) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(redirects)
        .max_redirects_will_error(false)
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .user_agent(concat!("retune/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

/// Why an attempt ended.
enum Failure {
    /// Another attempt may succeed.
    Transient(Error),
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Downloads to `target`, and resumes an interrupted download. `tell` is called with the bytes received and their total, if
/// the server reports it.
///
/// # Errors
/// When the server cannot be reached, when it does not have the file, when the checksum is wrong, or when the disk is full. The
/// bytes received so far stay beside the target under a temporary name, unless their checksum is wrong.
pub fn download(transfer: Transfer, target: &Path, mut tell: impl FnMut(u64, Option<u64>)) -> Result<()> {
    let partial = Partial::beside(target)?;
    let mut pause = FIRST_PAUSE;
    let mut attempt = 1;
    loop {
        let begun_at = partial.length();
        let outcome = attempt_once(&transfer, &partial, &mut tell).and_then(|()| {
            match transfer.digest.map_or(Ok(()), |digest| digest.check(&partial.path)) {
                Ok(()) => Ok(()),
                Err(error) => {
                    partial.remove();
                    let url = transfer.url;
                    let message = format!("{url}: unexpected content: {}", error.message());
                    let error = Error::new(message).hint("the download was discarded; try again, or another mirror");
                    // The server may have replaced the file between two attempts: download it again from the start.
                    Err(if begun_at > 0 { Failure::Transient(error) } else { Failure::Final(error) })
                }
            }
        });
        match outcome {
            Ok(()) => return partial.finish(target),
            Err(Failure::Transient(_)) if attempt < ATTEMPTS => {
                std::thread::sleep(pause);
                (attempt, pause) = (attempt + 1, 2 * pause);
            }
            Err(Failure::Transient(error) | Failure::Final(error)) => return Err(error),
        }
    }
}

fn attempt_once(
    transfer: &Transfer,
    partial: &Partial,
    tell: &mut impl FnMut(u64, Option<u64>),
) -> Result<(), Failure> {
    let url = transfer.url;
    let mut request = agent(10).get(url);
    if let Some(token) = transfer.token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let begun_at = partial.length();
    if begun_at > 0 {
        request = request.header("Range", format!("bytes={begun_at}-"));
        // With If-Range the server sends the whole file if it has changed in the meantime.
        if let Some(tag) = partial.tag() {
            request = request.header("If-Range", tag);
        }
    }
    let mut response = request.call().map_err(|cause| unreachable(url, &cause))?;
    let status = response.status().as_u16();
    let (mut file, mut done, total) = match status {
        206 if content_range_start(&response) == Some(begun_at) => {
            let total = content_length(&response).map(|length| begun_at + length);
            (partial.open_at_end()?, begun_at, total)
        }
        200 => {
            partial.begin(header(&response, "etag"))?;
            (partial.open_at_end()?, 0, content_length(&response))
        }
        // The partial file is already as long as the file, or longer.
        206 | 416 if begun_at > 0 => {
            partial.remove();
            return Err(Failure::Transient(Error::new(format!("{url}: the server cannot resume at byte {begun_at}"))));
        }
        _ => return Err(refused(url, status)),
    };
    tell(done, total);
    let mut buffer = vec![0; 1 << 16];
    let mut body = response.body_mut().as_reader();
    loop {
        let read = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
            Err(cause) => {
                let message = format!("{url}: interrupted after {done} bytes: {cause}");
                return Err(Failure::Transient(
                    Error::new(message).hint("run the command again to resume the download"),
                ));
            }
        };
        file.write_all(&buffer[..read]).map_err(|cause| Failure::Final(partial.cannot_write(&cause)))?;
        done += read as u64;
        tell(done, total);
    }
    if let Some(total) = total.filter(|&total| total != done) {
        let message = format!("{url}: interrupted after {done} of {total} bytes");
        return Err(Failure::Transient(Error::new(message).hint("run the command again to resume the download")));
    }
    file.sync_all().map_err(|cause| Failure::Final(partial.cannot_write(&cause)))?;
    Ok(())
}

fn unreachable(url: &str, cause: &RequestError) -> Failure {
    let error = Error::new(format!("cannot reach {url}: {cause}"))
        .hint("check the network and the proxy in HTTPS_PROXY, or download the file by other means");
    match cause {
        RequestError::BadUri(_) | RequestError::TooManyRedirects => Failure::Final(error),
        _ => Failure::Transient(error),
    }
}

fn refused(url: &str, status: u16) -> Failure {
    let error = Error::new(format!("{url}: the server responded with status {status}"));
    match status {
        404 | 410 => Failure::Final(error.hint("the file does not exist on this server")),
        401 | 403 => Failure::Final(error.hint("the file is not public: a token is needed")),
        429 | 500..=599 => Failure::Transient(error.hint("try again later")),
        _ => Failure::Final(error),
    }
}

pub(super) fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn content_length(response: &Response<Body>) -> Option<u64> {
    header(response, "content-length")?.parse().ok()
}

fn content_range_start(response: &Response<Body>) -> Option<u64> {
    header(response, "content-range")?.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// An incomplete download beside its target.
struct Partial {
    path: PathBuf,
    tag: PathBuf,
    /// Folders that did not exist before, innermost first.
    new_folders: Vec<PathBuf>,
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Only empty folders can be removed.
        self.new_folders.iter().take_while(|folder| fs::remove_dir(folder).is_ok()).for_each(drop);
    }
}

impl Partial {
    fn beside(target: &Path) -> Result<Self> {
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = target.file_name().ok_or_else(|| Error::new(format!("{} has no file name", target.display())))?;
        let name = name.to_string_lossy();
        let is_new = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        let partial = Self {
            path: folder.join(format!(".{name}.part")),
            tag: folder.join(format!(".{name}.part.etag")),
            new_folders: folder.ancestors().take_while(is_new).map(Path::to_path_buf).collect(),
        };
        fs::create_dir_all(folder).context(|| format!("cannot create the folder {}", folder.display()))?;
        Ok(partial)
    }

    fn length(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |found| found.len())
    }

    fn tag(&self) -> Option<String> {
        // A weak tag does not identify the bytes.
        fs::read_to_string(&self.tag).ok().filter(|tag| tag.starts_with('"'))
    }

    fn begin(&self, tag: Option<&str>) -> Result<()> {
        self.remove();
        File::create(&self.path).map_err(|cause| self.cannot_write(&cause))?;
        match tag {
            Some(tag) => fs::write(&self.tag, tag).map_err(|cause| self.cannot_write(&cause)),
            None => Ok(()),
        }
    }

    fn open_at_end(&self) -> Result<File> {
        OpenOptions::new().append(true).open(&self.path).map_err(|cause| self.cannot_write(&cause))
    }

    fn remove(&self) {
        // The files may not exist.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.tag);
    }

    fn finish(&self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).context(|| format!("cannot create {}", target.display()))?;
        let _ = fs::remove_file(&self.tag);
        Ok(())
    }

    fn cannot_write(&self, cause: &io::Error) -> Error {
        let error = Error::new(format!("cannot write {}: {cause}", self.path.display()));
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                error.hint("free some space on the disk, or choose another folder; the download resumes")
            }
            _ => error,
        }
    }
}
