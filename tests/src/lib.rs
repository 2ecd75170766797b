//! End to end: starts the real binary on a free port and talks to it over loopback, as a caller would.
//!
//! Nothing here depends on the server's library, so what the tests see is what callers see.
//!
//! # Layout
//! - [`Server`]: one process of the real binary, with settings of its own; it ends when the value is dropped.
//! - [`Client`]: requests, answers and streams.
//! - [`Golden`]: the checkpoint in `golden/idefics3` and the numbers that PyTorch computed on it.
//! - [`Hub`]: a model hub on loopback.
//! - [`pictures`]: images, good and bad ones.
//! - [`upload`]: files as a form.
//! - [`disk`]: a disk that fills up, becomes read-only or loses power, and a clock that jumps.
//! - [`load`]: many requests at once, bounded in number and time.
//! - [`command`]: the binary's other commands.
//! - [`say!`]: progress that a test shows while it runs.

pub mod disk;
pub mod load;
pub mod pictures;
pub mod upload;

mod binary;
mod client;
mod golden;
mod hub;
mod progress;
mod server;
mod sse;

pub use binary::command;
pub use client::{Client, ErrorBody, Reply, Stream, Streamed};
pub use golden::{Golden, Pair, Token, Which};
pub use hub::Hub;
pub use progress::print;
pub use server::{Server, Settings};
