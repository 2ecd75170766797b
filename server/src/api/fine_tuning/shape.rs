//! Jobs, events and checkpoints as OpenAI's clients know them.

use std::collections::BTreeMap;

use reground_learner::gate::GateReport;
use reground_learner::store::rows::{EventKind, EventLevel, Run, RunEvent, RunState};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::runs::{RunRequest, word};

/// A fine-tuning job.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct Job {
    /// `ftjob-…`.
    pub id: String,
    /// `fine_tuning.job`.
    pub object: &'static str,
    /// When it was asked for, in seconds since 1970.
    pub created_at: u64,
    /// When it ended.
    pub finished_at: Option<u64>,
    /// The model, and the generation that it starts from.
    pub model: String,
    /// What came of it: ask for it under this name.
    pub fine_tuned_model: Option<String>,
    /// `reground`.
    pub organization_id: &'static str,
    /// `queued`, `running`, `paused`, `succeeded`, `failed` or `cancelled`.
    pub status: &'static str,
    /// What it is trained on: `pairs`, `pairs:all` or a file's id.
    pub training_file: String,
    /// Always null: the pairs of some images are held out by themselves.
    pub validation_file: Option<String>,
    /// Always empty: the events have the numbers.
    pub result_files: Vec<String>,
    /// Always null.
    pub trained_tokens: Option<u64>,
    /// Always null.
    pub estimated_finish: Option<u64>,
    /// Always empty.
    pub integrations: Vec<Value>,
    /// Decides data order, dropout and a new adapter's values; null: as configured.
    pub seed: Option<u64>,
    /// How it is trained.
    pub method: Value,
    /// The same, where old clients look for it.
    pub hyperparameters: Value,
    /// Labels.
    pub metadata: BTreeMap<String, String>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// What OpenAI's shape has no place for.
    pub reground: Details,
    /// What the gate said; null before, and in lists.
    #[schema(value_type = Option<Object>)]
    pub gate: Option<GateReport>,
}

/// Why a job failed.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct JobError {
    /// `gate_failed` or `training_failed`.
    pub code: &'static str,
    /// A sentence.
    pub message: String,
    /// Always null.
    pub param: Option<String>,
}

/// What OpenAI's shape has no place for.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct Details {
    /// The generation that it starts from.
    pub parent: String,
    /// The adapter that came of it.
    pub adapter: Option<String>,
    /// Who or what asked: a key's name, `pairs` or `schedule`.
    pub trigger: String,
    /// When it began, in seconds since 1970.
    pub started_at: Option<u64>,
    /// Pairs in its frozen set.
    pub pairs: usize,
    /// BLAKE3 of the frozen set.
    pub dataset_digest: Option<String>,
    /// Times that its process was started again.
    pub restarts: u32,
}

/// Something that happened in a job.
#[derive(Debug, Serialize)]
pub(super) struct Event {
    id: String,
    object: &'static str,
    created_at: u64,
    level: EventLevel,
    message: String,
    r#type: &'static str,
    data: Value,
}

/// A step after which a job can go on. It is not served: an adapter is, when its job has succeeded.
#[derive(Debug, Serialize)]
pub(super) struct Checkpoint {
    id: String,
    object: &'static str,
    created_at: u64,
    fine_tuning_job_id: String,
    fine_tuned_model_checkpoint: Option<String>,
    step_number: Value,
    metrics: Value,
}

impl Job {
    /// A run as a job of the model of this name.
    pub(super) fn new(name: &str, run: Run) -> Self {
        let request = RunRequest::of(&run);
        let auto = |value: Option<Value>| value.unwrap_or_else(|| json!("auto"));
        let mut hyperparameters = json!({
            "n_epochs": auto(request.epochs.map(Value::from)),
            "batch_size": auto(request.batch.map(Value::from)),
            "learning_rate_multiplier": auto(request.learning_rate_multiplier.map(Value::from)),
        });
        let old = hyperparameters.clone();
        let kind = request.method.word();
        if kind == "dpo" {
            hyperparameters["beta"] = auto(request.beta.map(Value::from));
        }
        let error = (run.state == RunState::Failed).then(|| JobError {
            code: if run.refused { "gate_failed" } else { "training_failed" },
            message: run.error.clone().unwrap_or_default(),
            param: None,
        });
        // Chosen a little before it answers.
        let adapter = run.adapter.filter(|_| run.state == RunState::Succeeded);
        Self {
            object: "fine_tuning.job",
            created_at: run.created_ms / 1000,
            finished_at: run.finished_ms.map(|at| at / 1000),
            model: format!("{name}@{}", run.parent),
            fine_tuned_model: adapter.as_ref().map(|adapter| format!("{name}@{adapter}")),
            organization_id: "reground",
            status: word(run.state),
            training_file: request.training.to_string(),
            validation_file: None,
            result_files: Vec::new(),
            trained_tokens: None,
            estimated_finish: None,
            integrations: Vec::new(),
            seed: request.seed,
            method: json!({"type": kind, kind: {"hyperparameters": hyperparameters}}),
            hyperparameters: old,
            metadata: request.metadata,
            error,
            reground: Details {
                parent: run.parent,
                adapter,
                trigger: run.trigger,
                started_at: run.started_ms.map(|at| at / 1000),
                pairs: run.pairs,
                dataset_digest: run.dataset_digest,
                restarts: run.restarts,
            },
            gate: None,
            id: run.id,
        }
    }
}

impl From<RunEvent> for Event {
    fn from(row: RunEvent) -> Self {
        let RunEvent { id, created_ms, level, kind, message, data, .. } = row;
        let r#type = if kind == EventKind::Metrics { "metrics" } else { "message" };
        Self { id, object: "fine_tuning.job.event", created_at: created_ms / 1000, level, message, r#type, data }
    }
}

impl From<RunEvent> for Checkpoint {
    fn from(row: RunEvent) -> Self {
        Self {
            id: row.id,
            object: "fine_tuning.job.checkpoint",
            created_at: row.created_ms / 1000,
            fine_tuning_job_id: row.run,
            fine_tuned_model_checkpoint: None,
            step_number: row.data["step"].clone(),
            metrics: row.data,
        }
    }
}
