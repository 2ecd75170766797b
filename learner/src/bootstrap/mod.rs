//! Making negatives: wrong answers that the model itself provides, and the pairs that are worth keeping.
//!
//! # Layout
//! - [`distort`]: the distorted images ṽ of image weakening and of the loss's `conditional` term.
//! - [`weaken`]: negative 1, the answer decoded from ṽ.
//! - [`inject`]: negative 2, the right answer rewritten by a text LLM that sees no image.
//! - [`instruction`]: what that text LLM is told.
//! - [`filter`]: which pairs are kept, and why the others are not.

pub mod distort;
pub mod filter;
pub mod inject;
pub mod instruction;
pub mod weaken;
