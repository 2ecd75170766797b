//! Asking for runs, and asking about them.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::counter;
use reground_learner::gate::{GateConfig, GateReport};
use reground_learner::store::rows::{AdapterRow, FileRow, Run, RunEvent, RunState};
use reground_learner::store::{Page, Query, Store, StoreError, id};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::error::word;
use super::{Program, RunRequest, RunsError, Training, dataset, files, leftovers, worker};
use crate::config::{Config, RolloutConfig, TrainConfig};
use crate::engine::GenerationId;
use crate::rollout::{LibraryError, Rollout, RolloutError, is_passing};

/// How long a training process gets to save when the server stops; one that is killed loses the steps since its last
/// checkpoint.
pub(super) const STOPPING: Duration = Duration::from_secs(15);

/// What is trained.
#[derive(Clone, Debug)]
pub struct Base {
    /// As `run.toml` names it: a checkpoint's directory, or `pocket` for the model inside the binary.
    pub checkpoint: String,
    /// As `model.source` names it.
    pub source: String,
    /// BLAKE3 over its files; unknown to a server that cannot read them as training does.
    pub digest: Option<String>,
}

/// Runs: one task does them, one after the other, until [`Runs::stop`].
pub struct Runs {
    pub(super) shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What the task works with.
pub(super) struct Shared {
    pub(super) store: Arc<Store>,
    pub(super) rollout: Arc<Rollout>,
    pub(super) train: TrainConfig,
    pub(super) gate: GateConfig,
    /// `bootstrap.distortion_edge`: training distorts at the size at which negatives were made.
    pub(super) distortion_edge: u32,
    pub(super) after: RolloutConfig,
    pub(super) base: Base,
    pub(super) program: Program,
    /// Something was asked for.
    pub(super) wake: Notify,
    pub(super) stop: CancellationToken,
}

impl Runs {
    /// Goes on with what was in hand when the server stopped, and begins what is asked for, as long as this lives.
    #[must_use]
    pub fn start(store: Arc<Store>, rollout: Arc<Rollout>, config: &Config, base: Base, program: Program) -> Self {
        let shared = Arc::new(Shared {
            store,
            rollout,
            train: config.train.clone(),
            gate: config.gate.clone(),
            distortion_edge: config.bootstrap.distortion_edge,
            after: config.rollout.clone(),
            base,
            program,
            wake: Notify::new(),
            stop: CancellationToken::new(),
        });
        let task = tokio::spawn(worker::work(shared.clone()));
        Self { shared, task: Mutex::new(Some(task)) }
    }

    /// Stops the task. The run in hand is saved, and goes on when the server starts again.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            // The task kills a process that does not stop; this is for a store that does not answer.
            let _ = tokio::time::timeout(STOPPING * 2, task).await;
        }
    }

    /// Asks for a run.
    ///
    /// # Errors
    /// Training is off, or there is nothing to train on or to start from.
    pub async fn create(&self, request: RunRequest, by: &str) -> Result<Run, RunsError> {
        if !self.shared.train.enabled {
            return Err(RunsError::Disabled);
        }
        if let Some(parent) = request.parent.as_ref().filter(|parent| **parent != *GenerationId::base().as_str()) {
            self.shared.rollout.adapter(parent).await.map_err(|error| match error {
                RolloutError::Library(LibraryError::Unknown(_)) => RunsError::UnknownGeneration(parent.clone()),
                error => error.into(),
            })?;
        }
        let run = self.shared.new_run(request, by);
        let row = run.clone();
        self.shared
            .with_store(move |store| {
                let request = RunRequest::of(&row);
                check(store, &request)?;
                store.write(|rows| {
                    // Once more: a file may have been removed since.
                    for file in needed(&request) {
                        if rows.get::<FileRow>(file)?.is_none() {
                            return Ok(Err(RunsError::UnknownFile(file.clone())));
                        }
                    }
                    rows.insert(&row)?;
                    Ok(Ok(()))
                })?
            })
            .await?;
        self.shared.wake.notify_one();
        Ok(run)
    }

    /// The run of an id.
    ///
    /// # Errors
    /// There is none.
    pub async fn get(&self, id: &str) -> Result<Run, RunsError> {
        let id = id.to_owned();
        self.shared.with_store(move |store| store.get(&id)?.ok_or_else(|| unknown(&id))).await
    }

    /// Runs, a page at a time. One whose row is damaged is left out.
    ///
    /// # Errors
    /// The store failed.
    pub async fn list(&self, query: Query) -> Result<Page<Run>, RunsError> {
        self.shared.with_store(move |store| Ok(store.list_readable(&query)?)).await
    }

    /// What happened in a run, or its checkpoints alone: a page as `query` says, which names no index.
    ///
    /// # Errors
    /// There is no such run.
    pub async fn history(&self, id: &str, checkpoints: bool, query: Query) -> Result<Page<RunEvent>, RunsError> {
        let index = if checkpoints { "checkpoints" } else { "run" };
        let query = Query { by: vec![(index, id.to_owned())], ..query };
        let id = id.to_owned();
        let list = move |store: &Store| {
            store.get::<Run>(&id)?.ok_or_else(|| unknown(&id))?;
            Ok(store.list_readable(&query)?)
        };
        self.shared.with_store(list).await
    }

    /// As [`Self::history`], newest first.
    #[cfg(test)]
    pub(super) async fn events(
        &self,
        id: &str,
        checkpoints: bool,
        after: Option<String>,
        limit: usize,
    ) -> Result<Page<RunEvent>, RunsError> {
        self.history(id, checkpoints, Query { after, limit, newest_first: true, ..Query::default() }).await
    }

    /// What the gate said of a run's adapter; `None` before.
    ///
    /// # Errors
    /// The store failed.
    pub async fn gate(&self, id: &str) -> Result<Option<GateReport>, RunsError> {
        let query = Query { newest_first: true, limit: 1, ..Query::by("run", id) };
        let list =
            move |store: &Store| Ok(store.list_readable::<AdapterRow>(&query)?.rows.pop().and_then(|row| row.gate));
        self.shared.with_store(list).await
    }

    /// Stops a run between two steps, to go on later.
    ///
    /// # Errors
    /// There is none, it is over, or its adapter is going live.
    pub async fn pause(&self, id: &str) -> Result<Run, RunsError> {
        self.change(id, &[RunState::Queued, RunState::Running], "queued or running", "paused", RunState::Paused).await
    }

    /// Puts a paused run back into the queue.
    ///
    /// # Errors
    /// There is none, or it is not paused.
    pub async fn resume(&self, id: &str) -> Result<Run, RunsError> {
        self.change(id, &[RunState::Paused], "paused", "resumed", RunState::Queued).await
    }

    /// Ends a run for good.
    ///
    /// # Errors
    /// There is none, it is over, or its adapter is going live.
    pub async fn cancel(&self, id: &str) -> Result<Run, RunsError> {
        const FROM: &[RunState] = &[RunState::Queued, RunState::Running, RunState::Paused];
        let run = self.change(id, FROM, "queued, running or paused", "cancelled", RunState::Cancelled).await?;
        counter!("reground_runs_total", "outcome" => word(run.state)).increment(1);
        // Its process, if it has one, is ended just now and may still write: the task cleans up after it, too.
        self.shared.clean(id).await;
        Ok(run)
    }

    /// Writes down what is wanted of a run; the task sees to it.
    async fn change(
        &self,
        id: &str,
        from: &'static [RunState],
        allowed: &'static str,
        wanted: &'static str,
        to: RunState,
    ) -> Result<Run, RunsError> {
        let id = id.to_owned();
        let run = self
            .shared
            .with_store(move |store| {
                store.write(|rows| {
                    let Some(mut run) = rows.get::<Run>(&id)? else { return Ok(Err(unknown(&id))) };
                    if !from.contains(&run.state) {
                        return Ok(Err(RunsError::State { id: run.id, state: word(run.state), allowed, wanted }));
                    }
                    if run.adapter.is_some() {
                        return Ok(Err(RunsError::Concluded { id: run.id, wanted }));
                    }
                    run.state = to;
                    if to == RunState::Cancelled {
                        run.finished_ms = Some(id::now_ms());
                    }
                    rows.put(&run)?;
                    Ok(Ok(run))
                })?
            })
            .await?;
        info!(run.id = %run.id, "A run is to be {}.", word(run.state));
        self.shared.wake.notify_one();
        Ok(run)
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Shared {
    /// Uses the store off the async threads.
    pub(super) async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, RunsError> + Send + 'static,
    ) -> Result<T, RunsError> {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || work(&store)).await.map_err(io::Error::other)?
    }

    /// Removes the data of a run that is over.
    pub(super) async fn clean(&self, id: &str) {
        let directory = self.store.run_directory(id);
        // What cannot be removed is logged there, and is no reason to end anything.
        let _ = tokio::task::spawn_blocking(move || leftovers::remove(&directory)).await;
    }

    pub(super) fn new_run(&self, request: RunRequest, trigger: &str) -> Run {
        let live = || self.rollout.route().live.to_string();
        Run {
            id: id::new("ftjob"),
            created_ms: id::now_ms(),
            started_ms: None,
            finished_ms: None,
            state: RunState::Queued,
            trigger: trigger.to_owned(),
            parent: request.parent.clone().unwrap_or_else(live),
            dataset_digest: None,
            pairs: 0,
            request: request.json(),
            adapter: None,
            restarts: 0,
            error: None,
            refused: false,
        }
    }
}

/// Whether there is something to train on.
fn check(store: &Store, request: &RunRequest) -> Result<(), RunsError> {
    let none = |what: &str| RunsError::NoData(format!("there is {what} to train on"));
    for file in needed(request) {
        files::get(store, file)?;
    }
    match &request.training {
        Training::New if dataset::count_new(store)? == 0 => Err(none("no new pair")),
        Training::All if dataset::count_all(store)? == 0 => Err(none("no pair")),
        Training::File(_) | Training::New | Training::All => Ok(()),
    }
}

/// The files that a run needs.
fn needed(request: &RunRequest) -> impl Iterator<Item = &String> {
    let training = match &request.training {
        Training::File(id) => Some(id),
        Training::New | Training::All => None,
    };
    request.anchors.iter().flatten().chain(training)
}

fn unknown(id: &str) -> RunsError {
    RunsError::UnknownRun(id.chars().take(128).collect())
}

/// Whether an error is about the store or the file system, and may be over soon, and not about what was asked.
pub(super) fn is_outage(error: &RunsError) -> bool {
    match error {
        RunsError::Store(StoreError::Damaged { .. }) => false,
        RunsError::Store(error) => error.is_failure(),
        RunsError::Io(error) | RunsError::Rollout(RolloutError::Library(LibraryError::Io(error))) => is_passing(error),
        _ => false,
    }
}
