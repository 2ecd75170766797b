//! `reground records`: what a running server wrote down.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::remote::{PageArgs, Remote, RemoteArgs};

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(super) struct RecordsArgs {
    #[command(flatten)]
    remote: RemoteArgs,
    #[command(subcommand)]
    command: RecordsCommand,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
enum RecordsCommand {
    /// List records.
    List {
        /// How far pairs are made of them: waiting, done, skipped.
        #[arg(long)]
        bootstrap: Option<String>,
        /// Answered by this generation.
        #[arg(long)]
        generation: Option<String>,
        /// Came with the API key of this name.
        #[arg(long)]
        key: Option<String>,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Show a record with its feedback and its pairs.
    Show {
        /// The record's id, which is the completion's.
        id: String,
    },
    /// Delete a record with its feedback, pairs and images; names the adapters that were trained on it.
    Delete {
        /// The record's id.
        id: String,
    },
}

/// Asks the server and prints what it says.
pub(super) fn run(arguments: &RecordsArgs) -> Result<ExitCode> {
    let remote = Remote::new(&arguments.remote)?;
    let answer = match &arguments.command {
        RecordsCommand::List { bootstrap, generation, key, page } => {
            let filters = [("bootstrap", bootstrap.clone()), ("generation", generation.clone()), ("key", key.clone())];
            remote.page(&["records"], page, &filters)
        }
        RecordsCommand::Show { id } => remote.get(&["records", id]),
        RecordsCommand::Delete { id } => remote.delete(&["records", id]),
    }?;
    super::print(&serde_json::to_string_pretty(&answer)?)
}
