//! A safetensors file, memory-mapped: opening it reads its header only.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::file_kind::recognise;
use super::key_names;
use super::pth::{self, Place};
use crate::error::{Context, Error, Result};

const LENGTH_BYTES: usize = size_of::<u64>();
/// The limit of the format's own library.
const HEADER_LIMIT: u64 = 100_000_000;

/// One tensor of a file, as its header tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// The key.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The shape, in torch's layout; empty for a single number.
    pub shape: Vec<usize>,
    /// Where its bytes are, counted from the start of the file, or of what was gathered.
    range: Range<usize>,
    is_gathered: bool,
}

impl TensorEntry {
    /// How many elements it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// How many bytes it takes in the file.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }
}

/// A memory-mapped safetensors file with a checked header; or a `.pth` of torch, of which nothing is run.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    contents: Contents,
    entries: Vec<TensorEntry>,
    positions: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
    /// Tensors whose elements are not in order in the file.
    gathered: Vec<u8>,
    origin: Option<String>,
}

/// The bytes of a file.
#[derive(Debug)]
enum Contents {
    Mapped(Mmap),
    InMemory(Vec<u8>),
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::InMemory(bytes) => bytes,
        }
    }
}

impl TensorFile {
    /// Maps the file and checks its header; no tensor is read.
    ///
    /// # Errors
    /// When the file cannot be opened, is empty or truncated, or is no safetensors file; the message then says what the
    /// file looks like. No allocation is larger than the header that is really there.
    pub fn open(path: &Path) -> Result<Self> {
        let found = fs::metadata(path).context(|| format!("cannot open {}", path.display()))?;
        if !found.is_file() {
            let kind = if found.is_dir() { "a folder" } else { "a device or pipe" };
            return Err(Error::new(format!("{} is {kind}, expected a safetensors file", path.display())));
        }
        if found.len() == 0 {
            return Err(Error::new(format!("{} is empty (0 bytes), expected a safetensors file", path.display()))
                .hint("whatever wrote it did not finish: download or save it again"));
        }
        let file = File::open(path).context(|| format!("cannot open {}", path.display()))?;
        #[allow(unsafe_code)]
        // SAFETY: the map is private to this struct and only read. Another program that shortens the file meanwhile
        // could end this one with a signal; this crate itself never changes a file in place, it renames a new one.
        let map = unsafe { Mmap::map(&file) }.context(|| format!("cannot map {}", path.display()))?;
        Self::from_contents(path, Contents::Mapped(map))
    }

    /// The same of a file that is in memory; `path` is what messages call it.
    ///
    /// # Errors
    /// Those of [`TensorFile::open`] that are about what is in a file.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::from_contents(path, Contents::InMemory(bytes))
    }

    fn from_contents(path: &Path, contents: Contents) -> Result<Self> {
        let file = if pth::is_pth(&contents) {
            Self::from_pth(path.to_path_buf(), contents)?
        } else {
            let (start, header) = read_header(path, &contents)?;
            Self::from_header(path.to_path_buf(), contents, start, &header)?
        };
        Ok(file.with_torchvision_names())
    }

    fn from_pth(path: PathBuf, contents: Contents) -> Result<Self> {
        let state = pth::read(&contents).map_err(|reason| {
            Error::new(format!("{} cannot be read as a .pth of torch: {reason}", path.display()))
                .hint("save its state dict again: torch.save(model.state_dict(), FILE)")
        })?;
        let entries = state.tensors.into_iter().map(|tensor| {
            let (range, is_gathered) = match tensor.place {
                Place::File(range) => (range, false),
                Place::Gathered(range) => (range, true),
            };
            TensorEntry { name: tensor.name, dtype: tensor.dtype, shape: tensor.shape, range, is_gathered }
        });
        let entries = entries.collect();
        let (gathered, origin) = (state.gathered, Some(state.origin));
        Ok(Self { path, contents, entries, positions: HashMap::new(), metadata: BTreeMap::new(), gathered, origin })
    }

    /// Gives keys of other programs torchvision's names, if all of them can have one, and finds keys by name.
    fn with_torchvision_names(mut self) -> Self {
        let renamed: Option<Vec<String>> =
            self.entries.iter().map(|entry| key_names::from_transformers(&entry.name)).collect();
        if let Some(renamed) = renamed.filter(|renamed| !renamed.is_empty()) {
            self.entries.iter_mut().zip(renamed).for_each(|(entry, name)| entry.name = name);
            let before = self.origin.map_or(String::new(), |origin| format!("{origin}, with "));
            self.origin = Some(format!("{before}the key names of Hugging Face's transformers"));
        }
        let names = self.entries.iter().enumerate();
        self.positions = names.map(|(position, entry)| (entry.name.clone(), position)).collect();
        self
    }

    fn from_header(path: PathBuf, contents: Contents, start: usize, header: &Metadata) -> Result<Self> {
        let mut entries = Vec::new();
        for name in header.offset_keys() {
            let info = header.info(&name).ok_or_else(|| Error::new(format!("{}: no {name}", path.display())))?;
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            entries.push(TensorEntry { name, dtype: info.dtype, shape: info.shape.clone(), range, is_gathered: false });
        }
        let metadata = header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
        let (positions, gathered, origin) = (HashMap::new(), Vec::new(), None);
        Ok(Self { path, contents, entries, positions, metadata, gathered, origin })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file was, where it is not safetensors with torchvision's key names.
    pub fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// The file's length in bytes, header included.
    pub fn file_bytes(&self) -> usize {
        self.contents.len()
    }

    /// Every tensor, in the order of the file.
    pub fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    /// The names of every tensor, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// The free text that the file carries, by key.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.positions.contains_key(name)
    }

    /// The tensor of that name, if any.
    pub fn get(&self, name: &str) -> Option<&TensorEntry> {
        self.positions.get(name).and_then(|&position| self.entries.get(position))
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn entry(&self, name: &str) -> Result<&TensorEntry> {
        self.get(name).ok_or_else(|| {
            Error::new(format!("{}: tensor {} is missing", self.path.display(), printable(name)))
                .hint(format!("it holds {} tensors; `retune inspect` lists them", self.entries.len()))
        })
    }

    /// A tensor's bytes as they are in the file: little endian, torch's layout, at any alignment.
    ///
    /// # Errors
    /// When there is no such tensor.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        Ok(self.bytes_of(self.entry(name)?))
    }

    fn bytes_of(&self, entry: &TensorEntry) -> &[u8] {
        // The header was checked against the length of the map.
        let bytes = if entry.is_gathered { self.gathered.as_slice() } else { &self.contents };
        bytes.get(entry.range.clone()).unwrap_or_default()
    }

    /// A tensor of floating-point numbers (f32, f16, bf16 or f64) as f32, in torch's layout.
    ///
    /// # Errors
    /// When there is no such tensor, or its elements are of another type.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let entry = self.entry(name)?;
        let bytes = self.bytes_of(entry);
        Ok(match entry.dtype {
            Dtype::F32 => convert(bytes, f32::from_le_bytes),
            Dtype::F16 => convert(bytes, |element| f16::from_le_bytes(element).to_f32()),
            Dtype::BF16 => convert(bytes, |element| bf16::from_le_bytes(element).to_f32()),
            Dtype::F64 => convert(bytes, |element| f64::from_le_bytes(element) as f32),
            _ => return Err(self.wrong_type(entry, "F32, F16, BF16 or F64")),
        })
    }

    /// A tensor of integers of up to 64 bits.
    ///
    /// # Errors
    /// When there is no such tensor, or its elements are of another type (U64 included).
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>> {
        let entry = self.entry(name)?;
        let bytes = self.bytes_of(entry);
        Ok(match entry.dtype {
            Dtype::I64 => convert(bytes, i64::from_le_bytes),
            Dtype::I32 => convert(bytes, |element| i32::from_le_bytes(element).into()),
            Dtype::I16 => convert(bytes, |element| i16::from_le_bytes(element).into()),
            Dtype::I8 => convert(bytes, |element| i8::from_le_bytes(element).into()),
            Dtype::U32 => convert(bytes, |element| u32::from_le_bytes(element).into()),
            Dtype::U16 => convert(bytes, |element| u16::from_le_bytes(element).into()),
            Dtype::U8 => convert(bytes, |element| u8::from_le_bytes(element).into()),
            _ => return Err(self.wrong_type(entry, "an integer type")),
        })
    }

    fn wrong_type(&self, entry: &TensorEntry, expected: &str) -> Error {
        let (path, name, found) = (self.path.display(), printable(&entry.name), entry.dtype);
        Error::new(format!("{path}: tensor {name} has elements of type {found}, expected {expected}"))
            .hint("save it again without quantisation, for example with `model.float()` in PyTorch")
    }
}

fn convert<const BYTES: usize, T>(bytes: &[u8], element: impl Fn([u8; BYTES]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&chunk| element(chunk)).collect()
}

/// Checks the header against the file; returns where the tensors begin and what the header says.
fn read_header(path: &Path, bytes: &[u8]) -> Result<(usize, Metadata)> {
    let shown = path.display();
    let no_safetensors = |reason: String| match recognise(bytes) {
        Some(kind) => {
            Error::new(format!("{shown} is no safetensors file: it looks like {}", kind.looks_like)).hint(kind.mend)
        }
        None => Error::new(format!("{shown} is no safetensors file, or a damaged one: {reason}"))
            .hint("check where it came from, and download or save it again"),
    };
    let file_bytes = bytes.len();
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(no_safetensors(format!("it is {file_bytes} bytes long, expected at least {LENGTH_BYTES}")));
    };
    let claimed = u64::from_le_bytes(*length);
    let Some(text) = usize::try_from(claimed).ok().and_then(|claimed| rest.get(..claimed)) else {
        if rest.first() == Some(&b'{') {
            return Err(Error::new(format!(
                "{shown} is truncated: its header is of {claimed} bytes, the file has {file_bytes}"
            ))
            .hint("download or copy it again"));
        }
        return Err(no_safetensors(format!(
            "its first bytes tell of a header of {claimed} bytes, it has {}",
            rest.len()
        )));
    };
    if claimed > HEADER_LIMIT {
        return Err(no_safetensors(format!("its header is of {claimed} bytes, expected at most {HEADER_LIMIT}")));
    }
    let header: Metadata = serde_json::from_slice(text)
        .map_err(|cause| no_safetensors(format!("its header cannot be read: {}", printable(&cause.to_string()))))?;
    let start = LENGTH_BYTES + text.len();
    match start.checked_add(header.data_len()) {
        Some(described) if described == file_bytes => Ok((start, header)),
        Some(described) if described < file_bytes => Err(Error::new(format!(
            "{shown} is damaged: its header tells of {described} bytes, the file has {file_bytes}"
        ))
        .hint("download or save it again")),
        described => {
            let described = described.map_or_else(|| "too many".to_owned(), |bytes| bytes.to_string());
            Err(Error::new(format!(
                "{shown} is truncated: its header tells of {described} bytes, the file has {file_bytes}"
            ))
            .hint("download or copy it again"))
        }
    }
}

/// Text from a file, made fit for one line of a terminal.
pub(super) fn printable(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut shown: String =
        text.chars().take(LONGEST).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}
