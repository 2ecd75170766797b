//! The configuration file as a layer.

use std::io::Read;
use std::path::{Path, PathBuf};

use figment::value::Dict;
use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// Largest file that is read, in bytes. The one with every setting has about 4 KiB; what is larger is some other file.
const LARGEST: u64 = 1 << 20;

/// A configuration file that was read and parsed.
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    text: String,
}

impl ConfigFile {
    /// Reads the file. Anything that can be read will do, a pipe too.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let error = |reason: String| ConfigError::File { path: path.to_owned(), reason };
        let mut bytes = Vec::new();
        // Not fs_err: the path is in our message already.
        std::fs::File::open(path)
            .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
            .map_err(|reason| error(reason.to_string()))?;
        if bytes.len() as u64 > LARGEST {
            return Err(error(format!("it has more than {LARGEST} bytes, so it is no configuration")));
        }
        let text = String::from_utf8(bytes).map_err(|_| error("it is no text in UTF-8".into()))?;
        Ok(Self { path: path.to_owned(), text })
    }

    /// What the file sets.
    pub(super) fn dict(&self) -> Result<Dict, ConfigError> {
        toml::from_str(&self.text).map_err(|error| {
            let (line, column) = self.place(error.span().map_or(0, |span| span.start));
            ConfigError::Syntax { path: self.path.clone(), line, column, reason: error.message().to_owned() }
        })
    }

    /// The line, counted from 1, of a key or an element of a list; of what is around it, if it is not there itself.
    pub(super) fn line_of(&self, path: &[String]) -> Option<usize> {
        let table = DeTable::parse(&self.text).ok()?;
        let mut here = DeValue::Table(table.into_inner());
        let mut start = None;
        for segment in path {
            let next = match here {
                DeValue::Table(table) => {
                    let entry = table.into_iter().find(|(key, _)| key.get_ref() == segment.as_str());
                    entry.map(|(key, value)| (key.span(), value.into_inner()))
                }
                DeValue::Array(array) => {
                    let element = segment.parse().ok().and_then(|index| array.into_iter().nth(index));
                    element.map(|value| (value.span(), value.into_inner()))
                }
                _ => None,
            };
            let Some((span, value)) = next else { break };
            start = Some(span.start);
            here = value;
        }
        start.map(|start| self.place(start).0)
    }

    /// Line and column, both counted from 1, of a byte.
    fn place(&self, byte: usize) -> (usize, usize) {
        let before = self.text.get(..byte).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}
