//! Several rows at once: all of them are stored, with their indexes, or none.

use std::collections::{BTreeMap, BTreeSet};

use super::encoding::{self, Encoded};
use super::rows::Row;
use super::{StoreError, id, keys};
use crate::bpo::data::blobs::BlobDir;

/// What is being changed. Nobody else changes anything meanwhile; it sees its own changes.
pub struct Transaction<'a> {
    db: &'a sled::Db,
    blobs: &'a BlobDir,
    changes: BTreeMap<String, Option<Vec<u8>>>,
    /// Blobs that rows no longer need.
    released: BTreeSet<String>,
}

/// What a transaction changes.
pub(super) struct Changes {
    pub(super) batch: sled::Batch,
    /// Blobs that rows need now.
    pub(super) needed: BTreeSet<String>,
    /// Blobs that rows no longer need; others still may.
    pub(super) released: Vec<String>,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(db: &'a sled::Db, blobs: &'a BlobDir) -> Self {
        Self { db, blobs, changes: BTreeMap::new(), released: BTreeSet::new() }
    }

    fn raw(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match self.changes.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => Ok(self.db.get(key)?.map(|value| value.to_vec())),
        }
    }

    /// The row with an id.
    ///
    /// # Errors
    /// It is damaged, or the store failed.
    pub fn get<R: Row>(&self, id: &str) -> Result<Option<R>, StoreError> {
        let raw = self.raw(&keys::row(R::KIND, id))?;
        raw.map(|raw| encoding::decode(id, &raw, self.blobs)).transpose()
    }

    /// The text of the row with an id.
    ///
    /// # Errors
    /// It is damaged, or the store failed.
    pub(super) fn text<R: Row>(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let damaged = |why| StoreError::Damaged { kind: R::KIND, id: id.to_owned(), why };
        let raw = self.raw(&keys::row(R::KIND, id))?;
        raw.map(|raw| encoding::json(&raw, self.blobs).map(|(_, text)| text.into_owned())).transpose().map_err(damaged)
    }

    /// The row with an id, which must be there.
    ///
    /// # Errors
    /// [`StoreError::Missing`], or as [`Self::get`].
    pub fn need<R: Row>(&self, id: &str) -> Result<R, StoreError> {
        self.get(id)?.ok_or_else(|| StoreError::Missing { kind: R::KIND, id: id.to_owned() })
    }

    /// Ids of the rows that an index has under a value, as of now.
    ///
    /// # Errors
    /// The store failed.
    pub fn ids<R: Row>(&self, index: &str, value: &str) -> Result<Vec<String>, StoreError> {
        let prefix = keys::index(R::KIND, index, value);
        let mut ids = BTreeSet::new();
        for found in self.db.scan_prefix(&prefix).keys() {
            ids.insert(keys::id(&found?).to_owned());
        }
        for (key, change) in self.changes.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix)) {
            let found = keys::id(key.as_bytes());
            if change.is_some() {
                ids.insert(found.to_owned());
            } else {
                ids.remove(found);
            }
        }
        Ok(ids.into_iter().collect())
    }

    /// Adds a row whose id is new.
    ///
    /// # Errors
    /// [`StoreError::Exists`], or as [`Self::put`].
    pub fn insert<R: Row>(&mut self, row: &R) -> Result<(), StoreError> {
        if self.raw(&keys::row(R::KIND, row.id()))?.is_some() {
            return Err(StoreError::Exists { kind: R::KIND, id: row.id().to_owned() });
        }
        self.put(row)
    }

    /// Adds a row, or replaces the one with its id.
    ///
    /// # Errors
    /// The id is none, a blob that it needs is not there, or the store failed.
    pub fn put<R: Row>(&mut self, row: &R) -> Result<(), StoreError> {
        self.put_text(row, &encoding::text(row)?)
    }

    /// Adds or replaces a row as [`Self::put`] does, in this text.
    pub(super) fn put_text<R: Row>(&mut self, row: &R, text: &[u8]) -> Result<(), StoreError> {
        if !id::is_id(row.id()) {
            return Err(StoreError::BadId(row.id().chars().take(128).collect()));
        }
        let invalid = |why: String| StoreError::Invalid { kind: R::KIND, id: row.id().to_owned(), why };
        row.check().map_err(invalid)?;
        for (kind, id) in row.references() {
            if self.raw(&keys::row(kind, id))?.is_none() {
                return Err(invalid(format!("{kind} `{id}` is not there")));
            }
        }
        for digest in row.blobs() {
            if !self.blobs.contains(digest) {
                return Err(invalid(format!("blob {digest} is not there")));
            }
        }
        // A damaged row can be replaced: `verify` finds what its indexes leave behind.
        match self.remove::<R>(row.id()) {
            Ok(_) | Err(StoreError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        let Encoded { bytes, spilled } = encoding::encode(R::VERSION, text, self.blobs)?;
        for digest in row.blobs().into_iter().chain(spilled.as_deref()) {
            self.changes.insert(keys::needs(digest, R::KIND, row.id()), Some(Vec::new()));
            self.released.remove(digest);
        }
        for (index, value) in row.indexes() {
            self.changes.insert(keys::index(R::KIND, index, &value) + row.id(), Some(Vec::new()));
        }
        self.changes.insert(keys::row(R::KIND, row.id()), Some(bytes));
        Ok(())
    }

    /// Changes the row with an id, and gives back what it is then.
    ///
    /// # Errors
    /// [`StoreError::Missing`], or as [`Self::put`].
    pub fn update<R: Row>(&mut self, id: &str, change: impl FnOnce(&mut R)) -> Result<R, StoreError> {
        let mut row = self.need::<R>(id)?;
        change(&mut row);
        if row.id() != id {
            let why = format!("its id was changed to `{}`", row.id());
            return Err(StoreError::Invalid { kind: R::KIND, id: id.to_owned(), why });
        }
        self.put(&row)?;
        Ok(row)
    }

    /// Removes the row with an id; `None` when there is none.
    ///
    /// # Errors
    /// It is damaged, or the store failed.
    pub fn remove<R: Row>(&mut self, id: &str) -> Result<Option<R>, StoreError> {
        let key = keys::row(R::KIND, id);
        let Some(raw) = self.raw(&key)? else { return Ok(None) };
        self.changes.insert(key, None);
        let row: R = encoding::decode(id, &raw, self.blobs)?;
        for (index, value) in row.indexes() {
            self.changes.insert(keys::index(R::KIND, index, &value) + id, None);
        }
        for digest in row.blobs().into_iter().chain(encoding::spilled(&raw)) {
            self.changes.insert(keys::needs(digest, R::KIND, id), None);
            self.released.insert(digest.to_owned());
        }
        Ok(Some(row))
    }

    /// Removes the row with an id even if it cannot be read: whether it was there, and the row if it could. What points to a
    /// damaged one is looked for among all index entries.
    ///
    /// # Errors
    /// The store failed.
    pub(super) fn purge<R: Row>(&mut self, id: &str) -> Result<(bool, Option<R>), StoreError> {
        let why = match self.remove::<R>(id) {
            Err(StoreError::Damaged { why, .. }) => why,
            removed => return removed.map(|row| (row.is_some(), row)),
        };
        tracing::warn!(kind = R::KIND, id, why, "A damaged row is removed");
        for key in self.db.scan_prefix(keys::all_indexes(R::KIND)).keys() {
            let key = key?;
            if keys::id(&key) == id {
                self.changes.insert(String::from_utf8_lossy(&key).into_owned(), None);
            }
        }
        for key in self.db.scan_prefix(keys::NEEDS).keys() {
            let key = key?;
            let need = keys::needed(&key).filter(|(_, kind, needs)| (*kind, *needs) == (R::KIND, id));
            if let Some((digest, ..)) = need {
                self.released.insert(digest.to_owned());
                self.changes.insert(keys::needs(digest, R::KIND, id), None);
            }
        }
        Ok((true, None))
    }

    pub(super) fn into_changes(self) -> Changes {
        let (mut batch, mut needed) = (sled::Batch::default(), BTreeSet::new());
        for (key, change) in self.changes {
            match change {
                Some(value) => {
                    needed.extend(keys::needed(key.as_bytes()).map(|(digest, ..)| digest.to_owned()));
                    batch.insert(key.as_bytes(), value);
                }
                None => batch.remove(key.as_bytes()),
            }
        }
        Changes { batch, needed, released: self.released.into_iter().collect() }
    }
}
