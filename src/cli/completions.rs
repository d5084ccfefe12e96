//! `retune completions`

use std::process::ExitCode;

use clap_complete::Shell;

use super::{command_line, print_bytes};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  retune completions bash > ~/.local/share/bash-completion/completions/retune
  retune completions zsh > ~/.zfunc/_retune
  retune completions fish > ~/.config/fish/completions/retune.fish";

/// Generate shell completions
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct CompletionsArguments {
    /// Shell to generate completions for
    shell: Shell,
}

pub fn run(arguments: &CompletionsArguments) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command_line(), "retune", &mut script);
    print_bytes(&script)?;
    Ok(ExitCode::SUCCESS)
}
