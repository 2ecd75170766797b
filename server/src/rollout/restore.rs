//! At the start: what was live when the server stopped is live again.

use reground_learner::store::id;
use tracing::{error, info, warn};

use super::change::{By, Step};
use super::error::RolloutError;
use super::ledger;
use super::rollout::Rollout;
use super::route::{Route, Share};
use super::watched::Watched;
use crate::engine::GenerationId;

impl Rollout {
    /// Serves what was live when the server stopped. An adapter that no longer loads falls back to the previous one, or
    /// to the base, loudly. What was watched still is watched from now on for the whole window: what was counted is gone.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub async fn restore(&self) -> Result<(), RolloutError> {
        let _one_at_a_time = self.change.lock().await;
        let Some((written, watched)) = self.stored(ledger::route).await? else {
            return Ok(());
        };
        let mut route = written.clone();
        if let Err(error) = self.take_the_place_of_the_base(&written.live).await {
            let fallback = written.previous.clone().unwrap_or_else(GenerationId::base);
            error!(generation = %written.live, %fallback, %error, "The live generation does not load; falling back.");
            route = Route::of(fallback, None);
            if let Err(error) = self.take_the_place_of_the_base(&route.live).await {
                error!(generation = %route.live, %error, "The previous generation does not load either; serving the base.");
                route = Route::default();
                self.ensure_loaded(&route.live).await?;
            }
        }
        if self.keeps_previous
            && let Some(previous) = route.previous.clone()
            && !self.loads(&previous).await
        {
            route.previous = None;
        }
        for share in [&mut route.canary, &mut route.shadow] {
            if let Some(Share { generation, .. }) = share.clone()
                && (self.recreates() || !self.loads(&generation).await)
            {
                warn!(%generation, "A generation on trial is left out.");
                *share = None;
            }
        }
        let now = id::now_ms();
        let open = |watched: &Watched| {
            let known = route.live == watched.generation && route.previous.as_ref() == Some(&watched.against)
                || route.canary.as_ref().is_some_and(|canary| canary.generation == watched.generation);
            known && self.watches && now.saturating_sub(watched.began_ms) < self.window_ms
        };
        let watched: Vec<Watched> =
            watched.into_iter().filter(open).map(|watched| Watched { began_ms: now, ..watched }).collect();
        if route == written {
            self.generations.set_route(route)?;
            self.set_watched(watched);
        } else {
            self.make(&written, Step { watched, ..Step::new("fallback", By::Itself, route) }).await?;
        }
        info!(generation = %self.route().live, "Serving what was live before.");
        Ok(())
    }

    /// Loads what is to be live. Where one generation at a time is loaded the base, with which the server began, goes first.
    async fn take_the_place_of_the_base(&self, id: &GenerationId) -> Result<(), RolloutError> {
        let base = GenerationId::base();
        if self.recreates() && *id != base && self.generations.get(&base).is_some() {
            let _missing = self.directory(id).await?;
            self.reference().await?;
            self.generations.close().await?.drain(&base).await;
        }
        self.ensure_loaded(id).await
    }

    async fn loads(&self, id: &GenerationId) -> bool {
        let loaded = self.ensure_loaded(id).await;
        if let Err(error) = &loaded {
            warn!(generation = %id, %error, "A generation of the route does not load; it is left out.");
        }
        loaded.is_ok()
    }
}
