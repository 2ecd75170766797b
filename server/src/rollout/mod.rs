//! Which generations are loaded, and which one answers.
//!
//! # Layout
//! - [`Generations`]: the loaded generations and the live one; [`Lease`] pins one for the length of an answer.

mod generations;

pub use generations::{Generations, Lease, LoadError};
