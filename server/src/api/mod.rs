//! Routes: OpenAI's shapes over HTTP.
//!
//! Handlers extract, call one function of the layers below, and respond.
//!
//! # Layout
//! - [`App`]: what the routes work with; [`configure`] puts them into an actix server.
//! - `routes`: every route, in one table.
//! - [`error`]: the one [`ApiError`](error::ApiError), and where it is rendered.
//! - [`auth`]: keys and roles; `page`: without keys, no web page of another site. `observe`: request ids, access log, panics. [`metrics`]: Prometheus.
//! - `blocking`: work that waits for the disk; `body`, `json`: bodies within their limits, read with errors that name the path.
//! - [`chat`]: chat completions; `completions`: stored ones; `feedback`: what is said of them;
//!   `records`, `pairs`: what the operator sees of it; `paging`: lists. `adapters`: loading in
//!   vLLM's shapes; `rollout`: which adapter answers. `models`, `health`: the smaller routes.
//! - [`openapi`]: the description of it all.

mod adapters;
pub mod auth;
mod blocking;
mod body;
pub mod chat;
mod completions;
pub mod error;
mod feedback;
mod files;
mod fine_tuning;
mod health;
mod json;
pub mod metrics;
mod models;
mod observe;
pub mod openapi;
mod page;
mod paging;
mod pairs;
mod records;
mod rollout;
mod routes;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix_web::http::header::HeaderName;
use tokio_util::sync::CancellationToken;

pub use routes::configure;

use crate::answer::Answerer;
use crate::config::{Config, ConfigError};
use crate::images::ImageReader;
use crate::recorder::Recorder;
use crate::rollout::{Generations, Rollout};
use crate::room::Room;
use crate::runs::Runs;
use crate::watch::Watcher;

/// The header that names the generation that answered.
const GENERATION: HeaderName = HeaderName::from_static("x-reground-generation");

/// What the routes work with.
pub struct App {
    /// Every setting.
    pub config: Arc<Config>,
    /// The loaded generations.
    pub generations: Arc<Generations>,
    /// Changes who answers.
    pub rollout: Arc<Rollout>,
    /// Takes back what is worse than what it replaced.
    pub watcher: Arc<Watcher>,
    /// Gives the answers.
    pub answerer: Arc<Answerer>,
    /// Reads images.
    pub images: Arc<ImageReader>,
    /// Writes down what is asked and answered.
    pub recorder: Arc<Recorder>,
    /// Trains adapters; `None`: this program does not.
    pub runs: Option<Arc<Runs>>,
    /// What the bodies of requests may take.
    bodies: Arc<Room>,
    /// Who may call.
    pub keyring: auth::Keyring,
    /// What Prometheus is told.
    pub metrics: metrics::Metrics,
    /// The server is going down: /ready says so, and no new answer begins. Open answers go on until the answerer ends
    /// them.
    pub shutdown: CancellationToken,
    /// When the server started, in seconds since 1970: the models' `created`.
    pub started: u64,
}

impl App {
    /// Puts together what the routes work with; reads the API keys.
    ///
    /// `base_digest`: BLAKE3 over the files of the model that is served, to which its adapters belong; `None`: they are not compared.
    ///
    /// # Errors
    /// A key cannot be read, or two names have the same one.
    pub fn new(
        config: &Config,
        base_digest: Option<String>,
        generations: Arc<Generations>,
        answerer: Arc<Answerer>,
        images: Arc<ImageReader>,
        recorder: Arc<Recorder>,
        shutdown: CancellationToken,
    ) -> Result<Self, ConfigError> {
        let store = recorder.store();
        let rollout = Arc::new(Rollout::new(generations.clone(), store.clone(), config).of(base_digest));
        let watcher = Watcher::new(generations.clone(), rollout.clone(), store.clone(), config.watch.clone());
        Ok(Self {
            keyring: auth::Keyring::new(&config.auth)?,
            rollout,
            watcher: Arc::new(watcher),
            bodies: Arc::new(Room::new(config.server.bodies_limit, config.server.bodies_limit_per_key)),
            config: Arc::new(config.clone()),
            generations,
            answerer,
            images,
            recorder,
            runs: None,
            metrics: metrics::Metrics::install(),
            shutdown,
            started: unix_seconds(),
        })
    }

    /// The same with fine-tuning runs.
    #[must_use]
    pub fn with_runs(self, runs: Arc<Runs>) -> Self {
        Self { runs: Some(runs), ..self }
    }

    /// From a request's head to the last token of its answer.
    fn deadline(&self) -> Duration {
        Duration::from_secs(self.config.admission.deadline_s)
    }
}

/// Now, in seconds since 1970.
#[must_use]
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
