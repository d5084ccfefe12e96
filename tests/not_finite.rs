//! Numbers that are not finite: every command that loads weights rejects them, names tensor and file, and shows no such number
//! as a result.

mod torch_files;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use half::{bf16, f16};
use image::{Rgb, RgbImage};
use retune::model::ResNet;
use retune::weights::NamedShape;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tempfile::TempDir;

use torch_files::{Form, Value, write};

/// A folder with `data/train` and `data/test` of two classes of a few images each.
fn place() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (split, count) in [("train", 6u8), ("test", 2)] {
        for (class, colour) in [("0", [40, 60, 200]), ("1", [200, 60, 40])] {
            let path = folder.path().join(format!("data/{split}/{class}"));
            fs::create_dir_all(&path).unwrap();
            for number in 0..count {
                let colour = Rgb(colour.map(|channel: u8| channel + number));
                RgbImage::from_pixel(40, 40, colour).save(path.join(format!("{number}.png"))).unwrap();
            }
        }
    }
    folder
}

/// Exit status, standard output and standard error.
fn run(folder: &Path, line: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
    command.args(line.split_whitespace()).current_dir(folder).env("CUDA_VISIBLE_DEVICES", "");
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// The state dict of a small network, with one element set to `fault`.
fn damaged(tensor: &str, fault: f32) -> Value {
    let resnet = ResNet { architecture: "resnet18".parse().unwrap(), width: 4, classes: 2 };
    let state = resnet.state_dict().into_iter().map(|NamedShape { name, shape }| {
        let elements = shape.iter().product::<usize>();
        let value = match name.ends_with("num_batches_tracked") {
            true => Value::integers(&shape, &[7]),
            false => {
                let scale = if shape.len() > 1 { -0.1 } else { 1.0 };
                let mut numbers: Vec<f32> = (0..elements).map(|n| scale * (0.1 + (n % 7) as f32 / 10.0)).collect();
                if name == tensor {
                    numbers[elements / 2] = fault;
                }
                Value::floats(&shape, &numbers)
            }
        };
        (name, value)
    });
    Value::Dict(state.collect())
}

const FAULTS: [(&str, f32, &str); 6] = [
    ("conv1.weight", f32::NAN, "has 1 NaN of 588 values, expected finite ones"),
    ("layer2.0.downsample.0.weight", f32::INFINITY, "has 1 infinite of 32 values, expected finite ones"),
    ("layer4.1.bn2.running_mean", f32::NEG_INFINITY, "has 1 infinite of 32 values, expected finite ones"),
    ("bn1.running_var", f32::NAN, "has 1 NaN of 4 values, expected finite ones that are not negative"),
    ("bn1.running_var", -0.5, "has 1 negative of 4 values, expected finite ones that are not negative"),
    ("fc.bias", f32::NAN, "has 1 NaN of 2 values, expected finite ones"),
];

fn commands(model: &str) -> Vec<String> {
    const RUN: &str = "--image-size 33 --batch-size 4 --epochs 1 --out run";
    vec![
        format!("train data --weights {model} {RUN}"),
        format!("train data --weights {model} --head-from 1,0 {RUN}"),
        format!("eval {model} data"),
        format!("predict {model} data/test/1/0.png"),
        format!("predict {model} data/test/1/0.png --json --logits"),
        format!("convert {model} out.safetensors"),
        format!("convert {model} out.onnx"),
    ]
}

#[test]
fn every_command_that_loads_weights_refuses_them() {
    let folder = place();
    for form in Form::ALL {
        let model = if form == Form::Safetensors { "weights.safetensors" } else { "weights.pth" };
        for (tensor, fault, expected) in FAULTS {
            fs::write(folder.path().join(model), write(form, &damaged(tensor, fault))).unwrap();
            for line in commands(model) {
                // A final layer that is replaced is not loaded.
                if tensor.starts_with("fc.") && line.starts_with("train") && !line.contains("--head-from") {
                    continue;
                }
                let (status, stdout, stderr) = run(folder.path(), &line);
                assert_eq!((status, stdout.as_str()), (1, ""), "{form:?}, {tensor}: {line}: {stderr}");
                let message = format!("error: {model}: tensor {tensor} {expected}\n");
                assert!(stderr.contains(&message), "{form:?}, {tensor}: {line}: {stderr}");
                assert!(!folder.path().join("run").exists(), "{line}: no run was created");
            }
        }
        fs::write(folder.path().join(model), write(form, &damaged("", 0.0))).unwrap();
        let (status, _, stderr) = run(folder.path(), &format!("eval {model} data"));
        assert_eq!(status, 0, "{form:?}: without a fault: {stderr}");
    }
}

/// Every floating-point type; a value that float32 cannot hold is infinite in it.
#[test]
fn in_every_type_of_element() {
    let folder = place();
    let bytes = write(Form::Safetensors, &damaged("", 0.0));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let cases: [(Dtype, Vec<u8>, &str); 5] = [
        (Dtype::F16, f16::NAN.to_le_bytes().repeat(4), "4 NaN"),
        (Dtype::BF16, bf16::INFINITY.to_le_bytes().repeat(4), "4 infinite"),
        (Dtype::F32, f32::NEG_INFINITY.to_le_bytes().repeat(4), "4 infinite"),
        (Dtype::F64, f64::NAN.to_le_bytes().repeat(4), "4 NaN"),
        (Dtype::F64, 1e300f64.to_le_bytes().repeat(4), "4 infinite"),
    ];
    for (dtype, fault, expected) in cases {
        let views = file.tensors().into_iter().map(|(name, view)| match name == "bn1.bias" {
            true => (name, TensorView::new(dtype, vec![4], &fault).unwrap()),
            false => (name, view),
        });
        fs::write(folder.path().join("w.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        for line in commands("w.safetensors") {
            let (status, stdout, stderr) = run(folder.path(), &line);
            assert_eq!((status, stdout.as_str()), (1, ""), "{dtype:?}: {line}: {stderr}");
            let message = format!("tensor bn1.bias has {expected} of 4 values, expected finite ones\n");
            assert!(stderr.contains(&message), "{dtype:?}: {line}: {stderr}");
        }
    }
}

#[test]
fn several_damaged_tensors_are_counted() {
    let folder = place();
    let Value::Dict(entries) = damaged("", 0.0) else { unreachable!() };
    let entries = entries.into_iter().map(|(name, value)| match name.ends_with("running_var") {
        true => (name, Value::floats(&[4], &[f32::NAN; 4])),
        false => (name, value),
    });
    let value = Value::Dict(entries.filter(|(name, _)| !name.starts_with("layer")).collect());
    fs::write(folder.path().join("w.pth"), write(Form::Zip, &value)).unwrap();
    // Not a network, but its tensors are copied.
    let (status, _, stderr) = run(folder.path(), "convert w.pth out.safetensors");
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains("w.pth: tensor bn1.running_var has 4 NaN of 4 values"), "{stderr}");

    let Value::Dict(entries) = damaged("conv1.weight", f32::NAN) else { unreachable!() };
    let entries = entries.into_iter().map(|(name, value)| match name == "bn1.running_var" {
        true => (name, Value::floats(&[4], &[f32::NAN, -1.0, f32::INFINITY, 1.0])),
        false => (name, value),
    });
    fs::write(folder.path().join("w.pth"), write(Form::Legacy, &Value::Dict(entries.collect()))).unwrap();
    let (_, _, stderr) = run(folder.path(), "eval w.pth data");
    let message =
        "tensor conv1.weight has 1 NaN of 588 values, expected finite ones; 1 other tensor of the file is damaged";
    assert!(stderr.contains(message), "{stderr}");
}

/// Rewrites a safetensors file with NaN as the first element of a tensor.
fn damage(path: &PathBuf, tensor: &str) {
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let found = file.tensor(tensor).unwrap();
    let nan = [&f32::NAN.to_le_bytes()[..], &found.data()[4..]].concat();
    let views = file.tensors().into_iter().map(|(name, view)| match name == tensor {
        true => (name, TensorView::new(view.dtype(), view.shape().to_vec(), &nan).unwrap()),
        false => (name, view),
    });
    fs::write(path, safetensors::serialize(views, header.metadata().clone()).unwrap()).unwrap();
}

#[test]
fn files_of_a_run_that_were_damaged_are_refused() {
    let folder = place();
    let small = "--from-scratch --width 4 --image-size 33 --batch-size 4 --momentum 0.9 --out run";
    assert_eq!(run(folder.path(), &format!("train data {small} --epochs 1")).0, 0);
    let page = fs::read(folder.path().join("run/report.html")).unwrap();

    let intact = fs::read(folder.path().join("run/checkpoint.safetensors")).unwrap();
    for tensor in ["param/layer1.0.bn1.running_var", "param/fc.weight", "velocity/fc.weight"] {
        fs::write(folder.path().join("run/checkpoint.safetensors"), &intact).unwrap();
        damage(&folder.path().join("run/checkpoint.safetensors"), tensor);
        let (status, _, stderr) = run(folder.path(), "train data --resume --epochs 2 --out run");
        assert_eq!(status, 1, "{stderr}");
        let message = format!("error: run/checkpoint.safetensors: tensor {tensor} has 1 NaN of ");
        assert!(stderr.contains(&message), "{stderr}");
    }

    damage(&folder.path().join("run/model.safetensors"), "layer1.0.conv1.weight");
    let (status, _, stderr) = run(folder.path(), "report run");
    assert_eq!(status, 1, "{stderr}");
    let message =
        "error: run/model.safetensors: tensor layer1.0.conv1.weight has 1 NaN of 144 values, expected finite ones\n";
    assert!(stderr.contains(message), "{stderr}");
    assert!(page == fs::read(folder.path().join("run/report.html")).unwrap(), "the page is as it was");
}

#[test]
fn a_damaged_reference_file_is_refused() {
    let folder = place();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-image.safetensors");
    for tensor in ["param/conv1.weight", "grad/conv1.weight", "input", "logits"] {
        let path = folder.path().join("reference.safetensors");
        fs::copy(&fixture, &path).unwrap();
        damage(&path, tensor);
        let (status, _, stderr) = run(folder.path(), "gradcheck reference.safetensors");
        assert_eq!(status, 1, "{tensor}: {stderr}");
        assert!(stderr.contains(&format!("reference.safetensors: tensor {tensor} has 1 NaN of ")), "{stderr}");
    }
}

/// Weights that are finite, but so large that the outputs are not.
#[test]
fn outputs_that_are_not_finite_are_no_result() {
    let folder = place();
    fs::write(folder.path().join("w.safetensors"), write(Form::Safetensors, &damaged("fc.weight", 3e38))).unwrap();
    let mut state = damaged("", 0.0);
    let Value::Dict(entries) = &mut state else { unreachable!() };
    for (name, value) in entries {
        if name == "fc.weight" {
            *value = Value::floats(&[2, 32], &[3e38; 64]);
        }
    }
    fs::write(folder.path().join("w.safetensors"), write(Form::Safetensors, &state)).unwrap();
    for line in
        ["predict w.safetensors data/test/1/0.png", "predict w.safetensors data --json", "eval w.safetensors data"]
    {
        let (status, stdout, stderr) = run(folder.path(), line);
        assert_eq!((status, stdout.as_str()), (1, ""), "{line}: {stderr}");
        assert!(stderr.contains(".png: the outputs of the network are not finite"), "{line}: {stderr}");
    }
}

#[test]
fn a_run_names_the_likely_cause() {
    let folder = place();
    let large = write(Form::Safetensors, &damaged("layer4.1.bn2.weight", 3e38));
    fs::write(folder.path().join("w.safetensors"), large).unwrap();
    let line = "train data --weights w.safetensors --image-size 33 --batch-size 4 --epochs 1 --quiet --out run";
    let (status, stdout, stderr) = run(folder.path(), line);
    assert_eq!((status, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.contains("hint: no update was made yet, so the learning rate is not the cause"), "{stderr}");

    let line =
        "train data --from-scratch --width 4 --image-size 33 --batch-size 4 --epochs 3 --lr 1e30 --quiet --out run";
    let (status, stdout, stderr) = run(folder.path(), line);
    assert_eq!((status, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.contains("hint: use a smaller learning rate"), "{stderr}");
    assert!(!folder.path().join("run/model.safetensors").exists(), "no model of such a run is kept");
}

/// A learning rate with which the training losses of the only step are finite, but the updated weights are not.
#[test]
fn a_test_loss_that_is_not_finite_ends_the_run() {
    let folder = place();
    for rate in ["1e30", "1e36", "3e38"] {
        let _ = fs::remove_dir_all(folder.path().join("run"));
        // One step per epoch: only the test shows its effect.
        let line = format!(
            "train data --from-scratch --width 4 --image-size 33 --batch-size 12 --epochs 1 --lr {rate} --quiet --out run"
        );
        let (status, stdout, stderr) = run(folder.path(), &line);
        assert_eq!((status, stdout.as_str()), (1, ""), "{rate}: {stderr}");
        assert!(stderr.contains("not finite") || stderr.contains("expected finite"), "{rate}: {stderr}");
        assert!(stderr.contains("hint: use a smaller learning rate"), "{rate}: {stderr}");
        assert!(!folder.path().join("run/model.safetensors").exists(), "{rate}: no model of such a run is kept");
    }
}
