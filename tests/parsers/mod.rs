//! Every parser of files from other sources, with every query that it supports. Each function returns for any bytes;
//! its result says whether it could read the file. `tests/damaged.rs` and the targets in `fuzz/` use these functions.

use std::fs;
use std::path::Path;

use retune::data::decode::DecodeOptions;
use retune::data::{Decoder, Image, PaddedImage};
use retune::fetch::{Limits, unpack};
use retune::report::{RunRecord, curves_svg, run_page};
use retune::train::{Checkpoint, ModelFile, RunFolder};
use retune::weights::{HeadPolicy, NamedShape, Reference, TensorFile, head_from, match_state_dict};

/// Passes a file to the parser of that name, and returns whether it could read the file.
pub fn parse(parser: &str, bytes: &[u8]) -> bool {
    match parser {
        "safetensors" | "pth" => weights(bytes),
        "reference" => reference(bytes),
        "checkpoint" => checkpoint(bytes),
        "image" => image(bytes),
        "archive" => archive(bytes),
        "run" => run(bytes),
        _ => panic!("no parser {parser}"),
    }
}

/// More pixels than the images that are damaged have, and few enough to try thousands.
const MAX_PIXELS: u64 = 1 << 18;

fn open(bytes: &[u8]) -> Option<TensorFile> {
    TensorFile::from_bytes(Path::new("damaged"), bytes.to_vec()).map_err(one_line).ok()
}

fn one_line(error: retune::Error) {
    assert!(!error.message().contains(['\n', '\r', '\x1b']), "{error:?}");
    // The message for an image at which a decoder panicked.
    assert!(!error.message().contains("its decoder gave up"), "{error:?}");
}

/// Weights in either format.
fn weights(bytes: &[u8]) -> bool {
    let Some(file) = open(bytes) else { return false };
    for entry in file.entries() {
        assert_eq!(file.bytes(&entry.name).unwrap().len(), file.get(&entry.name).unwrap().bytes());
        let _ = entry.elements();
        let _ = file.read_f32(&entry.name).map_err(one_line);
        let _ = file.read_i64(&entry.name).map_err(one_line);
    }
    let _ = ModelFile::describe(&file).map_err(one_line);
    let shape = |(name, shape): (&str, &[usize])| NamedShape { name: name.into(), shape: shape.to_vec() };
    let wanted = [("conv1.weight", &[8, 3, 7, 7][..]), ("fc.weight", &[2, 64]), ("fc.bias", &[2])].map(shape);
    let report = match_state_dict(&wanted, &file, HeadPolicy::Replace);
    let _ = head_from(&[0, 7], &file, &report).map_err(one_line);
    true
}

/// Reference files for gradcheck.
fn reference(bytes: &[u8]) -> bool {
    let Some(file) = open(bytes) else { return false };
    let Ok(reference) = Reference::from_file(file).map_err(one_line) else { return false };
    let [images, channels, height, width] = reference.input_shape();
    assert_eq!(reference.file().entry("input").unwrap().elements(), images * channels * height * width);
    for group in [reference.parameters().count(), reference.gradients().count(), reference.activations().count()] {
        assert!(group <= reference.file().entries().len());
    }
    for name in reference.parameters() {
        let _ = reference.file().read_f32(&format!("param/{name}")).map_err(one_line);
        let _ = reference.noise(retune::device::Precision::Fp32, &format!("param/{name}"));
    }
    true
}

/// Checkpoints.
fn checkpoint(bytes: &[u8]) -> bool {
    open(bytes).is_some_and(|file| Checkpoint::from_file(file).map_err(one_line).is_ok())
}

/// An image in any format, with and without its EXIF orientation, with and without padding.
fn image(bytes: &[u8]) -> bool {
    fn decode<const BYTES: usize>(bytes: &[u8], exif: bool) -> Option<Image<BYTES>> {
        let mut image = Image::<BYTES>::default();
        Decoder::new(DecodeOptions { exif, max_pixels: MAX_PIXELS })
            .decode_bytes(bytes, &mut image)
            .map_err(one_line)
            .ok()?;
        assert_eq!(image.pixels.len(), image.width as usize * image.height as usize * BYTES);
        assert!(u64::from(image.width) * u64::from(image.height) <= MAX_PIXELS);
        Some(image)
    }
    let (upright, turned) = (decode::<3>(bytes, false), decode::<4>(bytes, true));
    // As in training: rows below the crop are not decoded.
    let (mut upper, mut wanted) = (PaddedImage::default(), 0);
    let half = |_, height| {
        wanted = height / 2;
        wanted
    };
    let decoded = Decoder::new(DecodeOptions { exif: false, max_pixels: MAX_PIXELS })
        .decode_bytes_rows(bytes, &mut upper, half)
        .map_err(one_line);
    if decoded.is_ok() {
        assert!(upper.height >= wanted, "{} rows of {wanted}", upper.height);
        assert_eq!(upper.pixels.len(), upper.width as usize * upper.height as usize * 4);
    }
    if let (Some(upright), Some(turned)) = (&upright, &turned) {
        assert_eq!(upright.pixels.len() / 3, turned.pixels.len() / 4);
    }
    upright.is_some()
}

/// A zip archive of images.
fn archive(bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive.zip");
    fs::write(&archive, bytes).unwrap();
    let unpacked = unpack(&archive, &folder.path().join("unpacked"), Limits { entries: 100, bytes: 1 << 20 });
    let left = fs::read_dir(folder.path()).unwrap().count();
    match &unpacked {
        Ok(files) => assert!(*files > 0 && left == 2, "{files} files, {left} entries"),
        Err(_) => assert_eq!(left, 1, "a file was left behind"),
    }
    unpacked.is_ok()
}

/// `config.json` and, after the first zero byte, `metrics.jsonl` of a run, and the page for them.
fn run(bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let place = RunFolder { path: folder.path().to_path_buf() };
    let (config, metrics) = bytes.split_at(bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len()));
    fs::write(place.config(), config).unwrap();
    fs::write(place.metrics(), metrics.strip_prefix(b"\0").unwrap_or(metrics)).unwrap();
    let Ok(record) = RunRecord::open(&place).map_err(one_line) else { return false };
    let page = run_page(&record).unwrap();
    assert!(page.ends_with("</html>") && !curves_svg(&[&record]).is_empty());
    true
}
