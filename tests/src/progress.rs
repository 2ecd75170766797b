//! Progress that a test shows while it runs.

use std::fmt::Arguments;
use std::io::Write;

/// Writes a line to standard error, past the capture of the test runner: a long test is not silent.
pub fn print(line: Arguments<'_>) {
    // A closed standard error is no reason for a test to fail.
    let _ = writeln!(std::io::stderr(), "      {line}");
}

/// Says what a test does, in one line.
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => { $crate::print(format_args!($($part)*)) };
}
