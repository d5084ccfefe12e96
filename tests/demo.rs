//! The demo: its drawings, its files, and that its steps are the commands that it prints.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use retune::data::{ImageFolder, open_dataset};
use retune::drawing::{Counts, PICTURE_SIZE, Subject, draw_set};
use tempfile::TempDir;

const COUNTS: Counts = Counts { train: 6, test: 3 };
const SMALL: &str = "--source-per-class 6 --target-per-class 6 --pretraining-epochs 1 --epochs 2 --device cpu";

fn draw(subject: Subject, counts: Counts, seed: u64) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    draw_set(subject, folder.path(), counts, seed, || true).unwrap();
    folder
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for split in ["train", "test"] {
        for sample in ImageFolder::open(folder.join(split)).unwrap().samples {
            let name = sample.path.strip_prefix(folder).unwrap().to_path_buf();
            found.insert(name, fs::read(&sample.path).unwrap());
        }
    }
    found
}

#[test]
fn a_set_has_its_classes_and_no_two_pictures_alike() {
    for (subject, classes) in [(Subject::Source, 12), (Subject::Target, 2)] {
        let folder = draw(subject, COUNTS, 3);
        let splits = open_dataset(folder.path(), None, 0).unwrap();
        assert_eq!(splits.train.classes, subject.class_names());
        assert_eq!(splits.train.class_counts(), vec![6; classes]);
        assert_eq!(splits.test.class_counts(), vec![3; classes]);
        let files = files(folder.path());
        let different: HashSet<&Vec<u8>> = files.values().collect();
        assert_eq!(different.len(), files.len());
        for (name, bytes) in &files {
            let picture = image::load_from_memory(bytes).unwrap();
            assert_eq!((picture.width(), picture.height()), (PICTURE_SIZE, PICTURE_SIZE), "{name:?}");
        }
    }
}

#[test]
fn a_picture_depends_on_seed_and_number_only() {
    let few = files(draw(Subject::Target, COUNTS, 5).path());
    assert_eq!(few, files(draw(Subject::Target, COUNTS, 5).path()));
    let more = files(draw(Subject::Target, Counts { train: 8, test: 3 }, 5).path());
    assert!(few.iter().all(|(name, bytes)| more[name] == *bytes));
    let others = files(draw(Subject::Target, COUNTS, 6).path());
    assert!(few.iter().all(|(name, bytes)| others[name] != *bytes));
}

/// A network that knows only colours or positions must not be able to recognise hot dogs.
#[test]
fn mean_colours_and_places_do_not_give_hot_dogs_away() {
    let folder = draw(Subject::Target, Counts { train: 200, test: 1 }, 0);
    let splits = open_dataset(folder.path(), None, 0).unwrap();
    let quarter = (PICTURE_SIZE / 2) as usize;
    let mut sums = vec![[[0.0f64; 12]; 2]; 2];
    for sample in &splits.train.samples {
        let picture = image::open(&sample.path).unwrap().to_rgb8();
        let mut means = [0.0; 12];
        for (x, y, pixel) in picture.enumerate_pixels() {
            let place = 2 * (y as usize / quarter) + x as usize / quarter;
            for channel in 0..3 {
                means[3 * place + channel] += f64::from(pixel[channel]) / (quarter * quarter) as f64;
            }
        }
        for (feature, mean) in means.into_iter().enumerate() {
            sums[sample.class][0][feature] += mean / 200.0;
            sums[sample.class][1][feature] += mean * mean / 200.0;
        }
    }
    let [hot_dogs, others] = [&sums[0], &sums[1]];
    for (feature, (mean, square)) in hot_dogs[0].iter().zip(&hot_dogs[1]).enumerate() {
        let (deviation, other) = ((square - mean * mean).sqrt(), others[0][feature]);
        assert!(deviation > 20.0, "images vary: {deviation}");
        assert!((mean - other).abs() < 0.5 * deviation, "feature {feature}: {mean} against {other}, {deviation}");
    }
}

#[test]
fn drawing_stops_when_told_to_and_tells_of_folders_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    draw_set(Subject::Target, folder.path(), Counts { train: 100, test: 0 }, 0, || false).unwrap();
    let drawn = fs::read_dir(folder.path().join("train/hotdog")).unwrap().count();
    assert!((1..100).contains(&drawn), "{drawn}");
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = draw_set(Subject::Target, &file, COUNTS, 0, || true).unwrap_err();
    assert!(error.message().contains("cannot create the folder"), "{error}");
}

struct Outcome {
    status: i32,
    stdout: String,
    stderr: String,
}

fn retune(folder: &Path, words: &[&str]) -> Outcome {
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_retune"));
    command.args(words).current_dir(folder).env("CUDA_VISIBLE_DEVICES", "").timeout(Duration::from_secs(120));
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { status: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn its_steps_are_the_commands_that_it_prints() {
    let place = tempfile::tempdir().unwrap();
    let outcome = retune(place.path(), &words(&format!("demo {SMALL} --seed 4")));
    assert_eq!(outcome.status, 0, "{}", outcome.stderr);
    let results: Vec<&str> = outcome.stdout.lines().collect();
    assert!(results[0].starts_with("fine-tuned    loss "), "{results:?}");
    assert!(results[1].starts_with("from scratch  loss "), "{results:?}");
    for command in ["train photos --out runs/photos", "predict runs/photos new.jpg"] {
        assert!(outcome.stderr.contains(&format!("\n  retune {command}")), "{command}: {}", outcome.stderr);
    }
    let commands: Vec<&str> = outcome.stderr.lines().filter_map(|line| line.strip_prefix("$ retune ")).collect();
    assert_eq!(commands.len(), 3, "{}", outcome.stderr);
    for (command, run) in commands.into_iter().zip(["pretrained", "fine-tuned", "from-scratch"]) {
        let (rest, out) = command.split_once(" --out ").unwrap();
        let out = out.strip_suffix(" --device cpu").unwrap_or_else(|| panic!("{command}"));
        assert_eq!(out, format!("runs/demo/{run}"));
        let again = format!("again/{run}");
        let repeated = retune(place.path(), &words(&format!("{rest} --device cpu --out {again}")));
        assert_eq!(repeated.status, 0, "{}", repeated.stderr);
        let model = |run: &str| fs::read(place.path().join(run).join("model.safetensors")).unwrap();
        assert!(model(out) == model(&again), "{command} gave another model");
    }
}

#[test]
fn it_never_writes_over_anything() {
    let place = tempfile::tempdir().unwrap();
    let only_draw = "demo --only-draw --source-per-class 2 --target-per-class 2";
    for folder in ["runs/demo", "runs/demo-2"] {
        let outcome = retune(place.path(), &words(only_draw));
        assert_eq!((outcome.status, outcome.stderr.contains("panicked")), (0, false), "{}", outcome.stderr);
        assert_eq!(outcome.stdout, format!("{folder}/pictures/source\n{folder}/pictures/target\n"));
        assert!(place.path().join(folder).join("pictures/target/train/hotdog/0001.jpg").is_file());
    }
    let outcome = retune(place.path(), &words(&format!("{only_draw} --out runs/demo")));
    assert_eq!(outcome.status, 1);
    assert_eq!(
        outcome.stderr,
        "error: --out runs/demo: already exists and is not an empty folder\nhint: choose another folder, or remove that one\n"
    );
}

#[test]
fn json_is_one_line_with_all_three_results() {
    let place = tempfile::tempdir().unwrap();
    let outcome = retune(place.path(), &words(&format!("demo {SMALL} --json --quiet --out demo")));
    assert_eq!((outcome.status, &*outcome.stderr), (0, ""));
    let result: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    for run in ["pretrained", "fine_tuned", "from_scratch"] {
        let accuracy = result[run]["test_acc"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&accuracy));
        assert!(place.path().join(result[run]["model"].as_str().unwrap()).is_file());
    }
    assert!(result["seconds"].as_f64().unwrap() > 0.0);
}
