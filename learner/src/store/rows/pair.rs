//! Chosen + rejected for one image and conversation, with where each comes from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Record, Row, word};
use crate::bpo::pair::PreferencePair;

/// A preference pair and its provenance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// What training reads: images, conversation, both answers, distortion, source of the chosen one, kind of the negative.
    /// Its id is the row's.
    pub data: PreferencePair,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// The record that it was made of; `None` for imported data.
    #[serde(default)]
    pub record: Option<String>,
    /// The generation that answered the record; `None` for imported data. What gave the negative is in [`Self::made`].
    #[serde(default)]
    pub generation: Option<String>,
    /// The feedback that chose.
    #[serde(default)]
    pub feedback: Option<String>,
    /// Name of the API key that the record, the correction or the import came with.
    #[serde(default)]
    pub key: Option<String>,
    /// What the filters measured, by name.
    #[serde(default)]
    pub filters: BTreeMap<String, f64>,
    /// How the rejected answer was made; `None` where it was given. Reviews do not change it.
    #[serde(default)]
    pub made: Option<Made>,
    /// What may be done with it.
    pub state: PairState,
    /// Why it was discarded or waits for review; one of few words.
    #[serde(default)]
    pub reason: Option<String>,
    /// What reviewers did, oldest first.
    #[serde(default)]
    pub reviews: Vec<Review>,
    /// The runs whose frozen set it is part of.
    #[serde(default)]
    pub runs: Vec<String>,
}

/// How a negative was made: what it takes to make it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// Who answered: a generation of this server, or what its endpoint calls its model.
    pub by: String,
    /// Image weakening: longest side, pixels, at which the pair's distortion was applied.
    #[serde(default)]
    pub edge: Option<u32>,
    /// Error injection: which words the text model was asked in, and the BLAKE3 digest of all that it was told.
    #[serde(default)]
    pub instruction: Option<Instruction>,
    /// 0 is greedy.
    pub temperature: f64,
    /// Smallest set of likeliest tokens whose probability reaches this.
    pub top_p: f64,
    /// Where the draws come from.
    pub seed: u64,
    /// Most tokens of the answer.
    pub max_tokens: usize,
}

/// What a text model was told when it was to make an answer wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// Where the text model is: `self` or `endpoint`.
    pub injector: String,
    /// `instructed` or `pocket`.
    pub wording: String,
    /// `description` or `answer`.
    pub task: String,
    /// BLAKE3 of the whole prompt.
    pub digest: String,
}

/// What may be done with a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairState {
    /// Not trained on yet; the next run takes it.
    New,
    /// A person must look at it first.
    Review,
    /// A person accepted it; the next run takes it.
    Accepted,
    /// Never trained on.
    Discarded,
    /// In at least one run; later runs replay it.
    Used,
}

/// What a reviewer did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Review {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Name of the API key.
    pub by: String,
    /// What.
    pub verdict: Verdict,
}

/// What a reviewer can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Train on it.
    Accept,
    /// The other way round, then train on it.
    Swap,
    /// Never train on it.
    Discard,
    /// Another text for an answer, then train on it.
    Edit,
}

impl Row for Pair {
    const KIND: &'static str = "pair";
    const PREFIX: &'static str = "pair";

    fn id(&self) -> &str {
        &self.data.id
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        let mut indexes = vec![("state", word(self.state)), ("source", word(self.data.source))];
        indexes.extend(self.data.negative.map(|negative| ("negative", word(negative))));
        indexes.extend(self.record.clone().map(|record| ("record", record)));
        indexes.extend(self.generation.clone().map(|generation| ("generation", generation)));
        indexes.extend(self.key.clone().map(|key| ("key", key)));
        indexes.extend(self.runs.iter().map(|run| ("run", run.clone())));
        indexes
    }

    fn references(&self) -> Vec<(&'static str, &str)> {
        self.record.iter().map(|record| (Record::KIND, record.as_str())).collect()
    }

    fn check(&self) -> Result<(), String> {
        self.data.check().map_err(|fault| fault.to_string())
    }

    fn blobs(&self) -> Vec<&str> {
        self.data.images.iter().map(|image| image.digest.as_str()).collect()
    }
}
