//! Making negatives: wrong answers that the model itself provides.
//!
//! # Layout
//! - [`distort`]: the distorted images ṽ of image weakening and of the loss's `conditional` term.

pub mod distort;
