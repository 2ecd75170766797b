//! The BPO loss, the trainer, its data and its checkpoints.
//!
//! # Layout
//! - [`policy`]: what the trainer needs of a model.

pub mod policy;
