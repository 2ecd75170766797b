//! The BPO loss, the trainer, its data and its checkpoints.
//!
//! # Layout
//! - [`policy`]: what the trainer needs of a model.
//! - [`loss`]: the loss of one pair and its gradient in closed form.
//! - [`adamw`], [`schedule`]: the optimiser, clipping, the learning rate.
//! - [`pair`], [`data`]: preference pairs, and the files they are read from.
//! - [`files`]: writing a file whole or not at all.

pub mod adamw;
pub mod data;
pub mod files;
pub mod loss;
pub mod pair;
pub mod policy;
pub mod schedule;
