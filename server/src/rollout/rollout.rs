//! Puts adapters before callers and takes them back.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use reground_learner::store::{Store, StoreError};
use tokio::sync::{MutexGuard, OnceCell};
use tokio_util::task::TaskTracker;

use super::agree::agree;
use super::change::{By, Step};
use super::error::RolloutError;
use super::generations::Generations;
use super::ledger::{self, Change};
use super::library::Library;
use super::route::{Route, Share};
use super::watched::{Trial, Watched};
use crate::admission::Activity;
use crate::config::{Config, Strategy};
use crate::engine::GenerationId;

/// Puts adapters before callers and takes them back.
pub struct Rollout {
    pub(super) generations: Arc<Generations>,
    pub(super) library: Arc<Library>,
    pub(super) store: Arc<Store>,
    /// One change at a time: what a change was checked against holds until it is made. Held while a model loads only at the start and
    /// where one generation at a time is loaded.
    pub(super) change: tokio::sync::Mutex<()>,
    pub(super) strategy: Strategy,
    /// Whether what a rollback goes to stays loaded.
    pub(super) keeps_previous: bool,
    /// Whether what gets traffic is watched, and for how long, milliseconds.
    pub(super) watches: bool,
    pub(super) window_ms: u64,
    pub(super) watched: Mutex<Vec<Watched>>,
    /// BLAKE3 over the files of the model that is served; unknown to a server that does not say.
    pub(super) base_digest: Option<String>,
    /// What the base says to the probe.
    pub(super) reference: OnceCell<Vec<(u32, f32)>>,
    /// A change that has begun ends, also when the caller leaves.
    tasks: TaskTracker,
    /// Whether [`super::agree`] is at work.
    pub(super) agreeing: AtomicBool,
}

impl Rollout {
    /// Works on what is loaded and on what is kept.
    #[must_use]
    pub fn new(generations: Arc<Generations>, store: Arc<Store>, config: &Config) -> Self {
        Self {
            generations,
            library: Arc::new(Library::new(store.directory().join("adapters"))),
            store,
            change: tokio::sync::Mutex::new(()),
            strategy: config.rollout.strategy,
            keeps_previous: config.rollout.keeps_previous(),
            watches: config.watch.enabled,
            window_ms: config.watch.window_s.saturating_mul(1000),
            watched: Mutex::default(),
            base_digest: None,
            reference: OnceCell::new(),
            tasks: TaskTracker::new(),
            agreeing: AtomicBool::new(false),
        }
    }

    /// The same for the model of this digest ([`reground_learner::bpo::launch::digest`]): adapters of another one are refused.
    #[must_use]
    pub fn of(self, base_digest: Option<String>) -> Self {
        Self { base_digest, ..self }
    }

    /// Whether live queries are answered.
    #[must_use]
    pub fn activity(&self) -> &Activity {
        self.generations.activity()
    }

    /// Who answers now.
    #[must_use]
    pub fn route(&self) -> Route {
        self.generations.route()
    }

    /// Makes a generation live; what was live becomes `previous`. It ends a canary, a shadow and what was pinned.
    ///
    /// # Errors
    /// Nothing is changed then; see [`RolloutError`].
    pub async fn activate(
        self: &Arc<Self>,
        id: &GenerationId,
        expected: Option<&GenerationId>,
        by: impl Into<By>,
    ) -> Result<Route, RolloutError> {
        let (me, id, expected, by) = (self.clone(), id.clone(), expected.cloned(), by.into());
        self.try_out(id.clone(), async move {
            loop {
                me.expect_other(&id, expected.as_ref(), &by)?;
                me.generations.can_bring_up(&id)?;
                if !me.recreates() {
                    // Loading takes long, and a rollback must not wait for it: what is live is compared again after.
                    me.admit(&id).await?;
                }
                let _one_at_a_time = me.change.lock().await;
                let before = me.expect_other(&id, expected.as_ref(), &by)?;
                if !me.recreates() && me.was_unloaded(&id) {
                    continue;
                }
                me.expect_kept(&id).await?;
                let watched = me.watch(&id, &before.live, Trial::Live);
                let step = Step { watched, ..Step::new("activate", by, Route::of(id, Some(before.live.clone()))) };
                return me.switch(&before, step).await;
            }
        })
        .await
    }

    /// Gives a share of the callers another generation; 0 percent ends it.
    ///
    /// # Errors
    /// Nothing is changed then; see [`RolloutError`].
    pub async fn canary(
        self: &Arc<Self>,
        id: &GenerationId,
        percent: u8,
        expected: Option<&GenerationId>,
        by: impl Into<By>,
    ) -> Result<Route, RolloutError> {
        let (me, id, expected, by) = (self.clone(), id.clone(), expected.cloned(), by.into());
        self.try_out(id.clone(), async move {
            me.expect_other(&id, expected.as_ref(), &by)?;
            let _one_at_a_time = me.make_room_for_a_trial(&id, percent).await?;
            let before = me.expect_other(&id, expected.as_ref(), &by)?;
            me.expect_trial(&id, percent, before.canary.as_ref()).await?;
            let mut watched = me.watched();
            let goes_on = percent > 0 && before.canary.as_ref().is_some_and(|canary| canary.generation == id);
            if !goes_on {
                watched.retain(|watched| watched.trial == Trial::Live);
            }
            if percent > 0 && !goes_on {
                watched.extend(me.watch(&id, &before.live, Trial::Canary));
            }
            let shadow = before.shadow.clone().filter(|shadow| percent == 0 || shadow.generation != id);
            let canary = (percent > 0).then_some(Share { generation: id, percent });
            let after = Route { canary, shadow, ..before.clone() };
            me.make(&before, Step { watched, ..Step::new("canary", by, after) }).await
        })
        .await
    }

    /// Has another generation answer a share of the queries a second time, for the counters alone; 0 percent ends it.
    ///
    /// # Errors
    /// Nothing is changed then; see [`RolloutError`].
    pub async fn shadow(
        self: &Arc<Self>,
        id: &GenerationId,
        percent: u8,
        expected: Option<&GenerationId>,
        by: impl Into<By>,
    ) -> Result<Route, RolloutError> {
        let (me, id, expected, by) = (self.clone(), id.clone(), expected.cloned(), by.into());
        self.try_out(id.clone(), async move {
            let check = || match me.expect(expected.as_ref())? {
                route if route.live == id => Err(RolloutError::AlreadyLive(id.clone())),
                route => Ok(route),
            };
            check()?;
            let _one_at_a_time = me.make_room_for_a_trial(&id, percent).await?;
            let before = check()?;
            me.expect_trial(&id, percent, before.shadow.as_ref()).await?;
            let shadow = (percent > 0).then(|| Share { generation: id.clone(), percent });
            let after = Route { shadow, ..before.clone() };
            me.make(&before, Step { watched: me.watched(), ..Step::new("shadow", by, after) }).await
        })
        .await
    }

    /// Pins the live generation, or ends that: while it is pinned, nothing takes its place by itself.
    ///
    /// # Errors
    /// `id` is not live, or see [`RolloutError`]; nothing is changed then.
    pub async fn pin(
        self: &Arc<Self>,
        id: &GenerationId,
        pinned: bool,
        expected: Option<&GenerationId>,
        by: impl Into<By>,
    ) -> Result<Route, RolloutError> {
        let (me, id, expected, by) = (self.clone(), id.clone(), expected.cloned(), by.into());
        self.to_the_end(async move {
            let _one_at_a_time = me.change.lock().await;
            let before = me.expect(expected.as_ref())?;
            if before.live != id {
                return Err(RolloutError::NotLive { id, live: before.live });
            }
            let after = Route { pinned, ..before.clone() };
            let what = if pinned { "pin" } else { "unpin" };
            me.make(&before, Step { watched: me.watched(), ..Step::new(what, by, after) }).await
        })
        .await
    }

    /// Goes back to what was live before: at once if it is loaded still.
    ///
    /// # Errors
    /// Nothing is changed then; see [`RolloutError`].
    pub async fn rollback(
        self: &Arc<Self>,
        expected: Option<&GenerationId>,
        by: impl Into<By>,
    ) -> Result<Route, RolloutError> {
        let (me, expected, by) = (self.clone(), expected.cloned(), by.into());
        self.to_the_end(async move { me.back("rollback", by, None, |me| me.expect(expected.as_ref())).await }).await
    }

    /// Takes a watched generation away from callers, if it is watched still: a live one is rolled back, a canary ended.
    ///
    /// # Errors
    /// Nothing is changed then: somebody changed the route meanwhile, the generation is pinned, or what was before does not load.
    pub async fn take_back(self: &Arc<Self>, watched: &Watched, why: String) -> Result<Route, RolloutError> {
        let (me, watched) = (self.clone(), watched.clone());
        self.to_the_end(async move {
            let check = |me: &Self| {
                let route = me.route();
                if !me.watched().contains(&watched) {
                    Err(RolloutError::NotWatched(watched.generation.clone()))
                } else if route.pinned && watched.trial == Trial::Live {
                    Err(RolloutError::Pinned(route.live))
                } else {
                    Ok(route)
                }
            };
            if watched.trial == Trial::Live {
                return me.back("watch", By::Itself, Some(why), check).await;
            }
            let _one_at_a_time = me.change.lock().await;
            let before = check(&me)?;
            let after = Route { canary: None, ..before.clone() };
            let rest = me.watched().into_iter().filter(|other| *other != watched).collect();
            me.make(&before, Step { watched: rest, why: Some(why), ..Step::new("watch", By::Itself, after) }).await
        })
        .await
    }

    /// The last changes of the route, newest first.
    ///
    /// # Errors
    /// The store failed.
    pub async fn changes(&self, most: usize) -> Result<Vec<Change>, RolloutError> {
        self.stored(move |store| ledger::changes(store, most)).await
    }

    /// Goes back to `previous`, as long as `check` finds the route to be what it was.
    async fn back(
        &self,
        what: &'static str,
        by: By,
        why: Option<String>,
        check: impl Fn(&Self) -> Result<Route, RolloutError> + Send,
    ) -> Result<Route, RolloutError> {
        loop {
            let target = previous(check(self)?)?;
            if !self.recreates() && self.generations.get(&target).is_none() {
                self.ensure_loaded(&target).await?;
            }
            let _one_at_a_time = self.change.lock().await;
            let before = check(self)?;
            let live = previous(before.clone())?;
            if live != target || !self.recreates() && self.was_unloaded(&target) {
                continue;
            }
            // Not what was rolled back: a second rollback must not bring it before callers again.
            let next = (live != GenerationId::base()).then(GenerationId::base);
            let step = Step { why, ..Step::new(what, by, Route::of(live, next)) };
            return self.switch(&before, step).await;
        }
    }

    /// Makes what a step says live, beside or in the place of what was.
    async fn switch(&self, before: &Route, step: Step) -> Result<Route, RolloutError> {
        if self.recreates() { self.replace(before, step).await } else { self.make(before, step).await }
    }

    /// Loads what is to be tried beside the live generation, and lets nobody else change anything.
    async fn make_room_for_a_trial(&self, id: &GenerationId, percent: u8) -> Result<MutexGuard<'_, ()>, RolloutError> {
        loop {
            match percent {
                0 => return Ok(self.change.lock().await),
                _ if self.recreates() => return Err(RolloutError::OneAtATime),
                _ => {
                    self.generations.can_bring_up(id)?;
                    self.admit(id).await?;
                }
            }
            let alone = self.change.lock().await;
            if !self.was_unloaded(id) {
                return Ok(alone);
            }
        }
    }

    /// Refuses a generation whose adapter was removed while it was loaded: nothing could go on from it, nor could the next start.
    async fn expect_kept(&self, id: &GenerationId) -> Result<(), RolloutError> {
        if *id != GenerationId::base() {
            self.adapter(id.as_str()).await?;
        }
        Ok(())
    }

    /// Refuses to begin a trial with what is not kept any more, and to end the trial of another generation than was named.
    async fn expect_trial(&self, id: &GenerationId, percent: u8, on_trial: Option<&Share>) -> Result<(), RolloutError> {
        match on_trial {
            Some(share) if percent == 0 && share.generation == *id => Ok(()),
            Some(share) if percent == 0 => {
                self.expect_kept(id).await?;
                Err(RolloutError::NotOnTrial { id: id.clone(), on_trial: share.generation.clone() })
            }
            _ => self.expect_kept(id).await,
        }
    }

    /// Whether another change took out again, before this one had its turn, what had been loaded for it.
    fn was_unloaded(&self, id: &GenerationId) -> bool {
        self.generations.get(id).is_none()
    }

    /// As [`Self::to_the_end`], for a change that loads a generation: where it is not made, that goes again.
    async fn try_out<T: Send + 'static>(
        self: &Arc<Self>,
        id: GenerationId,
        change: impl Future<Output = Result<T, RolloutError>> + Send + 'static,
    ) -> Result<T, RolloutError> {
        let me = self.clone();
        let was_loaded = self.generations.get(&id).is_some();
        self.to_the_end(async move {
            let done = change.await;
            if done.is_err() && !was_loaded {
                me.let_go(&id).await;
            }
            done
        })
        .await
    }

    /// Does a change to its end, also when the caller leaves.
    async fn to_the_end<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl Future<Output = Result<T, RolloutError>> + Send + 'static,
    ) -> Result<T, RolloutError> {
        let done = self.tasks.spawn(change).await.unwrap_or(Err(RolloutError::Broken));
        if let Err(RolloutError::Ledger(_)) = &done
            && !self.agreeing.swap(true, Ordering::AcqRel)
        {
            self.tasks.spawn(agree(Arc::downgrade(self)));
        }
        done
    }

    pub(super) async fn stored<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, RolloutError> {
        blocking(&self.store, work).await.map_err(RolloutError::Ledger)
    }
}

fn previous(route: Route) -> Result<GenerationId, RolloutError> {
    route.previous.ok_or(RolloutError::NoPrevious { live: route.live })
}

/// Runs work on files off the async threads.
pub(super) async fn blocking<S, T, E>(
    shared: &Arc<S>,
    work: impl FnOnce(&S) -> Result<T, E> + Send + 'static,
) -> Result<T, E>
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
