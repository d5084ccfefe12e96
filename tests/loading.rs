//! The same network in every wrapper: nested dictionaries, prefixes, other tensors beside it, in each of the three kinds of file.
//! Every command that loads weights must find it.

mod torch_files;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use retune::device::cpu::Cpu;
use retune::model::ResNet;
use retune::train::{ModelFile, Network, find_network, load_model, load_state_dict, save_state_dict};
use retune::weights::{HeadPolicy, NamedShape, TensorFile};
use serde_json::Value as Json;
use tempfile::TempDir;

use torch_files::{Form, Value, int, write};

const CLASSES: usize = 3;
const PREFIXES: [&str; 10] = [
    "",
    "module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "model.",
    "backbone.",
    "net.model.",
    "resnet.",
    "a.b.c.d.",
    "state_dict.",
];
/// The dictionaries around the state dict, from the outermost.
const NESTINGS: [&[&str]; 6] =
    [&[], &["state_dict"], &["model"], &["a", "b"], &["model", "state_dict"], &["checkpoint", "net", "weights", "1"]];

fn resnet() -> ResNet {
    ResNet { architecture: "resnet18".parse().unwrap(), width: 4, classes: CLASSES }
}

/// Values that differ between tensors: positive, because variances must be, except for weights in sums.
fn state_dict() -> Vec<(String, Value)> {
    let mut state = 1u64;
    let tensor = |NamedShape { name, shape }| {
        let numbers = (0..shape.iter().product::<usize>()).map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            0.05 + (state >> 40) as f32 / (1 << 25) as f32 - if shape.len() > 1 { 0.3 } else { 0.0 }
        });
        let value = match name.ends_with("num_batches_tracked") {
            true => Value::integers(&shape, &[7]),
            false => Value::floats(&shape, &numbers.collect::<Vec<f32>>()),
        };
        (name, value)
    };
    resnet().state_dict().into_iter().map(tensor).collect()
}

/// One way to wrap a state dict.
#[derive(Debug, Clone, Copy)]
struct Wrapper {
    prefix: &'static str,
    nesting: &'static [&'static str],
    /// Whether there are other tensors beside the network.
    beside: bool,
    form: Form,
}

impl Wrapper {
    fn all() -> impl Iterator<Item = Self> {
        PREFIXES.into_iter().flat_map(|prefix| {
            NESTINGS.into_iter().flat_map(move |nesting| {
                [false, true].into_iter().flat_map(move |beside| {
                    Form::ALL.into_iter().map(move |form| Self { prefix, nesting, beside, form })
                })
            })
        })
    }

    /// The prefix of each key in the file.
    fn full_prefix(&self) -> String {
        self.nesting.iter().map(|key| format!("{key}.")).collect::<String>() + self.prefix
    }

    fn contents(&self) -> Value {
        let state = state_dict();
        let beside = others(&state);
        let keys = state.into_iter().map(|(name, value)| (format!("{}{name}", self.prefix), value));
        let mut value = Value::Dict(keys.collect());
        for (depth, key) in self.nesting.iter().rev().enumerate() {
            let mut entries = vec![(key.to_string(), value)];
            if self.beside && depth == 0 {
                entries.insert(0, ("best_acc1".into(), Value::floats(&[], &[0.5])));
                entries.push(("n_averaged".into(), Value::integers(&[], &[5])));
            }
            value = Value::Dict(entries);
        }
        let Value::Dict(mut entries) = value else { unreachable!() };
        if self.beside {
            entries.insert(0, ("criterion_weight".into(), Value::floats(&[2], &[1.0, 2.0])));
            entries.splice(0..0, beside);
        }
        Value::Dict(entries)
    }

    fn write(&self, path: &Path) {
        fs::write(path, write(self.form, &self.contents())).unwrap();
    }
}

/// What training scripts also save: gradients under the names of the parameters, and the state of the optimizer.
fn others(state: &[(String, Value)]) -> Vec<(String, Value)> {
    let is_parameter = |name: &str| !name.contains("running_") && !name.ends_with("num_batches_tracked");
    let parameters: Vec<&(String, Value)> = state.iter().filter(|(name, _)| is_parameter(name)).collect();
    let gradients = parameters.iter().map(|(name, value)| (name.clone(), value.zeros())).collect();
    let state = parameters.iter().take(3).enumerate().map(|(number, (_, value))| {
        let step = ("step".into(), Value::floats(&[], &[9.0]));
        (number.to_string(), Value::Dict(vec![step, ("exp_avg".into(), value.zeros())]))
    });
    let group = Value::Dict(vec![("lr".into(), int(1)), ("params".into(), Value::List(vec![int(0), int(1), int(2)]))]);
    let optimizer =
        vec![("state".to_owned(), Value::Dict(state.collect())), ("param_groups".to_owned(), Value::List(vec![group]))];
    vec![
        ("gradients".to_owned(), Value::Dict(gradients)),
        ("epoch".to_owned(), int(3)),
        ("optimizer".to_owned(), Value::Dict(optimizer)),
    ]
}

/// The network as this program writes it.
fn written(network: &Network, path: &Path) -> Vec<u8> {
    save_state_dict(network, path, &BTreeMap::new()).unwrap();
    fs::read(path).unwrap()
}

fn bare_file(path: &Path) {
    Wrapper { prefix: "", nesting: &[], beside: false, form: Form::Safetensors }.write(path);
}

#[test]
fn every_wrapper_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let [file, bare, ours] = ["file", "bare", "ours"].map(|name| folder.path().join(name));
    bare_file(&bare);
    let expected = written(&load_model(Rc::new(Cpu), &TensorFile::open(&bare).unwrap()).unwrap().0, &ours);
    let mut network = Network::new(Rc::new(Cpu), ResNet { classes: 2, ..resnet() }).unwrap();
    for wrapper in Wrapper::all() {
        wrapper.write(&file);
        let opened = TensorFile::open(&file).unwrap_or_else(|error| panic!("{wrapper:?}: {error}"));

        // `train` and `convert`.
        let found = find_network(&opened).unwrap_or_else(|error| panic!("{wrapper:?}: {error}"));
        assert_eq!(found.prefix, wrapper.full_prefix(), "{wrapper:?}");
        assert_eq!(found.network.resnet(9), resnet(), "{wrapper:?}");
        let report = load_state_dict(&mut network, &found.weights, HeadPolicy::Replace).unwrap();
        assert_eq!((report.matched, report.replaced_head.map(|head| head.len())), (120, Some(2)), "{wrapper:?}");

        // `inspect` and `convert` to ONNX.
        let model = ModelFile::describe(&opened).unwrap_or_else(|error| panic!("{wrapper:?}: {error}"));
        assert_eq!((model.resnet, model.classes.len()), (resnet(), CLASSES), "{wrapper:?}");

        // `eval` and `predict`.
        let (network, _) = load_model(Rc::new(Cpu), &TensorFile::open(&file).unwrap())
            .unwrap_or_else(|error| panic!("{wrapper:?}: {error}"));
        assert!(written(&network, &ours) == expected, "{wrapper:?}: other numbers");
    }
}

/// Whichever network has priority otherwise; the prefix may end with a dot.
#[test]
fn a_prefix_chooses_one_of_several_networks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let averaged: Vec<_> = state_dict().into_iter().map(|(name, value)| (name, value.zeros())).collect();
    for form in Form::ALL {
        let entries = [("model", state_dict()), ("ema", averaged.clone())];
        let entries = entries.map(|(name, weights)| (name.to_owned(), Value::Dict(weights)));
        fs::write(&path, write(form, &Value::Dict(entries.to_vec()))).unwrap();
        let open = |prefix: &str| TensorFile::open(&path).unwrap().choosing(prefix);
        for (prefix, other, is_average) in [("ema", "model.", true), ("ema.", "model.", true), ("model", "ema.", false)]
        {
            let file = open(prefix);
            let found = find_network(&file).unwrap();
            assert_eq!(found.prefix.trim_end_matches('.'), prefix.trim_end_matches('.'), "{form:?}");
            let first = found.weights.read_f32("bn1.weight").unwrap();
            assert!(first.iter().all(|&number| (number == 0.0) == is_average), "{form:?}");
            assert!(
                found.notices.iter().any(|notice| notice.starts_with(&format!("ignored 1 other network: `{other}`")))
            );
            // A model is read through the same choice.
            assert_eq!(ModelFile::describe(&file).unwrap().weights.read_f32("bn1.weight").unwrap(), first, "{form:?}");
        }
        for wrong in ["em", "ema.conv1", "teacher"] {
            let error = find_network(&open(wrong)).err().unwrap();
            let expected = format!("no network found under `{wrong}`, expected one of ");
            assert!(error.message().contains(&expected) && error.message().contains("`ema.`"), "{error}");
        }
    }
}

/// In either order: the order in a file means nothing.
#[test]
fn trained_weights_come_before_their_average() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let averaged: Vec<_> = state_dict().into_iter().map(|(name, value)| (name, value.zeros())).collect();
    for form in Form::ALL {
        for (average, trained) in [("state_dict_ema", "state_dict"), ("ema", "model"), ("model_ema", "net")] {
            let average = (average.to_owned(), Value::Dict(averaged.clone()));
            let weights = (trained.to_owned(), Value::Dict(state_dict()));
            for entries in [vec![average.clone(), weights.clone()], vec![weights.clone(), average.clone()]] {
                fs::write(&path, write(form, &Value::Dict(entries))).unwrap();
                let file = TensorFile::open(&path).unwrap();
                let found = find_network(&file).unwrap();
                assert_eq!(found.prefix, format!("{trained}."), "{form:?}");
                assert!(found.weights.read_f32("bn1.weight").unwrap().iter().all(|&number| number > 0.0));
                assert_eq!(
                    found.notices[1],
                    format!("ignored 1 other network: `{}.`; use --weights-key to choose another", average.0),
                    "{form:?}"
                );
            }
        }
    }
}

/// A softmax of one number is 1, whatever the image shows.
#[test]
fn a_single_output_is_no_classifier() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    let body = state_dict().into_iter().filter(|(name, _)| !name.starts_with("fc."));
    for (outputs, is_refused) in [(1, true), (2, false)] {
        let weight = Value::floats(&[outputs, 32], &vec![0.0; 32 * outputs]);
        let head = [
            ("fc.weight".to_string(), weight),
            ("fc.bias".to_string(), Value::floats(&[outputs], &vec![0.0; outputs])),
        ];
        fs::write(&path, write(Form::Zip, &Value::Dict(body.clone().chain(head).collect()))).unwrap();
        let file = TensorFile::open(&path).unwrap();
        let described = ModelFile::describe(&file);
        assert_eq!(described.is_err(), is_refused);
        if let Err(error) = described {
            assert!(error.message().contains("the final layer of the resnet18 has one output"), "{error}");
            assert!(error.hint_text().unwrap().contains("retune train DATA --weights FILE"), "{error}");
        }
    }
}

#[test]
fn without_a_final_layer_the_keys_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    let body = state_dict().into_iter().filter(|(name, _)| !name.starts_with("fc."));
    let sequential = body.clone().map(|(name, value)| {
        let (module, rest) = name.split_once('.').unwrap();
        let children = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"];
        (format!("{}.{rest}", children.iter().position(|child| *child == module).unwrap()), value)
    });
    let none = "has no final layer (fc)";
    let layer = |name: &str| (name.to_owned(), Value::floats(&[16, 32], &[0.0; 512]));
    let body_and = |layers: &[&str]| Value::Dict(body.clone().chain(layers.iter().map(|name| layer(name))).collect());
    for (state, reason) in [
        (body_and(&[]), format!("{none}; the keys of the file are conv1.weight, bn1.weight, bn1.bias, ...")),
        (body_and(&["out.weight"]), format!("{none}; keys of no network are out.weight")),
        (
            body_and(&["projector.0.weight"]),
            "has no single final layer: its head is projector.0, expected the tensors fc.weight and fc.bias".into(),
        ),
        (
            body_and(&["fc.0.weight", "fc.3.weight"]),
            "has no single final layer: its head is fc.0, fc.3, expected the tensors fc.weight and fc.bias".into(),
        ),
        (
            Value::Dict(sequential.clone().collect()),
            format!("{none}; the keys of the file are 0.weight, 1.weight, 1.bias, ..."),
        ),
        (
            Value::Dict(vec![("state_dict".into(), Value::Dict(sequential.clone().collect()))]),
            format!(
                "{none}; the keys of the file are state_dict.0.weight, state_dict.1.weight, state_dict.1.bias, ..."
            ),
        ),
    ] {
        fs::write(&path, write(Form::Zip, &state)).unwrap();
        let error = ModelFile::describe(&TensorFile::open(&path).unwrap()).unwrap_err();
        assert_eq!(error.message(), format!("{}: the resnet18 {reason}", path.display()));
        assert!(error.hint_text().unwrap().contains("retune train DATA --weights FILE"), "{error}");
    }
}

/// The program in a folder with the network twice: bare, and in a wrapper with everything.
struct Place(TempDir);

impl Place {
    const WRAPPER: Wrapper = Wrapper { prefix: "net.model.", nesting: &["a", "b"], beside: true, form: Form::Zip };

    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        bare_file(&place.path("bare.safetensors"));
        Self::WRAPPER.write(&place.path("wrapped.pth"));
        for (class, colour) in [("0", [40, 60, 200]), ("1", [40, 190, 60]), ("2", [200, 60, 40])] {
            for (split, images) in [("train", 6), ("test", 3)] {
                let folder = format!("data/{split}/{class}");
                fs::create_dir_all(place.path(&folder)).unwrap();
                for number in 0..images {
                    let image =
                        image::RgbImage::from_fn(40, 40, |x, y| image::Rgb(colour.map(|c| c + (x * number + y) as u8)));
                    image.save(place.path(&format!("{folder}/{number}.png"))).unwrap();
                }
            }
        }
        place
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// Standard output and standard error of a command that succeeds.
    fn run(&self, line: &str) -> (String, String) {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args(line.split_whitespace()).current_dir(self.0.path()).env("CUDA_VISIBLE_DEVICES", "");
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        assert!(output.status.success(), "retune {line}: {stderr}");
        (stdout, stderr)
    }

    /// Standard error of a command that fails.
    fn error(&self, line: &str) -> String {
        let (status, error) = self.refusal(line);
        assert_eq!(status, 1, "retune {line}: {error}");
        error
    }

    fn refusal(&self, line: &str) -> (i32, String) {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args(line.split_whitespace()).current_dir(self.0.path()).env("CUDA_VISIBLE_DEVICES", "");
        let output = command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", self.0.path()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    fn json(&self, line: &str) -> Json {
        serde_json::from_str(&self.run(line).0).unwrap()
    }

    /// The tensors of a file by name.
    fn tensors(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let file = TensorFile::open(&self.path(name)).unwrap();
        file.names().map(|name| (name.to_owned(), file.bytes(name).unwrap().to_vec())).collect()
    }
}

#[test]
fn predict_and_eval_find_it() {
    let place = Place::new();
    let predicted =
        |file: &str| place.json(&format!("predict {file} data/test/2/1.png data/test/0/0.png --json --logits"));
    let logits = predicted("bare.safetensors");
    assert!(logits[0]["logits"].as_array().unwrap().iter().all(Json::is_number), "{logits}");
    assert_ne!(logits[0]["logits"], logits[1]["logits"]);
    assert_eq!(predicted("wrapped.pth"), logits);
    let evaluated = |file: &str| place.json(&format!("eval {file} data --json"));
    assert_eq!(evaluated("wrapped.pth"), evaluated("bare.safetensors"));
}

#[test]
fn inspect_finds_it() {
    let place = Place::new();
    let (bare, wrapped) = (place.json("inspect bare.safetensors --json"), place.json("inspect wrapped.pth --json"));
    assert_eq!((&bare["prefix"], &wrapped["prefix"]), (&"".into(), &"a.b.net.model.".into()));
    for field in ["architecture", "width", "classes", "parameters", "head_parameters"] {
        assert_eq!(wrapped[field], bare[field], "{field}");
    }
}

#[test]
fn convert_finds_it() {
    let place = Place::new();
    let (_, notes) = place.run("convert wrapped.pth out.safetensors");
    assert!(notes.contains("weights found under `a.b.net.model.`"), "{notes}");
    assert!(place.tensors("out.safetensors") == place.tensors("bare.safetensors"));
    for (file, out) in [("wrapped.pth", "wrapped.onnx"), ("bare.safetensors", "bare.onnx")] {
        place.run(&format!("convert {file} {out}"));
    }
    assert!(fs::read(place.path("wrapped.onnx")).unwrap() == fs::read(place.path("bare.onnx")).unwrap());
}

#[test]
fn train_finds_it() {
    let place = Place::new();
    for (file, out) in [("wrapped.pth", "from-wrapped"), ("bare.safetensors", "from-bare")] {
        place.run(&format!(
            "train data --weights {file} --epochs 1 --image-size 33 --batch-size 6 --quiet --no-report --out {out}"
        ));
    }
    let [wrapped, bare] = ["from-wrapped", "from-bare"].map(|run| place.tensors(&format!("{run}/model.safetensors")));
    assert!(wrapped == bare && bare != place.tensors("bare.safetensors"));
}

#[test]
fn a_run_or_a_short_name_can_be_given_instead_of_a_file() {
    let place = Place::new();
    place.run("train data --weights bare.safetensors --epochs 1 --image-size 33 --batch-size 6 --no-report --out run");
    let predicted = |model: &str| place.run(&format!("predict {model} data/test/2/1.png"));
    assert_eq!(predicted("run").0, predicted("run/model.safetensors").0);
    assert_eq!(place.run("eval run data").0, place.run("eval run/model.safetensors data").0);
    let error = place.error("predict data data/test/2/1.png");
    assert!(error.starts_with("error: data is a folder without a model.safetensors\nhint: "), "{error}");

    // Before a file of that name is in `weights`, it is torchvision's network on the Hub.
    let error = place.error("predict resnet18 data/test/2/1.png");
    assert!(error.starts_with("error: timm/resnet18.tv_in1k: not cached in "), "{error}");
    let error = place.error("predict nonsense data/test/2/1.png");
    let expected = "error: nonsense: no such file or folder, and no weights/nonsense.pth\nhint: ";
    assert!(error.starts_with(expected), "{error}");
    fs::create_dir(place.path("weights")).unwrap();
    fs::copy(place.path("bare.safetensors"), place.path("weights/resnet18-0123abcd.safetensors")).unwrap();
    fs::copy(place.path("bare.safetensors"), place.path("weights/resnet180.safetensors")).unwrap();
    fs::write(place.path("weights/resnet18-notes.txt"), "no weights").unwrap();
    let (output, notes) = predicted("resnet18");
    assert_eq!(output, predicted("bare.safetensors").0);
    assert!(notes.contains("using weights/resnet18-0123abcd.safetensors"), "{notes}");
    // These are the weights that a network is trained from unless others are named.
    const TRAIN: &str = "train data --recipe lesson --epochs 1 --image-size 33 --batch-size 6 --no-report";
    let (_, notes) = place.run(&format!("{TRAIN} --out default"));
    let told = "ImageNet weights of resnet18; --weights names others, --from-scratch starts from random ones\n\
                using weights/resnet18-0123abcd.safetensors\n";
    assert!(notes.starts_with(told), "{notes}");
    place.run(&format!("{TRAIN} --weights bare.safetensors --out named"));
    let [default, named] = ["default", "named"].map(|run| place.tensors(&format!("{run}/model.safetensors")));
    assert!(default == named);
    for flag in ["--arch resnet50", "--config runs/x/recipe.toml"] {
        fs::create_dir_all(place.path("runs/x")).unwrap();
        fs::write(place.path("runs/x/recipe.toml"), "architecture = \"resnet50\"\n").unwrap();
        let error = place.error(&format!("train data {flag} --epochs 1"));
        assert!(error.contains("error: timm/resnet50.tv_in1k: not cached in "), "{error}");
    }
    fs::copy(place.path("wrapped.pth"), place.path("weights/resnet18.pth")).unwrap();
    let error = place.error("predict resnet18 data/test/2/1.png");
    let files = "weights/resnet18-0123abcd.safetensors, weights/resnet18.pth";
    assert!(error.starts_with(&format!("error: resnet18 matches several files: {files}\nhint: ")), "{error}");
}

#[test]
fn the_key_of_weights_is_an_option_of_every_command() {
    let place = Place::new();
    let averaged: Vec<_> = state_dict().into_iter().map(|(name, value)| (name, value.zeros())).collect();
    let both = [("model", state_dict()), ("ema", averaged)].map(|(name, dict)| (name.to_owned(), Value::Dict(dict)));
    fs::write(place.path("both.pth"), write(Form::Zip, &Value::Dict(both.to_vec()))).unwrap();
    let image = "data/test/2/1.png";
    let chosen = |key: &str| place.json(&format!("predict both.pth {image} --json --logits {key}"));
    assert_eq!(chosen(""), place.json(&format!("predict bare.safetensors {image} --json --logits")));
    let zeros = chosen("--weights-key ema");
    assert!(zeros[0]["logits"].as_array().unwrap().iter().all(|logit| logit == 0.0), "{zeros}");
    assert_ne!(place.run("eval both.pth data --weights-key ema").0, place.run("eval both.pth data").0);
    assert_eq!(place.json("inspect both.pth --json --weights-key ema")["prefix"], "ema.");
    place.run("convert both.pth out.safetensors --weights-key ema");
    assert!(place.tensors("out.safetensors")["fc.weight"].iter().all(|&byte| byte == 0));
    let train = "train data --epochs 1 --image-size 33 --batch-size 6 --no-report --lr 1e-30 --out run";
    place.run(&format!("{train} --weights both.pth --weights-key ema"));
    assert!(place.tensors("run/model.safetensors")["conv1.weight"].iter().all(|&byte| byte == 0));
    let error = place.error("predict both.pth data/test/2/1.png --weights-key teacher");
    let expected = "error: both.pth: no network found under `teacher`, expected one of `model.`, `ema.`\n";
    assert_eq!(error, expected);
    for line in [
        "eval both.pth data --weights-key teacher",
        "convert both.pth none.safetensors --weights-key teacher",
        "convert both.pth none.onnx --weights-key teacher",
        "inspect both.pth --weights-key teacher",
        "inspect both.pth --plan --weights-key teacher",
        "train data --weights both.pth --weights-key teacher --out none",
    ] {
        assert!(place.error(line).ends_with(expected), "{line}");
    }
    let error = place.refusal("train data --from-scratch --weights-key teacher --out none");
    assert_eq!(
        error,
        (2, "error: --weights-key teacher: no --weights are given\nhint: leave --weights-key out\n".into())
    );
    for name in ["none", "none.safetensors", "none.onnx"] {
        assert!(!place.path(name).exists(), "{name}");
    }
}

/// Code in place of a tensor is not run, and the tensor that lacks is named with it.
#[test]
fn an_object_in_place_of_a_tensor_is_named() {
    let place = Place::new();
    for form in [Form::Zip, Form::Legacy] {
        for (key, object, name) in [
            ("fc.bias", Value::Object("builtins", "eval"), "builtins.eval"),
            ("layer4.0.conv1.weight", Value::Object("numpy", "ndarray"), "numpy.ndarray"),
            ("layer1.0.conv1.weight", Value::Object("a.b", "C"), "a.b.C"),
        ] {
            let mut entries = state_dict();
            entries.iter_mut().filter(|(name, _)| name == key).for_each(|(_, value)| *value = object.clone());
            fs::write(place.path("w.pth"), write(form, &Value::Dict(vec![("net".into(), Value::Dict(entries))])))
                .unwrap();
            // A copy without the tensor would be silently incomplete.
            let error = place.error("convert w.pth copy.safetensors");
            assert!(error.contains("cannot be written") && error.contains(key) && error.contains(name), "{error}");
            assert!(!place.path("copy.safetensors").exists());
            let error = place.error("predict w.pth data/test/2/1.png");
            let key = if key == "fc.bias" { key.to_string() } else { format!("net.{key}") };
            let hint =
                format!("hint: `{key}` is not a plain tensor in the file: it depends on the Python object {name}, ");
            assert!(error.contains(&hint), "{error}");
        }
    }
}

/// A tensor of another kind is named with its kind, also in the final layer.
#[test]
fn a_tensor_that_is_not_plain_is_named() {
    let place = Place::new();
    for (function, kind) in [("_rebuild_sparse_tensor", "it is sparse"), ("_rebuild_qtensor", "it is quantised")] {
        let mut entries = state_dict();
        let value = Value::Object("torch._utils", function);
        entries.iter_mut().filter(|(name, _)| name == "fc.weight").for_each(|(_, found)| *found = value.clone());
        fs::write(place.path("w.pth"), write(Form::Zip, &Value::Dict(entries))).unwrap();
        let error = place.error("predict w.pth data/test/2/1.png");
        assert!(error.contains("has no complete final layer: fc.weight is not a plain tensor"), "{error}");
        assert!(error.contains(kind), "{error}");
        let error = place.error("convert w.pth copy.safetensors");
        assert!(error.contains(&format!("1 tensor cannot be written (`fc.weight`: {kind})")), "{error}");
        let expected = serde_json::json!([{"name": "fc.weight", "reason": kind}]);
        assert_eq!(place.json("inspect w.pth --json")["not_plain"], expected);
        assert!(!place.path("copy.safetensors").exists());
    }
}

/// Files of PyTorch in which there are no tensors to find, and files without their end.
#[test]
fn a_file_without_a_state_dict_says_what_it_contains() {
    let tensor = || state_dict().into_iter().next().unwrap().1;
    let object = |module, name| Value::Dict(vec![("w".into(), Value::Object(module, name))]);
    let whole = write(Form::Zip, &Value::Dict(state_dict()));
    let cases = [
        (
            write(Form::Zip, &tensor()),
            "it is a single tensor, expected a dictionary of tensors",
            "torch.save(model.state_dict()",
        ),
        (
            write(Form::Zip, &object("numpy._core.multiarray", "_reconstruct")),
            "it contains NumPy arrays, no tensors",
            "torch.from_numpy",
        ),
        (
            write(Form::Zip, &object("__main__", "Net")),
            "it contains no tensors outside Python objects such as __main__.Net",
            "load it in Python",
        ),
        (
            write(Form::Zip, &Value::Dict(vec![("epoch".into(), int(3))])),
            "it contains no tensors",
            "torch.save(model.state_dict()",
        ),
        (
            whole[..whole.len() - 9].to_vec(),
            "it is truncated: the directory at the end of its zip archive is missing",
            "download or copy",
        ),
        (
            whole[..whole.len() / 2].to_vec(),
            "it is truncated: the directory at the end of its zip archive is missing",
            "download or copy",
        ),
    ];
    for (bytes, reason, fix) in cases {
        let error = TensorFile::from_bytes(Path::new("w.pth"), bytes).unwrap_err();
        let expected = format!("w.pth cannot be read as a .pth file of PyTorch: {reason}");
        assert!(error.message().starts_with(&expected), "expected {reason:?}, found {error}");
        assert!(error.hint_text().unwrap().contains(fix), "{error}");
    }
    let old = write(Form::Legacy, &Value::Dict(state_dict()));
    for bytes in [&old[..old.len() - 1], &old[..old.len() / 2]] {
        let error = TensorFile::from_bytes(Path::new("w.pth"), bytes.to_vec()).unwrap_err();
        assert!(error.message().contains("it is truncated"), "{error}");
        assert_eq!(error.hint_text(), Some("download or copy it again"));
    }
}

/// However many tensors are of another kind, each is known to be missing.
#[test]
fn many_tensors_that_are_not_plain_are_counted() {
    let place = Place::new();
    let mut entries = state_dict();
    entries.truncate(1);
    let object = |number| (format!("net.{number}.weight"), Value::Object("torch._utils", "_rebuild_sparse_tensor"));
    entries.extend((0..300).map(object));
    fs::write(place.path("w.pth"), write(Form::Zip, &Value::Dict(entries))).unwrap();
    let error = place.error("convert w.pth copy.safetensors");
    assert!(error.contains("300 tensors cannot be written"), "{error}");
}

/// Weights with as many classes as ImageNet, and no names for them.
#[test]
fn predict_names_the_classes_of_imagenet() {
    let place = Place::new();
    let save = |name: &str, classes: usize| {
        let mut network = state_dict();
        let mut bias = vec![0.0; classes];
        bias[classes - 66] = 50.0;
        for (name, value) in &mut network {
            match name.as_str() {
                "fc.weight" => *value = Value::floats(&[classes, 32], &vec![0.0; 32 * classes]),
                "fc.bias" => *value = Value::floats(&[classes], &bias),
                _ => {}
            }
        }
        fs::write(place.path(name), write(Form::Safetensors, &Value::Dict(network))).unwrap();
        place.run(&format!("predict {name} data/test/2/1.png --top 1"))
    };
    let (output, notes) = save("imagenet.safetensors", 1000);
    assert_eq!(output, "data/test/2/1.png: hot dog 1.000\n");
    assert!(notes.contains("the weights have no class names: using those of ImageNet"), "{notes}");
    assert_eq!(save("other.safetensors", 999), ("data/test/2/1.png: 933 1.000\n".into(), String::new()));
    // Where no image is read, the names concern nobody.
    fs::write(place.path("no.jpg"), "no image").unwrap();
    let error = place.error("predict imagenet.safetensors no.jpg");
    assert!(!error.contains("ImageNet"), "{error}");
    // Every command uses them.
    let (text, _) = place.run("inspect imagenet.safetensors");
    assert!(text.contains("classes     1000: tench, goldfish, "), "{text}");
    fs::create_dir_all(place.path("photos/hot dog")).unwrap();
    fs::create_dir_all(place.path("photos/tench")).unwrap();
    fs::copy(place.path("data/test/2/1.png"), place.path("photos/hot dog/1.png")).unwrap();
    fs::copy(place.path("data/test/2/0.png"), place.path("photos/tench/0.png")).unwrap();
    let (text, notes) = place.run("eval imagenet.safetensors photos");
    assert!(text.contains("\n1 of 1 image of tench predicted as hot dog\n"), "{text}");
    assert!(notes.contains("using those of ImageNet"), "{notes}");
}
