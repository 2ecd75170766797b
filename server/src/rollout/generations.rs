//! The loaded generations and the live one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use metrics::histogram;
use thiserror::Error;
use tokio::time::Instant;

use super::observed::Observed;
use super::route::{Route, Sticky};
use crate::admission::{Activity, Admission, AdmissionError, Permit};
use crate::config::AdmissionConfig;
use crate::engine::{Engine, EngineError, EngineInfo, Generation, GenerationId};

/// How often it is looked whether the last lease of a generation is gone.
const DRAIN_POLL: Duration = Duration::from_millis(5);
/// Whom the replacement of the live generation counts for in the queue.
const KEY: &str = "reground";
/// How long callers can wait for a change of the route: until it is made under the lock, from when it was decided.
pub(crate) const SWITCH: &str = "reground_route_switch_seconds";

/// The loaded generations and the live one. Cheap to read: every answer asks it once.
pub struct Generations {
    engine: Arc<dyn Engine>,
    admission: AdmissionConfig,
    activity: Activity,
    /// The queue in front of all generations, where they share one batch.
    common: Option<Arc<Admission>>,
    loaded: RwLock<Loaded>,
    /// Loads one at a time: two engines being loaded at once would double the peak of memory.
    loading: tokio::sync::Mutex<()>,
}

struct Loaded {
    route: Route,
    slots: BTreeMap<GenerationId, Lease>,
    /// While the live generation is replaced: where its callers wait.
    gate: Option<Arc<Admission>>,
}

/// Pins a generation: it stays loaded until the last lease is dropped, whatever is unloaded meanwhile.
#[derive(Clone)]
pub struct Lease {
    /// What answers.
    pub generation: Arc<dyn Generation>,
    /// The queue in front of it, which all generations of an engine with one batch share.
    pub admission: Arc<Admission>,
    /// How its answers went.
    pub observed: Arc<Observed>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(self.generation.id()).finish()
    }
}

/// Why a generation was not loaded or unloaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The id is taken.
    #[error("generation `{0}` is loaded already")]
    Exists(GenerationId),
    /// The id cannot be used.
    #[error(
        "`{0}` is no adapter id: 1 to 128 letters, digits, `-`, `_` or `.`, and not `base` or `ad-…`, which the server gives"
    )]
    BadId(String),
    /// No such generation.
    #[error("generation `{0}` is not loaded")]
    Unknown(GenerationId),
    /// A generation that the route needs cannot be unloaded, nor can the base.
    #[error("generation `{0}` is the base, live, previous, canary or shadow and cannot be unloaded")]
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
        let activity = Activity::default();
        let queue = in_front_of(engine.info(), &admission, &activity);
        let common = engine.info().one_batch.then(|| queue.clone());
        let lease = Lease { generation: base, admission: queue, observed: Arc::default() };
        let slots = BTreeMap::from([(GenerationId::base(), lease)]);
        let loaded = Loaded { route: Route::default(), slots, gate: None };
        let loading = tokio::sync::Mutex::new(());
        Ok(Self { engine, admission, activity, common, loaded: RwLock::new(loaded), loading })
    }

    /// What is the same for all generations.
    #[must_use]
    pub fn info(&self) -> &EngineInfo {
        self.engine.info()
    }

    /// Whether live queries are answered, by whichever generation.
    #[must_use]
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// The live generation; `None` while it is being replaced and nothing is loaded.
    #[must_use]
    pub fn live(&self) -> Option<Lease> {
        let loaded = self.read();
        loaded.slots.get(&loaded.route.live).filter(|_| loaded.gate.is_none()).cloned()
    }

    /// The generation that answers this caller, who names none: the live one, or the canary. While the live one is being replaced the
    /// caller waits, in turns between keys, as in front of a generation.
    ///
    /// # Errors
    /// Too many wait, or the deadline passed.
    pub async fn enter(&self, who: Sticky, key: &str, deadline: Instant) -> Result<Lease, AdmissionError> {
        loop {
            let gate = {
                let loaded = self.read();
                match (&loaded.gate, loaded.slots.get(loaded.route.pick(who))) {
                    (None, Some(lease)) => return Ok(lease.clone()),
                    (gate, _) => gate.clone(),
                }
            };
            match gate {
                Some(gate) => drop(gate.enter(key, deadline).await?),
                // `set_route` sees to it that this does not happen.
                None => return Err(AdmissionError::Deadline),
            }
        }
    }

    /// Who answers.
    #[must_use]
    pub fn route(&self) -> Route {
        self.read().route.clone()
    }

    /// Changes who answers, for every query that begins from now on; those under way end where they began.
    ///
    /// # Errors
    /// A generation that is to answer is not loaded; nothing is changed.
    pub fn set_route(&self, route: Route) -> Result<(), LoadError> {
        let began = Instant::now();
        let mut loaded = self.write();
        if let Some(missing) = route.answering().find(|id| !loaded.slots.contains_key(id)) {
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
        self.read().slots.get(id).cloned()
    }

    /// All loaded generations, `base` among them, in the order of their ids.
    #[must_use]
    pub fn list(&self) -> Vec<GenerationId> {
        self.read().slots.keys().cloned().collect()
    }

    /// Whether a generation is loaded or can be.
    ///
    /// # Errors
    /// [`EngineError::TooManyLoads`].
    pub(super) fn can_bring_up(&self, id: &GenerationId) -> Result<(), LoadError> {
        if self.get(id).is_none() {
            self.engine.can_load()?;
        }
        Ok(())
    }

    /// Loads the adapter in a directory beside what is loaded. Traffic does not change.
    ///
    /// # Errors
    /// The id is taken or not allowed, or the engine refuses the adapter.
    pub async fn load(&self, id: &str, adapter: PathBuf) -> Result<(), LoadError> {
        let well_formed = (1..=128).contains(&id.len())
            && id != GenerationId::base().as_str()
            && !id.starts_with("ad-")
            && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !well_formed {
            return Err(LoadError::BadId(id.chars().take(200).collect()));
        }
        let id = GenerationId::from(id);
        self.can_bring_up(&id)?;
        self.bring_up(&id, Some(adapter)).await
    }

    /// Loads a generation, which the caller knows to be well named; `None`: the base.
    pub(super) async fn bring_up(&self, id: &GenerationId, adapter: Option<PathBuf>) -> Result<(), LoadError> {
        let _one_at_a_time = self.loading.lock().await;
        if self.get(id).is_some() {
            return Err(LoadError::Exists(id.clone()));
        }
        let generation = self.engine.load(id.clone(), adapter).await?;
        let lease = self.lease(generation);
        self.write().slots.insert(id.clone(), lease);
        Ok(())
    }

    /// Takes a generation out. Answers under way keep it until they are done.
    ///
    /// # Errors
    /// It is not loaded, or the route needs it.
    pub fn unload(&self, id: &GenerationId) -> Result<(), LoadError> {
        self.unload_unless(id, |route| route.uses(id) || *id == GenerationId::base())
    }

    /// As [`Self::unload`], also where a rollback goes to it.
    pub(super) fn cool(&self, id: &GenerationId) -> Result<(), LoadError> {
        self.unload_unless(id, |route| route.answering().any(|used| used == id))
    }

    /// It waits for no load: a rollback unloads what it takes back.
    fn unload_unless(&self, id: &GenerationId, needed: impl Fn(&Route) -> bool) -> Result<(), LoadError> {
        let mut loaded = self.write();
        if !loaded.slots.contains_key(id) {
            return Err(LoadError::Unknown(id.clone()));
        }
        if needed(&loaded.route) {
            return Err(LoadError::Live(id.clone()));
        }
        let gone = loaded.slots.remove(id);
        // The weights may go with it, which takes a while.
        drop(loaded);
        drop(gone);
        Ok(())
    }

    /// Lets callers of no named generation wait until what comes back is dropped.
    ///
    /// # Errors
    /// None in practice: a new queue has a place.
    pub(super) async fn close(&self) -> Result<Closed<'_>, AdmissionError> {
        // One place, which the replacement holds: who waits for it is let through one after the other afterwards.
        let gate = Arc::new(Admission::new(&self.admission, 1, 0, false).counted_in(self.activity.clone()));
        let permit = gate.enter(KEY, Instant::now() + Duration::from_secs(60)).await?;
        self.write().gate = Some(gate);
        Ok(Closed { generations: self, _permit: permit })
    }

    /// A generation and the queue in front of it.
    fn lease(&self, generation: Arc<dyn Generation>) -> Lease {
        let admission = self.common.clone();
        let admission = admission.unwrap_or_else(|| in_front_of(self.info(), &self.admission, &self.activity));
        Lease { generation, admission, observed: Arc::default() }
    }

    fn read(&self) -> RwLockReadGuard<'_, Loaded> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Loaded> {
        self.loaded.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, callers of no named generation wait.
pub(super) struct Closed<'a> {
    generations: &'a Generations,
    /// Who waits gets it once the gate is open.
    _permit: Permit,
}

impl Closed<'_> {
    /// Takes a generation out and waits until its last answer is done, so that nothing of it is in memory.
    pub(super) async fn drain(&self, id: &GenerationId) {
        let Some(lease) = self.generations.write().slots.remove(id) else { return };
        let generation = Arc::downgrade(&lease.generation);
        drop(lease);
        while generation.strong_count() > 0 {
            tokio::time::sleep(DRAIN_POLL).await;
        }
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.generations.write().gate = None;
    }
}

/// A queue in front of one generation, or of all those of an engine with one batch.
fn in_front_of(engine: &EngineInfo, config: &AdmissionConfig, activity: &Activity) -> Arc<Admission> {
    let admission = Admission::new(config, engine.max_parallel, engine.look_ahead, engine.one_batch);
    Arc::new(admission.counted_in(activity.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::Echo;
    use futures::FutureExt;

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
