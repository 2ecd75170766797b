//! Every change of the route: checked, written down, then switched.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use reground_learner::store::{Store, StoreError};
use thiserror::Error;
use tracing::{error, info, warn};

use super::generations::{Generations, LoadError};
use super::ledger::{self, Change};
use super::library::{Library, LibraryError, Manifest, Origin};
use super::probe::{self, ProbeError};
use super::route::{Canary, Route};
use crate::engine::GenerationId;

/// Who changes the route when no caller does.
const ITSELF: &str = "reground";

/// Why nothing was changed.
#[derive(Debug, Error)]
pub enum RolloutError {
    /// The caller's view is out of date.
    #[error("`expected_generation` is `{expected}`, but `{live}` is live; nothing was changed")]
    Stale {
        /// What the caller took for live.
        expected: GenerationId,
        /// What is.
        live: GenerationId,
    },
    /// There is nothing to go back to.
    #[error("there is nothing to roll back to: `{live}` is live and no generation was before it")]
    NoPrevious {
        /// What is live.
        live: GenerationId,
    },
    /// It is what it would become.
    #[error("generation `{0}` is live already")]
    AlreadyLive(GenerationId),
    /// The adapter is needed.
    #[error("adapter `{0}` is live, previous or canary and cannot be removed")]
    InUse(GenerationId),
    /// The adapter is not there, or is not what was taken in.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The adapter cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The adapter was loaded and is not fit for traffic.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The change could not be made durable.
    #[error("the change could not be written down, so it was not made: {0}")]
    Ledger(StoreError),
}

/// Puts adapters before callers and takes them back.
pub struct Rollout {
    generations: Arc<Generations>,
    library: Arc<Library>,
    store: Arc<Store>,
    /// One change at a time: what a change was checked against holds until it is made. But for the start, never held while a model loads.
    change: tokio::sync::Mutex<()>,
}

impl Rollout {
    /// Works on what is loaded and on what is kept.
    #[must_use]
    pub fn new(generations: Arc<Generations>, store: Arc<Store>) -> Self {
        Self {
            generations,
            library: Arc::new(Library::new(store.directory().join("adapters"))),
            store,
            change: tokio::sync::Mutex::new(()),
        }
    }

    /// Who answers now.
    #[must_use]
    pub fn route(&self) -> Route {
        self.generations.route()
    }

    /// Serves what was live when the server stopped. An adapter that no longer loads falls back to the previous one, or
    /// to the base, loudly.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub async fn restore(&self) -> Result<(), RolloutError> {
        let _one_at_a_time = self.change.lock().await;
        let Some(written) = self.stored(ledger::route).await? else {
            return Ok(());
        };
        let mut route = written.clone();
        if let Err(error) = self.ensure_loaded(&written.live).await {
            let fallback = written.previous.clone().unwrap_or_else(GenerationId::base);
            error!(generation = %written.live, %fallback, %error, "The live generation does not load; falling back.");
            route = Route { live: fallback, previous: None, canary: None };
            if let Err(error) = self.ensure_loaded(&route.live).await {
                error!(generation = %route.live, %error, "The previous generation does not load either; serving the base.");
                route = Route::default();
            }
        }
        for spare in [route.previous.clone(), route.canary.as_ref().map(|canary| canary.generation.clone())] {
            let Some(spare) = spare else { continue };
            if let Err(error) = self.ensure_loaded(&spare).await {
                warn!(generation = %spare, %error, "A generation of the route does not load; it is left out.");
                route.previous = route.previous.filter(|previous| *previous != spare);
                route.canary = route.canary.filter(|canary| canary.generation != spare);
            }
        }
        if route == written {
            self.generations.set_route(route)?;
        } else {
            self.make("fallback", ITSELF, written, route).await?;
        }
        info!(generation = %self.route().live, "Serving what was live before.");
        Ok(())
    }

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

    /// The directory of an adapter whose files are those that were taken in.
    ///
    /// # Errors
    /// There is none of the id, or its files were changed.
    pub async fn verified(&self, id: &str) -> Result<PathBuf, RolloutError> {
        let id = id.to_owned();
        Ok(blocking(&self.library, move |library| library.verified(&id)).await?)
    }

    /// Takes in the PEFT adapter in a directory. Traffic does not change, and nothing is loaded yet.
    ///
    /// # Errors
    /// The files are no adapter, or cannot be copied.
    pub async fn import(&self, directory: PathBuf, origin: Origin) -> Result<Manifest, RolloutError> {
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
        let id = id.to_owned();
        blocking(&self.library, move |library| library.remove(&id)).await?;
        self.unload(&generation).await;
        Ok(())
    }

    /// Makes a generation live; what was live becomes `previous` and stays loaded.
    ///
    /// # Errors
    /// Nothing is changed then; see [`RolloutError`].
    pub async fn activate(
        &self,
        id: &GenerationId,
        expected: Option<&GenerationId>,
        by: &str,
    ) -> Result<Route, RolloutError> {
        self.expect_other(id, expected)?;
        // Loading takes long, and a rollback must not wait for it: what is live is compared again after.
        self.admit(id).await?;
        let _one_at_a_time = self.change.lock().await;
        let before = self.expect_other(id, expected)?;
        let after = Route { live: id.clone(), previous: Some(before.live.clone()), canary: None };
        self.make("activate", by, before, after).await
    }

    /// Gives a share of the callers another generation; 0 percent ends it.
    ///
    /// # Errors
    /// Nothing is changed then; see [`RolloutError`].
    pub async fn canary(
        &self,
        id: &GenerationId,
        percent: u8,
        expected: Option<&GenerationId>,
        by: &str,
    ) -> Result<Route, RolloutError> {
        self.expect_other(id, expected)?;
        if percent > 0 {
            self.admit(id).await?;
        }
        let _one_at_a_time = self.change.lock().await;
        let before = self.expect_other(id, expected)?;
        let canary = (percent > 0).then(|| Canary { generation: id.clone(), percent });
        let after = Route { canary, ..before.clone() };
        self.make("canary", by, before, after).await
    }

    /// Goes back to what was live before, which is loaded still.
    ///
    /// # Errors
    /// Nothing is changed then; see [`RolloutError`].
    pub async fn rollback(&self, expected: Option<&GenerationId>, by: &str) -> Result<Route, RolloutError> {
        let _one_at_a_time = self.change.lock().await;
        let before = self.expect(expected)?;
        let Some(live) = before.previous.clone() else {
            return Err(RolloutError::NoPrevious { live: before.live });
        };
        // Not what was rolled back: a second rollback must not bring it before callers again.
        let previous = (live != GenerationId::base()).then(GenerationId::base);
        let after = Route { live, previous, canary: None };
        self.make("rollback", by, before, after).await
    }

    /// The last changes of the route, newest first.
    ///
    /// # Errors
    /// The store failed.
    pub async fn changes(&self, most: usize) -> Result<Vec<Change>, RolloutError> {
        self.stored(move |store| ledger::changes(store, most)).await
    }

    fn expect(&self, expected: Option<&GenerationId>) -> Result<Route, RolloutError> {
        let route = self.route();
        match expected {
            Some(expected) if *expected != route.live => {
                Err(RolloutError::Stale { expected: expected.clone(), live: route.live })
            }
            _ => Ok(route),
        }
    }

    /// As [`Self::expect`], for a generation that is not live yet.
    fn expect_other(&self, id: &GenerationId, expected: Option<&GenerationId>) -> Result<Route, RolloutError> {
        let route = self.expect(expected)?;
        if route.live == *id { Err(RolloutError::AlreadyLive(id.clone())) } else { Ok(route) }
    }

    /// Loads a generation beside the others and sees whether it is fit for traffic; what is not is unloaded again.
    async fn admit(&self, id: &GenerationId) -> Result<(), RolloutError> {
        self.ensure_loaded(id).await?;
        if *id == GenerationId::base() {
            return Ok(());
        }
        let unknown = |id: &GenerationId| LoadError::Unknown(id.clone());
        let base = GenerationId::base();
        let base = self.generations.get(&base).ok_or_else(|| unknown(&base))?;
        let adapter = self.generations.get(id).ok_or_else(|| unknown(id))?;
        match probe::compare(&base, &adapter).await {
            Ok(change) => {
                info!(generation = %id, change_nats = change, "The adapter was probed.");
                Ok(())
            }
            Err(error) => {
                if !self.route().uses(id) {
                    self.unload(id).await;
                }
                Err(error.into())
            }
        }
    }

    /// Loads an adapter of the library, if it is not loaded.
    async fn ensure_loaded(&self, id: &GenerationId) -> Result<(), RolloutError> {
        if *id == GenerationId::base() {
            return Ok(());
        }
        let name = id.to_string();
        let directory = blocking(&self.library, move |library| library.verified(&name)).await?;
        match self.generations.load(id.as_str(), directory).await {
            Ok(()) | Err(LoadError::Exists(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a change down, switches, and unloads what the route no longer needs.
    async fn make(&self, what: &str, by: &str, before: Route, after: Route) -> Result<Route, RolloutError> {
        let (told, asked_by, written) = (what.to_owned(), by.to_owned(), after.clone());
        self.stored(move |store| ledger::write(store, &told, &asked_by, &written)).await?;
        self.generations.set_route(after.clone())?;
        info!(what, by, live = %after.live, before = %before.live, "The route changed.");
        for gone in before.generations().filter(|id| !after.uses(id)) {
            self.unload(gone).await;
        }
        Ok(after)
    }

    async fn stored<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, RolloutError> {
        blocking(&self.store, work).await.map_err(RolloutError::Ledger)
    }

    async fn unload(&self, id: &GenerationId) {
        if *id != GenerationId::base()
            && self.generations.get(id).is_some()
            && let Err(error) = self.generations.unload(id).await
        {
            warn!(generation = %id, %error, "A generation that is no longer needed stays loaded.");
        }
    }
}

/// Runs work on files off the async threads.
async fn blocking<S, T, E>(shared: &Arc<S>, work: impl FnOnce(&S) -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    S: Send + Sync + 'static,
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    let shared = shared.clone();
    match tokio::task::spawn_blocking(move || work(&shared)).await {
        Ok(result) => result,
        Err(broken) => Err(io::Error::other(broken).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use std::path::Path;

    use reground_learner::store::Options;
    use tempfile::TempDir;

    use super::*;
    use crate::api::testing::{Echo, Watch};
    use crate::config::AdmissionConfig;
    use crate::engine::source::golden;
    use crate::rollout::Sticky;

    struct Place {
        rollout: Rollout,
        watch: Arc<Watch>,
        data: TempDir,
    }

    async fn rollout(data: &Path) -> (Rollout, Arc<Watch>) {
        let engine = Echo::new(false);
        let watch = engine.watch.clone();
        let generations = Generations::start(Arc::new(engine), AdmissionConfig::default()).await.unwrap();
        let store = Store::open(data, Options::default()).unwrap();
        (Rollout::new(Arc::new(generations), Arc::new(store)), watch)
    }

    async fn place() -> Place {
        let data = tempfile::tempdir().unwrap();
        let (rollout, watch) = rollout(data.path()).await;
        Place { rollout, watch, data }
    }

    impl Place {
        async fn import(&self) -> GenerationId {
            let manifest = self.rollout.import(golden("adapter"), Origin::default()).await.unwrap();
            GenerationId::from(manifest.id.as_str())
        }

        fn loaded(&self) -> usize {
            self.rollout.generations.list().len()
        }
    }

    #[tokio::test]
    async fn what_is_activated_answers_and_a_rollback_brings_back_what_answered() {
        let place = place().await;
        let (first, second) = (place.import().await, place.import().await);
        let base = GenerationId::base();
        let route = place.rollout.activate(&first, Some(&base), "test").await.unwrap();
        assert_eq!(route, Route { live: first.clone(), previous: Some(base.clone()), canary: None });
        assert_eq!(*place.rollout.generations.live().generation.id(), first);
        place.rollout.activate(&second, None, "test").await.unwrap();
        assert_eq!(place.loaded(), 3, "the previous one stays warm");
        let route = place.rollout.rollback(Some(&second), "test").await.unwrap();
        assert_eq!((route.live, route.previous), (first, Some(base.clone())));
        assert_eq!(place.loaded(), 2);
        assert_eq!(place.rollout.rollback(None, "test").await.unwrap().live, base);
        let error = place.rollout.rollback(None, "test").await.unwrap_err();
        assert!(matches!(error, RolloutError::NoPrevious { .. }), "{error}");
        let what: Vec<String> = place.rollout.changes(9).await.unwrap().into_iter().map(|change| change.what).collect();
        assert_eq!(what, ["rollback", "rollback", "activate", "activate"]);
    }

    #[tokio::test]
    async fn a_stale_view_changes_nothing() {
        let place = place().await;
        let first = place.import().await;
        let stale = GenerationId::from("ad-0");
        for error in [
            place.rollout.activate(&first, Some(&stale), "test").await.unwrap_err(),
            place.rollout.canary(&first, 10, Some(&stale), "test").await.unwrap_err(),
            place.rollout.rollback(Some(&stale), "test").await.unwrap_err(),
        ] {
            assert!(matches!(error, RolloutError::Stale { .. }), "{error}");
        }
        assert_eq!((place.rollout.route(), place.loaded()), (Route::default(), 1));
        assert_eq!(place.rollout.changes(9).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_canary_begins_ends_and_is_promoted() {
        let place = place().await;
        let first = place.import().await;
        let route = place.rollout.canary(&first, 50, None, "test").await.unwrap();
        assert_eq!(route.live, GenerationId::base());
        let tried = |n: usize| *place.rollout.generations.pick(Sticky::of(&n.to_string())).generation.id() == first;
        let tries = (0..200).filter(|n| tried(*n)).count();
        assert!((60..140).contains(&tries), "{tries}");
        assert!(matches!(place.rollout.remove(first.as_str()).await, Err(RolloutError::InUse(_))));
        assert_eq!(place.rollout.canary(&first, 0, None, "test").await.unwrap(), Route::default());
        assert_eq!(place.loaded(), 1);
        place.rollout.canary(&first, 5, None, "test").await.unwrap();
        let route = place.rollout.activate(&first, None, "test").await.unwrap();
        assert_eq!((route.live, route.canary), (first, None));
    }

    #[tokio::test]
    async fn an_adapter_that_changes_nothing_is_refused_and_unloaded() {
        let place = place().await;
        let first = place.import().await;
        place.watch.inert.store(true, Ordering::SeqCst);
        let error = place.rollout.activate(&first, None, "test").await.unwrap_err();
        assert!(matches!(error, RolloutError::Probe(ProbeError::Inert)), "{error}");
        assert_eq!((place.rollout.route(), place.loaded()), (Route::default(), 1));
    }

    #[tokio::test]
    async fn a_restart_serves_what_was_live_and_falls_back_when_it_is_broken() {
        let place = place().await;
        let (first, second) = (place.import().await, place.import().await);
        place.rollout.activate(&first, None, "test").await.unwrap();
        place.rollout.activate(&second, None, "test").await.unwrap();
        let route = place.rollout.route();
        let data = place.data;
        drop(place.rollout);

        let (again, _) = rollout(data.path()).await;
        again.restore().await.unwrap();
        assert_eq!(again.route(), route);
        drop(again);

        let weights =
            |id: &GenerationId| data.path().join("adapters").join(id.as_str()).join("adapter_model.safetensors");
        fs_err::write(weights(&second), b"broken").unwrap();
        let (again, _) = rollout(data.path()).await;
        again.restore().await.unwrap();
        assert_eq!(again.route().live, first);
        assert_eq!(again.changes(1).await.unwrap()[0].what, "fallback");
        drop(again);

        fs_err::write(weights(&first), b"broken").unwrap();
        let (again, _) = rollout(data.path()).await;
        again.restore().await.unwrap();
        assert_eq!(again.route(), Route::default());
    }

    #[tokio::test]
    async fn a_change_that_cannot_be_written_is_not_made() {
        let place = place().await;
        let first = place.import().await;
        place.rollout.store.keep_free(u64::MAX);
        let error = place.rollout.activate(&first, None, "test").await.unwrap_err();
        assert!(matches!(error, RolloutError::Ledger(_)), "{error}");
        assert_eq!(place.rollout.route(), Route::default());
    }
}
