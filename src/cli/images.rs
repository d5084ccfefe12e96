//! The images that a command line names, directly or in a list, and their batches.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use tempfile::NamedTempFile;

use super::GlobalArguments;
use super::url::{is_url, refusal};
use crate::data::{
    Batches, DecodeOptions, FileKind, ImageFolder, ImageStore, Loader, LoaderOptions, Mode, NotRead, ResizeMode,
    SkippedSample, images_below,
};
use crate::device::threads;
use crate::error::{Context, Error, Result};
use crate::file::cannot_open;

/// The argument that stands for standard input.
const STANDARD_INPUT: &str = "-";
/// Files that are standard input as well.
const DEVICES_OF_STANDARD_INPUT: [&str; 2] = ["/dev/stdin", "/dev/fd/0"];

/// The maximum number of images of a list that are classified together. A longer list never is in memory as a whole.
const AT_ONCE: usize = 1024;

/// Bytes. More than the largest image that is decoded has without compression, and far from filling a disk.
const LARGEST_PIPED_IMAGE: u64 = 2 << 30;

/// The arguments that name images.
#[derive(clap::Args)]
pub struct ImageArguments {
    /// Images, folders of images, or patterns such as 'photos/*.jpg'; - reads one image from standard input
    #[arg(required_unless_present = "from", value_name = "IMAGE")]
    images: Vec<PathBuf>,

    /// Also use the images that this file lists, one path per line; - reads the list from standard input
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,

    /// In the list of --from, every path ends in a NUL character, as `find -print0` writes it
    #[arg(short = '0', long, requires = "from")]
    null: bool,
}

impl ImageArguments {
    /// The images that they name; says what lies in folders and is not read.
    pub fn open(&self, global: &GlobalArguments) -> Result<Images> {
        let end = if self.null { 0 } else { b'\n' };
        let images = Images::open(&self.images, self.from.as_deref().map(|file| List { file, end }))?;
        images.not_read.notices().iter().for_each(|notice| global.note(notice));
        Ok(images)
    }
}

/// Images to use, in order.
pub struct Images {
    named: std::vec::IntoIter<PathBuf>,
    listed: Option<Receiver<io::Result<PathBuf>>>,
    list: PathBuf,
    /// A copy of the image in standard input.
    piped: Option<NamedTempFile>,
    /// What lies in the folders and is not read.
    not_read: NotRead,
    /// The refusal of the first URL in the list.
    url: Option<Error>,
    /// Arguments that name no image, and why.
    missing: HashMap<PathBuf, String>,
}

/// A list of paths in a file.
#[derive(Debug, Clone, Copy)]
struct List<'a> {
    file: &'a Path,
    /// What ends a path.
    end: u8,
}

impl Images {
    /// Those of these arguments, and then those of a list, which is read while they are classified.
    fn open(arguments: &[PathBuf], list: Option<List>) -> Result<Self> {
        let names = DEVICES_OF_STANDARD_INPUT.iter().chain([&STANDARD_INPUT]);
        let is_standard_input = |path: &&Path| names.clone().any(|name| **path == *Path::new(name));
        let all = arguments.iter().map(PathBuf::as_path).chain(list.map(|list| list.file));
        match all.filter(is_standard_input).count() {
            0 => {}
            1 if io::stdin().is_terminal() => {
                return Err(Error::usage("-: standard input is a terminal").hint("pipe an image or a list into it"));
            }
            1 => {}
            _ => return Err(Error::usage("-: standard input can be read only once")),
        }
        let mut images = Self {
            named: Vec::new().into_iter(),
            listed: None,
            list: PathBuf::new(),
            piped: None,
            not_read: NotRead::default(),
            url: None,
            missing: HashMap::new(),
        };
        let (mut named, mut nothing) = (Vec::new(), None);
        for argument in arguments {
            match is_standard_input(&argument.as_path()) {
                true => {
                    let copy = images.piped.insert(copy_of_standard_input()?);
                    named.push(copy.path().to_path_buf());
                }
                false => match images_of(argument, &mut images.not_read) {
                    Ok(paths) => named.extend(paths),
                    Err(error) => {
                        images.missing.insert(argument.clone(), error.message().into());
                        named.push(argument.clone());
                        nothing.get_or_insert(error);
                    }
                },
            }
        }
        // Among images that are there, one that is not is like one that cannot be read.
        let is_missing = |path: &PathBuf| images.missing.contains_key(path);
        if let Some(error) = nothing.filter(|_| list.is_none() && named.iter().all(is_missing)) {
            return Err(error);
        }
        images.named = named.into_iter();
        if let Some(List { file, end }) = list {
            let source: Box<dyn Read + Send> = match is_standard_input(&file) {
                true => Box::new(io::stdin()),
                false => Box::new(File::open(file).map_err(|cause| cannot_open(file, &cause))?),
            };
            images.listed = Some(read_list(source, end));
            images.list = file.to_path_buf();
        }
        Ok(images)
    }

    /// The number of images, if there is no list.
    pub fn count(&self) -> Option<usize> {
        self.listed.is_none().then(|| self.named.len())
    }

    /// The next images; none at the end. Waits for the first of them, and not for others.
    pub fn next_paths(&mut self) -> Result<Vec<PathBuf>> {
        let mut paths: Vec<_> = self.named.by_ref().take(AT_ONCE).collect();
        if let (true, Some(listed)) = (paths.is_empty(), &self.listed) {
            let received = listed.recv().into_iter().chain(listed.try_iter()).take(AT_ONCE);
            let doing = || format!("cannot read {}", self.list.display());
            paths = received.collect::<io::Result<_>>().context(doing)?;
        }
        Ok(paths)
    }

    /// An image as the user named it.
    pub fn name(&self, path: &Path) -> String {
        match self.piped.as_ref().is_some_and(|piped| piped.path() == path) {
            true => STANDARD_INPUT.into(),
            false => path.to_string_lossy().into_owned(),
        }
    }

    /// Why an image was skipped, with the user's name for it.
    pub fn reason(&mut self, sample: &SkippedSample) -> String {
        if let Some(reason) = self.missing.get(&sample.path) {
            return reason.clone();
        }
        let name = sample.path.to_string_lossy();
        if is_url(&name) && !sample.path.exists() {
            let refusal = refusal(&name);
            let message = refusal.message().to_string();
            self.url.get_or_insert(refusal);
            return message;
        }
        match &self.piped {
            Some(piped) => sample.reason.replace(&*piped.path().to_string_lossy(), "standard input"),
            None => sample.reason.clone(),
        }
    }

    /// The end of a command that could not read some of all images.
    pub fn outcome(&self, unreadable: usize, all: usize) -> Result<ExitCode> {
        match (all, unreadable) {
            (0, _) => Err(Error::new("there are no images in the list")),
            (_, 0) => Ok(ExitCode::SUCCESS),
            _ => {
                let error = Error::new(format!("{unreadable} of {all} images could not be read"));
                Err(match self.url.as_ref().and_then(Error::hint_text) {
                    Some(hint) => error.hint(hint),
                    None => error,
                })
            }
        }
    }
}

/// How images become the input of a network.
#[derive(Debug, Clone, Copy)]
pub struct ImageOptions {
    /// Images in a batch; fewer if there are not as many.
    pub batch_size: usize,
    /// Rows and columns of the input.
    pub image_size: usize,
    /// How images become squares of that size.
    pub resize: ResizeMode,
    /// Whether the EXIF orientation is applied.
    pub exif: bool,
}

/// The batches of image files whose class is unknown, in order.
pub fn batches_of(paths: &[PathBuf], options: &ImageOptions, store: &Rc<ImageStore>) -> Result<Batches> {
    let decoding = DecodeOptions::with_exif(options.exif);
    let folder = ImageFolder::unlabelled(paths.to_vec(), Vec::new(), decoding);
    let options = LoaderOptions {
        batch_size: options.batch_size.min(paths.len()),
        image_size: options.image_size as u32,
        resize: options.resize,
        mode: Mode::Evaluate,
        workers: threads::count().min(paths.len()),
        strict: false,
    };
    Batches::new(Loader::new(Arc::new(folder), options)?, store)
}

fn copy_of_standard_input() -> Result<NamedTempFile> {
    let doing = || "cannot copy standard input to a temporary file";
    let mut copy = NamedTempFile::new().context(doing)?;
    let copied = io::copy(&mut io::stdin().lock().take(LARGEST_PIPED_IMAGE + 1), &mut copy).context(doing)?;
    if copied > LARGEST_PIPED_IMAGE {
        return Err(Error::new(format!(
            "-: standard input is larger than {} MiB, so it is no image",
            LARGEST_PIPED_IMAGE >> 20
        ))
        .hint("pipe one image into it, or a list of paths with --from -"));
    }
    Ok(copy)
}

/// Reads paths in a thread of its own. It waits if the receiver is not as fast.
fn read_list(source: impl Read + Send + 'static, end: u8) -> Receiver<io::Result<PathBuf>> {
    let (sender, receiver) = sync_channel(AT_ONCE);
    std::thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut is_first = true;
        loop {
            let path = next_path(&mut source, end, std::mem::take(&mut is_first));
            // The receiver is gone once the command ends.
            let is_last = !matches!(path, Some(Ok(_)));
            if path.is_none_or(|path| sender.send(path).is_err()) || is_last {
                break;
            }
        }
    });
    receiver
}

/// The next path that is not empty; none at the end.
fn next_path(source: &mut impl BufRead, end: u8, mut is_first: bool) -> Option<io::Result<PathBuf>> {
    const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
    loop {
        // What is there already tells of another kind of list before it is read to its end.
        let wrong = source.fill_buf().map(|start| wrong_list(start, end, is_first));
        if let Some(error) = wrong.transpose() {
            return Some(error.and_then(|cause| Err(io::Error::new(ErrorKind::InvalidData, cause))));
        }
        let mut bytes = Vec::new();
        match source.read_until(end, &mut bytes) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(cause) => return Some(Err(cause)),
        }
        let is_ended = bytes.pop_if(|last| *last == end).is_some();
        if std::mem::take(&mut is_first) && bytes.starts_with(BYTE_ORDER_MARK) {
            bytes.drain(..BYTE_ORDER_MARK.len());
        }
        if end == 0 && !is_ended && bytes.contains(&b'\n') {
            return Some(Err(io::Error::new(ErrorKind::InvalidData, "its paths end in line breaks: leave -0 out")));
        }
        let path = path_of(bytes, end);
        if !path.as_os_str().is_empty() {
            return Some(Ok(path));
        }
    }
}

/// What is wrong with a list that goes on like this.
fn wrong_list(bytes: &[u8], end: u8, is_first: bool) -> Option<&'static str> {
    match bytes {
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] if is_first => Some("it is UTF-16 text: save it as UTF-8"),
        _ if is_first && FileKind::of(bytes).is_some_and(|kind| kind.format.is_some()) => {
            Some("it is an image, expected a list of paths: leave --from out")
        }
        _ if end != 0 && bytes.contains(&0) => Some("its paths end in NUL characters: add -0"),
        _ => None,
    }
}

fn path_of(mut bytes: Vec<u8>, end: u8) -> PathBuf {
    if end == b'\n' {
        bytes.pop_if(|last| *last == b'\r');
    }
    #[cfg(unix)]
    {
        <std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes).into()
    }
    #[cfg(not(unix))]
    {
        String::from_utf8_lossy(&bytes).into_owned().into()
    }
}

/// A file, the images in a folder at any depth, or the files that a pattern matches. Adds what is not read in the folder to `not_read`.
fn images_of(argument: &Path, not_read: &mut NotRead) -> Result<Vec<PathBuf>> {
    let mut unread = String::new();
    let (paths, what) = if argument.is_dir() {
        let (paths, beside) = images_below(argument)?;
        unread = beside.found_below(argument);
        not_read.add(&beside);
        (paths, "no images in this folder")
    } else if argument.exists() {
        (vec![argument.to_path_buf()], "")
    } else {
        (matching(&argument.to_string_lossy(), argument)?, "no such file")
    };
    match paths.is_empty() {
        true => Err(Error::new(format!("{}: {what}{unread}", argument.display()))
            .hint(format!("give images that end in one of {}", FileKind::image_extensions()))),
        false => Ok(paths),
    }
}

fn matching(pattern: &str, argument: &Path) -> Result<Vec<PathBuf>> {
    let paths = glob::glob(pattern).context(|| format!("{}: invalid pattern", argument.display()))?;
    Ok(paths.filter_map(|path| path.ok()).filter(|path| path.is_file()).collect())
}
