//! Kinds of files that are mistaken for weights, by their first bytes.

/// A kind of file that may be mistaken for weights.
pub(super) struct FileKind {
    /// Completes "it looks like ...".
    pub looks_like: &'static str,
    /// What to do about it.
    pub fix: &'static str,
}

const CONVERT: &str = "save it again as it is now: torch.save(torch.load(FILE, weights_only=True), OUT)";
const DOWNLOAD: &str = "download the file itself, not the page about it";

/// Begins with the protocol, or in protocols 0 and 1 with a dictionary or an `OrderedDict`.
const PICKLE: FileKind = FileKind { looks_like: "a pickle, but not a file of torch", fix: CONVERT };

/// First bytes, and what begins with them.
const KINDS: &[(&[u8], FileKind)] = &[
    (b"\x80\x02", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x80\x05", PICKLE),
    (b"(dp", PICKLE),
    (b"}q", PICKLE),
    (b"ccollections\n", PICKLE),
    (
        b"version https://git-lfs",
        FileKind {
            looks_like: "a git-lfs pointer, which replaces the real file",
            fix: "run `git lfs pull` in the repository that it came from, or download the file itself",
        },
    ),
    (b"<!doctype", FileKind { looks_like: "an HTML page", fix: DOWNLOAD }),
    (b"<html", FileKind { looks_like: "an HTML page", fix: DOWNLOAD }),
    (b"<?xml", FileKind { looks_like: "an XML page, such as the error of a server", fix: DOWNLOAD }),
    (b"{", FileKind { looks_like: "a JSON file, such as a config or an index", fix: "give the weights beside it" }),
    (b"\x1f\x8b", FileKind { looks_like: "a gzip archive", fix: "unpack it first" }),
    (b"\x89hdf", FileKind { looks_like: "an HDF5 file (Keras)", fix: "give torchvision's weights instead" }),
    (b"gguf", FileKind { looks_like: "a GGUF file", fix: "give torchvision's weights instead" }),
    (b"\x89png", FileKind { looks_like: "a PNG image", fix: "give a file of weights" }),
    (b"\xff\xd8\xff", FileKind { looks_like: "a JPEG image", fix: "give a file of weights" }),
];

/// The position of a tar archive's signature: after the first member's name and properties.
const TAR: (usize, &[u8]) = (257, b"ustar");
static TAR_ARCHIVE: FileKind = FileKind { looks_like: "a tar archive", fix: "unpack it first" };
/// The members of the tar archives that torch wrote in its first releases. Unpacking one does not help, because each member holds a
/// part of the weights.
const MEMBERS_OF_TORCH: [&[u8]; 4] = [b"sys_info", b"pickle", b"tensors", b"storages"];
static TAR_OF_TORCH: FileKind = FileKind {
    looks_like: "a .pth in the tar format of torch's first releases, which is not supported",
    fix: "if you trust its source, convert it with PyTorch, which runs code in the file: torch.save(torch.load(FILE, weights_only=False), OUT)",
};

/// Looks at the first bytes and ignores blanks and case.
pub(super) fn recognise(bytes: &[u8]) -> Option<&'static FileKind> {
    if bytes.get(TAR.0..).is_some_and(|rest| rest.starts_with(TAR.1)) {
        // Names are padded with zeros.
        let of_torch = |name: &&[u8]| bytes.starts_with(name) && bytes.get(name.len()) == Some(&0);
        return Some(if MEMBERS_OF_TORCH.iter().any(of_torch) { &TAR_OF_TORCH } else { &TAR_ARCHIVE });
    }
    let trimmed = bytes.get(..bytes.len().min(64))?.trim_ascii_start();
    let begins = |magic: &[u8]| trimmed.get(..magic.len()).is_some_and(|found| found.eq_ignore_ascii_case(magic));
    KINDS.iter().find(|(magic, _)| begins(magic)).map(|(_, kind)| kind)
}
