//! Making pairs: wrong answers that the model itself provides, right ones that it may keep, and which pairs are worth it.
//!
//! # Layout
//! - [`distort`]: the distorted images ṽ of image weakening and of the loss's `conditional` term.
//! - [`ground`]: the grounding filter, which says whether an answer rests on the picture.
//! - [`weaken`]: negative 1, the answer decoded from ṽ.
//! - [`inject`]: negative 2, the right answer rewritten by a text LLM that sees no image.
//! - [`instruction`]: what that text LLM is told.
//! - [`filter`]: which pairs are kept, and why the others are not.

pub mod distort;
pub mod filter;
pub mod ground;
pub mod inject;
pub mod instruction;
pub mod weaken;
