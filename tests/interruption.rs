//! Runs that are killed at any moment, and disks that fail. A run must be resumable afterwards, and end with the bits
//! of an uninterrupted run.
//!
//! `interruption/faulty_disk.c` simulates disk failures: the C compiler builds it into a library that intercepts the C
//! library's functions. Without a C compiler these tests print a message and test nothing.

#![cfg(target_os = "linux")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use retune::train::Checkpoint;
use safetensors::SafeTensors;
use tempfile::TempDir;

const TRAIN: &str = "train data --from-scratch --width 4 --image-size 33 --batch-size 8 --momentum 0.9 --epochs 6 \
                     --checkpoint-every 2 --keep-checkpoints 2 --no-report --quiet";

struct Random(u64);

impl Random {
    /// The seed differs in every run of the tests. Failures print the operation that it selected.
    fn new() -> Self {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Self(time.as_nanos() as u64 ^ u64::from(std::process::id()))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

struct Place {
    folder: TempDir,
    /// The library that simulates disk failures.
    library: Option<PathBuf>,
}

impl Place {
    /// With images of two classes, three of them unreadable, and an uninterrupted run `whole`.
    fn new(device: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut random = Random(3);
        for (split, count) in [("train", 18), ("test", 6)] {
            for (class, colour) in [("blue", [40, 60, 200]), ("red", [200, 60, 40u8])] {
                let class = folder.path().join("data").join(split).join(class);
                fs::create_dir_all(&class).unwrap();
                for number in 0..count {
                    let mut channel = |value: u8| value.saturating_add(random.below(80) as u8).saturating_sub(20);
                    let picture = RgbImage::from_fn(40, 36, |_, _| Rgb(colour.map(&mut channel)));
                    picture.save(class.join(format!("{number:02}.png"))).unwrap();
                }
            }
        }
        for broken in ["train/red/04a.png", "train/blue/17a.png", "test/blue/00a.png"] {
            fs::write(folder.path().join("data").join(broken), "no picture").unwrap();
        }
        let library = faulty_disk(folder.path());
        let place = Self { folder, library };
        let whole = place.run(&format!("{TRAIN} --device {device} --out whole"), "");
        assert!(whole.status.success(), "{}", text(&whole.stderr));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, line: &str, fault: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args(line.split_whitespace()).current_dir(self.folder.path()).env("CUDA_VISIBLE_DEVICES", "");
        if !fault.is_empty() {
            command.env("LD_PRELOAD", self.library.as_ref().unwrap()).env("FAULTY_DISK", fault);
            command.env("FAULTY_DISK_COUNT", self.path("count"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, line: &str, fault: &str) -> Output {
        self.command(line, fault).output().unwrap()
    }

    /// Returns the number of file operations in a whole run.
    fn operations(&self, line: &str) -> u64 {
        let counted = self.run(&format!("{line} --out counted"), "count:0");
        assert!(counted.status.success(), "{}", text(&counted.stderr));
        self.assert_as_whole("counted", "counting");
        let operations = fs::read_to_string(self.path("count")).unwrap().parse().unwrap();
        assert!(operations > 50, "{operations}");
        operations
    }

    /// Asserts that every file with its final name is complete.
    fn assert_nothing_half_written(&self, run: &str, what: &str) {
        for entry in fs::read_dir(self.path(run)).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.ends_with(".safetensors") && !name.starts_with('.') {
                SafeTensors::deserialize(&fs::read(&path).unwrap())
                    .unwrap_or_else(|cause| panic!("{what}: {name}: {cause}"));
                if name.starts_with("checkpoint") {
                    Checkpoint::open(&path).unwrap_or_else(|error| panic!("{what}: {error}"));
                }
            }
        }
    }

    /// Asserts that the run has the files and the bits of the uninterrupted run.
    fn assert_as_whole(&self, run: &str, what: &str) {
        let names = |run: &str| {
            let mut names: Vec<_> =
                fs::read_dir(self.path(run)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(run), names("whole"), "{what}");
        for name in names("whole") {
            let name = name.to_string_lossy().into_owned();
            let read = |run: &str| fs::read(self.path(run).join(&name)).unwrap();
            if name == "metrics.jsonl" {
                assert_eq!(without_times(&read(run)), without_times(&read("whole")), "{what}");
            } else if name != "config.json" {
                assert!(read(run) == read("whole"), "{what}: {name} differs");
            }
        }
    }

    /// Runs the same command, which also started the run, to its end.
    fn finish(&self, line: &str, run: &str, what: &str) {
        let last = self.run(&format!("{line} --out {run} --resume"), "");
        let done = text(&last.stderr).contains("has completed 6 epochs");
        assert!(last.status.success() || done, "{what}: {}", text(&last.stderr));
        self.assert_as_whole(run, what);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn without_times(metrics: &[u8]) -> Vec<serde_json::Value> {
    let lines = text(metrics);
    let lines = lines.lines().map(|line| {
        let mut metric: serde_json::Value = serde_json::from_str(line).unwrap();
        for name in ["seconds", "whole_seconds", "images_per_second"] {
            metric.as_object_mut().unwrap().remove(name);
        }
        metric
    });
    lines.collect()
}

fn faulty_disk(folder: &Path) -> Option<PathBuf> {
    let library = folder.join("faulty_disk.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interruption/faulty_disk.c");
    let compiler = std::env::var_os("CC").unwrap_or("cc".into());
    match Command::new(&compiler)
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-O1", "-o"])
        .arg(&library)
        .arg(source)
        .arg("-ldl")
        .output()
    {
        Ok(output) => assert!(output.status.success(), "{}", text(&output.stderr)),
        Err(cause) => {
            // Writes to stderr directly, so that a skipped test is visible despite the test harness's capture.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no C compiler {compiler:?} for a disk that fails: {cause}");
            return None;
        }
    }
    Some(library)
}

/// Kills the program at every file operation, including those that write, sync or rename a checkpoint or a model.
#[test]
fn a_kill_at_every_file_operation_loses_nothing() {
    let place = Place::new("cpu");
    if place.library.is_none() {
        return;
    }
    let line = format!("{TRAIN} --device cpu");
    let (operations, mut random) = (place.operations(&line), Random::new());
    for first in 1..=operations {
        let run = format!("killed{first}");
        let mut kills = Vec::new();
        // Some runs are killed again after they have been resumed.
        for number in 0..1 + first % 3 {
            let operation = if number == 0 { first } else { 1 + random.below(operations) };
            kills.push(operation);
            let killed = place.run(&format!("{line} --out {run} --resume"), &format!("kill:{operation}"));
            assert!(killed.status.code().is_none_or(|code| code <= 1), "{kills:?}: {}", text(&killed.stderr));
            place.assert_nothing_half_written(&run, &format!("killed at {kills:?} of {operations}"));
        }
        place.finish(&line, &run, &format!("killed at {kills:?} of {operations}"));
        fs::remove_dir_all(place.path(&run)).unwrap();
    }
}

/// Stops a run while it classifies the test images with the model that the validation images chose.
#[test]
fn a_stop_during_the_test_at_the_end_loses_nothing() {
    let place = Place::new("cpu");
    if place.library.is_none() {
        return;
    }
    for class in ["blue", "red"] {
        let (test, validation) = (format!("data/test/{class}"), format!("data/val/{class}"));
        fs::create_dir_all(place.path(&validation)).unwrap();
        fs::rename(place.path(&test).join("00.png"), place.path(&validation).join("00.png")).unwrap();
        // Enough batches that the signal arrives before the last.
        for number in 0..100 {
            fs::copy(place.path(&test).join("01.png"), place.path(&test).join(format!("copy{number:03}.png"))).unwrap();
        }
    }
    // The older checkpoint would be that of the stop.
    let line = format!("{TRAIN} --device cpu").replace(" --keep-checkpoints 2", "");
    fs::remove_dir_all(place.path("whole")).unwrap();
    assert!(place.run(&format!("{line} --out whole"), "").status.success());
    let operations = place.operations(&line);
    let kinds = |run: &str| {
        let metrics = without_times(&fs::read(place.path(run).join("metrics.jsonl")).unwrap());
        metrics.iter().map(|metric| metric["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let epochs = |run: &str| kinds(run).iter().filter(|kind| *kind == "epoch").count();
    assert_eq!((epochs("whole"), kinds("whole").last().unwrap().as_str()), (6, "test"));
    let mut stopped_in_time = 0;
    for operation in operations - 20..=operations {
        let run = format!("stopped{operation}");
        let stopped = place.run(&format!("{line} --out {run}"), &format!("interrupt:{operation}"));
        let stderr = text(&stopped.stderr);
        let what = format!("interrupted at operation {operation} of {operations}");
        assert!(matches!(stopped.status.code(), Some(0 | 130)), "{what}: {:?} {stderr}", stopped.status);
        if stopped.status.code() == Some(130) && epochs(&run) == 6 && !kinds(&run).iter().any(|kind| kind == "test") {
            stopped_in_time += 1;
            assert!(stderr.contains("everything is saved in"), "{what}: {stderr}");
        }
        place.finish(&line, &run, &what);
    }
    assert!(stopped_in_time > 0, "no signal arrived during the test");
}

/// Kills the program at any time, mostly during computation.
#[test]
fn a_kill_at_any_time_loses_nothing() {
    let place = Place::new("cpu");
    let line = format!("{TRAIN} --device cpu");
    let started = Instant::now();
    assert!(place.run(&format!("{line} --out timed"), "").status.success());
    let (takes, mut random) = (started.elapsed().as_micros() as u64, Random::new());
    for round in 0..50 {
        let run = format!("killed{round}");
        let delay = Duration::from_micros(random.below(takes));
        let mut child = place.command(&format!("{line} --out {run} --resume"), "").spawn().unwrap();
        std::thread::sleep(delay);
        // The run may have ended by then.
        let _ = child.kill();
        child.wait().unwrap();
        let what = format!("killed after {delay:?} of {takes} us");
        place.assert_nothing_half_written(&run, &what);
        place.finish(&line, &run, &what);
        fs::remove_dir_all(place.path(&run)).unwrap();
    }
}

/// The disk is full, broken permanently, broken once, or read-only, from every operation onwards.
#[test]
fn a_disk_that_fails_harms_no_checkpoint() {
    let place = Place::new("cpu");
    if place.library.is_none() {
        return;
    }
    let line = format!("{TRAIN} --device cpu");
    let operations = place.operations(&line);
    let modes = ["full", "broken", "once", "readonly"];
    let (mut tried, mut failed) = (0, 0);
    for (mode, operation) in modes.into_iter().flat_map(|mode| (1..=operations).map(move |at| (mode, at))) {
        let run = format!("{mode}{operation}");
        tried += 1;
        let what = format!("{mode} at operation {operation} of {operations}");
        let outcome = place.run(&format!("{line} --out {run} --resume"), &format!("{mode}:{operation}"));
        let stderr = text(&outcome.stderr);
        assert!(matches!(outcome.status.code(), Some(0 | 1)), "{what}: {:?}, {stderr}", outcome.status);
        assert!(!stderr.contains("panicked"), "{what}: {stderr}");
        if outcome.status.code() == Some(1) {
            failed += 1;
            assert!(stderr.lines().any(|line| line.starts_with("error: cannot ")), "{what}: {stderr}");
            assert!(
                ["No space left on device", "Input/output error", "Read-only file system"]
                    .iter()
                    .any(|cause| stderr.contains(cause)),
                "{what}: {stderr}"
            );
        }
        place.assert_nothing_half_written(&run, &what);
        place.finish(&line, &run, &what);
        fs::remove_dir_all(place.path(&run)).unwrap();
    }
    println!("{tried} faults, of which {failed} ended the run");
    assert!(2 * failed >= tried, "only {failed} of {tried} faults had an effect");
}

#[test]
fn a_slow_disk_changes_nothing() {
    let place = Place::new("cpu");
    if place.library.is_none() {
        return;
    }
    let begin = Instant::now();
    let outcome = place.run(&format!("{TRAIN} --device cpu --out slow"), "slow:10");
    assert!(outcome.status.success(), "{}", text(&outcome.stderr));
    assert!(begin.elapsed() > Duration::from_secs(1), "the disk was not slow");
    place.assert_as_whole("slow", "a slow disk");
}

/// Like a lost network drive: the run ends with an error that names the file, and creates no folder in its place.
#[test]
fn a_folder_that_vanishes_ends_the_run() {
    let place = Place::new("cpu");
    let line = format!("{TRAIN} --device cpu");
    let endless = line.replace("--epochs 6", "--epochs 1000");
    let child = place.command(&format!("{endless} --out run"), "").spawn().unwrap();
    while !place.path("run/model.safetensors").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    fs::rename(place.path("run"), place.path("elsewhere")).unwrap();
    let outcome = child.wait_with_output().unwrap();
    let stderr = text(&outcome.stderr);
    assert_eq!(outcome.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("run/checkpoint.safetensors: No such file or directory"), "{stderr}");
    assert!(!place.path("run").exists());
    place.assert_nothing_half_written("elsewhere", "after the folder vanished");
    place.finish(&line, "elsewhere", "after the folder came back");
}

#[test]
fn short_writes_change_nothing() {
    let place = Place::new("cpu");
    if place.library.is_none() {
        return;
    }
    let outcome = place.run(&format!("{TRAIN} --device cpu --out parts"), "short:0");
    assert!(outcome.status.success(), "{}", text(&outcome.stderr));
    place.assert_as_whole("parts", "short writes");
}

/// Older checkpoints work like the newest: a run that resumes from one ends with the same bits.
#[test]
fn an_older_checkpoint_can_replace_the_newest() {
    let place = Place::new("cpu");
    let line = format!("{TRAIN} --device cpu");
    let mut child = place.command(&format!("{line} --out run"), "").spawn().unwrap();
    let older = |run: &str| {
        let names = fs::read_dir(place.path(run)).into_iter().flatten().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).find(|name| name.starts_with("checkpoint-0"))
    };
    while older("run").is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    child.wait().unwrap();
    let older = older("run").unwrap();
    fs::rename(place.path("run").join(&older), place.path("run/checkpoint.safetensors")).unwrap();
    place.finish(&line, "run", &older);
}

#[cfg(feature = "emulator")]
#[test]
fn the_kernels_resume_to_the_same_bits() {
    let place = Place::new("emulator");
    let line = format!("{TRAIN} --device emulator");
    let mut random = Random::new();
    for round in 0..3 {
        let run = format!("killed{round}");
        let mut child = place.command(&format!("{line} --out {run} --resume"), "").spawn().unwrap();
        while !place.path(&run).join("model.safetensors").exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(random.below(300)));
        let _ = child.kill();
        child.wait().unwrap();
        place.assert_nothing_half_written(&run, &run);
        place.finish(&line, &run, &run);
    }
}

#[test]
fn determinism_can_be_verified() {
    let place = Place::new("cpu");
    let line = "train data --from-scratch --width 4 --image-size 33 --batch-size 8 --momentum 0.9 --quiet --device cpu";
    let before = fs::read_dir(place.folder.path()).unwrap().count();
    let verified = place.run(&format!("{line} --verify-determinism 7"), "");
    let tensors =
        SafeTensors::deserialize(&fs::read(place.path("whole/checkpoint.safetensors")).unwrap()).unwrap().len();
    assert_eq!(text(&verified.stdout), format!("7 steps twice on cpu: all bits of {tensors} tensors are the same\n"));
    assert!(verified.status.success());
    assert_eq!(fs::read_dir(place.folder.path()).unwrap().count(), before, "nothing is written");
}
