//! Sweeps of `retune train`: `--seeds` and `--try` train several runs in turn into one folder, and compare them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::interruption::interruption;
use super::sweep_report::compare_runs;
use super::train::{TrainArguments, check_freezing, result_json};
use super::training::{Place, Trained, Training, prepare, tell};
use super::tried::{Tried, TriedValue};
use super::weights::WeightsKey;
use super::{GlobalArguments, print_json, report, shell};
use crate::data::{counted, require_folder};
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::train::{
    Checkpoint, FolderLock, Recipe, Run, RunConfig, RunFolder, RunOptions, RunState, Start, Sweep, SweepRun,
    find_network,
};
use crate::weights::TensorFile;

/// More runs than this are hardly meant.
const MOST_RUNS: usize = 1000;

/// Whether the arguments of `retune train` ask for a sweep, or for the rest of one.
pub fn is_asked_for(arguments: &TrainArguments) -> bool {
    arguments.seeds.is_some() || !arguments.tries.is_empty() || (arguments.resume && existing(arguments).is_some())
}

/// The folder of the sweep that `--resume` means.
fn existing(arguments: &TrainArguments) -> Option<PathBuf> {
    let folder = match &arguments.out {
        Some(path) => RunFolder { path: path.clone() },
        None => RunFolder::last_numbered()?,
    };
    folder.sweep().exists().then_some(folder.path)
}

/// Trains all runs that are not finished, and compares all of them. The exit status is 1 if one failed.
pub fn run(global: &GlobalArguments, arguments: &TrainArguments) -> Result<ExitCode> {
    refuse_others(arguments)?;
    let tries = arguments.tries.iter().map(|text| Tried::parse(text)).collect::<Result<Vec<Tried>>>()?;
    refuse_repeated(arguments, &tries)?;
    let interrupted = interruption()?;
    let resumed = if arguments.resume { existing(arguments) } else { None };
    let (sweep, folder, device, _lock) = match resumed {
        Some(folder) => {
            // Before anything is read that another process may be writing.
            let lock = FolderLock::acquire(&folder)?;
            let sweep = Sweep::open(&folder)?;
            require_same(arguments, &tries, &sweep, &folder)?;
            let device = open_device(global, &sweep, &folder)?;
            RunFolder { path: folder.clone() }.remove_leftovers();
            (sweep, folder, device, lock)
        }
        None => begin(global, arguments, &tries, interrupted)?,
    };
    let session = Session { global, arguments, sweep: &sweep, folder: &folder, device, interrupted };
    session.train_all().map_err(|error| match error.kind() {
        ErrorKind::Interrupted => error.hint(format!("to continue: {}", session.resuming_command())),
        _ => error,
    })?;
    compare_runs(global, &sweep, &folder)
}

/// Refuses flags that have no meaning for several runs.
fn refuse_others(arguments: &TrainArguments) -> Result<()> {
    let others = [
        ("--budget", arguments.budget.is_some(), "the runs of a sweep would differ in their numbers of epochs"),
        ("--extend", arguments.extend.is_some(), "a sweep cannot be extended"),
        ("--verify-determinism", arguments.verify_determinism.is_some(), "it trains no runs to compare"),
        ("--allow-changed-data", arguments.allow_changed_data, "the runs of a sweep are compared on the same images"),
    ];
    match others.into_iter().find(|(_, is_given, _)| *is_given) {
        Some((flag, _, reason)) => Err(Error::usage(format!("{flag}: {reason}")).hint(format!("leave {flag} out"))),
        None => Ok(()),
    }
}

/// Refuses a flag that has several places on the command line.
fn refuse_repeated(arguments: &TrainArguments, tries: &[Tried]) -> Result<()> {
    let mut given = arguments.recipe.given();
    given.extend(arguments.named.iter().map(|_| "--recipe".to_string()));
    for (number, tried) in tries.iter().enumerate() {
        let flag = format!("--{}", tried.flag);
        if tries[..number].iter().any(|other| other.flag == tried.flag) {
            return Err(Error::usage(format!("--try {}: it is tried twice", tried.flag))
                .hint("give all its values in one --try, separated by commas"));
        }
        if given.contains(&flag) {
            return Err(Error::usage(format!("{flag}: --try {} gives its values too", tried.flag))
                .hint(format!("leave {flag} out")));
        }
        if tried.flag == "recipe" && (arguments.config.is_some() || arguments.recipe.is_from_scratch()) {
            let other = if arguments.config.is_some() { "--config" } else { "--from-scratch" };
            return Err(Error::usage(format!("--try recipe: {other} says which recipe is used"))
                .hint(format!("leave {other} out")));
        }
    }
    Ok(())
}

/// The seeds that the arguments ask for.
fn seeds(arguments: &TrainArguments) -> Result<Vec<u64>> {
    let first = match arguments.recipe.seed() {
        Some(seed) => seed,
        None => arguments.base_recipe()?.seed,
    };
    let count = u64::from(arguments.seeds.unwrap_or(1));
    match first.checked_add(count - 1) {
        Some(last) => Ok((first..=last).collect()),
        None => Err(Error::usage(format!("--seeds {count}: the seeds from {first} on would be too large"))),
    }
}

/// All combinations of the values that are tried, those of the last flag changing first.
fn combinations(tries: &[Tried]) -> Vec<Vec<(&str, &TriedValue)>> {
    tries.iter().fold(vec![Vec::new()], |combinations, tried| {
        let longer = |combination: Vec<_>| {
            tried.values.iter().map(move |value| [combination.clone(), vec![(tried.flag.as_str(), value)]].concat())
        };
        combinations.into_iter().flat_map(longer).collect()
    })
}

/// The arguments of a single run of the sweep.
fn of_run(arguments: &TrainArguments, settings: &[(&str, &TriedValue)], seed: u64) -> Result<TrainArguments> {
    let seed = seed.to_string();
    let with_seed = TriedValue::new("seed", &seed).map_err(Error::usage)?;
    let mut merged = arguments.clone();
    for (_, value) in settings.iter().copied().chain([("seed", &with_seed)]) {
        merged.recipe = merged.recipe.replaced_by(&value.arguments);
        merged.named = value.recipe.clone().or(merged.named);
    }
    Ok(merged)
}

/// Puts the name of a combination in front of an error, if there is one.
fn about(error: Error, combination: &str) -> Error {
    if combination.is_empty() { error } else { error.about(combination) }
}

/// Plans a new sweep, checks all its runs as far as that is possible without training, and creates its folder.
fn begin(
    global: &GlobalArguments,
    arguments: &TrainArguments,
    tries: &[Tried],
    interrupted: &AtomicBool,
) -> Result<(Sweep, PathBuf, Rc<dyn Device>, FolderLock)> {
    arguments.weights_key.require_weights(arguments.weights.as_deref())?;
    if arguments.resume {
        refuse_single_run(arguments)?;
    }
    if let Some(out) = &arguments.out {
        RunFolder { path: out.clone() }.require_free()?;
    }
    let seeds = seeds(arguments)?;
    let combinations = combinations(tries);
    if seeds.len().saturating_mul(combinations.len()) > MOST_RUNS {
        let count = seeds.len().saturating_mul(combinations.len());
        return Err(Error::usage(format!("the sweep has {count} runs: expected at most {MOST_RUNS}")));
    }
    let device = global.open_device()?;
    let weights = arguments.initial_weights()?;
    let weights = weights.as_deref();
    let mut planned = Vec::new();
    for &seed in &seeds {
        for combination in &combinations {
            let of_run = of_run(arguments, combination, seed)?;
            of_run.initial_weights()?;
            let settings = combination.iter().map(|(flag, value)| (flag.to_string(), value.text.clone())).collect();
            let run = SweepRun { settings, recipe: Recipe::fine_tuning() };
            // Faults of the flags come before what is said of the weights.
            of_run.recipe(None).map_err(|error| about(error, &run.combination()))?;
            planned.push((of_run, run));
        }
    }
    require_folder(&arguments.data)?;
    arguments.describe_weights(global, weights);
    let file = weights.map(|weights| arguments.weights_key.open(global, weights)).transpose()?;
    if let Some(origin) = file.as_ref().and_then(TensorFile::origin) {
        global.note(&format!("the weights are {origin}"));
    }
    let found = file.as_ref().map(find_network).transpose()?;
    let mut runs: Vec<SweepRun> = Vec::new();
    for (of_run, mut run) in planned {
        let name = run.combination();
        run.recipe = of_run.recipe(found.as_ref()).map_err(|error| about(error, &name))?;
        if let Some(same) = runs.iter().find(|other| other.recipe == run.recipe) {
            return Err(Error::usage(format!("--try: {} and {name} are the same recipe", same.combination()))
                .hint("leave one of them out"));
        }
        check_freezing(&run.recipe).map_err(|error| about(error, &name))?;
        runs.push(run);
    }
    drop(found);
    // All combinations are prepared once, so that none is refused after others were trained.
    for run in runs.iter().take(combinations.len()) {
        let checked = || {
            let folder = arguments.out.clone().unwrap_or_else(|| RunFolder::NUMBERED.into());
            let options =
                RunOptions { check_data: false, ..arguments.options(RunFolder { path: folder }, interrupted)? };
            let start = start_of(file.as_ref())?;
            let mut run = start.run(device.clone(), run.recipe.clone(), &arguments.data, options, &mut |_| ())?;
            run.options.folder.require_apart(&arguments.data, &run.splits)?;
            let batches = run.splits.train.len().div_ceil(run.recipe.batch_size);
            if run.recipe.epochs > 0 {
                run.recipe.schedule(run.recipe.steps_of(batches))?;
            }
            prepare(&mut run)
        };
        checked().map_err(|error| about(error, &run.combination()))?;
    }
    let sweep = Sweep {
        retune: env!("CARGO_PKG_VERSION").into(),
        weights: weights.map(RunConfig::name_of_weights),
        weights_key: arguments.weights_key.prefix().map(String::from),
        device: device.name(),
        precision: device.precision().to_string(),
        names_seeds: arguments.seeds.is_some() || tries.is_empty(),
        runs,
    };
    let folder = match &arguments.out {
        Some(path) => RunFolder { path: path.clone() },
        None => RunFolder::numbered()?,
    };
    folder.create()?;
    let lock = FolderLock::acquire(&folder.path)?;
    // Another process may have been faster.
    folder.require_free()?;
    sweep.save(&folder.path)?;
    arguments.describe_recipe_of_sweep(global, tries.iter().map(|tried| tried.flag.as_str()));
    Ok((sweep, folder.path, device, lock))
}

/// Refuses to resume what is no sweep; a folder that has nothing yet is where one starts.
fn refuse_single_run(arguments: &TrainArguments) -> Result<()> {
    let Some(out) = &arguments.out else {
        return Err(
            Error::usage("--resume: the last of runs/1, runs/2, ... is no sweep").hint("name its folder with --out")
        );
    };
    let flag = if arguments.seeds.is_some() { "--seeds" } else { "--try" };
    match (RunFolder { path: out.clone() }).checkpoint().exists() {
        true => Err(Error::usage(format!("{flag}: the run in {} is a single run, not a sweep", out.display()))
            .hint(format!("leave {flag} out to resume it, or start a sweep with another --out"))),
        false => Ok(()),
    }
}

/// The start of a run from this file of weights, or from random ones.
fn start_of(file: Option<&TensorFile>) -> Result<Start> {
    let found = file.map(find_network).transpose()?;
    Ok(found.map_or(Start::FromScratch, |found| Start::FineTune(Box::new(found))))
}

/// The device for the rest of a sweep, in its precision.
fn open_device(global: &GlobalArguments, sweep: &Sweep, folder: &Path) -> Result<Rc<dyn Device>> {
    if let Some(given) = global.precision.map(crate::device::Precision::from)
        && given.to_string() != sweep.precision
    {
        let (out, precision) = (folder.display(), &sweep.precision);
        return Err(Error::usage(format!("--precision {given}: the sweep in {out} has {precision}"))
            .hint("leave --precision out, or start another sweep with another --out"));
    }
    let device = global.open_device_in(sweep.precision.parse()?)?;
    if device.name() != sweep.device {
        global.note(&format!(
            "the sweep used {} so far and continues with {}: the other runs will differ from those that it would have had",
            sweep.device,
            device.name()
        ));
    }
    Ok(device)
}

/// Refuses flags that differ from those of the sweep that is resumed.
fn require_same(arguments: &TrainArguments, tries: &[Tried], sweep: &Sweep, folder: &Path) -> Result<()> {
    let differs = |flag: &str| {
        Err(Error::usage(format!("{flag} differs from the sweep in {}", folder.display()))
            .hint("leave it out to resume, or start another sweep with another --out"))
    };
    if let Some(weights) = &arguments.weights
        && sweep.weights.as_deref() != Some(&RunConfig::name_of_weights(weights))
    {
        return differs("--weights");
    }
    if arguments.weights_key.prefix().is_some_and(|prefix| sweep.weights_key.as_deref() != Some(prefix)) {
        return differs("--weights-key");
    }
    let known = sweep.seeds();
    if arguments.seeds.is_some_and(|count| count as usize != known.len()) {
        return differs("--seeds");
    }
    if arguments.recipe.seed().is_some_and(|seed| known.first() != Some(&seed)) {
        return differs("--seed");
    }
    if !tries.is_empty() {
        let wanted: Vec<Vec<(String, String)>> = combinations(tries)
            .iter()
            .map(|settings| settings.iter().map(|(flag, value)| (flag.to_string(), value.text.clone())).collect())
            .collect();
        let found: Vec<_> =
            sweep.runs.iter().take(sweep.combinations().len()).map(|run| run.settings.clone()).collect();
        if wanted != found {
            return differs("--try");
        }
    }
    for run in &sweep.runs {
        let values = run.settings.iter().map(|(flag, value)| Ok((flag.as_str(), TriedValue::new(flag, value)?)));
        let values = values.collect::<Result<Vec<_>, String>>();
        let values = values.map_err(|problem| Error::new(problem).about(&Sweep::path(folder).display().to_string()))?;
        let settings: Vec<(&str, &TriedValue)> = values.iter().map(|(flag, value)| (*flag, value)).collect();
        // The seed of the first run was compared above.
        arguments
            .recipe
            .overlay(&mut run.recipe.clone(), |flag| if flag == "--seed" { Ok(()) } else { differs(flag) })?;
        if arguments.named.is_some() || arguments.config.is_some() {
            of_run(arguments, &settings, run.recipe.seed)?.require_recipe_of(&run.recipe, folder)?;
        }
        if arguments.head_only && !run.recipe.fits_only() {
            return differs("--head-only");
        }
    }
    Ok(())
}

/// The training of a sweep's runs.
struct Session<'a> {
    global: &'a GlobalArguments,
    arguments: &'a TrainArguments,
    sweep: &'a Sweep,
    folder: &'a Path,
    device: Rc<dyn Device>,
    interrupted: &'a AtomicBool,
}

impl Session<'_> {
    /// Trains every run that is not finished. Those that fail because their numbers are not finite are left behind.
    fn train_all(&self) -> Result<()> {
        let Self { global, sweep, folder, .. } = *self;
        let count = sweep.runs.len();
        let key = WeightsKey::of(sweep.weights_key.as_deref());
        let weights = sweep.weights.as_deref();
        // Opened when the first run needs it.
        let mut file = None;
        let what = match (sweep.combinations().len(), sweep.seeds().len()) {
            (1, seeds) => counted(seeds, "seed", "seeds"),
            (all, 1) => counted(all, "combination", "combinations"),
            (all, seeds) => format!("{all} combinations with {}", counted(seeds, "seed each", "seeds each")),
        };
        global.note(&format!("sweep of {} ({what}) in {}", counted(count, "run", "runs"), folder.display()));
        for (number, run) in sweep.runs.iter().enumerate() {
            self.check_interruption()?;
            let (name, run_folder) = (sweep.name(run), sweep.folder_of(folder, run));
            let title = |state: &str| global.note(&format!("[{}/{count}] {name}{state}", number + 1));
            let state = run_folder.state(&run.recipe)?;
            match &state {
                RunState::Finished => {
                    title(" is finished");
                    self.complete_report(&run_folder);
                    continue;
                }
                RunState::Failed(reason) => {
                    title(&format!(" failed: {reason}"));
                    continue;
                }
                RunState::NotStarted | RunState::Interrupted => title(""),
            }
            let options = self.arguments.options(run_folder.clone(), self.interrupted)?;
            let (place, start) = if state == RunState::Interrupted {
                let lock = FolderLock::acquire(&run_folder.path)?;
                let checkpoint = Box::new(Checkpoint::open(&run_folder.checkpoint())?);
                (Place::Resumed(lock), Start::Resume { checkpoint, allow_changed_data: false })
            } else {
                if file.is_none() {
                    file = weights.map(|weights| key.open(global, weights)).transpose()?;
                }
                let lock = run_folder.path.is_dir().then(|| FolderLock::acquire(&run_folder.path)).transpose()?;
                (Place::Named(lock), start_of(file.as_ref())?)
            };
            let data = &self.arguments.data;
            let started = start.run(self.device.clone(), run.recipe.clone(), data, options, &mut tell(global))?;
            self.require_same_images(run, &started)?;
            let training = Training {
                budget: None,
                data,
                weights,
                place,
                tensorboard: self.arguments.tensorboard,
                report: !self.arguments.no_report,
            };
            match training.complete(global, started) {
                Ok(trained) => self.tell_result(&name, &trained)?,
                Err(error) if error.kind() == ErrorKind::NotFinite => {
                    super::warn(&format!("{name} failed: {}", error.message()));
                    if global.json {
                        print_json(&serde_json::json!({ "run": name, "failure": error.message() }))?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn check_interruption(&self) -> Result<()> {
        match self.interrupted.load(Ordering::Relaxed) {
            true => Err(Error::interrupted("stopped between two runs")),
            false => Ok(()),
        }
    }

    fn tell_result(&self, name: &str, trained: &Trained) -> Result<()> {
        if self.global.json {
            let mut result = result_json(trained);
            result["run"] = name.into();
            return print_json(&result);
        }
        self.global.note(&format!("{name}: {}", trained.line()));
        Ok(())
    }

    /// Writes the report of a run that was killed after its last epoch.
    fn complete_report(&self, run: &RunFolder) {
        if !self.arguments.no_report && !run.path.join("report.html").exists() {
            report::after_training(self.global, run, &self.arguments.data, &self.device);
        }
    }

    /// Refuses to start a run on other images than an earlier one had that drew its test images with the same seed.
    fn require_same_images(&self, run: &SweepRun, started: &Run) -> Result<()> {
        for other in &self.sweep.runs {
            let folder = self.sweep.folder_of(self.folder, other);
            if !folder.checkpoint().exists() || (started.splits.is_drawn() && other.recipe.seed != run.recipe.seed) {
                continue;
            }
            let Some(earlier) = RunConfig::open(&folder)?.images else { continue };
            if let Some(difference) = started.images.difference_from(&earlier, &folder.images()) {
                return Err(Error::new(format!(
                    "the images in {} differ from those of the run in {}: {difference}",
                    self.arguments.data.display(),
                    folder.path.display()
                ))
                .hint("restore the images, or start another sweep with another --out"));
            }
        }
        Ok(())
    }

    /// The command that continues the sweep.
    fn resuming_command(&self) -> String {
        let [data, out] = [&self.arguments.data, self.folder].map(|path| path.display().to_string());
        let words = ["train".into(), data, "--resume".into(), "--out".into(), out];
        shell::command(words.into_iter().chain(self.global.device_words()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_tries_give_all_combinations() {
        let tries = ["lr=1e-3,3e-3", "schedule=constant,cosine"].map(|text| Tried::parse(text).unwrap());
        let names: Vec<String> = combinations(&tries)
            .iter()
            .map(|settings| {
                settings.iter().map(|(flag, value)| format!("{flag}={}", value.text)).collect::<Vec<_>>().join(",")
            })
            .collect();
        assert_eq!(
            names,
            [
                "lr=1e-3,schedule=constant",
                "lr=1e-3,schedule=cosine",
                "lr=3e-3,schedule=constant",
                "lr=3e-3,schedule=cosine"
            ]
        );
        assert_eq!(combinations(&[]).len(), 1);
    }
}
