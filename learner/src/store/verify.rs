//! Looking the whole store over: rows, indexes, references and blobs, and repairing what can be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use serde::Serialize;

use super::rows::{AdapterRow, Audit, Feedback, FileRow, Pair, Record, RolloutState, Row, Run, RunEvent};
use super::{Store, StoreError, encoding, keys};
use crate::bpo::data::blobs::{BlobDir, Blobs};

/// What a look over the whole store found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Rows by kind.
    pub rows: BTreeMap<&'static str, usize>,
    /// Blobs.
    pub blobs: usize,
    /// Bytes of all blobs.
    pub blob_bytes: u64,
    /// What is wrong, a sentence each. Empty in a sound store.
    pub problems: Vec<String>,
    /// Feedback whose record never came, because the server died in the middle of the answer. No fault.
    pub waiting_feedback: usize,
    /// Index entries that were written or removed.
    pub repaired: usize,
}

/// What is in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Rows by kind.
    pub rows: BTreeMap<&'static str, usize>,
    /// Blobs.
    pub blobs: usize,
    /// Bytes of all blobs.
    pub blob_bytes: u64,
    /// Bytes of sled's files.
    pub sled_bytes: u64,
}

struct Survey<'a> {
    db: &'a sled::Db,
    blobs: &'a BlobDir,
    report: Verified,
    /// Index and blob entries that must be there.
    entries: BTreeSet<String>,
    /// Kind and id of rows that cannot be read: what points to them stays, so that they can be found and deleted.
    damaged: BTreeSet<(String, String)>,
}

impl Store {
    /// Reads every row and every blob. With `repair`, index entries are set right; damaged rows and blobs are reported and left
    /// for people. Nothing else is written meanwhile.
    ///
    /// # Errors
    /// The store failed.
    pub fn verify(&self, repair: bool) -> Result<Verified, StoreError> {
        let _nobody_writes = self.blob_use.write().unwrap_or_else(PoisonError::into_inner);
        self.read(|db| {
            let mut survey = Survey {
                db,
                blobs: &self.blobs,
                report: Verified::default(),
                entries: BTreeSet::new(),
                damaged: BTreeSet::new(),
            };
            survey.kind::<Record>()?;
            survey.kind::<Feedback>()?;
            survey.kind::<Pair>()?;
            survey.kind::<Run>()?;
            survey.kind::<AdapterRow>()?;
            survey.kind::<RolloutState>()?;
            survey.kind::<Audit>()?;
            survey.kind::<FileRow>()?;
            survey.kind::<RunEvent>()?;
            survey.feedback()?;
            survey.blobs()?;
            survey.indexes(repair)?;
            if repair {
                db.flush()?;
            }
            Ok(survey.report)
        })
    }

    /// What is in the store.
    ///
    /// # Errors
    /// The store failed.
    pub fn stats(&self) -> Result<Stats, StoreError> {
        let blobs = self.blobs.list()?;
        self.read(|db| {
            let mut rows = BTreeMap::new();
            for kind in KINDS {
                let mut count = 0;
                for key in db.scan_prefix(keys::rows(kind)).keys() {
                    key?;
                    count += 1;
                }
                rows.insert(kind, count);
            }
            let blob_bytes = blobs.iter().map(|(_, size)| size).sum();
            Ok(Stats { rows, blobs: blobs.len(), blob_bytes, sled_bytes: db.size_on_disk()? })
        })
    }
}

/// Every kind of row.
pub(super) const KINDS: [&str; 9] = [
    Record::KIND,
    Feedback::KIND,
    Pair::KIND,
    Run::KIND,
    AdapterRow::KIND,
    RolloutState::KIND,
    Audit::KIND,
    FileRow::KIND,
    RunEvent::KIND,
];

impl Survey<'_> {
    fn kind<R: Row>(&mut self) -> Result<(), StoreError> {
        let mut count = 0;
        for row in self.db.scan_prefix(keys::rows(R::KIND)) {
            let (key, raw) = row?;
            count += 1;
            let id = keys::id(&key).to_owned();
            // Also of a damaged row: its blob must not look like garbage.
            self.entries.extend(encoding::spilled(&raw).map(|digest| keys::needs(digest, R::KIND, &id)));
            match encoding::decode::<R>(&id, &raw, self.blobs) {
                Ok(row) => self.row(&id, &row)?,
                Err(error) => {
                    self.report.problems.push(error.to_string());
                    self.damaged.insert((R::KIND.to_owned(), id));
                }
            }
        }
        self.report.rows.insert(R::KIND, count);
        Ok(())
    }

    fn row<R: Row>(&mut self, id: &str, row: &R) -> Result<(), StoreError> {
        let mut wrong = |what: String| self.report.problems.push(format!("{} `{id}`: {what}", R::KIND));
        if row.id() != id {
            wrong(format!("it calls itself `{}`", row.id()));
        }
        if let Err(why) = row.check() {
            wrong(why);
        }
        for (kind, other) in row.references() {
            if !self.db.contains_key(keys::row(kind, other))? {
                wrong(format!("{kind} `{other}` is not there"));
            }
        }
        for digest in row.blobs() {
            if !self.blobs.contains(digest) {
                wrong(format!("blob {digest} is not there"));
            }
            self.entries.insert(keys::needs(digest, R::KIND, id));
        }
        self.entries.extend(row.indexes().iter().map(|(name, value)| keys::index(R::KIND, name, value) + id));
        Ok(())
    }

    fn feedback(&mut self) -> Result<(), StoreError> {
        for row in self.db.scan_prefix(keys::rows(Feedback::KIND)) {
            let (key, raw) = row?;
            let Ok(feedback) = encoding::decode::<Feedback>(keys::id(&key), &raw, self.blobs) else { continue };
            let there = self.db.contains_key(keys::row(Record::KIND, &feedback.record))?;
            self.report.waiting_feedback += usize::from(!there);
        }
        Ok(())
    }

    fn blobs(&mut self) -> Result<(), StoreError> {
        for (digest, size) in self.blobs.list()? {
            self.report.blobs += 1;
            self.report.blob_bytes += size;
            if let Err(error) = self.blobs.get(&digest) {
                self.report.problems.push(format!("blob {digest}: {error}"));
            }
        }
        Ok(())
    }

    fn indexes(&mut self, repair: bool) -> Result<(), StoreError> {
        let mut found = BTreeSet::new();
        for prefix in ["x/", keys::NEEDS] {
            for key in self.db.scan_prefix(prefix).keys() {
                found.insert(String::from_utf8_lossy(&key?).into_owned());
            }
        }
        let mut batch = sled::Batch::default();
        for missing in self.entries.difference(&found) {
            self.report.problems.push(format!("index entry `{missing}` is missing"));
            batch.insert(missing.as_bytes(), b"");
            self.report.repaired += usize::from(repair);
        }
        let of_a_damaged_row = |entry: &str| {
            let kind = match keys::needed(entry.as_bytes()) {
                Some((_, kind, _)) => kind,
                None => entry.split('/').nth(1).unwrap_or_default(),
            };
            self.damaged.contains(&(kind.to_owned(), keys::id(entry.as_bytes()).to_owned()))
        };
        for extra in found.difference(&self.entries).filter(|entry| !of_a_damaged_row(entry)) {
            self.report.problems.push(format!("index entry `{extra}` is of no row"));
            batch.remove(extra.as_bytes());
            self.report.repaired += usize::from(repair);
        }
        if repair {
            self.db.apply_batch(batch)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;

    #[test]
    fn wrong_index_entries_are_found_and_set_right() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { min_free_bytes: 0, ..Options::default() };
        let store = Store::open(dir.path(), options).unwrap();
        store.change_rollout(None, "test", "pin", |_| Ok(())).unwrap();
        assert_eq!(store.verify(false).unwrap().problems, Vec::<String>::new());
        store
            .read(|db| {
                let of_who = db.scan_prefix("x/audit/who/").keys().next().unwrap()?;
                db.remove(of_who)?;
                db.insert("x/pair/state/new/pair-1", b"")?;
                Ok(db.insert("r/pair/pair-2", b"J\x01{").map(drop)?)
            })
            .unwrap();
        let found = store.verify(true).unwrap();
        assert_eq!((found.problems.len(), found.repaired), (3, 2), "{:?}", found.problems);
        assert_eq!(store.verify(false).unwrap().problems.len(), 1, "the damaged row stays for people to see");
    }
}
