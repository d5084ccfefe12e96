//! The options of every command.

use std::io::IsTerminal;
use std::rc::Rc;

use clap::ValueEnum;

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
#[derive(clap::Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct GlobalArguments {
    /// Device to use: auto, cpu, cuda, cuda:N or emulator
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    pub(super) device: String,

    /// Numeric precision: fp32, tf32 (in convolutions) or bf16 (in convolutions and activations); the CPU supports only fp32
    /// [default: fp32, or that of the resumed run]
    #[arg(long, global = true)]
    pub(super) precision: Option<Precision>,

    /// Number of compute threads [default: one per core]
    #[arg(long, global = true, value_name = "N")]
    pub(super) threads: Option<usize>,

    /// Print the result as JSON
    #[arg(long, global = true)]
    pub(super) json: bool,

    /// Print only results, warnings and errors
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,

    /// Print more details
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub(super) verbose: bool,
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

impl GlobalArguments {
    /// Rejects values that make no sense, also for commands that do not use them.
    pub(super) fn check(&self) -> Result<()> {
        self.threads.map_or(Ok(()), |threads| check_threads("--threads", threads))
    }

    /// `--device` and `--precision` as they were given.
    pub(super) fn device_words(&self) -> Vec<String> {
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
