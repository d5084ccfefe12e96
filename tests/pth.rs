//! PyTorch files: the contents in each of their formats, and no harm from hostile or damaged ones.

use std::fs;
use std::path::{Path, PathBuf};

use retune::error::Result;
use retune::weights::{Dtype, TensorFile};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pth").join(name)
}

fn open(name: &str) -> Result<TensorFile> {
    TensorFile::open(&fixture(name))
}

#[test]
fn every_format_has_the_same_contents() {
    let expected = open("expected.safetensors").unwrap();
    assert_eq!(expected.origin(), None);
    for (name, origin, prefix) in [
        ("zip.pth", "a .pth of torch", ""),
        ("legacy.pth", "an old .pth of torch", ""),
        ("checkpoint.pth", "a .pth of torch", "state_dict."),
        ("checkpoint-legacy.pth", "an old .pth of torch", "model."),
        ("strided.pth", "a .pth of torch", ""),
        ("strided-legacy.pth", "an old .pth of torch", ""),
    ] {
        let file = open(name).unwrap();
        assert_eq!(file.origin(), Some(origin), "{name}");
        let mut names: Vec<&str> = file.names().map(|name| name.strip_prefix(prefix).unwrap()).collect();
        assert!(file.entries().iter().all(|entry| entry.nesting() == prefix), "{name}");
        let mut known: Vec<&str> = expected.names().collect();
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known, "{name}");
        for key in known {
            let (ours, truth) = (file.entry(&format!("{prefix}{key}")).unwrap(), expected.entry(key).unwrap());
            assert_eq!((ours.dtype, &ours.shape), (truth.dtype, &truth.shape), "{name}: {key}");
            let bytes = file.bytes(&format!("{prefix}{key}")).unwrap();
            assert!(bytes == expected.bytes(key).unwrap(), "{name}: {key}");
        }
        let counter = format!("{prefix}bn1.num_batches_tracked");
        assert_eq!(file.read_i64(&counter).unwrap(), [123456789012]);
        assert_eq!(file.read_counter(&counter).unwrap(), 123456789012);
    }
}

#[test]
fn other_number_formats_are_rounded_versions() {
    let expected = open("expected.safetensors").unwrap().read_f32("fc.weight").unwrap();
    for (name, dtype, precision) in
        [("half", Dtype::F16, 1e-3), ("bfloat16", Dtype::BF16, 8e-3), ("double", Dtype::F64, 0.0)]
    {
        let file = open(&format!("{name}.pth")).unwrap();
        assert_eq!(file.entry("fc.weight").unwrap().dtype, dtype);
        for (ours, truth) in file.read_f32("fc.weight").unwrap().iter().zip(&expected) {
            assert!((ours - truth).abs() <= precision * truth.abs(), "{name}: {ours}, {truth}");
        }
    }
}

#[test]
fn no_code_in_a_file_is_run() {
    let expected = open("expected.safetensors").unwrap();
    for name in ["hostile.pth", "hostile-legacy.pth"] {
        let file = open(name).unwrap();
        assert_eq!(file.foreign_objects(), ["posix.system"], "{name}");
        assert_eq!(file.names().collect::<Vec<_>>(), ["fc.bias"], "{name}");
        assert_eq!(file.read_f32("fc.bias").unwrap(), expected.read_f32("fc.bias").unwrap());
    }
    assert!(!Path::new("hostile-was-run").exists() && !fixture("hostile-was-run").exists());
    let error = open("whole-model.pth").unwrap_err();
    let reason =
        "it holds no tensors outside Python objects, such as torch.nn.modules.linear.Linear; nothing in it was run";
    assert!(error.message().ends_with(reason), "{error}");
    assert!(error.hint_text().unwrap().contains("torch.save(model.state_dict()"), "{error}");
}

#[test]
fn files_without_a_state_dict_are_refused() {
    let error = open("no-tensors.pth").unwrap_err();
    assert!(error.message().contains("it holds no tensors"), "{error}");
    let error = open("only-a-pickle.pth").unwrap_err();
    assert!(error.message().contains("it looks like a pickle, but none of torch's files"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.zip");
    let mut archive = zip::ZipWriter::new(fs::File::create(&other).unwrap());
    archive.start_file("readme.txt", zip::write::SimpleFileOptions::default()).unwrap();
    archive.finish().unwrap();
    let error = TensorFile::open(&other).unwrap_err();
    assert!(error.message().contains("it is a zip archive without a data.pkl"), "{error}");
}
