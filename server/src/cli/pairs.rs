//! `reground pairs`: the pairs of a running server.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::remote::{PageArgs, Remote, RemoteArgs};

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(super) struct PairsArgs {
    #[command(flatten)]
    remote: RemoteArgs,
    #[command(subcommand)]
    command: PairsCommand,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
enum PairsCommand {
    /// List pairs.
    List {
        #[command(flatten)]
        filters: Filters,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Show a pair with its whole provenance.
    Show {
        /// The pair's id.
        id: String,
    },
    /// Decide about a pair.
    Review {
        /// The pair's id.
        id: String,
        /// What is to be done with it.
        verdict: Verdict,
        /// With `edit`: what is right.
        #[arg(long)]
        chosen: Option<String>,
        /// With `edit`: what is wrong.
        #[arg(long)]
        rejected: Option<String>,
    },
    /// Write pairs as preference data, images inside, which `reground train --import` reads.
    Export {
        #[command(flatten)]
        filters: Filters,
        /// Where to; none: standard output.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Args)]
struct Filters {
    /// Source of the chosen answer: annotation, correction, accepted, self.
    #[arg(long)]
    source: Option<String>,
    /// Kind of the rejected answer: image_weakened, injected, given.
    #[arg(long)]
    kind: Option<String>,
    /// new, review, accepted, discarded, used.
    #[arg(long)]
    state: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Verdict {
    /// Train on it.
    Accept,
    /// The other answer is right.
    Swap,
    /// Never train on it.
    Discard,
    /// Train on it with another text.
    Edit,
}

impl Filters {
    fn named(&self) -> [(&'static str, Option<String>); 3] {
        [("source", self.source.clone()), ("kind", self.kind.clone()), ("state", self.state.clone())]
    }
}

/// Asks the server and prints what it says.
pub(super) fn run(arguments: &PairsArgs) -> Result<ExitCode> {
    let remote = Remote::new(&arguments.remote)?;
    let answer = match &arguments.command {
        PairsCommand::List { filters, page } => remote.page(&["pairs"], page, &filters.named()),
        PairsCommand::Show { id } => remote.get(&["pairs", id]),
        PairsCommand::Review { id, verdict, chosen, rejected } => {
            let verdict = match verdict {
                Verdict::Accept => "accept",
                Verdict::Swap => "swap",
                Verdict::Discard => "discard",
                Verdict::Edit => "edit",
            };
            let body = json!({"verdict": verdict, "chosen": chosen, "rejected": rejected});
            remote.post(&["pairs", id, "review"], &body)
        }
        PairsCommand::Export { filters, output } => {
            let body: Value =
                filters.named().into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
            let path = ["pairs", "export"];
            match output {
                None => remote.download(&path, &body, &mut std::io::stdout().lock())?,
                Some(output) => {
                    let mut file = fs_err::File::create(output)?;
                    remote.download(&path, &body, &mut file)?;
                    file.sync_all().with_context(|| format!("cannot write {}", output.display()))?;
                }
            }
            return Ok(ExitCode::SUCCESS);
        }
    }?;
    super::print(&serde_json::to_string_pretty(&answer)?)
}
