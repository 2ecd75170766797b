//! Runs: from collected pairs, or an uploaded file, to an adapter that answers.
//!
//! What a run is to do is in the store, and so is what was asked of it since: its state there is what is wanted. One task
//! ([`Runs`]) makes it so. It works on one run at a time, in a child process (`reground train`), so that training can crash,
//! be killed or run out of memory without an answer being lost.
//!
//! # Layout
//! - [`Runs`]: asking for runs and asking about them; `worker`: the task that does them, one after the other.
//! - [`RunRequest`]: what is asked for. `trigger`: runs that nobody asks for.
//! - `dataset`: the pairs of a run, frozen; `settings`: its `run.toml` and `gate.toml`.
//! - [`Program`], `child`: the process that trains; `way`: it stands still while live queries are answered. `journal`: what it tells, in the store.
//! - `verdict`: what happens to the adapter when it has finished.
//! - [`files`]: uploaded preference data; `uploads`: asking for it.
//! - `leftovers`: what goes when a run is over.

mod child;
mod dataset;
mod error;
pub mod files;
mod journal;
mod leftovers;
mod request;
#[expect(clippy::module_inception, reason = "the file is named after the type, as all are")]
mod runs;
mod settings;
#[cfg(test)]
mod tests;
mod trigger;
mod uploads;
mod verdict;
mod way;
mod worker;

pub use child::Program;
pub use error::RunsError;
pub(crate) use error::word;
pub use request::{Method, RunRequest, Training};
pub use runs::{Base, Runs};
