//! The loaded generations and the live one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;

use super::route::{Route, Sticky};
use crate::admission::Admission;
use crate::config::AdmissionConfig;
use crate::engine::{Engine, EngineError, EngineInfo, Generation, GenerationId};

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
    /// The queue in front of it.
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
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(missing) = route.generations().find(|id| !loaded.slots.contains_key(id)) {
            return Err(LoadError::Unknown(missing.clone()));
        }
        loaded.route = route;
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
        let admission = in_front_of(self.info(), &self.admission);
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

/// The queue in front of one more generation.
fn in_front_of(engine: &EngineInfo, config: &AdmissionConfig) -> Arc<Admission> {
    Arc::new(Admission::new(config, engine.max_parallel, engine.look_ahead))
}
