//! The learner from outside: one file a concept, all in one program, so that what they share is compiled once.
//!
//! `store_memory` is a program of its own, because it measures what its process takes.
//!
//! # Layout
//! - `golden_idefics3`, `quantised`, `adapter`: the model and its adapters beside PyTorch, transformers and PEFT.
//! - `bpo_…`: training. `bpo_toy`: a model of a few hundred numbers. `killed`: a run that is killed over and over.
//! - `eval_offline`, `gate`, `pocket_shipped`: evaluation.
//! - `store…`: the store. `store_rows`: rows to put into it. `store_life`: a process that works on it until it is killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod adapter;
mod bpo_bad_input;
mod bpo_golden;
mod bpo_kill;
mod bpo_run;
mod bpo_toy;
mod bpo_trainer;
#[cfg(target_os = "linux")]
#[allow(dead_code, unreachable_pub, reason = "it is a public module of the end-to-end tests, which use the rest")]
#[path = "../../../tests/src/disk.rs"]
mod disk;
mod eval_offline;
mod gate;
mod golden_idefics3;
mod killed;
mod pocket_shipped;
mod quantised;
mod store;
mod store_export;
mod store_kill;
mod store_life;
#[cfg(target_os = "linux")]
mod store_power;
mod store_rows;
