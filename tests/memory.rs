//! The memory use of a run: it does not grow, and matches the plan.

#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use image::{Rgb, RgbImage};
use tempfile::TempDir;

const PAGE: f64 = 4096.0;

/// Two classes of noisy images.
fn drawn(train: usize, test: usize, size: u32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut state = 1u64;
    for (split, count) in [("train", train), ("test", test)] {
        for class in ["blue", "red"] {
            let class = folder.path().join("data").join(split).join(class);
            fs::create_dir_all(&class).unwrap();
            for number in 0..count {
                let picture = RgbImage::from_fn(size, size, |_, _| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    Rgb([(state >> 33) as u8, (state >> 41) as u8, (state >> 49) as u8])
                });
                picture.save(class.join(format!("{number:03}.jpg"))).unwrap();
            }
        }
    }
    folder
}

fn train(folder: &Path, line: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_retune"))
        .args(format!("train data --from-scratch --device cpu --no-report --out run {line}").split_whitespace())
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // A pipe would fill up and block the run, because the test reads it only at the end.
        .stderr(File::create(folder.join("messages")).unwrap())
        .spawn()
        .unwrap()
}

/// A number from `/proc/PID/status`, in bytes; `None` when the process has ended.
fn status(child: &Child, field: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0)
}

fn epochs_done(folder: &Path) -> usize {
    let metrics = fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap_or_default();
    metrics.lines().filter(|line| line.contains(r#""kind":"epoch""#)).count()
}

/// 4,800 steps in 800 epochs. The resident size varies by some pages with the decoding threads. A leak of 100 bytes per
/// step would add 59 pages in the second half.
#[test]
fn a_long_run_does_not_grow() {
    let folder = drawn(18, 3, 40);
    let mut child = train(folder.path(), "--width 4 --image-size 33 --batch-size 6 --epochs 800 --workers 2");
    let mut resident: Vec<(usize, f64)> = Vec::new();
    while child.try_wait().unwrap().is_none() {
        if let Some(bytes) = status(&child, "VmRSS") {
            resident.push((epochs_done(folder.path()), bytes / PAGE));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(epochs_done(folder.path()), 800);
    let most = |epochs: std::ops::Range<usize>| {
        let pages: Vec<f64> = resident.iter().filter(|(epoch, _)| epochs.contains(epoch)).map(|&(_, p)| p).collect();
        assert!(pages.len() >= 10, "only {} samples in epochs {epochs:?}", pages.len());
        pages.into_iter().fold(0.0, f64::max)
    };
    let (early, late) = (most(20..400), most(400..800));
    println!("resident pages: at most {early} in epochs 20 to 400, {late} in epochs 400 to 800");
    assert!(late - early <= 40.0, "from {early} to {late} pages");
}

/// A ResNet-18 on 224 x 224 pixels: the peak that the system reports matches the memory that the run announces.
#[test]
fn the_plan_is_within_ten_percent_of_the_peak() {
    let folder = drawn(48, 4, 256);
    for batch_size in [12, 32] {
        let mut child = train(folder.path(), &format!("--batch-size {batch_size} --epochs 1 --momentum 0.9"));
        let mut peak = 0.0;
        while child.try_wait().unwrap().is_none() {
            peak = status(&child, "VmHWM").unwrap_or(0.0).max(peak);
            std::thread::sleep(Duration::from_millis(10));
        }
        let stderr = fs::read_to_string(folder.path().join("messages")).unwrap();
        assert!(child.wait().unwrap().success(), "{stderr}");
        let line = stderr.lines().find(|line| line.contains(" of memory, ")).expect(&stderr);
        let planned = line.split(" of memory, ").next().unwrap().rsplit(", ").next().unwrap();
        let (number, unit) = planned.split_once(' ').unwrap();
        let planned = number.parse::<f64>().unwrap()
            * [("MiB", 1.0), ("GiB", 1024.0)].iter().find(|(u, _)| *u == unit).unwrap().1;
        let peak = peak / f64::from(1 << 20);
        println!("batch {batch_size}: planned {planned:.0} MiB, peak {peak:.0} MiB, {:.3}", planned / peak);
        assert!((0.9..1.1).contains(&(planned / peak)), "planned {planned} MiB, peak {peak} MiB");
        fs::remove_dir_all(folder.path().join("run")).unwrap();
    }
}
