//! The pocket world and the pocket model: a drawn world with the statistics of web text, and a small Idefics3 trained
//! on it, so that the whole loop of answering from habit and unlearning it can be seen in minutes, offline.
//!
//! # Layout
//! - [`world`]: what a scene can hold, how often it does (typical or balanced), and how it is drawn.
//! - [`text`]: captions, questions and rewritings about a scene, and the parser that reads a caption back.
//! - [`tokenizer`]: one token a word, bytes for everything else.
//! - [`hub`]: the model's sizes, and the files of a hub checkpoint around its weights.
//! - [`builder`]: from a seed to a hub checkpoint.
//! - [`held_out`]: pictures for evaluation, and everything a model can be asked about them.
//! - [`shipped`]: the built model, inside the binary.
//! - [`random`]: one seeded stream of random numbers for every purpose.

pub mod builder;
pub mod held_out;
pub mod hub;
pub mod random;
pub mod shipped;
pub mod text;
pub mod tokenizer;
pub mod world;
