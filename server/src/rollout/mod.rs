//! Which generations are loaded, and which one answers.
//!
//! # Layout
//! - [`Generations`]: what is loaded, and the route through it; [`Lease`] pins one for the length of an answer.
//! - [`Route`]: live, previous and canary; [`Sticky`] keeps a caller with one generation.
//! - [`Rollout`]: every change of the route, in one place: checked, written down, then switched.
//! - `library`: the adapters on disk. `ledger`: the route and its history in the store. `probe`: does an adapter change anything?

mod generations;
mod ledger;
mod library;
mod probe;
#[expect(clippy::module_inception, reason = "the file is named after the type, as all are")]
mod rollout;
mod route;

pub(crate) use generations::SWITCH;
pub use generations::{Generations, Lease, LoadError};
pub use ledger::Change;
pub use library::{LibraryError, Manifest, Origin};
pub use probe::ProbeError;
pub use rollout::{Rollout, RolloutError};
pub use route::{Canary, Route, Sticky};
