//! End-to-end tests of the command line: arguments, output, and the files that commands write.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::{Rgb, RgbImage};
use insta::assert_snapshot;
use retune::model::Architecture;
use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_retune");
/// Much longer than any of these commands takes.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The smallest network that learns; all runs of these tests use it.
const SMALL: &str = "--from-scratch --width 4 --image-size 33 --batch-size 8";

/// A temporary folder in which commands run, so that messages contain no path of this machine.
struct Workplace {
    folder: TempDir,
}

/// The exit status and output of a command.
struct Outcome {
    status: i32,
    stdout: String,
    stderr: String,
}

/// Returns the text without the names of architectures, so that a new architecture changes no snapshot.
fn without_architectures(text: &str) -> String {
    let names: Vec<&str> = Architecture::all().map(Architecture::name).collect();
    let mut parts = text.split("[possible values: resnet18");
    let mut result = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let (listed, rest) = part.split_once(']').expect("a closing bracket");
        let listed: Vec<&str> = listed.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        assert_eq!(listed, names[1..]);
        result += &format!("[possible values: ARCHITECTURES]{rest}");
    }
    result
}

impl Workplace {
    fn empty() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// With `data/train` and `data/test` of two classes.
    fn new() -> Self {
        let place = Self::empty();
        for (split, pictures) in [("train", 14), ("test", 6)] {
            place.draw(&format!("data/{split}/blue"), [40, 60, 200], pictures);
            place.draw(&format!("data/{split}/red"), [200, 60, 40], pictures);
        }
        place
    }

    /// Also with a model of three classes in `base/model.safetensors`, and its images in `colours`.
    fn with_base_model() -> Self {
        let place = Self::new();
        for (class, colour) in [("green", [40, 190, 60]), ("purple", [150, 40, 160]), ("yellow", [220, 210, 50])] {
            place.draw(&format!("colours/{class}"), colour, 12);
        }
        place.succeed(&format!("train colours --test-fraction 0.25 {SMALL} --epochs 1 --seed 7 --out base"));
        place
    }

    /// Draws noisy images of one colour, each different.
    fn draw(&self, folder: &str, colour: [u8; 3], pictures: u32) {
        fs::create_dir_all(self.path(folder)).unwrap();
        let mut state = u64::from(colour[0]) + 1000 * folder.len() as u64;
        for number in 0..pictures {
            let picture = RgbImage::from_fn(48, 40, |_, _| {
                Rgb(colour.map(|channel| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    channel.saturating_add((state >> 57) as u8).saturating_sub(40)
                }))
            });
            picture.save(self.path(&format!("{folder}/{number:02}.png"))).unwrap();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|cause| panic!("{name}: {cause}"))
    }

    fn write(&self, name: &str, contents: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    /// Runs `retune` with arguments that contain no spaces.
    fn run(&self, line: &str) -> Outcome {
        self.run_program(PROGRAM, &line.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs a shell command in which `$RETUNE` is the program.
    #[cfg(unix)]
    fn shell(&self, line: &str) -> Outcome {
        self.run_program("sh", &["-c", line])
    }

    fn run_program(&self, program: &str, arguments: &[&str]) -> Outcome {
        let mut command = assert_cmd::Command::new(program);
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("RETUNE", PROGRAM)
            .env_remove("COLUMNS")
            // These tests use the CPU, even on machines with a GPU.
            .env("CUDA_VISIBLE_DEVICES", "")
            // They download nothing.
            .env("HF_HUB_OFFLINE", "1")
            .timeout(TIMEOUT);
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let status = output.status.code().unwrap_or(-1);
        let outcome = Outcome { status, stdout: text(output.stdout), stderr: text(output.stderr) };
        for stream in [&outcome.stdout, &outcome.stderr] {
            assert!(!stream.contains("panicked"), "{arguments:?}: {stream}");
            assert!(!stream.contains('\u{1b}'), "{arguments:?}: escape sequences outside a terminal: {stream:?}");
        }
        outcome
    }

    fn succeed(&self, line: &str) -> Outcome {
        let outcome = self.run(line);
        assert_eq!(outcome.status, 0, "retune {line}: {}", outcome.stderr);
        outcome
    }

    fn json(&self, line: &str) -> Value {
        let outcome = self.succeed(line);
        assert_eq!(outcome.stdout.lines().count(), 1, "JSON is one line: {}", outcome.stdout);
        serde_json::from_str(&outcome.stdout).unwrap()
    }

    /// Returns the contents of every file, and the folders.
    fn contents(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.folder.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let contents = if path.is_dir() {
                    folders.push(path.clone());
                    None
                } else {
                    Some(fs::read(&path).unwrap())
                };
                found.insert(path, contents);
            }
        }
        found
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Runs commands that must fail with an error of one or two lines, no output, and no change to any file.
    fn refusals(&self, lines: &[&str]) -> String {
        let mut text = String::new();
        for line in lines {
            let before = self.contents();
            let Outcome { status, stdout, stderr } = self.run(line);
            let is_one_error = match stderr.lines().collect::<Vec<_>>().as_slice() {
                [error] => error.starts_with("error: "),
                [error, hint] => error.starts_with("error: ") && hint.starts_with("hint: "),
                _ => false,
            };
            assert!(is_one_error, "retune {line}: {stderr}");
            assert_eq!(stdout, "", "retune {line}");
            assert!(before == self.contents(), "retune {line} changed files");
            text += &format!("$ retune {line}\n{stderr}exit status {status}\n\n");
        }
        without_architectures(&text)
    }

    fn metrics(&self, run: &str) -> Vec<Value> {
        let text = String::from_utf8(self.read(&format!("{run}/metrics.jsonl"))).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Returns the speed of a run, as its metrics have it, and asserts that its output says that of each new epoch.
    fn speed(&self, run: &str, outcome: &Outcome) -> String {
        let epochs: Vec<_> = self.metrics(run).into_iter().filter(|metric| metric["kind"] == "epoch").collect();
        let figures = |epoch: &Value| ["images_per_second", "seconds"].map(|name| epoch[name].as_f64().unwrap());
        for line in outcome.stderr.lines().filter(|line| line.starts_with("epoch ")) {
            let number: usize = line["epoch ".len()..].split(':').next().unwrap().parse().unwrap();
            assert!(line.ends_with(&format!("; {:.1} images/s", figures(&epochs[number - 1])[0])), "{line}");
        }
        let figures: Vec<[f64; 2]> = epochs.iter().map(figures).collect();
        let images: f64 = figures.iter().map(|[rate, seconds]| rate * seconds).sum();
        format!("{:.1}", images / figures.iter().map(|[_, seconds]| seconds).sum::<f64>())
    }

    /// Asserts that two runs have the same bits.
    fn assert_same_result(&self, one: &str, other: &str) {
        for file in ["model.safetensors", "checkpoint.safetensors"] {
            let same = self.read(&format!("{one}/{file}")) == self.read(&format!("{other}/{file}"));
            assert!(same, "{one}/{file} differs from {other}/{file}");
        }
        assert_eq!(
            without_times(self.metrics(one)),
            without_times(self.metrics(other)),
            "metrics of {one} and {other}"
        );
    }
}

fn without_times(mut metrics: Vec<Value>) -> Vec<Value> {
    for metric in metrics.iter_mut().filter_map(Value::as_object_mut) {
        metric.remove("images_per_second");
        metric.remove("seconds");
        metric.remove("whole_seconds");
    }
    metrics
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Returns the bytes of each tensor by name.
fn tensors(file: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let file = SafeTensors::deserialize(file).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

/// Replaces digits with `0`, so that the format of a line can be compared.
fn form(line: &str) -> String {
    line.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

mod training {
    use super::*;

    #[test]
    fn writes_a_folder_with_all_files_of_the_run() {
        let place = Workplace::new();
        let outcome = place.succeed(&format!("train data {SMALL} --epochs 2 --out run"));
        assert_eq!(
            place.names("run"),
            [
                "checkpoint.safetensors",
                "config.json",
                "curves.png",
                "curves.svg",
                "data_check.json",
                "images.jsonl",
                "metrics.jsonl",
                "model.safetensors",
                "recipe.toml",
                "report.html"
            ]
        );

        assert_eq!(outcome.stdout.lines().count(), 1);
        let (accuracies, rate) = outcome.stdout.trim_end().split_once("; ").unwrap();
        assert_eq!(form(accuracies), "loss 0.000, train acc 0.000, test acc 0.000");
        let rate = rate.strip_suffix(" examples/sec on cpu").unwrap();
        assert_eq!(rate.split_once('.').unwrap().1.len(), 1);
        assert!(rate.parse::<f64>().unwrap() > 0.0);
        assert_eq!(rate, place.speed("run", &outcome), "the speed of a run");
        let page = String::from_utf8(place.read("run/report.html")).unwrap();
        assert!(page.contains(&format!("; {rate} examples/sec on cpu")), "{page}");

        let metrics = place.metrics("run");
        let kinds: Vec<&str> = metrics.iter().map(|metric| metric["kind"].as_str().unwrap()).collect();
        let epoch = ["progress", "progress", "progress", "progress", "epoch"];
        assert_eq!(kinds, [epoch, epoch].concat());
        assert_eq!(keys(&metrics[0]), ["epoch", "kind", "train_acc", "train_loss"]);
        assert_eq!(
            keys(&metrics[4]),
            [
                "epoch",
                "images_per_second",
                "kind",
                "seconds",
                "test_acc",
                "test_loss",
                "train_acc",
                "train_loss",
                "whole_seconds"
            ]
        );
        let seconds = |name: &str| metrics[4][name].as_f64().unwrap();
        assert!(seconds("whole_seconds") > seconds("seconds"), "{}", metrics[4]);
        let epochs: Vec<f64> = metrics.iter().map(|metric| metric["epoch"].as_f64().unwrap()).collect();
        assert_eq!(epochs, [0.25, 0.5, 0.75, 1.0, 1.0, 1.25, 1.5, 1.75, 2.0, 2.0]);
        let last = &metrics[9];
        let said = format!(
            "loss {:.3}, train acc {:.3}, test acc {:.3}",
            last["train_loss"].as_f64().unwrap(),
            last["train_acc"].as_f64().unwrap(),
            last["test_acc"].as_f64().unwrap()
        );
        assert_eq!(accuracies, said);

        let config = String::from_utf8(place.read("run/config.json")).unwrap();
        let mut values: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(values["data"].take(), place.path("data").to_string_lossy().as_ref(), "an absolute path");
        let started = values["started"].take();
        assert_eq!(form(started.as_str().unwrap()), "0000-00-00T00:00:00Z");
        let digest = values["images"].take();
        assert_eq!(digest.as_str().unwrap().len(), 64, "{digest}");
        let model = place.read("run/model.safetensors");
        let (_, header) = SafeTensors::read_metadata(&model).unwrap();
        let metadata = header.metadata().as_ref().unwrap();
        assert_eq!(serde_json::from_str::<Value>(&metadata["recipe"]).unwrap(), values["recipe"]);
        assert!(["1", "2"].contains(&metadata["epoch"].as_str()), "{metadata:?}");
        assert_snapshot!(serde_json::to_string_pretty(&values).unwrap(), @r##"
{
  "classes": [
    "blue",
    "red"
  ],
  "data": null,
  "device": "cpu",
  "images": null,
  "precision": "fp32",
  "recipe": {
    "architecture": "resnet18",
    "batch_size": 8,
    "epochs": 2,
    "freeze": [],
    "freeze_batch_norm": false,
    "from_scratch": true,
    "head_from": null,
    "head_lr_multiplier": 1.0,
    "image_size": 33,
    "learning_rate": 0.0005,
    "loss_reduction": "sum",
    "momentum": 0.0,
    "seed": 0,
    "test_fraction": null,
    "weight_decay": 0.001,
    "width": 4
  },
  "retune": "0.1.0",
  "started": null,
  "test_images": 12,
  "train_images": 28,
  "weights": null
}
"##);
    }

    /// Validation images choose the epoch; the test images are classified once, by the model that was chosen.
    #[test]
    fn validation_images_choose_and_test_images_measure() {
        let place = Workplace::new();
        // Validation images with exchanged labels choose the worst epoch for the test images.
        for (class, other) in [("red", "blue"), ("blue", "red")] {
            fs::create_dir_all(place.path(&format!("data/val/{class}"))).unwrap();
            for name in place.names(&format!("data/test/{other}")) {
                let (from, to) = (format!("data/test/{other}/{name}"), format!("data/val/{class}/{name}"));
                fs::copy(place.path(&from), place.path(&to)).unwrap();
            }
        }
        fs::write(place.path("data/train/red/photo.heic"), "").unwrap();
        fs::write(place.path("data/train/red/.DS_Store"), "").unwrap();
        let arguments = format!("train data {SMALL} --epochs 8 --lr 2e-3 --momentum 0.5 --out run");
        let refused = place.run(&format!("{arguments} --strict"));
        assert_eq!(refused.status, 1);
        let expected = "error: data/train/red/photo.heic: HEIC is not supported; 1 file skipped: 1 HEIC\n";
        assert!(refused.stderr.starts_with(expected), "{}", refused.stderr);
        assert!(!place.path("run").exists());
        let outcome = place.succeed(&format!("{arguments} --json"));
        assert!(outcome.stderr.contains("1 file skipped: 1 HEIC"), "{}", outcome.stderr);
        let run: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(keys(&run["best"]), ["epoch", "val_acc", "val_loss"]);

        let metrics = place.metrics("run");
        let (tests, others): (Vec<_>, Vec<_>) = metrics.iter().partition(|metric| metric["kind"] == "test");
        let epochs: Vec<_> = others.iter().filter(|metric| metric["kind"] == "epoch").collect();
        assert!(
            epochs.iter().all(|epoch| epoch.get("test_acc").is_none()),
            "no test image is classified before the end"
        );
        let best = epochs.iter().map(|epoch| epoch["val_acc"].as_f64().unwrap()).fold(0.0, f64::max);
        assert_eq!(run["best"]["val_acc"], best);
        assert!(best < 1.0, "{best}");
        let [test] = tests.as_slice() else { panic!("{tests:?}") };
        assert_eq!(test["epoch"], run["best"]["epoch"]);
        assert_eq!(test["test_acc"], run["test_acc"]);
        // The labels are exchanged, so the two add up to all images.
        assert!((best + test["test_acc"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{best} {test}");

        // `eval` measures the same model on the same images.
        let eval = place.json("eval run/model.safetensors data --json");
        assert_eq!((&eval["accuracy"], &eval["loss"]), (&test["test_acc"], &test["test_loss"]));
        let page = String::from_utf8(place.read("run/report.html")).unwrap();
        assert!(page.contains("The validation images chose the model that is saved, that of epoch "), "{page}");
        assert!(page.contains("1 file skipped: 1 HEIC") && page.contains("photo.heic"));
        assert!(page.contains("Set aside, as it belongs to no class: .DS_Store."), "{page}");
        // With --keep-last no images choose, unless validation images may.
        for (flags, is_chosen) in [("--keep-last", false), ("--keep-last --validation-chooses", true)] {
            let out = if is_chosen { "chosen" } else { "last" };
            place.succeed(&format!("{} {flags}", arguments.replace("--out run", &format!("--out {out}"))));
            let metrics = place.metrics(out);
            let tested = metrics.iter().find(|metric| metric["kind"] == "test").unwrap();
            assert_eq!(
                tested["test_acc"] == test["test_acc"] && tested["epoch"] == test["epoch"],
                is_chosen,
                "{tested} {test}"
            );
            let page = String::from_utf8(place.read(&format!("{out}/report.html"))).unwrap();
            assert_eq!(page.contains("chosen by 12 validation images"), is_chosen);
            assert_eq!(page.contains("evaluated on 12 validation images"), !is_chosen);
            assert_eq!(page.contains("The validation images had no part in choosing it."), !is_chosen);
        }
        let resumed = place.succeed(&format!("{} --resume", arguments.replace("--epochs 8", "--epochs 9")));
        assert!(resumed.stdout.contains("test acc"), "{}", resumed.stdout);
        let tested: Vec<_> = place.metrics("run").into_iter().filter(|metric| metric["kind"] == "test").collect();
        assert_eq!(tested.len(), 2, "a run that is continued is tested at its new end");
    }

    #[test]
    fn learns_and_is_measured_by_eval() {
        let place = Workplace::new();
        let run = place.json(&format!("train data {SMALL} --epochs 8 --lr 2e-3 --momentum 0.5 --out run --json"));
        assert_eq!(
            keys(&run),
            ["best", "device", "images_per_second", "model", "skipped", "test_acc", "train_acc", "train_loss"]
        );
        assert_eq!(keys(&run["best"]), ["epoch", "test_acc", "test_loss"]);
        assert_eq!(run["device"], "cpu");
        assert_eq!(run["model"], "run/model.safetensors");
        assert_eq!(run["best"]["test_acc"], 1.0, "two colours are easy to learn");

        let eval = place.json("eval run/model.safetensors data --json");
        assert_eq!(
            keys(&eval),
            [
                "accuracy",
                "accuracy_interval",
                "balanced_accuracy",
                "calibration_error",
                "classes",
                "confusion",
                "folder",
                "images",
                "loss",
                "skipped",
                "split",
                "unknown_classes",
                "unsupported"
            ]
        );
        let interval: [f64; 2] = serde_json::from_value(eval["accuracy_interval"].clone()).unwrap();
        assert!((interval[0] - 0.757_5).abs() < 5e-4 && interval[1] == 1.0, "12 of 12 images: {interval:?}");
        let page = String::from_utf8(place.read("run/report.html")).unwrap();
        assert!(page.contains("is likely between 75.8 % and 100.0 % (95 % interval, Wilson)."), "{page}");
        assert!(eval["calibration_error"].is_null() && page.contains("For a calibration error, there are too few"));
        assert!(page.contains("the figure is a little flattering"), "the test images chose the epoch");
        assert_eq!(keys(&eval["classes"][0]), ["class", "f1", "images", "precision", "recall"]);
        assert_eq!(eval["accuracy"], run["best"]["test_acc"], "the saved model is the best");
        let (loss, best) = (eval["loss"].as_f64().unwrap(), run["best"]["test_loss"].as_f64().unwrap());
        assert!((loss - best).abs() < 1e-5 * best.max(1e-3), "{loss} and {best}");
        assert_eq!(eval["confusion"], serde_json::json!([[6, 0], [0, 6]]));
        assert_eq!((&eval["split"], &eval["folder"]), (&"test".into(), &"data/test".into()));
        // A folder of class folders works like the one above it.
        let mut classes_alone = place.json("eval run/model.safetensors data/test --json");
        assert_eq!(classes_alone["split"].take(), Value::Null);
        classes_alone["split"] = "test".into();
        assert_eq!(classes_alone, eval);
        let table = place.succeed("eval run/model.safetensors data").stdout;
        assert!(table.contains("balanced accuracy 1.000, too few images for a calibration error\n"), "{table}");
        assert!(table.ends_with(" over 12 test images in data/test\n"), "{table}");
        assert_snapshot!(table.split("balanced").next().unwrap(), @r##"
class  images  recall  precision      f1
blue        6   1.000      1.000   1.000
red         6   1.000      1.000   1.000

Confusion matrix
        predicted
actual   blue    red
blue        6      0
red         0      6
"##);
    }

    #[test]
    fn eval_counts_rows_by_true_class() {
        let place = Workplace::with_base_model();
        let eval = place.json("eval base/model.safetensors colours --json");
        assert!(eval["accuracy"].as_f64().unwrap() < 0.9, "a good model would hide a transposed matrix");
        let rows: Vec<Vec<u64>> = serde_json::from_value(eval["confusion"].clone()).unwrap();
        let correct: u64 = (0..3).map(|class| rows[class][class]).sum();
        assert!((eval["accuracy"].as_f64().unwrap() - correct as f64 / 36.0).abs() < 1e-9);
        for (class, row) in rows.iter().enumerate() {
            assert_eq!(row.iter().sum::<u64>(), 12, "{rows:?}");
            let said = &eval["classes"][class];
            assert!((said["recall"].as_f64().unwrap() - row[class] as f64 / 12.0).abs() < 1e-9, "{said}");
            let taken: u64 = rows.iter().map(|row| row[class]).sum();
            match (taken, said["precision"].as_f64()) {
                (0, found) => assert_eq!(found, None, "{said}"),
                (_, found) => assert!((found.unwrap() - row[class] as f64 / taken as f64).abs() < 1e-9, "{said}"),
            }
        }
    }

    #[test]
    fn eval_writes_a_line_for_each_image() {
        let place = Workplace::with_base_model();
        // A name with a line break and quotes stays one record.
        fs::rename(place.path("colours/green/00.png"), place.path("colours/green/0,\"\n.png")).unwrap();
        let eval = place.json("eval base/model.safetensors colours --per-image images.csv --json");
        let mut table = csv::Reader::from_path(place.path("images.csv")).unwrap();
        assert_eq!(
            table.headers().unwrap(),
            ["path", "label", "predicted", "probability", "label_probability"].as_slice()
        );
        let records: Vec<csv::StringRecord> = table.records().map(Result::unwrap).collect();
        assert_eq!(records.len(), 36);
        assert_eq!(&records[0][0], "colours/green/0,\"\\n.png", "what is hidden in a name is shown, as `predict` does");
        let number = |record: &csv::StringRecord, column: usize| record[column].parse::<f64>().unwrap();
        let correct = records.iter().filter(|record| record[1] == record[2]).count();
        assert!((eval["accuracy"].as_f64().unwrap() - correct as f64 / 36.0).abs() < 1e-9);
        let loss = records.iter().map(|record| -number(record, 4).ln()).sum::<f64>() / 36.0;
        assert!((eval["loss"].as_f64().unwrap() - loss).abs() < 1e-6, "{} and {loss}", eval["loss"]);
        for record in &records {
            assert!(record[0].starts_with(&format!("colours/{}/", &record[1])), "{record:?}");
            assert_eq!(record[1] == record[2], number(record, 3) == number(record, 4), "{record:?}");
            assert!(number(record, 3) >= number(record, 4), "{record:?}");
        }
        // Standard output has the table of images, and standard error what is for people.
        let printed = place.succeed("eval base/model.safetensors colours --per-image -");
        assert_eq!(printed.stdout.as_bytes(), place.read("images.csv"));
        assert!(printed.stderr.contains(" over 36 images in colours\n"), "{}", printed.stderr);
        assert!(!place.path("-").exists());
        let refused = place.run("eval base/model.safetensors colours --per-image - --json");
        assert_eq!((refused.status, refused.stdout.as_str()), (2, ""));
        assert!(refused.stderr.starts_with("error: --per-image -: --json also prints to"), "{}", refused.stderr);
    }

    /// A file that cannot be written is refused before anything else is done, by the name that the user gave it.
    #[test]
    fn places_that_cannot_be_written_are_refused_first() {
        let place = Workplace::with_base_model();
        place.write("file", b"in the way");
        let model = "base/model.safetensors";
        let lines = |file: &str| {
            [
                // What would be found out later: there are neither such weights nor such images.
                (format!("eval {model} nowhere --per-image {file}.csv"), format!("{file}.csv")),
                (format!("convert nothing.pth {file}.onnx"), format!("{file}.onnx")),
                (format!("convert nothing.pth {file}.safetensors"), format!("{file}.safetensors")),
                (format!("show nowhere -o {file}.png"), format!("{file}.png")),
                (format!("report base --output {file}.html"), format!("{file}.html")),
            ]
        };
        for (folder, cause, hint) in [
            ("none/o", "No such file or directory (os error 2)", "create the folder first"),
            ("file/o", "Not a directory (os error 20)", "choose another folder: a part of this one is a file"),
        ] {
            for (line, file) in lines(folder) {
                let refused = place.run(&line);
                let expected = format!("error: cannot write {file}: {cause}; no file was written\nhint: {hint}\n");
                assert_eq!((refused.status, refused.stdout.as_str(), refused.stderr.as_str()), (1, "", &*expected));
            }
        }
        // Where writing is possible, nothing is left behind by the check.
        let before = place.contents();
        for (line, file) in lines("o") {
            assert!(line.starts_with("report") || place.run(&line).status == 1, "{line}");
            assert!(!place.path(&file).exists(), "{file}");
        }
        assert!(place.contents() == before);
    }

    /// A class without images has no results, neither as text nor as numbers.
    #[test]
    fn eval_of_a_part_of_the_classes_has_dashes() {
        let place = Workplace::with_base_model();
        fs::rename(place.path("colours/purple"), place.path("purple")).unwrap();
        let line = "eval base/model.safetensors colours";
        let class = &place.json(&format!("{line} --json"))["classes"][1];
        assert_eq!((&class["class"], &class["images"]), (&"purple".into(), &0.into()));
        assert!(["recall", "precision", "f1"].iter().all(|field| class[field].is_null()), "{class}");
        let text = place.succeed(line).stdout;
        assert!(text.contains("\npurple       0       –          –       –\n"), "{text}");
    }

    #[test]
    fn labels_may_be_in_a_table() {
        let place = Workplace::new();
        let mut table = String::from("label,path\n");
        for class in ["blue", "red"] {
            for name in place.names(&format!("data/train/{class}")) {
                fs::create_dir_all(place.path("photos")).unwrap();
                fs::copy(
                    place.path(&format!("data/train/{class}/{name}")),
                    place.path(&format!("photos/{class}{name}")),
                )
                .unwrap();
                table += &format!("{class},{class}{name}\n");
            }
        }
        place.write("labels.csv", table.as_bytes());
        // The images are the same in the same order, so the model has the same bits.
        let train = format!("{SMALL} --epochs 2 --test-fraction 0.25");
        place.succeed(&format!("train data/train {train} --out folders"));
        place.succeed(&format!("train photos --labels labels.csv {train} --out table"));
        assert_eq!(tensors(&place.read("folders/model.safetensors")), tensors(&place.read("table/model.safetensors")));
        assert!(String::from_utf8(place.read("table/report.html")).unwrap().contains("Confusion matrix"));
        let [by_folders, by_table] = ["data/train", "photos --labels labels.csv"].map(|data| {
            let mut eval = place.json(&format!("eval table/model.safetensors {data} --json"));
            assert_eq!(eval["folder"].take(), data.split(' ').next().unwrap());
            eval
        });
        assert_eq!(by_folders, by_table);
        // A run knows where its labels are.
        place.succeed("train photos --resume --out table --epochs 3");
        let hint = place.run(&format!("train photos {train} --out none")).stderr;
        assert!(hint.contains("photos contains no folders"), "{hint}");
        assert!(hint.contains("are read by train and eval, like this: photos --labels labels.csv"), "{hint}");
        fs::rename(place.path("labels.csv"), place.path("photos/labels.csv")).unwrap();
        let hint = place.run(&format!("train photos {train} --out none")).stderr;
        assert!(hint.contains("are read by train and eval, like this: photos --labels photos/labels.csv"), "{hint}");
    }

    #[test]
    fn reads_val_and_splits_by_a_fraction() {
        let place = Workplace::new();
        fs::rename(place.path("data/test"), place.path("data/val")).unwrap();
        place.succeed(&format!("train data {SMALL} --epochs 1 --out val"));
        place.succeed(&format!("train data/train --test-fraction 0.25 {SMALL} --epochs 1 --out part"));
        let config: Value = serde_json::from_slice(&place.read("part/config.json")).unwrap();
        assert_eq!((&config["train_images"], &config["test_images"]), (&20.into(), &8.into()));
    }

    #[test]
    fn names_and_counts_unreadable_files() {
        let place = Workplace::new();
        place.write("data/train/red/text.jpg", b"this is no picture");
        let mut jpeg = std::io::Cursor::new(Vec::new());
        RgbImage::from_pixel(48, 40, Rgb([200, 60, 40])).write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
        let jpeg = jpeg.into_inner();
        place.write("data/test/red/cut.jpg", &jpeg[..jpeg.len() * 2 / 3]);

        let outcome = place.succeed(&format!("train data {SMALL} --epochs 2 --quiet --out run"));
        assert_snapshot!(outcome.stderr, @r##"
warning: skipped: cannot decode data/train/red/text.jpg: expected a JPEG, PNG, GIF, BMP, TIFF, WebP or PNM image, found a text file
warning: skipped: cannot decode data/test/red/cut.jpg: truncated JPEG: the data end before the end marker
warning: 2 unreadable images were skipped
"##);
        let run = place.json(&format!("train data {SMALL} --epochs 1 --quiet --json --out other"));
        assert_eq!(run["skipped"], serde_json::json!(["data/train/red/text.jpg", "data/test/red/cut.jpg"]));
        let eval = place.run("eval run/model.safetensors data --json");
        assert_eq!(eval.status, 0);
        assert_snapshot!(eval.stderr, @r##"
warning: skipped: cannot decode data/test/red/cut.jpg: truncated JPEG: the data end before the end marker
warning: 1 unreadable image was skipped
"##);
        assert_eq!(serde_json::from_str::<Value>(&eval.stdout).unwrap()["skipped"], 1);

        let strict = place.run(&format!("train data {SMALL} --epochs 1 --strict --quiet --out strict"));
        assert_eq!((strict.status, strict.stdout.as_str()), (1, ""));
        assert_snapshot!(strict.stderr, @r##"
error: cannot decode data/train/red/text.jpg: expected a JPEG, PNG, GIF, BMP, TIFF, WebP or PNM image, found a text file
hint: download the image again; what was saved is not the image
"##);
        assert_snapshot!(place.refusals(&["eval run/model.safetensors data --strict"]), @r##"
$ retune eval run/model.safetensors data --strict
error: cannot decode data/test/red/cut.jpg: truncated JPEG: the data end before the end marker
exit status 1
"##);
    }
}

/// Without a training image, nothing about a class could be learnt.
#[test]
fn a_class_without_a_readable_image_is_refused() {
    let place = Workplace::new();
    for split in ["train", "test"] {
        for file in fs::read_dir(place.path(&format!("data/{split}/red"))).unwrap() {
            fs::write(file.unwrap().path(), b"no image").unwrap();
        }
        if split == "test" {
            let refused = place.run(&format!("train data {SMALL} --epochs 1 --out run"));
            assert_eq!(refused.status, 1);
            assert!(
                refused.stderr.ends_with(
                    "error: no training image of the class red can be read: cannot decode data/train/red/00.png: expected a JPEG, \
                     PNG, GIF, BMP, TIFF, WebP or PNM image, found a text file; 13 more\n\
                     hint: replace the files with images that can be read, or remove the class\n"
                ),
                "{}",
                refused.stderr
            );
            assert!(!place.path("run").exists());
            break;
        }
        // The images of the other split can still be read.
        for (from, to) in [("train", "kept"), ("test", "train"), ("kept", "test")] {
            fs::rename(place.path(&format!("data/{from}")), place.path(&format!("data/{to}"))).unwrap();
        }
        let outcome = place.succeed(&format!("train data {SMALL} --epochs 1 --out warned"));
        let line = outcome.stderr.lines().find(|line| line.contains("no test image of")).unwrap();
        assert_eq!(
            line,
            "warning: no test image of the class red can be read, so its results are not measured: cannot decode \
             data/test/red/00.png: expected a JPEG, PNG, GIF, BMP, TIFF, WebP or PNM image, found a text file; 13 more"
        );
        for (from, to) in [("train", "kept"), ("test", "train"), ("kept", "test")] {
            fs::rename(place.path(&format!("data/{from}")), place.path(&format!("data/{to}"))).unwrap();
        }
    }
}

mod fine_tuning {
    use super::*;

    const FINE: &str = "train data --weights base/model.safetensors --image-size 33 --batch-size 8 --epochs 1";

    #[test]
    fn replaces_the_head_and_says_so() {
        let place = Workplace::with_base_model();
        let outcome = place.succeed(&format!("{FINE} --out run"));
        let said = outcome.stderr.lines().find(|line| line.contains("new final layer")).unwrap();
        assert_snapshot!(said, @r##"new final layer for 2 classes (the weights had 3)"##);
        let inspected = place.json("inspect run/model.safetensors --json");
        assert_eq!(inspected["classes"], serde_json::json!(["blue", "red"]));
        // The same number of classes does not mean the same classes.
        for (folder, class) in [("data/train", "green"), ("data/test", "green")] {
            fs::rename(place.path(folder).join("red"), place.path(folder).join(class)).unwrap();
        }
        let again = FINE.replace("base/", "run/");
        let outcome = place.succeed(&format!("{again} --out again"));
        let said = outcome.stderr.lines().find(|line| line.contains("final layer")).unwrap();
        assert_snapshot!(said, @r##"new final layer for 2 classes (that of the weights has 2 as well, and is not used)"##);
    }

    #[test]
    fn keeps_the_head_for_the_same_classes() {
        let place = Workplace::with_base_model();
        place.succeed(&format!("{FINE} --out run"));
        let train = |flags: &str, out: &str| {
            let line = FINE.replace("base/model.safetensors", "run");
            let outcome = place.succeed(&format!("{line} --lr 1e-30 {flags} --out {out}"));
            let said: Vec<&str> = outcome.stderr.lines().filter(|line| line.contains("final layer")).collect();
            (said.join("\n"), tensors(&place.read(&format!("{out}/model.safetensors"))))
        };
        let old = tensors(&place.read("run/model.safetensors"));
        let (said, kept) = train("", "kept");
        assert_snapshot!(said, @r##"kept the final layer of the weights, which has the same 2 classes; --new-head starts with a random one"##);
        assert!(kept["fc.weight"] == old["fc.weight"] && kept["fc.bias"] == old["fc.bias"]);
        let (said, new) = train("--new-head", "new");
        assert_snapshot!(said, @r##"new final layer for 2 classes (that of the weights has 2 as well, and is not used)"##);
        assert!(new["fc.weight"] != old["fc.weight"] && new["conv1.weight"] == old["conv1.weight"]);

        // The classes of the weights in another order: rows follow their names.
        let file = retune::weights::TensorFile::open(&place.path("run/model.safetensors")).unwrap();
        let metadata = [("classes".to_string(), r#"["red", "blue"]"#.to_string())].into();
        let all: Vec<retune::weights::OutputTensor> = file
            .entries()
            .iter()
            .map(|entry| {
                let bytes = file.bytes(&entry.name).unwrap().to_vec();
                retune::weights::OutputTensor::bytes(&entry.name, entry.dtype, &entry.shape, bytes)
            })
            .collect();
        retune::weights::save(&place.path("run/model.safetensors"), &all, &metadata).unwrap();
        let (_, swapped) = train("", "swapped");
        let half = old["fc.weight"].len() / 2;
        assert!(swapped["fc.weight"][..half] == old["fc.weight"][half..]);
        assert!(swapped["fc.weight"][half..] == old["fc.weight"][..half]);
    }

    #[test]
    fn starts_with_rows_of_the_old_head() {
        let place = Workplace::with_base_model();
        place.succeed(&format!("{FINE} --head-from 2,0 --lr 1e-30 --out run"));
        let (old, new) =
            (tensors(&place.read("base/model.safetensors")), tensors(&place.read("run/model.safetensors")));
        let row = |name: &str, row: usize| {
            let bytes = old[name].len() / 3;
            old[name][row * bytes..][..bytes].to_vec()
        };
        for name in ["fc.weight", "fc.bias"] {
            assert_eq!(new[name], [row(name, 2), row(name, 0)].concat(), "{name}");
        }
    }

    #[test]
    fn frozen_modules_stay_bit_identical_and_others_move() {
        let place = Workplace::with_base_model();
        let old = tensors(&place.read("base/model.safetensors"));
        for (flag, statistics_stay) in [("", false), ("--freeze-batch-norm", true)] {
            let out = format!("run{flag}");
            place.succeed(&format!("{FINE} --freeze conv1,bn1,layer1,layer2.0 {flag} --out {out}"));
            let new = tensors(&place.read(&format!("{out}/model.safetensors")));
            assert_eq!(old.len(), new.len());
            for (name, value) in &new {
                let frozen = ["conv1.", "bn1.", "layer1.", "layer2.0."].iter().any(|module| name.starts_with(module));
                let statistic = name.contains("running_") || name.ends_with("num_batches_tracked");
                let stays = frozen && (statistics_stay || !statistic);
                assert_eq!(old[name] == *value, stays, "{name} {flag}");
            }
        }
    }

    #[test]
    fn refuses_weights_and_flags_that_do_not_fit() {
        let place = Workplace::with_base_model();
        place.succeed(&format!("train data {SMALL} --arch resnet34 --epochs 1 --out resnet34"));
        let base = place.read("base/model.safetensors");
        place.write("cut.safetensors", &base[..base.len() / 2]);
        place.write("header.safetensors", &base[..100]);
        place.write("empty.safetensors", b"");
        place.write("page.safetensors", b"<!DOCTYPE html><html>404</html>");
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).unwrap();
        place.write("other.safetensors", &safetensors::serialize([("encoder.weight", view)], None).unwrap());
        let with = |weights: &str, flags: &str| {
            format!("train data --weights {weights} --image-size 33 --epochs 1 --quiet --out run {flags}")
        };
        let base = "base/model.safetensors";
        let lines = [
            with("missing.safetensors", ""),
            with("data", ""),
            with("cut.safetensors", ""),
            with("header.safetensors", ""),
            with("empty.safetensors", ""),
            with("page.safetensors", ""),
            with("other.safetensors", ""),
            with("resnet34/model.safetensors", "--arch resnet18"),
            with(base, "--width 8"),
            with(base, "--freeze nonsense"),
            with(base, "--freeze conv1,bn1,layer1,layer2,layer3,layer4,fc"),
            with(base, "--freeze-batch-norm"),
            with(base, "--head-from 0"),
            with(base, "--head-from 0,3"),
            with(base, "--head-from 0,-1"),
            with(base, "--from-scratch"),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_snapshot!(place.refusals(&lines), @r##"
$ retune train data --weights missing.safetensors --image-size 33 --epochs 1 --quiet --out run 
error: missing.safetensors: no such file
exit status 1

$ retune train data --weights data --image-size 33 --epochs 1 --quiet --out run 
error: data is a folder without a model.safetensors
hint: give a file of weights, or the folder of a run that has completed an epoch
exit status 1

$ retune train data --weights cut.safetensors --image-size 33 --epochs 1 --quiet --out run 
error: cut.safetensors is truncated: its header describes 192876 bytes, the file has 96438
hint: download or copy it again
exit status 1

$ retune train data --weights header.safetensors --image-size 33 --epochs 1 --quiet --out run 
error: header.safetensors is truncated: its header takes 10824 bytes, the file has 100
hint: download or copy it again
exit status 1

$ retune train data --weights empty.safetensors --image-size 33 --epochs 1 --quiet --out run 
error: empty.safetensors is empty (0 bytes), expected a safetensors or .pth file
hint: download or save it again: the writing program did not finish
exit status 1

$ retune train data --weights page.safetensors --image-size 33 --epochs 1 --quiet --out run 
error: page.safetensors is an HTML page, expected a safetensors or .pth file
hint: download the file itself, not the page about it
exit status 1

$ retune train data --weights other.safetensors --image-size 33 --epochs 1 --quiet --out run 
error: other.safetensors: no ResNet found: its keys are encoder.weight
hint: supported are torchvision's ResNets and Wide ResNets: one 7 x 7 convolution, then four stages of basic or bottleneck blocks, under torchvision's key names with any prefix
exit status 1

$ retune train data --weights resnet34/model.safetensors --image-size 33 --epochs 1 --quiet --out run --arch resnet18
error: --arch resnet18: the weights are those of a resnet34
exit status 2

$ retune train data --weights base/model.safetensors --image-size 33 --epochs 1 --quiet --out run --width 8
error: --width: the weights have a width of 4
exit status 2

$ retune train data --weights base/model.safetensors --image-size 33 --epochs 1 --quiet --out run --freeze nonsense
error: --freeze: resnet18 has no module "nonsense"
hint: its modules are conv1, bn1, layer1, layer1.0, layer1.1, layer2, layer2.0, layer2.1, layer3, layer3.0, layer3.1, layer4, layer4.0, layer4.1, fc
exit status 2

$ retune train data --weights base/model.safetensors --image-size 33 --epochs 1 --quiet --out run --freeze conv1,bn1,layer1,layer2,layer3,layer4,fc
error: --freeze: every module is frozen; nothing is left to train
exit status 2

$ retune train data --weights base/model.safetensors --image-size 33 --epochs 1 --quiet --out run --freeze-batch-norm
error: the following required arguments were not provided: --freeze <MODULES>
hint: see `retune train --help`
exit status 2

$ retune train data --weights base/model.safetensors --image-size 33 --epochs 1 --quiet --out run --head-from 0
error: cannot copy rows of the final layer of base/model.safetensors: expected 2 rows, one per class, found 1
hint: list the rows in the order of the classes: folder names, sorted
exit status 1

$ retune train data --weights base/model.safetensors --image-size 33 --epochs 1 --quiet --out run --head-from 0,3
error: cannot copy rows of the final layer of base/model.safetensors: it has no row 3, expected 0 to 2
exit status 1

$ retune train data --weights base/model.safetensors --image-size 33 --epochs 1 --quiet --out run --head-from 0,-1
error: invalid value '-1' for '--head-from <ROWS>': expected a whole number that is not negative
hint: see `retune train --help`
exit status 2

$ retune train data --weights base/model.safetensors --image-size 33 --epochs 1 --quiet --out run --from-scratch
error: the argument '--weights <FILE|OWNER/NAME>' cannot be used with '--from-scratch'
hint: see `retune train --help`
exit status 2
"##);
    }
}

mod recipes {
    use super::*;

    const LONG: &str = "train data --from-scratch --width 4 --image-size 33 --batch-size 8 --seed 5";

    #[test]
    fn a_plain_command_uses_the_best_one_and_flags_change_the_lesson() {
        let place = Workplace::with_base_model();
        let told = |flags: &str| {
            let outcome =
                place.succeed(&format!("train data --weights base --image-size 33 --no-report {flags} --out run"));
            let recipe = String::from_utf8(place.read("run/recipe.toml")).unwrap();
            fs::remove_dir_all(place.path("run")).unwrap();
            let line = outcome.stderr.lines().find(|line| line.starts_with("recipe ")).unwrap_or_default().to_string();
            (line, recipe.contains("try_learning_rates"))
        };
        let best = "recipe best; --recipe lesson trains as Dive into Deep Learning does".to_string();
        assert_eq!(told(""), (best.clone(), true));
        assert_eq!(told("--seed 3"), (best, true));
        let lesson =
            |flag: &str| format!("recipe lesson, because {flag} is given; --recipe best changes the best one instead");
        assert_eq!(told("--epochs 1"), (lesson("--epochs"), false));
        assert_eq!(told("--epochs 1 --momentum 0.5"), (lesson("--epochs"), false));
        assert_eq!(told("--recipe lesson --epochs 1"), (String::new(), false));
        assert_eq!(told("--recipe best --epochs 1"), (String::new(), true));
    }

    #[test]
    fn the_file_of_a_run_gives_the_same_run() {
        let place = Workplace::new();
        let flags = "--epochs 2 --optimizer adamw --lr 1e-3 --schedule cosine --warm-up 25% --layer-lr-decay 0.5 --augment vertical-flip=0.5";
        place.succeed(&format!("{LONG} {flags} --out first"));
        place.succeed("train data --config first/recipe.toml --out second");
        place.assert_same_result("first", "second");
        let refused = place.run("train data --config first/recipe.toml --resume --epochs 3 --seed 6 --out first");
        assert!(
            refused.stderr.contains("error: --seed differs from the recipe of the run in first"),
            "{}",
            refused.stderr
        );
        fs::write(place.path("nothing.toml"), "# recipe = 'best'\n").unwrap();
        let refused = place.run("train data --config nothing.toml --out third");
        assert!(
            refused.stderr.starts_with("error: nothing.toml: expected a recipe, found no setting\n"),
            "{}",
            refused.stderr
        );
        // What `recipes` prints is a file for --config.
        let printed = place.succeed("recipes best").stdout;
        assert!(printed.lines().any(|line| line == "epochs = 4"), "{printed}");
        fs::write(place.path("printed.toml"), printed).unwrap();
        let refused = place.run("train data --weights first --config printed.toml --batch-size 0 --out third");
        assert!(refused.stderr.contains("--batch-size 0: expected"), "{}", refused.stderr);
        fs::write(place.path("other.toml"), "recipe = 'best'").unwrap();
        let refused = place.run("train data --config other.toml --resume --extend 3 --out first");
        assert!(
            refused.stderr.contains("--config other.toml differs from the recipe of the run in first"),
            "{}",
            refused.stderr
        );
        fs::write(place.path("other.toml"), "epoch = 3").unwrap();
        let refused = place.run("train data --config other.toml --out third");
        assert!(refused.stderr.contains("error: other.toml: epoch: a recipe has no such key"), "{}", refused.stderr);
        assert!(!place.path("third").exists());
        let listed = place.succeed("recipes").stdout;
        assert!(listed.starts_with("best      "), "{listed}");
        fs::write(place.path("lesson.toml"), place.succeed("recipes lesson").stdout).unwrap();
        let started = "train data --weights base --image-size 33";
        let place = Workplace::with_base_model();
        fs::write(place.path("lesson.toml"), place.succeed("recipes lesson").stdout).unwrap();
        place.succeed(&format!("{started} --config lesson.toml --epochs 1 --out one"));
        place.succeed(&format!("{started} --epochs 1 --out other"));
        place.assert_same_result("one", "other");
        // The size of the images is that of the run, not that of the weights.
        place.succeed("train data --weights base --image-size 40 --resize squash --epochs 1 --out sized");
        place.succeed("train data --weights base --config sized/recipe.toml --out same");
        place.assert_same_result("sized", "same");
        fs::write(place.path("wide.toml"), "width = 64").unwrap();
        let refused = place.run("train data --weights base --config wide.toml --out wide");
        assert!(refused.stderr.contains("error: --width: the weights have a width of 4"), "{}", refused.stderr);
    }

    #[test]
    fn a_schedule_ends_and_a_run_is_extended_by_a_new_one() {
        let place = Workplace::new();
        let train = format!("{LONG} --schedule one-cycle --momentum 0.9 --lr 1e-3");
        // The schedule of two epochs is not the first half of that of four.
        for epochs in [2, 4] {
            place.succeed(&format!("{train} --epochs {epochs} --out {epochs}"));
        }
        let rows = |run: &str| place.metrics(run).into_iter().filter(|row| row["kind"] == "epoch").collect::<Vec<_>>();
        assert_ne!(rows("2")[1]["train_loss"], rows("4")[1]["train_loss"]);
        let refused = place.run("train data --resume --epochs 4 --out 2");
        assert_eq!(
            refused.stderr,
            "error: --epochs 4: the one-cycle schedule of the run in 2 is for 2 epochs\n\
             hint: add --extend EPOCHS to train longer, with a new schedule\n"
        );
        let extended = place.succeed("train data --resume --extend 2 --out 2");
        assert!(extended.stderr.contains("epoch 4"), "{}", extended.stderr);
        assert_eq!(rows("2").len(), 4);
        assert_ne!(place.read("2/checkpoint.safetensors"), place.read("4/checkpoint.safetensors"));
        // With a constant rate, more epochs are simply more.
        place.succeed(&format!("{LONG} --epochs 1 --out steps"));
        place.succeed("train data --resume --epochs 2 --out steps");
        place.succeed(&format!("{LONG} --epochs 2 --out whole"));
        place.assert_same_result("steps", "whole");
    }

    /// Nothing is said of the weights, or downloaded, before flags at fault are refused.
    #[test]
    fn faults_of_flags_come_first() {
        let place = Workplace::new();
        for (flags, fault) in [
            ("--steps 0", "--steps 0: expected at least 1"),
            ("--recipe lesson --lr -1", "--lr -1: expected a number above 0"),
            ("--verify-determinism --lr -1", "--lr -1: expected a number above 0"),
            ("--seeds 2 --label-smoothing 2", "--label-smoothing 2: expected a number from 0 to less than 1"),
            ("--label-smoothing 1", "--label-smoothing 1: expected a number from 0 to less than 1"),
            ("--try batch-size=0,8", "batch-size=0: --batch-size 0: expected at least 1"),
        ] {
            let refused = place.run(&format!("train data {flags} --out none"));
            assert_eq!(refused.status, 2, "{flags}");
            assert!(refused.stderr.starts_with(&format!("error: {fault}\n")), "{flags}: {}", refused.stderr);
        }
        for line in ["train nowhere --out none", "train nowhere --seeds 2 --out none", "eval resnet18 nowhere"] {
            let refused = place.run(line);
            assert_eq!(refused.status, 1, "{line}");
            assert!(refused.stderr.starts_with("error: there is no folder nowhere\n"), "{line}: {}", refused.stderr);
        }
    }

    /// Of 28 images, an epoch has four batches of eight.
    #[test]
    fn steps_are_given_instead_of_epochs() {
        let place = Workplace::new();
        let line = format!("train data {SMALL} --steps 9 --schedule cosine --resume --out run");
        place.succeed(&line);
        let config: Value = serde_json::from_slice(&place.read("run/config.json")).unwrap();
        assert_eq!((&config["recipe"]["epochs"], &config["recipe"]["steps"]), (&3.into(), &9.into()));
        place.succeed(&format!("train data {SMALL} --epochs 3 --schedule cosine --out same"));
        assert!(tensors(&place.read("run/model.safetensors")) == tensors(&place.read("same/model.safetensors")));
        assert!(place.run(&line).stderr.contains("is finished: it has completed 3 epochs"));
        assert_snapshot!(place.refusals(&[
            &format!("train data {SMALL} --steps 0 --out none"),
            &line.replace("--steps 9", "--steps 8"),
            "train data --weights run --recipe best --lr 1e-3 --out none",
        ]), @r##"
$ retune train data --from-scratch --width 4 --image-size 33 --batch-size 8 --steps 0 --out none
error: --steps 0: expected at least 1
exit status 2

$ retune train data --from-scratch --width 4 --image-size 33 --batch-size 8 --steps 8 --schedule cosine --resume --out run
error: --steps differs from the recipe of the run in run
hint: leave it out to resume, or start another run with another --out
exit status 2

$ retune train data --weights run --recipe best --lr 1e-3 --out none
error: --lr 0.001: the recipe chooses the learning rate from those of --try-lr
hint: leave --lr out, or give the learning rates to choose from with --try-lr
exit status 2
"##);
    }

    #[test]
    fn a_budget_limits_the_epochs_and_nothing_else() {
        let place = Workplace::new();
        let train = format!("{LONG} --momentum 0.9 --ema 0.9 --schedule one-cycle --no-report");
        let outcome = place.succeed(&format!("{train} --epochs 20000 --budget 3s --out limited"));
        let epochs = place.metrics("limited").iter().filter(|row| row["kind"] == "epoch").count();
        assert!((1..5000).contains(&epochs), "{epochs}");
        let told = format!("{epochs} of 20000 epochs fit into 3 s: the run takes about ");
        assert!(outcome.stderr.contains(&told), "{}", outcome.stderr);
        // The schedule is that of these epochs, and measuring the speed leaves nothing behind.
        place.succeed(&format!("{train} --epochs {epochs} --out whole"));
        place.assert_same_result("limited", "whole");

        let outcome = place.succeed(&format!("{train} --steps 8 --budget 1h --out enough"));
        assert!(outcome.stderr.contains("the whole run fits into 3600 s"), "{}", outcome.stderr);
        let refused = place.run(&format!("{train} --budget 0s --out none"));
        assert_eq!(refused.status, 2);
        let expected = "error: --budget 0s: a run of one epoch takes about 1 s\n\
                        hint: give more time, or fit only the final layer with --head-only\n";
        assert!(refused.stderr.ends_with(expected) && !place.path("none").exists(), "{}", refused.stderr);
        let fitted = place.succeed("train data --weights whole --image-size 33 --recipe best --budget 0s --out fitted");
        assert!(fitted.stderr.contains("only the final layer is fitted: with an epoch, "), "{}", fitted.stderr);
        assert!(place.metrics("fitted").iter().all(|row| row["kind"] != "trials"));
    }

    #[test]
    fn patience_ends_a_run() {
        let place = Workplace::new();
        let outcome = place.succeed(&format!("{LONG} --lr 1e-9 --epochs 9 --patience 2 --out run"));
        let rows: Vec<Value> = place.metrics("run").into_iter().filter(|row| row["kind"] == "epoch").collect();
        let best = rows
            .iter()
            .enumerate()
            .min_by(|(_, a), (_, b)| {
                let key = |row: &Value| (-row["test_acc"].as_f64().unwrap(), row["test_loss"].as_f64().unwrap());
                key(a).partial_cmp(&key(b)).unwrap()
            })
            .map(|(index, _)| index + 1);
        assert!(rows.len() < 9 && best.is_some_and(|best| rows.len() == best + 2), "{}", outcome.stderr);
        let refused = place.run("train data --resume --out run");
        assert!(refused.stderr.contains("it stopped after 2 epochs without a better model"), "{}", refused.stderr);
    }

    #[test]
    fn learning_rates_are_tried_on_held_back_images() {
        let place = Workplace::with_base_model();
        let train = "train data --weights base --image-size 33 --recipe best --batch-size 4 --epochs 2";
        let outcome = place.succeed(&format!("{train} --try-lr 1e-9,1e-3 --out run"));
        let rows = place.metrics("run");
        let tried = rows.iter().find(|row| row["kind"] == "trials").expect("trials");
        let trials = tried["trials"].as_array().unwrap();
        assert_eq!(trials.len(), 3);
        assert!(trials[0]["learning_rate"].is_null() && trials[1]["learning_rate"] == 1e-9, "{tried}");
        let number = |trial: &Value, field: &str| trial[field].as_f64().unwrap();
        let gain = |trial: &&Value| number(&trials[0], "loss") - number(trial, "loss");
        let better = trials[1..].iter().filter(|trial| gain(trial) > number(trial, "standard_error"));
        let least = better.max_by(|a, b| gain(a).total_cmp(&gain(b))).unwrap_or(&trials[0]);
        assert_eq!(least["learning_rate"], tried["chosen"], "{tried}");
        assert_eq!(outcome.stderr.matches("(chosen)").count(), 1, "{}", outcome.stderr);
        let page = String::from_utf8(place.read("run/report.html")).unwrap();
        assert!(page.contains("were held back to choose how to train"), "{page}");
        // The same trials, whoever decodes.
        place.succeed(&format!("{train} --try-lr 1e-9,1e-3 --workers 1 --threads 1 --out again"));
        place.assert_same_result("run", "again");
        // Each trial starts from the same state.
        place.succeed(&format!("{train} --try-lr 1e-3,1e-9 --no-report --out turned"));
        let turned = place.metrics("turned").into_iter().find(|row| row["kind"] == "trials").expect("trials");
        assert_eq!((&turned["trials"][1], &turned["trials"][2]), (&trials[2], &trials[1]));
        // A rate at which nothing is learned, and one at which everything is forgotten.
        let fixed = place.succeed(&format!("{train} --try-lr 1e9 --out fixed"));
        let epochs: Vec<Value> = place.metrics("fixed").into_iter().filter(|row| row["kind"] == "epoch").collect();
        assert_eq!(epochs.len(), 1, "{}", fixed.stderr);
        let refused = place.run("train data --resume --out fixed");
        assert!(refused.stderr.contains("no epoch was better than its fitted final layer"), "{}", refused.stderr);
        let page = String::from_utf8(place.read("fixed/report.html")).unwrap();
        assert!(page.contains("So only the final layer was trained, on all training images."), "{page}");
    }

    /// Neither the moments of AdamW nor the average of the weights know anything of the trials.
    #[test]
    fn trials_leave_nothing_behind() {
        let place = Workplace::with_base_model();
        let train = "train data --weights base --image-size 33 --batch-size 4 --epochs 6 --fit-head --optimizer adamw --head-lr-multiplier 1 --ema 0.9 \
                     --keep-last --no-report";
        place.succeed(&format!("{train} --try-lr 3e-2 --out tried"));
        let rows = place.metrics("tried");
        let trials = rows.iter().find(|row| row["kind"] == "trials").unwrap();
        assert_eq!(trials["chosen"], 3e-2, "{trials}");
        place.succeed(&format!("{train} --lr 3e-2 --out plain"));
        for file in ["model.safetensors", "checkpoint.safetensors"] {
            let [tried, plain] = ["tried", "plain"].map(|run| tensors(&place.read(&format!("{run}/{file}"))));
            assert!(tried == plain, "{file}");
        }
        place.succeed(&format!("{} --lr 3e-2 --out other", train.replace("--ema 0.9", "")));
        assert!(tensors(&place.read("plain/model.safetensors")) != tensors(&place.read("other/model.safetensors")));
    }
}

mod tests_and_predictions {
    use super::*;

    const DEVICES: &[&str] = if cfg!(feature = "emulator") { &["cpu", "emulator"] } else { &["cpu"] };

    /// The values of a tensor in a file.
    fn values(place: &Workplace, file: &str, name: &str) -> Vec<f32> {
        let bytes = place.read(file);
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    }

    fn logits(place: &Workplace, line: &str) -> Vec<f64> {
        let found = place.json(&format!("predict base {line} --json --logits"));
        found[0]["logits"].as_array().unwrap().iter().map(|logit| logit.as_f64().unwrap()).collect()
    }

    #[test]
    fn results_replace_no_models_and_no_images() {
        let place = Workplace::with_base_model();
        std::fs::write(place.path("labels.csv"), "path,label\n1.png,red\n").unwrap();
        std::fs::copy(place.path("base/model.safetensors"), place.path("model.png")).unwrap();
        std::fs::copy(place.path("base/checkpoint.safetensors"), place.path("checkpoint.safetensors")).unwrap();
        std::fs::copy(place.path("base/report.html"), place.path("base/report.onnx")).unwrap();
        std::fs::copy(place.path("data/train/red/00.png"), place.path("photo.png")).unwrap();
        image::open(place.path("photo.png")).unwrap().save(place.path("photo.jpg")).unwrap();
        for (command, file) in [
            ("report base -o base/model.safetensors", "base/model.safetensors"),
            ("eval base base-data --per-image base/model.safetensors", "base/model.safetensors"),
            ("report base -o data/test/red/00.png", "data/test/red/00.png"),
            ("embed base data/test -o base/model.safetensors", "base/model.safetensors"),
            ("eval base data --per-image labels.csv", "labels.csv"),
            ("embed base data/test -o labels.csv", "labels.csv"),
            ("show data -o model.png", "model.png"),
            ("show data -o photo.png", "photo.png"),
            ("show data -o photo.jpg", "photo.jpg"),
            ("convert base base/checkpoint.safetensors", "base/checkpoint.safetensors"),
            ("convert base checkpoint.safetensors", "checkpoint.safetensors"),
            ("convert base base/model.safetensors", "base/model.safetensors"),
            ("convert base base/report.onnx", "base/report.onnx"),
        ] {
            let before = place.read(file);
            let outcome = place.run(command);
            assert_eq!(outcome.status, 1, "{command}");
            assert!(outcome.stderr.contains("there is a file of another kind"), "{}", outcome.stderr);
            assert!(place.read(file) == before, "{command}");
        }
        let before = place.read("data/test/red/00.png");
        for file in ["data/test/red/00.png", "data/new.png", "data/../data/train/x.jpg"] {
            let outcome = place.run(&format!("show data -o {file}"));
            assert_eq!(outcome.status, 2, "{file}");
            assert!(outcome.stderr.contains("would be inside the folder of images data\n"), "{}", outcome.stderr);
        }
        assert!(place.read("data/test/red/00.png") == before && !place.path("data/new.png").exists());
        let shown = place.succeed("show colours --augmented --per-class 2 -o augmented.png");
        assert_eq!(shown.stdout, "augmented.png: 6 images of 3 classes\n");
        // What a command wrote itself, and what is empty, it replaces.
        std::fs::write(place.path("empty.csv"), "").unwrap();
        for command in [
            "show data -o sheet.png",
            "show data -o sheet.jpg",
            "convert base converted.safetensors",
            "convert base base/model.onnx",
            "embed base data/test -o features.safetensors",
            "embed base data/test -o features.csv",
            "embed base data/test -o empty.csv",
        ] {
            place.succeed(command);
            place.succeed(command);
        }
    }

    #[test]
    fn a_threshold_decides_between_two_classes() {
        let place = Workplace::with_base_model();
        place.succeed("train data --weights base --image-size 33 --epochs 1 --batch-size 8 --no-report --out run");
        let eval = |flags: &str| {
            place.succeed(&format!("eval run data --per-image rows.csv {flags}"));
            let text = String::from_utf8(place.read("rows.csv")).unwrap();
            let rows = text.lines().skip(1).map(|line| line.split(',').map(String::from).collect::<Vec<_>>());
            let red = |row: &Vec<String>| {
                let probability: f64 = row[3].parse().unwrap();
                if row[2] == "red" { probability } else { 1.0 - probability }
            };
            rows.map(|row| (row[0].clone(), row[2].clone(), red(&row))).collect::<Vec<_>>()
        };
        let plain = eval("");
        let mut probabilities: Vec<f64> = plain.iter().map(|row| row.2).collect();
        probabilities.sort_by(f64::total_cmp);
        let loss = place.json("eval run data --json")["loss"].clone();
        for (low, high) in [(0, 1), (3, 4), (probabilities.len() - 2, probabilities.len() - 1)] {
            let threshold = (probabilities[low] + probabilities[high]) / 2.0;
            let decided = eval(&format!("--threshold red={threshold}"));
            let of_red = decided.iter().filter(|row| row.1 == "red").count();
            assert_eq!(of_red, probabilities.len() - high, "{threshold}");
            for (row, before) in decided.iter().zip(&plain) {
                assert_eq!(row.1 == "red", before.2 >= threshold);
                assert!((row.2 - before.2).abs() < 1e-9, "probabilities stay as they are");
            }
            let result = place.json(&format!("eval run data --json --threshold red={threshold}"));
            assert_eq!(result["loss"], loss);
            let predicted: u64 = (0..2).map(|class| result["confusion"][class][1].as_u64().unwrap()).sum();
            assert_eq!(predicted as usize, of_red);
            let listed = place.json(&format!("predict run data/test --json --threshold red={threshold}"));
            let first = listed.as_array().unwrap().iter().filter(|image| image["classes"][0]["class"] == "red").count();
            assert_eq!(first, of_red);
        }
        let shown = place.succeed("eval run data --threshold red=0.25").stdout;
        assert!(shown.contains("\nred is predicted from a probability of 0.25 on\n"), "{shown}");
        let refused = place.run("predict base data/test --threshold purple=0.5");
        assert!(refused.status == 2 && refused.stderr.contains("the model has 3 classes"), "{}", refused.stderr);
    }

    #[test]
    fn outputs_are_averaged_with_those_of_the_mirror_image() {
        let place = Workplace::with_base_model();
        // Left and right differ; the middle 33 of 39 columns are used, so that as many are cut off on both sides.
        let picture = RgbImage::from_fn(39, 38, |x, y| Rgb([(6 * x) as u8, (3 * x + y) as u8, (200 - 5 * x) as u8]));
        picture.save(place.path("one.png")).unwrap();
        image::imageops::flip_horizontal(&picture).save(place.path("mirrored.png")).unwrap();
        for device in DEVICES {
            let [one, mirrored, averaged] = ["one.png", "mirrored.png", "one.png --average-mirror"]
                .map(|line| logits(&place, &format!("{line} --device {device}")));
            assert!(one.iter().zip(&mirrored).any(|(a, b)| (a - b).abs() > 1e-2), "{one:?} {mirrored:?}");
            for ((one, mirrored), averaged) in one.iter().zip(&mirrored).zip(&averaged) {
                assert!(((one + mirrored) / 2.0 - averaged).abs() < 1e-4, "{one} {mirrored} {averaged}");
            }
        }
        // The model records it, and the flag overrides that.
        place.succeed("train data --weights base --image-size 33 --head-only --average-mirror --no-report --out run");
        let record = String::from_utf8(place.read("run/metrics.jsonl")).unwrap();
        let tested: Value = serde_json::from_str(record.lines().last().unwrap()).unwrap();
        let loss = |line: &str| place.json(&format!("eval run data --json {line}"))["loss"].as_f64().unwrap();
        assert!((loss("") - tested["test_loss"].as_f64().unwrap()).abs() < 1e-9);
        assert_eq!(loss(""), loss("--average-mirror"));
        assert_ne!(loss(""), loss("--average-mirror=false"));
    }

    #[test]
    fn the_saved_final_layer_is_divided_by_the_temperature() {
        let place = Workplace::with_base_model();
        let train = "train data --weights base --image-size 33 --batch-size 8 --no-report --calibrate --keep-last";
        for (line, out) in [("--head-only", "head"), ("--fit-head --try-lr 1e-9,1e-3 --epochs 2", "tried")] {
            place.succeed(&format!("{train} {line} --out {out}"));
            let inspected = place.json(&format!("inspect {out} --json"));
            let temperature = inspected["temperature"].as_f64().unwrap();
            assert!(temperature > 0.0 && temperature != 1.0);
            for name in ["fc.weight", "fc.bias"] {
                let trained = values(&place, &format!("{out}/checkpoint.safetensors"), &format!("param/{name}"));
                let saved = values(&place, &format!("{out}/model.safetensors"), name);
                for (trained, saved) in trained.iter().zip(&saved) {
                    assert_eq!((f64::from(*trained) / temperature) as f32, *saved);
                }
            }
        }

        let refused = place.run(&format!("{train} --fit-head --epochs 1 --out none"));
        assert_eq!(refused.status, 2);
        assert!(refused.stderr.contains("--calibrate: there are no images to which a temperature could be fitted"));
    }

    #[test]
    fn training_images_may_have_another_size_than_those_of_tests() {
        let place = Workplace::with_base_model();
        let train = "train data --weights base --image-size 48 --train-size 33 --batch-size 8 --fit-head --epochs 2 --no-report";
        DEVICES.iter().for_each(|device| {
            place.succeed(&format!("{train} --device {device} --out {device}"));
        });
        assert_eq!(place.json("inspect cpu --json")["image_size"], 48);
        let weights = |run: &str| values(&place, &format!("{run}/model.safetensors"), "fc.weight");
        for device in DEVICES {
            let differences = weights("cpu").into_iter().zip(weights(device)).map(|(a, b)| (a - b).abs());
            assert!(differences.fold(0.0, f32::max) < 1e-3);
        }
        let other = format!("{train} --out other").replace("--train-size 33", "--train-size 40");
        place.succeed(&other);
        assert_ne!(weights("cpu"), weights("other"));
        let refused = place.run(&format!("{train} --out none").replace("--train-size 33", "--train-size 3"));
        assert_eq!(refused.status, 2);
        assert!(refused.stderr.contains("--train-size 3: expected 8 to 65536"), "{}", refused.stderr);
    }
}

mod fitted_heads {
    use super::*;

    const HEAD: &str = "train data --weights base --image-size 33 --batch-size 8";

    /// The bytes of every tensor in a file.
    fn tensors(place: &Workplace, file: &str) -> BTreeMap<String, Vec<u8>> {
        let bytes = place.read(file);
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        tensors.tensors().into_iter().map(|(name, tensor)| (name, tensor.data().to_vec())).collect()
    }

    #[test]
    fn one_pass_trains_the_head_and_nothing_else() {
        let place = Workplace::with_base_model();
        let outcome = place.succeed(&format!("{HEAD} --head-only --out head"));
        let told = &outcome.stderr;
        assert!(told.contains("fitted to the features of each training image and its mirror image\n"), "{told}");
        assert!(told.contains("final layer: train loss "), "{told}");
        assert!(told.contains("with the fitted final layer: head/model.safetensors\n"), "{told}");
        let (before, after) = (tensors(&place, "base/model.safetensors"), tensors(&place, "head/model.safetensors"));
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for (name, values) in &after {
            assert_eq!(before[name] == *values, !name.starts_with("fc."), "{name}");
        }

        let metrics = String::from_utf8(place.read("head/metrics.jsonl")).unwrap();
        let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [fit, epoch] = lines.as_slice() else { panic!("{metrics}") };
        assert_eq!((&fit["kind"], &epoch["kind"], &epoch["epoch"]), (&"head".into(), &"epoch".into(), &0.into()));
        let tried = fit["tried"].as_array().unwrap();
        let loss = |one: &&Value| one["loss"].as_f64().unwrap();
        let best = tried.iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap();
        assert_eq!(fit["penalty"], best["penalty"]);
        // Blue and red are easy to tell apart.
        assert_eq!((epoch["train_acc"].as_f64(), epoch["test_acc"].as_f64()), (Some(1.0), Some(1.0)), "{metrics}");
        let evaluated = place.json("eval head data --json");
        assert!((evaluated["loss"].as_f64().unwrap() - epoch["test_loss"].as_f64().unwrap()).abs() < 1e-9);

        let page = String::from_utf8(place.read("head/report.html")).unwrap();
        assert!(page.contains("Only the final layer was trained: to the features"), "{page}");
        assert!(page.contains("Penalties that were tried") && !page.contains("Training curves"), "{page}");

        place.succeed(&format!("{HEAD} --head-only --workers 1 --threads 1 --out again"));
        assert_eq!(tensors(&place, "again/model.safetensors"), after);
        place.succeed(&format!("{HEAD} --head-only --feature-copies 3 --augment horizontal-flip=0 --out copies"));
        assert_ne!(tensors(&place, "copies/model.safetensors"), after);
    }

    #[test]
    fn training_goes_on_from_a_fitted_head() {
        let place = Workplace::with_base_model();
        place.succeed(&format!("{HEAD} --head-only --out steps"));
        place.succeed("train data --resume --epochs 1 --out steps");
        place.succeed("train data --resume --epochs 2 --out steps");
        place.succeed(&format!("{HEAD} --fit-head --epochs 2 --out whole"));
        for file in ["model.safetensors", "checkpoint.safetensors"] {
            assert_eq!(place.read(&format!("steps/{file}")), place.read(&format!("whole/{file}")), "{file}");
        }
        let metrics = String::from_utf8(place.read("whole/metrics.jsonl")).unwrap();
        let epochs: Vec<Value> = metrics
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|line| line["kind"] == "epoch")
            .map(|line| line["epoch"].clone())
            .collect();
        assert_eq!(epochs, [0, 1, 2]);
        let page = String::from_utf8(place.read("whole/report.html")).unwrap();
        assert!(page.contains("Before the first epoch, the final layer was fitted"), "{page}");
        assert!(page.contains("among the fitted final layer and 2 epochs"), "{page}");
        assert!(page.contains("Training curves"), "{page}");
    }

    #[test]
    fn what_makes_no_sense_with_a_fitted_head_is_refused() {
        let place = Workplace::with_base_model();
        place.succeed(&format!("{HEAD} --head-only --out done"));
        assert_snapshot!(place.refusals(&[
            &format!("{HEAD} --out run --epochs 0"),
            &format!("{HEAD} --out run --head-only --epochs 3"),
            &format!("{HEAD} --out run --head-only --new-head"),
            &format!("{HEAD} --out run --head-only --head-from 0,1"),
            &format!("{HEAD} --out run --head-only --feature-copies 101"),
            "train data --from-scratch --out run --head-only",
            "train data --resume --out done",
        ]), @r##"
$ retune train data --weights base --image-size 33 --batch-size 8 --out run --epochs 0
error: --epochs 0: expected at least 1
hint: --head-only fits the final layer without epochs
exit status 2

$ retune train data --weights base --image-size 33 --batch-size 8 --out run --head-only --epochs 3
error: the argument '--head-only' cannot be used with '--epochs <N>'
hint: see `retune train --help`
exit status 2

$ retune train data --weights base --image-size 33 --batch-size 8 --out run --head-only --new-head
error: --new-head: the final layer is fitted, so its initial values have no effect
hint: leave --new-head out, or --fit-head and --head-only
exit status 2

$ retune train data --weights base --image-size 33 --batch-size 8 --out run --head-only --head-from 0,1
error: --head-from: the final layer is fitted, so its initial values have no effect
hint: leave --head-from out, or --fit-head and --head-only
exit status 2

$ retune train data --weights base --image-size 33 --batch-size 8 --out run --head-only --feature-copies 101
error: --feature-copies 101: expected at most 100
exit status 2

$ retune train data --from-scratch --out run --head-only
error: the argument '--from-scratch' cannot be used with '--head-only'
hint: see `retune train --help`
exit status 2

$ retune train data --resume --out done
error: the run in done is finished: it has completed the fit of its final layer
hint: give a larger --epochs to train longer, or another --out to start another run
exit status 1
"##);
        assert!(!place.path("run").exists());
    }
}

mod other_commands {
    use super::*;

    #[test]
    fn predict_accepts_files_folders_and_patterns() {
        let place = Workplace::with_base_model();
        let model = "base/model.safetensors";
        let table = place.succeed(&format!("predict {model} colours/green/00.png --top 2")).stdout;
        let (path, classes) = table.trim_end().split_once(": ").unwrap();
        assert_eq!((path, classes.split(", ").count()), ("colours/green/00.png", 2));

        let whole = place.json(&format!("predict {model} colours/green --json --logits --top 3"));
        let pictures = whole.as_array().unwrap();
        assert_eq!(pictures.len(), 12);
        for picture in pictures {
            assert_eq!(keys(picture), ["classes", "logits", "path"]);
            let probabilities: Vec<f64> =
                picture["classes"].as_array().unwrap().iter().map(|one| one["probability"].as_f64().unwrap()).collect();
            assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            assert!(probabilities.is_sorted_by(|a, b| a >= b), "{probabilities:?}");
            let logits: Vec<f64> = picture["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            let largest = logits.iter().fold(f64::MIN, |a, &b| a.max(b)).exp() / sum;
            assert!((largest - probabilities[0]).abs() < 1e-6);
        }
        let pattern = place.json(&format!("predict {model} colours/*/0[0-1].png --json"));
        let paths: Vec<&str> = pattern.as_array().unwrap().iter().map(|one| one["path"].as_str().unwrap()).collect();
        assert_eq!(paths.len(), 6, "{paths:?}");
        assert_eq!(paths[..2], ["colours/green/00.png", "colours/green/01.png"]);
        assert!(pattern[0].get("logits").is_none());

        // What is not read is told as `train` tells it.
        for (name, class) in [("1.heic", "green"), ("2.heic", "purple"), ("x.psd", "green"), (".DS_Store", "green")] {
            place.write(&format!("colours/{class}/{name}"), b"?");
        }
        place.write("raws/a.cr2", b"?");
        let told = "set aside, as it belongs to no class: .DS_Store\n3 files skipped: 2 HEIC, 1 PSD (these types are not supported)\n";
        let whole = place.succeed(&format!("predict {model} colours"));
        assert_eq!((whole.stdout.lines().count(), whole.stderr.as_str()), (36, told));
        assert_eq!(place.succeed("show colours -o sheet.png").stderr, told);
        let train = place.succeed(&format!("train colours --test-fraction 0.25 {SMALL} --epochs 1 --out run"));
        assert!(train.stderr.contains(told), "{}", train.stderr);
        let none = place.run(&format!("predict {model} raws"));
        assert!(
            none.stderr.starts_with("error: raws: no images in this folder (1 file skipped: 1 Canon raw)\n"),
            "{}",
            none.stderr
        );
    }

    /// Returns the standard output of `predict`, which reads `input`.
    fn predict_from(place: &Workplace, line: &str, input: &[u8]) -> Outcome {
        let mut command = assert_cmd::Command::new(PROGRAM);
        command.args(line.split_whitespace()).current_dir(place.folder.path()).write_stdin(input).timeout(TIMEOUT);
        let output = command.env("CUDA_VISIBLE_DEVICES", "").output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Outcome { status: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[test]
    fn an_image_that_is_missing_does_not_stop_the_others() {
        let place = Workplace::with_base_model();
        let (model, image) = ("base/model.safetensors", "colours/green/00.png");
        fs::create_dir(place.path("empty")).unwrap();
        let alone = place.succeed(&format!("predict {model} {image}")).stdout;
        let outcome = place.run(&format!("predict {model} {image} missing.png empty no/*.png {image} --format csv"));
        assert_eq!(outcome.status, 1);
        let lines: Vec<&str> = outcome.stdout.lines().collect();
        assert_eq!(
            lines.iter().filter(|line| line.starts_with(image)).count(),
            2 * alone.lines().count().max(1),
            "{lines:?}"
        );
        for told in [
            "warning: skipped: missing.png: no such file\n",
            "warning: skipped: empty: no images in this folder\n",
            "error: 3 of 5 images could not be read\n",
        ] {
            assert!(outcome.stderr.contains(told), "{}", outcome.stderr);
        }
        let embedded = place.run(&format!("embed {model} missing.png {image} --output features.csv"));
        assert_eq!(embedded.status, 1);
        assert!(embedded.stderr.ends_with("error: 1 of 2 images could not be read\n"), "{}", embedded.stderr);
        assert_eq!(String::from_utf8(place.read("features.csv")).unwrap().lines().count(), 2);
    }

    #[test]
    fn predict_reads_an_image_from_standard_input() {
        let place = Workplace::with_base_model();
        let (model, image) = ("base/model.safetensors", "colours/green/00.png");
        let named = place.succeed(&format!("predict {model} {image}")).stdout;
        let piped = predict_from(&place, &format!("predict {model} -"), &place.read(image));
        assert_eq!((piped.status, piped.stdout), (0, named.replace(image, "-")), "{}", piped.stderr);
        let both = predict_from(&place, &format!("predict {model} - {image}"), &place.read(image));
        assert_eq!(both.stdout, named.replace(image, "-") + &named);
        // A file may have that name.
        fs::copy(place.path(image), place.path("-")).unwrap();
        assert_eq!(place.succeed(&format!("predict {model} ./-")).stdout, named.replace(image, "./-"));

        let wrong = predict_from(&place, &format!("predict {model} - --json"), b"no picture");
        assert_eq!(wrong.status, 1);
        let error =
            "cannot decode standard input: expected a JPEG, PNG, GIF, BMP, TIFF, WebP or PNM image, found a text file";
        assert_eq!(wrong.stdout, format!("[{{\"path\":\"-\",\"error\":\"{error}\"}}]\n"));
        assert_eq!(wrong.stderr, format!("warning: skipped: {error}\nerror: 1 of 1 images could not be read\n"));
        for line in [format!("predict {model} - -"), format!("predict {model} - --from -")] {
            let refused = predict_from(&place, &line, b"");
            assert_eq!(refused.stderr, "error: -: standard input can be read only once\n");
            assert_eq!((refused.status, refused.stdout.as_str()), (2, ""));
        }
    }

    #[test]
    fn predict_reads_a_list_of_images() {
        let place = Workplace::with_base_model();
        place.write("broken.png", b"no picture");
        place.write("a b, c.png", &place.read("colours/green/02.png"));
        let names = ["colours/green/00.png", "missing.png", "a b, c.png", "broken.png", "colours/green/01.png"];
        let model = "base/model.safetensors";
        let lines = names.join("\r\n\n");
        place.write("lines", lines.as_bytes());
        place.write("nulls", format!("{}\0", names.join("\0")).as_bytes());
        let base = format!("predict {model} colours/purple/00.png --top 2");
        let runs = [
            place.run(&format!("{base} --from lines --format jsonl")),
            predict_from(&place, &format!("{base} --from - --format jsonl"), lines.as_bytes()),
            place.run(&format!("{base} --from nulls -0 --format jsonl")),
        ];
        for run in &runs {
            assert_eq!((run.status, &run.stdout), (1, &runs[0].stdout), "{}", run.stderr);
            assert!(run.stderr.ends_with("error: 2 of 6 images could not be read\n"), "{}", run.stderr);
        }
        let rows: Vec<Value> = runs[0].stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let paths: Vec<&str> = rows.iter().map(|row| row["path"].as_str().unwrap()).collect();
        assert_eq!(paths, [&["colours/purple/00.png"], &names[..]].concat(), "in the order of the list");
        for (row, is_readable) in rows.iter().zip([true, true, false, true, false, true]) {
            assert_eq!(keys(row), if is_readable { ["classes", "path"] } else { ["error", "path"] }, "{row}");
        }
        assert!(rows[2]["error"].as_str().unwrap().contains("No such file"), "{}", rows[2]);
        // A list as Windows writes it, with a URL.
        place.write("mark", b"\xEF\xBB\xBFcolours/green/00.png\r\nhttps://example.org/a.jpg\r\n");
        let marked = place.run(&format!("predict {model} --from mark"));
        assert!(marked.stdout.starts_with("colours/green/00.png: "), "{}", marked.stdout);
        assert_eq!(
            marked.stderr,
            "warning: skipped: https://example.org/a.jpg: expected a path on this machine, found a URL\n\
             error: 1 of 2 images could not be read\n\
             hint: download it first, for example with `curl -LO`, and give its path\n"
        );
        place.write("wide", b"\xFF\xFEc\0o\0\n\0");
        for (list, expected) in [
            ("nulls", "cannot read nulls: its paths end in NUL characters: add -0"),
            ("lines -0", "cannot read lines: its paths end in line breaks: leave -0 out"),
            ("wide", "cannot read wide: it is UTF-16 text: save it as UTF-8"),
            (
                "colours/green/00.png",
                "cannot read colours/green/00.png: it is an image, expected a list of paths: leave --from out",
            ),
        ] {
            let refused = place.run(&format!("predict {model} --from {list}"));
            assert_eq!((refused.status, refused.stderr), (1, format!("error: {expected}\n")));
        }
        #[cfg(unix)]
        for (input, arguments) in [("colours/green/00.png", "/dev/stdin"), ("lines", "--from /dev/stdin")] {
            let [device, dash] = [arguments.to_string(), arguments.replace("/dev/stdin", "-")]
                .map(|arguments| place.shell(&format!("\"$RETUNE\" predict {model} {arguments} < {input}")));
            assert_eq!((device.status, &device.stdout), (dash.status, &dash.stdout), "{arguments}: {}", device.stderr);
            assert!(device.stdout.contains("green"), "{arguments}: {}", device.stderr);
        }
        let array = place.run(&format!("{base} --from lines --json"));
        assert_eq!(serde_json::from_str::<Vec<Value>>(&array.stdout).unwrap(), rows);
        assert_eq!(array.stdout, place.run(&format!("{base} --from lines --format json")).stdout);

        let table = place.run(&format!("{base} --from lines --format csv")).stdout;
        let mut reader = csv::Reader::from_reader(table.as_bytes());
        assert_eq!(
            reader.headers().unwrap().iter().collect::<Vec<_>>().join(" "),
            "path class_1 probability_1 class_2 probability_2 error"
        );
        for (record, row) in reader.records().map(Result::unwrap).zip(&rows) {
            assert_eq!((record.len(), &record[0]), (6, row["path"].as_str().unwrap()));
            match row.get("error") {
                Some(error) => assert_eq!((&record[1], &record[5]), ("", error.as_str().unwrap())),
                None => {
                    assert_eq!((&record[1], &record[5]), (row["classes"][0]["class"].as_str().unwrap(), ""));
                    assert_eq!(record[2].parse::<f64>().unwrap(), row["classes"][0]["probability"].as_f64().unwrap());
                }
            }
        }
        assert_eq!(table.lines().count(), 7);
        place.write("empty", b"\n\n");
        assert_snapshot!(place.refusals(&[
            &format!("predict {model} --from empty"),
            &format!("predict {model} --from nothing"),
            &format!("predict {model} -0 broken.png"),
            &format!("predict {model} broken.png --format csv --json"),
            &format!("predict {model} broken.png --format csv --logits"),
            &format!("predict {model} broken.png --format cvs"),
        ]), @r##"
$ retune predict base/model.safetensors --from empty
error: there are no images in the list
exit status 1

$ retune predict base/model.safetensors --from nothing
error: nothing: no such file
exit status 1

$ retune predict base/model.safetensors -0 broken.png
error: the following required arguments were not provided: --from <FILE>
hint: see `retune predict --help`
exit status 2

$ retune predict base/model.safetensors broken.png --format csv --json
error: --json asks for another format than --format
exit status 2

$ retune predict base/model.safetensors broken.png --format csv --logits
error: --logits: only JSON has room for them
hint: add --json, or --format jsonl
exit status 2

$ retune predict base/model.safetensors broken.png --format cvs
error: invalid value 'cvs' for '--format <FORMAT>' [possible values: text, json, jsonl, csv]
hint: see `retune predict --help`
exit status 2
"##);
    }

    /// Results come while the list is still being written, and a list without an end ends with its reader.
    #[cfg(unix)]
    #[test]
    fn predict_prints_results_as_they_come() {
        use std::io::{BufRead, Write};

        let place = Workplace::with_base_model();
        for format in ["text", "jsonl", "csv"] {
            let line = format!("predict base/model.safetensors --from - --format {format} --device cpu");
            let mut command = std::process::Command::new(PROGRAM);
            command.args(line.split_whitespace()).current_dir(place.folder.path());
            command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut list = child.stdin.take().unwrap();
            let mut results = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
            for number in 0..3 {
                writeln!(list, "colours/green/0{number}.png").unwrap();
                if format == "csv" && number == 0 {
                    assert!(results.next().unwrap().unwrap().starts_with("path,"));
                }
                let result = results.next().unwrap().unwrap();
                assert!(result.contains(&format!("colours/green/0{number}.png")), "{result}");
            }
            drop(list);
            assert!(child.wait().unwrap().success());
        }
        let endless = "yes colours/green/00.png | \"$RETUNE\" predict base/model.safetensors --from - --format jsonl | head -2500";
        let outcome = place.shell(endless);
        assert_eq!((outcome.status, outcome.stdout.lines().count()), (0, 2500), "{}", outcome.stderr);
    }

    /// The values of a tensor in a file.
    fn tensor(place: &Workplace, file: &str, name: &str) -> Vec<f32> {
        let bytes = place.read(file);
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let values = tensors.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
        values.into_iter().map(f32::from_le_bytes).collect()
    }

    /// With the weights of the final layer, they give the logits.
    #[test]
    fn embed_writes_the_inputs_of_the_final_layer() {
        let place = Workplace::with_base_model();
        let written = place.succeed("embed base colours/green data/test/red --output all.safetensors").stdout;
        assert!(written.starts_with("all.safetensors: 32 features of 18 images, "), "{written}");
        let features = tensor(&place, "all.safetensors", "features");
        let (weight, bias) = (
            tensor(&place, "base/model.safetensors", "fc.weight"),
            tensor(&place, "base/model.safetensors", "fc.bias"),
        );
        let predicted = place.json("predict base colours/green data/test/red --json --logits");
        let predicted = predicted.as_array().unwrap();
        assert_eq!((features.len(), predicted.len()), (18 * 32, 18));
        for (features, predicted) in features.chunks_exact(32).zip(predicted) {
            for ((weights, bias), logit) in
                weight.chunks_exact(32).zip(&bias).zip(predicted["logits"].as_array().unwrap())
            {
                let sum = bias + weights.iter().zip(features).map(|(w, x)| w * x).sum::<f32>();
                assert!((f64::from(sum) - logit.as_f64().unwrap()).abs() < 1e-4, "{sum} {logit}");
            }
        }
        let paths: Vec<&str> = predicted.iter().map(|one| one["path"].as_str().unwrap()).collect();
        let bytes = place.read("all.safetensors");
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["paths"], serde_json::to_string(&paths).unwrap());

        place.succeed("embed base colours/green data/test/red --output all.csv --batch-size 5");
        let table = String::from_utf8(place.read("all.csv")).unwrap();
        let mut lines = table.lines();
        assert!(lines.next().unwrap().starts_with("path,feature_0,feature_1,"));
        for ((line, path), row) in lines.by_ref().zip(&paths).zip(features.chunks_exact(32)) {
            let (name, numbers) = line.split_once(',').unwrap();
            let numbers: Vec<f32> = numbers.split(',').map(|number| number.parse().unwrap()).collect();
            assert_eq!((&name, &numbers[..]), (path, row));
        }
        assert_eq!(table.lines().count(), 19);
    }

    #[test]
    fn embed_finds_similar_images() {
        let place = Workplace::with_base_model();
        let copy = place.read("colours/green/03.png");
        place.write("copy.png", &copy);
        place.succeed("embed base colours --output all.safetensors --quiet");
        let nearest = place.succeed("embed base copy.png --nearest 2 --among all.safetensors").stdout;
        assert!(nearest.starts_with("copy.png: colours/green/03.png 1.000, "), "{nearest}");

        // Among themselves: no image is its own neighbour, and similarity does not depend on which of two is asked for.
        place.write("colours/green/copy.png", &copy);
        let found = place.json("embed base colours/green --nearest 100 --json");
        assert_eq!((&found["images"], &found["features"]), (&13.into(), &32.into()));
        let mut similarities = BTreeMap::new();
        for row in found["nearest"].as_array().unwrap() {
            let others = row["nearest"].as_array().unwrap();
            assert_eq!(others.len(), 12);
            let similarity = |other: &Value| other["similarity"].as_f64().unwrap();
            assert!(others.is_sorted_by(|a, b| similarity(a) >= similarity(b)), "{row}");
            for other in others {
                assert_ne!(other["path"], row["path"]);
                similarities.insert((row["path"].to_string(), other["path"].to_string()), similarity(other));
            }
        }
        assert_eq!(similarities.len(), 13 * 12);
        for ((a, b), similarity) in &similarities {
            assert_eq!(similarities[&(b.clone(), a.clone())], *similarity, "{a} {b}");
        }
        let twins = ["\"colours/green/03.png\"", "\"colours/green/copy.png\""].map(String::from);
        assert!(similarities[&twins.into()] > 0.999999);

        place.write("broken.png", b"no picture");
        let outcome = place.run("embed base copy.png broken.png --nearest 1 --among all.safetensors");
        assert_eq!((outcome.status, outcome.stdout.as_str()), (1, "copy.png: colours/green/03.png 1.000\n"));
        assert!(outcome.stderr.ends_with("error: 1 of 2 images could not be read\n"), "{}", outcome.stderr);
        place.succeed(&format!("train data {SMALL} --epochs 1 --out other"));
        assert_snapshot!(place.refusals(&[
            "embed base copy.png",
            "embed base copy.png --output features.npy",
            "embed base copy.png --nearest 0",
            "embed base copy.png --nearest 1",
            "embed base copy.png --output features.csv --among all.safetensors",
            "embed other copy.png --nearest 1 --among all.safetensors",
            "embed base copy.png --nearest 1 --among base/model.safetensors",
        ]), @r##"
$ retune embed base copy.png
error: the following required arguments were not provided: --output <FILE>
hint: see `retune embed --help`
exit status 2

$ retune embed base copy.png --output features.npy
error: --output features.npy: expected a name that ends in .safetensors or .csv
exit status 2

$ retune embed base copy.png --nearest 0
error: --nearest 0: expected at least 1
exit status 2

$ retune embed base copy.png --nearest 1
error: copy.png: there is no other image to compare it with
hint: give more images, or --among FILE
exit status 1

$ retune embed base copy.png --output features.csv --among all.safetensors
error: the following required arguments were not provided: --nearest <K>
hint: see `retune embed --help`
exit status 2

$ retune embed other copy.png --nearest 1 --among all.safetensors
error: all.safetensors: the features were computed with another network
hint: give the model that was used for that file, or write the file again with this one
exit status 1

$ retune embed base copy.png --nearest 1 --among base/model.safetensors
error: base/model.safetensors: expected a file of features, with the tensor features and a list of paths
hint: `retune embed MODEL IMAGES --output FILE.safetensors` writes such a file
exit status 1
"##);
        let outcome = place.run("embed base broken.png --output broken.csv");
        assert_eq!((outcome.status, place.path("broken.csv").exists()), (1, false), "{}", outcome.stderr);
        assert!(outcome.stderr.ends_with("error: 1 of 1 images could not be read\n"), "{}", outcome.stderr);
    }

    #[test]
    fn predict_skips_unreadable_files() {
        let place = Workplace::with_base_model();
        place.write("broken.png", b"no picture");
        let outcome = place.run("predict base/model.safetensors data/test/red/00.png broken.png data/test/red/01.png");
        assert_eq!(outcome.status, 1);
        let answered: Vec<&str> = outcome.stdout.lines().map(|line| line.split(':').next().unwrap()).collect();
        assert_eq!(answered, ["data/test/red/00.png", "data/test/red/01.png"]);
        assert_snapshot!(outcome.stderr, @r##"
warning: skipped: cannot decode broken.png: expected a JPEG, PNG, GIF, BMP, TIFF, WebP or PNM image, found a text file
error: 1 of 3 images could not be read
"##);
        let model = "base/model.safetensors";
        fs::create_dir(place.path("empty")).unwrap();
        assert_snapshot!(place.refusals(&[
            &format!("predict {model} missing.png"),
            &format!("predict {model} empty"),
            &format!("predict {model} data/["),
            &format!("predict {model} data/test --top 0"),
            &format!("predict {model} data/test --batch-size 0"),
            &format!("predict {model} data/test --logits"),
            "predict data/test/red/00.png data/test/red/00.png",
            "predict base/model.safetensors",
            "eval base/model.safetensors data",
            "eval base/model.safetensors colours --workers 0",
            "eval base/model.safetensors colours --batch-size 0",
            "eval base/checkpoint.safetensors colours",
        ]), @r##"
$ retune predict base/model.safetensors missing.png
error: missing.png: no such file
hint: give images that end in one of .jpg .jpeg .jfif .jpe .png .apng .gif .webp .tif .tiff .ppm .pgm .pbm .pnm .pam .bmp .dib
exit status 1

$ retune predict base/model.safetensors empty
error: empty: no images in this folder
hint: give images that end in one of .jpg .jpeg .jfif .jpe .png .apng .gif .webp .tif .tiff .ppm .pgm .pbm .pnm .pam .bmp .dib
exit status 1

$ retune predict base/model.safetensors data/[
error: data/[: invalid pattern: Pattern syntax error near position 5: invalid range pattern
exit status 1

$ retune predict base/model.safetensors data/test --top 0
error: --top 0: expected at least 1
exit status 2

$ retune predict base/model.safetensors data/test --batch-size 0
error: --batch-size 0: expected at least 1
exit status 2

$ retune predict base/model.safetensors data/test --logits
error: --logits: only JSON has room for them
hint: add --json, or --format jsonl
exit status 2

$ retune predict data/test/red/00.png data/test/red/00.png
error: data/test/red/00.png is a PNG image, expected a safetensors or .pth file
hint: give a file of weights
exit status 1

$ retune predict base/model.safetensors
error: the following required arguments were not provided: <IMAGE>...
hint: see `retune predict --help`
exit status 2

$ retune eval base/model.safetensors data
error: data/test contains no images of the classes of the model: green, purple, yellow; it has the classes blue, red
hint: give the classes the names that they have in the model
exit status 1

$ retune eval base/model.safetensors colours --workers 0
error: --workers 0: expected 1 to 512
exit status 2

$ retune eval base/model.safetensors colours --batch-size 0
error: --batch-size 0: expected at least 1
exit status 2

$ retune eval base/checkpoint.safetensors colours
error: base/checkpoint.safetensors: a checkpoint or reference file of retune, not a model
hint: give the model.safetensors of the run
exit status 1
"##);
    }

    #[test]
    fn inspect_shows_the_contents_of_a_file() {
        let place = Workplace::with_base_model();
        let text = place.succeed("inspect base/model.safetensors").stdout;
        let shown: Vec<&str> = text.lines().filter(|line| !line.contains('.') || line.starts_with("fc.")).collect();
        assert_snapshot!(shown.join("\n"), @r##"
tensor                                     type  shape              elements
fc.weight                                  f32   3x32                     96
fc.bias                                    f32   3                         3

network     resnet18, width 4
parameters  44871, of which 99 in the head
images      33 x 33
classes     3: green, purple, yellow
epoch       1
format      pt
"##);
        let json = place.json("inspect base/model.safetensors --json");
        assert_eq!(
            keys(&json),
            [
                "architecture",
                "average_mirror",
                "bytes",
                "classes",
                "exif",
                "file",
                "head_parameters",
                "image_size",
                "metadata",
                "not_plain",
                "origin",
                "parameters",
                "prefix",
                "resize",
                "temperature",
                "tensors",
                "width"
            ]
        );
        assert_eq!(json["bytes"], place.read("base/model.safetensors").len());
        assert_eq!(json["head_parameters"], 3 * 32 + 3);
        assert_eq!(json["tensors"].as_array().unwrap().len(), 122);
        assert_eq!(keys(&json["tensors"][0]), ["element_type", "elements", "name", "shape"]);
        for file in ["base/checkpoint.safetensors", fixture("odd.safetensors").to_str().unwrap()] {
            let text = place.succeed(&format!("inspect {file}")).stdout;
            assert!(text.contains("elements    "), "{text}");
        }
    }

    #[test]
    fn a_model_records_how_images_become_squares() {
        let place = Workplace::new();
        let augment = "--augment crop-scale=0.5-1,contrast=0.5,hue=0.1,rotation=10,random-erasing=0.5,trivial-augment";
        for (mode, shown, snippet) in [
            ("squash", "33 x 33, squashed", "T.Resize((33, 33)),"),
            (
                "pad",
                "33 x 33, padded",
                "T.Lambda(lambda image: ImageOps.pad(image, (33, 33), Image.Resampling.BILINEAR)),",
            ),
        ] {
            place.succeed(&format!("train data {SMALL} --epochs 1 --resize {mode} {augment} --out {mode}"));
            let text = place.succeed(&format!("inspect {mode}/model.safetensors")).stdout;
            assert!(text.contains(shown), "{text}");
            let page = String::from_utf8(place.read(&format!("{mode}/report.html"))).unwrap();
            assert!(page.contains(snippet), "{page}");
            assert!(page.contains(&format!("random-resized-crop=0.5-1 of the {mode}")), "{page}");
            // What follows starts from the model and has its mode.
            place.succeed(&format!("train data --weights {mode}/model.safetensors --epochs 1 --no-report --out again"));
            assert_eq!(place.json("inspect again/model.safetensors --json")["resize"], mode);
            fs::remove_dir_all(place.path("again")).unwrap();
        }
    }

    #[test]
    fn a_plan_with_frozen_layers_has_a_lower_peak() {
        let place = Workplace::with_base_model();
        let plan = |flags: &str| place.json(&format!("inspect base/model.safetensors --plan --json {flags}"));
        let whole = plan("--batch-size 16");
        assert_eq!(keys(&whole), ["arena_bytes", "buffers", "nodes", "peak_bytes"]);
        assert_eq!(keys(&whole["buffers"][0]), ["bytes", "first_step", "kind", "last_step", "name", "offset"]);
        assert_eq!(keys(&whole["nodes"][0]), ["backward", "multiply_adds", "name", "operation", "output"]);
        let peak = |plan: &Value| plan["peak_bytes"].as_u64().unwrap();
        let frozen = plan("--batch-size 16 --freeze conv1,bn1,layer1,layer2,layer3 --freeze-batch-norm");
        let inference = plan("--batch-size 16 --inference");
        assert!(peak(&frozen) < peak(&whole), "{} and {}", peak(&frozen), peak(&whole));
        assert!(peak(&inference) < peak(&whole));
        assert!(whole["arena_bytes"].as_u64().unwrap() >= peak(&whole));
        let backward =
            |plan: &Value| plan["nodes"].as_array().unwrap().iter().filter(|n| n["backward"] == true).count();
        assert!(backward(&frozen) < backward(&whole));
        assert_eq!(backward(&inference), 0);
        let text = place.succeed("inspect base/model.safetensors --plan --batch-size 16").stdout;
        assert!(text.lines().any(|line| line.starts_with("peak ")), "{text}");
        assert_snapshot!(place.refusals(&[
            "inspect missing.safetensors",
            "inspect data",
            "inspect data/test/red/00.png",
            "inspect base/config.json",
            "inspect base/model.safetensors --inference",
            "inspect base/model.safetensors --plan --batch-size 0",
            "inspect base/model.safetensors --plan --image-size 0",
            "inspect base/model.safetensors --plan --image-size 1 --batch-size 1",
            "inspect base/model.safetensors --plan --freeze nonsense",
            "inspect base/checkpoint.safetensors --plan",
        ]), @r##"
$ retune inspect missing.safetensors
error: missing.safetensors: no such file
exit status 1

$ retune inspect data
error: data is a folder without a model.safetensors
hint: give a file of weights, or the folder of a run that has completed an epoch
exit status 1

$ retune inspect data/test/red/00.png
error: data/test/red/00.png is a PNG image, expected a safetensors or .pth file
hint: give a file of weights
exit status 1

$ retune inspect base/config.json
error: base/config.json is a JSON file, such as a config or an index, expected a safetensors or .pth file
hint: give the weights beside it
exit status 1

$ retune inspect base/model.safetensors --inference
error: the following required arguments were not provided: --plan
hint: see `retune inspect --help`
exit status 2

$ retune inspect base/model.safetensors --plan --batch-size 0
error: --batch-size 0: expected at least 1
exit status 2

$ retune inspect base/model.safetensors --plan --image-size 0
error: --image-size 0: expected 1 to 65536
exit status 2

$ retune inspect base/model.safetensors --plan --image-size 1 --batch-size 1
error: bn1: expected more than one value per channel, found [1, 1, 1, 4]
hint: batch norm cannot train on a single pixel: use larger batches or larger images
exit status 1

$ retune inspect base/model.safetensors --plan --freeze nonsense
error: --freeze: resnet18 has no module "nonsense"
hint: its modules are conv1, bn1, layer1, layer1.0, layer1.1, layer2, layer2.0, layer2.1, layer3, layer3.0, layer3.1, layer4, layer4.0, layer4.1, fc
exit status 2

$ retune inspect base/checkpoint.safetensors --plan
error: base/checkpoint.safetensors: a checkpoint or reference file of retune, not a model
hint: give the model.safetensors of the run
exit status 1
"##);
    }

    #[test]
    fn gradcheck_passes_the_fixture_and_names_a_wrong_tensor() {
        let place = Workplace::empty();
        let good = fixture("tiny-image.safetensors");
        let good = good.to_str().unwrap();
        let outcome = place.succeed(&format!("gradcheck {good}"));
        let summary = outcome.stdout.lines().last().unwrap();
        assert!(summary.ends_with("tensors compared, 0 over their limit"), "{summary}");
        assert_eq!(outcome.stderr, "");

        let mut bytes = fs::read(good).unwrap();
        let broken = "grad/layer2.0.conv1.weight";
        let start = {
            let file = SafeTensors::deserialize(&bytes).unwrap();
            file.tensor(broken).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize
        };
        let first = f32::from_le_bytes(bytes[start..start + 4].try_into().unwrap());
        bytes[start..start + 4].copy_from_slice(&(first + 1.0).to_le_bytes());
        place.write("broken.safetensors", &bytes);
        let outcome = place.run("gradcheck broken.safetensors");
        assert_eq!((outcome.status, outcome.stderr.as_str()), (1, ""));
        let failed: Vec<&str> = outcome.stdout.lines().filter(|line| line.ends_with("FAIL")).collect();
        assert!(matches!(failed.as_slice(), [one] if one.starts_with(broken)), "{failed:?}");
        assert!(outcome.stdout.trim_end().ends_with(" 1 over their limit"));

        let outcome = place.run("gradcheck broken.safetensors --json");
        assert_eq!(outcome.status, 1);
        let json: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(keys(&json), ["contradiction", "not_compared", "ok", "tensors", "worst"]);
        assert_eq!(keys(&json["worst"]), ["error", "limit", "name", "ok", "shape"]);
        assert_eq!((&json["ok"], &json["worst"]["name"]), (&false.into(), &broken.into()));
        assert_eq!(json["tensors"].as_array().unwrap().last(), Some(&json["worst"]));
        assert_eq!(place.json(&format!("gradcheck {good} --json"))["ok"], true);

        place.succeed("gradcheck broken.safetensors --floor 1e9");
        place.write("empty.safetensors", b"");
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).unwrap();
        place.write("other.safetensors", &safetensors::serialize([("encoder.weight", view)], None).unwrap());
        assert_snapshot!(place.refusals(&[
            "gradcheck missing.safetensors",
            "gradcheck empty.safetensors",
            "gradcheck other.safetensors",
            "gradcheck broken.safetensors --floor -1",
            "gradcheck broken.safetensors --floor nan",
        ]), @r##"
$ retune gradcheck missing.safetensors
error: missing.safetensors: no such file
exit status 1

$ retune gradcheck empty.safetensors
error: empty.safetensors is empty (0 bytes), expected a safetensors or .pth file
hint: download or save it again: the writing program did not finish
exit status 1

$ retune gradcheck other.safetensors
error: other.safetensors: metadata field format is missing
hint: the metadata of a reference file contains `format` = `retune-reference-1` and the whole recipe
exit status 1

$ retune gradcheck broken.safetensors --floor -1
error: --floor -1: expected a number of at least 0
exit status 2

$ retune gradcheck broken.safetensors --floor nan
error: --floor NaN: expected a number of at least 0
exit status 2
"##);
    }

    #[test]
    fn bench_measures() {
        let place = Workplace::empty();
        let tiny = "bench --width 4 --image-size 33 --batch-size 2 --steps 1";
        let both = place.json(&format!("{tiny} --json"));
        for (part, seconds) in [("training", "step_seconds"), ("inference", "batch_seconds")] {
            assert!(both[part]["images_per_second"].as_f64().unwrap() > 0.0);
            assert_eq!(both[part][seconds].as_array().unwrap().len(), 1);
        }
        for field in ["device", "threads", "batch_size", "image_size", "arena_bytes", "peak_resident_bytes"] {
            assert!(both.get(field).is_some(), "{field}");
        }
        assert!(place.json(&format!("{tiny} --mode inference --json")).get("training").is_none());
        let kernels = place.json(&format!("{tiny} --kernels --json"));
        let operations: Vec<&str> =
            kernels["kernels"].as_array().unwrap().iter().map(|row| row["operation"].as_str().unwrap()).collect();
        for operation in ["conv2d", "batch_norm", "max_pool", "avg_pool", "linear", "cross_entropy"] {
            assert!(operations.contains(&operation), "{operation} in {operations:?}");
        }
        let text = place.succeed(&format!("{tiny} --kernels --threads 1")).stdout;
        assert!(text.contains("device: cpu, threads: 1, activations: "), "{text}");

        let too_large = place.run("bench --batch-size 1000000");
        assert_eq!((too_large.status, too_large.stdout.as_str()), (1, ""));
        assert!(
            too_large.stderr.starts_with("error: cpu: out of memory: 560.76 GiB is needed, "),
            "{}",
            too_large.stderr
        );
        assert_eq!(
            place.refusals(&["bench --kernels --plan --batch-size 9999999999999"]),
            "$ retune bench --kernels --plan --batch-size 9999999999999\n\
             error: --batch-size 9999999999999: expected at most 1000000\nexit status 2\n\n"
        );

        place.draw("photos/red", [200, 60, 40], 3);
        let data = "bench --mode data --data photos --workers 1 --image-size 33 --batch-size 2 --steps 2";
        let result = place.json(&format!("{data} --json"));
        assert_eq!((&result["images"], &result["workers"]), (&3.into(), &1.into()));
        for transform in ["training_transform", "test_transform"] {
            assert!(result[transform]["images_per_second"].as_f64().unwrap() > 0.0);
            assert_eq!(result[transform]["epoch_seconds"].as_array().unwrap().len(), 2);
        }
        let text = place.succeed(data).stdout;
        assert!(text.ends_with("from 3 files to batches of 2, 33 x 33, float32; workers: 1\n"), "{text}");
        assert_snapshot!(place.refusals(&[
            "bench --steps 0",
            "bench --batch-size 0",
            "bench --image-size 0",
            "bench --width 0",
            "bench --width 1000000000000",
            "bench --arch resnet99",
            "bench --mode nonsense",
            "bench --mode data",
            "bench --mode data --data photos --workers 0",
            "bench --mode data --data nowhere",
            "bench --data photos",
            "bench --workers 1",
            "bench --mode data --data photos --kernels",
        ]), @r##"
$ retune bench --steps 0
error: --steps 0: expected at least 1
exit status 2

$ retune bench --batch-size 0
error: --batch-size 0: expected at least 1
exit status 2

$ retune bench --image-size 0
error: --image-size 0: expected 1 to 65536
exit status 2

$ retune bench --width 0
error: --width 0: expected 1 to 4096
exit status 2

$ retune bench --width 1000000000000
error: --width 1000000000000: expected 1 to 4096
exit status 2

$ retune bench --arch resnet99
error: invalid value 'resnet99' for '--arch <NAME>' [possible values: ARCHITECTURES]
hint: a similar value exists: 'resnet50'
exit status 2

$ retune bench --mode nonsense
error: invalid value 'nonsense' for '--mode <MODE>' [possible values: training, inference, both, data]
hint: see `retune bench --help`
exit status 2

$ retune bench --mode data
error: the following required arguments were not provided: --data <FOLDER>
hint: see `retune bench --help`
exit status 2

$ retune bench --mode data --data photos --workers 0
error: --workers 0: expected 1 to 512
exit status 2

$ retune bench --mode data --data nowhere
error: there is no folder nowhere
hint: check the spelling of the path
exit status 1

$ retune bench --data photos
error: --data requires --mode data; the other modes use synthetic images
exit status 2

$ retune bench --workers 1
error: the following required arguments were not provided: --data <FOLDER>
hint: see `retune bench --help`
exit status 2

$ retune bench --mode data --data photos --kernels
error: the argument '--data <FOLDER>' cannot be used with '--kernels'
hint: see `retune bench --help`
exit status 2
"##);
    }

    #[cfg(not(feature = "emulator"))]
    #[test]
    fn a_build_without_the_emulator_says_how_to_build_it() {
        let place = Workplace::empty();
        let outcome = place.run("train data --from-scratch --out run --device emulator");
        assert_eq!(outcome.status, 1);
        assert_eq!(
            outcome.stderr,
            "error: --device emulator: this build has no emulator\n\
             hint: build with `cargo build --release --features emulator`, which needs a C++ compiler\n"
        );
    }

    #[test]
    fn devices_lists_available_and_unavailable_devices() {
        let place = Workplace::empty();
        let rows = place.json("devices --json");
        let rows = rows.as_array().unwrap();
        assert!(rows.iter().all(|row| keys(row) == ["available", "description", "hints", "name"]));
        assert_eq!((&rows[0]["name"], &rows[0]["available"]), (&"cpu".into(), &true.into()));
        let text = place.succeed("devices").stdout;
        assert!(rows.iter().all(|row| text.contains(row["name"].as_str().unwrap())), "{text}");
    }
}

mod help {
    use super::*;

    #[test]
    fn of_every_command() {
        let place = Workplace::empty();
        assert_snapshot!("help", place.succeed("--help").stdout);
        let commands = [
            "demo",
            "train",
            "eval",
            "predict",
            "embed",
            "fetch",
            "convert",
            "show",
            "report",
            "recipes",
            "inspect",
            "gradcheck",
            "bench",
            "devices",
            "completions",
            "man",
        ];
        for command in commands {
            let outcome = place.succeed(&format!("{command} --help"));
            assert_eq!(outcome.stderr, "");
            assert_snapshot!(format!("help_{command}"), without_architectures(&outcome.stdout));
        }
        for command in commands {
            let page = place.succeed(&format!("man {command}")).stdout;
            assert!(page.contains(&format!(".TH RETUNE-{} 1", command.to_uppercase())), "{command}: {page}");
        }
        let pages = place.succeed("man --out pages").stdout;
        assert_eq!(pages.lines().count(), commands.len() + 1);
        assert_eq!(place.names("pages").len(), commands.len() + 1);
        for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
            let script = place.succeed(&format!("completions {shell}")).stdout;
            assert!(script.contains("retune") && script.contains("verify-determinism"), "{shell}");
        }
        let version = place.succeed("--version").stdout;
        assert_eq!(version, format!("retune {}\n", env!("CARGO_PKG_VERSION")));
        let bare = place.run("");
        assert_eq!((bare.status, bare.stdout.as_str()), (2, ""));
        assert_eq!(bare.stderr, place.succeed("-h").stdout, "no command at all gets the help");
    }
}

/// Names of the commands, as the help lists them.
fn commands() -> Vec<String> {
    let help = Workplace::empty().succeed("--help").stdout;
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.map(|line| line.split_whitespace().next().unwrap().to_string()).filter(|name| name != "help").collect()
}

mod json {
    use super::*;

    #[test]
    fn is_the_output_of_every_command_or_refused() {
        let place = Workplace::with_base_model();
        fs::create_dir(place.path("downloads")).unwrap();
        fs::rename(place.path("data"), place.path("downloads/hotdog")).unwrap();
        let (model, data) = ("base/model.safetensors", "downloads/hotdog");
        let fixture = fixture("odd.safetensors");
        let tiny = "--width 4 --image-size 33 --batch-size 2 --steps 1";
        let values = [
            ("train", format!("{data} {SMALL} --epochs 1 --out run --no-report"), "model"),
            ("train", format!("{data} {SMALL} --verify-determinism 1"), "same"),
            ("eval", format!("{model} colours"), "accuracy"),
            ("predict", format!("{model} colours/green/00.png"), "/0/path"),
            ("inspect", model.into(), "tensors"),
            ("inspect", format!("{model} --plan"), "nodes"),
            ("convert", format!("{model} copy.safetensors"), "path"),
            ("convert", format!("{model} copy.onnx"), "path"),
            ("show", format!("{data} -o sheet.png"), "sheet"),
            ("report", "run".into(), "page"),
            ("gradcheck", fixture.display().to_string(), "tensors"),
            ("bench", tiny.into(), "training"),
            ("bench", format!("{tiny} --kernels"), "kernels"),
            ("bench", format!("{tiny} --kernels --plan"), "rows"),
            ("bench", "--mode data --data colours --batch-size 2 --steps 1".into(), "test_transform"),
            ("fetch", "hotdog --out downloads".into(), "path"),
            ("embed", format!("{model} {data} --nearest 1"), "nearest"),
            ("devices", String::new(), "/0/name"),
            ("recipes", String::new(), "/0/purpose"),
            ("demo", "--only-draw --source-per-class 2 --target-per-class 2 --out demo".into(), "source"),
            ("man", "--out pages".into(), "pages"),
        ];
        let refused = [
            ("completions", "bash", "error: --json: a completion script cannot be printed as JSON"),
            ("man", "train", "error: --json: a manual page cannot be printed as JSON"),
            ("show", data, "error: standard output is not a terminal, and no output file is given"),
        ];
        for (command, arguments, field) in &values {
            let value = place.json(&format!("{command} {arguments} --json"));
            let found = if field.starts_with('/') { value.pointer(field) } else { value.get(field) };
            assert!(found.is_some(), "{command} {arguments}: no {field} in {value}");
        }
        for (command, arguments, expected) in refused {
            let outcome = place.run(&format!("{command} {arguments} --json"));
            assert_eq!((outcome.status, outcome.stdout.as_str()), (2, ""), "{command}");
            assert!(outcome.stderr.starts_with(expected), "{command}: {}", outcome.stderr);
        }
        for command in commands() {
            let is_tried = values.iter().any(|(tried, ..)| *tried == command);
            assert!(is_tried || refused.iter().any(|(tried, ..)| *tried == command), "{command} is not tried");
        }
    }
}

#[cfg(unix)]
mod completion {
    use super::*;

    /// What bash offers for the last of these words.
    fn offered(words: &str) -> Vec<String> {
        let script = r#"
            source <("$RETUNE" completions bash)
            COMP_WORDS=($0) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            [[ "$0" == *" " ]] && { COMP_WORDS+=(""); COMP_CWORD=$((COMP_CWORD + 1)); }
            COMP_LINE="$0" COMP_POINT=${#COMP_LINE}
            "$(complete -p retune | sed 's/.* -F \([^ ]*\) .*/\1/')" retune "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf '%s\n' "${COMPREPLY[@]}"
        "#;
        let outcome = Workplace::empty().run_program("bash", &["-c", script, words]);
        assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""), "{words}");
        outcome.stdout.lines().map(String::from).collect()
    }

    #[test]
    fn of_values_in_bash() {
        let architectures: Vec<&str> = Architecture::all().map(Architecture::name).collect();
        let commands = commands();
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        let cases: [(&str, &[&str]); 14] = [
            ("--device", &["auto", "cpu", "cuda", "emulator"]),
            ("--precision", &["fp32", "tf32", "bf16"]),
            ("train --device", &["auto", "cpu", "cuda", "emulator"]),
            ("train --arch", &architectures),
            ("train --optimizer", &["sgd", "nesterov", "adamw"]),
            ("train --loss-reduction", &["sum", "mean"]),
            ("bench --arch", &architectures),
            ("bench --gpu", &["h200", "h100", "a100", "rtx4090", "t4"]),
            ("bench --mode", &["training", "inference", "both", "data"]),
            ("predict --format", &["text", "json", "jsonl", "csv"]),
            ("fetch", &["hotdog", "resnet18", "resnet34"]),
            ("completions", &["bash", "elvish", "fish", "powershell", "zsh"]),
            ("man", &commands),
            ("", &commands),
        ];
        for (words, expected) in cases {
            let found = offered(&format!("retune {words}{}", if words.is_empty() { "" } else { " " }));
            let missing: Vec<_> = expected.iter().filter(|value| !found.iter().any(|found| found == *value)).collect();
            assert!(missing.is_empty(), "retune {words}: {missing:?} are not among {found:?}");
            if words.contains("--") {
                assert_eq!(found.len(), expected.len(), "retune {words}: {found:?}");
            }
        }
        assert_eq!(offered("retune bench --gpu a"), ["a100"]);
        assert_eq!(offered("retune eval --dev"), ["--device"]);
    }
}

#[cfg(target_os = "linux")]
mod terminals {
    use super::*;

    /// Runs a command in a terminal. Returns what it shows, without escape sequences.
    fn show(place: &Workplace, columns: usize, line: &str) -> String {
        let line = format!("stty cols {columns} rows 40; \"$RETUNE\" {line}");
        let arguments = ["-qc", &line, "/dev/null"];
        let mut command = assert_cmd::Command::new("script");
        command.args(arguments).current_dir(place.folder.path()).env("RETUNE", PROGRAM).env("TERM", "xterm");
        let output = command.env("CUDA_VISIBLE_DEVICES", "").env("NO_COLOR", "1").timeout(TIMEOUT).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut shown = String::new();
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                // Up to the letter that ends the sequence.
                '\u{1b}' => drop(rest.find(char::is_ascii_alphabetic)),
                // A progress line is written again in its place.
                '\r' => shown.push('\n'),
                c => shown.push(c),
            }
        }
        shown
    }

    #[test]
    fn break_no_word() {
        let place = Workplace::with_base_model();
        place.write("broken.png", b"no picture");
        let mut lines: Vec<String> = commands().iter().map(|command| format!("{command} --help")).collect();
        let of_model = |line: &str| line.replace("MODEL", "base/model.safetensors");
        lines.extend(
            [
                "--help",
                "train -h",
                "devices",
                "inspect MODEL",
                "inspect MODEL --plan --batch-size 2",
                "eval MODEL colours -q",
                "predict MODEL colours/green colours/yellow broken.png -q",
                "predict MODEL missing.png",
                "predict MODEL --format cvs",
                "train data --weights MODEL --arch resnet50",
                "train data --from-scratch --freeze conv2 --out run",
                "train data --batch-sise 3",
                "bench --kernels --plan --width 4 --image-size 33 --batch-size 2",
                "convert MODEL out.safetensors",
                "show colours -o https://example.org/a.png",
            ]
            .map(of_model),
        );
        lines.push(format!("gradcheck {}", fixture("odd.safetensors").display()));
        for line in lines {
            let whole = place.shell(&format!("\"$RETUNE\" {line} 2>&1"));
            let expected: Vec<&str> = whole.stdout.split_whitespace().collect();
            for columns in [80, 60] {
                let shown = show(&place, columns, &line);
                for one in shown.lines().filter(|one| one.trim().contains(' ')) {
                    assert!(one.chars().count() <= columns, "{columns} columns: retune {line}: {one:?}");
                }
                // The same words, but not in the same lines.
                assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), expected, "{columns} columns: retune {line}");
            }
        }
    }

    #[test]
    fn show_a_run() {
        let place = Workplace::new();
        for columns in [80, 60] {
            let shown = show(&place, columns, &format!("train data {SMALL} --epochs 2 --out run{columns}"));
            for one in shown.lines().filter(|one| one.trim().contains(' ')) {
                assert!(one.chars().count() <= columns, "{columns} columns: {one:?}");
            }
            assert!(shown.contains("epoch 2: train loss "), "{shown}");
        }
    }
}

mod refusals {
    use super::*;

    /// Nothing on another machine is read.
    #[test]
    fn of_urls() {
        let place = Workplace::with_base_model();
        let model = "base/model.safetensors";
        assert_snapshot!(place.refusals(&[
            "train https://example.org/photos.zip --weights base/model.safetensors",
            "train data --weights https://download.pytorch.org/models/resnet18-f37072fd.pth",
            "eval https://huggingface.co/timm/resnet18.tv_in1k data",
            &format!("predict {model} https://example.org/a.jpg"),
            &format!("predict {model} data/test file:///home/me/a.jpg"),
            &format!("convert {model} s3://bucket/model.onnx"),
            "inspect s3://bucket/model.safetensors",
            "show ftp://example.org/photos",
        ]), @r##"
$ retune train https://example.org/photos.zip --weights base/model.safetensors
error: https://example.org/photos.zip: expected a path on this machine, found a URL
hint: download it and unpack it first, for example with `curl -LO`, and give its path
exit status 2

$ retune train data --weights https://download.pytorch.org/models/resnet18-f37072fd.pth
error: https://download.pytorch.org/models/resnet18-f37072fd.pth: expected a path on this machine, found a URL
hint: `retune fetch resnet18` downloads it
exit status 2

$ retune eval https://huggingface.co/timm/resnet18.tv_in1k data
error: https://huggingface.co/timm/resnet18.tv_in1k: expected a path on this machine, found a URL
hint: give a model on the Hugging Face Hub as OWNER/NAME: timm/resnet18.tv_in1k
exit status 2

$ retune predict base/model.safetensors https://example.org/a.jpg
error: https://example.org/a.jpg: expected a path on this machine, found a URL
hint: download it first, for example with `curl -LO`, and give its path
exit status 2

$ retune predict base/model.safetensors data/test file:///home/me/a.jpg
error: file:///home/me/a.jpg: expected a path on this machine, found a URL
hint: give its path: /home/me/a.jpg
exit status 2

$ retune convert base/model.safetensors s3://bucket/model.onnx
error: s3://bucket/model.onnx: expected a path on this machine, found a URL
hint: write to a file or folder, and upload it afterwards
exit status 2

$ retune inspect s3://bucket/model.safetensors
error: s3://bucket/model.safetensors: expected a path on this machine, found a URL
hint: download it first, and give its path
exit status 2

$ retune show ftp://example.org/photos
error: ftp://example.org/photos: expected a path on this machine, found a URL
hint: download it first, for example with `curl -LO`, and give its path
exit status 2
"##);
    }

    #[test]
    fn name_what_is_nearest() {
        let place = Workplace::new();
        assert_snapshot!(place.refusals(&[
            "trian data",
            "train data --epoch 3",
            "train data --learning-rate 3",
            "train data --logits",
            "train data --per-image x",
            "--epochs 3 train data",
            "eval model data --worker 3",
            "fetch resnet19",
            "man trian",
            "completions bsh",
            "bench --gpu h20",
            "bench --mode train",
            "train data --optimizer adam",
            "train data --arch resnet20",
            "train data --device gpu",
            "train data --device cdua:1",
        ]), @r##"
$ retune trian data
error: unrecognized subcommand 'trian'
hint: a similar subcommand exists: 'train'
exit status 2

$ retune train data --epoch 3
error: unexpected argument '--epoch' found
hint: a similar argument exists: '--epochs'
exit status 2

$ retune train data --learning-rate 3
error: unexpected argument '--learning-rate' found
hint: a similar argument exists: '--lr'
exit status 2

$ retune train data --logits
error: unexpected argument '--logits' found
hint: --logits is an option of `retune predict`
exit status 2

$ retune train data --per-image x
error: unexpected argument '--per-image' found
hint: --per-image is an option of `retune eval`
exit status 2

$ retune --epochs 3 train data
error: unexpected argument '--epochs' found
hint: 'train --epochs' exists
exit status 2

$ retune eval model data --worker 3
error: unexpected argument '--worker' found
hint: a similar argument exists: '--workers'
exit status 2

$ retune fetch resnet19
error: invalid value 'resnet19' for '<WHAT>' [possible values: hotdog, resnet18, resnet34]
hint: a similar value exists: 'resnet18'
exit status 2

$ retune man trian
error: invalid value 'trian' for '[COMMAND]' [possible values: demo, train, eval, predict, embed, fetch, convert, show, report, recipes, inspect, gradcheck, bench, devices, completions, man]
hint: a similar value exists: 'train'
exit status 2

$ retune completions bsh
error: invalid value 'bsh' for '<SHELL>' [possible values: bash, elvish, fish, powershell, zsh]
hint: a similar value exists: 'bash'
exit status 2

$ retune bench --gpu h20
error: invalid value 'h20' for '--gpu <NAME>' [possible values: h200, h100, a100, rtx4090, t4]
hint: a similar value exists: 'h200'
exit status 2

$ retune bench --mode train
error: invalid value 'train' for '--mode <MODE>' [possible values: training, inference, both, data]
hint: a similar value exists: 'training'
exit status 2

$ retune train data --optimizer adam
error: invalid value 'adam' for '--optimizer <NAME>' [possible values: sgd, nesterov, adamw]
hint: a similar value exists: 'adamw'
exit status 2

$ retune train data --arch resnet20
error: invalid value 'resnet20' for '--arch <NAME>' [possible values: ARCHITECTURES]
hint: a similar value exists: 'resnet50'
exit status 2

$ retune train data --device gpu
error: invalid value 'gpu' for '--device <DEVICE>' [possible values: auto, cpu, cuda, emulator]
hint: a similar value exists: 'cpu'
exit status 2

$ retune train data --device cdua:1
error: invalid value 'cdua:1' for '--device <DEVICE>' [possible values: auto, cpu, cuda, emulator]
hint: a similar value exists: 'cuda'
exit status 2
"##);
    }

    #[test]
    fn of_data_sets() {
        let place = Workplace::new();
        place.draw("one/train/only", [90, 90, 90], 3);
        place.draw("one/test/only", [90, 90, 90], 3);
        place.draw("hole/train/blue", [40, 60, 200], 3);
        fs::create_dir_all(place.path("hole/train/red")).unwrap();
        place.draw("hole/test/blue", [40, 60, 200], 3);
        place.draw("more/train/blue", [40, 60, 200], 3);
        place.draw("more/train/red", [200, 60, 40], 3);
        place.draw("more/test/blue", [40, 60, 200], 3);
        place.draw("more/test/green", [40, 190, 60], 3);
        place.draw("single/blue", [40, 60, 200], 1);
        place.draw("single/red", [200, 60, 40], 3);
        fs::create_dir_all(place.path("bare/train")).unwrap();
        fs::create_dir_all(place.path("bare/test")).unwrap();
        fs::create_dir_all(place.path("nothing")).unwrap();
        place.write("bad/train/blue/a.png", b"no picture");
        place.write("bad/train/red/a.png", b"no picture");
        place.draw("bad/test/red", [200, 60, 40], 3);
        let train = |data: &str| format!("train {data} {SMALL} --out run");
        let lines = [
            train("missing"),
            train("data/train/red/00.png"),
            train("nothing --test-fraction 0.5"),
            train("bare"),
            train("one"),
            train("one/train --test-fraction 0.5"),
            train("hole"),
            train("more"),
            train("single --test-fraction 0.5"),
            train("data/train"),
            train("data --test-fraction 0.5"),
            train("data/train --test-fraction 0"),
            train("data/train --test-fraction 1"),
            train("data/train --test-fraction 1.5"),
            train("data/train --test-fraction -0.5"),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_snapshot!(place.refusals(&lines), @r##"
$ retune train missing --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: there is no folder missing
hint: check the spelling of the path
exit status 1

$ retune train data/train/red/00.png --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: data/train/red/00.png is a file; expected a folder of class folders
exit status 1

$ retune train nothing --test-fraction 0.5 --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: nothing contains no folders; expected one for each class
hint: put the images of each class into a folder that has the name of the class
exit status 1

$ retune train bare --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: bare/test contains neither class folders nor images, and bare/train contains neither class folders nor images
hint: put the images of each class into a folder that has the name of the class
exit status 1

$ retune train one --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: one/train has only one class folder, only; a classifier needs at least two
hint: add a folder of images of another class
exit status 1

$ retune train one/train --test-fraction 0.5 --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: one/train has only one class folder, only; a classifier needs at least two
hint: add a folder of images of another class
exit status 1

$ retune train hole --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: the class folder hole/train/red contains no images; the accepted extensions are .jpg .jpeg .jfif .jpe .png .apng .gif .webp .tif .tiff .ppm .pgm .pbm .pnm .pam .bmp .dib
hint: put images into the folder, or remove it
exit status 1

$ retune train more --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: more/test/green contains 3 images of a class that the training images lack: theirs are blue, red
hint: give the class images to train on, or move the folder away
exit status 1

$ retune train single --test-fraction 0.5 --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: single: the class blue has one image; two are needed to train on one and test on the other
hint: add images to the class, or remove it
exit status 1

$ retune train data/train --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: data/train contains no train/ and test/ (or val/) folders, and no test fraction is given
hint: make both folders, or hold out part of every class for testing with --test-fraction 0.2
exit status 1

$ retune train data --test-fraction 0.5 --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: a test fraction is given, but there is data/test to test on
hint: leave the test fraction out, or move the test folder away
exit status 2

$ retune train data/train --test-fraction 0 --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: the test fraction is 0; it must be between 0 and 1
exit status 2

$ retune train data/train --test-fraction 1 --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: the test fraction is 1; it must be between 0 and 1
exit status 2

$ retune train data/train --test-fraction 1.5 --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: the test fraction is 1.5; it must be between 0 and 1
exit status 2

$ retune train data/train --test-fraction -0.5 --from-scratch --width 4 --image-size 33 --batch-size 8 --out run
error: the test fraction is -0.5; it must be between 0 and 1
exit status 2
"##);

        let outcome = place.run(&format!("train bad {SMALL} --quiet --out run"));
        assert_eq!(outcome.status, 1);
        assert_snapshot!(outcome.stderr, @r##"
error: no training image of the class blue can be read: cannot decode bad/train/blue/a.png: expected a JPEG, PNG, GIF, BMP, TIFF, WebP or PNM image, found a text file
hint: replace the files with images that can be read, or remove the class
"##);
        // After fixing the data, the user can run the same command again.
        place.draw("bad/train/blue", [40, 60, 200], 3);
        place.draw("bad/train/red", [200, 60, 40], 3);
        place.succeed(&format!("train bad {SMALL} --epochs 1 --out run"));
    }

    #[cfg(not(feature = "emulator"))]
    #[test]
    fn of_a_device_that_this_build_lacks() {
        assert_snapshot!(Workplace::new().refusals(&["train data --from-scratch --out run --device emulator"]), @r##"
$ retune train data --from-scratch --out run --device emulator
error: --device emulator: this build has no emulator
hint: build with `cargo build --release --features emulator`, which needs a C++ compiler
exit status 1
"##);
    }

    #[test]
    fn of_flags() {
        let place = Workplace::new();
        place.write("file", b"a file in the way");
        let base = "train data --from-scratch --out run";
        let lines = [
            "nonsense".to_string(),
            "train".to_string(),
            "train data --from-scratch --epoch 3".to_string(),
            format!("{base} --epochs 99999999999999999999"),
            format!("{base} --epochs 1000001"),
            format!("{base} --steps 1000000001"),
            format!("{base} --recipe lesson"),
            format!("{base} --config recipe.toml"),
            format!("{base} --epochs 0"),
            format!("{base} --batch-size 0"),
            format!("{base} --batch-size many"),
            format!("{base} --lr -1"),
            format!("{base} --lr nan"),
            format!("{base} --lr inf"),
            format!("{base} --lr 0"),
            format!("{base} --momentum -0.5"),
            format!("{base} --momentum 2"),
            format!("{base} --momentum nan"),
            format!("{base} --epsilon 1e-8"),
            format!("{base} --optimizer adamw --momentum 0"),
            format!("{base} --optimizer adamw --beta2 1"),
            format!("{base} --optimizer nesterov --momentum 0"),
            format!("{base} --weight-decay nan"),
            format!("{base} --head-lr-multiplier -10"),
            format!("{base} --loss-reduction median"),
            format!("{base} --label-smoothing 2"),
            format!("{base} --mixup 1e-310"),
            format!("{base} --cutmix inf"),
            format!("{base} --fit-head --epochs 0 --cutmix 1"),
            format!("{base} --class-weights 1,0"),
            format!("{base} --class-weights 1,2,3"),
            format!("{base} --workers 0"),
            format!("{base} --workers 999"),
            format!("{base} --threads 0"),
            format!("{base} --threads 999"),
            format!("{base} --seed -1"),
            format!("{base} --workers -1"),
            format!("{base} --image-size 0"),
            format!("{base} --image-size 4294967329"),
            format!("{base} --image-size 1"),
            format!("{base} --width 4 --image-size 8 --batch-size 9"),
            format!("{base} --width 4 --image-size 32 --batch-size 9"),
            format!("{base} --width 4 --image-size 32 --batch-size 1"),
            format!("{base} --width 0"),
            format!("{base} --width 100000"),
            format!("{base} --arch resnet99"),
            format!("{base} --freeze nonsense"),
            format!("{base} --freeze conv1,,bn1"),
            format!("{base} --head-from 0,1"),
            format!("{base} --device cuda:x"),
            format!("{base} --device nonsense"),
            format!("{base} --precision bf16"),
            format!("{base} --precision fp8"),
            format!("{base} --quiet --verbose"),
            "devices --threads 999".to_string(),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_snapshot!(place.refusals(&lines), @r##"
$ retune nonsense
error: unrecognized subcommand 'nonsense'
hint: see `retune --help`
exit status 2

$ retune train
error: the following required arguments were not provided: <DATA>
hint: see `retune train --help`
exit status 2

$ retune train data --from-scratch --epoch 3
error: unexpected argument '--epoch' found
hint: a similar argument exists: '--epochs'
exit status 2

$ retune train data --from-scratch --out run --epochs 99999999999999999999
error: invalid value '99999999999999999999' for '--epochs <N>': the number is too large
hint: see `retune train --help`
exit status 2

$ retune train data --from-scratch --out run --epochs 1000001
error: --epochs 1000001: expected at most 1000000
exit status 2

$ retune train data --from-scratch --out run --steps 1000000001
error: --steps 1000000001: expected at most 1000000000
exit status 2

$ retune train data --from-scratch --out run --recipe lesson
error: --from-scratch: the recipe that is given says what a run starts from
hint: leave --recipe or --config out: --from-scratch has a recipe of its own, which other flags change
exit status 2

$ retune train data --from-scratch --out run --config recipe.toml
error: --from-scratch: the recipe that is given says what a run starts from
hint: leave --recipe or --config out: --from-scratch has a recipe of its own, which other flags change
exit status 2

$ retune train data --from-scratch --out run --epochs 0
error: --epochs 0: expected at least 1
hint: --head-only fits the final layer without epochs
exit status 2

$ retune train data --from-scratch --out run --batch-size 0
error: --batch-size 0: expected at least 1
exit status 2

$ retune train data --from-scratch --out run --batch-size many
error: invalid value 'many' for '--batch-size <N>': expected a whole number that is not negative
hint: see `retune train --help`
exit status 2

$ retune train data --from-scratch --out run --lr -1
error: --lr -1: expected a number above 0
exit status 2

$ retune train data --from-scratch --out run --lr nan
error: --lr NaN: expected a number above 0
exit status 2

$ retune train data --from-scratch --out run --lr inf
error: --lr inf: expected a number above 0
exit status 2

$ retune train data --from-scratch --out run --lr 0
error: --lr 0: expected a number above 0
exit status 2

$ retune train data --from-scratch --out run --momentum -0.5
error: optimizer sgd: momentum -0.5: expected at least 0 and less than 1
exit status 2

$ retune train data --from-scratch --out run --momentum 2
error: optimizer sgd: momentum 2: expected at least 0 and less than 1
exit status 2

$ retune train data --from-scratch --out run --momentum nan
error: optimizer sgd: momentum NaN: expected at least 0 and less than 1
exit status 2

$ retune train data --from-scratch --out run --epsilon 1e-8
error: optimizer sgd: there is no hyperparameter epsilon, only momentum
exit status 2

$ retune train data --from-scratch --out run --optimizer adamw --momentum 0
error: optimizer adamw: there is no hyperparameter momentum, only beta1, beta2, epsilon
exit status 2

$ retune train data --from-scratch --out run --optimizer adamw --beta2 1
error: optimizer adamw: beta2 1: expected at least 0 and less than 1
exit status 2

$ retune train data --from-scratch --out run --optimizer nesterov --momentum 0
error: optimizer nesterov: momentum 0: expected more than 0 and less than 1
exit status 2

$ retune train data --from-scratch --out run --weight-decay nan
error: --weight-decay NaN: expected a number that is not negative
exit status 2

$ retune train data --from-scratch --out run --head-lr-multiplier -10
error: --head-lr-multiplier -10: expected a number that is not negative
exit status 2

$ retune train data --from-scratch --out run --loss-reduction median
error: invalid value 'median' for '--loss-reduction <HOW>' [possible values: sum, mean]
hint: a similar value exists: 'mean'
exit status 2

$ retune train data --from-scratch --out run --label-smoothing 2
error: --label-smoothing 2: expected a number from 0 to less than 1
exit status 2

$ retune train data --from-scratch --out run --mixup 1e-310
error: --mixup 1e-310: expected a number above 0, or 0 to turn it off
exit status 2

$ retune train data --from-scratch --out run --cutmix inf
error: --cutmix inf: expected a number above 0, or 0 to turn it off
exit status 2

$ retune train data --from-scratch --out run --fit-head --epochs 0 --cutmix 1
error: --cutmix: only the final layer is fitted, to features of single images, so no images are mixed
hint: leave --cutmix out, or train at least one epoch: --fit-head in place of --head-only
exit status 2

$ retune train data --from-scratch --out run --class-weights 1,0
error: invalid value '1,0' for '--class-weights <WEIGHTS>': expected balanced, or a number above 0 for each class, such as 1,2.5
hint: see `retune train --help`
exit status 2

$ retune train data --from-scratch --out run --class-weights 1,2,3
error: --class-weights 1,2,3: expected 2 numbers, one for each class, found 3
hint: the classes are, in this order, blue, red
exit status 2

$ retune train data --from-scratch --out run --workers 0
error: --workers 0: expected 1 to 512
exit status 2

$ retune train data --from-scratch --out run --workers 999
error: --workers 999: expected 1 to 512
exit status 2

$ retune train data --from-scratch --out run --threads 0
error: --threads 0: expected 1 to 512
exit status 2

$ retune train data --from-scratch --out run --threads 999
error: --threads 999: expected 1 to 512
exit status 2

$ retune train data --from-scratch --out run --seed -1
error: invalid value '-1' for '--seed <N>': expected a whole number that is not negative
hint: see `retune train --help`
exit status 2

$ retune train data --from-scratch --out run --workers -1
error: invalid value '-1' for '--workers <N>': expected a whole number that is not negative
hint: see `retune train --help`
exit status 2

$ retune train data --from-scratch --out run --image-size 0
error: --image-size 0: expected 8 to 65536
exit status 2

$ retune train data --from-scratch --out run --image-size 4294967329
error: --image-size 4294967329: expected 8 to 65536
exit status 2

$ retune train data --from-scratch --out run --image-size 1
error: --image-size 1: expected 8 to 65536
exit status 2

$ retune train data --from-scratch --out run --width 4 --image-size 8 --batch-size 9
error: the last batch of an epoch has one image (28 = 3 x 9 + 1); batch norm cannot train on it at 8 x 8 pixels
hint: use --batch-size 8 or 10, or larger images
exit status 1

$ retune train data --from-scratch --out run --width 4 --image-size 32 --batch-size 9
error: the last batch of an epoch has one image (28 = 3 x 9 + 1); batch norm cannot train on it at 32 x 32 pixels
hint: use --batch-size 8 or 10, or larger images
exit status 1

$ retune train data --from-scratch --out run --width 4 --image-size 32 --batch-size 1
error: layer4.0.downsample.1: expected more than one value per channel, found [1, 1, 1, 32]
hint: batch norm cannot train on a single pixel: use larger batches or larger images
exit status 1

$ retune train data --from-scratch --out run --width 0
error: --width 0: expected 1 to 4096
exit status 2

$ retune train data --from-scratch --out run --width 100000
error: --width 100000: expected 1 to 4096
exit status 2

$ retune train data --from-scratch --out run --arch resnet99
error: invalid value 'resnet99' for '--arch <NAME>' [possible values: ARCHITECTURES]
hint: a similar value exists: 'resnet50'
exit status 2

$ retune train data --from-scratch --out run --freeze nonsense
error: --freeze: resnet18 has no module "nonsense"
hint: its modules are conv1, bn1, layer1, layer1.0, layer1.1, layer2, layer2.0, layer2.1, layer3, layer3.0, layer3.1, layer4, layer4.0, layer4.1, fc
exit status 2

$ retune train data --from-scratch --out run --freeze conv1,,bn1
error: --freeze: resnet18 has no module ""
hint: its modules are conv1, bn1, layer1, layer1.0, layer1.1, layer2, layer2.0, layer2.1, layer3, layer3.0, layer3.1, layer4, layer4.0, layer4.1, fc
exit status 2

$ retune train data --from-scratch --out run --head-from 0,1
error: --head-from: a network from scratch has no old head
hint: leave --from-scratch or --head-from out
exit status 2

$ retune train data --from-scratch --out run --device cuda:x
error: invalid value 'cuda:x' for '--device <DEVICE>' [possible values: auto, cpu, cuda, emulator]
hint: a similar value exists: 'cuda'
exit status 2

$ retune train data --from-scratch --out run --device nonsense
error: invalid value 'nonsense' for '--device <DEVICE>' [possible values: auto, cpu, cuda, emulator]
hint: see `retune train --help`
exit status 2

$ retune train data --from-scratch --out run --precision bf16
error: --precision bf16: the CPU supports only fp32
hint: remove --precision, or use a CUDA device
exit status 2

$ retune train data --from-scratch --out run --precision fp8
error: invalid value 'fp8' for '--precision <PRECISION>' [possible values: fp32, tf32, bf16]
hint: a similar value exists: 'fp32'
exit status 2

$ retune train data --from-scratch --out run --quiet --verbose
error: the argument '--quiet' cannot be used with '--verbose'
hint: see `retune train --help`
exit status 2

$ retune devices --threads 999
error: --threads 999: expected 1 to 512
exit status 2
"##);
    }

    #[test]
    fn of_places_to_write() {
        let place = Workplace::new();
        place.write("file", b"a file in the way");
        place.write("kept/model.safetensors", b"somebody's only copy");
        place.succeed(&format!("train data {SMALL} --epochs 1 --out run"));
        let train = |out: &str| format!("train data {SMALL} --epochs 1 --quiet --out {out}");
        let lines = [train("run"), train("kept"), train("file"), train("file/run")];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_snapshot!(place.refusals(&lines), @r##"
$ retune train data --from-scratch --width 4 --image-size 33 --batch-size 8 --epochs 1 --quiet --out run
error: there is already a run in run
hint: give --resume to continue it, or another folder
exit status 1

$ retune train data --from-scratch --width 4 --image-size 33 --batch-size 8 --epochs 1 --quiet --out kept
error: there is already a model in kept
hint: give another folder
exit status 1

$ retune train data --from-scratch --width 4 --image-size 33 --batch-size 8 --epochs 1 --quiet --out file
error: cannot create the folder file: File exists (os error 17)
hint: choose a folder that can be created and written
exit status 1

$ retune train data --from-scratch --width 4 --image-size 33 --batch-size 8 --epochs 1 --quiet --out file/run
error: cannot create the folder file/run: Not a directory (os error 20)
hint: choose a folder that can be created and written
exit status 1
"##);
        #[cfg(target_os = "linux")]
        assert_snapshot!(place.refusals(&[&train("/proc/run")]), @r##"
$ retune train data --from-scratch --width 4 --image-size 33 --batch-size 8 --epochs 1 --quiet --out /proc/run
error: cannot create the folder /proc/run: No such file or directory (os error 2)
hint: choose a folder that can be created and written
exit status 1
"##);
    }

    #[test]
    fn of_a_loss_that_is_no_number() {
        let place = Workplace::new();
        let outcome = place.run(&format!("train data {SMALL} --epochs 1 --lr 1e30 --quiet --out run"));
        assert_eq!((outcome.status, outcome.stdout.as_str()), (1, ""));
        assert_snapshot!(outcome.stderr, @r##"
error: in epoch 1, at a learning rate of 1e30, the loss became NaN in batch 2; the first value that is not finite is in the output of bn1; the last checkpoint is unchanged
hint: use a smaller learning rate, or --clip-gradient-norm 1
"##);
        // A smaller learning rate in the same folder, as the hint says.
        place.succeed(&format!("train data {SMALL} --epochs 1 --lr 1e-4 --out run"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn of_more_memory_than_there_is() {
        let place = Workplace::new();
        let outcome =
            place.run("train data --from-scratch --width 4 --image-size 30000 --batch-size 14 --quiet --out run");
        assert_eq!((outcome.status, outcome.stdout.as_str()), (1, ""));
        let lines: Vec<&str> = outcome.stderr.lines().collect();
        assert!(lines[0].starts_with("error: cpu: out of memory: ") && lines[0].ends_with(" GiB is free"), "{lines:?}");
        assert!(lines[1].starts_with("hint: ") && lines[1].contains("--batch-size "), "{lines:?}");
        assert!(!place.path("run").exists(), "no run was created");
    }

    #[test]
    fn of_resuming() {
        let place = Workplace::new();
        place.succeed(&format!("train data {SMALL} --epochs 1 --out run"));
        let checkpoint = place.read("run/checkpoint.safetensors");
        place.write("empty/checkpoint.safetensors", b"");
        place.write("cut/checkpoint.safetensors", &checkpoint[..checkpoint.len() / 2]);
        place.write("model/checkpoint.safetensors", &place.read("run/model.safetensors"));
        place.draw("other/train/green", [40, 190, 60], 2);
        place.draw("other/train/yellow", [220, 210, 50], 2);
        place.draw("other/test/green", [40, 190, 60], 2);
        let resume = |flags: &str| format!("train data --resume --epochs 2 --quiet {flags}");
        let lines = [
            resume("--out nothing"),
            resume("--out empty"),
            resume("--out cut"),
            resume("--out model"),
            resume("--out run --lr 0.5"),
            resume("--out run --batch-size 4"),
            resume("--out run --seed 1"),
            resume("--out run --arch resnet34"),
            resume("--out run --freeze conv1"),
            resume("--out run --weights run/model.safetensors"),
            resume("--out run --test-fraction 0.5"),
            "train other --resume --epochs 2 --out run".to_string(),
            "train data --resume --epochs 1 --out run".to_string(),
            "train data --resume --out run".to_string(),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_snapshot!(place.refusals(&lines), @r##"
$ retune train data --resume --epochs 2 --quiet --out nothing
error: --resume: there is no nothing/checkpoint.safetensors
hint: leave --resume out to start a run there, or name its folder with --out
exit status 1

$ retune train data --resume --epochs 2 --quiet --out empty
error: empty/checkpoint.safetensors is empty (0 bytes), expected a safetensors or .pth file
hint: download or save it again: the writing program did not finish
exit status 1

$ retune train data --resume --epochs 2 --quiet --out cut
error: cut/checkpoint.safetensors is truncated: its header describes 193528 bytes, the file has 96764
hint: download or copy it again
exit status 1

$ retune train data --resume --epochs 2 --quiet --out model
error: model/checkpoint.safetensors: expected format retune-checkpoint-1, found "pt"
exit status 1

$ retune train data --resume --epochs 2 --quiet --out run --lr 0.5
error: --lr differs from the recipe of the run in run
hint: leave it out to resume, or start another run with another --out
exit status 2

$ retune train data --resume --epochs 2 --quiet --out run --batch-size 4
error: --batch-size differs from the recipe of the run in run
hint: leave it out to resume, or start another run with another --out
exit status 2

$ retune train data --resume --epochs 2 --quiet --out run --seed 1
error: --seed differs from the recipe of the run in run
hint: leave it out to resume, or start another run with another --out
exit status 2

$ retune train data --resume --epochs 2 --quiet --out run --arch resnet34
error: --arch differs from the recipe of the run in run
hint: leave it out to resume, or start another run with another --out
exit status 2

$ retune train data --resume --epochs 2 --quiet --out run --freeze conv1
error: --freeze differs from the recipe of the run in run
hint: leave it out to resume, or start another run with another --out
exit status 2

$ retune train data --resume --epochs 2 --quiet --out run --weights run/model.safetensors
error: --weights: the run in run was started from scratch
hint: leave it out to resume, or start another run with another --out
exit status 2

$ retune train data --resume --epochs 2 --quiet --out run --test-fraction 0.5
error: --test-fraction differs from the recipe of the run in run
hint: leave it out to resume, or start another run with another --out
exit status 2

$ retune train other --resume --epochs 2 --out run
error: other has the classes green, yellow, but the run in run was trained on blue, red
exit status 1

$ retune train data --resume --epochs 1 --out run
error: the run in run is finished: it has completed 1 epoch
hint: give a larger --epochs to train longer, or another --out to start another run
exit status 1

$ retune train data --resume --out run
error: the run in run is finished: it has completed 1 epoch
hint: give a larger --epochs to train longer, or another --out to start another run
exit status 1
"##);
    }
}

mod determinism {
    use super::*;

    #[test]
    fn one_seed_gives_the_same_bits_with_any_workers_and_threads() {
        let place = Workplace::new();
        let train = |flags: &str, out: &str| {
            place.succeed(&format!("train data {SMALL} --epochs 2 --momentum 0.9 {flags} --out {out}"));
        };
        train("", "first");
        let others = ["", "--workers 1", "--workers 4", "--threads 1", "--threads 2", "--threads 3", "--seed 0"];
        for (number, flags) in others.into_iter().enumerate() {
            let out = format!("run{number}");
            train(flags, &out);
            place.assert_same_result("first", &out);
        }
        train("--seed 1", "other");
        assert!(place.read("first/model.safetensors") != place.read("other/model.safetensors"));
    }

    #[test]
    fn resuming_after_an_epoch_gives_the_bits_of_an_uninterrupted_run() {
        for momentum in ["0", "0.9"] {
            let place = Workplace::new();
            let train = format!("train data {SMALL} --momentum {momentum}");
            place.succeed(&format!("{train} --epochs 3 --out whole"));
            place.succeed(&format!("{train} --epochs 1 --out parts"));
            place.write("parts/.checkpoint.safetensors.x7Rq2b.tmp", b"left by a run that was killed");
            place.succeed("train data --resume --epochs 2 --out parts");
            assert_eq!(place.names("parts"), place.names("whole"));
            // Adds --resume to the whole command, as the hint of an interrupted run says.
            place.succeed(&format!("{train} --epochs 3 --out parts --resume --workers 3 --threads 1"));
            place.assert_same_result("whole", "parts");
        }
    }

    /// Stored values are float32 in all precisions, so a run can change its device. A message states the consequences.
    #[test]
    fn resuming_in_another_precision_warns() {
        let place = Workplace::new();
        place.succeed(&format!("train data {SMALL} --epochs 1 --out run"));
        let mut bytes = place.read("run/checkpoint.safetensors");
        let told = br#""precision":"fp32""#;
        let start =
            bytes.windows(told.len()).position(|window| window == told).expect("the checkpoint names the device");
        bytes[start..start + told.len()].copy_from_slice(br#""precision":"bf16""#);
        place.write("run/checkpoint.safetensors", &bytes);
        let outcome = place.succeed("train data --resume --epochs 2 --out run");
        let note = "the run used bf16 so far and continues with fp32: results will differ from those of either\n";
        assert!(outcome.stderr.contains(note), "{}", outcome.stderr);
        let outcome = place.succeed("train data --resume --epochs 3 --out run");
        assert!(!outcome.stderr.contains("results will differ"), "{}", outcome.stderr);
    }

    #[test]
    fn resuming_on_another_device_warns() {
        let place = Workplace::new();
        place.succeed(&format!("train data {SMALL} --epochs 1 --out run"));
        let config = String::from_utf8(place.read("run/config.json")).unwrap();
        let changed = config.replace(r#""device": "cpu""#, r#""device": "NVIDIA H100""#);
        assert!(changed != config, "{config}");
        place.write("run/config.json", changed.as_bytes());
        let outcome = place.succeed("train data --resume --epochs 2 --out run");
        let note = "the run used NVIDIA H100 so far and continues with cpu: results will differ from those of either\n";
        assert!(outcome.stderr.contains(note), "{}", outcome.stderr);
    }

    #[test]
    fn flags_that_equal_the_recipe_do_not_hinder_resuming() {
        let place = Workplace::new();
        let train = format!("train data {SMALL} --optimizer adamw --beta1 0.8");
        place.succeed(&format!("{train} --epochs 1 --out run"));
        let same = "--beta1 0.8 --beta2 0.999 --epsilon 1e-8 --augment horizontal-flip=0.5 --optimizer adamw --seed 0";
        place.succeed(&format!("train data --resume --epochs 2 --out run {same}"));
        let outcome = place.run("train data --resume --epochs 3 --out run --beta2 0.99");
        assert!(outcome.stderr.starts_with("error: --beta2 differs from the recipe"), "{}", outcome.stderr);
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn a_resumed_run_keeps_its_precision() {
        let place = Workplace::new();
        let train = format!("train data {SMALL} --device emulator --precision bf16");
        place.succeed(&format!("{train} --epochs 2 --out whole"));
        place.succeed(&format!("{train} --epochs 1 --out parts"));
        let outcome = place.succeed("train data --resume --epochs 2 --out parts --device emulator");
        assert!(!outcome.stderr.contains("results will differ"), "{}", outcome.stderr);
        place.assert_same_result("whole", "parts");
        place.succeed(&format!("{train} --epochs 1 --out parts-in-fp32"));
        let line = "train data --resume --epochs 2 --out parts-in-fp32 --device emulator --precision fp32";
        let outcome = place.succeed(line);
        assert!(outcome.stderr.contains("the run used bf16 so far and continues with fp32"), "{}", outcome.stderr);
    }

    /// Also if no later epoch is better.
    #[test]
    fn a_model_has_the_number_of_epochs_of_its_run() {
        let place = Workplace::new();
        let train = format!("train data {SMALL} --lr 1e-15");
        place.succeed(&format!("{train} --epochs 3 --out whole"));
        place.succeed(&format!("{train} --epochs 1 --out parts"));
        let resumed = place.succeed(&format!("{train} --epochs 3 --out parts --resume"));
        let speed = place.speed("parts", &resumed);
        assert!(resumed.stdout.ends_with(&format!("; {speed} examples/sec on cpu\n")), "{speed}: {}", resumed.stdout);
        for run in ["whole", "parts"] {
            let model = place.read(&format!("{run}/model.safetensors"));
            let (_, header) = SafeTensors::read_metadata(&model).unwrap();
            let recipe: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["recipe"]).unwrap();
            assert_eq!(recipe["epochs"], 3, "{run}");
        }
        place.assert_same_result("whole", "parts");
    }

    #[test]
    fn the_last_of_a_repeated_option_wins() {
        let place = Workplace::new();
        place.succeed(&format!(
            "train data {SMALL} --device cuda:9 --epochs 9 --quiet --epochs 1 --out other --out run --quiet --device cpu"
        ));
        assert!(!place.path("other").exists());
        assert_eq!(place.metrics("run").iter().filter(|metric| metric["kind"] == "epoch").count(), 1);
    }

    #[test]
    fn resuming_a_fine_tuning_gives_the_bits_of_an_uninterrupted_run() {
        let place = Workplace::with_base_model();
        let train = "train data --weights base/model.safetensors --image-size 33 --batch-size 8 --momentum 0.9 \
                     --freeze conv1,bn1,layer1 --freeze-batch-norm";
        place.succeed(&format!("{train} --epochs 3 --out whole"));
        place.succeed(&format!("{train} --epochs 1 --out parts"));
        place.succeed(&format!("{train} --epochs 3 --out parts --resume"));
        place.assert_same_result("whole", "parts");
    }
}

#[cfg(unix)]
mod interruption {
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;

    const LONG: &str = "--epochs 12 --momentum 0.9";

    fn spawn(place: &Workplace, line: &str) -> Child {
        let mut command = Command::new(PROGRAM);
        command.args(line.split_whitespace()).current_dir(place.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn signal(child: &Child, name: &str) {
        let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
        assert!(status.success(), "{name} arrived after the run ended");
    }

    fn wait_for_lines(place: &Workplace, file: &str, lines: usize) {
        let started = Instant::now();
        while fs::read_to_string(place.path(file)).unwrap_or_default().lines().count() < lines {
            assert!(started.elapsed() < TIMEOUT, "{file} does not have {lines} lines");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn of_an_epoch_can_be_resumed_to_the_same_bits() {
        let place = Workplace::new();
        let train = format!("train data {SMALL} --momentum 0.9");
        for (name, lines, status) in [("-INT", 1, 130), ("-TERM", 7, 143), ("-HUP", 13, 129), ("-INT", 18, 130)] {
            let out = format!("stopped{lines}");
            let child = spawn(&place, &format!("{train} --epochs 1000000 --out {out}"));
            wait_for_lines(&place, &format!("{out}/metrics.jsonl"), lines);
            signal(&child, name);
            let output = child.wait_with_output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(status), "{stderr}");
            assert_eq!(output.stdout, b"");
            let [.., stopped, hint] = stderr.lines().collect::<Vec<_>>()[..] else { panic!("{stderr}") };
            let place_of_stop = stopped.strip_prefix("error: stopped in epoch ").expect(stopped);
            assert!(
                stopped.ends_with(&format!(" of 4; everything is saved in {out}/checkpoint.safetensors")),
                "{stderr}"
            );
            assert_eq!(hint, format!("hint: to continue: retune train data --resume --out {out}"));
            // When the signal arrives depends on the machine.
            let epoch: usize = place_of_stop.split(' ').next().unwrap().parse().unwrap();
            let (epochs, whole) = (epoch + 2, format!("whole{lines}"));
            place.succeed(&format!("{train} --epochs {epochs} --out {whole}"));
            let resumed = place.succeed(&format!("{train} --epochs {epochs} --out {out} --resume"));
            assert!(resumed.stderr.contains("resuming in epoch "), "{}", resumed.stderr);
            place.assert_same_result(&whole, &out);
        }
    }

    /// A run under `nohup` goes on when its terminal is closed.
    #[cfg(target_os = "linux")]
    #[test]
    fn by_a_closed_terminal_is_not_one_under_nohup() {
        let place = Workplace::new();
        let mut command = Command::new("nohup");
        let line = format!("train data {SMALL} {LONG} --out run");
        command.arg(PROGRAM).args(line.split_whitespace()).current_dir(place.folder.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for_lines(&place, "run/metrics.jsonl", 1);
        signal(&child, "-HUP");
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The first signal stops the run after the current step, the second stops it at once.
    #[test]
    fn twice_stops_at_once() {
        let place = Workplace::new();
        let train = "train data --from-scratch --image-size 224 --batch-size 32 --device cpu --out stopped";
        let mut child = spawn(&place, train);
        while !place.path("stopped/checkpoint.safetensors").exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        signal(&child, "-INT");
        let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut told = String::new();
        while !told.contains("stopping after this step; press Ctrl-C again to stop at once") {
            assert!(std::io::BufRead::read_line(&mut stderr, &mut told).unwrap() > 0, "{told}");
        }
        signal(&child, "-TERM");
        let asked = Instant::now();
        assert_eq!(child.wait().unwrap().code(), Some(143));
        assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
        std::io::Read::read_to_string(&mut stderr, &mut told).unwrap();
        assert!(!told.contains("stopped in epoch"), "the step was completed: {told}");
        SafeTensors::deserialize(&place.read("stopped/checkpoint.safetensors")).unwrap();
    }

    #[test]
    fn by_a_kill_at_any_moment_loses_no_more_than_an_epoch() {
        let place = Workplace::new();
        let train = format!("train data {SMALL} {LONG}");
        place.succeed(&format!("{train} --out whole"));
        let mut state = u64::from(std::process::id()) ^ 0x9E37_79B9_7F4A_7C15;
        for round in 0..3 {
            let out = format!("killed{round}");
            let mut delays = Vec::new();
            for _ in 0..4 {
                let resume =
                    if place.path(&format!("{out}/checkpoint.safetensors")).exists() { "--resume" } else { "" };
                let mut child = spawn(&place, &format!("{train} --out {out} {resume}"));
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let delay = Duration::from_millis(5 + (state >> 33) % 250);
                delays.push(delay);
                std::thread::sleep(delay);
                let _ = child.kill();
                let status = child.wait().unwrap();
                assert!(status.code().is_none_or(|code| code <= 1), "{delays:?}: {status}");
                // Every file that has its final name is complete.
                for file in ["model.safetensors", "checkpoint.safetensors"] {
                    if let Ok(bytes) = fs::read(place.path(&format!("{out}/{file}"))) {
                        SafeTensors::deserialize(&bytes).unwrap_or_else(|cause| panic!("{delays:?}: {file}: {cause}"));
                    }
                }
            }
            let resume = if place.path(&format!("{out}/checkpoint.safetensors")).exists() { "--resume" } else { "" };
            let last = place.run(&format!("{train} --out {out} {resume}"));
            assert!(last.status == 0 || last.stderr.contains("has completed 12 epochs"), "{delays:?}: {}", last.stderr);
            place.assert_same_result("whole", &out);
            if last.status == 0 {
                assert_eq!(place.names(&out), place.names("whole"), "{delays:?}");
            }
        }
    }
}

#[cfg(unix)]
mod full_disk {
    use super::*;

    #[test]
    fn leaves_the_previous_files_whole_and_resumable() {
        let place = Workplace::new();
        let train = format!("train data {SMALL} --momentum 0.9");
        place.succeed(&format!("{train} --epochs 3 --out whole"));
        place.succeed(&format!("{train} --epochs 1 --out run"));
        let files = ["run/model.safetensors", "run/checkpoint.safetensors", "run/config.json"];
        let before = files.map(|file| place.read(file));
        // Some shells count blocks of 512 bytes and some of 1024. Either way, the limit is smaller than both files.
        let limited = format!("ulimit -f 60; \"$RETUNE\" {train} --epochs 3 --out run --resume --quiet");
        let outcome = place.shell(&limited);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (1, ""), "{}", outcome.stderr);
        let lines: Vec<&str> = outcome.stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{}", outcome.stderr);
        assert!(lines[0].starts_with("error: cannot write run/"), "{}", lines[0]);
        assert!(lines[0].ends_with("the previous file is untouched"), "{}", lines[0]);
        assert_eq!(lines[1], "hint: raise the limit on file sizes, which `ulimit -f` shows, or write to another disk");
        assert!(before == files.map(|file| place.read(file)));
        assert_eq!(place.names("run"), place.names("whole"));
        place.succeed(&format!("{train} --epochs 3 --out run --resume"));
        place.assert_same_result("whole", "run");
    }

    #[test]
    fn in_the_first_epoch_leaves_nothing_behind_that_is_in_the_way() {
        let place = Workplace::new();
        let train = format!("train data {SMALL} --epochs 1 --quiet");
        let outcome = place.shell(&format!("ulimit -f 60; \"$RETUNE\" {train} --out run"));
        assert_eq!(outcome.status, 1, "{}", outcome.stderr);
        assert!(outcome.stderr.contains("no file was written"), "{}", outcome.stderr);
        assert_eq!(
            place.names("run"),
            ["config.json", "data_check.json", "images.jsonl", "metrics.jsonl", "recipe.toml"]
        );
        place.succeed(&format!("{train} --out run"));
        place.succeed(&format!("{train} --out other"));
        place.assert_same_result("run", "other");
    }

    /// Unmounts even if a test fails, because the folder could not be removed otherwise.
    #[cfg(target_os = "linux")]
    struct Mounted(PathBuf);

    #[cfg(target_os = "linux")]
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(&self.0).status();
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn of_a_real_file_system_is_survived() {
        let place = Workplace::new();
        let train = format!("train data {SMALL} --momentum 0.9 --no-report");
        place.succeed(&format!("{train} --epochs 3 --out whole"));
        fs::create_dir(place.path("disk")).unwrap();
        let size = place.read("whole/checkpoint.safetensors").len() + place.read("whole/model.safetensors").len();
        // Space for both files and the beginning of a third.
        let mounted = place.shell(&format!("mount -t tmpfs -o size={} none disk", size + 100_000));
        if mounted.status != 0 {
            eprintln!("NOT TESTED: cannot mount a file system: {}", mounted.stderr);
            return;
        }
        let _mounted = Mounted(place.path("disk"));
        let outcome = place.run(&format!("{train} --epochs 3 --quiet --out disk/run"));
        let files = ["model.safetensors", "checkpoint.safetensors"];
        let is_whole = |name: &str| SafeTensors::deserialize(&place.read(&format!("disk/run/{name}"))).is_ok();
        let whole = files.map(is_whole);
        let names = place.names("disk/run");
        let resumed = place.shell(&format!(
            "mount -o remount,size=4m disk && \"$RETUNE\" {train} --epochs 3 --out disk/run --resume && cp -r disk/run end"
        ));
        assert_snapshot!(outcome.stderr, @r##"
error: cannot write disk/run/checkpoint.safetensors: No space left on device (os error 28); the previous file is untouched
hint: free some space on the disk, or write to another one
"##);
        assert_eq!((outcome.status, whole), (1, [true, true]));
        assert_eq!(names, place.names("whole"), "no temporary file is left");
        assert_eq!(resumed.status, 0, "{}", resumed.stderr);
        place.assert_same_result("whole", "end");
    }
}

/// Tests the code paths of other processors on this one.
#[cfg(unix)]
mod lower_instruction_sets {
    use super::*;

    #[test]
    fn train_predict_and_pass_the_reference_check() {
        let place = Workplace::new();
        for (name, description) in [("portable", "portable code"), ("avx2", "")] {
            let succeed = |line: &str| {
                let outcome = place.shell(&format!("RETUNE_CPU={name} \"$RETUNE\" {line}"));
                assert_eq!(outcome.status, 0, "RETUNE_CPU={name} retune {line}: {}", outcome.stderr);
                outcome.stdout
            };
            let devices = succeed("devices");
            assert!(devices.lines().next().unwrap().ends_with(description), "{devices}");
            for file in ["lesson", "odd", "frozen-middle", "resnet34"] {
                succeed(&format!("gradcheck '{}'", fixture(&format!("{file}.safetensors")).display()));
            }
            let recipe = format!("{SMALL} --epochs 8 --lr 2e-3 --momentum 0.5");
            let run: Value =
                serde_json::from_str(&succeed(&format!("train data {recipe} --out {name} --json"))).unwrap();
            assert_eq!(run["best"]["test_acc"], 1.0, "two colours are easy to learn");
            let answer = succeed(&format!("predict {name}/model.safetensors data/test/blue/00.png --top 1"));
            assert!(answer.starts_with("data/test/blue/00.png: blue "), "{answer}");
        }
    }

    #[test]
    fn have_names() {
        let place = Workplace::new();
        for (value, line) in
            [("sse9", "devices".to_string()), ("", format!("train data {SMALL} --out run")), ("AVX2", "bench".into())]
        {
            let outcome = place.shell(&format!("RETUNE_CPU={value} \"$RETUNE\" {line}"));
            assert_eq!((outcome.status, outcome.stdout.as_str()), (2, ""), "retune {line}");
            assert_eq!(outcome.stderr, format!("error: RETUNE_CPU={value}: expected portable, avx2 or avx512\n"));
        }
        assert_eq!(place.names("."), ["data"]);
    }
}

mod streams {
    use super::*;

    #[test]
    fn stdout_holds_the_result_only_and_quiet_says_nothing() {
        let place = Workplace::new();
        let loud = place.succeed(&format!("train data {SMALL} --epochs 1 --out loud"));
        assert_eq!(loud.stdout.lines().count(), 1, "{}", loud.stdout);
        assert!(loud.stderr.lines().count() >= 4, "{}", loud.stderr);
        let quiet = [
            format!("train data {SMALL} --epochs 1 --quiet --out quiet"),
            "eval quiet/model.safetensors data -q".to_string(),
            "predict quiet/model.safetensors data/test -q".to_string(),
            "inspect quiet/model.safetensors -q".to_string(),
            "bench --width 4 --image-size 33 --batch-size 2 --steps 1 -q".to_string(),
            "devices -q".to_string(),
        ];
        for line in &quiet {
            let outcome = place.succeed(line);
            // On a loaded machine, decoding may be slow; --quiet silences the warning about it.
            assert_eq!(outcome.stderr, "", "retune {line}");
            assert_ne!(outcome.stdout, "", "retune {line}");
        }
    }

    #[cfg(unix)]
    /// File names are bytes. Names that are not UTF-8 are shown with replacement characters and cause no failure.
    #[cfg(target_os = "linux")]
    #[test]
    fn names_that_are_not_unicode_are_shown_with_replacement_characters() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;

        let place = Workplace::new();
        let odd = OsStr::from_bytes(b"d\xffta");
        fs::rename(place.path("data"), place.folder.path().join(odd)).unwrap();
        let picture = Path::new(odd).join("train/blue").join(OsStr::from_bytes(b"\xfe\xff.png"));
        fs::rename(place.folder.path().join(odd).join("train/blue/00.png"), place.folder.path().join(&picture))
            .unwrap();
        let broken = place.folder.path().join(odd).join("test/red").join(OsStr::from_bytes(b"\xf0.png"));
        fs::write(broken, "no picture").unwrap();
        let run = |words: &[&OsStr]| {
            let mut command = std::process::Command::new(PROGRAM);
            let output =
                command.args(words).current_dir(place.folder.path()).env("CUDA_VISIBLE_DEVICES", "").output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(0), "{words:?}: {stderr}");
            String::from_utf8(output.stdout).unwrap()
        };
        let words = |line: &'static str| line.split_whitespace().map(OsStr::new);
        let train: Vec<&OsStr> =
            words("train").chain([odd]).chain(words(SMALL)).chain(words("--epochs 1 --json --out run")).collect();
        let result: Value = serde_json::from_str(&run(&train)).unwrap();
        assert_eq!(result["skipped"], serde_json::json!(["d\u{fffd}ta/test/red/\u{fffd}.png"]));
        let page = String::from_utf8(place.read("run/report.html")).unwrap();
        assert!(page.contains("d\u{fffd}ta/test/red/\u{fffd}.png"));
        fs::rename(place.path("run"), place.folder.path().join(OsStr::from_bytes(b"r\xffn"))).unwrap();
        let model = Path::new(OsStr::from_bytes(b"r\xffn")).join("model.safetensors");
        let predict = [OsStr::new("predict"), model.as_os_str(), picture.as_os_str(), OsStr::new("--json")];
        let result: Value = serde_json::from_str(&run(&predict)).unwrap();
        assert_eq!(result[0]["path"], "d\u{fffd}ta/train/blue/\u{fffd}\u{fffd}.png");
        run(&[OsStr::new("inspect"), model.as_os_str(), OsStr::new("--json")]);
        run(&[OsStr::new("show"), odd, OsStr::new("-o"), OsStr::from_bytes(b"s\xff.png"), OsStr::new("--json")]);
    }

    #[cfg(unix)]
    #[test]
    fn colours_are_for_terminals_and_clicolor_force() {
        let place = Workplace::empty();
        let output = |variable: &str| {
            let mut command = std::process::Command::new(PROGRAM);
            command.args(["inspect", "nothing"]).current_dir(place.folder.path());
            let (name, value) = variable.split_once('=').unwrap();
            String::from_utf8(command.env(name, value).output().unwrap().stderr).unwrap()
        };
        assert!(output("CLICOLOR_FORCE=1").starts_with("\u{1b}[31m\u{1b}[1merror:\u{1b}[0m nothing"));
        assert!(output("NO_COLOR=1").starts_with("error: nothing"));
    }

    #[test]
    fn a_closed_pipe_is_not_an_error() {
        let place = Workplace::with_base_model();
        for line in ["inspect base/model.safetensors", "inspect base/model.safetensors --plan", "train --help"] {
            let outcome = place.shell(&format!("{{ \"$RETUNE\" {line}; echo $? >&2; }} | head -1"));
            assert_eq!((outcome.stderr.as_str(), outcome.stdout.lines().count()), ("0\n", 1), "{line}");
        }
        // Output to a closed stderr is not an error either: the command completes.
        let outcome =
            place.shell(&format!("{{ \"$RETUNE\" train data {SMALL} --epochs 2 --out run; }} 2>&1 >result | head -1"));
        assert_eq!(outcome.stdout.lines().count(), 1);
        assert!(String::from_utf8(place.read("result")).unwrap().starts_with("loss "));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn that_are_full_are_told_of_where_they_matter() {
        let place = Workplace::with_base_model();
        let outcome = place.shell("\"$RETUNE\" inspect base/model.safetensors >/dev/full");
        assert_eq!(outcome.status, 1);
        assert_snapshot!(outcome.stderr, @r##"error: cannot write to standard output: No space left on device (os error 28)"##);
        let outcome = place.shell(&format!("\"$RETUNE\" train data {SMALL} --epochs 1 --out run 2>/dev/full"));
        assert_eq!(outcome.status, 0);
        assert!(outcome.stdout.starts_with("loss "));
        assert_eq!(place.shell("\"$RETUNE\" inspect missing 2>/dev/full").status, 1);
        assert_eq!(place.shell("\"$RETUNE\" nonsense 2>&-").status, 2);
    }
}
