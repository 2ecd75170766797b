//! Text about scenes: captions and questions with their right answers, rewritings with plausible mistakes, and the parser
//! that reads a caption back.
//!
//! # Layout
//! - [`claim`]: one thing said of a scene, and the phrases it is said with.
//! - [`caption`]: whole descriptions.
//! - [`question`]: colour, number, place and existence, with answers.
//! - [`rewrite`]: the text-only task of making a description or an answer wrong but plausible.
//! - [`parse`]: from a caption back to claims; says what is malformed.
//! - [`lexicon`]: every word that the pocket writes, for the tokenizer.

pub mod caption;
pub mod claim;
pub mod lexicon;
pub mod parse;
pub mod question;
pub mod rewrite;

pub use caption::{Caption, Detail};
pub use claim::Claim;
pub use parse::{Malformed, Reading, read_caption};
pub use question::{Question, Topic};
