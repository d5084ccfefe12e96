//! `retune man`

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Command;
use clap_mangen::Man;

use super::{GlobalArguments, print_bytes, print_json, print_result};
use crate::error::{Context, Error, Result};
use crate::file::write_atomically;

const EXAMPLES: &str = "\
Examples:
  retune man train | man -l -
  retune man --out ~/.local/share/man/man1";

/// Print the manual page of a command, or write all manual pages
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ManArguments {
    /// Command to print the page of [default: retune itself]
    command: Option<String>,

    /// Write the pages of all commands to this folder
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    out: Option<PathBuf>,
}

/// `root` is the whole command line.
pub fn run(global: &GlobalArguments, arguments: &ManArguments, root: Command) -> Result<ExitCode> {
    let mut root = root.disable_help_subcommand(true);
    root.build();
    let commands = || std::iter::once(&root).chain(root.get_subcommands().filter(|command| !command.is_hide_set()));
    if let Some(folder) = &arguments.out {
        std::fs::create_dir_all(folder).context(|| format!("cannot create the folder {}", folder.display()))?;
        let mut pages = Vec::new();
        for command in commands() {
            let (name, page) = page(command)?;
            let path = folder.join(format!("{name}.1"));
            write_atomically(&path, |writer| writer.write_all(&page))?;
            pages.push(path.display().to_string());
        }
        match global.json {
            true => print_json(&serde_json::json!({ "pages": pages }))?,
            false => pages.iter().try_for_each(|path| print_result(path))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    global.refuse_json("a manual page")?;
    let name = arguments.command.as_deref().unwrap_or("retune");
    let found = commands().find(|command| command.get_name() == name);
    let found = found.ok_or_else(|| Error::usage(format!("there is no command {name}")))?;
    print_bytes(&page(found)?.1)?;
    Ok(ExitCode::SUCCESS)
}

/// A manual page and its name, such as `retune-train`.
fn page(command: &Command) -> Result<(String, Vec<u8>)> {
    let name = match command.get_name() {
        "retune" => "retune".to_string(),
        name => format!("retune-{name}"),
    };
    let mut page = Vec::new();
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .source(concat!("retune ", env!("CARGO_PKG_VERSION")))
        .manual("retune");
    man.render(&mut page).context(|| format!("cannot write the manual page {name}"))?;
    Ok((name, page))
}
