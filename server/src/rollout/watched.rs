//! What is watched since it got traffic, and against what.

use reground_learner::store::rows;

use super::observed::Behaviour;
use crate::engine::GenerationId;

/// A generation that is watched since it got traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    /// What got traffic.
    pub generation: GenerationId,
    /// What it is compared with.
    pub against: GenerationId,
    /// How it got it.
    pub trial: Trial,
    /// Since when, milliseconds since 1970.
    pub began_ms: u64,
    /// How `against` answered before.
    pub before: Behaviour,
}

/// How a generation got traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// It took the place of the other one.
    Live,
    /// It answers a share of the callers beside it.
    Canary,
}

impl From<rows::Watched> for Watched {
    fn from(row: rows::Watched) -> Self {
        Self {
            generation: row.generation.as_str().into(),
            against: row.against.as_str().into(),
            trial: if row.canary { Trial::Canary } else { Trial::Live },
            began_ms: row.began_ms,
            before: Behaviour {
                failures: row.failures.into(),
                first_token: row.first_token.into(),
                per_token: row.per_token.into(),
            },
        }
    }
}

impl From<&Watched> for rows::Watched {
    fn from(watched: &Watched) -> Self {
        Self {
            generation: watched.generation.to_string(),
            against: watched.against.to_string(),
            canary: watched.trial == Trial::Canary,
            began_ms: watched.began_ms,
            failures: watched.before.failures.into(),
            first_token: watched.before.first_token.into(),
            per_token: watched.before.per_token.into(),
        }
    }
}
