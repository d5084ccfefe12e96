//! `retune demo`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::interruption::interruption;
use super::progress::{Progress, duration};
use super::shell;
use super::train::command_words;
use super::training::{Place, Trained, Training, tell};
use super::{GlobalArguments, print_json, print_result, report};
use crate::data::ImageFolder;
use crate::device::{Device, threads};
use crate::drawing::{Counts, PICTURE_SIZE, Subject, draw_set};
use crate::error::{Error, Result};
use crate::report::{ContactSheet, Introduction, RunRecord, Section, Tile, comparison_page, preview, tiles_of_classes};
use crate::train::{Checkpointing, Hyperparameters, Recipe, RunFolder, RunOptions, Start, find_network, reserve};
use crate::weights::TensorFile;

const EXAMPLES: &str = "\
Examples:
  retune demo
  retune demo --seed 7 --out runs/other";

/// Show what fine-tuning does, in a few minutes and offline
///
/// Draws a large data set of twelve classes of objects and a small one of hot dogs and similar objects. Pretrains a small
/// network on the large data set and fine-tunes it on the small one, then trains the same network on the small data set from
/// random weights, for the same number of steps. Prints the command of every step and writes a report that compares both
/// networks.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct DemoArguments {
    /// Folder to write the data sets, runs and report to [default: the next of runs/demo, runs/demo-2, ...]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Seed of the drawings and of training
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Number of training images per class in the large data set
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u64).range(2..=100_000))]
    source_per_class: u64,

    /// Number of training images per class in the small data set
    #[arg(long, value_name = "N", default_value_t = 48, value_parser = clap::value_parser!(u64).range(2..=100_000))]
    target_per_class: u64,

    /// Number of epochs of pretraining on the large data set
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pretraining_epochs: u64,

    /// Number of epochs on the small data set, from pretrained and from random weights
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    epochs: u64,

    /// Draw the data sets without training
    #[arg(long)]
    only_draw: bool,
}

const SOURCE_TEST_PER_CLASS: u64 = 50;
const TARGET_TEST_PER_CLASS: u64 = 250;

#[derive(Serialize)]
struct StepResult {
    test_acc: f64,
    best_test_acc: f64,
    model: String,
}

#[derive(Serialize)]
struct DemoResult {
    pretrained: StepResult,
    fine_tuned: StepResult,
    from_scratch: StepResult,
    page: String,
    seconds: f64,
}

struct Demo<'a> {
    global: &'a GlobalArguments,
    arguments: &'a DemoArguments,
    folder: PathBuf,
    device: Rc<dyn Device>,
    interrupted: &'a AtomicBool,
}

pub fn run(global: &GlobalArguments, arguments: &DemoArguments) -> Result<ExitCode> {
    let begun = Instant::now();
    let folder = free_folder(arguments)?;
    let device = global.open_device()?;
    let demo = Demo { global, arguments, folder, device, interrupted: interruption()? };
    let (source, target) = demo.draw()?;
    if arguments.only_draw {
        if global.json {
            let [source, target] = [&source, &target].map(|folder| folder.to_string_lossy());
            print_json(&serde_json::json!({ "source": source, "target": target }))?;
        } else {
            [source, target].iter().try_for_each(|folder| print_result(&folder.display().to_string()))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let pretrained = demo.pretrain(&source)?;
    let fine_tuned = demo.fine_tune(&target, &pretrained)?;
    let from_scratch = demo.train_from_scratch(&target)?;
    let page = demo.compare(&source, &target, &pretrained, &fine_tuned, &from_scratch)?;
    let seconds = begun.elapsed();
    if global.json {
        let [pretrained, fine_tuned, from_scratch] = [pretrained, fine_tuned, from_scratch].map(|trained| StepResult {
            test_acc: trained.summary.test_acc,
            best_test_acc: trained.summary.best.accuracy,
            model: trained.folder.model().to_string_lossy().into_owned(),
        });
        let page = page.to_string_lossy().into_owned();
        print_json(&DemoResult { pretrained, fine_tuned, from_scratch, page, seconds: seconds.as_secs_f64() })?;
        return Ok(ExitCode::SUCCESS);
    }
    global.note("");
    for (name, trained) in [("fine-tuned", &fine_tuned), ("from scratch", &from_scratch)] {
        print_result(&format!("{name:<12}  {}", trained.line()))?;
    }
    print_result(&page.display().to_string())?;
    let took = format!(
        "The demo took {}. The report compares both networks. To fine-tune on your own images, with one folder per class in \
         photos/train and photos/test:",
        duration(seconds)
    );
    for line in ["", &took, "", "  retune train photos --out runs/photos", "  retune predict runs/photos new.jpg"] {
        global.note(line);
    }
    Ok(ExitCode::SUCCESS)
}

impl Demo<'_> {
    /// Draws both data sets and returns their folders.
    fn draw(&self) -> Result<(PathBuf, PathBuf)> {
        let DemoArguments { seed, source_per_class, target_per_class, .. } = *self.arguments;
        let source = Counts { train: source_per_class, test: SOURCE_TEST_PER_CLASS.min(source_per_class) };
        let target = Counts { train: target_per_class, test: TARGET_TEST_PER_CLASS.min(10 * target_per_class) };
        let sets = [("source", Subject::Source, source), ("target", Subject::Target, target)];
        let pictures = |(_, subject, counts): &(&str, Subject, Counts)| {
            subject.class_names().len() as u64 * (counts.train + counts.test)
        };
        self.global.note(&format!(
            "drawing {} images of {} classes of objects, and {} images of hot dogs and similar objects",
            pictures(&sets[0]),
            Subject::Source.class_names().len(),
            pictures(&sets[1])
        ));
        let progress = Progress::new(self.global, sets.iter().map(pictures).sum(), "images");
        let [source, target] = sets.map(|(name, subject, counts)| {
            let folder = self.folder.join("pictures").join(name);
            let drawn = || {
                progress.advance();
                !self.interrupted.load(Ordering::Relaxed)
            };
            draw_set(subject, &folder, counts, seed, drawn).map(|_| folder)
        });
        progress.finish();
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Error::interrupted(format!("stopped; {} can be removed", self.folder.display())));
        }
        let (source, target) = (source?, target?);
        for (folder, name) in [(&source, "source.png"), (&target, "target.png")] {
            let sheet = ContactSheet::new(&tiles_of_classes(
                &ImageFolder::open(folder.join("train"))?,
                8,
                usize::MAX,
                PICTURE_SIZE,
            ))?;
            let path = self.folder.join(name);
            report::write(&path, &sheet.png()?)?;
            if self.global.shows_progress() {
                let columns = console::Term::stderr().size().1;
                // The demo continues even if the terminal cannot show images.
                let _ = std::io::stderr().write_all(&preview(&sheet, columns.into()));
            }
            self.global.note(&format!("examples: {}", path.display()));
        }
        Ok((source, target))
    }

    fn pretrain(&self, source: &Path) -> Result<Trained> {
        let recipe = Recipe {
            batch_size: 32,
            learning_rate: 0.02,
            hyperparameters: Hyperparameters::from([("momentum", 0.9)]),
            weight_decay: 5e-4,
            loss_reduction: "mean".into(),
            epochs: self.arguments.pretraining_epochs as usize,
            ..self.small_from_scratch()
        };
        let title = "pretraining: a network learns features from many images of other objects";
        self.train(title, source, "pretrained", Start::FromScratch, recipe, None)
    }

    fn fine_tune(&self, target: &Path, pretrained: &Trained) -> Result<Trained> {
        let path = pretrained.folder.model();
        let weights = find_network(&TensorFile::open(&path)?)?;
        let recipe = Recipe {
            batch_size: 16,
            learning_rate: 1e-3,
            epochs: self.arguments.epochs as usize,
            seed: self.arguments.seed,
            ..Recipe::fine_tuning().for_weights(&weights)
        };
        let title = "fine-tuning: the pretrained network learns a new task from few images";
        self.train(title, target, "fine-tuned", Start::FineTune(Box::new(weights)), recipe, Some(&path))
    }

    fn train_from_scratch(&self, target: &Path) -> Result<Trained> {
        let recipe = Recipe {
            batch_size: 16,
            learning_rate: 2e-3,
            epochs: self.arguments.epochs as usize,
            ..self.small_from_scratch()
        };
        let title = "from scratch: the same network, images and number of steps, but random initial weights";
        self.train(title, target, "from-scratch", Start::FromScratch, recipe, None)
    }

    fn small_from_scratch(&self) -> Recipe {
        Recipe { width: 16, image_size: 64, seed: self.arguments.seed, ..Recipe::from_scratch() }
    }

    /// Writes the report and returns its path.
    fn compare(
        &self,
        source: &Path,
        target: &Path,
        pretrained: &Trained,
        fine_tuned: &Trained,
        from_scratch: &Trained,
    ) -> Result<PathBuf> {
        let mut records = Vec::new();
        for (name, trained) in [("fine-tuned", fine_tuned), ("from scratch", from_scratch)] {
            let mut record = RunRecord::open(&trained.folder)?;
            record.name = name.into();
            report::evaluate(self.global, &mut record, None, &self.device)?;
            records.push(record);
        }
        let [source, target] = [source, target].map(|folder| ImageFolder::open(folder.join("train")));
        let (source, target) = (source?, target?);
        let pairs = |rows: Vec<Vec<Tile>>| rows.chunks(2).map(<[_]>::concat).collect::<Vec<Vec<Tile>>>();
        let [accuracy, pretrained_accuracy] = [fine_tuned, pretrained].map(|trained| trained.summary.test_acc);
        let introduction = Introduction {
            title: "What fine-tuning does".into(),
            lead: format!(
                "Two networks of the same architecture were trained to recognise hot dogs, on the same {} images and for the same \
                 number of steps. One started from random weights. The other was first trained on {} other classes, none of them hot \
                 dogs. This fine-tuned network classifies {:.1} % of the test images correctly, the network trained from scratch \
                 {:.1} %.",
                target.len(),
                source.classes.len(),
                100.0 * accuracy,
                100.0 * from_scratch.summary.test_acc
            ),
            sections: vec![
                Section {
                    heading: "The task: hot dog or not".into(),
                    text: format!(
                        "{} drawn training images. The class not-hotdog shows objects with the parts, shapes or colours of a hot dog: \
                         sausages, bread rolls, sausages beside bread rolls, eclairs, carrots, pencils.",
                        target.len()
                    ),
                    images: tiles_of_classes(&target, 8, usize::MAX, PICTURE_SIZE),
                },
                Section {
                    heading: "Pretraining".into(),
                    text: format!(
                        "The fine-tuned network was pretrained on {} drawn images of {} classes. After pretraining, it classified {:.1} % \
                         of the test images of these classes correctly. Fine-tuning replaced its final layer, which was trained with ten \
                         times the learning rate of the other layers.",
                        source.len(),
                        source.classes.len(),
                        100.0 * pretrained_accuracy
                    ),
                    images: pairs(tiles_of_classes(&source, 4, usize::MAX, PICTURE_SIZE)),
                },
            ],
        };
        let page = self.folder.join("report.html");
        let records: Vec<&RunRecord> = records.iter().collect();
        report::write(&page, comparison_page(&introduction, &records)?.as_bytes())?;
        Ok(page)
    }

    /// Trains, and prints the equivalent command.
    fn train(
        &self,
        title: &str,
        data: &Path,
        out: &str,
        start: Start,
        recipe: Recipe,
        weights: Option<&Path>,
    ) -> Result<Trained> {
        let folder = RunFolder { path: self.folder.join(out) };
        let base = match &start {
            Start::FineTune(found) => Recipe::fine_tuning().for_weights(found),
            _ => Recipe::from_scratch(),
        };
        let mut words = command_words(&recipe, &base, data, weights, &folder.path);
        words.extend(self.global.device_words());
        ["", title, &format!("$ {}", shell::command(&words))].into_iter().for_each(|line| self.global.note(line));
        let options = RunOptions {
            folder,
            workers: threads::count(),
            image_memory: None,
            strict: false,
            check_data: true,
            checkpointing: Checkpointing::default(),
            interrupted: self.interrupted,
        };
        let run = start.run(self.device.clone(), recipe, data, options, &mut tell(self.global))?;
        Training { data, weights, budget: None, place: Place::Named(None), tensorboard: false, report: true }
            .complete(self.global, run)
    }
}

fn free_folder(arguments: &DemoArguments) -> Result<PathBuf> {
    let is_free =
        |folder: &PathBuf| std::fs::read_dir(folder).map_or(!folder.exists(), |mut rest| rest.next().is_none());
    match &arguments.out {
        Some(folder) if is_free(folder) => Ok(folder.clone()),
        Some(folder) => {
            Err(Error::new(format!("--out {}: already exists and is not an empty folder", folder.display()))
                .hint("choose another folder, or remove that one"))
        }
        None => {
            let name = |number| if number == 1 { "runs/demo".into() } else { format!("runs/demo-{number}") };
            reserve((1..1000).map(|number| PathBuf::from(name(number))))?.ok_or_else(|| {
                Error::new("runs/ already contains 999 demos").hint("remove some, or choose a folder with --out")
            })
        }
    }
}
