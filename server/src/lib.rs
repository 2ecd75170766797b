//! Reground: an OpenAI-compatible inference server that learns from what it serves.
//!
//! The binary is a thin shell around this library; another tokio program can start the same server inside itself
//! (`examples/embed.rs`).
//!
//! # Layout
//! - [`cli`]: the command line; [`serve`]: the server from start to stop.
//! - [`config`]: every setting.
//! - [`api`]: routes, OpenAI's shapes, errors.
//! - [`answer`]: from a checked query to an answer.
//! - [`admission`]: the bounded, fair queue in front of each generation.
//! - [`bootstrapper`]: records become pairs, in the background.
//! - [`demo`]: the whole loop in one terminal.
//! - [`images`]: images as they come in, checked before they are decoded.
//! - [`recorder`]: what was asked and answered, written down off the answers' path.
//! - [`runs`]: fine-tuning runs, from pairs to an adapter.
//! - [`rollout`]: which generations are loaded, and which one answers.
//! - [`watch`]: what got traffic is taken back by itself where it is worse.
//! - [`engine`]: the trait that every engine implements, and the engines.
//! - `room`: bytes of memory that requests take, with limits for a key and for all.
//! - `os`: what is asked of the operating system.

pub mod admission;
pub mod answer;
pub mod api;
pub mod bootstrapper;
pub mod cli;
pub mod config;
pub mod demo;
pub mod engine;
pub mod images;
mod os;
pub mod recorder;
pub mod rollout;
mod room;
pub mod runs;
pub mod serve;
pub mod watch;
