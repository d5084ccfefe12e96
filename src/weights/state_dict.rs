//! Files of tensors, safetensors or torch's `.pth`, memory-mapped: opening one reads its header only.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::value::RawValue;

use super::file_kind::recognise;
use super::pth::{self, Place};
use crate::error::{Context, Error, Result};
use crate::file::cannot_open;

const LENGTH_BYTES: usize = size_of::<u64>();
/// The limit of the format's own library.
const HEADER_LIMIT: u64 = 100_000_000;

/// One tensor of a file, as its header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// The key.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The shape, in torch's layout; empty for a single number.
    pub shape: Vec<usize>,
    /// Where its bytes are, counted from the start of the file, or of the gathered bytes.
    range: Range<usize>,
    is_gathered: bool,
    /// How many bytes of the name come from the dictionaries around it.
    nesting: usize,
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

    /// Whether its elements are floating-point numbers of a type that [`TensorFile::read_f32`] reads.
    pub fn is_float(&self) -> bool {
        matches!(self.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
    }

    /// The dictionaries of a `.pth` that the tensor is in, as in `state_dict.`; empty in the outermost one and in safetensors.
    pub fn nesting(&self) -> &str {
        self.name.get(..self.nesting).unwrap_or_default()
    }
}

/// A memory-mapped safetensors file with a checked header; or a `.pth` file of PyTorch, whose code is never run.
///
/// The keys are those of the file. Nested dictionaries of a `.pth` are joined by dots, as in `state_dict.conv1.weight`.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    contents: Arc<Contents>,
    entries: Vec<TensorEntry>,
    positions: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
    /// Tensors whose elements are not in order in the file.
    gathered: Arc<Vec<u8>>,
    origin: Option<&'static str>,
    foreign_objects: Vec<String>,
    /// Keys with such an object in place of a tensor, and the name of the object's class or function.
    placeholders: Vec<(String, String)>,
    chosen_prefix: Option<String>,
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
    /// When the file cannot be opened, is empty or truncated, or contains no weights; the message then states what it is. No
    /// allocation is larger than the header that the file contains.
    pub fn open(path: &Path) -> Result<Self> {
        let found = fs::metadata(path).map_err(|cause| cannot_open(path, &cause))?;
        if !found.is_file() {
            let kind = if found.is_dir() { "a folder" } else { "a device or pipe" };
            return Err(Error::new(format!("{} is {kind}, expected a safetensors or .pth file", path.display())));
        }
        if found.len() == 0 {
            return Err(Error::new(format!(
                "{} is empty (0 bytes), expected a safetensors or .pth file",
                path.display()
            ))
            .hint("download or save it again: the writing program did not finish"));
        }
        let file = File::open(path).map_err(|cause| cannot_open(path, &cause))?;
        #[allow(unsafe_code)]
        // SAFETY: the map is private to this struct and only read. Another program that shortens the file meanwhile
        // could end this one with a signal; this crate itself never changes a file in place, it renames a new one.
        let map = unsafe { Mmap::map(&file) }.context(|| format!("cannot map {}", path.display()))?;
        Self::from_contents(path, Contents::Mapped(map))
    }

    /// Like [`TensorFile::open`], for a file in memory that messages call `path`.
    ///
    /// # Errors
    /// Those of [`TensorFile::open`] that concern the contents of a file.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::from_contents(path, Contents::InMemory(bytes))
    }

    fn from_contents(path: &Path, contents: Contents) -> Result<Self> {
        if pth::is_pth(&contents) {
            Self::from_pth(path, contents)
        } else {
            let (start, header) = read_header(path, &contents)?;
            Self::from_header(path, contents, start, &header)
        }
    }

    fn from_pth(path: &Path, contents: Contents) -> Result<Self> {
        let state = pth::read(&contents).map_err(|pth::Refusal { reason, fix }| {
            Error::new(format!("{} cannot be read as a .pth file of PyTorch: {reason}", path.display())).hint(fix)
        })?;
        let entries = state.tensors.into_iter().map(|tensor| {
            let (range, is_gathered) = match tensor.place {
                Place::File(range) => (range, false),
                Place::Gathered(range) => (range, true),
            };
            let pth::PthTensor { name, nesting, dtype, shape, .. } = tensor;
            TensorEntry { name, dtype, shape, range, is_gathered, nesting }
        });
        let file = Self {
            path: path.to_path_buf(),
            contents: Arc::new(contents),
            entries: Vec::new(),
            positions: HashMap::new(),
            metadata: BTreeMap::new(),
            gathered: Arc::new(state.gathered),
            origin: Some(state.origin),
            foreign_objects: state.foreign_objects,
            placeholders: state.placeholders,
            chosen_prefix: None,
        };
        Ok(file.holding(entries.collect()))
    }

    /// The same file with these tensors.
    fn holding(mut self, entries: Vec<TensorEntry>) -> Self {
        let names = entries.iter().enumerate();
        self.positions = names.map(|(position, entry)| (entry.name.clone(), position)).collect();
        self.entries = entries;
        self
    }

    /// A view of some of the tensors, by their position in [`TensorFile::entries`], under other names, with the
    /// [placeholders](TensorFile::placeholders) of their dictionary.
    pub(super) fn with_entries(&self, chosen: Vec<(usize, String)>, placeholders: Vec<(String, String)>) -> Self {
        let entries = chosen.into_iter().map(|(position, name)| TensorEntry {
            name,
            nesting: 0,
            ..self.entries[position].clone()
        });
        let view = Self {
            path: self.path.clone(),
            contents: self.contents.clone(),
            entries: Vec::new(),
            positions: HashMap::new(),
            metadata: self.metadata.clone(),
            gathered: self.gathered.clone(),
            origin: self.origin,
            foreign_objects: Vec::new(),
            placeholders,
            chosen_prefix: None,
        };
        view.holding(entries.collect())
    }

    fn from_header(path: &Path, contents: Contents, start: usize, header: &Metadata) -> Result<Self> {
        let mut entries = Vec::new();
        for name in header.offset_keys() {
            let info = header.info(&name).ok_or_else(|| Error::new(format!("{}: no {name}", path.display())))?;
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            let (dtype, shape) = (info.dtype, info.shape.clone());
            entries.push(TensorEntry { name, dtype, shape, range, is_gathered: false, nesting: 0 });
        }
        let file = Self {
            path: path.to_path_buf(),
            contents: Arc::new(contents),
            entries: Vec::new(),
            positions: HashMap::new(),
            metadata: header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect(),
            gathered: Arc::default(),
            origin: None,
            foreign_objects: Vec::new(),
            placeholders: Vec::new(),
            chosen_prefix: None,
        };
        Ok(file.holding(entries))
    }

    /// The same file, limited to networks whose keys begin with this prefix. The last dot of the prefix is optional.
    pub fn choosing(self, prefix: &str) -> Self {
        Self { chosen_prefix: Some(prefix.trim_end_matches('.').to_owned()), ..self }
    }

    /// The prefix that was given to [`TensorFile::choosing`].
    pub fn chosen_prefix(&self) -> Option<&str> {
        self.chosen_prefix.as_deref()
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file is, unless it is safetensors.
    pub fn origin(&self) -> Option<&'static str> {
        self.origin
    }

    /// Names of the Python objects in a `.pth` that are neither tensors nor plain data, such as `argparse.Namespace`. They were
    /// not built, and nothing of them was run.
    pub fn foreign_objects(&self) -> &[String] {
        &self.foreign_objects
    }

    /// The keys of a `.pth` whose values are such objects, or depend on one, with the names of the objects; not all if there are many.
    pub fn placeholders(&self) -> &[(String, String)] {
        &self.placeholders
    }

    /// The [placeholders](TensorFile::placeholders) in the place of a tensor: torch would make one of them, or tensors beside them
    /// have names that end alike, as in `fc.weight`.
    pub fn missing_tensors(&self) -> Vec<&(String, String)> {
        let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
        let beside: HashSet<(&str, String)> =
            self.entries.iter().map(|entry| (entry.nesting(), last(&entry.name))).collect();
        let is_missing = |(key, object): &&(String, String)| {
            object.starts_with("torch._utils._rebuild_")
                || (object.starts_with("torch.") && object.ends_with("Storage"))
                || beside.iter().any(|(nesting, end)| key.starts_with(nesting) && *end == last(key))
        };
        self.placeholders.iter().filter(is_missing).collect()
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
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// The first names, for a message.
    pub fn first_names(&self) -> String {
        listed(self.entries.iter().map(|entry| printable(&entry.name)))
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
                .hint(format!("run `retune inspect` to list its {} tensors", self.entries.len()))
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

    /// A single whole number of any numeric type, as torch casts one when it loads a counter.
    ///
    /// # Errors
    /// When there is no such tensor, when it has no element, or when its elements are not finite numbers.
    pub fn read_counter(&self, name: &str) -> Result<i64> {
        let entry = self.entry(name)?;
        let first = match entry.dtype {
            Dtype::U64 => convert(self.bytes_of(entry), u64::from_le_bytes).first().map(|&number| number as i64),
            Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64 => {
                self.read_finite_f32(name)?.first().map(|&number| number as i64)
            }
            _ => self.read_i64(name)?.first().copied(),
        };
        first.ok_or_else(|| Error::new(format!("{}: tensor {} is empty", self.path.display(), printable(name))))
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
    let no_safetensors = |reason: String| match recognise(path, bytes) {
        Some(found) => {
            Error::new(format!("{shown} is {}, expected a safetensors or .pth file", found.noun)).hint(found.fix)
        }
        None => Error::new(format!("{shown} is neither a safetensors nor a .pth file, or is damaged: {reason}"))
            .hint("check its source, and download or save it again"),
    };
    let file_bytes = bytes.len();
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(no_safetensors(format!("it is {file_bytes} bytes long, expected at least {LENGTH_BYTES}")));
    };
    let claimed = u64::from_le_bytes(*length);
    let Some(text) = usize::try_from(claimed).ok().and_then(|claimed| rest.get(..claimed)) else {
        if rest.first() == Some(&b'{') {
            return Err(Error::new(format!(
                "{shown} is truncated: its header takes {claimed} bytes, the file has {file_bytes}"
            ))
            .hint("download or copy it again"));
        }
        return Err(no_safetensors(format!(
            "its first bytes announce a header of {claimed} bytes, it has {}",
            rest.len()
        )));
    };
    if claimed > HEADER_LIMIT {
        return Err(no_safetensors(format!("its header takes {claimed} bytes, expected at most {HEADER_LIMIT}")));
    }
    let header: Metadata = serde_json::from_slice(text).map_err(|cause| no_safetensors(header_fault(text, &cause)))?;
    let start = LENGTH_BYTES + text.len();
    match start.checked_add(header.data_len()) {
        Some(described) if described == file_bytes => Ok((start, header)),
        Some(described) if described < file_bytes => Err(Error::new(format!(
            "{shown} is damaged: its header describes {described} bytes, the file has {file_bytes}"
        ))
        .hint("download or save it again")),
        described => {
            let described = described.map_or_else(|| "too many".to_owned(), |bytes| bytes.to_string());
            Err(Error::new(format!(
                "{shown} is truncated: its header describes {described} bytes, the file has {file_bytes}"
            ))
            .hint("download or copy it again"))
        }
    }
}

/// What is wrong with a header that cannot be read.
fn header_fault(text: &[u8], cause: &serde_json::Error) -> String {
    #[derive(serde::Deserialize)]
    struct Described<'a> {
        #[serde(borrow)]
        dtype: &'a RawValue,
        #[serde(borrow)]
        shape: &'a RawValue,
        #[serde(borrow)]
        data_offsets: &'a RawValue,
    }
    let header: BTreeMap<Cow<str>, &RawValue> = match serde_json::from_slice(text) {
        Ok(header) => header,
        Err(cause) if cause.is_data() => return "its header is a JSON text, but not an object".into(),
        Err(cause) => return format!("its header is not JSON, from byte {} on", cause.column()),
    };
    for (name, tensor) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let name = printable(name);
        let Ok(Described { dtype, shape, data_offsets }) = serde_json::from_str(tensor.get()) else {
            return format!("its header lacks the dtype, the shape or the data_offsets of tensor {name}");
        };
        let text = printable(dtype.get().trim_matches('"'));
        let Ok(dtype) = serde_json::from_str::<Dtype>(dtype.get()) else {
            return format!("tensor {name} has elements of type {text}, which safetensors does not have");
        };
        let numbers = |list: &RawValue| serde_json::from_str::<Vec<usize>>(list.get());
        let (Ok(extents), Ok(place)) = (numbers(shape), numbers(data_offsets)) else {
            return format!("the shape or the data_offsets of tensor {name} are not a list of whole numbers");
        };
        let bits = extents.iter().try_fold(dtype.bitsize(), |product, &extent| product.checked_mul(extent));
        let expected = bits.map_or_else(|| "too many".into(), |bits| (bits / 8).to_string());
        let found = match place.as_slice() {
            [start, end] => end.checked_sub(*start).map(|bytes| bytes.to_string()),
            _ => None,
        };
        if found.as_ref() != Some(&expected) {
            return format!(
                "tensor {name} of shape {} and type {text} takes {expected} bytes, its header gives it {}",
                printable(shape.get()),
                found.as_deref().unwrap_or("none")
            );
        }
    }
    // The rules of the format, such as that tensors do not overlap, are about no line.
    match cause.line() {
        0 => format!("its header is wrong: {}", printable(&cause.to_string())),
        _ => "its header is JSON, but not that of a safetensors file".into(),
    }
}

/// The first few items of a list, for a message.
pub(super) fn listed(mut items: impl ExactSizeIterator<Item = String>) -> String {
    const LISTED: usize = 3;
    let more = if items.len() > LISTED { ", ..." } else { "" };
    format!("{}{more}", items.by_ref().take(LISTED).collect::<Vec<_>>().join(", "))
}

/// Text from a file, in a form that fits on one line of a message.
pub(super) fn printable(text: &str) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", crate::printable::printable(&text[..end])),
        None => crate::printable::printable(text).into_owned(),
    }
}
