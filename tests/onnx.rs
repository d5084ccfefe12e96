//! The output of `convert`, parsed: ONNX with a reader of its own, safetensors tensor by tensor.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use retune::onnx::export;
use retune::train::ModelFile;
use retune::weights::{OutputTensor, TensorFile, save};

/// A field of a message.
#[derive(Debug, Clone)]
enum Field<'a> {
    Integer(u64),
    Bytes(&'a [u8]),
    Fixed(&'a [u8]),
}

/// A message: its fields by number.
#[derive(Debug, Default)]
struct Message<'a>(BTreeMap<u64, Vec<Field<'a>>>);

impl<'a> Message<'a> {
    fn read(mut bytes: &'a [u8]) -> Self {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let (&byte, rest) = bytes.split_first().expect("truncated");
                *bytes = rest;
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        }
        let mut message = Self::default();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let field = match key & 7 {
                0 => Field::Integer(varint(&mut bytes)),
                kind => {
                    let length = match kind {
                        1 => 8,
                        5 => 4,
                        2 => varint(&mut bytes) as usize,
                        other => panic!("wire type {other}"),
                    };
                    let (value, rest) = bytes.split_at(length);
                    bytes = rest;
                    if kind == 2 { Field::Bytes(value) } else { Field::Fixed(value) }
                }
            };
            message.0.entry(key >> 3).or_default().push(field);
        }
        message
    }

    fn all(&self, field: u64) -> &[Field<'a>] {
        self.0.get(&field).map_or(&[], Vec::as_slice)
    }

    fn messages(&self, field: u64) -> Vec<Message<'a>> {
        self.all(field)
            .iter()
            .map(|field| if let Field::Bytes(bytes) = field { Self::read(bytes) } else { panic!() })
            .collect()
    }

    fn texts(&self, field: u64) -> Vec<String> {
        let text = |field: &Field| match field {
            Field::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        };
        self.all(field).iter().map(text).collect()
    }

    fn text(&self, field: u64) -> String {
        self.texts(field).remove(0)
    }

    fn integers(&self, field: u64) -> Vec<i64> {
        self.all(field)
            .iter()
            .map(|field| if let Field::Integer(value) = field { *value as i64 } else { panic!() })
            .collect()
    }

    fn bytes(&self, field: u64) -> &'a [u8] {
        let [Field::Bytes(bytes) | Field::Fixed(bytes)] = self.all(field) else { panic!("{:?}", self.all(field)) };
        bytes
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Saves the parameters of a reference file as a model, with classes.
fn model(folder: &Path, reference: &str, wrapper: &str) -> PathBuf {
    let file = TensorFile::open(&fixture(reference)).unwrap();
    let names: Vec<&str> = file.names().filter_map(|name| name.strip_prefix("param/")).collect();
    let tensors: Vec<OutputTensor> = names
        .iter()
        .map(|name| {
            let key = format!("param/{name}");
            let entry = file.entry(&key).unwrap();
            OutputTensor::bytes(format!("{wrapper}{name}"), entry.dtype, &entry.shape, file.bytes(&key).unwrap())
        })
        .collect();
    let classes: Vec<String> =
        (0..file.entry("param/fc.bias").unwrap().shape[0]).map(|class| format!("kind \"{class}\"")).collect();
    let metadata = BTreeMap::from([
        ("format".to_string(), "pt".to_string()),
        ("classes".to_string(), serde_json::to_string(&classes).unwrap()),
        ("transform".to_string(), "{\"center_crop\":48}".to_string()),
    ]);
    let path = folder.join("model.safetensors");
    save(&path, &tensors, &metadata).unwrap();
    path
}

#[test]
fn the_graph_is_complete_and_has_the_models_values() {
    let folder = tempfile::tempdir().unwrap();
    for (reference, convolutions, blocks, downsamples, wrapper) in [
        ("odd.safetensors", 20, 8, 3, ""),
        ("resnet34.safetensors", 36, 16, 3, "module."),
        ("resnet50.safetensors", 53, 16, 4, ""),
        ("wide-resnet50-2.safetensors", 53, 16, 4, ""),
    ] {
        let path = model(folder.path(), reference, wrapper);
        let file = TensorFile::open(&path).unwrap();
        let bytes = export(&ModelFile::describe(&file).unwrap()).unwrap();
        let onnx = Message::read(&bytes);
        assert_eq!((onnx.integers(1), onnx.text(2)), (vec![8], "retune".to_string()));
        assert_eq!(onnx.messages(8)[0].integers(2), [17]);
        let metadata: HashMap<String, String> =
            onnx.messages(14).iter().map(|pair| (pair.text(1), pair.text(2))).collect();
        let classes: Vec<String> = serde_json::from_str(&metadata["classes"]).unwrap();
        assert_eq!(classes[0], "kind \"0\"");
        let preprocessing: serde_json::Value = serde_json::from_str(&metadata["preprocessing"]).unwrap();
        assert_eq!((&preprocessing["center_crop"], &preprocessing["resize"]), (&48.into(), &55.into()));
        assert_eq!(preprocessing["mean"], serde_json::json!([0.485, 0.456, 0.406]));

        let graph = &onnx.messages(7)[0];
        let mut known: HashSet<String> = graph.messages(11).iter().map(|input| input.text(1)).collect();
        assert_eq!(known, HashSet::from(["input".to_string()]));
        let shape = |info: &Message| {
            let dims = info.messages(2)[0].messages(1)[0].messages(2)[0].messages(1);
            dims.iter().map(|dim| dim.integers(1).first().copied().unwrap_or(-1)).collect::<Vec<i64>>()
        };
        assert_eq!(shape(&graph.messages(11)[0]), [-1, 3, 48, 48], "a variable batch size");
        assert_eq!(shape(&graph.messages(12)[0]), [-1, classes.len() as i64]);
        let mut initialized = HashSet::new();
        for tensor in graph.messages(5) {
            let name = tensor.text(8);
            let entry = file.entry(&format!("{wrapper}{name}")).unwrap();
            let extents: Vec<usize> = tensor.integers(1).into_iter().map(|extent| extent as usize).collect();
            assert_eq!((extents, tensor.integers(2)), (entry.shape.clone(), vec![1]), "{name}");
            assert!(tensor.bytes(9) == file.bytes(&entry.name).unwrap(), "{name}");
            assert!(initialized.insert(name));
        }
        known.extend(initialized.iter().cloned());
        let mut used = HashSet::new();
        let mut operators: HashMap<String, usize> = HashMap::new();
        for node in graph.messages(1) {
            for input in node.texts(1) {
                assert!(known.contains(&input), "{input} is read before it is written");
                used.insert(input);
            }
            assert!(known.insert(node.text(2)), "{} is written twice", node.text(2));
            *operators.entry(node.text(4)).or_default() += 1;
            let strides = |name: &str| {
                node.messages(5)
                    .iter()
                    .find(|attribute| attribute.text(1) == name)
                    .map(|attribute| attribute.integers(8))
            };
            let bottleneck = initialized.contains("layer1.0.conv3.weight");
            if node.text(3) == if bottleneck { "layer2.0.conv2" } else { "layer2.0.conv1" } {
                assert_eq!((strides("strides"), strides("pads")), (Some(vec![2, 2]), Some(vec![1, 1, 1, 1])));
            }
            if bottleneck && node.text(3) == "layer1.0.bn3.add" {
                assert_eq!(node.texts(1), ["layer1.0.bn3", "layer1.0.downsample.1"]);
            }
        }
        assert!(used.contains("input") && known.contains("logits"));
        assert_eq!(initialized.difference(&used).count(), 0, "every value is used");
        for (operator, count) in [
            ("Conv", convolutions),
            ("BatchNormalization", convolutions),
            ("MaxPool", 1),
            ("Add", blocks),
            ("Relu", convolutions - downsamples),
            ("Gemm", 1),
        ] {
            assert_eq!(operators[operator], count, "{operator}");
        }
    }
}

fn retune(folder: &Path, line: &str) -> (i32, String, String) {
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_retune"));
    let output =
        command.args(line.split_whitespace()).current_dir(folder).env("CUDA_VISIBLE_DEVICES", "").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_converts_by_the_name_of_its_output() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    model(place, "odd.safetensors", "module.");
    // Six tensors are not a network, so each keeps its name in the file.
    for (form, nesting) in [("zip", ""), ("checkpoint", "state_dict."), ("strided-legacy", "")] {
        fs::copy(fixture(&format!("pth/{form}.pth")), place.join("in.pth")).unwrap();
        let (status, stdout, stderr) = retune(place, "convert in.pth out.safetensors");
        assert_eq!((status, stdout.as_str()), (0, "out.safetensors: 6 tensors, 3 KiB\n"), "{stderr}");
        assert!(stderr.starts_with("in.pth is a"), "{stderr}");
        let (ours, truth) = (place.join("out.safetensors"), fixture("pth/expected.safetensors"));
        let (ours, truth) = (TensorFile::open(&ours).unwrap(), TensorFile::open(&truth).unwrap());
        for entry in truth.entries() {
            let name = format!("{nesting}{}", entry.name);
            assert!(ours.bytes(&name).unwrap() == truth.bytes(&entry.name).unwrap(), "{form}: {name}");
            assert_eq!(ours.entry(&name).unwrap().shape, entry.shape);
        }
        assert_eq!(ours.metadata()["format"], "pt");
    }
    let (status, ..) = retune(place, "convert model.safetensors bare.safetensors");
    assert_eq!(status, 0);
    let bare = TensorFile::open(&place.join("bare.safetensors")).unwrap();
    assert!(bare.contains("conv1.weight") && bare.metadata()["classes"].contains("kind"));
    let (status, stdout, _) = retune(place, "convert model.safetensors model.onnx --json");
    assert_eq!(status, 0);
    let result: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(result["bytes"], fs::metadata(place.join("model.onnx")).unwrap().len());

    for (line, expected) in [
        (
            "convert model.safetensors model.tflite",
            "error: model.tflite: expected a name ending in .safetensors or .onnx\n",
        ),
        ("convert in.pth other.onnx", "error: "),
        ("convert nothing.pth other.onnx", "error: nothing.pth: no such file"),
    ] {
        let (status, stdout, stderr) = retune(place, line);
        assert!(status > 0 && stdout.is_empty() && stderr.contains(expected), "{line}: {stderr}");
        assert!(!place.join("other.onnx").exists());
    }
}

/// The event file contains all metrics, in order.
#[test]
fn tensorboard_gets_every_metric() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let draw = "demo --only-draw --source-per-class 2 --target-per-class 8 --out drawn";
    assert_eq!(retune(place, draw).0, 0);
    let train = "train drawn/pictures/target --from-scratch --width 4 --image-size 33 --batch-size 4 --epochs 2 --tensorboard --no-report --out run";
    let (status, _, stderr) = retune(place, train);
    assert_eq!(status, 0, "{stderr}");
    let files: Vec<PathBuf> = fs::read_dir(place.join("run"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("events.out.tfevents."))
        .collect();
    assert_eq!(files.len(), 1);
    let bytes = fs::read(&files[0]).unwrap();
    let mut rest = bytes.as_slice();
    let mut scalars: Vec<(i64, String, f32)> = Vec::new();
    let mut first = true;
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let event = Message::read(&rest[12..12 + length]);
        rest = &rest[16 + length..];
        if std::mem::take(&mut first) {
            assert_eq!(event.text(3), "brain.Event:2");
            continue;
        }
        for value in event.messages(5)[0].messages(1) {
            let number = f32::from_le_bytes(value.bytes(2).try_into().unwrap());
            scalars.push((event.integers(2)[0], value.text(1), number));
        }
    }
    let metrics = fs::read_to_string(place.join("run/metrics.jsonl")).unwrap();
    let mut expected = Vec::new();
    for line in metrics.lines() {
        let metric: serde_json::Value = serde_json::from_str(line).unwrap();
        let number = |name: &str| metric[name].as_f64().unwrap() as f32;
        let step = (metric["epoch"].as_f64().unwrap() * 4.0).round() as i64;
        if metric["kind"] == "progress" {
            expected.push((step, "loss/train".to_string(), number("train_loss")));
            expected.push((step, "accuracy/train".to_string(), number("train_acc")));
        } else {
            expected.push((step, "loss/test".to_string(), number("test_loss")));
            expected.push((step, "accuracy/test".to_string(), number("test_acc")));
            expected.push((step, "images_per_second".to_string(), number("images_per_second")));
        }
    }
    assert_eq!(scalars, expected);
    assert_eq!(expected.len(), 2 * (4 * 2 + 3));
}

/// The name that Hugging Face's transformers library gives to a key of torchvision.
fn name_of_transformers(key: &str) -> String {
    let layer = |rest: &str, part: &str| {
        let kind = if rest.starts_with("conv") { "convolution" } else { "normalization" };
        format!("{kind}.{part}")
    };
    let parts: Vec<&str> = key.split('.').collect();
    match parts.as_slice() {
        ["fc", part] => format!("classifier.1.{part}"),
        [stem, part] => format!("resnet.embedder.embedder.{}", layer(stem, part)),
        [stage, block, rest @ ..] => {
            let stage: usize = stage.strip_prefix("layer").unwrap().parse().unwrap();
            let block = format!("resnet.encoder.stages.{}.layers.{block}", stage - 1);
            match rest {
                ["downsample", "0", part] => format!("{block}.shortcut.convolution.{part}"),
                ["downsample", _, part] => format!("{block}.shortcut.normalization.{part}"),
                [name, part] => {
                    let number: usize = name[name.len() - 1..].parse().unwrap();
                    format!("{block}.layer.{}.{}", number - 1, layer(name, part))
                }
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn key_names_of_transformers_are_the_same_network() {
    let folder = tempfile::tempdir().unwrap();
    let path = model(folder.path(), "odd.safetensors", "");
    let file = TensorFile::open(&path).unwrap();
    let tensors: Vec<OutputTensor> = file
        .entries()
        .iter()
        .map(|entry| {
            let bytes = file.bytes(&entry.name).unwrap();
            OutputTensor::bytes(name_of_transformers(&entry.name), entry.dtype, &entry.shape, bytes)
        })
        .collect();
    let other = folder.path().join("transformers.safetensors");
    save(&other, &tensors, file.metadata()).unwrap();
    let theirs = TensorFile::open(&other).unwrap();
    let (ours, theirs) = (ModelFile::describe(&file).unwrap(), ModelFile::describe(&theirs).unwrap());
    let notice = "the weights have the key names of Hugging Face transformers";
    assert!(theirs.notices.iter().any(|one| one == notice), "{:?}", theirs.notices);
    assert!(export(&theirs).unwrap() == export(&ours).unwrap());
}
