//! The whole data directory in a form that other programs can read, and back: rows as JSON lines, files as they are.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::PoisonError;

use fs_err as fs;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::rows::{AdapterRow, Audit, Feedback, FileRow, Pair, Record, RolloutState, Row, Run, RunEvent};
use super::verify::KINDS;
use super::{Store, StoreError, Transaction, encoding, keys};
use crate::bpo::data::blobs::{BlobDir, Blobs};
use crate::bpo::files;

/// All rows, one a line: `{"kind": "record", "version": 1, "row": {…}}`. Written last: a directory with it is whole.
const ROWS: &str = "rows.jsonl";
/// Files of others in the data directory that rows tell of.
const FILES: [&str; 2] = ["adapters", "runs"];
/// Rows that are taken in at once.
const AT_ONCE: usize = 256;

/// What an export wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Rows.
    pub rows: usize,
    /// Blobs.
    pub blobs: usize,
    /// What is damaged and left out, a sentence each. Empty in a sound store.
    pub left_out: Vec<String>,
}

/// What an import took in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Rows that were added.
    pub rows: usize,
    /// Rows that were there already, and the same.
    pub same: usize,
    /// Blobs in the export.
    pub blobs: usize,
}

/// A line of [`ROWS`], without what comes last.
#[derive(Deserialize)]
struct Line {
    kind: String,
    version: u8,
    #[serde(rename = "row")]
    _row: IgnoredAny,
}

/// What a line has before its row.
const BEFORE: &str = ",\"row\":";

impl Store {
    /// Writes everything into a new directory: `rows.jsonl`, `blobs/`, and `adapters/` and `runs/` as they are. What is damaged is
    /// left out and named. Nothing else is written meanwhile.
    ///
    /// # Errors
    /// The directory is there and not empty, it cannot be written, or the store failed.
    pub fn export(&self, to: &Path) -> Result<Exported, StoreError> {
        fs::create_dir_all(to)?;
        if fs::read_dir(to)?.next().is_some() {
            let why = format!("{} is not empty", to.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why).into());
        }
        let _nobody_writes = self.blob_use.write().unwrap_or_else(PoisonError::into_inner);
        let mut exported = Exported::default();
        let blobs = BlobDir::new(to.join("blobs"));
        for (digest, _) in self.blobs.list()? {
            match self.blobs.get(&digest) {
                Ok(bytes) => {
                    blobs.put(&bytes)?;
                    exported.blobs += 1;
                }
                Err(error) => exported.left_out.push(format!("blob {digest}: {error}")),
            }
        }
        for name in FILES {
            copy(&self.core.directory.join(name), &to.join(name))?;
        }
        let mut rows = Ok(());
        files::write_atomic(&to.join(ROWS), |out| {
            rows = self.export_rows(out, &mut exported);
            Ok(())
        })?;
        rows.map(|()| exported)
    }

    fn export_rows(&self, out: &mut dyn Write, exported: &mut Exported) -> Result<(), StoreError> {
        self.read(|db| {
            for kind in KINDS {
                for row in db.scan_prefix(keys::rows(kind)) {
                    let (key, raw) = row?;
                    let text = encoding::json(&raw, &self.blobs).and_then(|(version, text)| {
                        serde_json::from_slice::<IgnoredAny>(&text).map_err(|error| error.to_string())?;
                        Ok((version, text))
                    });
                    match text {
                        Ok((version, text)) => {
                            // The stored text itself, here and in an import: read and written anew, a number may change its
                            // last digit.
                            write!(out, "{{\"kind\":\"{kind}\",\"version\":{version}{BEFORE}")?;
                            out.write_all(&text)?;
                            out.write_all(b"}\n")?;
                            exported.rows += 1;
                        }
                        Err(why) => exported.left_out.push(format!("{kind} `{}`: {why}", keys::id(&key))),
                    }
                }
            }
            Ok(())
        })
    }

    /// Takes in what [`Self::export`] wrote. Rows that are there already must be the same: so an import that was interrupted can be
    /// run again, and none changes anything. On disk when this returns.
    ///
    /// # Errors
    /// The directory is no export, a row of it cannot be read or contradicts what is here (named by its line), or the store failed.
    pub fn import(&self, from: &Path) -> Result<Imported, StoreError> {
        let lines = BufReader::new(fs::File::open(from.join(ROWS))?).lines();
        let mut imported = Imported::default();
        let blobs = BlobDir::new(from.join("blobs"));
        for (digest, _) in blobs.list()? {
            Blobs::put(self, &blobs.get(&digest)?)?;
            imported.blobs += 1;
        }
        for name in FILES {
            copy(&from.join(name), &self.core.directory.join(name))?;
        }
        let mut lines = lines.enumerate().peekable();
        while lines.peek().is_some() {
            self.write_behind(|rows| {
                for (number, line) in lines.by_ref().take(AT_ONCE) {
                    let added = take_in(rows, &line?)
                        .map_err(|error| StoreError::Import { line: number + 1, why: error.to_string() })?;
                    *if added { &mut imported.rows } else { &mut imported.same } += 1;
                }
                Ok(())
            })?;
        }
        self.flush()?;
        Ok(imported)
    }
}

/// Adds the row of a line; `false` if it is there already.
fn take_in(rows: &mut Transaction<'_>, line: &str) -> Result<bool, StoreError> {
    let Line { kind, version, .. } = serde_json::from_str(line).map_err(io::Error::from)?;
    let row = line.split_once(BEFORE).and_then(|(_, rest)| rest.trim_end().strip_suffix('}'));
    let row = row.ok_or_else(|| io::Error::other("`row` does not come last"))?;
    match kind.as_str() {
        Record::KIND => add::<Record>(rows, version, row),
        Feedback::KIND => add::<Feedback>(rows, version, row),
        Pair::KIND => add::<Pair>(rows, version, row),
        Run::KIND => add::<Run>(rows, version, row),
        AdapterRow::KIND => add::<AdapterRow>(rows, version, row),
        RolloutState::KIND => add::<RolloutState>(rows, version, row),
        Audit::KIND => add::<Audit>(rows, version, row),
        FileRow::KIND => add::<FileRow>(rows, version, row),
        RunEvent::KIND => add::<RunEvent>(rows, version, row),
        other => Err(io::Error::other(format!("there are no rows of kind `{other}`")).into()),
    }
}

fn add<R: Row>(rows: &mut Transaction<'_>, version: u8, text: &str) -> Result<bool, StoreError> {
    let row: R = encoding::parse("in the export", version, text.as_bytes())?;
    let text = if version == R::VERSION { text.as_bytes().to_vec() } else { encoding::text(&row)? };
    match rows.text::<R>(row.id())? {
        None => rows.put_text(&row, &text).map(|()| true),
        Some(there) if there == text => Ok(false),
        Some(_) => Err(StoreError::Exists { kind: R::KIND, id: row.id().to_owned() }),
    }
}

/// Copies files and directories that are not there yet. Hidden ones are half written, and links lead elsewhere.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, entry.file_name());
        let target = to.join(&name);
        if kind.is_dir() && !name.to_string_lossy().starts_with('.') {
            copy(&entry.path(), &target)?;
        } else if kind.is_file() && !name.to_string_lossy().starts_with('.') && !target.exists() {
            let mut file = fs::File::open(entry.path())?;
            files::write_atomic(&target, |out| io::copy(&mut file, out).map(drop))?;
        }
    }
    files::sync_parent(to)
}
