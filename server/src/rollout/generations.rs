//! The loaded generations and the live one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use metrics::histogram;
use thiserror::Error;
use tokio::time::Instant;

use super::route::{Route, Sticky};
use crate::admission::Admission;
use crate::config::AdmissionConfig;
use crate::engine::{Engine, EngineError, EngineInfo, Generation, GenerationId};

/// How long callers can wait for a change of the route: until it is made under the lock, from when it was decided.
pub(crate) const SWITCH: &str = "reground_route_switch_seconds";

/// The loaded generations and the live one. Cheap to read: every answer asks it once.
pub struct Generations {
    engine: Arc<dyn Engine>,
    admission: AdmissionConfig,
    loaded: RwLock<Loaded>,
    /// Loads and unloads one at a time: two engines being loaded at once would double the peak of memory.
    change: tokio::sync::Mutex<()>,
}

struct Loaded {
    route: Route,
    slots: BTreeMap<GenerationId, Lease>,
}

/// Pins a generation: it stays loaded until the last lease is dropped, whatever is unloaded meanwhile.
#[derive(Clone)]
pub struct Lease {
    /// What answers.
    pub generation: Arc<dyn Generation>,
    /// The queue in front of it, which all generations of an engine with one batch share.
    pub admission: Arc<Admission>,
}

/// Why a generation was not loaded or unloaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The id is taken.
    #[error("generation `{0}` is loaded already")]
    Exists(GenerationId),
    /// The id cannot be used.
    #[error("`{0}` is no adapter id: 1 to 128 letters, digits, `-`, `_` or `.`, and not `base`")]
    BadId(String),
    /// No such generation.
    #[error("generation `{0}` is not loaded")]
    Unknown(GenerationId),
    /// A generation that the route needs cannot be unloaded, nor can the base.
    #[error("generation `{0}` is the base, live, previous or canary and cannot be unloaded")]
    Live(GenerationId),
    /// The engine refused it.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Generations {
    /// Loads the base and makes it live.
    ///
    /// # Errors
    /// The engine cannot load it.
    pub async fn start(engine: Arc<dyn Engine>, admission: AdmissionConfig) -> Result<Self, EngineError> {
        let base = engine.load(GenerationId::base(), None).await?;
        let lease = Lease { generation: base, admission: in_front_of(engine.info(), &admission) };
        let loaded = Loaded { route: Route::default(), slots: BTreeMap::from([(GenerationId::base(), lease)]) };
        Ok(Self { engine, admission, loaded: RwLock::new(loaded), change: tokio::sync::Mutex::new(()) })
    }

    /// What is the same for all generations.
    #[must_use]
    pub fn info(&self) -> &EngineInfo {
        self.engine.info()
    }

    /// The live generation.
    #[must_use]
    pub fn live(&self) -> Lease {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.slots[&loaded.route.live].clone()
    }

    /// The generation that answers this caller, who names none: the live one, or the canary.
    #[must_use]
    pub fn pick(&self, who: Sticky) -> Lease {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.slots[loaded.route.pick(who)].clone()
    }

    /// Who answers.
    #[must_use]
    pub fn route(&self) -> Route {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).route.clone()
    }

    /// Changes who answers, for every query that begins from now on; those under way end where they began.
    ///
    /// # Errors
    /// A generation of the route is not loaded; nothing is changed.
    pub fn set_route(&self, route: Route) -> Result<(), LoadError> {
        let began = Instant::now();
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(missing) = route.generations().find(|id| !loaded.slots.contains_key(id)) {
            return Err(LoadError::Unknown(missing.clone()));
        }
        loaded.route = route;
        drop(loaded);
        histogram!(SWITCH).record(began.elapsed().as_secs_f64());
        Ok(())
    }

    /// A loaded generation.
    #[must_use]
    pub fn get(&self, id: &GenerationId) -> Option<Lease> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).slots.get(id).cloned()
    }

    /// All loaded generations, `base` among them, in the order of their ids.
    #[must_use]
    pub fn list(&self) -> Vec<GenerationId> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).slots.keys().cloned().collect()
    }

    /// Loads the adapter in a directory beside what is loaded. Traffic does not change.
    ///
    /// # Errors
    /// The id is taken or not allowed, or the engine refuses the adapter.
    pub async fn load(&self, id: &str, adapter: PathBuf) -> Result<(), LoadError> {
        let well_formed = (1..=128).contains(&id.len())
            && id != GenerationId::base().as_str()
            && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !well_formed {
            return Err(LoadError::BadId(id.chars().take(200).collect()));
        }
        let id = GenerationId::from(id);
        let _one_at_a_time = self.change.lock().await;
        if self.get(&id).is_some() {
            return Err(LoadError::Exists(id));
        }
        let generation = self.engine.load(id.clone(), Some(adapter)).await?;
        let admission =
            if self.info().one_batch { self.live().admission } else { in_front_of(self.info(), &self.admission) };
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        loaded.slots.insert(id, Lease { generation, admission });
        Ok(())
    }

    /// Takes a generation out. Answers under way keep it until they are done.
    ///
    /// # Errors
    /// It is not loaded, or the route needs it.
    pub async fn unload(&self, id: &GenerationId) -> Result<(), LoadError> {
        let _one_at_a_time = self.change.lock().await;
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        if loaded.route.uses(id) || *id == GenerationId::base() {
            return Err(LoadError::Live(id.clone()));
        }
        loaded.slots.remove(id).map(drop).ok_or_else(|| LoadError::Unknown(id.clone()))
    }
}

/// A queue in front of one generation, or of all those of an engine with one batch.
fn in_front_of(engine: &EngineInfo, config: &AdmissionConfig) -> Arc<Admission> {
    Arc::new(Admission::new(config, engine.max_parallel, engine.look_ahead, engine.one_batch))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::time::Duration;

    use super::*;
    use crate::admission::Permit;
    use crate::api::testing::Echo;

    async fn three(engine: Echo) -> Vec<Lease> {
        let generations = Generations::start(Arc::new(engine), AdmissionConfig::default()).await.unwrap();
        for id in ["first", "second"] {
            generations.load(id, PathBuf::new()).await.unwrap();
        }
        generations.list().iter().map(|id| generations.get(id).unwrap()).collect()
    }

    /// Whoever comes in next has given its place back before the one after.
    fn order(leases: &[Lease]) -> Vec<&'static str> {
        let later = Instant::now() + Duration::from_secs(3600);
        let enter = |at: usize, key: &'static str| {
            let admission = leases[at].admission.clone();
            Box::pin(async move { (key, admission.enter(key, later).await.unwrap()) })
        };
        let mut waiting: Vec<_> = (0..12).map(|at| enter(at % leases.len(), "greedy")).collect();
        waiting.push(enter(1, "modest"));
        let (mut order, mut inside): (Vec<_>, Vec<Permit>) = (Vec::new(), Vec::new());
        // All wait before the first leaves.
        loop {
            let mut left = Vec::new();
            for mut request in waiting {
                match (&mut request).now_or_never() {
                    Some((key, permit)) => {
                        order.push(key);
                        inside.push(permit);
                    }
                    None => left.push(request),
                }
            }
            waiting = left;
            if inside.is_empty() {
                assert!(waiting.is_empty());
                return order;
            }
            drop(inside.remove(0));
        }
    }

    #[tokio::test]
    async fn keys_take_turns_over_all_generations_of_one_batch() {
        let shared = three(Echo::new(false).with_one_batch()).await;
        assert!(shared.iter().all(|lease| Arc::ptr_eq(&lease.admission, &shared[0].admission)));
        let order = order(&shared);
        assert_eq!(order.len(), 13);
        // Two are inside before anyone waits, then the flood and the other key take turns.
        assert!(order[..4].contains(&"modest"), "{order:?}");
    }

    #[tokio::test]
    async fn generations_without_a_common_batch_have_places_of_their_own() {
        let apart = three(Echo::new(false)).await;
        assert!(!Arc::ptr_eq(&apart[0].admission, &apart[1].admission));
        assert_eq!(order(&apart)[..6], ["greedy"; 6], "two places each");
    }
}
