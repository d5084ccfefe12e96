//! The folder of a run: which process writes to it, where it may be, and with which images a run may continue.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use tempfile::TempDir;

const SMALL: &str = "--from-scratch --width 4 --image-size 33 --batch-size 4 --no-report";

/// A folder with `data/train` and `data/test` of two classes of a few images each.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (split, count) in [("train", 6), ("test", 2)] {
            for (class, colour) in [("blue", [40, 60, 200]), ("red", [200, 60, 40])] {
                (0..count).for_each(|number| place.draw(&format!("data/{split}/{class}/{number}.png"), colour, number));
            }
        }
        place
    }

    fn draw(&self, name: &str, colour: [u8; 3], number: u8) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(40, 36 + u32::from(number), Rgb(colour)).save(path).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args(line.split_whitespace()).current_dir(self.0.path()).env("CUDA_VISIBLE_DEVICES", "");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, line: &str) -> (i32, String) {
        result(self.command(line).output().unwrap())
    }

    fn succeed(&self, line: &str) -> String {
        let (status, stderr) = self.run(line);
        assert_eq!(status, 0, "{line}: {stderr}");
        stderr
    }

    /// Asserts that a run with all its checkpoints has the same bits when it resumes from any of them, and returns their names.
    fn resume_from_each_checkpoint(&self, line: &str) -> BTreeSet<String> {
        self.succeed(&format!("{line} --out whole"));
        let checkpoints: BTreeSet<String> =
            self.names("whole").into_iter().filter(|name| name.starts_with("checkpoint-")).collect();
        for checkpoint in &checkpoints {
            let folder = format!("from-{checkpoint}");
            fs::create_dir(self.path(&folder)).unwrap();
            for name in self.names("whole").iter().filter(|name| !name.starts_with("checkpoint")) {
                fs::copy(self.path("whole").join(name), self.path(&folder).join(name)).unwrap();
            }
            let newest = self.path(&folder).join("checkpoint.safetensors");
            fs::copy(self.path("whole").join(checkpoint), newest).unwrap();
            self.succeed(&format!("{line} --out {folder} --resume"));
            for name in ["checkpoint.safetensors", "model.safetensors"] {
                let read = |folder: &str| fs::read(self.path(folder).join(name)).unwrap();
                assert!(read(&folder) == read("whole"), "{checkpoint}: {name} differs");
            }
        }
        checkpoints
    }

    fn refuse(&self, line: &str, status: i32, expected: &str) {
        let (found, stderr) = self.run(line);
        assert_eq!(found, status, "{line}: {stderr}");
        assert!(stderr.contains(expected), "{line}: {stderr}");
    }

    /// Starts a run that continues until it is stopped, and waits until it trains.
    fn start(&self, line: &str, folder: &str) -> Running {
        let child = self.command(&format!("{line} --epochs 1000000")).stderr(Stdio::null()).spawn().unwrap();
        let running = Running(child);
        let begun = Instant::now();
        while !self.path(folder).join("model.safetensors").exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{line}: the run does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        running
    }

    fn names(&self, folder: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn result(output: Output) -> (i32, String) {
    (output.status.code().unwrap_or(-1), String::from_utf8(output.stderr).unwrap())
}

/// Killed at the end of a test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

mod locks {
    use super::*;

    #[test]
    fn a_second_run_in_the_same_folder_fails_at_once_and_names_the_first() {
        let place = Place::new();
        let first = place.start(&format!("train data {SMALL} --out run"), "run");
        let message = format!("error: a run in run is in progress: process {} on ", first.0.id());
        for line in [
            format!("train data {SMALL} --epochs 1 --out run"),
            format!("train data {SMALL} --epochs 1 --out ./run/../run"),
            format!("train data {SMALL} --epochs 9 --out run --resume"),
            "train data --out run --resume".to_string(),
        ] {
            let begun = Instant::now();
            let (status, stderr) = place.run(&line);
            assert_eq!(status, 1, "{line}: {stderr}");
            assert!(stderr.replace("./run/../run", "run").contains(&message), "{line}: {stderr}");
            assert!(begun.elapsed() < Duration::from_secs(10), "{line}");
        }
    }

    /// The system releases the lock of a process that was killed.
    #[test]
    fn no_lock_outlives_its_process() {
        let place = Place::new();
        let mut first = place.start(&format!("train data {SMALL} --out run"), "run");
        first.0.kill().unwrap();
        first.0.wait().unwrap();
        assert!(place.path("run/.lock").exists(), "it had no time to remove the file");
        let (_, stderr) = place.run(&format!("train data {SMALL} --out run"));
        assert!(stderr.contains("there is already a "), "{stderr}");
        let line = "train data --out run --resume --no-report";
        let second = place.start(line, "run");
        drop(second);
    }

    #[test]
    fn a_finished_run_leaves_no_lock() {
        let place = Place::new();
        place.succeed(&format!("train data {SMALL} --epochs 1 --out run"));
        let expected = [
            "checkpoint.safetensors",
            "config.json",
            "data_check.json",
            "images.jsonl",
            "metrics.jsonl",
            "model.safetensors",
            "recipe.toml",
        ];
        assert_eq!(place.names("run"), expected.map(String::from).into());
        place.refuse(&format!("train data {SMALL} --epochs 1 --out run"), 1, "there is already a run in run");
        assert_eq!(place.names("run"), expected.map(String::from).into());
    }

    /// The second process is refused before it overwrites any file of the first.
    #[test]
    fn simultaneous_starts_in_one_folder() {
        for _ in 0..4 {
            let place = Place::new();
            let line = |seed| format!("train data {SMALL} --epochs 2 --seed {seed} --out run");
            let children: Vec<Child> = (0..4).map(|seed| place.command(&line(seed)).spawn().unwrap()).collect();
            let results = children.into_iter().map(|child| result(child.wait_with_output().unwrap()));
            let (done, refused): (Vec<_>, Vec<_>) = results.enumerate().partition(|(_, (status, _))| *status == 0);
            assert_eq!(done.len(), 1, "{refused:?}");
            for (_, (status, stderr)) in refused {
                assert_eq!(status, 1, "{stderr}");
                let expected = ["is in progress", "there is already a run", "there is already a model"];
                assert!(expected.iter().any(|expected| stderr.contains(expected)), "{stderr}");
            }
            let config = fs::read_to_string(place.path("run/config.json")).unwrap();
            let config: serde_json::Value = serde_json::from_str(&config).unwrap();
            assert_eq!(config["recipe"]["seed"], done[0].0);
        }
    }
}

mod numbers {
    use super::*;

    /// Every run gets its own folder, which contains no files of another run.
    fn start_together(count: u64) {
        let place = Place::new();
        let line = |seed| format!("train data {SMALL} --epochs 1 --seed {seed}");
        let children: Vec<Child> = (0..count).map(|seed| place.command(&line(seed)).spawn().unwrap()).collect();
        for child in children {
            let (status, stderr) = result(child.wait_with_output().unwrap());
            assert_eq!(status, 0, "{stderr}");
        }
        assert_eq!(place.names("runs"), (1..=count).map(|number| number.to_string()).collect());
        let mut seeds = BTreeSet::new();
        for run in 1..=count {
            let path = place.path(&format!("runs/{run}"));
            let config: serde_json::Value =
                serde_json::from_slice(&fs::read(path.join("config.json")).unwrap()).unwrap();
            let seed = config["recipe"]["seed"].as_u64().unwrap();
            assert!(seeds.insert(seed), "two folders have the run of seed {seed}");
            for file in ["model.safetensors", "checkpoint.safetensors"] {
                let bytes = fs::read(path.join(file)).unwrap();
                let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
                let recipe: serde_json::Value =
                    serde_json::from_str(&header.metadata().as_ref().unwrap()["recipe"]).unwrap();
                assert_eq!(recipe["seed"], seed, "runs/{run}/{file}");
            }
            // 5 lines of progress and one of the epoch.
            assert_eq!(fs::read_to_string(path.join("metrics.jsonl")).unwrap().lines().count(), 4, "runs/{run}");
        }
        assert_eq!(seeds.len() as u64, count);
    }

    #[test]
    fn simultaneous_runs_get_different_ones() {
        // RETUNE_TRIES repeats it.
        let tries = std::env::var("RETUNE_TRIES").map_or(1, |tries| tries.parse().unwrap());
        for _ in 0..tries {
            [2, 4, 8].into_iter().for_each(start_together);
        }
    }

    #[test]
    fn the_last_one_is_resumed() {
        let place = Place::new();
        for _ in 0..2 {
            place.succeed(&format!("train data {SMALL} --epochs 1"));
        }
        fs::create_dir(place.path("runs/7")).unwrap();
        let stderr = place.succeed("train data --resume --epochs 2 --no-report");
        assert!(stderr.contains("runs/2/model.safetensors"), "{stderr}");
        // A gap is filled, and an existing folder is never taken.
        fs::remove_dir_all(place.path("runs/1")).unwrap();
        place.succeed(&format!("train data {SMALL} --epochs 1"));
        place.succeed(&format!("train data {SMALL} --epochs 1"));
        assert_eq!(place.names("runs"), ["1", "2", "3", "7"].map(String::from).into());
        assert!(place.names("runs/7").is_empty());
    }
}

mod steps_of_several_batches {
    use super::*;

    /// Checkpoints are saved between steps only, and the last step of an epoch has the batches that are left.
    #[test]
    fn a_run_resumes_from_each_of_its_checkpoints() {
        let place = Place::new();
        let line = format!(
            "train data {SMALL} --epochs 2 --accumulate 2 --optimizer adamw --loss-reduction mean --class-weights 1,3 \
             --balanced-sampling --checkpoint-every 1 --keep-checkpoints 9"
        );
        let expected = ["00000-000000", "00000-000002", "00001-000000", "00001-000002"];
        let checkpoints = place.resume_from_each_checkpoint(&line);
        assert_eq!(checkpoints, expected.map(|name| format!("checkpoint-{name}.safetensors")).into());
        let other = line.replace("--accumulate 2", "--accumulate 3");
        place.refuse(&format!("{other} --out whole --resume"), 2, "--accumulate differs from the recipe of the run");
    }
}

/// Each batch draws its mixture from its place in the run, whatever came before it and whoever computes it.
#[test]
fn a_run_that_mixes_images_resumes_from_every_step() {
    let place = Place::new();
    let line =
        format!("train data {SMALL} --epochs 4 --mixup 0.4 --cutmix 1 --checkpoint-every 1 --keep-checkpoints 99");
    assert_eq!(place.resume_from_each_checkpoint(&line).len(), 12);
    let read = |folder: &str| fs::read(place.path(folder).join("checkpoint.safetensors")).unwrap();
    place.succeed(&format!("{line} --threads 1 --workers 3 --out threads"));
    assert!(read("whole") == read("threads"));
    let others = ["--mixup 0.4", "--cutmix 1"].map(|flags| line.replace("--mixup 0.4 --cutmix 1", flags));
    for (other, folder) in others.iter().zip(["mixup", "cutmix"]) {
        place.succeed(&format!("{other} --out {folder}"));
        assert!(read(folder) != read("whole"), "{folder}");
    }
    let other = line.replace("--cutmix 1", "--cutmix 2");
    place.refuse(&format!("{other} --out whole --resume"), 2, "--cutmix differs from the recipe of the run");
}

/// Trials have the recipe of the run.
#[test]
fn trials_of_a_run_that_mixes_images_mix_them_too() {
    let place = Place::new();
    let trials = |flags: &str, folder: &str| {
        place.succeed(&format!("train data {SMALL} --epochs 1 --fit-head --try-lr 1e-3 {flags} --out {folder}"));
        let metrics = fs::read_to_string(place.path(folder).join("metrics.jsonl")).unwrap();
        let line = metrics.lines().find(|line| line.contains(r#""kind":"trials""#)).unwrap();
        serde_json::from_str::<serde_json::Value>(line).unwrap()["trials"].clone()
    };
    let (plain, mixed) = (trials("", "plain"), trials("--cutmix 1", "mixed"));
    assert_eq!(plain[0], mixed[0], "the fitted head alone does not mix");
    assert_ne!(plain[1], mixed[1]);
}

/// The average and the number of its steps are in the checkpoint; after each epoch, training goes on from the weights themselves.
#[test]
fn a_run_with_an_average_of_the_weights_resumes_from_every_step() {
    let place = Place::new();
    let line = format!(
        "train data {SMALL} --epochs 7 --schedule one-cycle --ema 0.9 --keep-last --checkpoint-every 1 --keep-checkpoints 99"
    );
    assert_eq!(place.resume_from_each_checkpoint(&line).len(), 21);
    place.succeed(&format!("{} --out plain", line.replace("--ema 0.9", "")));
    let read = |folder: &str| fs::read(place.path(folder).join("model.safetensors")).unwrap();
    assert!(read("whole") != read("plain"));
    place.refuse(
        &format!("{} --out whole --resume", line.replace("0.9", "0.8")),
        2,
        "--ema differs from the recipe of the run",
    );
    place.refuse(
        &format!("{} --out other", line.replace("0.9", "1")),
        2,
        "--ema 1: expected a number above 0 and below 1",
    );
}

/// An image that is drawn again in an epoch is found on the device, or decoded again.
#[cfg(feature = "emulator")]
#[test]
fn balanced_sampling_does_not_depend_on_the_memory_for_images() {
    let place = Place::new();
    // One class has more images than the other, and one of them cannot be read.
    (6..11).for_each(|number| place.draw(&format!("data/train/red/{number}.png"), [210, 70, 40], number));
    fs::write(place.path("data/train/blue/2.png"), b"no image").unwrap();
    let line = format!("train data {SMALL} --epochs 2 --balanced-sampling --device emulator");
    for (memory, run) in [("", "kept"), ("--image-memory 0", "decoded")] {
        place.succeed(&format!("{line} {memory} --out {run}"));
    }
    let read = |folder: &str| fs::read(place.path(folder).join("model.safetensors")).unwrap();
    assert!(read("kept") == read("decoded"));
}

mod places {
    use super::*;

    #[test]
    fn a_run_inside_its_data_set_is_refused() {
        let place = Place::new();
        let train = |data: &str, out: &str| format!("train {data} {SMALL} --epochs 1 --out {out}");
        for out in ["data", "data/run", "data/train/run", "data/train/blue/run", "data/new/../run", "new/../data/run"] {
            place.refuse(&train("data", out), 2, "folder of images");
        }
        for (data, out) in [("data", "."), ("./data", "../"), ("data/train", "data")] {
            let line = format!("{} --test-fraction 0.5", train(data, out));
            let line = if data.ends_with("train") { line } else { train(data, out) };
            place.refuse(&line, 2, "contains the folder of images");
        }
        assert_eq!(place.names("."), ["data"].map(String::from).into());
        assert_eq!(place.names("data"), ["test", "train"].map(String::from).into());
        // A folder beside it is accepted, even if its name begins with the same letters.
        place.succeed(&train("data", "data-run"));
    }

    #[test]
    fn a_run_without_out_is_refused_inside_the_data_set_too() {
        let place = Place::new();
        let line = format!("train . {SMALL} --epochs 1");
        let output = place.command(&line).current_dir(place.path("data")).output().unwrap();
        let (status, stderr) = result(output);
        assert_eq!(status, 2, "{stderr}");
        assert!(stderr.contains("is inside the folder of images") && stderr.contains("--out"), "{stderr}");
        assert_eq!(place.names("data"), ["test", "train"].map(String::from).into());
    }

    #[cfg(unix)]
    #[test]
    fn behind_links_too() {
        use std::os::unix::fs::symlink;
        let place = Place::new();
        symlink(place.path("data"), place.path("linked")).unwrap();
        fs::create_dir(place.path("elsewhere")).unwrap();
        place.draw("elsewhere/green/1.png", [40, 200, 60], 1);
        for split in ["train", "test"] {
            symlink(place.path("elsewhere/green"), place.path(&format!("data/{split}/green"))).unwrap();
        }
        let train = |data: &str, out: &str| format!("train {data} {SMALL} --epochs 1 --out {out}");
        for (data, out) in
            [("linked", "data/run"), ("data", "linked/run"), ("data", "elsewhere/green/run"), ("linked", "elsewhere")]
        {
            place.refuse(&train(data, out), 2, "folder of images");
        }
        // Folders of splits may be links too.
        for split in ["test", "val"] {
            let images = format!("{split}-images");
            for (class, colour) in [("blue", [40, 60, 200]), ("green", [40, 200, 60]), ("red", [200, 60, 40])] {
                place.draw(&format!("{images}/{class}/1.png"), colour, 1);
            }
            let _ = fs::remove_dir_all(place.path(&format!("data/{split}")));
            symlink(place.path(&images), place.path(&format!("data/{split}"))).unwrap();
            place.refuse(&train("data", &format!("{images}/run")), 2, "folder of images");
            place.refuse(&train("data", &images), 2, "is the folder of images");
        }
    }
}

mod batches {
    use super::*;

    /// At 32 x 32 pixels, batch norm cannot train on one image.
    #[test]
    fn an_image_that_unreadable_ones_leave_alone_does_not_end_the_run() {
        let place = Place::new();
        fs::write(place.path("data/train/red/3.png"), "no picture").unwrap();
        let line =
            "train data --from-scratch --width 4 --image-size 32 --batch-size 2 --no-report --epochs 2 --out run";
        let stderr = place.succeed(line);
        let warning = "warning: unreadable images leave a single one in a batch, which is left out: batch norm cannot train on it \
                       at 32 x 32 pixels";
        assert_eq!(stderr.matches(warning).count(), 1, "{stderr}");
        let metrics = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
        let epochs: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for epoch in epochs.iter().filter(|metric| metric["kind"] == "epoch") {
            // Of 12 images one is unreadable and one is left out.
            let correct = epoch["train_acc"].as_f64().unwrap() * 10.0;
            assert!((correct - correct.round()).abs() < 1e-9, "{epoch}");
        }
        // At 33 x 33 pixels it can.
        let stderr =
            place.succeed(&line.replace("--image-size 32", "--image-size 33").replace("--out run", "--out larger"));
        assert!(!stderr.contains("leave a single one"), "{stderr}");

        for number in [0, 1, 2, 4, 5] {
            for class in ["red", "blue"] {
                fs::write(place.path(&format!("data/train/{class}/{number}.png")), "no picture").unwrap();
            }
        }
        let line = line.replace("--out run", "--out none");
        place.refuse(&line, 1, "no training image of the class red can be read");
        place.refuse(&format!("{line} --no-data-check"), 1, "no batch has two training images that can be read");
    }
}

mod resuming {
    use super::*;

    fn begun() -> Place {
        let place = Place::new();
        place.succeed(&format!("train data {SMALL} --epochs 1 --out run"));
        place
    }

    /// Until the first model is complete, nothing else shows how far a run has come.
    #[test]
    fn a_fit_that_was_stopped_is_done_again() {
        let place = Place::new();
        let network = "train data --from-scratch --width 4 --image-size 64 --epochs 1 --no-report --out base";
        place.succeed(network);
        let line = "train data --weights base --image-size 64 --head-only --feature-copies 100 --no-report";
        place.succeed(&format!("{line} --out whole"));
        let mut stopped = 0;
        for (number, signal) in ["INT", "KILL", "INT"].into_iter().enumerate() {
            let folder = format!("stopped-{number}");
            let mut run =
                Running(place.command(&format!("{line} --out {folder}")).stderr(Stdio::null()).spawn().unwrap());
            while !place.path(&folder).join("checkpoint.safetensors").exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let id = run.0.id().to_string();
            assert!(std::process::Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
            run.0.wait().unwrap();
            if !place.path(&folder).join("model.safetensors").exists() {
                stopped += 1;
                place.succeed(&format!("{line} --out {folder} --resume"));
            }
            for name in ["model.safetensors", "checkpoint.safetensors"] {
                let read = |folder: &str| fs::read(place.path(folder).join(name)).unwrap();
                assert!(read(&folder) == read("whole"), "{folder}: {name} differs");
            }
        }
        assert!(stopped > 0, "every run was finished before it was stopped");
    }

    const RESUME: &str = "train data --resume --epochs 2 --out run --no-report";

    #[test]
    fn the_same_images_are_accepted_wherever_they_lie() {
        let place = begun();
        fs::rename(place.path("data"), place.path("moved")).unwrap();
        place.succeed(&RESUME.replace("data", "moved"));
    }

    #[test]
    fn other_images_are_refused_with_what_is_different() {
        type Change = fn(&Place);
        let cases: [(Change, &str); 5] = [
            (|place| place.draw("data/train/red/9.png", [200, 60, 40], 9), "1 added (train: red/9.png)"),
            (|place| fs::remove_file(place.path("data/test/blue/0.png")).unwrap(), "1 removed (test: blue/0.png)"),
            (
                |place| {
                    for name in ["1", "2"] {
                        let path = place.path(&format!("data/train/blue/{name}.png"));
                        let bytes = [fs::read(&path).unwrap(), vec![0]].concat();
                        fs::write(path, bytes).unwrap();
                    }
                },
                "2 of another size (first train: blue/1.png)",
            ),
            (
                // The same number of images as before.
                |place| {
                    let (from, to) = (place.path("data/train/blue/3.png"), place.path("data/train/blue/30.png"));
                    fs::rename(from, to).unwrap();
                },
                "1 added (train: blue/30.png), 1 removed (train: blue/3.png)",
            ),
            (
                |place| {
                    let (from, to) = (place.path("data/train/blue/3.png"), place.path("data/train/red/33.png"));
                    fs::rename(from, to).unwrap();
                },
                "1 added (train: red/33.png), 1 removed (train: blue/3.png)",
            ),
        ];
        for (change, expected) in cases {
            let place = begun();
            change(&place);
            let before = fs::read(place.path("run/checkpoint.safetensors")).unwrap();
            place.refuse(RESUME, 1, expected);
            place.refuse(RESUME, 1, "--allow-changed-data");
            assert!(before == fs::read(place.path("run/checkpoint.safetensors")).unwrap());
            let stderr = place.succeed(&format!("{RESUME} --allow-changed-data"));
            assert!(stderr.contains(expected) && stderr.contains("will differ from an uninterrupted run"), "{stderr}");
            // From then on, these images belong to the run.
            place.succeed(&RESUME.replace("--epochs 2", "--epochs 3"));
        }
    }

    /// Images that were left out stay so, in every command that opens the data set again.
    #[test]
    fn duplicates_stay_left_out() {
        let place = Place::new();
        for (from, to) in
            [("train/red/0", "test/red/8"), ("train/red/1", "train/red/9"), ("train/blue/2", "train/red/8")]
        {
            fs::copy(place.path(&format!("data/{from}.png")), place.path(&format!("data/{to}.png"))).unwrap();
        }
        // The test images 0 and 1 of both classes are training images, too.
        let train = format!("train data {SMALL}");
        let stderr = place.succeed(&format!("{train} --epochs 2 --drop-duplicates --out whole"));
        let told = "warning: left out 8 images that the data set contains more than once (7 training, 1 test); 1 of the images is in \
                    several classes, so no copy is used\n";
        assert!(stderr.contains(told), "{stderr}");
        assert!(stderr.contains("; 7 training and 4 test images in 2 classes"), "{stderr}");
        place.succeed(&format!("{train} --epochs 1 --drop-duplicates --out run"));
        place.succeed("train data --resume --epochs 2 --out run --no-report");
        for file in ["checkpoint.safetensors", "model.safetensors", "images.jsonl"] {
            let [one, other] = ["whole", "run"].map(|folder| fs::read(place.path(folder).join(file)).unwrap());
            assert!(one == other, "{file} differs");
        }
        place.succeed("report run");
        let page = fs::read_to_string(place.path("run/report.html")).unwrap();
        assert!(!page.contains("does not contain the images of the run"));
        let on_the_page = told.trim_end().replace("warning: left", "<li>Left") + ".</li>";
        assert!(page.contains(&on_the_page), "{page}");
        assert!(page.contains("train/red/8.png (left out)"), "{page}");
        place.refuse(
            "train data --resume --epochs 3 --drop-duplicates --out whole --no-data-check",
            2,
            "cannot be used with",
        );
        fs::remove_file(place.path("run/data_check.json")).unwrap();
        place.refuse("train data --resume --epochs 3 --out run", 1, "cannot read run/data_check.json");
    }

    /// A run that drew its test images around copies finds the same ones when it goes on and when it is shown.
    #[test]
    fn a_drawn_test_stays_the_same() {
        let place = Place::new();
        for class in ["red", "blue"] {
            for number in 0..4 {
                let name = |name: usize| place.path(&format!("data/train/{class}/{name}.png"));
                fs::copy(name(number), name(90 + number)).unwrap();
            }
        }
        for drop in ["", "--drop-duplicates"] {
            let train = format!("train data/train {SMALL} --test-fraction 0.4 {drop}");
            let [whole, run] = ["whole", "run"].map(|name| format!("{name}{drop}"));
            place.succeed(&format!("{train} --epochs 2 --out {whole}"));
            place.succeed(&format!("{train} --epochs 1 --out {run}"));
            place.succeed(&format!("train data/train --resume --epochs 2 --out {run} --no-report"));
            for file in ["checkpoint.safetensors", "model.safetensors", "images.jsonl"] {
                let [one, other] = [&whole, &run].map(|folder| fs::read(place.path(folder).join(file)).unwrap());
                assert!(one == other, "{file} differs");
            }
            place.succeed(&format!("report {run}"));
            let page = fs::read_to_string(place.path(&run).join("report.html")).unwrap();
            assert!(page.contains("Confusion matrix"), "{page}");
            let images = fs::read_to_string(place.path(&run).join("images.jsonl")).unwrap();
            let split = |number: usize| {
                let line = images.lines().find(|line| line.contains(&format!("\"red/{number}.png\"")));
                line.map(|line| line.starts_with("[\"test\""))
            };
            for number in 0..4 {
                let expected = if drop.is_empty() { split(number) } else { None };
                assert_eq!(split(90 + number), expected, "{images}");
            }
        }
    }

    /// The split of each image of a run, by its name.
    fn splits(place: &Place, run: &str) -> BTreeMap<String, String> {
        let lines = fs::read_to_string(place.path(run).join("images.jsonl")).unwrap();
        let entry = |line: &str| serde_json::from_str::<(String, String, String, u64, Option<String>)>(line).unwrap();
        lines.lines().map(entry).map(|(split, name, ..)| (name, split)).collect()
    }

    /// What was trained on is never tested on, and the reverse, whatever comes and goes.
    #[test]
    fn a_drawn_test_keeps_its_images_when_others_change() {
        const CHANGED: &str = "train data/train --resume --epochs 2 --no-report --out";
        for drop in ["", "--drop-duplicates"] {
            let place = Place::new();
            place.succeed(&format!("train data/train {SMALL} --epochs 1 --test-fraction 0.4 --out run {drop}"));
            let before = splits(&place, "run");
            assert_eq!(before.values().filter(|split| *split == "test").count(), 4);
            let red = |split: &str| before.iter().find(|(name, of)| name.starts_with("red") && *of == split).unwrap().0;
            for (name, copy) in [(red("test"), "of_test"), (red("train"), "of_train")] {
                let to = place.path(&format!("data/train/red/{copy}.png"));
                fs::copy(place.path(&format!("data/train/{name}")), to).unwrap();
            }
            // These come first in the order of names.
            (10..20).for_each(|number| place.draw(&format!("data/train/red/-{number}.png"), [200, 60, 40], number));
            let removed = before.keys().find(|name| name.starts_with("blue")).unwrap();
            fs::remove_file(place.path(&format!("data/train/{removed}"))).unwrap();
            place.refuse(&format!("{CHANGED} run"), 1, "1 removed");
            let stderr = place.succeed(&format!("{CHANGED} run --allow-changed-data"));
            assert!(!stderr.contains("also a training image"), "{stderr}");

            let mut after = splits(&place, "run");
            for (name, split) in before.iter().filter(|(name, _)| *name != removed) {
                assert_eq!(after.remove(name).as_ref(), Some(split), "{name}");
            }
            let of_copies = ["of_test", "of_train"].map(|copy| after.remove(&format!("red/{copy}.png")));
            let expected =
                if drop.is_empty() { ["test", "train"].map(|split| Some(split.into())) } else { [None, None] };
            assert_eq!(of_copies, expected);
            assert_eq!(after.len(), 10, "{after:?}");
            assert_eq!(after.values().filter(|split| *split == "test").count(), 4, "{after:?}");
            // From then on, these images belong to the run.
            place.succeed(&format!("{CHANGED} run --epochs 3"));
            place.succeed("report run");
            let page = fs::read_to_string(place.path("run/report.html")).unwrap();
            assert!(page.contains("Confusion matrix"), "{page}");

            // The copy of a test image that was left out does not become a training image when that is gone.
            if !drop.is_empty() {
                fs::remove_file(place.path(&format!("data/train/{}", red("test")))).unwrap();
                place.draw("data/train/red/-20.png", [200, 60, 40], 20);
                place.succeed(&format!("{CHANGED} run --epochs 4 --allow-changed-data"));
                assert_eq!(splits(&place, "run")["red/of_test.png"], "test");
            }
        }
    }

    /// The best model so far is measured again, so that figures of other images neither choose a model nor stand for it.
    #[test]
    fn the_best_model_is_measured_on_changed_test_images() {
        let place = Place::new();
        place.succeed(&format!("train data {SMALL} --epochs 8 --lr 2e-3 --momentum 0.5 --no-report --out run"));
        // What was right is now wrong.
        for (from, to) in [("blue", "other"), ("red", "blue"), ("other", "red")] {
            fs::rename(place.path(&format!("data/test/{from}")), place.path(&format!("data/test/{to}"))).unwrap();
        }
        let stderr = place.succeed("train data --resume --epochs 9 --allow-changed-data --out run");
        assert!(stderr.contains("classifies 0.0 % of the present test images correctly"), "{stderr}");

        let metrics = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
        let lines: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let changed = lines.iter().position(|line| line["kind"] == "changed").unwrap();
        assert_eq!(lines[changed]["test_acc"], 0.0);
        let best_of =
            |lines: &[serde_json::Value]| lines.iter().filter_map(|line| line["test_acc"].as_f64()).fold(0.0, f64::max);
        let best = best_of(&lines[changed..]);
        assert!(best < best_of(&lines[..changed]), "the figures before the change would do as well");
        assert!(stderr.contains(&format!("best test accuracy {best:.3} ")), "{stderr}");
        let page = fs::read_to_string(place.path("run/report.html")).unwrap();
        assert!(page.contains(&format!("{:.1} % test accuracy", 100.0 * best)), "{page}");
        assert!(page.contains("The images changed during the run"), "{page}");
    }

    #[test]
    fn a_drawn_test_needs_images_on_both_sides() {
        let place = Place::new();
        place.succeed(&format!("train data/train {SMALL} --epochs 1 --test-fraction 0.4 --out run"));
        let before = splits(&place, "run");
        let remove = |class: &str, split: &str, most: usize| {
            let names = before.iter().filter(|(name, of)| name.starts_with(class) && *of == split);
            let paths = names.map(|(name, _)| place.path(&format!("data/train/{name}"))).filter(|path| path.exists());
            paths.take(most).for_each(|path| fs::remove_file(path).unwrap());
        };
        let resume = "train data/train --resume --epochs 2 --no-report --out run --allow-changed-data";
        remove("blue", "test", 2);
        let stderr = place.succeed(resume);
        assert!(stderr.contains("no test image of the class blue is left"), "{stderr}");
        let resume = resume.replace("--epochs 2", "--epochs 3");
        remove("red", "train", 4);
        place.refuse(&resume, 1, "no training image of the class red is left");
        remove("red", "test", 1);
        place.refuse(&resume, 1, "the class red has one image; two are needed");
        place.draw("data/train/red/7.png", [200, 60, 40], 7);
        fs::remove_file(place.path("run/images.jsonl")).unwrap();
        place.refuse(&resume, 1, "cannot read run/images.jsonl");
    }

    #[test]
    fn images_are_examined_unless_it_is_refused() {
        let place = Place::new();
        let stderr = place.succeed(&format!("train data {SMALL} --epochs 1 --out run"));
        let leak = "warning: 4 test images are also training images (identical files), such as train/blue/0.png and test/blue/0.png: ";
        assert!(stderr.contains(leak), "{stderr}");
        assert!(stderr.contains("warning: 2 classes have fewer than 10 training images"), "{stderr}");
        let stderr = place.succeed(&format!("train data {SMALL} --epochs 1 --out other --no-data-check"));
        assert!(!stderr.contains("also training images"), "{stderr}");
        assert!(stderr.contains("warning: 2 classes have fewer than 10 training images"), "{stderr}");
    }

    /// Without the list, the checkpoint still shows that the images differ.
    #[test]
    fn the_list_may_be_lost() {
        let place = begun();
        fs::remove_file(place.path("run/images.jsonl")).unwrap();
        place.draw("data/train/red/9.png", [200, 60, 40], 9);
        place.refuse(RESUME, 1, "names, sizes, classes or contents differ");
    }

    /// Its checkpoints contain no list of images; `config.json` has their numbers.
    #[test]
    fn a_run_of_an_earlier_version() {
        let place = begun();
        let path = place.path("run/checkpoint.safetensors");
        let bytes = fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let mut metadata = header.metadata().clone().unwrap();
        assert!(metadata.remove("images").is_some());
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        fs::write(&path, safetensors::serialize(file.tensors(), Some(metadata)).unwrap()).unwrap();
        fs::remove_file(place.path("run/images.jsonl")).unwrap();
        let mut config: serde_json::Value =
            serde_json::from_slice(&fs::read(place.path("run/config.json")).unwrap()).unwrap();
        assert!(config.as_object_mut().unwrap().remove("images").is_some());
        fs::write(place.path("run/config.json"), config.to_string()).unwrap();

        place.draw("data/train/red/9.png", [200, 60, 40], 9);
        let stderr = place.succeed(RESUME);
        assert!(stderr.contains("started with 12 training and 4 test images, now there are 13 and 4"), "{stderr}");
        assert!(Path::exists(&place.path("run/images.jsonl")), "from now on it knows them");
        place.draw("data/train/red/8.png", [200, 60, 40], 8);
        place.refuse(&RESUME.replace("--epochs 2", "--epochs 3"), 1, "1 added (train: red/8.png)");
    }
}
