//! Which generations are loaded, and which one answers.
//!
//! # Layout
//! - [`Generations`]: what is loaded, and the route through it; [`Lease`] pins one for the length of an answer.
//! - [`Behind`]: a place that no live query wants, for work beside these generations.
//! - [`Route`]: live, previous, canary, shadow, pinned; [`Sticky`] keeps a caller with one generation.
//! - [`Rollout`]: every change of the route, in one place: checked, written down, then switched. `change`: what is the same for all of
//!   them; `load`: beside what is loaded; `replace`: in its place; `restore`: at the start; `agree`: after a disk that failed.
//! - [`Watched`]: what is watched since it got traffic; [`Observed`]: how a generation's answers went; [`Sample`]: means, and whether they
//!   differ.
//! - `library`: the adapters on disk; `kept`: as the rollout hands them out. `ledger`: the route and its history in the store. `probe`: does
//!   an adapter change anything?

mod agree;
mod behind;
mod change;
mod error;
mod generations;
mod kept;
mod ledger;
mod library;
mod load;
mod observed;
mod probe;
mod replace;
mod restore;
#[expect(clippy::module_inception, reason = "the file is named after the type, as all are")]
mod rollout;
mod route;
mod sample;
#[cfg(test)]
mod tests;
mod watched;

pub use behind::Behind;
pub use change::By;
pub use error::RolloutError;
pub(crate) use generations::SWITCH;
pub use generations::{Generations, Lease, LoadError};
pub use ledger::Change;
pub(crate) use library::is_passing;
pub use library::{LibraryError, Manifest, Origin};
pub use observed::{Behaviour, Observation, Observed};
pub use probe::ProbeError;
pub use rollout::Rollout;
pub use route::{Route, Share, Sticky};
pub use sample::Sample;
pub use watched::{Trial, Watched};
