//! `reground runs`: the fine-tuning runs of a running server.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::remote::{Remote, RemoteArgs};

#[derive(Clone, Debug, PartialEq, Args)]
pub(super) struct RunsArgs {
    #[command(flatten)]
    remote: RemoteArgs,
    #[command(subcommand)]
    command: RunsCommand,
}

#[derive(Clone, Debug, PartialEq, Subcommand)]
enum RunsCommand {
    /// List the runs, newest first.
    List,
    /// Show a run.
    Show {
        /// The run's id.
        id: String,
    },
    /// Ask for a run; it begins when those before it are done.
    Start(StartArgs),
    /// End a run for good.
    Cancel {
        /// The run's id.
        id: String,
    },
    /// Stop a run between two steps, to go on later.
    Pause {
        /// The run's id.
        id: String,
    },
    /// Put a paused run back into the queue.
    Resume {
        /// The run's id.
        id: String,
    },
    /// List what happened in a run, newest first.
    Events {
        /// The run's id.
        id: String,
    },
}

#[derive(Clone, Debug, PartialEq, Args)]
struct StartArgs {
    /// What to train on: `pairs` (collected ones that no run had), `pairs:all`, or an uploaded file's id.
    #[arg(default_value = "pairs")]
    training: String,
    /// The model's name; `name@generation` starts from that generation.
    #[arg(long, default_value = "reground")]
    model: String,
    /// An uploaded file whose pairs are mixed in, instead of those that `train.anchors` names; may be repeated.
    #[arg(long = "anchor", value_name = "FILE")]
    anchors: Vec<String>,
    /// How to train.
    #[arg(long, value_enum, default_value_t = Method::Dpo)]
    method: Method,
    /// β of the preference loss; as configured without it, like the next three.
    #[arg(long)]
    beta: Option<f64>,
    /// Passes over the pairs.
    #[arg(long)]
    epochs: Option<f64>,
    /// Pairs per optimiser step.
    #[arg(long)]
    batch: Option<u32>,
    /// Factor on the configured learning rate.
    #[arg(long)]
    learning_rate_multiplier: Option<f64>,
    /// Decides data order, dropout and a new adapter's values.
    #[arg(long)]
    seed: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    /// Preferences.
    Dpo,
    /// The chosen answers alone.
    Supervised,
}

impl StartArgs {
    fn body(&self) -> Value {
        let mut hyperparameters = json!({});
        let numbers = [
            ("beta", self.beta.map(Value::from)),
            ("n_epochs", self.epochs.map(Value::from)),
            ("batch_size", self.batch.map(Value::from)),
            ("learning_rate_multiplier", self.learning_rate_multiplier.map(Value::from)),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                hyperparameters[name] = value;
            }
        }
        let kind = match self.method {
            Method::Dpo => "dpo",
            Method::Supervised => "supervised",
        };
        json!({
            "model": self.model,
            "training_file": self.training,
            "anchors": (!self.anchors.is_empty()).then_some(&self.anchors),
            "seed": self.seed,
            "method": {"type": kind, kind: {"hyperparameters": hyperparameters}},
        })
    }
}

/// Asks the server and prints what it says.
pub(super) fn run(arguments: &RunsArgs) -> Result<ExitCode> {
    let remote = Remote::new(&arguments.remote)?;
    let jobs = ["fine_tuning", "jobs"];
    let post = |id: &str, what: &str| remote.post(&[jobs[0], jobs[1], id, what], &json!({}));
    let answer = match &arguments.command {
        RunsCommand::List => remote.get(&jobs),
        RunsCommand::Show { id } => remote.get(&[jobs[0], jobs[1], id]),
        RunsCommand::Start(start) => remote.post(&jobs, &start.body()),
        RunsCommand::Cancel { id } => post(id, "cancel"),
        RunsCommand::Pause { id } => post(id, "pause"),
        RunsCommand::Resume { id } => post(id, "resume"),
        RunsCommand::Events { id } => remote.get(&[jobs[0], jobs[1], id, "events"]),
    }?;
    super::print(&serde_json::to_string_pretty(&answer)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_is_sent() {
        let said = StartArgs {
            training: "pairs".into(),
            model: "reground".into(),
            anchors: Vec::new(),
            method: Method::Dpo,
            beta: Some(0.2),
            epochs: None,
            batch: Some(4),
            learning_rate_multiplier: None,
            seed: None,
        };
        assert_eq!(said.body()["method"]["dpo"]["hyperparameters"], json!({"beta": 0.2, "batch_size": 4}));
    }
}
