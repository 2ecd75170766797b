//! End-to-end tests: one file a concept, all against the real binary.
//!
//! The binary inherits the environment: with `REGROUND__MODEL__ENGINE=mistralrs` the same suite runs against that engine.

mod adapters;
mod around;
mod auth;
mod chat;
mod clients;
mod deletion;
mod disks;
mod golden;
mod hostile;
mod hub;
mod injector;
mod io_errors;
mod kills;
mod life;
mod models;
mod overload;
mod pairs;
mod poison;
mod quantised;
mod readme;
mod records;
mod rollout;
mod runs;
mod sdk;
mod shutdown;
mod slow_readers;
mod store;
mod swaps;
mod together;
mod tools;
mod train;
mod train_kills;
