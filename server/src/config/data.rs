//! `[data]` and `[record]`.

use std::path::PathBuf;

use reground_learner::store::Options;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::recorder::Rules;

/// Where what must survive is kept.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// The data directory, made if it is not there. One server at a time has it.
    pub dir: PathBuf,
    /// Bytes of the disk that stay free: with less, nothing is recorded, and serving goes on.
    pub min_free_bytes: u64,
    /// Bytes of memory in which rows of the store are kept that were read or written last. It fills up as rows come.
    pub cache_bytes: u64,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self { dir: "reground-data".into(), min_free_bytes: 64 << 20, cache_bytes: 64 << 20 }
    }
}

impl DataConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.dir.as_os_str().is_empty() {
            return Err(ConfigError::value("data.dir", "", "a directory"));
        }
        ConfigError::range("data.cache_bytes", self.cache_bytes, 1 << 20..=1 << 40)
    }

    /// How the store is opened.
    #[must_use]
    pub fn options(&self) -> Options {
        Options { min_free_bytes: self.min_free_bytes, cache_bytes: self.cache_bytes, ..Options::default() }
    }
}

/// What is written down of queries and their answers.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecordConfig {
    /// Record at all.
    pub enabled: bool,
    /// Share of the conversations that are recorded without being asked for, 0 to 1. All turns of one are, or none.
    pub share: f64,
    /// A request with this header, whatever its value, is not recorded.
    pub opt_out_header: String,
    /// Built-in rules that take private matters out before anything is written: `email`, `phone`, `card`, `key`.
    pub redact: Vec<String>,
    /// More of them, as regular expressions.
    pub redact_patterns: Vec<String>,
    /// Days that a record is kept; 0: no limit.
    pub max_age_days: u64,
    /// Bytes that records and images may take together; the oldest go first. 0: no limit.
    pub max_bytes: u64,
    /// Records that may wait to be written; what does not fit is counted and dropped.
    pub queue: usize,
    /// Bytes of images that may wait with them.
    pub queue_bytes: usize,
}

impl Default for RecordConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            share: 1.0,
            opt_out_header: "x-reground-no-record".into(),
            redact: ["email", "phone", "card", "key"].map(str::to_owned).into(),
            redact_patterns: Vec::new(),
            max_age_days: 30,
            max_bytes: 10 << 30,
            queue: 256,
            queue_bytes: 256 << 20,
        }
    }
}

impl RecordConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("record.share", self.share, 0.0..=1.0)?;
        ConfigError::range("record.queue", self.queue, 1..=100_000)?;
        if actix_web::http::header::HeaderName::try_from(self.opt_out_header.as_str()).is_err() {
            return Err(ConfigError::value("record.opt_out_header", &self.opt_out_header, "the name of a header"));
        }
        Rules::new(&self.redact, &[]).map_err(|_| {
            ConfigError::value("record.redact", format_args!("{:?}", self.redact), "any of email, phone, card, key")
        })?;
        Rules::new(&[], &self.redact_patterns).map(drop).map_err(|error| {
            let allowed = format!("regular expressions ({error})");
            ConfigError::value("record.redact_patterns", format_args!("{:?}", self.redact_patterns), allowed)
        })
    }
}
