//! Client for a Reground server: OpenAI's chat completions, and adapters.
//!
//! Requests and answers are [`serde_json::Value`]s in OpenAI's shapes, so that this crate never stands between a caller and
//! a parameter. What it adds is transport, streams and errors with a type.
//!
//! ```no_run
//! use futures::StreamExt;
//! use reground_client::Client;
//! use serde_json::json;
//!
//! # async fn example() -> Result<(), reground_client::Error> {
//! let client = Client::new("http://127.0.0.1:8080/v1")?;
//! let hello = json!({"model": "reground", "messages": [{"role": "user", "content": "Hello"}]});
//! println!("{}", client.chat(&hello).await?["choices"][0]["message"]["content"]);
//! let mut chunks = client.stream(&hello).await?;
//! while let Some(chunk) = chunks.next().await {
//!     print!("{}", chunk?["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//! - [`Client`]: the calls.
//! - [`Error`]: why one failed; [`ApiError`] is what the server said.

mod client;
mod error;
mod events;

pub use client::{Chunks, Client};
pub use error::{ApiError, Error};
