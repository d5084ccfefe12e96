//! Checksums of files.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha1::Sha1;
use sha2::Sha256;

use crate::error::{Context, Error, Result};

/// An expected checksum, in hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digest<'a> {
    /// A SHA-1.
    Sha1(&'a str),
    /// A SHA-256, or its first digits.
    Sha256Start(&'a str),
}

impl Digest<'_> {
    /// The checksum of a file.
    fn of(self, path: &Path) -> Result<String> {
        match self {
            Self::Sha1(_) => hash::<Sha1>(path),
            Self::Sha256Start(_) => hash::<Sha256>(path),
        }
    }

    /// Verifies a file.
    ///
    /// # Errors
    /// When the file cannot be read, or its checksum is another one; the message has both checksums.
    pub fn check(self, path: &Path) -> Result<()> {
        let found = self.of(path)?;
        let (name, expected, fits) = match self {
            Self::Sha1(expected) => ("SHA-1", expected, found == expected),
            Self::Sha256Start(expected) => ("SHA-256", expected, found.starts_with(expected)),
        };
        match fits {
            true => Ok(()),
            false => Err(Error::new(format!("{}: the {name} is {found}, expected {expected}", path.display()))),
        }
    }
}

fn hash<D: sha2::Digest>(path: &Path) -> Result<String> {
    let doing = || format!("cannot read {}", path.display());
    let mut file = File::open(path).context(doing)?;
    let (mut hasher, mut buffer) = (D::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).context(doing)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    let mut text = String::new();
    for byte in hasher.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}
