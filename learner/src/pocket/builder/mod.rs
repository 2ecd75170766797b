//! Builds the pocket model: from a seed to a hub checkpoint.
//!
//! Two stages. *Sight* trains the vision tower alone to name the kind and colour behind every patch of crowded, balanced
//! pictures, standing in for a pretrained SigLIP: the eye has no habits. *Speech* then trains everything on conversations
//! about typical pictures, and on text alone; habits come from here. Both are resumed from a checkpoint as if they had
//! never stopped.
//!
//! # Layout
//! - [`recipe`]: every number that decides the outcome.
//! - [`initial`]: the weights before the first step.
//! - [`lesson`]: conversations as tokens, with the places that are learnt.
//! - [`course`]: which pictures and conversations come at which step.
//! - [`network`]: the crate's Idefics3 as a function of variables, with both losses.
//! - [`optimiser`]: AdamW with a state that can be saved.
//! - [`checkpoint`]: that state in a file.
//! - [`mod@build`]: the loop.

pub mod build;
pub mod checkpoint;
pub mod course;
pub mod error;
pub mod initial;
pub mod lesson;
pub mod network;
pub mod optimiser;
pub mod recipe;

pub use build::{Progress, build};
pub use error::BuildError;
pub use recipe::{Recipe, Stage};
