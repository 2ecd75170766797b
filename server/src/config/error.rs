//! What is wrong with the configuration, said so that one finds the place and knows what to write there.

use std::fmt::{self, Display};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use figment::error::{Actual, Kind};
use thiserror::Error;

/// Longest piece of a wrong value that a message repeats, in characters.
const SHOWN: usize = 200;

/// What is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The file is no TOML. The line itself is not repeated: it may hold a secret.
    #[error("configuration file {}, line {line}, column {column}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// A key that no section has.
    #[error("{key}, set {origin}, is no setting; {} has: {known}", section(key))]
    Unknown {
        /// The dotted key.
        key: String,
        /// Where it was set.
        origin: Origin,
        /// The keys that there are.
        known: String,
    },
    /// A key that has to be there and is not.
    #[error("{key} is missing {origin}")]
    Missing {
        /// The dotted key.
        key: String,
        /// Where the table is that lacks it.
        origin: Origin,
    },
    /// A value of the wrong type or out of range.
    #[error("{key} is {value} {origin}; it must be {allowed}")]
    Value {
        /// The dotted key.
        key: String,
        /// What it was set to.
        value: String,
        /// Where it was set.
        origin: Origin,
        /// What it may be.
        allowed: String,
    },
    /// A value that its type refuses for a reason of its own.
    #[error("{key} is {value} {origin}: {reason}")]
    Refused {
        /// The dotted key.
        key: String,
        /// What it was set to.
        value: String,
        /// Where it was set.
        origin: Origin,
        /// Why it is refused.
        reason: String,
    },
    /// A secret cannot be read.
    #[error("secret {reference}: {reason}")]
    Secret {
        /// Where it was to be read from.
        reference: String,
        /// Why not.
        reason: String,
    },
}

/// Where a setting was set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: its default, or a program that built the [`Config`](super::Config) itself.
    #[default]
    Code,
    /// In the file; the line is counted from 1.
    File(PathBuf, Option<usize>),
    /// In this environment variable.
    Environment(String),
    /// By a flag.
    CommandLine,
}

impl Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code => f.write_str("in code"),
            Self::File(path, None) => write!(f, "in {}", path.display()),
            Self::File(path, Some(line)) => write!(f, "in {}, line {line}", path.display()),
            Self::Environment(name) => write!(f, "in the environment variable {name}"),
            Self::CommandLine => f.write_str("on the command line"),
        }
    }
}

impl ConfigError {
    pub(crate) fn value(key: &'static str, value: impl Display, allowed: impl Display) -> Self {
        let (value, allowed) = (shown(value), allowed.to_string());
        Self::Value { key: key.to_owned(), value, origin: Origin::Code, allowed }
    }

    pub(crate) fn secret(reference: &str, reason: impl Display) -> Self {
        Self::Secret { reference: reference.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn range<T: PartialOrd + Display + Copy>(
        key: &'static str,
        value: T,
        allowed: RangeInclusive<T>,
    ) -> Result<(), Self> {
        if allowed.contains(&value) {
            return Ok(());
        }
        Err(Self::value(key, value, format_args!("from {} to {}", allowed.start(), allowed.end())))
    }

    /// What figment's error says of `key`; `found` is the text at that key, if it is text.
    pub(super) fn from_figment(kind: Kind, key: String, found: Option<&str>, origin: Origin) -> Self {
        // Whoever writes a key itself where its reference belongs has put a secret at any place of this section.
        let hidden = key == "auth" || key.starts_with("auth.");
        let value = |text: String| if hidden { "(not shown)".to_owned() } else { text };
        match kind {
            Kind::UnknownField(_, known) => Self::Unknown { key, origin, known: known.join(", ") },
            Kind::MissingField(field) => {
                let key = if key.is_empty() { field.into_owned() } else { format!("{key}.{field}") };
                Self::Missing { key, origin }
            }
            Kind::UnknownVariant(variant, known) => Self::Value {
                value: value(shown(variant)),
                allowed: format!("one of {}", known.join(", ")),
                key,
                origin,
            },
            Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
                Self::Value { value: value(describe(&found)), allowed: in_words(expected), key, origin }
            }
            other => {
                let value = value(found.map_or_else(|| "a value".into(), shown));
                Self::Refused { key, value, origin, reason: other.to_string() }
            }
        }
    }

    /// Adds where a value came from that was found wrong after the layers were put together.
    pub(super) fn located(mut self, place: impl FnOnce(&str) -> Origin) -> Self {
        if let Self::Value { key, origin, .. } = &mut self {
            *origin = place(key);
        }
        self
    }
}

/// `[server]` of `server.port`.
fn section(key: &str) -> String {
    key.rsplit_once('.').map_or_else(|| "the configuration".into(), |(section, _)| format!("[{section}]"))
}

fn shown(value: impl Display) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        None => format!("`{text}`"),
        Some((end, _)) => format!("`{}…`", &text[..end]),
    }
}

fn describe(found: &Actual) -> String {
    match found {
        Actual::Bool(value) => shown(value),
        Actual::Unsigned(value) => shown(value),
        Actual::Signed(value) => shown(value),
        Actual::Float(value) => shown(value),
        Actual::Str(value) => shown(value),
        Actual::Seq => "a list".into(),
        Actual::Map => "a table".into(),
        other => other.to_string(),
    }
}

/// What serde calls the expected type, for those who do not write Rust.
fn in_words(expected: String) -> String {
    match expected.as_str() {
        "u16" => "a whole number from 0 to 65535".into(),
        "u32" | "u64" | "usize" => "a whole number, 0 or more".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list".into(),
        "string or map" => "a text from the list of allowed ones".into(),
        _ if expected.starts_with("struct ") => "a table".into(),
        _ => expected,
    }
}
