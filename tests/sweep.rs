//! Sweeps: several runs in one folder, their names, what is refused, and resuming.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use image::{Rgb, RgbImage};
use tempfile::TempDir;

const SMALL: &str = "--from-scratch --width 4 --image-size 32 --batch-size 4 --epochs 1";

/// A folder with `data/train` and `data/test` of two classes of a few images each.
struct Place(TempDir);

struct Outcome {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (split, count) in [("train", 4), ("test", 3)] {
            for (class, colour) in [("blue", [40, 60, 200]), ("red", [200, 60, 40])] {
                (0..count).for_each(|number| place.draw(&format!("data/{split}/{class}/{number}.png"), colour, number));
            }
        }
        place
    }

    fn draw(&self, name: &str, colour: [u8; 3], number: u8) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Images of one colour would have no gradients.
        let pixel =
            |x: u32, y: u32| Rgb(colour.map(|c: u8| c.wrapping_add((x * x + y * u32::from(number + 1)) as u8 % 40)));
        RgbImage::from_fn(40, 36 + u32::from(number), pixel).save(path).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, line: &str) -> Outcome {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args(line.split_whitespace()).current_dir(self.0.path()).env("CUDA_VISIBLE_DEVICES", "");
        let output = command.stdin(Stdio::null()).output().unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        Outcome { status: output.status.code().unwrap_or(-1), stdout, stderr }
    }

    fn succeed(&self, line: &str) -> Outcome {
        let outcome = self.run(line);
        assert_eq!(outcome.status, 0, "{line}: {}", outcome.stderr);
        outcome
    }

    fn refuse(&self, line: &str, expected: &str) {
        let before = self.names(".");
        let Outcome { status, stderr, .. } = self.run(line);
        assert!(status == 1 || status == 2, "{line}: {status} {stderr}");
        assert!(stderr.starts_with(&format!("error: {expected}")), "{line}: {stderr}");
        assert_eq!(self.names("."), before, "{line}");
    }

    fn names(&self, folder: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

#[test]
fn a_sweep_is_several_ordinary_runs_and_a_page() {
    let place = Place::new();
    let line = format!("train data {SMALL} --try lr=1e-3,3e-3 --seeds 2 --seed 5");
    let outcome = place.succeed(&line);
    let runs = ["lr=1e-3,seed=5", "lr=3e-3,seed=5", "lr=1e-3,seed=6", "lr=3e-3,seed=6"];
    let files = ["comparison.html", "sweep.json"];
    assert_eq!(place.names("runs/1"), runs.iter().chain(&files).map(|name| name.to_string()).collect());
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines[0].starts_with("combination  test accuracy  deviation  difference to lr=1e-3"), "{lines:?}");
    assert_eq!(lines.last(), Some(&"runs/1/comparison.html"));
    assert!(outcome.stderr.contains("[4/4] lr=3e-3,seed=6\n"), "{}", outcome.stderr);
    let page = String::from_utf8(place.read("runs/1/comparison.html")).unwrap();
    for run in runs {
        assert!(page.contains(&format!("<td>{run}</td>")), "{run}");
        let address = run.replace('=', "%3D").replace(',', "%2C");
        assert!(page.contains(&format!("<a href=\"{address}/report.html\">")), "{run}");
        for file in ["config.json", "recipe.toml", "report.html", "model.safetensors"] {
            place.read(&format!("runs/1/{run}/{file}"));
        }
    }
    let refused = place.run("eval runs/1 data");
    assert!(
        refused.stderr.contains("error: runs/1 is a sweep, expected a model\nhint: give the folder of one of its runs")
    );
    // Each run has the bits of a run by itself.
    place.succeed(&format!("train data {SMALL} --lr 3e-3 --seed 6 --no-report --out alone"));
    for file in ["model.safetensors", "checkpoint.safetensors", "recipe.toml"] {
        assert!(place.read(&format!("alone/{file}")) == place.read(&format!("runs/1/lr=3e-3,seed=6/{file}")), "{file}");
    }
    // What was finished is not trained again, and a folder with a sweep is taken.
    let model = fs::metadata(place.path("runs/1/lr=1e-3,seed=5/model.safetensors")).unwrap().modified().unwrap();
    let again = place.succeed("train data --resume");
    assert_eq!(again.stdout, outcome.stdout);
    fs::remove_file(place.path("runs/1/comparison.html")).unwrap();
    assert_eq!(place.succeed("report runs/1").stdout, outcome.stdout);
    assert!(place.read("runs/1/comparison.html") == page.as_bytes());
    place.refuse(
        "report runs/1 --output page.html",
        "--output: runs/1 is a sweep, whose page refers to the reports of its runs",
    );
    assert!(!page.contains("(--test-fraction)"), "the test images are given");
    assert!(again.stderr.contains("[1/4] lr=1e-3,seed=5 is finished\n"), "{}", again.stderr);
    assert_eq!(fs::metadata(place.path("runs/1/lr=1e-3,seed=5/model.safetensors")).unwrap().modified().unwrap(), model);
    place.refuse(&format!("train data {SMALL} --seeds 2 --out runs/1"), "there is already a sweep in runs/1");
    place.refuse(&format!("train data {SMALL} --out runs/1"), "there is already a sweep in runs/1");
    for (flags, flag) in [
        ("--seeds 3", "--seeds"),
        ("--seed 6", "--seed"),
        ("--try lr=1e-3", "--try"),
        ("--epochs 2", "--epochs"),
        ("--lr 1e-3", "--lr"),
        ("--recipe best", "--recipe best"),
    ] {
        place.refuse(&format!("train data --resume --out runs/1 {flags}"), &format!("{flag} differs from the "));
    }
    place.refuse("train data --resume --out runs/1 --extend 2", "--extend: a sweep cannot be extended");
}

/// A sweep that was killed before, within or after any of its runs has the files of one that was not.
#[test]
fn a_killed_sweep_is_resumed() {
    let place = Place::new();
    let sweep = "--from-scratch --width 4 --image-size 32 --batch-size 4 --epochs 2 --seeds 3 --no-report --checkpoint-every 1 \
                 --keep-checkpoints 9";
    let whole = place.succeed(&format!("train data {sweep} --out whole"));
    let copy = |from: &str, to: &str| {
        fs::create_dir_all(place.path(to)).unwrap();
        for name in place.names(from).iter().filter(|name| place.path(from).join(name).is_file()) {
            fs::copy(place.path(from).join(name), place.path(to).join(name)).unwrap();
        }
    };
    // The first run is complete, the second was killed in its second epoch, the third before its first checkpoint.
    copy("whole", "cut");
    fs::remove_file(place.path("cut/comparison.html")).unwrap();
    copy("whole/seed=0", "cut/seed=0");
    copy("whole/seed=1", "cut/seed=1");
    let older = place.path("cut/seed=1/checkpoint-00001-000001.safetensors");
    fs::rename(older, place.path("cut/seed=1/checkpoint.safetensors")).unwrap();
    fs::create_dir(place.path("cut/seed=2")).unwrap();
    let first = fs::metadata(place.path("cut/seed=0/model.safetensors")).unwrap().modified().unwrap();
    let resumed = place.succeed("train data --resume --out cut --no-report");
    assert_eq!(resumed.stdout.replace("cut", "whole"), whole.stdout);
    assert!(resumed.stderr.contains("resuming in epoch 2 after batch 1"), "{}", resumed.stderr);
    for seed in 0..3 {
        for file in ["model.safetensors", "checkpoint.safetensors"] {
            let read = |folder: &str| place.read(&format!("{folder}/seed={seed}/{file}"));
            assert!(read("cut") == read("whole"), "seed {seed}: {file} differs");
        }
    }
    assert_eq!(fs::metadata(place.path("cut/seed=0/model.safetensors")).unwrap().modified().unwrap(), first);
    // The same command starts a sweep where there is none yet, and other images are refused.
    place.succeed(&format!("train data {SMALL} --seeds 1 --no-report --resume --out new"));
    fs::remove_dir_all(place.path("cut/seed=2")).unwrap();
    place.draw("data/train/red/9.png", [250, 10, 10], 9);
    let changed = place.run("train data --resume --out cut --no-report");
    assert_eq!(changed.status, 1);
    assert!(
        changed.stderr.contains("the images in data differ from those of the run in cut/seed=0: "),
        "{}",
        changed.stderr
    );
}

#[test]
fn a_failed_run_does_not_end_the_others() {
    let place = Place::new();
    let outcome = place.run(&format!("train data {SMALL} --try lr=1e38,1e-3 --no-report --out sweep"));
    assert_eq!(outcome.status, 1, "{}", outcome.stderr);
    assert!(outcome.stdout.contains("lr=1e38 (1 of 1 failed)"), "{}", outcome.stdout);
    assert!(outcome.stderr.contains("1 run failed and is left out: lr=1e38."), "{}", outcome.stderr);
    place.read("sweep/lr=1e-3/model.safetensors");
    let page = String::from_utf8(place.read("sweep/comparison.html")).unwrap();
    assert!(page.contains("<td>lr=1e38</td>") && page.contains("failed: "), "{page}");
    let again = place.run("train data --resume --no-report --out sweep");
    assert_eq!((again.status, again.stdout), (1, outcome.stdout));
}

#[test]
fn results_for_scripts() {
    let place = Place::new();
    let outcome = place.succeed(&format!("train data {SMALL} --try lr=1e-3,3e-3 --no-report --json -q --out sweep"));
    let lines: Vec<serde_json::Value> =
        outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (lines[0]["run"].as_str(), lines[1]["run"].as_str(), lines.len()),
        (Some("lr=1e-3"), Some("lr=3e-3"), 3)
    );
    assert!(lines[0]["test_acc"].is_number() && lines[0]["model"] == "sweep/lr=1e-3/model.safetensors");
    let sweep = &lines[2]["sweep"];
    assert_eq!(
        (&sweep["ranked_by"], &sweep["first"], &sweep["page"]),
        (&"test".into(), &"lr=1e-3".into(), &"sweep/comparison.html".into())
    );
    assert_eq!(sweep["combinations"].as_array().unwrap().len(), 2);
    let table = place.succeed("train data --resume -q --no-report --out sweep");
    assert_eq!((table.stdout.lines().count(), table.stderr.as_str()), (4, ""));
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_runs() {
    let place = Place::new();
    place.succeed(&format!("train data {SMALL} --no-report --out single"));
    for (flags, expected) in [
        (
            "--try batch-sise=3",
            "--try batch-sise=3: there is no flag --batch-sise of the recipe\nhint: the nearest is batch-size\n",
        ),
        ("--try lr=1e-3,0", "lr=0: --lr 0: expected a number above 0\n"),
        ("--try lr=1e-3,0.001", "--try: lr=1e-3 and lr=0.001 are the same recipe\n"),
        ("--try epochs=1,2", "--epochs: --try epochs gives its values too\n"),
        ("--try lr=1 --try lr=2", "--try lr: it is tried twice\n"),
        ("--try recipe=best", "--try recipe: --from-scratch says which recipe is used\n"),
        ("--try optimizer=sgd,adamw --momentum 0.9", "optimizer=adamw: "),
        ("--try warm-up=1,9", "warm-up=9: "),
        (
            "--try layer-lr-decay=0.5,2",
            "layer-lr-decay=2: --layer-lr-decay 2: expected a number above 0 and at most 1\n",
        ),
        (
            "--seeds 2 --seed 18446744073709551615",
            "--seeds 2: the seeds from 18446744073709551615 on would be too large\n",
        ),
        ("--seeds 2000", "the sweep has 2000 runs: expected at most 1000\n"),
        ("--seeds 2 --budget 1h", "--budget: the runs of a sweep would differ in their numbers of epochs\n"),
        ("--seeds 2 --verify-determinism", "--verify-determinism: it trains no runs to compare\n"),
        ("--seeds 2 --resume --out single", "--seeds: the run in single is a single run, not a sweep\n"),
        ("--seeds 2 --resume", "--resume: the last of runs/1, runs/2, ... is no sweep\n"),
        (
            "--seeds 2 --resume --allow-changed-data --out single",
            "--allow-changed-data: the runs of a sweep are compared",
        ),
        ("--seeds 2 --out data/sweep", "the run's folder data/sweep is inside the folder of images"),
    ] {
        place.refuse(&format!("train data {SMALL} {flags}"), expected);
    }
    place.refuse(&format!("train nothing {SMALL} --seeds 2"), "");
}
