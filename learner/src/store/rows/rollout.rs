//! Which generation answers.

use serde::{Deserialize, Serialize};

use super::Row;

/// Which generation answers. There is one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutState {
    /// What answers.
    pub live: String,
    /// What a rollback brings back.
    #[serde(default)]
    pub previous: Option<String>,
    /// What answers a share of the conversations.
    #[serde(default)]
    pub canary: Option<Share>,
    /// What answers a share of the queries a second time, for nobody but the counters.
    #[serde(default)]
    pub shadow: Option<Share>,
    /// `live` is not replaced by itself while this is set.
    #[serde(default)]
    pub pinned: bool,
    /// What is watched since it got traffic.
    #[serde(default)]
    pub watched: Vec<Watched>,
    /// Why it last changed, where nobody asked for it.
    #[serde(default)]
    pub why: Option<String>,
    /// When it last changed, milliseconds since 1970.
    pub changed_ms: u64,
    /// Counts the changes.
    pub revision: u64,
}

/// A share of traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The generation.
    pub adapter: String,
    /// The share, 1 to 100 percent.
    pub percent: u8,
}

/// A generation that is watched, and against what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    /// What got traffic.
    pub generation: String,
    /// What it is compared with.
    pub against: String,
    /// Whether it is on trial beside `against`; else it took its place.
    pub canary: bool,
    /// Since when, milliseconds since 1970.
    pub began_ms: u64,
    /// Share of `against`'s answers that failed, before.
    pub failures: Sample,
    /// Logarithm of the seconds to its first tokens.
    pub first_token: Sample,
    /// Logarithm of its seconds per token after the first.
    pub per_token: Sample,
}

/// What is known of many measurements of one thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The sum of the squares of their distances from it.
    pub squares: f64,
}

impl RolloutState {
    /// Under which id the one row is kept.
    pub const ID: &'static str = "rollout";
}

impl Default for RolloutState {
    /// The base alone.
    fn default() -> Self {
        Self {
            live: "base".to_owned(),
            previous: None,
            canary: None,
            shadow: None,
            pinned: false,
            watched: Vec::new(),
            why: None,
            changed_ms: 0,
            revision: 0,
        }
    }
}

impl Row for RolloutState {
    const KIND: &'static str = "rollout";
    const PREFIX: &'static str = "rollout";

    fn id(&self) -> &str {
        Self::ID
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}
