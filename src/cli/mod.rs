//! The command line: one file per command, with its arguments and its `run`. Results go to stdout, everything else to stderr.

mod bench;
mod completions;
mod convert;
mod demo;
mod device;
mod devices;
mod embed;
mod eval;
mod fetch;
mod global;
mod gradcheck;
mod images;
mod inspect;
mod interruption;
mod man;
mod output;
mod plain_words;
mod predict;
mod probe;
mod progress;
mod recipe_arguments;
mod recipes;
mod report;
mod shell;
mod show;
mod sweep;
mod sweep_report;
mod testing;
mod train;
mod training;
mod training_display;
mod tried;
mod url;
mod weights;

use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::error::{ContextKind, ContextValue, ErrorKind as ParseErrorKind};
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use self::global::{GlobalArguments, check_batch_size, check_threads};
use self::output::{print_bytes, print_json, print_result, say, size, warn, warn_of_skipped};
use crate::error::{ErrorKind, Result};

const EXAMPLES: &str = "\
Examples:
  See in a few minutes, offline, what fine-tuning does:
    retune demo
  Fine-tune a ResNet-18 on your own photos and classify a new one:
    retune train photos
    retune predict runs/1 new.jpg";

/// Fine-tune an ImageNet ResNet on a folder of images
#[derive(Parser)]
#[command(name = "retune", version, propagate_version = true, arg_required_else_help = true, args_override_self = true, after_help = EXAMPLES)]
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
    Embed(embed::EmbedArguments),
    Fetch(fetch::FetchArguments),
    Convert(convert::ConvertArguments),
    Show(show::ShowArguments),
    Report(report::ReportArguments),
    Recipes(recipes::RecipesArguments),
    Inspect(inspect::InspectArguments),
    Gradcheck(gradcheck::GradcheckArguments),
    Bench(bench::BenchArguments),
    Devices(devices::DevicesArguments),
    #[command(hide = true)]
    Probe(probe::ProbeArguments),
    Completions(completions::CompletionsArguments),
    Man(man::ManArguments),
}

/// Parses the command line and runs the command. Exit status: 0 success, 1 failure, 2 wrong usage, 128 and the number of
/// the signal if a signal ended it: 130 for Ctrl-C.
pub fn main() -> ExitCode {
    let matches = command_line().try_get_matches();
    let parsed = matches.and_then(|matches| Ok((Arguments::from_arg_matches(&matches)?, matches)));
    let (Arguments { global, command }, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(refusal) => return refuse(&refusal),
    };
    let ready = interruption::survive_large_files().and_then(|()| check(&global, &matches));
    let result = ready.and_then(|()| match command {
        Command::Demo(arguments) => demo::run(&global, &arguments),
        Command::Train(arguments) if sweep::is_asked_for(&arguments) => sweep::run(&global, &arguments),
        Command::Train(arguments) => train::run(&global, &arguments),
        Command::Eval(arguments) => eval::run(&global, &arguments),
        Command::Predict(arguments) => predict::run(&global, &arguments),
        Command::Embed(arguments) => embed::run(&global, &arguments),
        Command::Fetch(arguments) => fetch::run(&global, &arguments),
        Command::Convert(arguments) => convert::run(&global, &arguments),
        Command::Show(arguments) => show::run(&global, &arguments),
        Command::Report(arguments) => report::run(&global, &arguments),
        Command::Recipes(arguments) => recipes::run(&global, &arguments),
        Command::Inspect(arguments) => inspect::run(&global, &arguments),
        Command::Gradcheck(arguments) => gradcheck::run(&global, &arguments),
        Command::Bench(arguments) => bench::run(&global, &arguments),
        Command::Devices(arguments) => devices::run(&global, &arguments),
        Command::Probe(arguments) => probe::run(&global, &arguments),
        Command::Completions(arguments) => completions::run(&global, &arguments, command_line()),
        Command::Man(arguments) => man::run(&global, &arguments, command_line()),
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            if let (Some(details), true) = (error.details(), global.verbose) {
                details.lines().for_each(say);
            }
            say(&format!("error: {}", error.message()));
            let more = (error.details().is_some() && !global.verbose).then_some("--verbose prints the full list");
            let hints: Vec<&str> = error.hint_text().into_iter().chain(more).collect();
            if !hints.is_empty() {
                say(&format!("hint: {}", hints.join("; ")));
            }
            ExitCode::from(match error.kind() {
                ErrorKind::Failure | ErrorKind::NotFinite => 1,
                ErrorKind::Usage => 2,
                ErrorKind::Interrupted => interruption::exit_status(),
            })
        }
    }
}

/// The whole command line. Only it knows the names of all commands, of which `man` takes one.
fn command_line() -> clap::Command {
    // A value such as -1 gets an error about its range, not about an unknown option.
    let accept = |argument: clap::Arg| match argument.get_long().is_some() && argument.get_action().takes_values() {
        true => argument.allow_negative_numbers(true),
        false => argument,
    };
    let root = Arguments::command().mut_args(accept).mut_subcommands(|command| command.mut_args(accept));
    let shown = root.get_subcommands().filter(|command| !command.is_hide_set());
    let names = PossibleValuesParser::new(shown.map(|command| command.get_name().to_string()).collect::<Vec<_>>());
    root.mut_subcommand("man", |man| man.mut_arg("command", |command| command.value_parser(names)))
}

/// Rejects arguments that no command accepts.
fn check(global: &GlobalArguments, matches: &ArgMatches) -> Result<()> {
    global.check()?;
    matches.subcommand().map_or(Ok(()), |(_, arguments)| url::refuse_urls(arguments))
}

/// The commands that have the option that this one lacks.
fn elsewhere(refusal: &clap::Error) -> Option<String> {
    let ContextValue::String(option) = refusal.get(ContextKind::InvalidArg)? else { return None };
    let name = option.strip_prefix("--").filter(|_| refusal.kind() == ParseErrorKind::UnknownArgument)?;
    let root = command_line();
    let has = |command: &clap::Command| command.get_arguments().any(|one| one.get_long() == Some(name));
    let having = root.get_subcommands().filter(|command| !command.is_hide_set() && has(command));
    let commands: Vec<String> = having.map(|command| format!("`retune {}`", command.get_name())).collect();
    (!commands.is_empty()).then(|| format!("{option} is an option of {}", commands.join(", ")))
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
    // Such words are rarely meant as values.
    tips.retain(|tip| !tip.starts_with("to pass "));
    let hint = match tips.is_empty() {
        true => elsewhere(refusal).unwrap_or_else(|| format!("see {help}")),
        false => tips.join("; "),
    };
    say(&plain_words::in_plain_words(message.join(" ")));
    say(&format!("hint: {hint}"));
    ExitCode::from(2)
}
