//! The adapters that are kept on disk, as the rollout hands them out.

use std::path::PathBuf;

use reground_learner::adapter::WEIGHTS_FILE;
use reground_learner::store::rows::Run;
use reground_learner::store::{Query, Store};

use super::error::RolloutError;
use super::library::{Manifest, Origin};
use super::rollout::{Rollout, blocking};
use crate::engine::GenerationId;

impl Rollout {
    /// All adapters on disk, oldest first.
    ///
    /// # Errors
    /// The file system failed.
    pub async fn adapters(&self) -> Result<Vec<Manifest>, RolloutError> {
        Ok(blocking(&self.library, |library| library.list()).await?)
    }

    /// What is known of an adapter.
    ///
    /// # Errors
    /// There is none of the id.
    pub async fn adapter(&self, id: &str) -> Result<Manifest, RolloutError> {
        let id = id.to_owned();
        Ok(blocking(&self.library, move |library| library.get(&id)).await?)
    }

    /// The directory of an adapter whose files are those that were taken in, for the model that is served.
    ///
    /// # Errors
    /// There is none of the id, its files were changed, or another model is served.
    pub async fn verified(&self, id: &str) -> Result<PathBuf, RolloutError> {
        let (id, base_digest) = (id.to_owned(), self.base_digest.clone());
        Ok(blocking(&self.library, move |library| library.verified(&id, base_digest.as_deref())).await?)
    }

    /// Takes in the PEFT adapter in a directory. Traffic does not change, and nothing is loaded yet.
    ///
    /// # Errors
    /// The files are no adapter, or cannot be copied, or the disk has no room for them.
    pub async fn import(&self, directory: PathBuf, mut origin: Origin) -> Result<Manifest, RolloutError> {
        origin.base_digest.clone_from(&self.base_digest);
        let weights = directory.join(WEIGHTS_FILE);
        // What is not there takes no room, and is told of by the import itself.
        let room = move |store: &Store| store.check_room(fs_err::metadata(&weights).map_or(0, |file| file.len()));
        self.stored(room).await?;
        Ok(blocking(&self.library, move |library| library.import(&directory, origin)).await?)
    }

    /// Removes an adapter that the route does not need. Answers under way keep it until they are done.
    ///
    /// # Errors
    /// It is not there, or it is in use.
    pub async fn remove(&self, id: &str) -> Result<(), RolloutError> {
        let _one_at_a_time = self.change.lock().await;
        let generation = GenerationId::from(id);
        if self.route().uses(&generation) {
            return Err(RolloutError::InUse(generation));
        }
        let parent = id.to_owned();
        let begun =
            self.stored(move |store| Ok(store.list_readable::<Run>(&Query::by("parent", parent.as_str()))?.rows));
        if let Some(run) = begun.await?.into_iter().find(|run| run.state.is_open()) {
            return Err(RolloutError::Continued { id: generation, run: run.id });
        }
        let id = id.to_owned();
        blocking(&self.library, move |library| library.remove(&id)).await?;
        self.unload(&generation);
        Ok(())
    }
}
