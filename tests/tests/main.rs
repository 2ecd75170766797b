//! End-to-end tests: one file a concept, all against the real binary.

mod adapters;
mod around;
mod auth;
mod chat;
mod clients;
mod golden;
mod hostile;
mod models;
mod overload;
mod readme;
mod records;
mod sdk;
mod shutdown;
mod slow_readers;
mod together;
mod train;
