//! The gate between a finished run and traffic: named checks, each with a threshold, of the candidate against the policy
//! that the run started from, on items that the run never saw.
//!
//! `train --run DIR` asks it by itself when there is a `DIR/gate.toml`, and leaves the verdict in `DIR/gate.json`. Whoever
//! puts adapters before callers reads that file; an adapter without `"passed": true` gets no traffic.
//!
//! Reward accuracy is no check: plain DPO keeps it above .9 while captions turn to garbage. What a collapse cannot hide is
//! that the chosen answers themselves become unlikely, that answers end too early or never, and that objects are left out.
//!
//! # Layout
//! - [`GateConfig`]: `gate.toml` (`config`).
//! - [`GateReport`], [`Check`], [`Outcome`]: `gate.json` (`report`).
//! - `rule`: when a check passes.
//! - `held_out`: likelihood, length and form of answers on the run's own held-out pairs.
//! - `sets`: captions and POPE questions, the pocket's own and the operator's; `unchanged`: answers that are to stay.
//! - [`run`]: the gate of a run directory.

mod config;
mod held_out;
mod report;
mod rule;
pub mod run;
mod sets;
mod unchanged;

pub use config::{EvaluationSet, GateConfig, SetKind};
pub use report::{Check, GateReport, Outcome};
pub use run::GateError;
