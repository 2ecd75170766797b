//! What is the same for every change of the route: who asks, what it is checked against, and how it is made.

use std::sync::PoisonError;

use tracing::{info, warn};

use super::error::RolloutError;
use super::ledger::{self, Entry};
use super::rollout::Rollout;
use super::route::Route;
use super::watched::{Trial, Watched};
use crate::engine::GenerationId;
use reground_learner::store::id;

/// Who asks for a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// Nobody: the server itself, by its configuration. What is pinned holds against it.
    Itself,
    /// The holder of a key.
    Key(String),
}

impl From<&str> for By {
    fn from(name: &str) -> Self {
        Self::Key(name.to_owned())
    }
}

impl By {
    /// The name that the audit has.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Itself => "reground".to_owned(),
            Self::Key(name) => name.clone(),
        }
    }
}

/// A change that was checked.
pub(super) struct Step {
    pub(super) what: &'static str,
    pub(super) by: By,
    pub(super) why: Option<String>,
    pub(super) after: Route,
    /// What is watched from now on; what was watched before is not.
    pub(super) watched: Vec<Watched>,
}

impl Step {
    pub(super) fn new(what: &'static str, by: By, after: Route) -> Self {
        Self { what, by, why: None, after, watched: Vec::new() }
    }
}

impl Rollout {
    /// The route, if it is what the caller takes it for.
    pub(super) fn expect(&self, expected: Option<&GenerationId>) -> Result<Route, RolloutError> {
        let route = self.route();
        match expected {
            Some(expected) if *expected != route.live => {
                Err(RolloutError::Stale { expected: expected.clone(), live: route.live })
            }
            _ => Ok(route),
        }
    }

    /// As [`Self::expect`], where the live generation would lose callers to another one.
    pub(super) fn expect_other(
        &self,
        id: &GenerationId,
        expected: Option<&GenerationId>,
        by: &By,
    ) -> Result<Route, RolloutError> {
        let route = self.expect(expected)?;
        if route.live == *id {
            return Err(RolloutError::AlreadyLive(id.clone()));
        }
        if route.pinned && *by == By::Itself {
            return Err(RolloutError::Pinned(route.live));
        }
        Ok(route)
    }

    /// The watch over a generation that gets traffic now; none if nothing is watched.
    pub(super) fn watch(&self, generation: &GenerationId, against: &GenerationId, trial: Trial) -> Vec<Watched> {
        if !self.watches {
            return Vec::new();
        }
        let before = self.generations.get(against).map(|lease| lease.observed.all()).unwrap_or_default();
        let (generation, against) = (generation.clone(), against.clone());
        vec![Watched { generation, against, trial, began_ms: id::now_ms(), before }]
    }

    /// What is watched.
    #[must_use]
    pub fn watched(&self) -> Vec<Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_watched(&self, watched: Vec<Watched>) {
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = watched;
    }

    /// Writes a change down, switches, and unloads what the route no longer needs.
    pub(super) async fn make(&self, before: &Route, step: Step) -> Result<Route, RolloutError> {
        let Step { what, by, why, after, watched } = step;
        let by = by.name();
        // Before anything is written: a route that cannot be served must not be in the store.
        if let Some(missing) = after.answering().find(|id| self.generations.get(id).is_none()) {
            return Err(super::LoadError::Unknown(missing.clone()).into());
        }
        let entry = Entry { what, by: by.clone(), why: why.clone(), route: after.clone(), watched: watched.clone() };
        self.stored(move |store| ledger::write(store, &entry)).await?;
        self.generations.set_route(after.clone())?;
        self.set_watched(watched);
        info!(what, by, why, live = %after.live, before = %before.live, "The route changed.");
        for gone in before.generations().filter(|id| !self.keeps(&after, id)) {
            self.unload(gone);
        }
        Ok(after)
    }

    /// Whether a generation stays loaded with this route.
    pub(super) fn keeps(&self, route: &Route, id: &GenerationId) -> bool {
        let stays = *id == GenerationId::base() && !self.recreates();
        stays || route.answering().any(|used| used == id) || self.keeps_previous && route.previous.as_ref() == Some(id)
    }

    /// Takes out what nobody asks for any more.
    pub(super) fn unload(&self, id: &GenerationId) {
        if self.generations.get(id).is_some()
            && let Err(error) = self.generations.cool(id)
        {
            warn!(generation = %id, %error, "A generation that is no longer needed stays loaded.");
        }
    }
}
