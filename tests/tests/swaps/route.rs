//! Who was to answer when.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};

use super::asker::Answer;

/// A route that held for a while.
#[derive(Clone, Debug)]
struct Route {
    live: String,
    canary: Option<String>,
}

#[derive(Default)]
struct Known {
    /// All routes that held, in order.
    routes: Vec<Route>,
    /// Whether the last of them is being changed.
    is_changing: bool,
}

/// The routes, as whoever changes them knows them.
#[derive(Default)]
pub(super) struct Routes(Mutex<Known>);

impl Routes {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change is about to be asked for.
    pub(super) fn changes(&self) {
        self.known().is_changing = true;
    }

    /// It was made.
    pub(super) fn is(&self, live: &str, canary: Option<&str>) {
        let mut known = self.known();
        known.routes.push(Route { live: live.to_owned(), canary: canary.map(str::to_owned) });
        known.is_changing = false;
    }

    /// The number of the route that holds; `None` while that is not known.
    pub(super) fn now(&self) -> Option<usize> {
        let known = self.known();
        (!known.is_changing).then(|| known.routes.len())
    }

    /// Every answer must be of a generation that its route knows, and under one route a user gets the same generation every time.
    /// Gives how often a user asked again under a route with a canary.
    pub(super) fn check(&self, answers: &[Answer]) -> Result<usize> {
        let (known, mut got, mut again) = (self.known(), BTreeMap::new(), 0);
        for answer in answers {
            let Some(number) = answer.route else { continue };
            let Some(route) = number.checked_sub(1).and_then(|at| known.routes.get(at)) else { continue };
            let (generation, user) = (&answer.generation, answer.user);
            let allowed = *generation == route.live || Some(generation) == route.canary.as_ref();
            ensure!(allowed, "{generation} answered under {route:?}");
            if route.canary.is_none() {
                continue;
            }
            match got.insert((number, user), generation) {
                Some(before) if before != generation => {
                    anyhow::bail!("user {user} had {before} and has {generation} under {route:?}")
                }
                Some(_) => again += 1,
                None => {}
            }
        }
        let of = |canary: bool| {
            let is_canary =
                |number: &usize, generation: &str| known.routes[number - 1].canary.as_deref() == Some(generation);
            got.iter().filter(|((number, _), generation)| is_canary(number, generation) == canary).count()
        };
        ensure!(again > 0 && of(true) > 0 && of(false) > 0, "hardly anything happened in the canaries");
        Ok(again)
    }
}
