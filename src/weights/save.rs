//! Writing safetensors files: equal tensors and metadata give equal bytes.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::error::{Context, Error, Result};
use crate::file::write_atomically;

const METADATA_KEY: &str = "__metadata__";

/// The elements of a tensor to save, in torch's layout.
#[derive(Debug, Clone)]
pub enum TensorData<'a> {
    /// 32-bit floating-point numbers.
    F32(Cow<'a, [f32]>),
    /// 64-bit integers.
    I64(Cow<'a, [i64]>),
    /// Elements of any type as their little-endian bytes.
    Bytes(Dtype, Cow<'a, [u8]>),
}

impl TensorData<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::I64(_) => Dtype::I64,
            Self::Bytes(dtype, _) => *dtype,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(&**values),
            Self::I64(values) => size_of_val(&**values),
            Self::Bytes(_, bytes) => bytes.len(),
        }
    }

    fn write(&self, writer: &mut impl Write) -> io::Result<()> {
        match self {
            Self::F32(values) => values.iter().try_for_each(|value| writer.write_all(&value.to_le_bytes())),
            Self::I64(values) => values.iter().try_for_each(|value| writer.write_all(&value.to_le_bytes())),
            Self::Bytes(_, bytes) => writer.write_all(bytes),
        }
    }
}

/// A tensor to save.
#[derive(Debug, Clone)]
pub struct OutputTensor<'a> {
    /// The key.
    pub name: String,
    /// The shape, in torch's layout; empty for a single number.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: TensorData<'a>,
}

impl<'a> OutputTensor<'a> {
    /// A tensor of 32-bit floating-point numbers, borrowed or owned.
    pub fn f32(name: impl Into<String>, shape: &[usize], values: impl Into<Cow<'a, [f32]>>) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), data: TensorData::F32(values.into()) }
    }

    /// A tensor of 64-bit integers, borrowed or owned.
    pub fn i64(name: impl Into<String>, shape: &[usize], values: impl Into<Cow<'a, [i64]>>) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), data: TensorData::I64(values.into()) }
    }

    /// A tensor of any type from its little-endian bytes, borrowed or owned.
    pub fn bytes(name: impl Into<String>, dtype: Dtype, shape: &[usize], bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), data: TensorData::Bytes(dtype, bytes.into()) }
    }

    fn check(&self) -> Result<()> {
        let elements = self.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let expected = elements.and_then(|elements| elements.checked_mul(self.data.dtype().bitsize()));
        let found = self.data.bytes();
        if expected != found.checked_mul(8) {
            return Err(Error::new(format!(
                "tensor {} of type {} and shape {:?} cannot be made of {found} bytes",
                self.name,
                self.data.dtype(),
                self.shape
            )));
        }
        Ok(())
    }
}

/// Writes a safetensors file, atomically: see [`write_atomically`].
///
/// Tensors of wider elements come first, so that each is aligned; within a type they keep the order given. PyTorch's
/// own files carry the metadata `format` = `pt`, and some programs require it; pass it where that matters.
///
/// # Errors
/// When a name is given twice or is `__metadata__`, when a shape does not fit its data, or when the file cannot be
/// written; what was there before is then untouched.
pub fn save(path: &Path, tensors: &[OutputTensor], metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut ordered: Vec<&OutputTensor> = tensors.iter().collect();
    ordered.sort_by_key(|tensor| Reverse(tensor.data.dtype()));
    let header = header(&ordered, metadata)
        .map_err(|cause| Error::new(format!("cannot write {}: {}", path.display(), cause.message())))?;
    write_atomically(path, |writer| {
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(&header)?;
        ordered.iter().try_for_each(|tensor| tensor.data.write(writer))
    })
}

struct Header<'a> {
    metadata: &'a BTreeMap<String, String>,
    tensors: Vec<(&'a str, TensorInfo)>,
}

// By hand, since the library keeps metadata in a hash map, whose order changes from run to run.
impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA_KEY, self.metadata)?;
        }
        for (name, info) in &self.tensors {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

/// The JSON header, padded with blanks so that the tensors after it are aligned.
fn header(ordered: &[&OutputTensor], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut names = HashSet::from([METADATA_KEY]);
    let mut offset = 0;
    let mut tensors = Vec::with_capacity(ordered.len());
    for tensor in ordered {
        if !names.insert(&tensor.name) {
            return Err(Error::new(format!("tensor name {} is reserved or given twice", tensor.name)));
        }
        tensor.check()?;
        let end = offset + tensor.data.bytes();
        let info = TensorInfo { dtype: tensor.data.dtype(), shape: tensor.shape.clone(), data_offsets: (offset, end) };
        tensors.push((tensor.name.as_str(), info));
        offset = end;
    }
    let mut text = serde_json::to_vec(&Header { metadata, tensors }).context(|| "cannot write the header")?;
    text.resize(text.len().next_multiple_of(size_of::<u64>()), b' ');
    Ok(text)
}
