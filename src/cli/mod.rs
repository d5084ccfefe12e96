//! The command line: one file a command, with its arguments and its `run`. Results go to stdout, all else to stderr.

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
mod man;
mod predict;
mod progress;
mod report;
mod show;
mod train;
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

const FIRST_STEPS: &str = "\
First steps:
  retune demo                                  what fine-tuning does, in a few minutes, offline
  retune fetch resnet18                        ImageNet weights to begin with
  retune train photos --weights weights/resnet18-f37072fd.pth
  retune predict runs/1/model.safetensors new.jpg";

/// Fine-tunes an ImageNet ResNet on a folder of pictures.
#[derive(Parser)]
#[command(name = "retune", version, propagate_version = true, arg_required_else_help = true, after_help = FIRST_STEPS)]
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

/// What every command takes.
#[derive(clap::Args)]
#[command(next_help_heading = "Options of every command")]
struct GlobalArguments {
    /// Where to compute: auto, cpu, cuda, cuda:N or emulator
    #[arg(long, global = true, default_value = "auto", value_name = "NAME")]
    device: String,

    /// Number format: fp32, tf32 (of what convolutions multiply) or bf16 (of activations too); the CPU has fp32
    /// [default: fp32, or that of the run that is resumed]
    #[arg(long, global = true)]
    precision: Option<Precision>,

    /// Threads that compute [default: one a core]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,

    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,

    /// Say less: no progress, no notes; warnings and results stay
    #[arg(short, long, global = true)]
    quiet: bool,

    /// Say more
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Precision {
    Fp32,
    Tf32,
    Bf16,
}

/// More threads than any machine has cores; a slip of the finger shall not start a million.
const MOST_THREADS: usize = 4096;

impl GlobalArguments {
    /// The device that was asked for, with its threads.
    fn open_device(&self) -> Result<Rc<dyn Device>> {
        self.open_device_in(self.precision())
    }

    /// As [`GlobalArguments::open_device`], but in `precision` if it is not the CPU.
    fn open_device_in(&self, precision: crate::device::Precision) -> Result<Rc<dyn Device>> {
        match self.open_driver()? {
            Some(driver) => Ok(Rc::new(Cuda::new(driver, precision)?)),
            None => self.open_cpu(),
        }
    }

    fn precision(&self) -> crate::device::Precision {
        self.precision.unwrap_or(Precision::Fp32).into()
    }

    /// Who runs kernels on the device that was asked for, and its threads; none for the CPU.
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
            return Err(Error::usage(format!("--precision {precision}: the CPU engine computes in fp32 only"))
                .hint("leave --precision out, or use a CUDA device"));
        }
        Level::wanted()?;
        Ok(Rc::new(Cpu))
    }

    #[cfg(feature = "emulator")]
    fn open_emulator() -> Result<Box<dyn Driver>> {
        let seed = match std::env::var("RETUNE_EMULATOR_SEED") {
            Ok(seed) => seed.parse().map_err(|_| {
                Error::usage(format!("RETUNE_EMULATOR_SEED={seed}: expected a number, which chooses the schedule"))
            })?,
            Err(_) => 0,
        };
        Ok(Box::new(Emulator::new(seed)?))
    }

    #[cfg(not(feature = "emulator"))]
    fn open_emulator() -> Result<Box<dyn Driver>> {
        Err(Error::new("--device emulator: this build has no emulator")
            .hint("build with `cargo build --release --features emulator`, which needs a C++ compiler"))
    }

    /// Tells the user something that is not a result.
    fn note(&self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    /// Whether a live progress line makes sense.
    fn shows_progress(&self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }
}

/// Tells the user about something that is wrong but was dealt with.
fn warn(text: &str) {
    say(&format!("warning: {text}"));
}

/// Tells how many pictures a command went without.
fn warn_of_left_out(pictures: usize) {
    warn(&match pictures {
        1 => "1 picture could not be read and was left out".to_string(),
        _ => format!("{pictures} pictures could not be read and were left out"),
    });
}

/// Writes a line to standard error. `eprintln!` would panic where that is closed or full, and end the work.
fn say(text: &str) {
    let text = if console::colors_enabled_stderr() { coloured(text) } else { text.into() };
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The words that lines of this kind begin with, in the colour that says how serious it is.
fn coloured(text: &str) -> String {
    let words = [("error:", Color::Red), ("warning:", Color::Yellow), ("hint:", Color::Cyan)];
    let lines = text.lines().map(|line| {
        match words.iter().find_map(|&(word, colour)| Some((word, colour, line.strip_prefix(word)?))) {
            Some((word, colour, rest)) => format!("{}{rest}", console::style(word).fg(colour).bold().for_stderr()),
            None => line.into(),
        }
    });
    lines.collect::<Vec<String>>().join("\n")
}

/// Bytes as people say them.
fn size(bytes: usize) -> String {
    match bytes >> 20 {
        0 => format!("{} KiB", bytes >> 10),
        mebibytes @ 0..1024 => format!("{mebibytes} MiB"),
        _ => format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64),
    }
}

/// What `--arch` takes: the names of the table of architectures.
fn architecture_names() -> PossibleValuesParser {
    PossibleValuesParser::new(Architecture::all().map(Architecture::name))
}

/// Prints a result, and ends the line.
fn print_result(text: &str) -> Result<()> {
    print_bytes(format!("{text}\n").as_bytes())
}

/// Prints a result as it is. A reader that has gone away (`retune inspect ... | head`) is no error.
fn print_bytes(bytes: &[u8]) -> Result<()> {
    match std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a result as JSON, one value on one line.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print_result(&serde_json::to_string(value).context(|| "cannot write JSON")?)
}

/// The whole command line as clap knows it.
fn command_line() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Parses the command line, runs the command and says how it ended: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
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
            let mut tip = "";
            match (error.details(), global.verbose) {
                (Some(details), true) => say(details.trim_end()),
                (Some(_), false) => tip = "\nhint: --verbose lists everything",
                (None, _) => {}
            }
            say(&format!("error: {error}{tip}"));
            ExitCode::from(match error.kind() {
                ErrorKind::Failure => 1,
                ErrorKind::Usage => 2,
                ErrorKind::Interrupted => 130,
            })
        }
    }
}

/// Prints the help that was asked for, or what is wrong with the arguments in the form of every other error.
fn refuse(refusal: &clap::Error) -> ExitCode {
    let whole_help = [
        ParseErrorKind::DisplayHelp,
        ParseErrorKind::DisplayVersion,
        ParseErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
    ];
    if whole_help.contains(&refusal.kind()) {
        // A reader that has gone away is no error.
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
    say(&format!("{}\nhint: {hint}", message.join(" ")));
    ExitCode::from(2)
}
