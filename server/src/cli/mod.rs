//! The command line: one file a command.
//!
//! Exit codes: 0 done · 1 failed while running · 2 wrong command line or configuration, nothing was started.
//!
//! # Layout
//! - [`run`]: what the binary does.
//! - [`settings`]: the flags that set configuration keys, shared by the commands that read the configuration.
//! - [`logging`]: where log lines go.
//! - [`mod@serve`], [`check_config`], [`openapi`], [`train`], [`mod@eval`], [`mod@store`], [`adapters`], [`records`], [`pairs`],
//!   [`runs`], [`mod@demo`]: the commands; [`remote`]: the server that some of them talk to.

mod adapters;
mod check_config;
mod demo;
mod eval;
mod logging;
mod openapi;
mod pairs;
mod records;
mod remote;
mod runs;
mod serve;
mod settings;
mod store;
mod train;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::ConfigError;
use adapters::AdaptersArgs;
use demo::DemoArgs;
use eval::EvalArgs;
use pairs::PairsArgs;
use records::RecordsArgs;
use runs::RunsArgs;
use settings::SettingsArgs;
use store::StoreArgs;
use train::TrainArgs;

/// Wrong command line or configuration; clap uses the same for its own errors.
const USAGE: u8 = 2;

/// An OpenAI-compatible inference server for multimodal models that learns from what it serves.
///
/// Without a command it serves, and without a configuration it serves the model inside the binary.
#[derive(Debug, Parser)]
#[command(name = "reground", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: SettingsArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve (what happens without a command, too).
    Serve(SettingsArgs),
    /// Print the configuration that these flags, the environment and the file give, as TOML; or what is wrong with it.
    CheckConfig(SettingsArgs),
    /// Print the description of the HTTP API as OpenAPI 3.1 JSON.
    Openapi,
    /// The adapters of a running server: list, import, activate, canary, rollback, remove.
    Adapters(AdaptersArgs),
    /// What a running server wrote down: list, show, delete.
    Records(RecordsArgs),
    /// The pairs of a running server: list, show, review, export.
    Pairs(PairsArgs),
    /// The fine-tuning runs of a running server: list, show, start, cancel, pause, resume, events.
    Runs(RunsArgs),
    /// Show the whole loop on the built-in model: ask, correct, train, measure, roll back.
    Demo(DemoArgs),
    /// Train one run, or go on with it, without a server.
    Train(TrainArgs),
    /// Measure a model, with or without an adapter, on evaluation sets, without a server.
    Eval(Box<EvalArgs>),
    /// Look a data directory over, compact it, or take it along; no server may have it open.
    Store(StoreArgs),
}

/// Does what the command line asks for. This is all that `main` calls.
///
/// # Errors
/// The server failed while running, or output could not be written. What is wrong with the command line or the
/// configuration is printed here and becomes an exit code.
pub fn run() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(settings) => serve::run(settings),
        Command::CheckConfig(settings) => check_config::run(settings),
        Command::Openapi => openapi::run(),
        Command::Adapters(arguments) => adapters::run(&arguments),
        Command::Records(arguments) => records::run(&arguments),
        Command::Pairs(arguments) => pairs::run(&arguments),
        Command::Runs(arguments) => runs::run(&arguments),
        Command::Demo(arguments) => demo::run(arguments),
        Command::Train(arguments) => train::run(&arguments),
        Command::Eval(arguments) => eval::run(*arguments),
        Command::Store(arguments) => store::run(arguments),
    }
}

/// Reports a wrong configuration.
fn refuse(error: &ConfigError) -> ExitCode {
    // With standard error closed there is nobody left to tell; the exit code still does.
    let _ = writeln!(io::stderr(), "error: {error}");
    ExitCode::from(USAGE)
}

/// Writes a command's result. A reader that has seen enough (`reground openapi | head`) is no error.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serving_needs_no_command() {
        let cli = parse("reground --port 9000 --model org/name").unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.serve, SettingsArgs { port: Some(9000), model: Some("org/name".into()), ..Default::default() });
        let Some(Command::Serve(serve)) = parse("reground serve --host ::1 --device cuda:1").unwrap().command else {
            panic!("no serve");
        };
        assert_eq!(serve.bind.unwrap().to_string(), "::1");
        assert_eq!(serve.device.as_deref(), Some("cuda:1"));
    }

    #[test]
    fn other_commands_parse() {
        let check = parse("reground check-config --config x.toml").unwrap().command;
        assert!(matches!(check, Some(Command::CheckConfig(SettingsArgs { config: Some(_), .. }))));
        assert!(matches!(parse("reground openapi").unwrap().command, Some(Command::Openapi)));
        let line = "reground eval --model m --adapter a --set one.jsonl --set two.jsonl --pope 3 --json";
        let Some(Command::Eval(eval)) = parse(line).unwrap().command else {
            panic!("no eval");
        };
        assert_eq!(eval.sets, ["one.jsonl", "two.jsonl"].map(std::path::PathBuf::from));
        assert!((eval.pope, eval.json, eval.noise) == (3, true, 900.0));
    }

    #[test]
    fn a_wrong_command_line_is_refused_by_name() {
        for (line, named) in [
            ("reground --prot 1", "--prot"),
            ("reground --port 70000", "70000"),
            ("reground --bind here", "here"),
            ("reground fly", "fly"),
            ("reground --port 1 openapi", "--port"),
            ("reground openapi --port 1", "--port"),
            ("reground store", "verify"),
            ("reground store export", "DIRECTORY"),
            ("reground train", "--run"),
            ("reground eval --model m", "--set"),
            ("reground eval --set s.jsonl", "--model"),
            ("reground eval --model m --set s.jsonl --synonyms n.txt --pocket-captions", "--synonyms"),
            ("reground train --run r --images pictures", "--import"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.to_string().contains(named), "{line}: {error}");
            assert_eq!(error.exit_code(), i32::from(USAGE), "{line}");
        }
    }
}
