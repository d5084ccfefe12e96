//! The page of a run, its curves, comparisons and contact sheets: their contents, and that hostile names cannot change the markup.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use image::{Rgb, RgbImage};
use serde_json::Value;
use tempfile::TempDir;

const SMALL: &str = "--from-scratch --width 4 --image-size 33 --batch-size 8 --device cpu";

struct Workplace {
    folder: TempDir,
}

struct Outcome {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Workplace {
    fn empty() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// With `data/train` and `data/test` of these classes.
    fn new(classes: &[&str]) -> Self {
        let place = Self::empty();
        for (index, class) in classes.iter().enumerate() {
            for (split, pictures) in [("train", 10), ("test", 4)] {
                place.draw(&format!("data/{split}/{class}"), index as u32, pictures);
            }
        }
        place
    }

    fn draw(&self, folder: &str, kind: u32, pictures: u32) {
        fs::create_dir_all(self.path(folder)).unwrap();
        // No image is in two folders.
        let mut state = u64::from(kind) + 1000 * folder.len() as u64;
        for number in 0..pictures {
            let picture = RgbImage::from_fn(40, 36, |x, _| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let noise = (state >> 58) as u8;
                Rgb([(kind * 53 % 200) as u8 + noise, (x * kind % 150) as u8 + noise, 90 + noise])
            });
            picture.save(self.path(&format!("{folder}/{number:02}.png"))).unwrap();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|cause| panic!("{name}: {cause}"))
    }

    fn run(&self, words: &[&str]) -> Outcome {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args(words).current_dir(self.folder.path()).env("CUDA_VISIBLE_DEVICES", "");
        let output = command.timeout(Duration::from_secs(120)).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        assert!(!stderr.contains("panicked"), "{words:?}: {stderr}");
        assert!(
            !stdout.contains('\u{1b}') && !stderr.contains('\u{1b}'),
            "{words:?}: escape sequences outside a terminal"
        );
        Outcome { status: output.status.code().unwrap_or(-1), stdout, stderr }
    }

    fn succeed(&self, line: &str) -> Outcome {
        let outcome = self.run(&line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(outcome.status, 0, "retune {line}: {}", outcome.stderr);
        outcome
    }

    fn last_epoch(&self, run: &str) -> Value {
        let metrics = self.read(&format!("{run}/metrics.jsonl"));
        metrics
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .rfind(|line| line["kind"] == "epoch")
            .unwrap()
    }
}

/// The elements with their attributes, in order; checks that they are properly nested and that nothing is loaded or run.
fn elements(page: &str) -> Vec<(String, String)> {
    const VOID: [&str; 4] = ["meta", "img", "br", "!DOCTYPE"];
    let (mut open, mut found) = (Vec::new(), Vec::new());
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        assert!(!rest[..start].contains('>') || open.last().is_some_and(|name| name == "style"), "a stray >");
        rest = &rest[start + 1..];
        let mut quoted = false;
        let end = rest.find(|c| {
            quoted ^= c == '"';
            c == '>' && !quoted
        });
        let (tag, after) = rest.split_at(end.expect("every tag ends"));
        rest = &after[1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "nesting");
            continue;
        }
        let (name, attributes) = tag.split_once(char::is_whitespace).unwrap_or((tag, ""));
        let name = name.trim_end_matches('/').to_string();
        found.push((name.clone(), attributes.to_string()));
        if !VOID.contains(&name.as_str()) && !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<String>::new(), "everything is closed");
    for (name, attributes) in &found {
        assert!(!["script", "iframe", "object", "embed", "link", "base", "form"].contains(&name.as_str()), "{name}");
        assert!(!attributes.contains("javascript:"), "{attributes}");
        // Every other piece between quotes is a value, which may contain any text.
        let names: String = attributes.split('"').step_by(2).collect::<String>().to_lowercase();
        assert!(!names.split_whitespace().any(|word| word.starts_with("on") && word.contains('=')), "{attributes}");
        for source in ["src=\"", "href=\""] {
            if let Some((_, value)) = attributes.split_once(source) {
                assert!(value.starts_with("data:image/"), "{name} loads {}", &value[..value.len().min(60)]);
            }
        }
    }
    found
}

/// The values of an attribute of all elements of a kind that have it.
fn attributes(page: &str, element: &str, attribute: &str) -> Vec<String> {
    let value = |attributes: &String| {
        let (_, rest) =
            format!(" {attributes}").split_once(&format!(" {attribute}=\"")).map(|(a, b)| (a.len(), b.to_string()))?;
        Some(rest.split('"').next().unwrap().to_string())
    };
    elements(page).iter().filter(|(name, _)| name == element).filter_map(|(_, attributes)| value(attributes)).collect()
}

fn count(page: &str, element: &str) -> usize {
    elements(page).iter().filter(|(name, _)| name == element).count()
}

#[test]
fn the_page_says_what_was_measured() {
    let place = Workplace::new(&["blue", "red"]);
    let outcome = place.succeed(&format!("train data {SMALL} --epochs 3 --seed 2 --out run"));
    assert!(outcome.stderr.contains("report: run/report.html\n"), "{}", outcome.stderr);
    let (page, last) = (place.read("run/report.html"), place.last_epoch("run"));
    let figure = |name: &str| last[name].as_f64().unwrap();
    for text in [
        format!("{:.1} %", 100.0 * figure("test_acc")),
        format!("train acc {:.3}, test acc {:.3}; ", figure("train_acc"), figure("test_acc")),
        "on 20 images of 2 classes and tested on 8 other images".into(),
        "<h2>Confusion matrix</h2>".into(),
        "EXIF orientation of images is ignored".into(),
        "5e-4".into(),
        "retune predict run/model.safetensors".into(),
        "<h2>Confidence</h2>".into(),
        "<h2>Least certain images</h2>".into(),
        "<h2>Correct predictions</h2>".into(),
        "<summary>Results of every epoch</summary>".into(),
        "no influence</span><span class=\"colours\" style=\"background:linear-gradient(90deg,#".into(),
    ] {
        assert!(page.contains(&text), "{text} is missing");
    }
    // The sums of the confusion matrix are the numbers of test images, and its diagonal gives the best accuracy.
    let evaluated: Value =
        serde_json::from_str(&place.succeed("eval run/model.safetensors data --json").stdout).unwrap();
    let cells: Vec<usize> = page
        .split("--heat:")
        .skip(1)
        .map(|cell| cell.split_once("\">").unwrap().1.split_once('<').unwrap().0.parse().unwrap())
        .collect();
    let truth: Vec<usize> = evaluated["confusion"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| row.as_array().unwrap().clone())
        .map(|count| count.as_u64().unwrap() as usize)
        .collect();
    assert_eq!(cells, truth);
    assert_eq!(cells.iter().sum::<usize>(), 8);
    let (wrong, right) = (cells[1] + cells[2], cells[0].min(4) + cells[3].min(4));
    assert_eq!(page.contains("<h3>Most confused pairs</h3>"), wrong > 0);
    // 16 on the sheet, 16 augmented, the mistakes, the 8 least certain, correct ones, and 8 pairs of an image and its Grad-CAM.
    assert_eq!(count(&page, "img"), 32 + wrong.min(12) + 8 + right + 16);
    // The histogram has every test image, and as many wrong ones as the matrix.
    let description = format!("histogram of the probabilities of {} correct and {wrong} wrong predictions", 8 - wrong);
    assert!(page.contains(&description), "{description}");
    let dates = page.split("The run was started on ").nth(1).unwrap();
    assert_eq!(dates[..20].replace(|c: char| c.is_ascii_digit(), "0"), "0000-00-00 00:00 UTC");
    assert!(page.contains(" UTC. It took ") && page.contains(" per epoch, of which testing and saving were "));
    // Every image can be enlarged, each under a name of its own.
    let buttons: Vec<String> = attributes(&page, "button", "popovertarget");
    let views: Vec<String> = attributes(&page, "span", "id");
    assert_eq!(views.len(), 32 + wrong.min(12) + 8 + right + 8);
    assert_eq!(views.iter().collect::<BTreeSet<_>>().len(), views.len());
    // One button closes it, and one opens it.
    assert_eq!(buttons, views.iter().flat_map(|view| [view.clone(), view.clone()]).collect::<Vec<_>>());
    assert!(page.len() < 2_000_000);
    // An image may contain any letters.
    let mut parts = page.split("base64,");
    let begin = parts.next().unwrap();
    assert!(!begin.contains("NaN") && parts.all(|part| !part.split_once('"').unwrap().1.contains("NaN")));

    let svg = place.read("run/curves.svg");
    elements(&svg);
    assert!(svg.starts_with("<svg xmlns=") && !svg.contains("NaN"));
    let dots = svg.matches("<circle").count();
    assert_eq!(dots, 6, "one test point per epoch in each plot");
    let png = image::open(place.path("run/curves.png")).unwrap().to_rgb8();
    assert_eq!((png.width(), png.height()), (1920, 600));
    let ink = png.pixels().filter(|pixel| pixel.0.iter().any(|&channel| channel < 128)).count();
    assert!(ink > 3000, "{ink} dark pixels: lines and letters are there");
}

#[test]
fn what_was_seen_is_what_training_saw() {
    let place = Workplace::new(&["blue", "red"]);
    place.succeed("show data -o plain.png --image-size 32");
    place.succeed("show data -o seen.png --augmented --seed 5 --image-size 32");
    place.succeed("show data -o again.png --augmented --seed 5 --image-size 32");
    place.succeed("show data -o other.png --augmented --seed 6 --image-size 32");
    let read = |name: &str| fs::read(place.path(name)).unwrap();
    assert_eq!(read("seen.png"), read("again.png"));
    assert_ne!(read("seen.png"), read("other.png"));
    assert_ne!(read("seen.png"), read("plain.png"));

    use retune::data::{Draw, ImageFolder, ResizeMode, Transform, Transformer, decode_file};
    let folder = ImageFolder::open(place.path("data/train")).unwrap();
    let image = decode_file(&folder.samples[0].path).unwrap();
    let draw = Draw { seed: 5, epoch: 0, index: 0 };
    let truth =
        Transformer::default().transform(&image, &Transform::training(32, ResizeMode::Crop, &[]), draw).unwrap();
    let sheet = image::open(place.path("seen.png")).unwrap().to_rgb8();
    let tile = image::imageops::crop_imm(&sheet, 8, 8, 32, 32).to_image();
    assert_eq!(tile.into_raw(), truth);
}

#[test]
fn a_sheet_has_the_first_and_the_last_or_a_row_for_each_class() {
    let place = Workplace::new(&["blue", "red"]);
    let outcome = place.succeed("show data/train -o sheet.png --per-class 3 --image-size 40");
    assert_eq!(outcome.stdout, "sheet.png: 6 images of 2 classes\n");
    let sheet = image::open(place.path("sheet.png")).unwrap().to_rgb8();
    assert_eq!((sheet.width(), sheet.height()), (3 * 48 + 8, 2 * 68 + 8));
    let tile = |row: u32, column: u32| {
        image::imageops::crop_imm(&sheet, 8 + column * 48, 8 + row * 68, 40, 40).to_image().into_raw()
    };
    let picture = |class: &str, number: usize| {
        let image = retune::data::decode_file(place.path(&format!("data/train/{class}/{number:02}.png"))).unwrap();
        let transform = retune::data::Transform::resize_and_center_crop(40, 40);
        retune::data::Transformer::default().transform(&image, &transform, Default::default()).unwrap()
    };
    for column in 0..3 {
        assert!(tile(0, column) == picture("blue", column as usize));
        assert!(tile(1, column) == picture("red", 7 + column as usize));
    }
    let more = Workplace::new(&["a", "b", "c", "d"]);
    let folder = retune::data::ImageFolder::open(more.path("data/train")).unwrap();
    let rows = |most| retune::report::tiles_of_classes(&folder, 3, most, 16).iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!((rows(9), rows(2)), (vec![3; 4], vec![3; 2]), "of other classes, no image is decoded");
    assert!(more.succeed("show data -o sheet.png").stdout.ends_with("32 images of 4 classes\n"));

    let refused = place.run(&["show", "data"]);
    assert_eq!(refused.status, 2);
    assert_eq!(
        refused.stderr,
        "error: standard output is not a terminal, and no output file is given\nhint: add -o sheet.png\n"
    );
    let missing = place.run(&["show", "nothing", "-o", "x.png"]);
    assert_eq!(missing.status, 1);
    assert!(!place.path("x.png").exists());
}

#[test]
fn a_sheet_has_the_format_of_its_name() {
    let place = Workplace::new(&["blue", "red"]);
    let sheet = |name: &str| {
        place.succeed(&format!("show data -o {name} --image-size 64"));
        fs::read(place.path(name)).unwrap()
    };
    let png = sheet("sheet.PNG");
    assert_eq!(image::guess_format(&png).unwrap(), image::ImageFormat::Png);
    let png = image::load_from_memory(&png).unwrap().into_rgb8();
    for name in ["sheet.jpg", "sheet.JPEG"] {
        let jpeg = sheet(name);
        assert_eq!(image::guess_format(&jpeg).unwrap(), image::ImageFormat::Jpeg);
        let jpeg = image::load_from_memory(&jpeg).unwrap().into_rgb8();
        assert_eq!(jpeg.dimensions(), png.dimensions());
        let difference: u64 = jpeg.iter().zip(png.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        assert!(difference < 12 * png.len() as u64, "{difference}");
    }
    for name in ["sheet.gif", "sheet", "sheet.png.bak"] {
        let refused = place.run(&["show", "data", "-o", name]);
        assert_eq!(refused.status, 2);
        let expected = format!("error: --output {name}: expected a name that ends in .png, .jpg or .jpeg\n");
        assert_eq!(refused.stderr, expected);
        assert!(!place.path(name).exists());
    }
}

#[test]
fn hostile_names_stay_text() {
    let names = ["<script>alert(1)<", "a&b \"quoted\" 'x'", "ünïcödé 漢字", "onerror=alert(1) x="];
    let place = Workplace::new(&names.map(|name| name));
    place.draw("data/test/<script>alert(1)<", 9, 6);
    fs::rename(
        place.path("data/test/<script>alert(1)</00.png"),
        place.path("data/test/<script>alert(1)</<img src=x onerror=y>.png"),
    )
    .unwrap();
    fs::write(place.path("data/train/ünïcödé 漢字/broken \"><script>.png"), "no picture").unwrap();
    place.succeed(&format!("train data {SMALL} --epochs 2 --out run"));
    place.succeed("report run run -o both.html");
    for page in [place.read("run/report.html"), place.read("both.html"), place.read("run/curves.svg")] {
        elements(&page);
    }
    let page = place.read("run/report.html");
    assert!(page.contains("&lt;script&gt;alert(1)&lt;"));
    assert!(page.contains("ünïcödé 漢字"));
    assert!(page.contains("1 unreadable image was skipped"));
    assert!(page.contains("broken &quot;&gt;&lt;script&gt;.png"), "what was left out is listed");
}

#[test]
fn a_page_without_its_pictures_says_so() {
    let place = Workplace::new(&["blue", "red"]);
    place.succeed(&format!("train data {SMALL} --epochs 1 --out run --no-report"));
    assert!(!place.path("run/report.html").exists() && !place.path("run/curves.svg").exists());
    fs::rename(place.path("data"), place.path("moved")).unwrap();
    let outcome = place.succeed("report run");
    let reason = format!("there is no folder {}", place.path("data").display());
    let warning = format!("warning: the report lacks the test images: {reason}");
    assert!(outcome.stderr.contains(&warning), "{}", outcome.stderr);
    let page = place.read("run/report.html");
    assert!(page.contains(&format!("The images are not shown: {reason}")));
    assert_eq!(count(&page, "img"), 0);
    place.succeed("report run --data moved -o moved.html");
    assert!(count(&place.read("moved.html"), "img") > 30);
    let refused = place.run(&["report", "moved"]);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("moved is not a run: cannot read config.json: "), "{}", refused.stderr);
}

#[test]
fn images_are_found_wherever_the_command_is_called() {
    let place = Workplace::new(&["blue", "red"]);
    place.succeed(&format!("train data {SMALL} --epochs 1 --out run"));
    let page = place.read("run/report.html");
    // Of the same names, but not the run's.
    place.draw("elsewhere/data/train/blue", 7, 10);
    let line = ["report", "../run", "-o", "page.html"];
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_retune"));
    let output = command.args(line).current_dir(place.path("elsewhere")).env("CUDA_VISIBLE_DEVICES", "");
    output.assert().success().stderr("");
    // The commands on it name the run's folder.
    assert!(place.read("elsewhere/page.html").replace("../run/", "run/") == page);
}

/// With the same classes and as many images.
#[test]
fn images_of_another_data_set_are_never_shown() {
    let place = Workplace::new(&["blue", "red"]);
    place.succeed(&format!("train data {SMALL} --epochs 1 --out run"));
    let page = place.read("run/report.html");
    fs::rename(place.path("data"), place.path("own")).unwrap();
    for (split, pictures) in [("train", 10), ("test", 4)] {
        for (kind, class) in [(5, "blue"), (6, "red")] {
            place.draw(&format!("data/{split}/{class}"), kind, pictures);
        }
    }
    let refused = place.run(&["report", "run"]);
    assert_eq!((refused.status, refused.stdout.as_str()), (1, ""));
    let data = place.path("data");
    let reason = format!("{} does not contain the images of the run: ", data.display());
    assert!(refused.stderr.contains(&reason), "{}", refused.stderr);
    assert!(refused.stderr.contains(" of other content (first test: blue/00.png)"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--data") && refused.stderr.contains("--force"), "{}", refused.stderr);
    assert!(place.read("run/report.html") == page, "a page without images does not replace one with images");

    let other = place.succeed("report run -o other.html");
    assert!(other.stderr.contains("warning: the report lacks the test images: "), "{}", other.stderr);
    assert_eq!(count(&place.read("other.html"), "img"), 0);
    place.succeed("report run --data own");
    assert!(place.read("run/report.html") == page);
    place.succeed("report run --force");
    assert_eq!(count(&place.read("run/report.html"), "img"), 0);
    assert!(place.read("run/report.html").contains("does not contain the images of the run"));
    // One that shows more always may.
    place.succeed("report run --data own");
    assert!(place.read("run/report.html") == page);
    place.succeed("report run --no-images");
    assert_eq!(count(&place.read("run/report.html"), "img"), 0);

    fs::write(place.path("own/train/red/99.png"), fs::read(place.path("own/train/red/00.png")).unwrap()).unwrap();
    let added = place.succeed("report run --data own").stderr;
    assert!(added.contains("does not contain the images of the run: 1 added (train: red/99.png)"), "{added}");
}

#[test]
fn a_comparison_does_not_lose_the_images_of_a_run() {
    let place = Workplace::new(&["blue", "red"]);
    for run in ["one", "two"] {
        place.succeed(&format!("train data {SMALL} --epochs 1 --out {run} --no-report"));
    }
    place.succeed("report one two");
    let page = place.read("comparison.html");
    assert!(count(&page, "img") > 0);
    fs::remove_file(place.path("two/model.safetensors")).unwrap();
    let refused = place.run(&["report", "one", "two"]);
    assert_eq!(refused.status, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("there is no two/model.safetensors"), "{}", refused.stderr);
    assert!(place.read("comparison.html") == page);
    // A comparison of fewer runs does not lack what it does not compare.
    place.succeed("report one one -o comparison.html");
    place.succeed("report one two --force");
}

#[test]
fn impossible_values_in_the_configuration_are_named() {
    let place = Workplace::new(&["blue", "red"]);
    place.succeed(&format!("train data {SMALL} --epochs 1 --out run"));
    let written: Value = serde_json::from_str(&place.read("run/config.json")).unwrap();
    for (field, value, expected) in [
        ("batch_size", 0, "the recipe's batch_size is 0; expected at least 1"),
        ("image_size", 0, "the recipe's image_size is 0; expected 1 to 65536"),
        ("image_size", i64::MAX, "the recipe's image_size is 9223372036854775807; expected 1 to 65536"),
    ] {
        let mut config = written.clone();
        config["recipe"][field] = value.into();
        fs::write(place.path("run/config.json"), config.to_string()).unwrap();
        let outcome = place.run(&["report", "run", "--force"]);
        assert_eq!(outcome.status, 1, "{field}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(&format!("error: run/config.json: {expected}\nhint: ")), "{}", outcome.stderr);
    }
}

#[test]
fn a_run_without_an_epoch_and_many_classes_have_pages() {
    let names: Vec<String> = (0..30).map(|index| format!("class-{index:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let place = Workplace::new(&names);
    place.succeed(&format!("train data {SMALL} --epochs 1 --out run"));
    let page = place.read("run/report.html");
    assert!(page.contains("<title>run: class-00, class-01, class-02, class-03, ...</title>"));
    elements(&page);
    assert!(
        page.contains("<h2>Confusions</h2>")
            && page.contains("<h3>Most confused pairs</h3>")
            && page.contains("class-29")
    );
    // However many classes there are.
    assert!(count(&page, "img") <= 128, "{} images", count(&page, "img"));
    assert!(page.len() < 1_200_000, "{} bytes", page.len());
    fs::write(
        place.path("run/metrics.jsonl"),
        "{\"kind\":\"progress\",\"epoch\":0.2,\"train_loss\":1.5,\"train_acc\":0.25}\n{\"ki",
    )
    .unwrap();
    fs::remove_file(place.path("run/model.safetensors")).unwrap();
    place.succeed("report run --force");
    let page = place.read("run/report.html");
    elements(&page);
    assert!(page.contains("No epoch finished yet"));
    assert!(!place.read("run/curves.svg").contains("NaN"));
}

#[test]
fn several_runs_are_compared() {
    let place = Workplace::new(&["blue", "red"]);
    for (run, epochs, rate) in [("one", 1, "1e-3"), ("two", 2, "2e-3"), ("deep/one", 1, "3e-3")] {
        place.succeed(&format!("train data {SMALL} --epochs {epochs} --lr {rate} --out {run}"));
    }
    let outcome = place.succeed("report one two deep/one -o all.html");
    assert_eq!(outcome.stdout, "all.html\n");
    let page = place.read("all.html");
    elements(&page);
    for text in
        ["3 runs compared", "deep/one", "0.001", "0.002", "0.003", "The same in all runs: network ResNet-18 (width 4)"]
    {
        assert!(page.contains(text), "{text} is missing");
    }
    let bars: BTreeMap<String, String> = page
        .split("class=\"bar\"")
        .skip(1)
        .map(|bar| {
            let between = |from: &str| bar.split_once(from).unwrap().1.split_once('<').unwrap().0.to_string();
            (between("class=\"name\">"), between("class=\"value\">"))
        })
        .collect();
    // The runs are compared by their saved models, which are those of the best epochs.
    for run in ["one", "two", "deep/one"] {
        let lines = place.read(&format!("{run}/metrics.jsonl"));
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let accuracy = lines.filter_map(|line| line["test_acc"].as_f64()).fold(0.0, f64::max);
        assert_eq!(bars[run], format!("{:.1} %", 100.0 * accuracy), "{run}: {bars:?}");
    }
    // What the page says first is also printed.
    let verdict = outcome.stderr.lines().find(|line| line.contains(" test images correctly")).unwrap();
    assert!(page.contains(&format!("<p class=\"verdict\">{verdict}</p>")), "{verdict}");
    let result: Value =
        serde_json::from_str(&place.succeed("report one two deep/one -o all.html --json").stdout).unwrap();
    assert_eq!(result["verdict"], verdict);
}

impl Workplace {
    /// Copies the records of a run, with another test accuracy in its last epoch and another number of test images.
    fn copy_run(&self, run: &str, copy: &str, accuracy: f64, images: usize) {
        fs::create_dir_all(self.path(copy)).unwrap();
        let mut config: Value = serde_json::from_str(&self.read(&format!("{run}/config.json"))).unwrap();
        config["test_images"] = images.into();
        fs::write(self.path(&format!("{copy}/config.json")), config.to_string()).unwrap();
        let mut lines: Vec<Value> = self
            .read(&format!("{run}/metrics.jsonl"))
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        lines.iter_mut().rfind(|line| line["kind"] == "epoch").unwrap()["test_acc"] = accuracy.into();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(self.path(&format!("{copy}/metrics.jsonl")), text).unwrap();
    }
}

#[test]
fn a_comparison_names_the_winner_and_its_uncertainty() {
    let place = Workplace::new(&["blue", "red"]);
    place.succeed(&format!("train data {SMALL} --epochs 1 --out run --no-report"));
    for (copy, accuracy, images) in
        [("poor", 0.71, 1000), ("best", 0.875, 1000), ("close", 0.86, 1000), ("few", 0.8, 10)]
    {
        place.copy_run("run", copy, accuracy, images);
    }
    let compare = |runs: &str| {
        place.succeed(&format!("report {runs} --no-images -o all.html"));
        let page = place.read("all.html");
        elements(&page);
        page
    };
    let page = compare("poor close best");
    let names: Vec<&str> = page
        .split("<div class=\"bar\"><span class=\"name\">")
        .skip(1)
        .map(|bar| bar.split('<').next().unwrap())
        .collect();
    assert_eq!(names, ["best", "close", "poor"], "sorted by accuracy");
    let mut labels = page.split("<text class=\"name f0\"").skip(1).map(|label| label.split(['>', '<']).nth(1).unwrap());
    assert!(labels.any(|label| label == "best 0.875"), "curves have the same order");
    let verdict = "best is best: it classifies 87.5 % of the test images correctly, 1.5 percentage points more than close. But its \
                   95 % interval, 85.3 % to 89.4 %, overlaps with that of close: with so few test images, the difference may be \
                   chance.</p>";
    assert!(page.contains(verdict), "{page}");
    // The axis begins near the lowest accuracy.
    let ticks: Vec<&str> =
        page.split("class=\"tick\" style").skip(1).map(|tick| tick.split(['>', '<']).nth(1).unwrap()).collect();
    assert_eq!((ticks[0], ticks[ticks.len() - 1]), ("65 %", "90 %"), "{ticks:?}");
    assert!(page.contains("The axis does not begin at zero."));

    let page = compare("best poor");
    assert!(
        page.contains("do not overlap (85.3 % to 89.4 % and 68.1 % to 73.7 %): the difference is hardly by chance."),
        "{page}"
    );
    let page = compare("best few");
    assert!(page.contains("The runs were tested on different images"), "{page}");
    let page = compare("best run");
    assert!(page.contains("best is best") || page.contains("run is best"), "{page}");

    // Of an axis that begins at zero, it is not said that it does not.
    place.copy_run("run", "bad", 0.02, 1000);
    assert!(!compare("best bad").contains("does not begin at zero"));
    // A last epoch that is worse than the saved model does not count.
    place.copy_run("run", "late", 0.9, 1000);
    let epoch =
        place.read("late/metrics.jsonl").lines().find(|line| line.contains("\"kind\":\"epoch\"")).unwrap().to_string();
    let mut last: Value = serde_json::from_str(&epoch).unwrap();
    (last["epoch"], last["test_acc"]) = (2.into(), 0.1.into());
    let metrics = format!("{}{last}\n", place.read("late/metrics.jsonl"));
    fs::write(place.path("late/metrics.jsonl"), metrics).unwrap();
    let page = compare("best late");
    assert!(page.contains("late is best: it classifies 90.0 % of the test images correctly"), "{page}");
    assert!(page.contains("after the last epoch</th>") && page.contains(">10.0 %</td>"), "{page}");
    // A run that diverged has no accuracy, and the comparison says why.
    place.copy_run("run", "diverged", 0.5, 1000);
    fs::write(place.path("diverged/metrics.jsonl"), "{\"kind\":\"stopped\",\"reason\":\"the loss became NaN\"}\n")
        .unwrap();
    let page = compare("best diverged");
    assert!(!page.contains("too optimistic"), "{page}");
    let verdict = "Only best has been tested: it classifies 87.5 % of its test images correctly. diverged ended early, because its \
                   numbers were no longer finite.</p>";
    assert!(page.contains(verdict), "{page}");
}

/// What the page of a run says of its test images stays true beside others, in the terminal too.
#[test]
fn a_comparison_repeats_that_a_test_has_copies_of_training_images() {
    let place = Workplace::new(&["blue", "red"]);
    place.succeed(&format!("train data {SMALL} --epochs 1 --out run --no-report --no-data-check"));
    for (copy, accuracy) in [("a", 0.9), ("b", 0.8), ("c", 0.7)] {
        place.copy_run("run", copy, accuracy, 100);
    }
    let image =
        |split: &str| serde_json::json!({"split": split, "path": "red/0.png", "class": "red", "left_out": false});
    let group = serde_json::json!({"identical": true, "images": [image("train"), image("test")]});
    let check = serde_json::json!({"duplicates": [group], "cautions": []}).to_string();
    for copy in ["a", "c"] {
        fs::write(place.path(&format!("{copy}/data_check.json")), &check).unwrap();
    }
    let outcome = place.succeed("report a b c --no-images -o all.html");
    let told = "In a and c, 1 of 100 test images is identical to training images, or nearly so: their test accuracies are too optimistic.";
    assert!(outcome.stderr.contains(told), "{}", outcome.stderr);
    assert!(place.read("all.html").contains(told));
    place.succeed("report b c --no-images -o all.html");
    assert!(
        place
            .read("all.html")
            .contains("In c, 1 of 100 test images is identical to training images, or nearly so: its test")
    );
}

/// A run of an earlier version: no date, no time of tests.
#[test]
fn what_earlier_versions_did_not_record_is_said_to_be_missing() {
    let place = Workplace::new(&["blue", "red"]);
    place.succeed(&format!("train data {SMALL} --epochs 2 --out run --no-report"));
    let mut config: Value = serde_json::from_str(&place.read("run/config.json")).unwrap();
    assert!(config.as_object_mut().unwrap().remove("started").is_some());
    fs::write(place.path("run/config.json"), config.to_string()).unwrap();
    let lines = place.read("run/metrics.jsonl");
    let lines = lines.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line.as_object_mut().unwrap().remove("whole_seconds").is_some(), line["kind"] == "epoch");
        format!("{line}\n")
    });
    fs::write(place.path("run/metrics.jsonl"), lines.collect::<String>()).unwrap();
    place.succeed("report run");
    let page = place.read("run/report.html");
    elements(&page);
    assert!(page.contains("The date of the run is not known: it was made by an earlier version"), "{page}");
    assert!(page.contains("an earlier version did not record the time of testing"), "{page}");
    place.succeed("report run run -o both.html");
    elements(&place.read("both.html"));
}

#[test]
fn a_run_that_failed_says_why() {
    let place = Workplace::new(&["blue", "red"]);
    let line = format!("train data {SMALL} --epochs 3 --lr 1e30 --quiet --out run");
    let failed = place.run(&line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(failed.status, 1, "{}", failed.stderr);
    place.succeed("report run --no-images");
    let page = place.read("run/report.html");
    assert!(page.contains(
        "<b>The run ended early, because its numbers were no longer finite. </b>In epoch 1, at a learning rate"
    ));
    assert!(page.contains("Use a smaller learning rate, or --clip-gradient-norm 1."), "{page}");
    // A run without such faults has no such notice.
    place.succeed(&format!("train data {SMALL} --epochs 1 --out good"));
    assert!(!place.read("good/report.html").contains("The run ended early"));
}

/// The program prepares images as retune does, and has the names of the run, whatever they are.
#[test]
fn the_program_on_the_page_is_that_of_the_run() {
    let names = ["hot\"dog\\", "not\u{1b}[31m", "<b>&amp;"];
    let place = Workplace::new(&names);
    place.succeed(&format!("train data {SMALL} --exif --epochs 1 --no-report --out run"));
    place.succeed("report run --no-images");
    let page = place.read("run/report.html");
    elements(&page);
    let program = page.split("<pre class=\"python\"><code>").nth(1).unwrap().split("</code>").next().unwrap();
    let program = program.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    for text in [
        r#"classes = ["<b>&amp;", "hot\"dog\\", "not\x1b[31m"]"#,
        "T.Resize(38),\n    T.CenterCrop(33),",
        "T.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),",
        "image = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert(\"RGB\")",
        "net = onnxruntime.InferenceSession(\"run/model.onnx\")",
    ] {
        assert!(program.contains(text), "{text} is missing: {program}");
    }
    let config = place
        .read("run/config.json")
        .replace("\"width\": 4", "\"width\": 64")
        .replace("\"exif\": true", "\"exif\": false");
    fs::write(place.path("run/config.json"), config).unwrap();
    place.succeed("report run --no-images");
    let page = place.read("run/report.html");
    let program = page.split("<pre class=\"python\"><code>").nth(1).unwrap().split("</code>").next().unwrap();
    assert!(
        program.contains("net.load_state_dict(load_file(&quot;run/model.safetensors&quot;))\nnet.eval()"),
        "{program}"
    );
    assert!(
        program.contains("image = Image.open(sys.argv[1]).convert(&quot;RGB&quot;)\n") && !program.contains("ImageOps"),
        "{program}"
    );
}

#[test]
fn a_comparison_lists_every_setting_that_differs() {
    let place = Workplace::new(&["blue", "red"]);
    let all = "--optimizer adamw --beta2 0.95 --freeze conv1,bn1 --freeze-batch-norm --no-decay-norm-bias --augment \
               vertical-flip=0.25 --seed 3";
    place.succeed(&format!("train data {SMALL} --epochs 1 --no-report --out sgd --momentum 0.5"));
    place.succeed(&format!("train data {SMALL} --epochs 1 --no-report --out adamw {all}"));
    place.succeed("report sgd adamw -o both.html --no-images");
    let page = place.read("both.html");
    for row in [
        "<th scope=\"row\">optimizer</th><td>sgd</td><td>adamw</td>",
        "<th scope=\"row\">momentum</th><td>0.5</td><td>–</td>",
        "<th scope=\"row\">beta1</th><td>–</td><td>0.9</td>",
        "<th scope=\"row\">beta2</th><td>–</td><td>0.95</td>",
        "<th scope=\"row\">epsilon</th><td>–</td><td>1e-8</td>",
        "<th scope=\"row\">frozen layers</th><td>none</td><td>conv1, bn1</td>",
        "<th scope=\"row\">frozen batch norms</th><td>–</td><td>running statistics</td>",
        "<th scope=\"row\">without weight decay</th><td>–</td><td>batch norms, biases</td>",
        "<td>random-resized-crop, horizontal-flip=0.5</td><td>random-resized-crop, horizontal-flip=0.5, vertical-flip=0.25</td>",
        "<th scope=\"row\">seed</th><td>0</td><td>3</td>",
    ] {
        assert!(page.contains(row), "{row} is missing: {page}");
    }
    place.succeed("report sgd sgd -o same.html --no-images");
    assert!(place.read("same.html").contains("The runs have the same settings."));
    // The page of one run explains its own optimiser and augmentation.
    place.succeed("report adamw");
    let page = place.read("adamw/report.html");
    assert!(page.contains("decay rate of the mean of squared gradients") && !page.contains("momentum"), "{page}");
    let sentence = "every training image anew: random-resized-crop, horizontal-flip=0.5, vertical-flip=0.25.";
    assert!(page.contains(sentence), "{page}");
}

#[test]
fn the_page_follows_the_settings_of_the_run() {
    let place = Workplace::new(&["blue", "red"]);
    place.succeed(&format!("train data {SMALL} --arch resnet34 --exif --epochs 1 --no-report --out run"));
    place.succeed("report run --no-images");
    let page = place.read("run/report.html");
    assert!(page.contains("ResNet-34 (width 4)") && !page.contains("torchvision.models"));
    assert!(page.contains("torchvision has no network of this width"));
    place.succeed("report run");
    assert!(place.read("run/report.html").contains("rotated and mirrored as their EXIF orientation says"));
    // The line for torchvision is that of a network of its width, with the classes of the run.
    let config = place.read("run/config.json").replace("\"width\": 4", "\"width\": 64");
    fs::write(place.path("run/config.json"), config).unwrap();
    place.succeed("report run --no-images");
    let page = place.read("run/report.html");
    assert!(page.contains("net = torchvision.models.resnet34(num_classes=2)"), "{page}");
}

#[test]
fn the_page_follows_the_way_a_run_was_trained() {
    let place = Workplace::new(&["blue", "red"]);
    place.succeed(&format!("train data {SMALL} --epochs 1 --ema 0.9 --no-report --out run"));
    place.succeed("train data --weights run --image-size 32 --head-only --no-report --out head");
    place.succeed("train data --weights run --image-size 32 --head-only --feature-copies 1 --no-report --out copies");
    let page = |run: &str| {
        place.succeed(&format!("report {run} --device cpu"));
        place.read(&format!("{run}/report.html"))
    };
    let page_of_averages = page("run");
    assert!(page_of_averages.contains("the solid lines are those of the averages"));
    assert!(page_of_averages.contains("<td>1</td><td class=\"meaning\">passes over the training images"), "one epoch");
    let fitted = page("head");
    for absent in [
        "<th scope=\"row\">learning rate</th>",
        "<th scope=\"row\">momentum</th>",
        "<th scope=\"row\">augmentation</th>",
        "<th scope=\"row\">epochs</th>",
        "Augmented training images",
        "best test accuracy",
    ] {
        assert!(!fitted.contains(absent), "{absent}");
    }
    assert!(fitted.contains("<th scope=\"row\">batch size</th>") && fitted.contains("<dt>test accuracy</dt>"));
    let copies = page("copies");
    assert!(
        copies.contains("These random operations make the augmented copies: ")
            && copies.contains("These are examples.")
    );
    assert!(copies.contains("<th scope=\"row\">augmentation</th>"));

    place.succeed("train data --resume --extend 2 --no-report --out run");
    let extended = page("run");
    assert!(extended.contains("<td>3</td><td class=\"meaning\">passes over the training images"), "three epochs");
    assert!(extended.contains("<dt>epochs</dt><dd>3</dd>"), "not 3 of 1");
}
