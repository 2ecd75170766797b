//! Evaluation: is the model still well, and does it say what the picture shows?
//!
//! Every measure is a ratio of two sums over items, so one bootstrap serves them all: [`measure`] resamples items, not
//! numbers. What answers is behind one small trait, [`answerer::Answerer`], so the same code measures the learner's model,
//! a server and a test double.
//!
//! # Layout
//! - [`error`]: what can go wrong, with file and line.
//! - [`measure`]: ratios, confidence intervals, paired comparison.
//! - [`answerer`]: image + question → text.
//! - [`model_answerer`]: the learner's own model as an answerer.
//! - [`mention`]: from a caption to the objects it mentions; synonym lists.
//! - [`chair`]: CHAIR, Cover, length, malformed share, attribute errors.
//! - [`pope`]: yes/no questions about objects; [`pope_sampling`] makes them from annotated images.
//! - [`amber`]: AMBER's files and measures.
//! - [`preference`]: preference accuracy, margin and image-conditional accuracy from log-probabilities.
//! - [`set`]: evaluation sets as JSONL beside images.
//! - [`run`]: from a set and an answerer to measures.
//! - [`offline`]: `reground eval`, a model on sets in files; `stored_pairs` scores its preference data.
//! - [`report`]: all of it as JSON and as a table.

pub mod amber;
pub mod answerer;
pub mod chair;
pub mod error;
pub mod measure;
pub mod mention;
pub mod model_answerer;
pub mod offline;
pub mod pope;
pub mod pope_sampling;
pub mod preference;
pub mod report;
pub mod run;
pub mod set;
mod stored_pairs;

pub use answerer::{Answerer, ImageSource, Query};
pub use error::EvalError;
pub use measure::{Bootstrap, Comparison, Estimate, Measure};
pub use model_answerer::ModelAnswerer;
pub use offline::{Offline, Reader};
pub use report::Report;
