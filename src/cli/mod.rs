//! The command line: one file per command, with its arguments and its `run`. Results go to stdout, everything else to stderr.

mod bench;
mod completions;
mod convert;
mod demo;
mod device;
mod devices;
mod eval;
mod fetch;
mod gradcheck;
mod inspect;
mod interruption;
mod man;
mod predict;
mod progress;
mod recipe_arguments;
mod report;
mod shell;
mod show;
mod train;
mod training;
mod training_display;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::rc::Rc;

use clap::builder::PossibleValuesParser;
use clap::error::ErrorKind as ParseErrorKind;
use clap::{Parser, Subcommand, ValueEnum};
use console::Color;

use crate::device::cpu::Cpu;
use crate::device::cpu::simd::Level;
use crate::device::cuda::Cuda;
use crate::device::cuda::driver::Driver;
#[cfg(feature = "emulator")]
use crate::device::cuda::emulator::Emulator;
use crate::device::{Device, threads};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::Architecture;
use crate::printable::{is_hidden, printable};

const EXAMPLES: &str = "\
Examples:
  See in a few minutes, offline, what fine-tuning does:
    retune demo
  Fine-tune a ResNet-18 on your own photos and classify a new one:
    retune fetch resnet18
    retune train photos --weights weights/resnet18-f37072fd.pth
    retune predict runs/1/model.safetensors new.jpg";

/// Fine-tune an ImageNet ResNet on a folder of images
#[derive(Parser)]
#[command(name = "retune", version, propagate_version = true, arg_required_else_help = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    global: GlobalArguments,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::DemoArguments),
    Train(Box<train::TrainArguments>),
    Eval(eval::EvalArguments),
    Predict(predict::PredictArguments),
    Fetch(fetch::FetchArguments),
    Convert(convert::ConvertArguments),
    Show(show::ShowArguments),
    Report(report::ReportArguments),
    Inspect(inspect::InspectArguments),
    Gradcheck(gradcheck::GradcheckArguments),
    Bench(bench::BenchArguments),
    Devices(devices::DevicesArguments),
    Completions(completions::CompletionsArguments),
    Man(man::ManArguments),
}

/// Options of every command.
#[derive(clap::Args)]
#[command(next_help_heading = "Global options")]
struct GlobalArguments {
    /// Device to use: auto, cpu, cuda, cuda:N or emulator
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    device: String,

    /// Numeric precision: fp32, tf32 (in convolutions) or bf16 (in convolutions and activations); the CPU supports only fp32
    /// [default: fp32, or that of the resumed run]
    #[arg(long, global = true)]
    precision: Option<Precision>,

    /// Number of compute threads [default: one per core]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,

    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,

    /// Print only results, warnings and errors
    #[arg(short, long, global = true)]
    quiet: bool,

    /// Print more details
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Precision {
    Fp32,
    Tf32,
    Bf16,
}

/// The upper limit of `--threads`: a typo must not start a million threads.
const MOST_THREADS: usize = 4096;

impl GlobalArguments {
    /// `--device` and `--precision` as they were given.
    fn device_words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.device != "auto" {
            words.extend(["--device".into(), self.device.clone()]);
        }
        if let Some(precision) = self.precision {
            words.extend(["--precision".into(), crate::device::Precision::from(precision).to_string()]);
        }
        words
    }

    /// Opens the device of `--device`, with `--threads`.
    fn open_device(&self) -> Result<Rc<dyn Device>> {
        self.open_device_in(self.precision())
    }

    /// Like [`GlobalArguments::open_device`], but a CUDA device uses `precision`.
    fn open_device_in(&self, precision: crate::device::Precision) -> Result<Rc<dyn Device>> {
        match self.open_driver()? {
            Some(driver) => Ok(Rc::new(Cuda::new(driver, precision)?)),
            None => self.open_cpu(),
        }
    }

    fn precision(&self) -> crate::device::Precision {
        self.precision.unwrap_or(Precision::Fp32).into()
    }

    /// Sets the number of threads and opens the driver of the requested device; `None` for the CPU.
    fn open_driver(&self) -> Result<Option<Box<dyn Driver>>> {
        if let Some(threads) = self.threads {
            if !(1..=MOST_THREADS).contains(&threads) {
                return Err(Error::usage(format!("--threads {threads}: expected 1 to {MOST_THREADS}")));
            }
            threads::set(threads)?;
        }
        match self.device.as_str() {
            "auto" => device::first_cuda(),
            "cpu" => Ok(None),
            "emulator" => Self::open_emulator().map(Some),
            name => match device::cuda_index(name) {
                Some(index) => device::open_cuda(name, index).map(Some),
                None => Err(Error::usage(format!("--device {name}: expected auto, cpu, cuda, cuda:N or emulator"))),
            },
        }
    }

    fn open_cpu(&self) -> Result<Rc<dyn Device>> {
        let precision = self.precision();
        if precision != crate::device::Precision::Fp32 {
            return Err(Error::usage(format!("--precision {precision}: the CPU supports only fp32"))
                .hint("remove --precision, or use a CUDA device"));
        }
        Level::wanted()?;
        Ok(Rc::new(Cpu))
    }

    #[cfg(feature = "emulator")]
    fn open_emulator() -> Result<Box<dyn Driver>> {
        let seed = match std::env::var("RETUNE_EMULATOR_SEED") {
            Ok(seed) => {
                seed.parse().map_err(|_| Error::usage(format!("RETUNE_EMULATOR_SEED={seed}: expected a number")))?
            }
            Err(_) => 0,
        };
        Ok(Box::new(Emulator::new(seed)?))
    }

    #[cfg(not(feature = "emulator"))]
    fn open_emulator() -> Result<Box<dyn Driver>> {
        Err(Error::new("--device emulator: this build has no emulator")
            .hint("build with `cargo build --release --features emulator`, which needs a C++ compiler"))
    }

    /// Prints a message that is not a result, unless `--quiet` is given.
    fn note(&self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    /// Whether to show a live progress line.
    fn shows_progress(&self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }
}

/// Prints a warning: a problem that does not stop the command.
fn warn(text: &str) {
    say(&format!("warning: {text}"));
}

/// Warns about images that a command skipped.
fn warn_of_skipped(images: usize) {
    warn(&match images {
        1 => "1 unreadable image was skipped".to_string(),
        _ => format!("{images} unreadable images were skipped"),
    });
}

/// Writes a line to standard error; what names in it hide is shown. `eprintln!` would panic where standard error is closed or full.
fn say(text: &str) {
    let text = printable(text);
    let text = if console::colors_enabled_stderr() { coloured(&text).into() } else { text };
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Colours the word that a line starts with, such as `error:`.
fn coloured(line: &str) -> String {
    let words = [("error:", Color::Red), ("warning:", Color::Yellow), ("hint:", Color::Cyan)];
    match words.iter().find_map(|&(word, colour)| Some((word, colour, line.strip_prefix(word)?))) {
        Some((word, colour, rest)) => format!("{}{rest}", console::style(word).fg(colour).bold().for_stderr()),
        None => line.into(),
    }
}

/// A size in the unit that suits it.
fn size(bytes: usize) -> String {
    match bytes >> 20 {
        0 => format!("{} KiB", bytes >> 10),
        mebibytes @ 0..1024 => format!("{mebibytes} MiB"),
        _ => format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64),
    }
}

/// The values of `--arch`: the names in the table of architectures.
fn architecture_names() -> PossibleValuesParser {
    PossibleValuesParser::new(Architecture::all().map(Architecture::name))
}

/// Prints a line of a result. Whatever names are in it, it is one line, and what they hide is shown.
fn print_result(line: &str) -> Result<()> {
    print_bytes(format!("{}\n", printable(line)).as_bytes())
}

/// Prints a result. A closed pipe (`retune inspect ... | head`) is not an error.
fn print_bytes(bytes: &[u8]) -> Result<()> {
    match std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a result as one line of JSON. Names are as they are, with JSON's escapes for hidden characters.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value).context(|| "cannot write JSON")?;
    // Outside strings, JSON has no hidden characters but those that it escapes itself.
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}")));
        } else {
            escaped.push(c);
        }
    }
    print_bytes(format!("{escaped}\n").as_bytes())
}

/// The whole command line, for completions and manual pages.
fn command_line() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Parses the command line and runs the command. Exit status: 0 success, 1 failure, 2 wrong usage, 128 and the number of
/// the signal if a signal ended it: 130 for Ctrl-C.
pub fn main() -> ExitCode {
    let Arguments { global, command } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(refusal) => return refuse(&refusal),
    };
    let result = match command {
        Command::Demo(arguments) => demo::run(&global, &arguments),
        Command::Train(arguments) => train::run(&global, &arguments),
        Command::Eval(arguments) => eval::run(&global, &arguments),
        Command::Predict(arguments) => predict::run(&global, &arguments),
        Command::Fetch(arguments) => fetch::run(&global, &arguments),
        Command::Convert(arguments) => convert::run(&global, &arguments),
        Command::Show(arguments) => show::run(&global, &arguments),
        Command::Report(arguments) => report::run(&global, &arguments),
        Command::Inspect(arguments) => inspect::run(&global, &arguments),
        Command::Gradcheck(arguments) => gradcheck::run(&global, &arguments),
        Command::Bench(arguments) => bench::run(&global, &arguments),
        Command::Devices(arguments) => devices::run(&global, &arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            if let (Some(details), true) = (error.details(), global.verbose) {
                details.lines().for_each(say);
            }
            say(&format!("error: {}", error.message()));
            if let Some(hint) = error.hint_text() {
                say(&format!("hint: {hint}"));
            }
            if error.details().is_some() && !global.verbose {
                say("hint: use --verbose for the full list");
            }
            ExitCode::from(match error.kind() {
                ErrorKind::Failure | ErrorKind::NotFinite => 1,
                ErrorKind::Usage => 2,
                ErrorKind::Interrupted => interruption::exit_status(),
            })
        }
    }
}

/// Prints the requested help, or an error about the arguments in the form of every other error.
fn refuse(refusal: &clap::Error) -> ExitCode {
    let whole_help = [
        ParseErrorKind::DisplayHelp,
        ParseErrorKind::DisplayVersion,
        ParseErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
    ];
    if whole_help.contains(&refusal.kind()) {
        // A closed pipe is not an error.
        let _ = refusal.print();
        return if refusal.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
    }
    let text = refusal.render().to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let (mut message, mut tips) = (Vec::new(), Vec::new());
    for line in lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information")) {
        match line.strip_prefix("tip: ") {
            Some(tip) => tips.push(tip),
            None => message.push(line),
        }
    }
    let command = std::env::args()
        .nth(1)
        .filter(|name| command_line().get_subcommands().any(|command| command.get_name() == name));
    let help = command.map_or("`retune --help`".to_string(), |command| format!("`retune {command} --help`"));
    let hint = if tips.is_empty() { format!("see {help}") } else { tips.join("; ") };
    say(&message.join(" "));
    say(&format!("hint: {hint}"));
    ExitCode::from(2)
}
