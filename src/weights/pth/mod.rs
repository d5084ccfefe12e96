//! torch's own files, `.pth` and `.pt`, read without running anything that is in them.
//!
//! Such a file is a pickle: a program for a small stack machine, which in Python may call any function. [`pickle`] interprets that
//! program without functions: it knows the few names that tensors need and builds those as data. Any other object becomes an
//! empty placeholder, and a tensor that depends on one is left out. There are two forms. Since torch 1.6 the file is a zip archive
//! of the pickle and of the tensors' bytes, uncompressed; before, pickles and bytes followed each other.

mod pickle;

use std::collections::HashSet;
use std::io::Cursor;
use std::ops::Range;

use safetensors::Dtype;
use zip::read::{ArchiveOffset, Config};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use pickle::{Id, Object, Pickle, StorageReference, TensorReference};

/// The first pickle of a file of the old form.
const MAGIC: [u8; 10] = 0x1950_a86a_20f9_469c_fc6c_u128.to_le_bytes().first_chunk::<10>().copied().unwrap();
const PROTOCOL: i64 = 1001;

/// Dictionaries and lists below this depth are not searched.
const DEEPEST: usize = 16;
/// A limit for hostile files on the bytes of all names together.
const LONGEST_NAMES: usize = 64 << 20;

/// Where a tensor's bytes are.
pub(in crate::weights) enum Place {
    /// In the file, as they are.
    File(Range<usize>),
    /// In [`Tensors::gathered`].
    Gathered(Range<usize>),
}

/// A tensor of the file.
pub(in crate::weights) struct PthTensor {
    /// The keys of the dictionaries around it and its own, joined by dots.
    pub name: String,
    /// How many bytes of the name are keys of dictionaries around its own.
    pub nesting: usize,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub place: Place,
}

/// Every tensor of a file, at any depth.
pub(in crate::weights) struct Tensors {
    pub tensors: Vec<PthTensor>,
    /// Tensors whose elements are not in order in the file.
    pub gathered: Vec<u8>,
    /// Which of the two forms the file has, for messages.
    pub origin: &'static str,
    /// Names of the objects that became placeholders.
    pub foreign_objects: Vec<String>,
    /// Keys whose values are placeholders, and the names of the objects.
    pub placeholders: Vec<(String, String)>,
}

/// Why a file was not read.
pub(in crate::weights) struct Refusal {
    /// The problem, without the name of the file.
    pub reason: String,
    /// What to do about it.
    pub fix: &'static str,
}

const SAVE_AGAIN: &str = "save its state dict again: torch.save(model.state_dict(), FILE)";
const COPY_AGAIN: &str = "download or copy it again";
const WHOLE_MODEL: &str =
    "load it in Python where its classes are installed, and save its state dict: torch.save(model.state_dict(), FILE)";

/// The beginning of the reasons that concern a file without its end.
const TRUNCATED: &str = "it is truncated";

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        let fix = if reason.starts_with(TRUNCATED) { COPY_AGAIN } else { SAVE_AGAIN };
        Self { reason, fix }
    }
}

/// Whether a file begins as torch's files do.
pub(in crate::weights) fn is_pth(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || is_legacy(bytes)
}

fn is_legacy(bytes: &[u8]) -> bool {
    // PROTO, from protocol 4 on a FRAME of nine bytes, and LONG1 of ten bytes.
    let [0x80, 2..=5, rest @ ..] = bytes else { return false };
    let rest = rest.strip_prefix(&[0x95]).map_or(Some(rest), |frame| frame.get(8..));
    rest.and_then(|rest| rest.strip_prefix(b"\x8a\x0a")).is_some_and(|rest| rest.starts_with(&MAGIC))
}

/// Reads either form.
pub(in crate::weights) fn read(bytes: &[u8]) -> Result<Tensors, Refusal> {
    if is_legacy(bytes) { read_legacy(bytes) } else { read_zip(bytes) }
}

fn read_zip(bytes: &[u8]) -> Result<Tensors, Refusal> {
    // torch puts nothing before the archive. The library would guess its start, wrongly for some lengths of names.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut archive = ZipArchive::with_config(config, Cursor::new(bytes)).map_err(|_| {
        // The record at the end of an archive, without a comment.
        let end = bytes.len().checked_sub(22).map(|start| &bytes[start..]);
        match end.is_some_and(|end| end.starts_with(b"PK\x05\x06")) {
            true => Refusal { reason: "its zip archive is damaged".into(), fix: COPY_AGAIN },
            false => format!("{TRUNCATED}: the directory at the end of its zip archive is missing").into(),
        }
    })?;
    let names: Vec<String> = archive.file_names().filter_map(|name| name.ok().map(|name| name.into_owned())).collect();
    let root = names.iter().find_map(|name| name.strip_suffix("data.pkl").map(str::to_owned));
    let Some(root) = root else { return Err(other_archive(&names)) };
    let mut member = |name: &str| -> Result<Range<usize>, String> {
        let name = format!("{root}{name}");
        let entry = archive.by_name(&name).map_err(|cause| match cause {
            ZipError::FileNotFound => format!("it has no {name}"),
            _ => format!("its zip archive is damaged at {name}"),
        })?;
        if entry.compression() != CompressionMethod::Stored {
            return Err(format!("{name} is compressed, which torch never does"));
        }
        let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
        let range = start.zip(usize::try_from(entry.size()).ok()).and_then(|(start, size)| {
            let end = start.checked_add(size).filter(|&end| end <= bytes.len())?;
            Some(start..end)
        });
        range.ok_or_else(|| format!("{name} reaches beyond the end of the file"))
    };
    if let Ok(order) = member("byteorder")
        && &bytes[order.clone()] != b"little"
    {
        return Err(
            format!("its byte order is {:?}, expected \"little\"", String::from_utf8_lossy(&bytes[order])).into()
        );
    }
    let program = member("data.pkl")?;
    let read = Pickle::run(&bytes[program]).map_err(Refusal::from).and_then(|(pickle, found, _)| {
        collect(&pickle, found, "a .pth file of PyTorch", bytes, |storage| member(&format!("data/{}", storage.key)))
    });
    let is_script = names.iter().any(|name| name.strip_prefix(&root) == Some("constants.pkl"));
    read.map_err(|refusal| match is_script {
        true => Refusal {
            reason: "it is a TorchScript program, whose weights are inside Python objects; no code in it was run"
                .into(),
            fix: "save its state dict: torch.save(torch.jit.load(FILE).state_dict(), OUT)",
        },
        false => refusal,
    })
}

/// What a zip archive is that torch did not write, by the names in it.
fn other_archive(names: &[String]) -> Refusal {
    const TORCHVISION: &str =
        "give the weights of one of torchvision's networks instead, as `retune fetch` downloads them";
    let ending = |extensions: &[&str]| {
        let has_extension = |name: &&String| extensions.iter().any(|extension| name.ends_with(extension));
        names.iter().find(has_extension)
    };
    let refusal = |reason: &str, fix| Refusal { reason: reason.into(), fix };
    if ending(&[".npy"]).is_some() {
        return refusal(
            "it is a NumPy archive (.npz), not a file of PyTorch",
            "convert it in Python: torch.save({k: torch.from_numpy(v) for k, v in numpy.load(FILE).items()}, OUT)",
        );
    }
    if ending(&[".h5"]).is_some() {
        return refusal("it is a Keras model, not a file of PyTorch", TORCHVISION);
    }
    match ending(&[".pth", ".pt", ".ckpt", ".bin", ".tar", ".safetensors", ".zip"]) {
        Some(name) => Refusal {
            reason: format!("it is a zip archive that contains {name}"),
            fix: "unpack it, and give the file in it",
        },
        None => refusal("it is a zip archive without a data.pkl, so not a file of PyTorch", "give a file of weights"),
    }
}

fn read_legacy(bytes: &[u8]) -> Result<Tensors, Refusal> {
    let mut position = 0;
    let mut next = || -> Result<(Pickle, Id), String> {
        let (pickle, found, length) = Pickle::run(&bytes[position..])?;
        position += length;
        Ok((pickle, found))
    };
    next()?;
    let (pickle, protocol) = next()?;
    if !matches!(pickle.object(protocol), Object::Int(PROTOCOL)) {
        return Err(format!("its protocol is not {PROTOCOL}, the only one that torch has written").into());
    }
    let (pickle, system) = next()?;
    if matches!(pickle.entry(system, "little_endian"), Some(Object::Bool(false))) {
        return Err("its byte order is big-endian, expected little-endian".to_string().into());
    }
    let (pickle, found) = next()?;
    let (keys, list) = next()?;
    let Object::List(list) = keys.object(list) else { return Err("its storages are not listed".to_string().into()) };
    let mut storages: Vec<(String, Range<usize>)> = Vec::new();
    for &key in list {
        let Object::Text(key) = keys.object(key) else {
            return Err("the name of a storage is not text".to_string().into());
        };
        let storage = pickle.storage(key).ok_or_else(|| format!("nothing uses storage {key}"))?;
        let rest = bytes.get(position..).unwrap_or_default();
        let Some((count, _)) = rest.split_first_chunk::<8>() else { return Err(TRUNCATED.to_string().into()) };
        let size = u64::from_le_bytes(*count).checked_mul(storage.dtype.bitsize() as u64 / 8);
        let end = size.and_then(|size| usize::try_from(size).ok()).and_then(|size| (position + 8).checked_add(size));
        let end = end
            .filter(|&end| end <= bytes.len())
            .ok_or_else(|| format!("{TRUNCATED}: its last tensors are missing"))?;
        storages.push((key.clone(), position + 8..end));
        position = end;
    }
    collect(&pickle, found, "an old .pth file of PyTorch", bytes, |storage| {
        let known = storages.iter().find(|(key, _)| *key == storage.key);
        known.map(|(_, range)| range.clone()).ok_or_else(|| format!("storage {} is missing", storage.key))
    })
}

/// Finds every tensor in what the pickle built, and its elements in the file.
fn collect(
    pickle: &Pickle,
    found: Id,
    form: &'static str,
    bytes: &[u8],
    mut place: impl FnMut(&StorageReference) -> Result<Range<usize>, String>,
) -> Result<Tensors, Refusal> {
    let mut search =
        Search { pickle, seen: HashSet::new(), tensors: Vec::new(), placeholders: Vec::new(), name_bytes: 0 };
    search.visit(found, "", 0)?;
    if search.tensors.is_empty() {
        return Err(without_tensors(pickle, found));
    }
    let mut tensors = Tensors {
        tensors: Vec::new(),
        gathered: Vec::new(),
        origin: form,
        foreign_objects: pickle.foreign_names(),
        placeholders: search.placeholders,
    };
    let mut names = HashSet::new();
    for (name, nesting, tensor) in search.tensors {
        if !names.insert(name.clone()) {
            return Err(format!("it contains the tensor {name} twice").into());
        }
        let storage = place(&tensor.storage)?;
        let place = locate(&name, tensor, storage, bytes, &mut tensors.gathered)?;
        let (dtype, shape) = (tensor.storage.dtype, tensor.shape.clone());
        tensors.tensors.push(PthTensor { name, nesting, dtype, shape, place });
    }
    Ok(tensors)
}

/// What a file contains in which the search found no tensors.
fn without_tensors(pickle: &Pickle, found: Id) -> Refusal {
    let refusal = |reason: &str, fix| Refusal { reason: reason.into(), fix };
    match pickle.object(found) {
        Object::Tensor(_) => {
            return refusal("it is a single tensor, expected a dictionary of tensors", SAVE_AGAIN);
        }
        Object::Dict(entries)
            if entries.iter().any(|(_, value)| matches!(pickle.object(*value), Object::Tensor(_))) =>
        {
            return refusal(
                "the keys of its tensors are not text",
                "save it with text as keys: torch.save({k.decode(): v for k, v in torch.load(FILE).items()}, OUT)",
            );
        }
        _ => {}
    }
    match pickle.foreign_names().first() {
        _ if pickle.has_arrays() => refusal(
            "it contains NumPy arrays, no tensors; no code in it was run",
            "save tensors: torch.save({k: torch.from_numpy(v) for k, v in ARRAYS.items()}, FILE)",
        ),
        None => refusal("it contains no tensors", SAVE_AGAIN),
        Some(name) => Refusal {
            reason: format!("it contains no tensors outside Python objects such as {name}; no code in it was run"),
            fix: WHOLE_MODEL,
        },
    }
}

/// The search for tensors in dictionaries and lists.
struct Search<'a> {
    pickle: &'a Pickle,
    /// Containers may contain each other or themselves: each is visited once.
    seen: HashSet<Id>,
    /// Names, the bytes of them that are nesting, and the tensors.
    tensors: Vec<(String, usize, &'a TensorReference)>,
    placeholders: Vec<(String, String)>,
    name_bytes: usize,
}

impl<'a> Search<'a> {
    fn visit(&mut self, container: Id, prefix: &str, depth: usize) -> Result<(), String> {
        if depth > DEEPEST || !self.seen.insert(container) {
            return Ok(());
        }
        match self.pickle.object(container) {
            Object::Dict(entries) => {
                for &(key, value) in entries {
                    let key = match self.pickle.object(key) {
                        Object::Text(text) => text.clone(),
                        Object::Int(number) => number.to_string(),
                        _ => continue,
                    };
                    self.item(&key, value, prefix, depth)?;
                }
            }
            Object::List(items) | Object::Tuple(items) => {
                for (position, &item) in items.iter().enumerate() {
                    self.item(&position.to_string(), item, prefix, depth)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn item(&mut self, key: &str, value: Id, prefix: &str, depth: usize) -> Result<(), String> {
        let object = self.pickle.object(value);
        if !matches!(
            object,
            Object::Tensor(_) | Object::Dict(_) | Object::List(_) | Object::Tuple(_) | Object::Other(Some(_))
        ) {
            return Ok(());
        }
        self.name_bytes += prefix.len() + key.len() + 1;
        if self.name_bytes > LONGEST_NAMES {
            return Err(format!("the names in it are longer than {} MiB", LONGEST_NAMES >> 20));
        }
        match object {
            Object::Other(class) => {
                let class = class.and_then(|class| self.pickle.foreign_name(class));
                if let Some(class) = class {
                    self.name_bytes += class.len();
                    self.placeholders.push((format!("{prefix}{key}"), class.into()));
                }
            }
            Object::Tensor(tensor) => self.tensors.push((format!("{prefix}{key}"), prefix.len(), tensor.as_ref())),
            _ => self.visit(value, &format!("{prefix}{key}."), depth + 1)?,
        }
        Ok(())
    }
}

/// The position of a tensor's elements, in order; gathers them if they are not.
fn locate(
    name: &str,
    tensor: &TensorReference,
    storage: Range<usize>,
    bytes: &[u8],
    gathered: &mut Vec<u8>,
) -> Result<Place, String> {
    let size = tensor.storage.dtype.bitsize() / 8;
    let beyond = || format!("tensor {name} reaches beyond its storage");
    let elements = tensor.shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
    let elements = elements.ok_or_else(beyond)?;
    if tensor.strides.len() != tensor.shape.len() {
        return Err(format!("tensor {name} has {} extents and {} strides", tensor.shape.len(), tensor.strides.len()));
    }
    if elements == 0 {
        return Ok(Place::File(storage.start..storage.start));
    }
    // The last element of a tensor whose strides are not negative is its farthest.
    let extents = tensor.shape.iter().zip(&tensor.strides);
    let last = extents
        .clone()
        .try_fold(tensor.offset, |sum, (&extent, &stride)| sum.checked_add((extent - 1).checked_mul(stride)?));
    let end = last.and_then(|last| last.checked_add(1)?.checked_mul(size)).ok_or_else(beyond)?;
    if end > storage.len() {
        return Err(beyond());
    }
    let mut expected = 1;
    let mut in_order = true;
    for (&extent, &stride) in extents.clone().rev() {
        in_order &= extent == 1 || stride == expected;
        expected *= extent;
    }
    if in_order {
        let start = storage.start + tensor.offset * size;
        return Ok(Place::File(start..start + elements * size));
    }
    // Trained tensors never repeat elements, and a false shape must not take more memory than the file.
    let total = elements.checked_mul(size).and_then(|bytes| bytes.checked_add(gathered.len()));
    if total.is_none_or(|total| total > bytes.len()) {
        return Err(format!("tensor {name} has more elements than the file"));
    }
    let source = &bytes[storage];
    let start = gathered.len();
    let mut index = vec![0usize; tensor.shape.len()];
    for _ in 0..elements {
        let element: usize = index.iter().zip(&tensor.strides).map(|(index, stride)| index * stride).sum();
        gathered.extend_from_slice(&source[(tensor.offset + element) * size..][..size]);
        for (position, extent) in index.iter_mut().zip(&tensor.shape).rev() {
            *position += 1;
            if *position < *extent {
                break;
            }
            *position = 0;
        }
    }
    Ok(Place::Gathered(start..gathered.len()))
}
