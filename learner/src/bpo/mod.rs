//! The BPO loss, the trainer, its data and its checkpoints.
//!
//! # Layout
//! - [`policy`]: what the trainer needs of a model.
//! - [`loss`]: the loss of one pair and its gradient in closed form.
//! - [`adamw`], [`schedule`]: the optimiser, clipping, the learning rate.

pub mod adamw;
pub mod loss;
pub mod policy;
pub mod schedule;
