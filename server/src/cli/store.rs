//! `reground store`: the data directory, without a server.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use reground_learner::store::Store;
use serde::Serialize;
use serde_json::json;

use super::{print, refuse};
use crate::config::{Config, ConfigError, Loader};

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(super) struct StoreArgs {
    /// Configuration file that names the data directory; without it, config.toml in the working directory if there is one.
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory; without it, that of the configuration.
    #[arg(long, global = true, value_name = "DIRECTORY")]
    data: Option<PathBuf>,
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
enum StoreCommand {
    /// Read every row and every blob, and say what is wrong; exit code 1 if anything is.
    Verify {
        /// Set index entries right. Damaged rows and blobs are named either way and stay for people to decide about.
        #[arg(long)]
        repair: bool,
    },
    /// Write the files anew without what was overwritten or deleted; needs space for a second copy of `store/`.
    Compact,
    /// Write everything into a new directory: rows.jsonl, blobs/, adapters/, runs/; exit code 1 if something is damaged and left out.
    Export {
        /// The directory; it must be empty or not be there.
        directory: PathBuf,
    },
    /// Take in what `export` wrote. What is there already must be the same.
    Import {
        /// The directory that `export` wrote.
        directory: PathBuf,
    },
    /// Say how many rows, blobs and bytes there are.
    Stats,
}

/// Works on the data directory, which no server may have open.
pub(super) fn run(arguments: StoreArgs) -> Result<ExitCode> {
    let config = match load(&arguments) {
        Ok(config) => config,
        Err(error) => return Ok(refuse(&error)),
    };
    let directory = &config.data.dir;
    if !matches!(arguments.command, StoreCommand::Import { .. }) {
        // Opening would make one where a wrong path was given.
        let there = ["store", "store.old"].iter().any(|name| directory.join(name).is_dir());
        ensure!(there, "there is no store in {}; --data names the data directory", directory.display());
    }
    let options = config.data.options();
    let store = Store::open(directory, options)?;
    match arguments.command {
        StoreCommand::Verify { repair } => {
            let found = store.verify(repair)?;
            // Index entries that were set right are told once more, and are no reason to fail.
            tell(&found, found.problems.len() == found.repaired)
        }
        StoreCommand::Compact => tell(&store.compact()?, true),
        StoreCommand::Export { directory } => {
            let written = store.export(&directory)?;
            tell(&written, written.left_out.is_empty())
        }
        StoreCommand::Import { directory } => {
            let taken = store.import(&directory).with_context(|| format!("cannot import {}", directory.display()))?;
            tell(&taken, true)
        }
        StoreCommand::Stats => {
            let stats = store.stats()?;
            tell(&json!({"stats": stats, "record_bytes": store.record_bytes()?}), true)
        }
    }
}

fn load(arguments: &StoreArgs) -> Result<Config, ConfigError> {
    Loader::new(arguments.config.as_deref())?.flag("data.dir", arguments.data.clone()).load()
}

fn tell(result: &impl Serialize, sound: bool) -> Result<ExitCode> {
    let printed = print(&serde_json::to_string_pretty(result)?)?;
    Ok(if sound { printed } else { ExitCode::FAILURE })
}
