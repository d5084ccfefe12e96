//! Stopping a run: the first signal asks it to save a checkpoint and end, the second ends the program at once.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::say;
use crate::error::{Context, Result};

/// What Ctrl-C sends.
const SIGINT: u8 = 2;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// The number of the first signal.
static SIGNAL: AtomicU8 = AtomicU8::new(SIGINT);

/// A flag that the first Ctrl-C, SIGTERM or SIGHUP sets.
pub fn interruption() -> Result<&'static AtomicBool> {
    listen().context(|| "cannot listen for signals")?;
    Ok(&INTERRUPTED)
}

/// The exit status of a command that was interrupted, as of a program that the signal ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for
/// SIGHUP.
pub fn exit_status() -> u8 {
    128 + SIGNAL.load(Ordering::Relaxed)
}

fn receive(signal: u8) {
    if INTERRUPTED.load(Ordering::Relaxed) {
        std::process::exit(i32::from(128 + signal));
    }
    SIGNAL.store(signal, Ordering::Relaxed);
    INTERRUPTED.store(true, Ordering::Relaxed);
    say("");
    let at_once = if signal == SIGINT { "press Ctrl-C again" } else { "send the signal again" };
    say(&format!("stopping after this step; {at_once} to stop at once"));
}

/// Has a write beyond the limit on file sizes fail with an error, which a command reports. Without this, a signal would end the program.
pub fn survive_large_files() -> Result<()> {
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default())
        .context(|| "cannot listen for signals")?;
    Ok(())
}

#[cfg(unix)]
fn listen() -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut wanted = vec![SIGINT, SIGTERM];
    // `nohup` has it ignored, so that a run goes on when its terminal is closed.
    if !is_ignored(SIGHUP) {
        wanted.push(SIGHUP);
    }
    let mut signals = signal_hook::iterator::Signals::new(wanted)?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            receive(u8::try_from(signal).unwrap_or(self::SIGINT));
        }
    });
    Ok(())
}

/// Whether the program was started with a signal ignored. Only Linux tells without a call that is unsafe.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(not(unix))]
fn listen() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| receive(SIGINT))
}
