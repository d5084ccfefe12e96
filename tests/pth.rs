//! PyTorch files: the contents in each of their formats, and no harm from hostile or damaged ones.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use retune::error::Result;
use retune::train::find_network;
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
        ("zip.pth", "a .pth file of PyTorch", ""),
        ("legacy.pth", "an old .pth file of PyTorch", ""),
        ("checkpoint.pth", "a .pth file of PyTorch", "state_dict."),
        ("checkpoint-legacy.pth", "an old .pth file of PyTorch", "model."),
        ("strided.pth", "a .pth file of PyTorch", ""),
        ("strided-legacy.pth", "an old .pth file of PyTorch", ""),
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
    // The old form has the source text of the class as well.
    for (name, class) in [("whole-model", "torch.nn.modules.linear.Linear"), ("whole-model-legacy", "__main__.Whole")] {
        let error = open(&format!("{name}.pth")).unwrap_err();
        let reason = format!("it contains no tensors outside Python objects such as {class}; no code in it was run");
        assert!(error.message().ends_with(&reason), "{error}");
        assert!(error.hint_text().unwrap().contains("torch.save(model.state_dict()"), "{error}");
    }
}

#[test]
fn files_without_a_state_dict_are_refused() {
    let error = open("no-tensors.pth").unwrap_err();
    assert!(error.message().contains("it contains no tensors"), "{error}");
    let error = open("only-a-pickle.pth").unwrap_err();
    assert!(error.message().contains("is a pickle, but not a file of PyTorch, expected"), "{error}");
    for (member, reason, fix) in [
        ("readme.txt", "it is a zip archive without a data.pkl, so not a file of PyTorch", "give a file of weights"),
        ("fc.bias.npy", "it is a NumPy archive (.npz), not a file of PyTorch", "numpy.load(FILE)"),
        ("model.weights.h5", "it is a Keras model, not a file of PyTorch", "retune fetch"),
        (
            "weights/best.pth",
            "it is a zip archive that contains weights/best.pth",
            "unpack it, and give the file in it",
        ),
    ] {
        let error = TensorFile::from_bytes(Path::new("w.pth"), archive(member, b"")).unwrap_err();
        assert!(error.message().ends_with(reason) && error.hint_text().unwrap().contains(fix), "{error}");
    }
    for pickle in [
        &b"\x80\x03}."[..],
        b"\x80\x04\x95\x02\0\0\0\0\0\0\0}.",
        b"\x80\x05}.",
        b"(dp0\n.",
        b"}q\0.",
        b"ccollections\nOrderedDict\n)R.",
    ] {
        let error = TensorFile::from_bytes(Path::new("w.pth"), pickle.to_vec()).unwrap_err();
        assert!(error.message().contains("is a pickle, but not a file of PyTorch"), "{pickle:?}: {error}");
    }
}

/// A zip archive with one member, stored as torch stores its own.
fn archive(member: &str, contents: &[u8]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    archive.start_file(member, stored).unwrap();
    archive.write_all(contents).unwrap();
    archive.finish().unwrap().into_inner()
}

/// Every instruction with which a pickle can make Python call something, with calls that would leave a file.
#[test]
fn hostile_pickles_call_nothing() {
    let place = tempfile::tempdir().unwrap();
    let trace = place.path().join("trace");
    let command = format!("touch {}", trace.display());
    let short = |text: &str| [&[0x8c, text.len() as u8], text.as_bytes()].concat();
    let argument = short(&command);
    let system = |call: &[u8]| [b"\x80\x02cposix\nsystem\n", &argument[..], call].concat();
    let getattr =
        [b"cbuiltins\ngetattr\ncposix\nposix\n", &short("system")[..], b"\x86R", &argument, b"\x85R"].concat();
    let global = [b"\x80\x04", &short("builtins")[..], &short("eval"), b"\x93", &argument, b"\x85R"].concat();
    let line = format!("S'{command}'\n");
    let state = [b"\x80\x02cposix\nsystem\n)\x81", &argument[..], b"b"].concat();
    let programs = [
        ("REDUCE", system(b"\x85R")),
        ("NEWOBJ", system(b"\x85\x81")),
        ("NEWOBJ_EX", system(b"\x85}\x92")),
        ("BUILD", state),
        ("STACK_GLOBAL", global),
        ("a call of getattr", getattr),
        ("INST", format!("({line}iposix\nsystem\n").into_bytes()),
        ("OBJ", format!("(cposix\nsystem\n{line}o").into_bytes()),
        ("EXT1", b"\x80\x02\x82\x01)R".to_vec()),
        ("BINPERSID", [&argument[..], b"Q"].concat()),
    ];
    for (instruction, program) in programs {
        // Alone, and as a value beside a tensor's place.
        let alone = [&program[..], b"."].concat();
        let value = [b"}", &short("a")[..], &program, b"s."].concat();
        for pickle in [alone, value] {
            let bytes = archive("archive/data.pkl", &pickle);
            let error = TensorFile::from_bytes(Path::new("w.pth"), bytes).unwrap_err();
            assert!(
                error.message().contains("w.pth cannot be read as a .pth file of PyTorch: it"),
                "{instruction}: {error}"
            );
            assert!(!trace.exists(), "{instruction} was called");
        }
    }
}

#[test]
fn old_files_may_have_a_later_pickle_protocol() {
    let old = fs::read(fixture("legacy.pth")).unwrap();
    let magic = &old[2..15];
    for protocol in [3, 4, 5] {
        let frame: &[u8] = if protocol == 3 { b"" } else { b"\x95\x0d\0\0\0\0\0\0\0" };
        let bytes = [&[0x80, protocol], frame, magic, &old[15..]].concat();
        let file = TensorFile::from_bytes(Path::new("w.pth"), bytes).unwrap();
        assert!(file.bytes("fc.bias").unwrap() == open("legacy.pth").unwrap().bytes("fc.bias").unwrap());
    }
}

#[test]
fn what_training_scripts_save_beside_the_weights_is_ignored() {
    let expected = open("expected.safetensors").unwrap();
    for (name, prefix, objects) in [
        ("numpy.pth", "state_dict.", &[][..]),
        ("numpy-legacy.pth", "state_dict.", &[]),
        ("namespace.pth", "model.", &["argparse.Namespace"]),
        ("namespace-legacy.pth", "model.", &["argparse.Namespace"]),
    ] {
        let file = open(name).unwrap();
        assert_eq!(file.foreign_objects(), objects, "{name}");
        assert_eq!(file.entries().len(), expected.entries().len(), "{name}");
        for key in expected.names() {
            assert!(file.bytes(&format!("{prefix}{key}")).unwrap() == expected.bytes(key).unwrap(), "{name}: {key}");
        }
    }
}

#[test]
fn trained_weights_are_taken_though_their_average_comes_first() {
    let file = open("average-first.pth").unwrap();
    assert!(file.names().next().unwrap().starts_with("state_dict_ema."));
    let found = find_network(&file).unwrap();
    assert_eq!(found.prefix, "state_dict.");
    let [taken, trained, averaged] =
        [(&found.weights, ""), (&file, "state_dict."), (&file, "state_dict_ema.")].map(|(file, prefix)| {
            file.names()
                .find(|name| *name == format!("{prefix}fc.weight"))
                .map(|name| file.bytes(name).unwrap())
                .unwrap()
        });
    assert!(taken == trained && taken != averaged);
    assert_eq!(
        found.notices,
        [
            "weights found under `state_dict.`",
            "ignored 1 other network: `state_dict_ema.`; use --weights-key to choose another",
            "ignored 1 tensor that the network does not have: optimizer.state.0.momentum_buffer",
            "ignored Python objects (nothing in the file was run): argparse.Namespace",
        ]
    );
}

#[test]
fn tar_archives_are_named() {
    let error = open("tar.pth").unwrap_err();
    let reason = "is a .pth in the tar format of PyTorch's first releases, which is not supported, expected";
    assert!(error.message().contains(reason), "{error}");
    assert!(error.hint_text().unwrap().contains("torch.load(FILE, weights_only=False)"), "{error}");

    // Any other tar archive, such as weights that were packed for a download.
    let mut archive = fs::read(fixture("tar.pth")).unwrap();
    archive[..8].copy_from_slice(b"resnet18");
    let error = TensorFile::from_bytes(Path::new("w.pth.tar"), archive).unwrap_err();
    assert_eq!(
        error.to_string(),
        "w.pth.tar is a tar archive, expected a safetensors or .pth file\nhint: unpack it first"
    );
}

/// Every member's name begins with the file's, so its length moves everything that follows.
#[test]
fn the_file_may_have_a_name_of_any_length() {
    let original = fs::read(fixture("stem-of-21-characters.pth")).unwrap();
    let config = zip::read::Config { archive_offset: zip::read::ArchiveOffset::Known(0) };
    let mut archive = zip::ZipArchive::with_config(config, Cursor::new(&original)).unwrap();
    let members: Vec<Member> = (0..archive.len())
        .map(|index| {
            let mut file = archive.by_index(index).unwrap();
            let name = file.name().unwrap().strip_prefix("stem-of-21-characters").unwrap().to_owned();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            Member { name, crc: file.crc32(), bytes }
        })
        .collect();
    assert!(torch_archive("stem-of-21-characters", &members) == original, "torch writes otherwise");
    let expected = open("expected.safetensors").unwrap();
    for length in 1..=60 {
        let bytes = torch_archive(&"x".repeat(length), &members);
        let file =
            TensorFile::from_bytes(Path::new("w.pth"), bytes).unwrap_or_else(|error| panic!("{length}: {error}"));
        assert!(file.bytes("fc.bias").unwrap() == expected.bytes("fc.bias").unwrap(), "{length}");
    }
}

struct Member {
    /// Without the stem.
    name: String,
    crc: u32,
    bytes: Vec<u8>,
}

/// A zip archive exactly as torch writes it: the contents of every member begin at a multiple of 64, after an extra field
/// that fills the gap; checksums and sizes follow the contents; and the 64-bit form of the end record is always there.
fn torch_archive(stem: &str, members: &[Member]) -> Vec<u8> {
    const ALIGNMENT: usize = 64;
    const LOCAL_HEADER: usize = 30;
    const EXTRA_HEADER: usize = 4;
    const FLAGS: &[u8] = &[8, 8];
    let short = |number: usize| u16::try_from(number).unwrap().to_le_bytes();
    let int = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
    let long = |number: usize| (number as u64).to_le_bytes();
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for Member { name, crc, bytes } in members {
        let name = format!("{stem}{name}");
        let sizes = [crc.to_le_bytes(), int(bytes.len()), int(bytes.len())].concat();
        let start = file.len();
        let contents = (start + LOCAL_HEADER + name.len() + EXTRA_HEADER).next_multiple_of(ALIGNMENT);
        let extra = contents - start - LOCAL_HEADER - name.len();
        file.extend([b"PK\x03\x04\0\0", FLAGS, &[0; 18], &short(name.len()), &short(extra), name.as_bytes()].concat());
        file.extend([b"FB".as_slice(), &short(extra - EXTRA_HEADER)].concat());
        file.resize(contents, b'Z');
        file.extend([bytes, b"PK\x07\x08".as_slice(), &sizes].concat());
        directory.extend([b"PK\x01\x02\0\0\0\0", FLAGS, &[0; 6], &sizes, &short(name.len()), &[0; 12]].concat());
        directory.extend([&int(start), name.as_bytes()].concat());
    }
    let (start, count) = (file.len(), members.len());
    file.extend(&directory);
    let end = file.len();
    file.extend([b"PK\x06\x06".as_slice(), &long(44), &[0x1e, 3, 0x2d, 0], &[0; 8]].concat());
    file.extend([count, count, directory.len(), start].map(long).concat());
    file.extend([b"PK\x06\x07".as_slice(), &int(0), &long(end), &int(1)].concat());
    file.extend([b"PK\x05\x06\0\0\0\0".as_slice(), &short(count), &short(count)].concat());
    file.extend([int(directory.len()), int(start), [0; 4]].concat()[..10].iter());
    file
}
