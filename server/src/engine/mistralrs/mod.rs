//! The engine for every family.
