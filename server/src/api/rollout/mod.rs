//! Adapters on disk, and which of them answers.
//!
//! # Layout
//! - [`library`]: the adapters that this server keeps. [`route`]: who answers.
//! - [`bodies`]: what is answered. [`requests`]: what is asked. `error`: why not.

pub(super) mod bodies;
mod error;
pub(super) mod library;
mod requests;
pub(super) mod route;
