//! Files for runs: the async side of [`files`].

use std::io;
use std::path::PathBuf;

use reground_learner::store::rows::FileRow;
use reground_learner::store::{Page, Query};

use super::files::{self, Upload};
use super::{Runs, RunsError};

impl Runs {
    /// Takes in an uploaded file, which lies in [`Self::incoming`]; it is gone from there afterwards.
    ///
    /// # Errors
    /// See [`files::add`].
    pub async fn add_file(&self, path: PathBuf, upload: Upload) -> Result<FileRow, RunsError> {
        self.shared.with_store(move |store| files::add(store, &path, upload)).await
    }

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

    /// A directory for files on their way in, on the file system that keeps them.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn incoming(&self) -> io::Result<PathBuf> {
        let directory = self.shared.store.directory().join("incoming");
        fs_err::create_dir_all(&directory)?;
        Ok(directory)
    }
}
