//! Kinds of files that are mistaken for weights, by their content or, where that shows nothing, by their name.

use std::ffi::OsStr;
use std::path::Path;

use memchr::memmem;

use crate::data::FileKind;

/// A kind of file that may be mistaken for weights.
#[derive(Clone, Copy)]
pub(super) struct Mistaken {
    /// Its name with an article.
    pub noun: &'static str,
    /// What to do about it.
    pub fix: &'static str,
}

const DOWNLOAD: &str = "download the file itself, not the page about it";
const UNPACK: &str = "unpack it first";
const OTHER: &str = "give a file of weights";
const JSON: &str = "give the weights beside it";
const FROM_PYTORCH: &str =
    "give the PyTorch weights that it was made from, which `torch.save(model.state_dict(), FILE)` writes";
const TORCHVISION: &str = "give the weights of one of torchvision's networks instead, as `retune fetch` downloads them";
const PICKLE: &str =
    "load it with the program that wrote it, and save its tensors in a dictionary: torch.save(TENSORS, OUT)";
const NUMPY_PICKLE: &str = "if you trust its source, convert it in Python, which runs code in the file: \
                            torch.save({k: torch.from_numpy(v) for k, v in pickle.load(open(FILE, 'rb')).items()}, OUT)";
const NUMPY_ARRAY: &str = "save all tensors in one dictionary: torch.save({KEY: torch.from_numpy(ARRAY), ...}, OUT)";
const TAR_OF_TORCH: &str = "if you trust its source, convert it with PyTorch, which runs code in the file: \
                            torch.save(torch.load(FILE, weights_only=False), OUT)";

/// Where a kind of file shows what it is.
enum Signature {
    /// At its beginning, in any case and after any blanks.
    Begins(&'static [&'static [u8]]),
    /// At this place.
    At(usize, &'static [u8]),
    /// At its end.
    Ends(&'static [u8]),
    /// Something that takes more than a comparison.
    Test(fn(&[u8]) -> bool),
}

use Signature::{At, Begins, Ends, Test};

/// What data sets do not contain; [`FileKind`] knows the rest.
#[rustfmt::skip]
const KINDS: &[(Signature, &str, &str)] = &[
    (Test(is_tar_of_torch), "a .pth in the tar format of PyTorch's first releases, which is not supported", TAR_OF_TORCH),
    (Test(is_numpy_pickle), "a pickle of NumPy arrays", NUMPY_PICKLE),
    (Test(is_pickle), "a pickle, but not a file of PyTorch", PICKLE),
    (Begins(&[b"version https://git-lfs"]), "a git-lfs pointer, which replaces the real file",
        "run `git lfs pull` in the repository that it came from, or download the file itself"),
    (Begins(&[b"{"]), "a JSON file, such as a config or an index", JSON),
    (Test(is_onnx), "an ONNX model", FROM_PYTORCH),
    (Test(is_core_ml), "a Core ML model", FROM_PYTORCH),
    (Test(is_saved_model), "a TensorFlow SavedModel", TORCHVISION),
    (Test(is_graph), "a TensorFlow graph", TORCHVISION),
    (At(4, b"TFL3"), "a TensorFlow Lite model", TORCHVISION),
    (Ends(b"\x57\xFB\x80\x8B\x24\x75\x47\xDB"), "a TensorFlow checkpoint", TORCHVISION),
    (Begins(&[b"\x89HDF\r\n\x1A\n"]), "an HDF5 file, as Keras writes them", TORCHVISION),
    (Begins(&[b"GGUF", b"lmgg", b"tjgg", b"fmgg"]), "a GGUF or GGML model", TORCHVISION),
    (Begins(&[b"ftrt", b"ptrt"]), "a TensorRT engine", FROM_PYTORCH),
    (Begins(&[b"\x93NUMPY"]), "a NumPy array", NUMPY_ARRAY),
];

impl Signature {
    fn fits(&self, bytes: &[u8]) -> bool {
        match *self {
            Self::Begins(beginnings) => {
                let start = bytes[..bytes.len().min(64)].trim_ascii_start();
                let begins = |with: &&[u8]| start.get(..with.len()).is_some_and(|it| it.eq_ignore_ascii_case(with));
                beginnings.iter().any(begins)
            }
            Self::At(place, signature) => bytes.get(place..).is_some_and(|rest| rest.starts_with(signature)),
            Self::Ends(signature) => bytes.ends_with(signature),
            Self::Test(test) => test(bytes),
        }
    }
}

/// What a file is that is neither safetensors nor a `.pth`.
pub(super) fn recognise(path: &Path, bytes: &[u8]) -> Option<Mistaken> {
    if is_shard_of_tensorflow(path) {
        return Some(Mistaken { noun: "a TensorFlow checkpoint", fix: TORCHVISION });
    }
    let own = KINDS.iter().find(|(signature, ..)| signature.fits(bytes));
    own.map(|&(_, noun, fix)| Mistaken { noun, fix }).or_else(|| {
        let kind = FileKind::of(&bytes[..bytes.len().min(crate::data::format::HEAD_BYTES)])?;
        let fix = match kind.name {
            "tar" | "gzip" | "bzip2" | "xz" | "zstd" | "7z" | "RAR" => UNPACK,
            "HTML" | "XML" => DOWNLOAD,
            "JSON" => JSON,
            _ => OTHER,
        };
        Some(Mistaken { noun: kind.noun, fix })
    })
}

/// `NAME.data-00000-of-00001`: only numbers, without anything that shows what they are.
fn is_shard_of_tensorflow(path: &Path) -> bool {
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let extension = path.extension().and_then(OsStr::to_str);
    let numbers = extension.and_then(|extension| extension.strip_prefix("data-")?.split_once("-of-"));
    numbers.is_some_and(|(shard, shards)| is_number(shard) && is_number(shards))
}

/// The members of the tar archives that torch wrote in its first releases. Unpacking one does not help, because each member holds a
/// part of the weights.
const MEMBERS_OF_TORCH: [&[u8]; 4] = [b"sys_info", b"pickle", b"tensors", b"storages"];

fn is_tar_of_torch(bytes: &[u8]) -> bool {
    // Names are padded with zeros.
    let is_first = |name: &&[u8]| bytes.starts_with(name) && bytes.get(name.len()) == Some(&0);
    At(257, b"ustar").fits(bytes) && MEMBERS_OF_TORCH.iter().any(is_first)
}

/// Begins with the protocol, or in protocols 0 and 1 with a dictionary or an `OrderedDict`.
fn is_pickle(bytes: &[u8]) -> bool {
    matches!(bytes, [0x80, 2..=5, ..])
        || [b"(dp".as_slice(), b"}q", b"ccollections\n"].iter().any(|start| bytes.starts_with(start))
}

fn is_numpy_pickle(bytes: &[u8]) -> bool {
    is_pickle(bytes) && memmem::find(&bytes[..bytes.len().min(1024)], b"numpy").is_some()
}

/// A field of a protobuf message: the number and type of the field, and the rest of the message. The content of a field with a length
/// begins the rest.
fn field(bytes: &[u8]) -> Option<(u8, &[u8])> {
    const VARINT: u8 = 0;
    const LENGTH: u8 = 2;
    let (&tag, rest) = bytes.split_first()?;
    match tag & 7 {
        VARINT | LENGTH => {
            let end = rest.iter().take(10).position(|byte| byte & 0x80 == 0)?;
            Some((tag, &rest[end + 1..]))
        }
        _ => None,
    }
}

/// The version that these messages begin with, and what follows it.
fn versioned(bytes: &[u8]) -> Option<(u8, &[u8])> {
    match bytes {
        [0x08, version @ 1..=30, rest @ ..] => Some((*version, rest)),
        _ => None,
    }
}

/// The first byte of a message or of a text that is the content of field 2.
fn second_field(bytes: &[u8]) -> Option<&[u8]> {
    field(bytes).filter(|(tag, _)| *tag == 0x12).map(|(_, content)| content)
}

/// A version, then the producer's name, or what follows it: its version, a domain, the graph, or the sets of operators.
fn is_onnx(bytes: &[u8]) -> bool {
    versioned(bytes).and_then(|(_, rest)| field(rest)).is_some_and(|(tag, content)| match tag {
        0x12 => content.first().is_some_and(u8::is_ascii_graphic),
        0x1A | 0x22 | 0x3A | 0x42 => true,
        _ => false,
    })
}

/// A version, then a description, which begins with an input and its name.
fn is_core_ml(bytes: &[u8]) -> bool {
    let input =
        versioned(bytes).and_then(|(_, rest)| second_field(rest)).filter(|content| content.first() == Some(&0x0A));
    input.and_then(field).is_some_and(|(_, content)| content.first() == Some(&0x0A))
}

/// Version 1, then a graph, which begins with information about it.
fn is_saved_model(bytes: &[u8]) -> bool {
    let graph = versioned(bytes).filter(|(version, _)| *version == 1).and_then(|(_, rest)| second_field(rest));
    graph.is_some_and(|graph| graph.first() == Some(&0x0A))
}

/// Nodes, of which each begins with its name and its operation.
fn is_graph(bytes: &[u8]) -> bool {
    let node = field(bytes).filter(|(tag, _)| *tag == 0x0A).map(|(_, node)| node);
    let Some([0x0A, length, rest @ ..]) = node else { return false };
    let operation = rest.get(usize::from(*length)..).and_then(second_field);
    *length < 0x80 && operation.is_some_and(|operation| operation.first().is_some_and(u8::is_ascii_uppercase))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_programs_are_named() {
        let graph = b"\x0A\x2F\x0A\x05input\x12\x0BPlaceholder*\x0B\n\x05dtype\x12\x020\x01";
        let numpy = b"\x80\x04\x95\xB0\x01\0\0\0\0\0\0}\x94(\x8C\x0Cconv1.weight\x94\x8C\x16numpy._core.multiarray\x94";
        let kinds: &[(&[u8], &str)] = &[
            (b"\x08\x08\x12\x06retune\x1A\x050.1.0:", "an ONNX model"),
            (b"\x08\x07\x12\x07pytorch\x1A\x052.3.0", "an ONNX model"),
            (b"\x08\x03:\xE7\xE7\x0B\n", "an ONNX model"),
            (b"\x08\x04\x12\xA2\x01\x0A\x20\x0A\x05image\x1A", "a Core ML model"),
            (b"\x08\x01\x12\xC0\x8A\x05\x0A\xD2\x20\x12\xA0\x01\x0A", "a TensorFlow SavedModel"),
            (graph, "a TensorFlow graph"),
            (b"\x1C\0\0\0TFL3\x14\0", "a TensorFlow Lite model"),
            (b"\0\0\x08\x01\x1A\x57\xFB\x80\x8B\x24\x75\x47\xDB", "a TensorFlow checkpoint"),
            (b"\x89HDF\r\n\x1A\n\0\0", "an HDF5 file, as Keras writes them"),
            (b"GGUF\x03\0\0\0", "a GGUF or GGML model"),
            (b"ftrt\0\0\0\0", "a TensorRT engine"),
            (b"\x93NUMPY\x01\0", "a NumPy array"),
            (numpy, "a pickle of NumPy arrays"),
            (b"\x80\x04}q\0.", "a pickle, but not a file of PyTorch"),
            (b"\x1F\x8B\x08\0\0", "a gzip-compressed file"),
            (b"GIF89a\x01\0", "a GIF image"),
            (b"%PDF-1.7\n", "a PDF document"),
            (b"import torch\n", "a text file"),
            (b" {\"weight_map\": {}}", "a JSON file, such as a config or an index"),
        ];
        for (bytes, noun) in kinds {
            let recognise = |bytes: &[u8]| recognise(Path::new("weights.pth"), bytes);
            assert_eq!(recognise(bytes).map(|kind| kind.noun), Some(*noun), "{}", bytes.escape_ascii());
            // No length that lies and no cut does harm.
            for end in 0..bytes.len() {
                assert!(recognise(&bytes[..end]).is_none_or(|kind| !kind.fix.is_empty()));
            }
        }
        let of = |name: &str| recognise(Path::new(name), &[0xFF; 100]).map(|kind| kind.noun);
        for name in ["model.ckpt.data-00000-of-00001", "a/variables.data-00012-of-00100"] {
            assert_eq!(of(name), Some("a TensorFlow checkpoint"), "{name}");
        }
        for name in
            ["model", "data-00000-of-00001", "model.data-0-of-1", "model.data-00000-of-", "m.data-00000-of-00001.pth"]
        {
            assert_eq!(of(name), None, "{name}");
        }
    }
}
