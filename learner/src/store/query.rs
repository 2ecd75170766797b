//! Reading: one row, or a page of them.

use std::sync::PoisonError;

use super::rows::Row;
use super::{Store, StoreError, encoding, keys};
use crate::bpo::data::blobs::BlobDir;

/// Which rows, and in which order.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Index and value that all of them have; empty: all rows. The first should be the rarest: the others are looked up.
    pub by: Vec<(&'static str, String)>,
    /// Begin behind this id.
    pub after: Option<String>,
    /// Most rows; 0: all.
    pub limit: usize,
    /// Latest first.
    pub newest_first: bool,
}

impl Query {
    /// Rows with a value in an index.
    #[must_use]
    pub fn by(index: &'static str, value: impl Into<String>) -> Self {
        Self { by: vec![(index, value.into())], ..Self::default() }
    }
}

/// A page of rows.
#[derive(Clone, Debug)]
pub struct Page<R> {
    /// The rows, in the order that was asked for.
    pub rows: Vec<R>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

impl Store {
    /// The row with an id.
    ///
    /// # Errors
    /// It is damaged, or the store failed.
    pub fn get<R: Row>(&self, id: &str) -> Result<Option<R>, StoreError> {
        self.read(|db| row(db, &self.blobs, id))
    }

    /// The row with an id, which must be there.
    ///
    /// # Errors
    /// [`StoreError::Missing`], or as [`Self::get`].
    pub fn need<R: Row>(&self, id: &str) -> Result<R, StoreError> {
        self.get(id)?.ok_or_else(|| StoreError::Missing { kind: R::KIND, id: id.to_owned() })
    }

    /// A page of rows. A row that goes while it is read is left out.
    ///
    /// # Errors
    /// A row is damaged, or the store failed.
    pub fn list<R: Row>(&self, query: &Query) -> Result<Page<R>, StoreError> {
        self.page(query, Err)
    }

    /// A page of rows, for whoever can do with fewer: one that is damaged is left out, so that it does not hide the others, and
    /// logged once.
    ///
    /// # Errors
    /// The store failed.
    pub fn list_readable<R: Row>(&self, query: &Query) -> Result<Page<R>, StoreError> {
        self.page(query, |error| match error {
            StoreError::Damaged { kind, ref id, .. } => {
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                if told.insert((kind, id.clone())) {
                    tracing::warn!("{error}; it is left out, and `reground store verify` tells what else is");
                }
                Ok(())
            }
            error => Err(error),
        })
    }

    fn page<R: Row>(
        &self,
        query: &Query,
        leave_out: impl Fn(StoreError) -> Result<(), StoreError>,
    ) -> Result<Page<R>, StoreError> {
        self.read(|db| {
            let mut page = Page { rows: Vec::new(), more: false };
            visit::<R>(db, query, |id| {
                if query.limit > 0 && page.rows.len() == query.limit {
                    page.more = db.contains_key(keys::row(R::KIND, id))?;
                    return Ok(!page.more);
                }
                match row(db, &self.blobs, id) {
                    Ok(row) => page.rows.extend(row),
                    Err(error) => leave_out(error)?,
                }
                Ok(true)
            })?;
            Ok(page)
        })
    }

    /// How many rows there are; `limit` is not looked at.
    ///
    /// # Errors
    /// The store failed.
    pub fn count<R: Row>(&self, query: &Query) -> Result<usize, StoreError> {
        let mut count = 0;
        self.read(|db| {
            visit::<R>(db, query, |_| {
                count += 1;
                Ok(true)
            })
        })?;
        Ok(count)
    }
}

/// The row with an id. One that changes meanwhile is read anew: what it was may have been a blob that went with the change.
fn row<R: Row>(db: &sled::Db, blobs: &BlobDir, id: &str) -> Result<Option<R>, StoreError> {
    let key = keys::row(R::KIND, id);
    let mut raw = db.get(&key)?;
    while let Some(before) = raw {
        match encoding::decode(id, &before, blobs) {
            Err(error @ StoreError::Damaged { .. }) => {
                raw = db.get(&key)?;
                if raw.as_ref() == Some(&before) {
                    return Err(error);
                }
            }
            decoded => return decoded.map(Some),
        }
    }
    Ok(None)
}

/// Shows the ids of all rows that `query` asks for, until `show` has enough.
fn visit<R: Row>(
    db: &sled::Db,
    query: &Query,
    mut show: impl FnMut(&str) -> Result<bool, StoreError>,
) -> Result<(), StoreError> {
    let (prefix, others) = match query.by.split_first() {
        Some(((index, value), others)) => (keys::index(R::KIND, index, value), others),
        None => (keys::rows(R::KIND), &[][..]),
    };
    let end = prefix_end(&prefix);
    let behind = query.after.as_ref().map(|after| format!("{prefix}{after}"));
    let (from, to) = match (behind, query.newest_first) {
        (None, _) => (prefix, end),
        (Some(behind), false) => (format!("{behind}\0"), end),
        (Some(behind), true) => (prefix, behind),
    };
    if from >= to {
        return Ok(());
    }
    let mut found = db.range(from..to).keys();
    loop {
        let Some(key) = (if query.newest_first { found.next_back() } else { found.next() }) else { return Ok(()) };
        let key = key?;
        let id = keys::id(&key);
        let mut has_all = true;
        for (index, value) in others {
            has_all = has_all && db.contains_key(keys::index(R::KIND, index, value) + id)?;
        }
        if has_all && !show(id)? {
            return Ok(());
        }
    }
}

/// The first key behind all that begin with `prefix`, which ends with `/`.
fn prefix_end(prefix: &str) -> String {
    format!("{}0", prefix.strip_suffix('/').unwrap_or(prefix))
}
