//! The options of every command.

use std::ffi::OsStr;
use std::fmt;
use std::io::IsTerminal;
use std::rc::Rc;

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use super::device;
use super::output::say;
use crate::device::cpu::Cpu;
use crate::device::cpu::simd::Level;
use crate::device::cuda::Cuda;
use crate::device::cuda::driver::Driver;
#[cfg(feature = "emulator")]
use crate::device::cuda::emulator::Emulator;
use crate::device::{Device, threads};
use crate::error::{Error, Result};

/// Options of every command.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "Global options")]
pub(super) struct GlobalArguments {
    /// Device to use: auto, cpu, cuda, cuda:N or emulator
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE", value_parser = DeviceParser,
          hide_possible_values = true)]
    pub(super) device: DeviceName,

    /// Numeric precision: fp32, tf32 (in convolutions) or bf16 (in convolutions and activations); the CPU supports only fp32
    /// [default: fp32, or that of the resumed run]
    #[arg(long, global = true)]
    pub(super) precision: Option<Precision>,

    /// Number of compute threads [default: one per core]
    #[arg(long, global = true, value_name = "N")]
    pub(super) threads: Option<usize>,

    /// Print the result as one JSON value
    #[arg(long, global = true)]
    pub(super) json: bool,

    /// Print only results, warnings and errors
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,

    /// Print more details
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub(super) verbose: bool,
}

/// The value of `--device`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DeviceName {
    Auto,
    Cpu,
    /// Its number, and whether it was given.
    Cuda(usize, bool),
    Emulator,
}

impl fmt::Display for DeviceName {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => text.write_str("auto"),
            Self::Cpu => text.write_str("cpu"),
            Self::Cuda(index, true) => write!(text, "cuda:{index}"),
            Self::Cuda(_, false) => text.write_str("cuda"),
            Self::Emulator => text.write_str("emulator"),
        }
    }
}

impl DeviceName {
    /// Those without a number, which completions offer.
    const OFFERED: [Self; 4] = [Self::Auto, Self::Cpu, Self::Cuda(0, false), Self::Emulator];
}

#[derive(Clone)]
struct DeviceParser;

impl TypedValueParser for DeviceParser {
    type Value = DeviceName;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<DeviceName, clap::Error> {
        if let Some(index) = value.to_str().and_then(device::numbered_gpu) {
            return Ok(DeviceName::Cuda(index, true));
        }
        let offered = PossibleValuesParser::new(self.possible_values().into_iter().flatten());
        let name = offered.parse_ref(command, argument, value)?;
        let found = DeviceName::OFFERED.into_iter().find(|device| device.to_string() == name);
        found.ok_or_else(|| clap::Error::new(clap::error::ErrorKind::InvalidValue))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(DeviceName::OFFERED.iter().map(|device| PossibleValue::new(device.to_string()))))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Precision {
    Fp32,
    Tf32,
    Bf16,
}

impl From<Precision> for crate::device::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Self::Fp32,
            Precision::Tf32 => Self::Tf32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

/// The upper limit of `--threads` and `--workers`: a typo must not start thousands of threads.
const MOST_THREADS: usize = 512;

/// Rejects a number of threads that no machine needs.
pub(super) fn check_threads(flag: &str, threads: usize) -> Result<()> {
    match (1..=MOST_THREADS).contains(&threads) {
        true => Ok(()),
        false => Err(Error::usage(format!("{flag} {threads}: expected 1 to {MOST_THREADS}"))),
    }
}

/// The upper limit of `--batch-size`.
const LARGEST_BATCH: usize = 1_000_000;

/// Rejects a batch size that makes no sense.
pub(super) fn check_batch_size(batch_size: usize) -> Result<()> {
    match batch_size {
        0 => Err(Error::usage("--batch-size 0: expected at least 1")),
        1..=LARGEST_BATCH => Ok(()),
        _ => Err(Error::usage(format!("--batch-size {batch_size}: expected at most {LARGEST_BATCH}"))),
    }
}

impl GlobalArguments {
    /// Rejects values that make no sense, also for commands that do not use them.
    pub(super) fn check(&self) -> Result<()> {
        self.threads.map_or(Ok(()), |threads| check_threads("--threads", threads))
    }

    /// `--device` and `--precision` as they were given.
    pub(super) fn device_words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.device != DeviceName::Auto {
            words.extend(["--device".into(), self.device.to_string()]);
        }
        if let Some(precision) = self.precision {
            words.extend(["--precision".into(), crate::device::Precision::from(precision).to_string()]);
        }
        words
    }

    /// Opens the device of `--device`, with `--threads`.
    pub(super) fn open_device(&self) -> Result<Rc<dyn Device>> {
        self.open_device_in(self.precision())
    }

    /// Like [`GlobalArguments::open_device`], but a CUDA device uses `precision`.
    pub(super) fn open_device_in(&self, precision: crate::device::Precision) -> Result<Rc<dyn Device>> {
        match self.open_driver()? {
            Some(driver) => Ok(Rc::new(Cuda::new(driver, precision)?)),
            None => self.open_cpu(),
        }
    }

    pub(super) fn precision(&self) -> crate::device::Precision {
        self.precision.unwrap_or(Precision::Fp32).into()
    }

    /// Sets the number of threads and opens the driver of the requested device; `None` for the CPU.
    pub(super) fn open_driver(&self) -> Result<Option<Box<dyn Driver>>> {
        if let Some(threads) = self.threads {
            threads::set(threads)?;
        }
        match &self.device {
            DeviceName::Auto => device::first_cuda(),
            DeviceName::Cpu => Ok(None),
            DeviceName::Emulator => Self::open_emulator().map(Some),
            name @ DeviceName::Cuda(index, _) => device::open_cuda(&name.to_string(), *index).map(Some),
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

    /// Refuses `--json` where the output is no result.
    pub(super) fn refuse_json(&self, output: &str) -> Result<()> {
        match self.json {
            true => Err(Error::usage(format!("--json: {output} cannot be printed as JSON")).hint("leave --json out")),
            false => Ok(()),
        }
    }

    /// Prints a message that is not a result, unless `--quiet` is given.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    /// Whether to show a live progress line.
    pub(super) fn shows_progress(&self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }
}
