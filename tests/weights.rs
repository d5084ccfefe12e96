//! State dicts: reading, matching and saving them, reference files, and files that are damaged or of another kind.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use half::{bf16, f16};
use proptest::prelude::*;
use retune::Error;
use retune::device::Precision;
use retune::file::write_atomically;
use retune::ops::LossReduction;
use retune::weights::{
    Dtype, HeadPolicy, MatchReport, NamedShape, OutputTensor, Reference, TensorFile, head_from, match_state_dict, save,
};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn metadata(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// A file written by the format's own library, as an independent writer.
fn library_file(path: &Path, tensors: &[(&str, Dtype, &[usize], &[u8])]) {
    let views: Vec<_> = tensors
        .iter()
        .map(|&(name, dtype, shape, bytes)| (name, TensorView::new(dtype, shape.to_vec(), bytes).unwrap()))
        .collect();
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The error of opening a file of these bytes, without the folder in it.
fn opening(bytes: &[u8]) -> String {
    let folder = folder();
    let path = folder.path().join("w.safetensors");
    fs::write(&path, bytes).unwrap();
    shown(TensorFile::open(&path).unwrap_err(), &folder)
}

fn shown(error: Error, folder: &TempDir) -> String {
    error.to_string().replace(&format!("{}/", folder.path().display()), "")
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

mod reading {
    use super::*;

    const VALUES: [f32; 6] = [0.0, -1.5, 3.25, 1e-3, -65504.0, 1e30];

    fn bytes<const N: usize>(element: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
        VALUES.iter().flat_map(|&value| element(value)).collect()
    }

    #[test]
    fn every_floating_point_type_becomes_f32() {
        let folder = folder();
        let path = folder.path().join("w.safetensors");
        library_file(
            &path,
            &[
                ("f32", Dtype::F32, &[2, 3], &bytes(f32::to_le_bytes)),
                ("f64", Dtype::F64, &[6], &bytes(|value| f64::from(value).to_le_bytes())),
                ("f16", Dtype::F16, &[3, 2], &bytes(|value| f16::from_f32(value).to_le_bytes())),
                ("bf16", Dtype::BF16, &[6, 1], &bytes(|value| bf16::from_f32(value).to_le_bytes())),
            ],
        );
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.read_f32("f32").unwrap(), VALUES);
        assert_eq!(file.read_f32("f64").unwrap(), VALUES);
        assert_eq!(file.read_f32("f16").unwrap(), VALUES.map(|value| f16::from_f32(value).to_f32()));
        assert_eq!(file.read_f32("f16").unwrap()[5], f32::INFINITY);
        assert_eq!(file.read_f32("bf16").unwrap(), VALUES.map(|value| bf16::from_f32(value).to_f32()));
        assert_eq!(file.entry("f16").unwrap().shape, [3, 2]);
        assert_eq!(file.entry("f16").unwrap().bytes(), 12);
    }

    #[test]
    fn integers_are_widened() {
        let folder = folder();
        let path = folder.path().join("w.safetensors");
        library_file(
            &path,
            &[
                ("i64", Dtype::I64, &[], &i64::MIN.to_le_bytes()),
                ("i32", Dtype::I32, &[1], &(-7i32).to_le_bytes()),
                ("u8", Dtype::U8, &[2], &[0, 255]),
                ("u64", Dtype::U64, &[], &u64::MAX.to_le_bytes()),
            ],
        );
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.read_i64("i64").unwrap(), [i64::MIN]);
        assert_eq!(file.read_i64("i32").unwrap(), [-7]);
        assert_eq!(file.read_i64("u8").unwrap(), [0, 255]);
        assert!(file.read_i64("u64").unwrap_err().message().contains("elements of type U64, expected an integer type"));
        let wrong = shown(file.read_f32("u8").unwrap_err(), &folder);
        assert!(wrong.starts_with("w.safetensors: tensor u8 has elements of type U8, expected F32"), "{wrong}");
        let missing = shown(file.read_f32("fc.weight").unwrap_err(), &folder);
        assert!(missing.starts_with("w.safetensors: tensor fc.weight is missing\nhint: "), "{missing}");
    }

    #[test]
    fn counters_may_be_of_any_number_type() {
        let folder = folder();
        let path = folder.path().join("w.safetensors");
        library_file(
            &path,
            &[
                ("i64", Dtype::I64, &[], &7i64.to_le_bytes()),
                ("u64", Dtype::U64, &[1], &7u64.to_le_bytes()),
                ("f16", Dtype::F16, &[], &f16::from_f32(7.0).to_le_bytes()),
                ("f32", Dtype::F32, &[], &7f32.to_le_bytes()),
                ("f64", Dtype::F64, &[], &7f64.to_le_bytes()),
                ("none", Dtype::I64, &[0], &[]),
            ],
        );
        let file = TensorFile::open(&path).unwrap();
        for name in ["i64", "u64", "f16", "f32", "f64"] {
            assert_eq!(file.read_counter(name).unwrap(), 7, "{name}");
        }
        assert!(file.read_counter("none").unwrap_err().message().ends_with("tensor none is empty"));
    }

    #[test]
    fn weights_that_are_not_finite_are_named() {
        let folder = folder();
        let path = folder.path().join("w.safetensors");
        let tensors = [
            OutputTensor::f32("good", &[2], vec![1.0, f32::MAX]),
            OutputTensor::f32("bad", &[2], vec![1.0, f32::NAN]),
            OutputTensor::f32("large", &[2], vec![f32::NEG_INFINITY, 1.0]),
            OutputTensor::f32("bn.running_var", &[2], vec![-1.0, 0.0]),
        ];
        save(&path, &tensors, &BTreeMap::new()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.read_finite_f32("good").unwrap(), [1.0, f32::MAX]);
        let refused = |name: &str| shown(file.read_finite_f32(name).unwrap_err(), &folder);
        let expected = "w.safetensors: tensor bad has 1 NaN of 2 values, expected finite ones; 2 other tensors of the file are damaged as well\nhint: ";
        assert!(refused("bad").starts_with(expected), "{}", refused("bad"));
        assert!(refused("large").contains("tensor large has 1 infinite of 2 values, "), "{}", refused("large"));
        assert!(
            refused("bn.running_var")
                .contains("has 1 negative of 2 values, expected finite ones that are not negative")
        );
    }

    #[test]
    fn tensors_need_no_alignment() {
        let folder = folder();
        let path = folder.path().join("w.safetensors");
        let header = concat!(
            r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"#,
            r#""b":{"dtype":"F32","shape":[1],"data_offsets":[3,7]}}"#,
        );
        let data = [&[1, 2, 3], &1.25f32.to_le_bytes()[..]].concat();
        fs::write(&path, with_header(header, &data)).unwrap();
        assert_eq!(TensorFile::open(&path).unwrap().read_f32("b").unwrap(), [1.25]);
    }
}

mod damaged {
    use super::*;

    const HEADER: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

    #[test]
    fn each_says_what_is_wrong() {
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (vec![], "w.safetensors is empty (0 bytes), expected a safetensors or .pth file\nhint: "),
            (
                vec![1, 2, 3],
                "w.safetensors is neither a safetensors nor a .pth file, or is damaged: it is 3 bytes long, expected at",
            ),
            (
                with_header(HEADER, &[0; 7]),
                "w.safetensors is truncated: its header describes 70 bytes, the file has 69",
            ),
            (with_header(HEADER, &[0; 9]), "w.safetensors is damaged: its header describes 70 bytes, the file has 71"),
            (
                with_header(HEADER, &[0; 8])[..40].to_vec(),
                "w.safetensors is truncated: its header takes 54 bytes, the file has 40",
            ),
            (
                vec![0xff; 100],
                "w.safetensors is neither a safetensors nor a .pth file, or is damaged: its first bytes announce a header",
            ),
            (
                with_header(&HEADER.replace("[2]", "[3]"), &[0; 8]),
                "w.safetensors is neither a safetensors nor a .pth file, or is damaged",
            ),
            (
                with_header(&HEADER.replace("[0,8]", "[8,0]"), &[0; 8]),
                "w.safetensors is neither a safetensors nor a .pth file, or is dam",
            ),
            (
                with_header(&HEADER.replace("F32", "Q9"), &[0; 8]),
                "w.safetensors is neither a safetensors nor a .pth file, or is damaged",
            ),
            (
                b"PK\x03\x04 a zip, which is what torch.save writes".to_vec(),
                "w.safetensors cannot be read as a .pth file of PyTorch: it is truncated: the directory",
            ),
            (
                b"\x80\x02}q\x00.".to_vec(),
                "w.safetensors is a pickle, but not a file of PyTorch, expected a safetensors or .pth file",
            ),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0".to_vec(),
                "w.safetensors is a git-lfs pointer, which replaces the real file, expected",
            ),
            (
                b"\n<!DOCTYPE html><html>not found</html>".to_vec(),
                "w.safetensors is an HTML page, expected a safetensors or .pth file",
            ),
            (b"{\"weight_map\": {}}".to_vec(), "w.safetensors is a JSON file, such as a config or an index, expected"),
            (b"\x08\x07\x12\x07pytorch\x1A\x05".to_vec(), "w.safetensors is an ONNX model, expected"),
        ];
        for (bytes, expected) in cases {
            let found = opening(&bytes);
            assert!(found.starts_with(expected), "expected {expected:?}, found {found:?}");
            assert_eq!(found.lines().count(), 2, "{found:?}");
            assert!(found.lines().nth(1).unwrap().starts_with("hint: "), "{found:?}");
        }
    }

    /// The parser's own words name types of Rust.
    #[test]
    fn a_wrong_header_is_described_in_terms_of_the_format() {
        for (from, to, expected) in [
            ("F32", "F99", "has elements of type F99, which safetensors does not have"),
            ("[2]", "[3]", "of shape [3] and type F32 takes 12 bytes, its header gives it 8"),
            ("[0,8]", "[8,0]", "of shape [2] and type F32 takes 8 bytes, its header gives it none"),
            ("[2]", "[-1]", "are not a list of whole numbers"),
            ("[2]", "\"x\"", "are not a list of whole numbers"),
            ("[0,8]", "[4,12]", "its header is wrong: "),
            (HEADER, "[]", "its header is a JSON text, but not an object"),
            (HEADER, "{\"__metadata__\":[]}", "its header is JSON, but not that of a safetensors file"),
            (HEADER, "{a:1}", "its header is not JSON, from byte 2 on"),
        ] {
            let found = opening(&with_header(&HEADER.replace(from, to), &[0; 8]));
            assert!(found.contains(expected), "expected {expected:?}, found {found:?}");
        }
    }

    #[test]
    fn a_lying_header_allocates_nothing() {
        for (shape, takes) in [
            ("[4294967296,4294967296]", "too many"),
            ("[1099511627776,1099511627776,0]", "too many"),
            ("[1000000000000]", "4000000000000"),
        ] {
            let found = opening(&with_header(&HEADER.replace("[2]", shape), &[0; 8]));
            assert!(found.contains(&format!("takes {takes} bytes, its header gives it 8")), "{found}");
        }
        let header = HEADER.replace("[2]", "[1000000000000]").replace("[0,8]", "[0,4000000000000]");
        assert!(opening(&with_header(&header, &[0; 8])).contains("is truncated: its header describes 40000000000"));
        for length in [101, u64::MAX / 2, u64::MAX - 7, u64::MAX] {
            let mut bytes = with_header(HEADER, &[0; 8]);
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            let expected = format!("is truncated: its header takes {length} bytes, the file has 70");
            assert!(opening(&bytes).contains(&expected));
        }
    }

    #[test]
    fn names_cannot_write_to_the_terminal() {
        let header = HEADER.replace("\"a\"", "\"\\u001b[31m\\n\"").replace("[0,8]", "[1,9]");
        let found = opening(&with_header(&header, &[0; 9]));
        assert!(!found.contains('\u{1b}'), "{found:?}");
        assert_eq!(found.lines().count(), 2, "{found:?}");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = folder();
        assert!(
            TensorFile::open(folder.path())
                .unwrap_err()
                .message()
                .ends_with("is a folder, expected a safetensors or .pth file")
        );
        let absent = folder.path().join("absent");
        assert!(shown(TensorFile::open(&absent).unwrap_err(), &folder).starts_with("absent: no such file"));
    }

    static WHOLE_FILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let folder = folder();
        let path = folder.path().join("w.safetensors");
        let tensors = [
            OutputTensor::f32("conv1.weight", &[2, 3, 1, 1], vec![0.5; 6]),
            OutputTensor::i64("bn1.num_batches_tracked", &[], vec![3]),
            OutputTensor::bytes("fc.bias", Dtype::BF16, &[3], vec![0; 6]),
        ];
        save(&path, &tensors, &metadata(&[("format", "pt"), ("classes", "[\"a\",\"b\"]")])).unwrap();
        fs::read(path).unwrap()
    });

    fn read_all(path: &Path) {
        let Ok(file) = TensorFile::open(path) else { return };
        for entry in file.entries() {
            let _ = file.read_f32(&entry.name);
            let _ = file.read_i64(&entry.name);
            assert_eq!(file.bytes(&entry.name).unwrap().len(), entry.bytes());
        }
        let report = match_state_dict(&[], &file, HeadPolicy::Replace);
        let _ = (report.to_string(), report.check("resnet18"), head_from(&[0, 1], &file, &report));
        let _ = Reference::open(path);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

        #[test]
        fn damage_never_panics(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            in_header in any::<bool>(),
            kept in prop::option::weighted(0.3, any::<prop::sample::Index>()),
        ) {
            let mut bytes = WHOLE_FILE.clone();
            let limit = if in_header { bytes.len() / 2 } else { bytes.len() };
            for (position, value) in &flips {
                bytes[position.index(limit)] = *value;
            }
            if let Some(kept) = kept {
                bytes.truncate(kept.index(bytes.len()));
                let folder = folder();
                let path = folder.path().join("w.safetensors");
                fs::write(&path, &bytes).unwrap();
                prop_assert!(!flips.is_empty() || TensorFile::open(&path).is_err());
            }
            let folder = folder();
            let path = folder.path().join("w.safetensors");
            fs::write(&path, &bytes).unwrap();
            read_all(&path);
        }
    }
}

mod saving {
    use super::*;

    #[test]
    fn the_bytes_are_fixed() {
        let folder = folder();
        let path = folder.path().join("w.safetensors");
        let values = [1.0, 2.0];
        let tensors = [
            OutputTensor::bytes("u", Dtype::U8, &[1], vec![9]),
            OutputTensor::f32("z", &[2], &values[..]),
            OutputTensor::i64("n", &[], vec![-1]),
            OutputTensor::f32("a", &[1, 1], vec![3.0]),
        ];
        save(&path, &tensors, &metadata(&[("format", "pt"), ("arch", "resnet18")])).unwrap();
        let expected_header = concat!(
            r#"{"__metadata__":{"arch":"resnet18","format":"pt"},"#,
            r#""n":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"#,
            r#""z":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},"#,
            r#""a":{"dtype":"F32","shape":[1,1],"data_offsets":[16,20]},"#,
            r#""u":{"dtype":"U8","shape":[1],"data_offsets":[20,21]}}"#,
        );
        let bytes = fs::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(length % 8, 0);
        assert_eq!(std::str::from_utf8(&bytes[8..8 + length]).unwrap().trim_end_matches(' '), expected_header);

        let library = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(library.tensor("z").unwrap().data(), [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat());
        assert_eq!(library.tensor("u").unwrap().data(), [9]);
        let ours = TensorFile::open(&path).unwrap();
        assert_eq!(ours.names().collect::<Vec<_>>(), ["n", "z", "a", "u"]);
        assert_eq!(ours.metadata()["arch"], "resnet18");
        assert_eq!(ours.read_i64("n").unwrap(), [-1]);
        assert_eq!(ours.read_f32("a").unwrap(), [3.0]);
    }

    #[test]
    fn nothing_at_all_can_be_saved() {
        let folder = folder();
        let path = folder.path().join("w.safetensors");
        save(&path, &[], &BTreeMap::new()).unwrap();
        assert_eq!(TensorFile::open(&path).unwrap().entries().len(), 0);
    }

    #[test]
    fn what_no_reader_would_take_is_refused() {
        let folder = folder();
        let path = folder.path().join("w.safetensors");
        let refused = |tensors: &[OutputTensor]| shown(save(&path, tensors, &BTreeMap::new()).unwrap_err(), &folder);
        let twice = [OutputTensor::f32("a", &[1], vec![1.0]), OutputTensor::f32("a", &[1], vec![2.0])];
        assert_eq!(refused(&twice), "cannot write w.safetensors: tensor name a is reserved or given twice");
        assert!(refused(&[OutputTensor::f32("__metadata__", &[1], vec![1.0])]).contains("reserved"));
        let misshapen = [OutputTensor::f32("a", &[3], vec![1.0])];
        assert!(refused(&misshapen).ends_with("tensor a of type F32 and shape [3] cannot be made of 4 bytes"));
        assert!(refused(&[OutputTensor::f32("a", &[usize::MAX, 2], vec![1.0])]).contains("cannot be made of"));
        assert!(!path.exists());
    }
}

mod atomic_writing {
    use super::*;

    fn left_in(folder: &TempDir) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn fill(text: &str, path: &Path) {
        write_atomically(path, |writer| writer.write_all(text.as_bytes())).unwrap();
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        fill("first, and long", &path);
        fill("second", &path);
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        assert_eq!(left_in(&folder), ["model.safetensors"]);
    }

    #[test]
    fn a_failure_leaves_the_previous_file() {
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        let fail = |kind: io::ErrorKind| {
            let error = write_atomically(&path, |writer| {
                writer.write_all(&[0; 3 << 20])?;
                Err(kind.into())
            });
            shown(error.unwrap_err(), &folder)
        };
        let full = fail(io::ErrorKind::StorageFull);
        assert!(full.starts_with("cannot write model.safetensors: no storage space; no file was written\nhint: free"));
        assert_eq!(left_in(&folder), Vec::<String>::new());
        fill("precious", &path);
        let full = fail(io::ErrorKind::StorageFull);
        assert!(full.contains("; the previous file is untouched\nhint: free some space"), "{full}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert_eq!(left_in(&folder), ["model.safetensors"]);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let folder = folder();
        let path = folder.path().join("absent/model.safetensors");
        let error = shown(write_atomically(&path, |_| Ok(())).unwrap_err(), &folder);
        assert!(error.starts_with("cannot write absent/model.safetensors: "), "{error}");
        assert!(error.ends_with("hint: create the folder first"), "{error}");
    }

    #[test]
    fn a_folder_is_not_overwritten() {
        let folder = folder();
        let error = write_atomically(folder.path(), |_| Ok(())).unwrap_err();
        assert!(error.message().ends_with("it is a folder, expected a file"), "{error}");
    }

    #[cfg(unix)]
    mod unix {
        use std::os::unix::fs::{PermissionsExt, symlink};

        use super::*;

        fn mode(path: &Path) -> u32 {
            fs::metadata(path).unwrap().permissions().mode() & 0o777
        }

        #[test]
        fn a_folder_without_write_permission_keeps_its_file() {
            let folder = folder();
            let path = folder.path().join("model.safetensors");
            fill("precious", &path);
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o500)).unwrap();
            let allowed_anyway = fs::write(folder.path().join("probe"), "").is_ok();
            let result = write_atomically(&path, |writer| writer.write_all(b"new"));
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
            if allowed_anyway {
                return; // The superuser may write anywhere.
            }
            let error = shown(result.unwrap_err(), &folder);
            assert!(error.contains("the previous file is untouched\nhint: choose a writable folder"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        }

        #[test]
        fn permissions_are_those_of_any_file() {
            let folder = folder();
            let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
            fill("x", &ours);
            fs::write(&plain, "x").unwrap();
            assert_eq!(mode(&ours), mode(&plain));
            fs::set_permissions(&ours, fs::Permissions::from_mode(0o640)).unwrap();
            fill("y", &ours);
            assert_eq!(mode(&ours), 0o640);
        }

        #[test]
        fn a_symbolic_link_survives() {
            let folder = folder();
            let (link, target) = (folder.path().join("latest"), folder.path().join("real"));
            fs::write(&target, "old").unwrap();
            symlink("real", &link).unwrap();
            fill("new", &link);
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
            assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        }

        #[test]
        fn a_device_is_not_replaced() {
            let error = write_atomically(Path::new("/dev/null"), |_| Ok(())).unwrap_err();
            assert_eq!(error.message(), "cannot write /dev/null: it is a device or pipe, expected a file");
        }
    }
}

/// A torchvision ResNet's keys, of any width.
fn resnet(stages: [usize; 4], width: usize, classes: usize) -> Vec<NamedShape> {
    let mut keys = Vec::new();
    let mut key = |name: String, shape: &[usize]| keys.push(NamedShape { name, shape: shape.to_vec() });
    let batch_norm = |key: &mut dyn FnMut(String, &[usize]), name: &str, channels: usize| {
        for field in ["weight", "bias", "running_mean", "running_var"] {
            key(format!("{name}.{field}"), &[channels]);
        }
        key(format!("{name}.num_batches_tracked"), &[]);
    };
    key("conv1.weight".to_owned(), &[width, 3, 7, 7]);
    batch_norm(&mut key, "bn1", width);
    let mut inputs = width;
    for (stage, blocks) in stages.into_iter().enumerate() {
        let outputs = width << stage;
        for block in 0..blocks {
            let name = format!("layer{}.{block}", stage + 1);
            key(format!("{name}.conv1.weight"), &[outputs, inputs, 3, 3]);
            batch_norm(&mut key, &format!("{name}.bn1"), outputs);
            key(format!("{name}.conv2.weight"), &[outputs, outputs, 3, 3]);
            batch_norm(&mut key, &format!("{name}.bn2"), outputs);
            if inputs != outputs {
                key(format!("{name}.downsample.0.weight"), &[outputs, inputs, 1, 1]);
                batch_norm(&mut key, &format!("{name}.downsample.1"), outputs);
            }
            inputs = outputs;
        }
    }
    key("fc.weight".to_owned(), &[classes, inputs]);
    key("fc.bias".to_owned(), &[classes]);
    keys
}

fn resnet18(classes: usize) -> Vec<NamedShape> {
    resnet([2, 2, 2, 2], 4, classes)
}

/// A file of these keys; element `n` of every tensor is `n`.
fn state_dict_file(folder: &TempDir, keys: &[NamedShape], prefix: &str) -> TensorFile {
    let path = folder.path().join("w.safetensors");
    let tensors: Vec<OutputTensor> = keys
        .iter()
        .map(|key| {
            let (name, elements) = (format!("{prefix}{}", key.name), key.shape.iter().product());
            match key.name.ends_with("num_batches_tracked") {
                true => OutputTensor::i64(name, &key.shape, vec![0; elements]),
                false => OutputTensor::f32(name, &key.shape, (0..elements).map(|n| n as f32).collect::<Vec<_>>()),
            }
        })
        .collect();
    save(&path, &tensors, &BTreeMap::new()).unwrap();
    TensorFile::open(&path).unwrap()
}

fn named(keys: &[NamedShape]) -> Vec<&str> {
    keys.iter().map(|key| key.name.as_str()).collect()
}

mod matching {
    use super::*;

    fn matched(expected: &[NamedShape], found: &[NamedShape], policy: HeadPolicy) -> (MatchReport, String) {
        let folder = folder();
        let report = match_state_dict(expected, &state_dict_file(&folder, found, ""), policy);
        let error = report.check("resnet18").err().map(|error| shown(error, &folder)).unwrap_or_default();
        let text = report.to_string();
        for line in text.lines().filter(|line| line.starts_with("    ")) {
            assert!(found.iter().chain(expected).any(|key| line.contains(&key.name)), "{line}");
        }
        (report, error)
    }

    #[test]
    fn the_same_network_fits() {
        let (report, error) = matched(&resnet18(2), &resnet18(2), HeadPolicy::Exact);
        assert_eq!(error, "");
        assert_eq!((report.matched, report.notices()), (122, vec![]));
    }

    #[test]
    fn missing_unexpected_and_wrongly_shaped_keys_are_all_named() {
        let mut found = resnet18(2);
        found.retain(|key| key.name != "layer1.0.conv1.weight" && key.name != "bn1.bias" && key.name != "fc.bias");
        found[0].shape = vec![4, 1, 7, 7];
        found.push(NamedShape { name: "aux.weight".to_owned(), shape: vec![3] });
        let (report, error) = matched(&resnet18(2), &found, HeadPolicy::Exact);
        assert_eq!(named(&report.missing), ["bn1.bias", "layer1.0.conv1.weight", "fc.bias"]);
        assert_eq!(named(&report.unexpected), ["aux.weight"]);
        assert_eq!(report.wrong_shape.len(), 1);
        assert_eq!(
            error,
            "w.safetensors does not fit resnet18: 3 missing (bn1.bias, layer1.0.conv1.weight, ...), \
             1 unexpected (aux.weight), 1 wrongly shaped (conv1.weight: expected [4, 3, 7, 7], found [4, 1, 7, 7])\n\
             hint: expected a state dict of torchvision's resnet18"
        );
        let text = report.to_string();
        let body = text.split_once('\n').unwrap().1;
        assert_eq!(
            body,
            "  missing (3):\n    bn1.bias [4]\n    layer1.0.conv1.weight [4, 4, 3, 3]\n    fc.bias [2]\n\
             \x20 unexpected (1):\n    aux.weight [3]\n\
             \x20 wrongly shaped (1):\n    conv1.weight: expected [4, 3, 7, 7], found [4, 1, 7, 7]\n"
        );
    }

    #[test]
    fn what_is_missing_may_have_one_reason() {
        let mut keys = resnet18(3);
        keys.retain(|key| !key.name.contains("running_"));
        let (_, error) = matched(&resnet18(3), &keys, HeadPolicy::Exact);
        assert!(error.contains("hint: its batch norms lack their running statistics"), "{error}");
        keys.retain(|key| key.name != "conv1.weight");
        let (_, error) = matched(&resnet18(3), &keys, HeadPolicy::Exact);
        assert!(error.contains("hint: expected a state dict of torchvision's resnet18"), "{error}");
    }

    #[test]
    fn a_deeper_network_is_refused_though_every_key_is_there() {
        let deeper = resnet([3, 4, 6, 3], 4, 2);
        let (report, error) = matched(&resnet18(2), &deeper, HeadPolicy::Replace);
        assert_eq!(report.matched, 122);
        assert!(error.contains("unexpected (layer1.2.conv1.weight"), "{error}");
    }

    #[test]
    fn a_head_of_another_size_is_replaced_only_where_asked() {
        let (report, error) = matched(&resnet18(2), &resnet18(1000), HeadPolicy::Replace);
        assert_eq!((error.as_str(), report.matched), ("", 120));
        assert_eq!(named(report.replaced_head.as_ref().unwrap()), ["fc.weight", "fc.bias"]);
        assert_eq!(report.notices(), ["new final layer for 2 classes (the weights had 1000)"]);
        let (report, error) = matched(&resnet18(2), &resnet18(1000), HeadPolicy::Exact);
        assert_eq!(report.replaced_head, None);
        assert!(error.contains("2 wrongly shaped (fc.weight: expected [2, 32], found [1000, 32]"), "{error}");
        let (report, _) = matched(&resnet18(2), &resnet18(2), HeadPolicy::Replace);
        assert_eq!((report.replaced_head, report.matched), (None, 122));
    }

    #[test]
    fn a_head_that_is_absent_or_built_otherwise_is_replaced() {
        let mut found = resnet18(2);
        found.retain(|key| !key.name.starts_with("fc."));
        let (report, error) = matched(&resnet18(2), &found, HeadPolicy::Replace);
        assert_eq!(error, "");
        assert_eq!(report.notices(), ["new final layer for 2 classes (the weights had none)"]);
        found.push(NamedShape { name: "fc.1.weight".to_owned(), shape: vec![2, 32] });
        let (report, error) = matched(&resnet18(2), &found, HeadPolicy::Replace);
        assert_eq!(error, "");
        assert_eq!(report.notices(), ["new final layer for 2 classes (ignored fc.1.weight [2, 32])"]);
    }

    #[test]
    fn counters_may_be_absent_or_have_one_dimension() {
        let mut found = resnet18(2);
        found.retain(|key| !key.name.ends_with("num_batches_tracked"));
        let (report, error) = matched(&resnet18(2), &found, HeadPolicy::Exact);
        assert_eq!((error.as_str(), report.matched, report.absent_counters.len()), ("", 102, 20));
        assert_eq!(report.notices(), ["20 num_batches_tracked counters are absent and start at 0"]);
        let mut found = resnet18(2);
        found.iter_mut().filter(|key| key.shape.is_empty()).for_each(|key| key.shape = vec![1]);
        assert_eq!(matched(&resnet18(2), &found, HeadPolicy::Exact).1, "");
    }

    #[test]
    fn rows_of_the_old_head_are_copied() {
        let folder = folder();
        let file = state_dict_file(&folder, &resnet18(10), "");
        let report = match_state_dict(&resnet18(2), &file, HeadPolicy::Replace);
        let head = head_from(&[9, 4], &file, &report).unwrap();
        assert_eq!((head.classes, head.inputs), (2, 32));
        let rows = (9 * 32..10 * 32).chain(4 * 32..5 * 32);
        assert_eq!(head.weight, rows.map(|n| n as f32).collect::<Vec<_>>());
        assert_eq!(head.bias, [9.0, 4.0]);

        let refused = |rows: &[usize]| shown(head_from(rows, &file, &report).unwrap_err(), &folder);
        assert_eq!(
            refused(&[0, 10]),
            "cannot copy rows of the final layer of w.safetensors: it has no row 10, expected 0 to 9"
        );
        assert!(refused(&[usize::MAX, 0]).contains("it has no row"));
        assert!(refused(&[1]).contains("expected 2 rows, one per class, found 1\nhint: "));
    }

    #[test]
    fn rows_need_a_head() {
        let folder = folder();
        let refused = |keys: &[NamedShape]| {
            let file = state_dict_file(&folder, keys, "");
            let report = match_state_dict(&resnet18(2), &file, HeadPolicy::Replace);
            head_from(&[0, 0], &file, &report).unwrap_err().message().to_owned()
        };
        let mut keys = resnet18(3);
        let last = keys.len() - 1;
        keys[last].shape = vec![4];
        assert!(refused(&keys).ends_with("fc.weight [3, 32] and fc.bias [4] are not those of a linear layer"));
        keys.pop();
        assert!(refused(&keys).ends_with("fc.weight or fc.bias is missing"));
        assert!(refused(&resnet([2, 2, 2, 2], 8, 3)).ends_with("expected 32 features, found 64"));
        let mut empty = resnet18(3);
        empty[last - 1].shape = vec![0, 32];
        empty[last].shape = vec![0];
        assert!(refused(&empty).contains("it has no row 0"));
    }
}

/// `find` and `match_state_dict` together, as every command uses them.
mod finding {
    use retune::model::{Recognised, recognise};
    use retune::weights::{Found, find};

    use super::*;

    type Tensors = Vec<(String, Vec<usize>)>;

    fn under(prefix: &str, keys: &[NamedShape]) -> Tensors {
        keys.iter().map(|key| (format!("{prefix}{}", key.name), key.shape.clone())).collect()
    }

    /// `fill` is the value of every element of the tensors whose names begin with its prefix.
    fn found_in(tensors: &Tensors, fill: &[(&str, f32)]) -> Result<Found<Recognised>, String> {
        let folder = folder();
        let path = folder.path().join("w.safetensors");
        let tensors: Vec<OutputTensor> = tensors
            .iter()
            .map(|(name, shape)| {
                let value = fill.iter().find(|(prefix, _)| name.starts_with(prefix)).map_or(0.0, |&(_, value)| value);
                OutputTensor::f32(name.clone(), shape, vec![value; shape.iter().product()])
            })
            .collect();
        save(&path, &tensors, &BTreeMap::new()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        find(&file, |shape_of| recognise(shape_of)).map_err(|error| shown(error, &folder))
    }

    fn fits(found: &Found<Recognised>, classes: usize, policy: HeadPolicy) -> MatchReport {
        let report = match_state_dict(&found.network.resnet(classes).state_dict(), &found.weights, policy);
        assert!(report.fits(), "{report}");
        report
    }

    #[test]
    fn any_prefix_and_nesting_is_found() {
        for prefix in [
            "",
            "module.",
            "model.",
            "_orig_mod.",
            "module.model.",
            "model._orig_mod.",
            "backbone.",
            "encoder.",
            "state_dict.module.",
            "a.b.c.d.e.",
            "models.0.",
        ] {
            let found = found_in(&under(prefix, &resnet18(3)), &[]).unwrap();
            assert_eq!((found.prefix.as_str(), found.network.classes, found.network.width), (prefix, Some(3), 4));
            assert_eq!(fits(&found, 3, HeadPolicy::Exact).matched, 122, "{prefix}");
            match prefix {
                "" => assert!(found.notices.is_empty()),
                _ => assert_eq!(found.notices, [format!("weights found under `{prefix}`")]),
            }
        }
        let error = found_in(&under("module", &resnet18(3)), &[]).unwrap_err();
        assert!(error.contains("no ResNet found: its keys are module"), "{error}");
    }

    #[test]
    fn tensors_beside_the_network_are_named() {
        let mut tensors = under("model.", &resnet18(3));
        tensors.push(("criterion.pos_weight".into(), vec![3]));
        tensors.push(("n_averaged".into(), vec![]));
        let found = found_in(&tensors, &[]).unwrap();
        fits(&found, 3, HeadPolicy::Exact);
        let ignored = "ignored 2 tensors that the network does not have: criterion.pos_weight, n_averaged";
        assert_eq!(found.notices, ["weights found under `model.`", ignored]);
        // The same among the network's own keys, also without a prefix.
        let beside = ["criterion.weight", "aux.weight", "projector.0.weight", "ema.decay", "loss"];
        for prefix in ["model.", ""] {
            let mut tensors = under(prefix, &resnet18(3));
            tensors.extend(beside.iter().map(|name| (format!("{prefix}{name}"), vec![3])));
            let found = found_in(&tensors, &[]).unwrap();
            assert_eq!(fits(&found, 3, HeadPolicy::Exact).matched, 122);
            let names = beside[..3].iter().map(|name| format!("{prefix}{name}")).collect::<Vec<_>>().join(", ");
            let ignored = format!("ignored 5 tensors that the network does not have: {names}, ...");
            assert!(found.notices.contains(&ignored), "{:?}", found.notices);
        }
    }

    /// What is inside the body, or looks like a part of it, makes it another network.
    #[test]
    fn other_modules_of_the_body_are_refused() {
        for (name, shape, reason) in [
            ("layer1.0.se.fc1.weight", vec![1, 4, 1, 1], "its blocks have squeeze-and-excitation modules (SE-ResNet)"),
            ("conv1.0.weight", vec![2, 3, 3, 3], "its stem has several convolutions instead of one"),
            ("conv2.weight", vec![4, 4, 3, 3], "its stem has several convolutions instead of one"),
        ] {
            let mut tensors = under("net.", &resnet18(3));
            tensors.push((format!("net.{name}"), shape));
            let error = found_in(&tensors, &[]).unwrap_err();
            let expected = format!("w.safetensors: the network under `net.` is not supported: {reason}");
            assert!(error.starts_with(&expected) && error.contains("\nhint: supported are torchvision's"), "{error}");
        }
        // The same in the head says nothing of the body.
        let mut tensors = under("net.", &resnet18(3));
        tensors.retain(|(name, _)| !name.starts_with("net.fc."));
        tensors.push(("net.classifier.0.convs.0.weight".into(), vec![3, 32, 1, 1]));
        assert_eq!(found_in(&tensors, &[]).unwrap().other_head, ["classifier.0.convs.0"]);
        // Without a row in the table, the keys are refused by their names.
        let mut tensors = under("", &resnet18(3));
        tensors.push(("layer1.0.gate.weight".into(), vec![3]));
        let found = found_in(&tensors, &[]).unwrap();
        let report = match_state_dict(&found.network.resnet(3).state_dict(), &found.weights, HeadPolicy::Replace);
        assert_eq!(named(&report.unexpected), ["layer1.0.gate.weight"]);
        // A stem of several convolutions has no `conv1.weight`.
        let mut tensors = under("", &resnet18(3));
        tensors[0] = ("conv1.0.weight".into(), vec![2, 3, 3, 3]);
        assert!(found_in(&tensors, &[]).unwrap_err().contains("its stem has several convolutions"));
        // Three stages, and a file that was cut.
        let mut tensors = under("a.", &resnet18(3));
        tensors.retain(|(name, _)| !name.starts_with("a.layer4."));
        assert!(found_in(&tensors, &[]).unwrap_err().contains("under `a.` is not supported: it has three stages"));
        tensors.retain(|(name, _)| !name.starts_with("a.layer3."));
        let error = found_in(&tensors, &[]).unwrap_err();
        assert!(error.contains("an incomplete ResNet: there is no a.layer4.0.conv1.weight"), "{error}");
    }

    #[test]
    fn of_several_networks_the_order_decides() {
        let body: Vec<NamedShape> = resnet18(3).into_iter().filter(|key| !key.name.starts_with("fc.")).collect();
        for (other, chosen) in [
            ("model_ema.", "model."),
            ("state_dict_ema.", "state_dict."),
            ("module.encoder_k.", "module.encoder_q."),
            ("a_teacher.", "z_student.long.er."),
            ("second.deeper.", "zfirst."),
        ] {
            let mut tensors = under(other, &resnet18(3));
            tensors.extend(under(chosen, &resnet18(3)));
            let found = found_in(&tensors, &[(other, 1.0), (chosen, 2.0)]).unwrap();
            assert_eq!(found.prefix, chosen);
            assert!(found.weights.read_f32("conv1.weight").unwrap().iter().all(|&value| value == 2.0));
            assert!(
                found
                    .notices
                    .contains(&format!("ignored 1 other network: `{other}`; use --weights-key to choose another")),
                "{:?}",
                found.notices
            );
        }
        // A network with a final layer comes before one without.
        let mut tensors = under("a.", &body);
        tensors.extend(under("b.", &resnet18(3)));
        assert_eq!(found_in(&tensors, &[]).unwrap().prefix, "b.");
        // If it is the only network, an average is taken, and the user is told.
        let found = found_in(&under("state_dict_ema.", &resnet18(3)), &[]).unwrap();
        assert_eq!(found.notices, ["averaged or copied weights (such as EMA) found under `state_dict_ema.`"]);
        // A name is compared part by part.
        assert!(found_in(&under("cinema.", &resnet18(3)), &[]).unwrap().notices[0].starts_with("weights found"));
    }

    #[test]
    fn a_single_linear_layer_is_the_head() {
        for (prefix, head) in
            [("", "fc.1"), ("", "head"), ("m.", "classifier.1"), ("backbone.", "^fc"), ("backbone.", "^head")]
        {
            let mut tensors = under(prefix, &resnet18(3));
            for (name, _) in tensors.iter_mut() {
                let at = format!("{prefix}fc");
                if let Some(rest) = name.strip_prefix(&at) {
                    *name = match head.strip_prefix('^') {
                        Some(outside) => format!("{outside}{rest}"),
                        None => format!("{prefix}{head}{rest}"),
                    };
                }
            }
            let found = found_in(&tensors, &[]).unwrap();
            assert_eq!(found.network.classes, Some(3), "{prefix} {head}");
            fits(&found, 3, HeadPolicy::Exact);
        }
    }

    #[test]
    fn a_head_of_another_kind_is_set_aside() {
        for heads in [
            &[][..],
            &[("projector.0.weight", &[16, 32][..])],
            &[("projector.weight", &[16, 32]), ("projector.bias", &[16])],
            &[("fc.0.weight", &[16, 32]), ("fc.0.bias", &[16]), ("fc.2.weight", &[3, 16]), ("fc.2.bias", &[3])],
            &[("head.weight", &[3, 31]), ("head.bias", &[3])],
        ] {
            let mut tensors = under("net.", &resnet18(3));
            tensors.retain(|(name, _)| !name.starts_with("net.fc."));
            tensors.extend(heads.iter().map(|(name, shape)| (format!("net.{name}"), shape.to_vec())));
            let found = found_in(&tensors, &[]).unwrap();
            assert_eq!(found.network.classes, None);
            let mut modules: Vec<_> =
                heads.iter().filter_map(|(name, _)| name.rsplit_once('.')).map(|it| it.0).collect();
            modules.dedup();
            assert_eq!(found.other_head, modules);
            let report = fits(&found, 2, HeadPolicy::Replace);
            assert_eq!((report.matched, report.replaced_head.unwrap().len()), (120, heads.len()));
        }
    }

    #[test]
    fn the_names_of_other_programs_are_translated() {
        let translate = |name: &str, program: &str| -> String {
            let parts: Vec<&str> = name.split('.').collect();
            match (program, parts.as_slice()) {
                ("sequential", ["conv1", rest]) => format!("0.{rest}"),
                ("sequential", ["bn1", rest]) => format!("1.{rest}"),
                ("sequential", ["fc", rest]) => format!("9.{rest}"),
                ("sequential", [stage, rest @ ..]) => {
                    let stage: usize = stage.strip_prefix("layer").unwrap().parse().unwrap();
                    format!("{}.{}", stage + 3, rest.join("."))
                }
                (_, ["conv1", rest]) => format!("resnet.embedder.embedder.convolution.{rest}"),
                (_, ["bn1", rest]) => format!("resnet.embedder.embedder.normalization.{rest}"),
                (_, ["fc", rest]) => format!("classifier.1.{rest}"),
                (_, [stage, block, inner @ .., rest]) => {
                    let stage: usize = stage.strip_prefix("layer").unwrap().parse().unwrap();
                    let inner = match inner.join(".").as_str() {
                        "downsample.0" => "shortcut.convolution".to_owned(),
                        "downsample.1" => "shortcut.normalization".to_owned(),
                        other => {
                            let kind = if other.starts_with("conv") { "convolution" } else { "normalization" };
                            let number: usize = other[other.len() - 1..].parse().unwrap();
                            format!("layer.{}.{kind}", number - 1)
                        }
                    };
                    format!("resnet.encoder.stages.{}.layers.{block}.{inner}.{rest}", stage - 1)
                }
                _ => unreachable!("{name}"),
            }
        };
        for program in ["sequential", "transformers"] {
            for architecture in retune::model::Architecture::all() {
                let network = Recognised { architecture, width: 4, classes: Some(3) };
                let mut tensors: Tensors = Vec::new();
                for key in network.resnet(3).state_dict() {
                    tensors.push((translate(&key.name, program), key.shape));
                }
                let found = found_in(&tensors, &[]).unwrap_or_else(|error| panic!("{program} {architecture}: {error}"));
                assert_eq!((found.network.architecture, found.network.classes), (architecture, Some(3)), "{program}");
                fits(&found, 3, HeadPolicy::Exact);
            }
        }
    }

    #[test]
    fn what_is_no_network_says_what_it_is() {
        let error = found_in(&vec![("vgg.0.weight".into(), vec![2, 3, 3, 3])], &[]).unwrap_err();
        assert!(error.starts_with("w.safetensors: no ResNet found: its keys are vgg.0.weight\nhint: "), "{error}");
        let error = found_in(&vec![("m.denseblock1.conv.weight".into(), vec![2, 3, 3, 3])], &[]).unwrap_err();
        assert!(error.contains("no ResNet found: it seems to be a DenseNet, by its keys m.denseblock1."), "{error}");
        let error = found_in(&under("model.", &resnet([1, 1, 1, 1], 4, 3)), &[]).unwrap_err();
        assert!(error.starts_with("w.safetensors: the network under `model.` is not supported: "), "{error}");
    }
}

mod reference {
    use super::*;

    const FIELDS: [(&str, &str); 13] = [
        ("format", "retune-reference-1"),
        ("arch", "resnet18"),
        ("width", "4"),
        ("num_classes", "2"),
        ("loss_reduction", "sum"),
        ("lr", "5e-05"),
        ("head_lr", "0.0005"),
        ("weight_decay", "0.001"),
        ("momentum", "0.9"),
        ("freeze", "conv1, layer1"),
        ("freeze_batch_norm", "true"),
        ("margin", "3.5e-04"),
        ("source", "PyTorch float64"),
    ];

    fn tensors() -> Vec<OutputTensor<'static>> {
        let zeros = |name: &str, shape: &[usize]| OutputTensor::f32(name, shape, vec![0.0; shape.iter().product()]);
        vec![
            OutputTensor::i64("target", &[2], vec![0, 1]),
            zeros("input", &[2, 3, 5, 7]),
            zeros("logits", &[2, 2]),
            zeros("loss", &[]),
            zeros("param/conv1.weight", &[4, 3, 7, 7]),
            zeros("param/fc.weight", &[2, 32]),
            zeros("grad/fc.weight", &[2, 32]),
            zeros("buffer/conv1.weight", &[4, 3, 7, 7]),
            zeros("step1/fc.weight", &[2, 32]),
            zeros("step3/fc.weight", &[2, 32]),
            zeros("activation/bn1", &[2, 4, 3, 4]),
            OutputTensor::f32("noise/grad/fc.weight", &[], vec![0.5]),
            OutputTensor::f32("noise_bf16/logits", &[], vec![0.25]),
        ]
    }

    fn open(fields: &BTreeMap<String, String>, tensors: &[OutputTensor]) -> Result<Reference, String> {
        let folder = folder();
        let path: PathBuf = folder.path().join("r.safetensors");
        save(&path, tensors, fields).unwrap();
        Reference::open(&path).map_err(|error| shown(error, &folder))
    }

    #[test]
    fn every_field_is_read() {
        let reference = open(&metadata(&FIELDS), &tensors()).unwrap();
        assert_eq!((reference.arch.as_str(), reference.width, reference.num_classes), ("resnet18", 4, 2));
        assert_eq!(reference.loss_reduction, LossReduction::Sum);
        assert_eq!((reference.learning_rate, reference.head_learning_rate), (5e-5, 5e-4));
        assert_eq!((reference.weight_decay, reference.margin), (1e-3, 3.5e-4));
        assert_eq!(reference.number("momentum").unwrap(), Some(0.9));
        assert_eq!(reference.number("beta1").unwrap(), None);
        assert_eq!(reference.freeze, ["conv1", "layer1"]);
        assert!(reference.freeze_batch_norm);
        assert_eq!(reference.source, "PyTorch float64");
        assert_eq!(reference.input_shape(), [2, 3, 5, 7]);
        let noise = |precision, name| reference.noise(precision, name);
        assert_eq!(noise(Precision::Fp32, "grad/fc.weight"), Some(0.5));
        assert_eq!(noise(Precision::Fp32, "logits"), Some(0.0));
        assert_eq!(noise(Precision::Bf16, "grad/fc.weight"), None);
        assert_eq!(noise(Precision::Bf16, "logits"), Some(0.25));
        assert_eq!(noise(Precision::Tf32, "logits"), None);
        assert!(reference.has_noise(Precision::Bf16) && !reference.has_noise(Precision::Tf32));
        assert_eq!(reference.parameters().collect::<Vec<_>>(), ["conv1.weight", "fc.weight"]);
        assert_eq!(reference.gradients().collect::<Vec<_>>(), ["fc.weight"]);
        assert_eq!(reference.buffers().collect::<Vec<_>>(), ["conv1.weight"]);
        assert_eq!(reference.after_one_step().collect::<Vec<_>>(), ["fc.weight"]);
        assert_eq!(reference.after_three_steps().collect::<Vec<_>>(), ["fc.weight"]);
        assert_eq!(reference.activations().collect::<Vec<_>>(), ["bn1"]);
        assert_eq!(reference.file().read_i64("target").unwrap(), [0, 1]);
    }

    #[test]
    fn each_missing_field_is_named() {
        for (key, _) in FIELDS {
            let mut fields = metadata(&FIELDS);
            fields.remove(key);
            let error = open(&fields, &tensors()).unwrap_err();
            assert!(error.starts_with(&format!("r.safetensors: metadata field {key} is missing\nhint: ")), "{error}");
        }
    }

    #[test]
    fn each_bad_field_is_named_with_what_was_found() {
        let bad = [
            ("format", "retune-reference-2"),
            ("width", "0"),
            ("width", "5"),
            ("num_classes", "-2"),
            ("num_classes", "18446744073709551616"),
            ("loss_reduction", "none"),
            ("lr", "nan"),
            ("head_lr", "inf"),
            ("weight_decay", "-0.1"),
            ("momentum", ""),
            ("freeze_batch_norm", "True"),
            ("margin", "wide"),
        ];
        for (key, value) in bad {
            let mut fields = metadata(&FIELDS);
            fields.insert(key.to_owned(), value.to_owned());
            let error = open(&fields, &tensors()).unwrap_err();
            assert!(error.starts_with("r.safetensors: metadata "), "{error}");
            assert!(error.contains(key) && error.contains(value), "{error}");
        }
        let mut fields = metadata(&FIELDS);
        fields.insert("freeze".to_owned(), String::new());
        assert!(open(&fields, &tensors()).unwrap().freeze.is_empty());
    }

    #[test]
    fn tensors_must_fit_each_other() {
        for name in ["input", "target", "logits", "loss", "param/conv1.weight", "param/fc.weight"] {
            let kept: Vec<_> = tensors().into_iter().filter(|tensor| tensor.name != name).collect();
            let error = open(&metadata(&FIELDS), &kept).unwrap_err();
            assert!(error.starts_with(&format!("r.safetensors: tensor {name} is missing")), "{error}");
        }
        let replaced = |tensor: OutputTensor<'static>| {
            let mut all = tensors();
            all.retain(|other| other.name != tensor.name);
            all.push(tensor);
            open(&metadata(&FIELDS), &all).unwrap_err()
        };
        let error = replaced(OutputTensor::i64("target", &[2], vec![0, 2]));
        assert_eq!(error, "r.safetensors: tensor target: found class 2, expected 0 to 1");
        assert!(replaced(OutputTensor::i64("target", &[2], vec![-1, 0])).contains("found class -1"));
        assert!(replaced(OutputTensor::f32("target", &[2], vec![0.0; 2])).contains("type F32, expected an integer"));
        assert!(replaced(OutputTensor::i64("target", &[3], vec![0; 3])).contains("expected shape [2], found [3]"));
        for shape in [[2, 1, 5, 21], [2, 3, 0, 7], [0, 3, 5, 7]] {
            let elements = shape.iter().product();
            let error = replaced(OutputTensor::f32("input", &shape, vec![0.0; elements]));
            assert!(error.starts_with("r.safetensors: tensor input: expected"), "{error}");
        }
        let error = replaced(OutputTensor::f32("grad/fc.weight", &[32, 2], vec![0.0; 64]));
        assert!(error.contains("grad/fc.weight: expected shape [2, 32], found [32, 2]"), "{error}");
        let error = replaced(OutputTensor::f32("grad/fc.bias", &[2], vec![0.0; 2]));
        assert!(error.contains("tensor param/fc.bias is missing"), "{error}");
        for noise in [vec![f32::NAN], vec![f32::INFINITY], vec![-1.0], vec![1.0, 2.0]] {
            for kind in ["noise", "noise_tf32", "noise_bf16"] {
                let error = replaced(OutputTensor::f32(format!("{kind}/loss"), &[noise.len()], noise.clone()));
                assert!(error.contains(&format!("tensor {kind}/loss: ")), "{error}");
            }
            let error = replaced(OutputTensor::f32("noise/loss", &[noise.len()], noise));
            assert!(error.contains("tensor noise/loss: expected one finite number of at least 0"), "{error}");
        }
    }
}
