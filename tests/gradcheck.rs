//! Whole networks on every device, compared with reference files: the project's own, and those in the folder that
//! `RETUNE_SHARED` names.

mod reference;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use half::bf16;
use reference::devices::{PRECISIONS, devices, kernel_devices, run_at_lower_levels};
use reference::recorder::Recorder;
use reference::rounding::RoundingDevice;
use reference::{Random, relative_error};
use retune::device::cpu::Cpu;
use retune::device::{Device, Precision, read_f32, threads};
use retune::gradcheck::{GradcheckReport, gradcheck};
use retune::model::{Architecture, BatchShape, Freezing, ResNet};
use retune::ops::LossReduction;
use retune::optim::{Grouping, OptimizerSettings};
use retune::tensor::ElementType;
use retune::train::{Purpose, Trainable, Trainer, load_state_dict_named};
use retune::weights::layout::from_torch;
use retune::weights::{OutputTensor, Reference, TensorData, TensorFile, save};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn reference_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    paths.sort();
    paths
}

fn failed(report: &GradcheckReport) -> Vec<&str> {
    report.tensors.iter().filter(|tensor| !tensor.ok).map(|tensor| tensor.name.as_str()).collect()
}

fn assert_passes(device: &Rc<dyn Device>, path: &Path) {
    let report = gradcheck(device.clone(), path, None).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(report.ok, "{}: {:?}", path.display(), failed(&report));
    assert!(report.contradiction.is_none(), "{:?}", report.contradiction);
    assert!(report.tensors.iter().any(|tensor| tensor.name.starts_with("grad/")));
    let worst = report.worst.expect("something was compared");
    let judged = report.tensors.len();
    let (name, device) = (path.display(), format!("{} in {}", device.name(), device.precision()));
    println!("{name} on {device}: {judged} judged, worst {} {:.1e} of {:.1e}", worst.name, worst.error, worst.limit);
}

#[test]
fn every_fixture_passes() {
    let paths = reference_files(&fixture(""));
    assert!(paths.len() >= 10, "{paths:?}");
    for device in devices() {
        paths.iter().for_each(|path| assert_passes(&device, path));
    }
}

/// In tf32 and bf16, only `separated` is a sharp test; in the other files ReLUs flip.
#[test]
fn every_fixture_passes_on_kernels() {
    for device in PRECISIONS.into_iter().flat_map(kernel_devices) {
        reference_files(&fixture("")).iter().for_each(|path| assert_passes(&device, path));
    }
}

/// A trainer with the parameters and the recipe of a fixture, and its batch.
struct Bench {
    trainer: Trainer,
    shape: BatchShape,
    images: Vec<f32>,
    targets: Vec<u32>,
}

impl Bench {
    fn new(device: Rc<dyn Device>, name: &str) -> Self {
        let reference = Reference::open(&fixture(name)).unwrap();
        let file = reference.file();
        let trainable = Trainable {
            freezing: Freezing { modules: reference.freeze.clone(), batch_norm: reference.freeze_batch_norm },
            optimizer: OptimizerSettings::sgd(reference.number("momentum").unwrap().unwrap()).unwrap(),
            grouping: Grouping {
                learning_rate: reference.learning_rate,
                head_learning_rate: reference.head_learning_rate,
                layer_decay: 1.0,
                weight_decay: reference.weight_decay,
                no_decay_norm_bias: reference.no_decay_norm_bias,
            },
            ema: None,
            loss: reference.loss_reduction.into(),
            accumulates: false,
            max_gradient_norm: None,
        };
        let (architecture, width) = (reference.arch.parse().unwrap(), reference.width);
        let resnet = ResNet { architecture, width, classes: reference.num_classes };
        let mut trainer = Trainer::new(device, resnet, trainable).unwrap();
        load_state_dict_named(trainer.network_mut(), file, "param/").unwrap();
        let [batch, _, height, width] = reference.input_shape();
        let shape = BatchShape { batch, height, width };
        let images = from_torch(file.read_f32("input").unwrap(), &reference.input_shape());
        let targets = file.read_i64("target").unwrap().into_iter().map(|target| target as u32).collect();
        Self { trainer, shape, images, targets }
    }

    fn parameters(&self) -> Vec<(String, Vec<f32>)> {
        let parameters = self.trainer.network().parameters();
        let read = |name: &String| parameters.read(self.trainer.network().device(), name).unwrap();
        parameters.specifications().map(|each| (each.name.clone(), read(&each.name))).collect()
    }

    /// Returns loss, logits, running statistics and parameters after one step, and its gradients. The gradients of a
    /// batch norm are joined to one tensor, named after the module. That of the bias is a sum that cancels, with the
    /// rounding error of the same terms multiplied by numbers of unit variance, which is the gradient of the weight.
    fn step(&mut self) -> Vec<(String, Vec<f32>)> {
        let result = self.trainer.gradients(self.shape, &self.images, &self.targets).unwrap();
        let logits = self.trainer.network().logits(self.shape, Purpose::Training).unwrap();
        self.trainer.update().unwrap();
        let mut results = vec![("loss".into(), vec![result.loss]), ("logits".into(), logits)];
        let mut gradients = BTreeMap::<String, Vec<f32>>::new();
        for (name, values) in self.parameters() {
            if let Some(gradient) = self.trainer.network().parameters().gradient_of(&name).unwrap() {
                let module = name.strip_suffix(".weight").or(name.strip_suffix(".bias")).unwrap_or(&name);
                let is_batch_norm = module.contains("bn") || module.ends_with("downsample.1");
                let tensor = if is_batch_norm { module } else { &name };
                let values = read_f32(self.trainer.network().device(), gradient).unwrap();
                gradients.entry(format!("gradient of {tensor}")).or_default().extend(values);
            }
            results.push((format!("{name} after it"), values));
        }
        results.extend(gradients);
        results
    }
}

/// In bf16, PyTorch rounds at other places than the devices, and its errors are large. A reference that rounds at the
/// same places differs only in the order of float32 sums, which rarely changes the rounding of a number by a unit in
/// its last place. So the error of every tensor is less than if all of its elements differed. This holds if no ReLU's
/// input is near zero.
#[test]
fn a_step_in_bf16_is_that_of_a_rounded_reference() {
    const LAST_PLACE: f64 = 1.0 / 128.0;
    let name = "separated.safetensors";
    for device in kernel_devices(Precision::Bf16) {
        let mut worst = (0.0, String::new());
        let truth = Bench::new(Rc::new(RoundingDevice::adding_in_float64(Precision::Bf16)), name).step();
        for ((what, ours), (_, truth)) in Bench::new(device.clone(), name).step().into_iter().zip(truth) {
            let truth: Vec<f64> = truth.into_iter().map(f64::from).collect();
            let error = relative_error(&ours, &truth);
            assert!(error <= LAST_PLACE, "{}: {what}: error {error:.1e}", device.name());
            if error > worst.0 {
                worst = (error, what);
            }
        }
        println!("{}: worst {} {:.1e}", device.name(), worst.1, worst.0);
    }
}

/// Convolutions multiply by the weights of the last step, rounded.
#[test]
fn copies_in_bf16_follow_the_weights() {
    for device in kernel_devices(Precision::Bf16) {
        let mut bench = Bench::new(device.clone(), "separated.safetensors");
        let before = bench.parameters();
        bench.step();
        let mut copies = 0;
        for ((name, after), (_, before)) in bench.parameters().into_iter().zip(before) {
            let copy = bench.trainer.network().parameters().compute_copy_of(&name).unwrap();
            if copy.element_type() == ElementType::Bf16 {
                let rounded: Vec<f32> = after.iter().map(|&value| bf16::from_f32(value).to_f32()).collect();
                assert!(after != before && read_f32(device.as_ref(), copy).unwrap() == rounded, "{name}");
                copies += 1;
            }
        }
        println!("{}: {copies} copies", device.name());
        assert!(copies > 0);
    }
}

#[test]
fn every_shared_reference_passes() {
    let Some(shared) = std::env::var_os("RETUNE_SHARED") else { return };
    for path in reference_files(&Path::new(&shared).join("ref")) {
        devices().iter().for_each(|device| assert_passes(device, &path));
    }
}

#[test]
fn every_fixture_passes_at_lower_levels() {
    run_at_lower_levels("every_fixture_passes");
}

/// The tensors and the metadata of a reference file, for tests to edit.
struct Edited {
    metadata: BTreeMap<String, String>,
    tensors: Vec<OutputTensor<'static>>,
    folder: tempfile::TempDir,
}

impl Edited {
    fn of(name: &str) -> Self {
        let file = TensorFile::open(&fixture(name)).unwrap();
        let tensors = file.entries().iter().map(|entry| OutputTensor {
            name: entry.name.clone(),
            shape: entry.shape.clone(),
            data: TensorData::Bytes(entry.dtype, Cow::Owned(file.bytes(&entry.name).unwrap().to_vec())),
        });
        let tensors = tensors.collect();
        Self { metadata: file.metadata().clone(), tensors, folder: tempfile::tempdir().unwrap() }
    }

    fn set(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    fn unset(mut self, key: &str) -> Self {
        self.metadata.remove(key).expect("the field exists");
        self
    }

    fn without(mut self, name: &str) -> Self {
        let count = self.tensors.len();
        self.tensors.retain(|tensor| tensor.name != name);
        assert_eq!(self.tensors.len(), count - 1, "{name} was there");
        self
    }

    fn change(mut self, name: &str, change: impl Fn(f32) -> f32) -> Self {
        let tensor = self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("the tensor exists");
        let TensorData::Bytes(_, bytes) = &mut tensor.data else { unreachable!("all are bytes") };
        for value in bytes.to_mut().chunks_exact_mut(4) {
            let changed = change(f32::from_le_bytes(value.try_into().unwrap()));
            value.copy_from_slice(&changed.to_le_bytes());
        }
        self
    }

    /// As from a script that detaches the body: its parameters do not change in the first step.
    fn with_body_that_does_not_move(mut self) -> Self {
        let initial: BTreeMap<String, OutputTensor> = self
            .tensors
            .iter()
            .filter_map(|tensor| Some((tensor.name.strip_prefix("param/")?.to_string(), tensor.clone())))
            .collect();
        for tensor in &mut self.tensors {
            if let Some(name) = tensor.name.strip_prefix("step1/").filter(|name| !name.starts_with("fc.")) {
                tensor.data = initial[name].data.clone();
            }
        }
        self
    }

    fn check(self) -> retune::Result<GradcheckReport> {
        self.check_on(Rc::new(Cpu), None)
    }

    fn check_on(self, device: Rc<dyn Device>, floor: Option<f64>) -> retune::Result<GradcheckReport> {
        let path = self.folder.path().join("edited.safetensors");
        save(&path, &self.tensors, &self.metadata)?;
        gradcheck(device, &path, floor)
    }

    /// The names of the tensors that fail, sorted.
    fn failures(self) -> Vec<String> {
        let report = self.check().unwrap();
        let mut names: Vec<String> = failed(&report).into_iter().map(str::to_owned).collect();
        assert_eq!(report.ok, names.is_empty());
        assert_eq!(names.last().is_some(), report.worst.is_some_and(|worst| !worst.ok));
        names.sort();
        names
    }

    #[track_caller]
    fn error(self) -> String {
        self.check().expect_err("an error").to_string()
    }
}

#[test]
fn wrong_tensor_is_named() {
    assert!(Edited::of("lesson.safetensors").failures().is_empty(), "a copy passes");
    for name in [
        "grad/conv1.weight",
        "grad/layer3.0.downsample.1.bias",
        "grad/fc.weight",
        "logits",
        "loss",
        "buffer/layer2.1.bn1.running_var",
        "buffer/bn1.running_mean",
    ] {
        assert_eq!(Edited::of("lesson.safetensors").change(name, |value| value * 1.01).failures(), [name]);
    }
    let name = "grad/layer1.0.conv1.weight";
    let error = Edited::of("lesson.safetensors").change(name, |_| f32::NAN).error();
    assert!(error.contains(&format!("tensor {name} has 144 NaN of 144 values")), "{error}");
}

#[test]
fn a_file_that_contradicts_itself_is_recognised() {
    let report = Edited::of("lesson.safetensors").with_body_that_does_not_move().check().unwrap();
    let contradiction = report.contradiction.as_ref().expect("the body has gradients but does not change");
    assert!(contradiction.contains("do not change in the file's first step"), "{contradiction}");
    let failed = failed(&report);
    assert!(!report.ok && failed.iter().all(|name| name.starts_with("step1/")), "{failed:?}");
    assert!(Edited::of("lesson.safetensors").check().unwrap().contradiction.is_none());
}

#[test]
fn wrong_recipe_is_noticed() {
    let file = "frozen-lower-running-statistics.safetensors";
    assert!(Edited::of(file).failures().is_empty());
    let failures = Edited::of(file).set("freeze_batch_norm", "false").failures();
    assert!(failures.iter().any(|name| name == "logits"), "{failures:?}");
    // Unfrozen, the same network has the same gradients, but parameters change that did not change in the file.
    let unfrozen = Edited::of(file).set("freeze", "").check();
    match unfrozen {
        Ok(report) => assert!(!report.ok),
        Err(error) => panic!("{error}"),
    }
    let failures = Edited::of("lesson.safetensors").set("loss_reduction", "mean").failures();
    assert!(failures.iter().any(|name| name == "loss"), "{failures:?}");
    let smoothed = || Edited::of("smoothed-mean.safetensors");
    for (key, value) in [("label_smoothing", "0"), ("class_weights", "1,1,1"), ("loss_reduction", "sum")] {
        let failures = smoothed().set(key, value).failures();
        assert!(
            ["loss", "grad/fc.weight"].iter().all(|&name| failures.iter().any(|other| other == name)),
            "{failures:?}"
        );
    }
    for (file, key, value) in [("mixup", "mixup", "0.4"), ("cutmix", "cutmix", "5,0,29,24")] {
        let failures = Edited::of(&format!("{file}.safetensors")).set(key, value).failures();
        assert!(["logits", "loss"].iter().all(|&name| failures.iter().any(|other| other == name)), "{failures:?}");
    }
    for decay in ["0.38", "0.5"] {
        let failures = Edited::of("ema.safetensors").set("ema", decay).failures();
        assert!(!failures.is_empty() && failures.iter().all(|name| name.starts_with("ema3/")), "{failures:?}");
        // The third step has this decay; running statistics hardly depend on it.
        assert!(failures.iter().any(|name| name == "ema3/fc.weight"), "{failures:?}");
    }
    let decay = Edited::of("lesson.safetensors").set("weight_decay", "0").failures();
    assert!(!decay.is_empty() && decay.iter().all(|name| name.starts_with("step")), "{decay:?}");
    let rate = Edited::of("lesson.safetensors").set("head_lr", "0.1").failures();
    assert!(rate.iter().any(|name| name == "step1/fc.weight"), "{rate:?}");
    // A file with gradients of layers that its metadata declares frozen.
    let error = Edited::of("lesson.safetensors").set("freeze", "layer1").error();
    assert!(error.contains("grad/layer1.0.") && error.contains("freeze"), "{error}");
}

#[test]
fn wrong_metadata_is_refused() {
    let file = || Edited::of("head-only.safetensors");
    for key in ["format", "arch", "width", "num_classes", "lr", "freeze", "margin", "source", "loss_reduction"] {
        let error = file().unset(key).error();
        assert!(error.contains(&format!("metadata field {key} is missing")), "{error}");
    }
    for (key, value) in [
        ("format", "retune-reference-9"),
        ("arch", "resnet99"),
        ("width", "0"),
        ("width", "eight"),
        ("lr", "-1"),
        ("lr", "inf"),
        ("momentum", "NaN"),
        ("freeze_batch_norm", "yes"),
        ("loss_reduction", "none"),
        ("label_smoothing", "1.5"),
        ("class_weights", "1,2"),
        ("class_weights", "1,2,-3"),
        ("mixup", "1.5"),
        ("cutmix", "0,0,41,40"),
        ("cutmix", "9,0,8,40"),
        ("cutmix", "0,0,40"),
    ] {
        let error = file().set(key, value).error();
        assert!(error.contains(key) && error.contains(value), "{key}={value}: {error}");
        assert!(error.contains("edited.safetensors"), "{error}");
    }
    let error = file().set("freeze", "layer9").error();
    assert!(error.contains("layer9"), "{error}");
    let error = file().set("width", "7").error();
    assert!(error.contains("width is 7"), "{error}");
    assert!(file().set("arch", "resnet34").check().is_err());
    for name in ["input", "target", "logits", "loss", "param/conv1.weight"] {
        let error = file().without(name).error();
        assert!(error.contains(name), "{error}");
    }
    let missing = Path::new("no-such-file.safetensors");
    assert!(gradcheck(Rc::new(Cpu), missing, None).expect_err("refused").to_string().contains("no-such-file"));
}

/// In tf32 and bf16 the limit of a tensor follows from PyTorch's own error in that precision, if the file contains one
/// that is small enough. Nothing else in the file may be used instead.
#[test]
fn coarser_precisions_are_judged_by_their_own_noise() {
    // The CPU is more exact than it claims here, so every tensor that is compared passes.
    let device = || Rc::new(Recorder::new(Rc::new(Cpu)).claiming(Precision::Tf32));
    let file = || Edited::of("separated.safetensors");
    let judged = |report: &GradcheckReport, name: &str| report.tensors.iter().any(|tensor| tensor.name == name);
    let all = file().check().unwrap();
    let report = file().check_on(device(), None).unwrap();
    assert!(report.ok && report.tensors.len() == all.tensors.len(), "{:?}", report.not_compared);

    let noise = |name: &str| TensorFile::open(&fixture("separated.safetensors")).unwrap().read_f32(name).unwrap()[0];
    let name = "grad/layer2.0.conv1.weight";
    let limit = report.tensors.iter().find(|tensor| tensor.name == name).expect("judged").limit;
    assert_eq!(limit, 4.0 * f64::from(noise(&format!("noise_tf32/{name}"))));
    assert!(4.0 * f64::from(noise(&format!("noise/{name}"))) < limit);
    let factor = 1.0 + 1.1 * limit as f32;
    let report = file().change(name, |value| value * factor).check_on(device(), None).unwrap();
    assert_eq!(failed(&report), [name]);

    let report = file().without("noise_tf32/logits").check_on(device(), None).unwrap();
    assert!(report.ok && !judged(&report, "logits"));
    assert_eq!(report.not_compared, ["logits: the file has no PyTorch error in tf32"]);
    let report = file().without("noise_tf32/logits").check_on(device(), Some(0.5)).unwrap();
    assert!(judged(&report, "logits"), "--floor is the limit of tensors without another");

    let report = file().change("noise_tf32/loss", |_| 0.25).check_on(device(), None).unwrap();
    assert!(report.ok && !judged(&report, "loss"));
    assert!(report.not_compared[0].starts_with("loss: PyTorch's own error in tf32 is 2.5e-1"), "{report:?}");

    let without_noise = || {
        let mut file = file();
        file.tensors.retain(|tensor| !tensor.name.starts_with("noise_tf32/"));
        file
    };
    let error = without_noise().check_on(device(), None).expect_err("no limits").to_string();
    assert!(error.contains("nothing can be compared in tf32: the file has no noise_tf32/ tensors"), "{error}");
    assert!(error.contains("hint: run scripts/make-fixtures.py --add-noise FILE"), "{error}");
    assert!(without_noise().check_on(device(), Some(0.05)).unwrap().ok);
    assert!(without_noise().check().unwrap().ok, "float32 needs no noise tensors");

    let mut too_noisy = file();
    let names: Vec<String> = too_noisy.tensors.iter().map(|tensor| tensor.name.clone()).collect();
    for name in names.iter().filter(|name| name.starts_with("noise_tf32/")) {
        too_noisy = too_noisy.change(name, |_| 1.0);
    }
    let error = too_noisy.check_on(device(), None).expect_err("nothing to compare").to_string();
    assert!(error.contains("the noise of every tensor is too large"), "{error}");
}

/// The bits of all results of training: logits, loss, gradients, running statistics, updated parameters.
fn training_bits(device: Rc<dyn Device>, seed: u64) -> Vec<u32> {
    let trainable = Trainable {
        freezing: Freezing::default(),
        optimizer: OptimizerSettings::sgd(0.9).unwrap(),
        grouping: Grouping { learning_rate: 0.01, head_learning_rate: 0.01, weight_decay: 1e-3, ..Grouping::default() },
        ema: None,
        loss: LossReduction::Sum.into(),
        accumulates: false,
        max_gradient_norm: None,
    };
    let resnet = ResNet { architecture: Architecture::default(), width: 32, classes: 3 };
    let mut trainer = Trainer::new(device, resnet, trainable).unwrap();
    let mut random = Random(seed);
    let specifications: Vec<_> = trainer.network().parameters().specifications().cloned().collect();
    for specification in &specifications {
        let size = (specification.shape.len() as f64 / specification.shape.dims()[0] as f64).max(1.0);
        let values: Vec<f32> = match specification.shape.dims().len() {
            1 => random.uniforms(specification.shape.len(), 0.5, 1.5),
            _ => random.normals(specification.shape.len()).iter().map(|v| v / size.sqrt() as f32).collect(),
        };
        trainer.network_mut().write(&specification.name, &values).unwrap();
    }
    let shape = BatchShape { batch: 5, height: 65, width: 49 };
    let images = random.normals(shape.batch * shape.height * shape.width * 3);
    let mut bits = Vec::new();
    for _ in 0..2 {
        let result = trainer.gradients(shape, &images, &[0, 1, 2, 1, 0]).unwrap();
        bits.push(result.loss.to_bits());
        bits.extend(trainer.network().logits(shape, Purpose::Training).unwrap().into_iter().map(f32::to_bits));
        let network = trainer.network();
        for specification in &specifications {
            if let Some(gradient) = network.parameters().gradient_of(&specification.name).unwrap() {
                let gradient = read_f32(network.device(), gradient).unwrap();
                assert!(gradient.iter().any(|&value| value != 0.0), "{} has no gradient", specification.name);
                bits.extend(gradient.into_iter().map(f32::to_bits));
            }
        }
        trainer.update().unwrap();
        let network = trainer.network();
        for specification in &specifications {
            let values = network.parameters().read(network.device(), &specification.name).unwrap();
            bits.extend(values.into_iter().map(f32::to_bits));
        }
    }
    bits
}

#[test]
fn two_runs_give_the_same_bits() {
    for device in devices() {
        let first = training_bits(device.clone(), 1);
        assert!(first == training_bits(device.clone(), 1));
        assert!(first != training_bits(device, 2));
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let with_threads = |count: usize| threads::with(count, || training_bits(Rc::new(Cpu), 3));
    let one = with_threads(1);
    for threads in [2, 3, 4] {
        assert!(one == with_threads(threads), "{threads} threads");
    }
}
