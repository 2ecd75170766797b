//! Files for runs: the async side of [`files`].

use std::path::PathBuf;

use reground_learner::store::rows::FileRow;
use reground_learner::store::{Page, Query};

use super::files;
use super::{Runs, RunsError};

impl Runs {
    /// The file of an id.
    ///
    /// # Errors
    /// There is none.
    pub async fn file(&self, id: &str) -> Result<FileRow, RunsError> {
        let id = id.to_owned();
        self.shared.with_store(move |store| files::get(store, &id)).await
    }

    /// The file of an id, and where its bytes are.
    ///
    /// # Errors
    /// There is none.
    pub async fn file_content(&self, id: &str) -> Result<(FileRow, PathBuf), RunsError> {
        let row = self.file(id).await?;
        let path = self.shared.store.blob_path(&row.digest)?;
        Ok((row, path))
    }

    /// Files, a page at a time.
    ///
    /// # Errors
    /// The store failed.
    pub async fn files(&self, query: Query) -> Result<Page<FileRow>, RunsError> {
        self.shared.with_store(move |store| files::list(store, &query)).await
    }

    /// Removes a file.
    ///
    /// # Errors
    /// See [`files::remove`].
    pub async fn remove_file(&self, id: &str) -> Result<(), RunsError> {
        let id = id.to_owned();
        let anchors = self.shared.train.anchors.clone();
        self.shared.with_store(move |store| files::remove(store, &id, &anchors)).await
    }
}
