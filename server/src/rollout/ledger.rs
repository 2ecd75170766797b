//! The route and its history on disk: what was acknowledged is there after a crash.

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use reground_learner::bpo::files;
use serde::{Deserialize, Serialize};

use super::route::Route;

/// One change of the route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Seconds since 1970.
    pub at: u64,
    /// The name of the key that asked for it, or `reground`.
    pub by: String,
    /// `activate`, `canary`, `rollback`, `fallback`.
    pub what: String,
    /// The route before.
    pub before: Route,
    /// The route after.
    pub after: Route,
}

/// `rollout.json`, the route; `rollout.log`, every change, one JSON object a line.
pub(super) struct Ledger {
    directory: PathBuf,
}

impl Ledger {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The route that was live when the server stopped; `None` if none was ever changed.
    pub(super) fn route(&self) -> io::Result<Option<Route>> {
        match fs_err::read(self.directory.join("rollout.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a change; it survives a power cut once this returns. The log is written first: a crash between the two leaves
    /// a line for a change that did not happen, never a change without a line.
    pub(super) fn write(&self, change: &Change) -> io::Result<()> {
        fs_err::create_dir_all(&self.directory)?;
        let path = self.log();
        let mut log = fs_err::OpenOptions::new().create(true).append(true).open(&path)?;
        let mut line = serde_json::to_vec(change)?;
        line.push(b'\n');
        log.write_all(&line)?;
        log.sync_data()?;
        files::write_atomic(&self.directory.join("rollout.json"), |file| {
            serde_json::to_writer_pretty(file, &change.after).map_err(io::Error::other)
        })
    }

    /// The last changes, newest first. A line that a crash cut short is left out.
    pub(super) fn changes(&self, most: usize) -> io::Result<Vec<Change>> {
        let log = match fs_err::File::open(self.log()) {
            Ok(log) => log,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut changes = Vec::new();
        for line in io::BufReader::new(log).lines() {
            changes.extend(serde_json::from_str(&line?).ok());
        }
        changes.reverse();
        changes.truncate(most);
        Ok(changes)
    }

    fn log(&self) -> PathBuf {
        self.directory.join("rollout.log")
    }

    /// Where the ledger is.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(live: &str, before: Route) -> Change {
        let after = Route { live: live.into(), previous: Some(before.live.clone()), canary: None };
        Change { at: 1, by: "test".into(), what: "activate".into(), before, after }
    }

    #[test]
    fn what_was_written_is_read_again_newest_first() {
        let place = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(place.path().join("data"));
        assert_eq!(ledger.route().unwrap(), None);
        assert_eq!(ledger.changes(5).unwrap(), []);
        let first = change("ad-1", Route::default());
        let second = change("ad-2", first.after.clone());
        ledger.write(&first).unwrap();
        ledger.write(&second).unwrap();
        assert_eq!(ledger.route().unwrap(), Some(second.after.clone()));
        assert_eq!(ledger.changes(5).unwrap(), [second.clone(), first]);
        assert_eq!(ledger.changes(1).unwrap(), [second]);
    }

    #[test]
    fn a_line_that_was_cut_short_costs_only_itself() {
        let place = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(place.path().to_owned());
        let first = change("ad-1", Route::default());
        ledger.write(&first).unwrap();
        let mut log = fs_err::OpenOptions::new().append(true).open(place.path().join("rollout.log")).unwrap();
        log.write_all(b"{\"at\": 2, \"by\": ").unwrap();
        assert_eq!(ledger.changes(5).unwrap(), [first]);
    }
}
