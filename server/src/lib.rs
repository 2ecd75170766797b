//! Reground.
