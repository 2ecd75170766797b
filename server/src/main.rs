//! Reground.
fn main() {}
