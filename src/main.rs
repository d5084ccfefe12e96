//! The command-line program: parses, runs one command, and turns its result into an exit status.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    retune::cli::main()
}
