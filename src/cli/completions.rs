//! `retune completions`

use std::process::ExitCode;

use clap_complete::Shell;

use super::{GlobalArguments, print_bytes};
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

/// `root` is the whole command line.
pub fn run(global: &GlobalArguments, arguments: &CompletionsArguments, mut root: clap::Command) -> Result<ExitCode> {
    global.refuse_json("a completion script")?;
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut root, "retune", &mut script);
    print_bytes(&script)?;
    Ok(ExitCode::SUCCESS)
}
