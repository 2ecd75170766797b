//! The pocket world and model.
