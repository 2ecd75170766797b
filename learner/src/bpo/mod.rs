//! The BPO loss, the trainer, its data and its checkpoints.
//!
//! # Layout
//! - [`policy`], [`examples`]: what the trainer needs of a model and of its data.
//! - [`loss`]: the loss of one pair and its gradient in closed form.
//! - [`adamw`], [`schedule`]: the optimiser, clipping, the learning rate.
//! - [`config`]: the file `run.toml`.
//! - [`pair`], [`data`], [`dataset`]: preference pairs, the files they are read from, and the frozen set of a run; [`split`]: what
//!   of it is held out.
//! - [`launch`]: `train --run DIR` on a real model.
//! - [`run`]: a run directory from start to end; [`prepare`]: its pairs as tokens and image features.
//! - [`trainer`]: the steps of a run; [`order`] and [`seed`] decide what it sees when, [`mod@reference`] holds log π_ref.
//! - [`checkpoint`]: saving and resuming; [`guard`] and [`early_stop`]: ending before the end.
//! - [`memory`]: what a run will take.
//! - [`metrics`], [`history`], [`progress`], [`report`]: its numbers, their file, who is told, and the page afterwards.
//! - [`files`]: writing a file whole or not at all.

pub mod adamw;
mod chart;
pub mod checkpoint;
pub mod config;
mod control;
pub mod data;
pub mod dataset;
pub mod early_stop;
mod error;
mod evaluate;
pub mod examples;
pub mod files;
pub mod guard;
pub mod history;
pub mod launch;
pub mod loss;
pub mod memory;
pub mod metrics;
pub mod order;
pub mod pair;
pub mod policy;
pub mod prepare;
pub mod progress;
pub mod reference;
pub mod report;
mod resume;
pub mod run;
pub mod schedule;
pub mod seed;
pub mod split;
mod step;
pub mod trainer;

pub use self::error::TrainError;
