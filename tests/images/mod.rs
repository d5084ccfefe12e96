//! Images of every kind and what Pillow decodes from them: `tests/fixtures/jpeg.zip` and `images.zip`, which
//! `scripts/make-jpeg-fixtures.py` and `make-image-fixtures.py` write.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use retune::data::{DecodeOptions, Decoder, PaddedImage, RgbImage};
use sha2::{Digest, Sha256};
use zip::ZipArchive;

/// A file and, if Pillow reads it, the decoded image.
pub struct Case {
    pub name: String,
    pub file: Vec<u8>,
    pub expected: Option<Expected>,
}

/// Width, height and hash of an image; several hashes if libjpeg-turbo's vector instructions and its plain C differ.
pub type Expected = (u32, u32, Vec<String>);

/// All images of an archive of that name.
pub fn cases(archive: &str) -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(archive);
    let mut archive = ZipArchive::new(File::open(path).unwrap()).unwrap();
    let (mut names, mut files) = (String::new(), Vec::new());
    archive.by_name("names").unwrap().read_to_string(&mut names).unwrap();
    archive.by_name("files").unwrap().read_to_end(&mut files).unwrap();
    let mut rest = files.as_slice();
    let cases = names.lines().map(|line| {
        let [length, width, height, hash, name] = line.splitn(5, ' ').collect::<Vec<_>>().try_into().unwrap();
        let hashes = || hash.split('|').map(String::from).collect();
        let expected = (hash != "-").then(|| (width.parse().unwrap(), height.parse().unwrap(), hashes()));
        Case { name: name.to_string(), file: rest.split_off(..length.parse().unwrap()).unwrap().to_vec(), expected }
    });
    cases.collect()
}

/// Checks that every image of the archive has the expected pixels, and that the others are refused in one line. Returns the numbers
/// of both.
#[allow(dead_code, reason = "not every test that needs the files compares their pixels")]
#[track_caller]
pub fn check_all(archive: &str) -> (usize, usize) {
    let (mut equal, mut refused, mut wrong) = (0, 0, Vec::new());
    for case in cases(archive) {
        let (mut rgb, mut padded) = (RgbImage::default(), PaddedImage::default());
        let decoded = case.decoder().decode_bytes(&case.file, &mut rgb);
        let is_padded = case.decoder().decode_bytes(&case.file, &mut padded).is_ok();
        match (decoded, &case.expected) {
            (Ok(()), Some(_)) => {
                equal += 1;
                if !case.has(&rgb) || !is_padded || colours(&padded) != rgb.pixels {
                    wrong.push(format!("{}: other pixels", case.name));
                }
            }
            (Ok(()), None) => wrong.push(format!("{}: read, but it is to be refused", case.name)),
            (Err(error), Some(_)) => wrong.push(format!("{}: {}", case.name, error.message())),
            (Err(error), None) => {
                refused += 1;
                let message = error.message();
                if message.contains('\n') || message.contains("its decoder gave up") || is_padded {
                    wrong.push(format!("{}: {message}", case.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), equal + refused, wrong.join("\n"));
    (equal, refused)
}

/// The pixels without the unused byte of each.
#[allow(dead_code, reason = "not every test that needs the files compares their pixels")]
fn colours(padded: &PaddedImage) -> Vec<u8> {
    padded.pixels.chunks_exact(4).flat_map(|pixel| pixel[..3].to_vec()).collect()
}

impl Case {
    /// A decoder for this image, which follows the orientation of images that are turned.
    #[allow(dead_code, reason = "not every test that needs the files decodes turned ones")]
    pub fn decoder(&self) -> Decoder {
        Decoder::new(DecodeOptions::with_exif(self.name.starts_with("turned")))
    }

    /// Whether the pixels are those that are expected.
    #[allow(dead_code, reason = "not every test that needs the files compares their pixels")]
    pub fn has(&self, image: &RgbImage) -> bool {
        let hash: String = Sha256::digest(&image.pixels)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        self.expected.as_ref().is_some_and(|(width, height, hashes)| {
            (image.width, image.height) == (*width, *height) && hashes.contains(&hash)
        })
    }
}
