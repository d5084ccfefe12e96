//! Whole runs on images of every kind, on files that are not images, and on files that change during the run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use image::{Rgb, RgbImage};
use retune::Result;
use retune::data::ImageFolder;
use retune::device::Device;
use retune::device::cpu::Cpu;
use retune::report::RunRecord;
use retune::train::{Checkpoint, Checkpointing, Event, Metric, Recipe, Run, RunFolder, RunOptions, Start, Summary};
use tempfile::TempDir;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pillow")
}

fn retune(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_retune"))
        .args(line.split_whitespace())
        .current_dir(folder)
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .unwrap()
}

fn succeed(folder: &Path, line: &str) -> Output {
    let output = retune(folder, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Two classes in `train` and `test`, with this many images each.
fn drawn(train: usize, test: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (split, count) in [("train", train), ("test", test)] {
        for (class, colour) in [("blue", [40, 60, 200]), ("red", [200, 60, 40])] {
            for number in 0..count {
                let path = folder.path().join(format!("data/{split}/{class}/{number:02}.png"));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                RgbImage::from_pixel(20 + number as u32, 24, Rgb(colour)).save(path).unwrap();
            }
        }
    }
    folder
}

/// A PNG whose header declares this size, with `rows` rows of black pixels.
fn png(width: u32, height: u32, rows: usize) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        let content = [&kind[..], data].concat();
        let mut crc = u32::MAX;
        for byte in &content {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
            }
        }
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(content);
        file.extend((!crc).to_be_bytes());
    };
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    chunk(b"IHDR", &header);
    // Deflate in stored blocks of one row each. The checksum of zeros is known.
    let row = 1 + 3 * width as usize;
    let mut data = vec![0x78, 0x01];
    if row <= 0xFFFF {
        for index in 0..rows {
            data.push(u8::from(index + 1 == rows));
            data.extend((row as u16).to_le_bytes());
            data.extend((!(row as u16)).to_le_bytes());
            data.resize(data.len() + row, 0);
        }
    }
    let sum = ((row * rows) % 65521) as u32;
    data.extend(((sum << 16) | 1).to_be_bytes());
    chunk(b"IDAT", &data);
    chunk(b"IEND", b"");
    file
}

/// Files that are not images, and the message for each.
fn broken() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let jpeg = fs::read(fixtures().join("picture.jpg")).unwrap();
    vec![
        ("empty.jpg", Vec::new(), "the file is empty"),
        (
            "text.png",
            b"no picture".to_vec(),
            "expected a JPEG, PNG, GIF, BMP, TIFF, WebP or PNM image, found a text file",
        ),
        ("cut.jpg", jpeg[..jpeg.len() / 2].to_vec(), "truncated JPEG"),
        ("no-rows.png", png(7, 0, 0), "PNG"),
        ("bomb.png", png(60_000, 60_000, 1), "it has 60000 x 60000 pixels; at most 178956970 are accepted"),
        ("ends-early.png", png(500, 400, 3), "PNG"),
        ("gif.png", b"GIF89a\x01\0\x01\0\0\0\0".to_vec(), "truncated GIF"),
    ]
}

/// Every kind of image for which there is a fixture, very small and very long ones, and all files that are not images:
/// a run reads the readable files and lists the rest.
#[test]
fn every_kind_of_image_is_trained_on_and_the_rest_is_listed() {
    let folder = drawn(3, 3);
    let root = folder.path();
    let mut kinds = 0;
    for entry in fs::read_dir(fixtures()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let made = ["decoded-", "resized-", "tested-", "upright-"].iter().any(|part| name.starts_with(part));
        if !made && !name.ends_with(".json") && !name.ends_with(".f32") {
            fs::copy(fixtures().join(&name), root.join("data/train/red").join(&name)).unwrap();
            kinds += 1;
        }
    }
    assert!(kinds > 50, "{kinds}");
    let longest = format!("{}.png", "n".repeat(251));
    fs::copy(fixtures().join("grey.png"), root.join("data/train/blue").join(&longest)).unwrap();
    let mut expected = BTreeSet::new();
    for (name, bytes, _) in broken() {
        for split in ["train", "test"] {
            write(&root.join(format!("data/{split}/blue/{name}")), &bytes);
            expected.insert(format!("data/{split}/blue/{name}"));
        }
    }
    fs::create_dir(root.join("data/train/blue/folder.png")).unwrap();
    #[cfg(unix)]
    {
        // Reading a FIFO would block until there is a writer; the link has no target.
        assert!(Command::new("mkfifo").arg(root.join("data/train/blue/pipe.png")).status().unwrap().success());
        std::os::unix::fs::symlink("nowhere", root.join("data/train/blue/link.png")).unwrap();
        expected.extend(["data/train/blue/pipe.png".to_string(), "data/train/blue/link.png".to_string()]);
    }
    let train = "train data --from-scratch --width 4 --image-size 33 --batch-size 8 --epochs 2 --device cpu --json";
    for (exif, out) in [("", "plain"), ("--exif", "turned")] {
        let output = succeed(root, &format!("{train} {exif} --out {out}"));
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let skipped: BTreeSet<String> =
            result["skipped"].as_array().unwrap().iter().map(|path| path.as_str().unwrap().to_owned()).collect();
        assert_eq!(skipped, expected);
        let stderr = String::from_utf8(output.stderr).unwrap();
        let record = RunRecord::open(&RunFolder { path: root.join(out) }).unwrap();
        let listed: Vec<(&str, &str)> = record.skipped().collect();
        assert_eq!(listed.len(), expected.len(), "each is recorded once");
        let page = fs::read_to_string(root.join(out).join("report.html")).unwrap();
        for (name, _, reason) in broken() {
            let path = format!("data/train/blue/{name}");
            let told = listed.iter().find(|(listed, _)| *listed == path).unwrap().1;
            assert!(told.contains(reason), "{told}");
            assert!(stderr.contains(&format!("skipped: cannot decode {path}")), "{stderr}");
            assert!(page.contains(&path), "{path} is not on the page");
        }
        assert!(page.contains(if exif.is_empty() {
            "is ignored, as in torchvision"
        } else {
            "rotated and mirrored as their EXIF"
        }));
    }
    // The network sees rotated images differently.
    let model = |out: &str| fs::read(root.join(out).join("model.safetensors")).unwrap();
    assert!(model("plain") != model("turned"));
    let inspected = succeed(root, "inspect turned/model.safetensors");
    assert!(
        String::from_utf8(inspected.stdout).unwrap().contains("images      33 x 33, rotated by their EXIF orientation")
    );
    // Prediction uses the settings that the model was trained with; --exif enables the orientation for any model.
    let logits = |line: &str| {
        let output =
            succeed(root, &format!("predict {line} {} --json --logits", fixtures().join("turned-6.jpg").display()));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()[0]["logits"].clone()
    };
    assert_ne!(logits("plain/model.safetensors"), logits("plain/model.safetensors --exif"));
    assert_eq!(logits("turned/model.safetensors"), logits("turned/model.safetensors --exif"));
}

/// A small file with many pixels is read; one with more than the maximum is not.
#[test]
fn the_number_of_pixels_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.png");
    fs::write(&path, png(20_000, 300, 300)).unwrap();
    assert_eq!(retune::data::decode_file(&path).unwrap().pixels.len(), 3 * 20_000 * 300);
    for (width, height) in [(13_378, 13_378), (1, 178_956_971), (100_000, 70_000)] {
        fs::write(&path, png(width, height, 1)).unwrap();
        let message = retune::data::decode_file(&path).unwrap_err().to_string();
        assert!(message.contains(&format!("it has {width} x {height} pixels; at most 178956970")), "{message}");
    }
}

fn small_run<'a>(
    device: Rc<dyn Device>,
    data: &Path,
    out: &Path,
    epochs: usize,
    interrupted: &'a AtomicBool,
) -> Result<Run<'a>> {
    let recipe = Recipe { width: 4, image_size: 64, batch_size: 4, epochs, ..Recipe::from_scratch() };
    fs::create_dir_all(out).unwrap();
    let options = RunOptions {
        folder: RunFolder { path: out.to_path_buf() },
        workers: 2,
        image_memory: Some(0),
        strict: false,
        check_data: false,
        checkpointing: Checkpointing::default(),
        interrupted,
    };
    Start::FromScratch.run(device, recipe, data, options, &mut |_| {})
}

/// Trains, and changes the files after each epoch. Returns the skipped files and the result.
fn train_while(folder: &Path, epochs: usize, mut after: impl FnMut(usize)) -> (Vec<PathBuf>, Result<Summary>) {
    let interrupted = AtomicBool::new(false);
    let (data, out) = (folder.join("data"), folder.join("run"));
    let run = small_run(Rc::new(Cpu), &data, &out, epochs, &interrupted).unwrap();
    let mut left_out = Vec::new();
    let result = run.train(|event| match event {
        Event::Skipped(sample) => left_out.push(sample.path.strip_prefix(&data).unwrap().to_path_buf()),
        Event::Epoch(&Metric::Epoch { epoch, .. }) => after(epoch),
        _ => {}
    });
    left_out.sort();
    (left_out, result)
}

#[test]
fn images_that_vanish_or_change_between_epochs_are_skipped_from_then_on() {
    let folder = drawn(5, 3);
    let data = folder.path().join("data");
    let (left_out, result) = train_while(folder.path(), 4, |epoch| match epoch {
        1 => fs::remove_file(data.join("train/red/02.png")).unwrap(),
        2 => {
            fs::write(data.join("train/blue/03.png"), "something else now").unwrap();
            fs::remove_file(data.join("test/red/00.png")).unwrap();
            // Another image in the place of an image is accepted.
            fs::copy(fixtures().join("lossless.webp"), data.join("train/blue/00.png")).unwrap();
        }
        _ => {}
    });
    let result = result.unwrap();
    assert_eq!(left_out, ["test/red/00.png", "train/blue/03.png", "train/red/02.png"].map(PathBuf::from));
    assert_eq!(result.skipped, 2);
    let metrics = fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    let counted = metrics.lines().filter(|line| line.contains(r#""kind":"skipped""#)).count();
    assert_eq!(counted, 3, "each is recorded once, although it is missing in every later epoch");
}

#[test]
fn a_data_set_that_vanishes_ends_the_run_and_its_checkpoint_stays() {
    let folder = drawn(5, 3);
    let data = folder.path().join("data");
    let (left_out, result) = train_while(folder.path(), 4, |epoch| {
        if epoch == 2 {
            fs::remove_dir_all(data.join("train")).unwrap();
        }
    });
    assert_eq!(left_out.len(), 10);
    assert_eq!(result.unwrap_err().message(), "none of the training images could be read");
    let checkpoint = Checkpoint::open(&folder.path().join("run/checkpoint.safetensors")).unwrap();
    assert_eq!(checkpoint.position.epoch, 2);
}

/// Names of classes, folders and files that would recolour a terminal, split a line, or reverse the text beside them.
#[cfg(unix)]
#[test]
fn names_cannot_control_the_terminal_or_split_a_record() {
    let (blue, red) = ("bl\u{1b}[31mue\n", "re\u{202e}d\r\t");
    let folder = drawn(4, 2);
    for split in ["train", "test"] {
        for (plain, hostile) in [("blue", blue), ("red", red)] {
            let class = folder.path().join(format!("data/{split}/{hostile}"));
            fs::rename(folder.path().join(format!("data/{split}/{plain}")), &class).unwrap();
            fs::rename(class.join("00.png"), class.join("0\u{1b}]0;title\u{7}\n0.png")).unwrap();
            write(&class.join("broken\u{9b}2J.png"), b"no picture");
        }
    }
    let train = "train data --from-scratch --width 4 --image-size 33 --batch-size 4 --epochs 1 --device cpu --out run";
    let model = "run/model.safetensors";
    let mut shown = String::new();
    for line in [
        train,
        &format!("eval {model} data --device cpu"),
        &format!("eval {model} data --device cpu --json"),
        &format!("inspect {model}"),
        &format!("inspect {model} --json"),
        "report run --device cpu",
        "show data -o sheet.png",
    ] {
        let output = succeed(folder.path(), line);
        shown += &String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    }
    let images = succeed_with_failures(folder.path(), &format!("predict {model} data/test --device cpu"));
    assert_eq!(images.lines().count(), 4, "one line for each readable image: {images:?}");
    let json = succeed_with_failures(folder.path(), &format!("predict {model} data/test --device cpu --json"));
    assert_eq!(json.lines().count(), 1);
    let found: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    let (unreadable, found): (Vec<_>, Vec<_>) = found.iter().partition(|row| row.get("error").is_some());
    assert_eq!((found.len(), unreadable.len()), (4, 2));
    let classes: BTreeSet<&str> = found.iter().map(|row| row["classes"][0]["class"].as_str().unwrap()).collect();
    assert!(classes.iter().all(|class| [blue, red].contains(class)), "JSON has the names themselves: {classes:?}");
    let table = succeed_with_failures(folder.path(), &format!("predict {model} data/test --device cpu --format csv"));
    assert_eq!(table.lines().count(), 7, "{table:?}");
    shown += &(images + &json + &table);
    shown += &fs::read_to_string(folder.path().join("run/report.html")).unwrap();
    shown += &fs::read_to_string(folder.path().join("run/curves.svg")).unwrap();
    let hidden = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    if let Some(at) = shown.find(hidden) {
        let start = shown[..at].rfind('\n').map_or(0, |end| end + 1);
        panic!("{:?}", shown[start..].lines().next());
    }
    for escaped in ["bl\\u{1b}[31mue\\n", "re\\u{202e}d\\r\\t", "0\\u{1b}]0;title\\u{7}\\n0.png", "broken\\u{9b}2J.png"]
    {
        assert!(shown.contains(escaped), "{escaped}");
    }
}

/// Standard output of a command that skips images and says so by its exit status.
fn succeed_with_failures(folder: &Path, line: &str) -> String {
    let output = retune(folder, line);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}: {stderr}");
    assert!(stderr.contains("error: 2 of 6 images could not be read"), "{stderr}");
    assert!(!stderr.contains(|c: char| c.is_control() && c != '\n'), "{stderr:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A class of 100,000 files (links to one image): listed in order, and one epoch over all of them.
#[test]
fn a_class_can_have_a_hundred_thousand_files() {
    const FILES: usize = 100_000;
    let folder = drawn(1, 1);
    let class = folder.path().join("data/train/red");
    let first = class.join("00.png");
    for number in 1..FILES {
        let name = class.join(format!("{number:06}.png"));
        // A file can have only so many links.
        if fs::hard_link(&first, &name).is_err() {
            fs::copy(&first, &name).unwrap();
        }
    }
    let listed = ImageFolder::open(folder.path().join("data/train")).unwrap();
    assert_eq!(listed.class_counts(), [1, FILES]);
    assert!(listed.samples.is_sorted_by_key(|sample| &sample.path));
    let train = "train data --from-scratch --width 4 --image-size 8 --batch-size 1024 --epochs 1 --device cpu --json";
    let output = succeed(folder.path(), &format!("{train} --out run"));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["skipped"], serde_json::json!([]));
}

/// Names of the maximum length of the file system, and a folder whose path is longer than the system allows.
#[cfg(target_os = "linux")]
#[test]
fn names_can_have_the_maximum_length() {
    let folder = drawn(2, 1);
    let long = "n".repeat(255);
    for split in ["train", "test"] {
        let class = folder.path().join("data").join(split).join(&long);
        fs::create_dir(&class).unwrap();
        fs::copy(fixtures().join("palette.png"), class.join(format!("{}.png", "m".repeat(251)))).unwrap();
    }
    let train = "train data --from-scratch --width 4 --image-size 33 --batch-size 8 --epochs 1 --device cpu";
    succeed(folder.path(), &format!("{train} --out run"));
    assert!(fs::read_to_string(folder.path().join("run/report.html")).unwrap().contains(&long));

    // The path is built in two halves, because the system accepts no path of this length.
    let half: PathBuf = std::iter::repeat_n(long.as_str(), 10).collect();
    let (upper, lower) = (folder.path().join("data/train/blue").join(&half), folder.path().join("lower"));
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir_all(lower.join(&half)).unwrap();
    fs::rename(lower, upper.join("lower")).unwrap();
    let refused = retune(folder.path(), &format!("{train} --out other"));
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("error: cannot read the folder data/train/blue/nnn"), "{stderr}");
    assert!(stderr.contains("File name too long"), "{stderr}");
    assert!(!folder.path().join("other").exists());
    // The standard library cannot remove it either.
    assert!(Command::new("rm").arg("-rf").arg(folder.path().join("data")).status().unwrap().success());
}
