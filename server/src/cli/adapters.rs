//! `reground adapters`: the adapters of a running server.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::remote::{Remote, RemoteArgs};

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(super) struct AdaptersArgs {
    #[command(flatten)]
    remote: RemoteArgs,
    #[command(subcommand)]
    command: AdaptersCommand,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
enum AdaptersCommand {
    /// List the adapters and who answers.
    List,
    /// Show an adapter.
    Show {
        /// The adapter's id.
        id: String,
    },
    /// Take in a PEFT directory below the server's model.adapter_root. Traffic does not change.
    Import {
        /// The directory, relative to model.adapter_root.
        path: String,
    },
    /// Make an adapter live, or `base`.
    Activate {
        /// The adapter's id, or `base`.
        id: String,
        #[command(flatten)]
        expected: Expected,
    },
    /// Give a share of the callers an adapter; 0 ends it.
    Canary {
        /// The adapter's id.
        id: String,
        /// Percent of the callers, 0 to 99.
        percent: u8,
        #[command(flatten)]
        expected: Expected,
    },
    /// Have an adapter answer a share of the queries a second time, for the counters alone; 0 ends it.
    Shadow {
        /// The adapter's id.
        id: String,
        /// Percent of the queries, 0 to 100.
        percent: u8,
        #[command(flatten)]
        expected: Expected,
    },
    /// Keep the live generation: nothing takes its place by itself.
    Pin {
        /// Its id.
        id: String,
        #[command(flatten)]
        expected: Expected,
    },
    /// End that.
    Unpin {
        /// Its id.
        id: String,
        #[command(flatten)]
        expected: Expected,
    },
    /// Go back to what was live before.
    Rollback {
        #[command(flatten)]
        expected: Expected,
    },
    /// Remove an adapter that is not in use.
    Remove {
        /// The adapter's id.
        id: String,
    },
    /// List who changed the route, and when.
    Changes,
}

#[derive(Clone, Debug, PartialEq, Eq, Args)]
struct Expected {
    /// Change nothing unless this generation is live.
    #[arg(long = "expected", value_name = "GENERATION")]
    generation: Option<String>,
}

impl Expected {
    fn body(&self) -> Value {
        json!({"expected_generation": self.generation})
    }

    fn with(&self, name: &str, value: impl Into<Value>) -> Value {
        let mut body = self.body();
        body[name] = value.into();
        body
    }
}

/// Asks the server and prints what it says.
pub(super) fn run(arguments: &AdaptersArgs) -> Result<ExitCode> {
    let remote = Remote::new(&arguments.remote)?;
    let answer = match &arguments.command {
        AdaptersCommand::List => remote.get(&["adapters"]),
        AdaptersCommand::Show { id } => remote.get(&["adapters", id]),
        AdaptersCommand::Import { path } => remote.post(&["adapters"], &json!({"path": path})),
        AdaptersCommand::Activate { id, expected } => remote.post(&["adapters", id, "activate"], &expected.body()),
        AdaptersCommand::Canary { id, percent, expected } => {
            remote.post(&["adapters", id, "canary"], &expected.with("percent", *percent))
        }
        AdaptersCommand::Shadow { id, percent, expected } => {
            remote.post(&["adapters", id, "shadow"], &expected.with("percent", *percent))
        }
        AdaptersCommand::Pin { id, expected } => remote.post(&["adapters", id, "pin"], &expected.with("pinned", true)),
        AdaptersCommand::Unpin { id, expected } => {
            remote.post(&["adapters", id, "pin"], &expected.with("pinned", false))
        }
        AdaptersCommand::Rollback { expected } => remote.post(&["adapters", "rollback"], &expected.body()),
        AdaptersCommand::Remove { id } => remote.delete(&["adapters", id]),
        AdaptersCommand::Changes => remote.get(&["adapters", "changes"]),
    }?;
    super::print(&serde_json::to_string_pretty(&answer)?)
}
