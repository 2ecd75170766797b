//! What a run is asked for.

use std::collections::BTreeMap;
use std::fmt;

use reground_learner::store::rows::Run;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a run is asked for; kept with it. What is absent is as `[train]` says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunRequest {
    /// What it is trained on.
    pub training: Training,
    /// How.
    pub method: Method,
    /// Files whose pairs are mixed in; `None`: those of `train.anchors`.
    pub anchors: Option<Vec<String>>,
    /// Generation to start from; `None`: the one that is live when the run begins.
    pub parent: Option<String>,
    /// β of the preference loss.
    pub beta: Option<f64>,
    /// Passes over the pairs.
    pub epochs: Option<f64>,
    /// Pairs per optimiser step.
    pub batch: Option<usize>,
    /// Factor on `train.learning_rate`.
    pub learning_rate_multiplier: Option<f64>,
    /// Decides data order, dropout and a new adapter's values.
    pub seed: Option<u64>,
    /// Labels.
    pub metadata: BTreeMap<String, String>,
}

/// What a run is trained on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum Training {
    /// `pairs`: collected pairs that no run had yet, with a share of earlier ones.
    #[default]
    New,
    /// `pairs:all`: every collected pair that may be trained on.
    All,
    /// `file-…`: an uploaded file.
    File(String),
}

/// How a run is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Preferences, with the anchored loss.
    #[default]
    Dpo,
    /// The chosen answers alone.
    Supervised,
}

impl RunRequest {
    /// What a run was asked for.
    #[must_use]
    pub fn of(run: &Run) -> Self {
        // Only this type is ever written there.
        serde_json::from_value(run.request.clone()).unwrap_or_default()
    }

    /// Whether it needs the file of this id.
    pub(super) fn reads(&self, file: &str) -> bool {
        let trains_on = matches!(&self.training, Training::File(id) if id == file);
        trains_on || self.anchors.iter().flatten().any(|anchor| anchor == file)
    }

    pub(super) fn json(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }
}

impl Training {
    /// Collected pairs and not a file.
    #[must_use]
    pub fn is_collected(&self) -> bool {
        !matches!(self, Self::File(_))
    }
}

impl From<String> for Training {
    fn from(text: String) -> Self {
        match text.as_str() {
            "pairs" => Self::New,
            "pairs:all" => Self::All,
            _ => Self::File(text),
        }
    }
}

impl From<Training> for String {
    fn from(training: Training) -> Self {
        match training {
            Training::New => "pairs".into(),
            Training::All => "pairs:all".into(),
            Training::File(id) => id,
        }
    }
}

impl fmt::Display for Training {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from(self.clone()))
    }
}

impl Method {
    /// OpenAI's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Dpo => "dpo",
            Self::Supervised => "supervised",
        }
    }
}
