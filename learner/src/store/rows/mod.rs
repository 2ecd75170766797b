//! The rows: what each kind holds, and by what it can be found.

mod adapter;
mod audit;
mod event;
mod feedback;
mod file;
mod pair;
mod record;
mod rollout;
mod run;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use adapter::{AdapterRow, AdapterState};
pub use audit::Audit;
pub use event::{EventKind, EventLevel, RunEvent};
pub use feedback::Feedback;
pub use file::FileRow;
pub use pair::{Instruction, Made, Pair, PairState, Review, Verdict};
pub use record::{Answer, BootstrapState, Finish, Record, RecordedMessage, Timings};
pub use rollout::{RolloutState, Sample, Share, Watched};
pub use run::{Run, RunState};

/// A kind of row.
pub trait Row: Serialize + DeserializeOwned + Clone {
    /// Its name in keys, errors and exports.
    const KIND: &'static str;
    /// What its ids begin with.
    const PREFIX: &'static str;
    /// The version that is written. A change that older rows do not parse with raises it and extends [`Row::migrate`].
    const VERSION: u8 = 1;

    /// Its id.
    fn id(&self) -> &str;

    /// By what it can be found: name of the index, value.
    fn indexes(&self) -> Vec<(&'static str, String)>;

    /// Digests of the blobs that must stay as long as the row does.
    fn blobs(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Rows that must be there: kind, id.
    fn references(&self) -> Vec<(&'static str, &str)> {
        Vec::new()
    }

    /// What makes it unfit to be stored, whatever else is there.
    ///
    /// # Errors
    /// What is wrong.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// From an older version's JSON to this one's.
    ///
    /// # Errors
    /// That version cannot be read any more.
    fn migrate(version: u8, _row: Value) -> Result<Value, String> {
        Err(format!("version {version} is not known"))
    }
}

/// The word that serde writes for a value without fields.
pub fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}
