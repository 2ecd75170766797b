//! Loading an adapter of the library beside what is loaded, and seeing whether it is fit for traffic.

use std::path::PathBuf;

use tracing::info;

use super::error::RolloutError;
use super::generations::LoadError;
use super::probe;
use super::rollout::Rollout;
use crate::engine::GenerationId;

impl Rollout {
    /// Loads a generation beside the others and sees whether it is fit for traffic.
    pub(super) async fn admit(&self, id: &GenerationId) -> Result<(), RolloutError> {
        self.ensure_loaded(id).await?;
        self.probe(id).await
    }

    /// Unloads what a change that was not made may have loaded.
    pub(super) async fn let_go(&self, id: &GenerationId) {
        // Under the lock: another change may be about to switch to it.
        let _one_at_a_time = self.change.lock().await;
        if !self.keeps(&self.route(), id) {
            self.unload(id);
        }
    }

    /// Unloads a generation that somebody loaded by its name; answers under way keep it.
    ///
    /// # Errors
    /// It is not loaded, or the route needs it.
    pub async fn unload_named(&self, id: &GenerationId) -> Result<(), LoadError> {
        let _one_at_a_time = self.change.lock().await;
        self.generations.unload(id)
    }

    /// Whether a loaded generation is fit for traffic.
    pub(super) async fn probe(&self, id: &GenerationId) -> Result<(), RolloutError> {
        if *id == GenerationId::base() {
            return Ok(());
        }
        let adapter = self.generations.get(id).ok_or_else(|| LoadError::Unknown(id.clone()))?;
        let change = probe::compare(self.reference().await?, &adapter).await?;
        info!(generation = %id, change_nats = change, "The adapter was probed.");
        Ok(())
    }

    /// What the base says to the probe. It is asked once, while it is loaded.
    pub(super) async fn reference(&self) -> Result<&[(u32, f32)], RolloutError> {
        let ask = async {
            let base = GenerationId::base();
            let base = self.generations.get(&base).ok_or(LoadError::Unknown(base))?;
            Ok::<_, RolloutError>(probe::reference(&base).await?)
        };
        self.reference.get_or_try_init(|| ask).await.map(Vec::as_slice)
    }

    /// Loads an adapter of the library, if it is not loaded.
    pub(super) async fn ensure_loaded(&self, id: &GenerationId) -> Result<(), RolloutError> {
        if *id == GenerationId::base() && self.generations.get(id).is_some() {
            return Ok(());
        }
        let directory = self.directory(id).await?;
        match self.generations.bring_up(id, directory).await {
            Ok(()) | Err(LoadError::Exists(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Where a generation's adapter is, its files being those that were taken in; the base has none.
    pub(super) async fn directory(&self, id: &GenerationId) -> Result<Option<PathBuf>, RolloutError> {
        if *id == GenerationId::base() {
            return Ok(None);
        }
        self.verified(id.as_str()).await.map(Some)
    }
}
