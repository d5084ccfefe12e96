//! What a file that is no safetensors file looks like.

/// A file that someone may well take for weights.
pub(super) struct FileKind {
    /// Completes "it looks like ...".
    pub looks_like: &'static str,
    /// What to do about it.
    pub mend: &'static str,
}

const CONVERT: &str = "save it again as it is now: torch.save(torch.load(FILE, weights_only=True), OUT)";
const DOWNLOAD: &str = "download the file itself, not the page about it";

/// First bytes, and what begins with them.
const KINDS: &[(&[u8], FileKind)] = &[
    (b"\x80\x02", FileKind { looks_like: "a pickle, but none of torch's files", mend: CONVERT }),
    (
        b"version https://git-lfs",
        FileKind {
            looks_like: "a git-lfs pointer, which stands for the real file",
            mend: "run `git lfs pull` in the clone that it came from, or download the file itself",
        },
    ),
    (b"<!doctype", FileKind { looks_like: "an HTML page", mend: DOWNLOAD }),
    (b"<html", FileKind { looks_like: "an HTML page", mend: DOWNLOAD }),
    (b"<?xml", FileKind { looks_like: "an XML page, such as a refusal by a server", mend: DOWNLOAD }),
    (b"{", FileKind { looks_like: "a JSON file, such as a config or an index", mend: "give the weights beside it" }),
    (b"\x1f\x8b", FileKind { looks_like: "a gzip archive", mend: "unpack it first" }),
    (b"\x89hdf", FileKind { looks_like: "an HDF5 file (Keras)", mend: "give torchvision's weights instead" }),
    (b"gguf", FileKind { looks_like: "a GGUF file", mend: "give torchvision's weights instead" }),
    (b"\x89png", FileKind { looks_like: "a PNG picture", mend: "give a file of weights" }),
    (b"\xff\xd8\xff", FileKind { looks_like: "a JPEG picture", mend: "give a file of weights" }),
];

/// Looks at the first bytes, blanks and case aside.
pub(super) fn recognise(bytes: &[u8]) -> Option<&'static FileKind> {
    let trimmed = bytes.get(..bytes.len().min(64))?.trim_ascii_start();
    let begins = |magic: &[u8]| trimmed.get(..magic.len()).is_some_and(|found| found.eq_ignore_ascii_case(magic));
    KINDS.iter().find(|(magic, _)| begins(magic)).map(|(_, kind)| kind)
}
