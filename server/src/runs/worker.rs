//! The task that does what the store says is wanted, one run at a time.

use std::convert::Infallible;
use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use metrics::counter;
use reground_learner::bpo::progress::Event;
use reground_learner::store::rows::{EventLevel, Pair, PairState, Run, RunEvent, RunState};
use reground_learner::store::{Query, Store, id};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::child::Child;
use super::dataset::Collected;
use super::journal::{self, Journal};
use super::runs::{STOPPING, Shared, is_outage};
use super::way::make_way;
use super::{RunRequest, RunsError, dataset, leftovers, settings, trigger};
use crate::engine::GenerationId;

/// How often triggers are looked at, and how long the task waits after a failure of the store.
const TICK: Duration = Duration::from_secs(5);
/// How often it is tried to take in what a run has made, [`TICK`] after one another.
const CONCLUSIONS: usize = 60;
/// Longest wait before a process that died is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How a training process ended.
enum End {
    /// There is an adapter, and a verdict.
    Finished,
    /// The run cannot be done.
    Failed(String),
    /// It stopped because that was wanted.
    Stopped,
    /// It ended without a word.
    Died(String),
}

async fn go(way: &mut Option<BoxFuture<'_, Infallible>>) -> Infallible {
    match way {
        Some(way) => way.await,
        None => pending().await,
    }
}

/// Works until the server stops.
pub(super) async fn work(shared: Arc<Shared>) {
    if let Err(error) = shared.with_store(leftovers::sweep).await {
        warn!(%error, "Data of runs that are over may stay.");
    }
    while !shared.stop.is_cancelled() {
        let attended = match shared.next().await {
            Ok(Some(run)) => shared.attend(run).await,
            Ok(None) => {
                tokio::select! {
                    () = shared.wake.notified() => {}
                    () = shared.stop.cancelled() => {}
                    () = sleep(TICK) => shared.trigger().await,
                }
                Ok(())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = attended {
            warn!(%error, "Runs wait: the store or the file system failed.");
            tokio::select! {
                () = shared.stop.cancelled() => {}
                () = sleep(TICK) => {}
            }
        }
    }
}

impl Shared {
    /// The run in hand, or the one that waits longest; none while `train.enabled` is off.
    async fn next(&self) -> Result<Option<Run>, RunsError> {
        if !self.train.enabled {
            return Ok(None);
        }
        self.with_store(|store| {
            for state in ["running", "queued"] {
                let first = Query { limit: 1, ..Query::by("state", state) };
                if let Some(run) = store.list_readable::<Run>(&first)?.rows.pop() {
                    return Ok(Some(run));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Begins a run that nobody asked for, if one is due.
    async fn trigger(&self) {
        let train = self.train.clone();
        let due = self.with_store(move |store| trigger::due(store, &train, id::now_ms())).await;
        let begun = match due {
            Ok(None) => return,
            Ok(Some(by)) => {
                let run = self.new_run(RunRequest::default(), by);
                self.with_store(move |store| Ok(store.insert(&run)?)).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = begun {
            warn!(%error, "It is not known whether a run is due.");
        }
    }

    /// Does a run, or what is left of it, and cleans up when it is over.
    pub(super) async fn attend(&self, run: Run) -> Result<(), RunsError> {
        let id = run.id.clone();
        let attended = self.go_on(run).await;
        if self.state(&id).await?.is_some_and(leftovers::is_over) {
            self.clean(&id).await;
        }
        attended
    }

    async fn go_on(&self, run: Run) -> Result<(), RunsError> {
        let id = run.id.clone();
        let run = match self.begin(run).await {
            Ok(Some(run)) => run,
            // It was cancelled or paused just now.
            Ok(None) => return Ok(()),
            Err(error) if is_outage(&error) => return Err(error),
            Err(error) => return self.fail(&id, &error.to_string(), false).await,
        };
        let mut journal = self.journal(&run.id).await?;
        if run.adapter.is_some() {
            // The server stopped while the adapter went live.
            return self.settle(&run, &journal).await;
        }
        let mut restarts = run.restarts;
        loop {
            let how = match self.supervise(&run, &mut journal).await? {
                End::Finished => return self.settle(&run, &journal).await,
                End::Failed(reason) => return self.give_up(&run.id, &journal, &reason).await,
                End::Stopped => return Ok(()),
                End::Died(how) => how,
            };
            restarts += 1;
            counter!("reground_run_restarts_total").increment(1);
            if restarts > self.train.max_resumes {
                let reason = format!("the training process died {restarts} times; the last time {how}");
                return self.give_up(&run.id, &journal, &reason).await;
            }
            warn!(run.id = %run.id, restarts, "A training process died ({how}); it goes on from its last checkpoint.");
            let told = format!("The training process died ({how}); it goes on from its last checkpoint.");
            self.keep(journal.say(EventLevel::Warn, told)).await;
            let id = run.id.clone();
            self.with_store(move |store| Ok(store.update::<Run>(&id, |run| run.restarts = restarts)?)).await?;
            tokio::select! {
                () = sleep((Duration::from_millis(250) * 2_u32.saturating_pow(restarts)).min(LONGEST_PAUSE)) => {}
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Concludes a run that has finished; what fails is tried again for a while, without training and measuring it again.
    async fn settle(&self, run: &Run, journal: &Journal) -> Result<(), RunsError> {
        for _ in 0..CONCLUSIONS {
            let Err(error) = self.conclude(run, journal).await else { return Ok(()) };
            warn!(run.id = %run.id, %error, "What a run has made cannot be taken in yet.");
            tokio::select! {
                () = sleep(TICK) => {}
                () = self.stop.cancelled() => return Err(error),
            }
        }
        let Err(error) = self.conclude(run, journal).await else { return Ok(()) };
        self.fail(&run.id, &format!("what it has made could not be taken in: {error}"), false).await
    }

    /// Freezes the pairs of a run and writes its settings, unless that was done; then it is running. `None`: it is no longer
    /// wanted.
    async fn begin(&self, run: Run) -> Result<Option<Run>, RunsError> {
        if run.dataset_digest.is_some() {
            return self.run(run.id, |_| (), Vec::new()).await;
        }
        let request = RunRequest::of(&run);
        let parent =
            request.parent.clone().map_or_else(|| self.rollout.route().live, |id| GenerationId::from(id.as_str()));
        let adapter = if parent == GenerationId::base() {
            None
        } else {
            // Checked to be what was taken in; named so that the data directory can be moved.
            self.rollout.verified(parent.as_str()).await?;
            Some(PathBuf::from("../../adapters").join(parent.as_str()))
        };
        let (train, gate) = (self.train.clone(), settings::gate_config(&self.gate)?);
        let (id, base, edge) = (run.id.clone(), self.base.checkpoint.clone(), self.distortion_edge);
        let frozen = self
            .with_store(move |store| {
                let directory = store.run_directory(&run.id);
                let frozen = dataset::freeze(store, &run, &train, &directory)?;
                let config = settings::run_config(&train, &request, &base, adapter.as_deref(), &frozen.digest, edge);
                settings::write(&directory.join("run.toml"), &config)?;
                settings::write(&directory.join("gate.toml"), &gate)?;
                Ok(frozen)
            })
            .await?;
        if frozen.without_image > 0 {
            let message = format!("{} pairs are left out: their image is gone.", frozen.without_image);
            self.keep(Journal::new(&id).say(EventLevel::Warn, message)).await;
        }
        info!(run.id = %id, parent = %parent, pairs = frozen.count, dataset = %frozen.digest, "A run begins.");
        let set = move |run: &mut Run| {
            run.parent = parent.to_string();
            run.started_ms = Some(id::now_ms());
            (run.dataset_digest, run.pairs) = (Some(frozen.digest), frozen.count);
        };
        self.run(id, set, frozen.collected).await
    }

    /// Marks a run as running and pairs as its own, if that is still wanted.
    pub(super) async fn run(
        &self,
        id: String,
        set: impl FnOnce(&mut Run) + Send + 'static,
        pairs: Vec<Collected>,
    ) -> Result<Option<Run>, RunsError> {
        self.with_store(move |store| {
            Ok(store.write(|rows| {
                let wanted = |run: &Run| matches!(run.state, RunState::Queued | RunState::Running);
                let Some(mut run) = rows.get::<Run>(&id)?.filter(wanted) else { return Ok(None) };
                run.state = RunState::Running;
                set(&mut run);
                rows.put(&run)?;
                for frozen in pairs {
                    // One that was deleted just now is in this run still, and in no later one.
                    let Some(mut pair) = rows.get::<Pair>(&frozen.id)? else { continue };
                    // What somebody decided about it meanwhile holds; other answers are for another run.
                    if matches!(pair.state, PairState::New | PairState::Accepted) && frozen.is(&pair.data) {
                        pair.state = PairState::Used;
                    }
                    pair.runs.push(run.id.clone());
                    rows.put(&pair)?;
                }
                Ok(Some(run))
            })?)
        })
        .await
    }

    /// Watches one training process to its end.
    async fn supervise(&self, run: &Run, journal: &mut Journal) -> Result<End, RunsError> {
        let directory = self.store.run_directory(&run.id);
        let mut child = match Child::start(&self.program, &directory, &self.train).await {
            Ok(child) => child,
            Err(error) => return Ok(End::Died(format!("it could not be started: {error}"))),
        };
        info!(run.id = %run.id, process = child.id(), "A training process began.");
        let (mut finished, mut gated, mut paused, mut failed) = (false, false, false, None);
        let (mut asked, mut deadline) = (false, None::<Instant>);
        // From its first word on: only then does it go on if this server dies while it stands still.
        let mut way: Option<BoxFuture<'_, Infallible>> = None;
        loop {
            let given_up = deadline.unwrap_or_else(Instant::now);
            tokio::select! {
                event = child.next() => {
                    let Some(event) = event else { break };
                    if way.is_none() && !asked && deadline.is_none() {
                        way = self.way_of(&child);
                    }
                    match &event {
                        Event::Finished { .. } => finished = true,
                        Event::Gated { .. } => gated = true,
                        Event::Paused { .. } => paused = true,
                        Event::Failed { reason } => failed = Some(reason.clone()),
                        _ => {}
                    }
                    if let Some(row) = journal.row(&event) {
                        self.keep(row).await;
                    }
                }
                () = self.wake.notified() => match self.state(&run.id).await? {
                    Some(RunState::Running) => {}
                    Some(RunState::Paused | RunState::Queued) if asked => {}
                    Some(RunState::Paused | RunState::Queued) => {
                        asked = true;
                        way = None;
                        child.pause().await;
                    }
                    _ => {
                        drop(way);
                        child.kill().await;
                        return Ok(End::Stopped);
                    }
                },
                () = self.stop.cancelled(), if deadline.is_none() => {
                    deadline = Some(Instant::now() + STOPPING);
                    way = None;
                    child.pause().await;
                }
                never = go(&mut way) => match never {},
                () = sleep_until(given_up), if deadline.is_some() => {
                    child.kill().await;
                    return Ok(End::Stopped);
                }
            }
        }
        // Before it is waited for, after which its id may be another's.
        drop(way);
        let (status, errors) = child.end().await?;
        Ok(match failed {
            Some(reason) => End::Failed(reason),
            None if finished && gated => End::Finished,
            // A pause that came while the gate was asked leaves no pause event, and no verdict if the process was killed.
            None if paused || deadline.is_some() => End::Stopped,
            None if self.state(&run.id).await? != Some(RunState::Running) => End::Stopped,
            None => {
                let words = errors.lines().last().map(|line| format!(": {line}")).unwrap_or_default();
                End::Died(format!("{status}{words}"))
            }
        })
    }

    /// What makes a training process give way to live queries, unless that is switched off.
    fn way_of(&self, child: &Child) -> Option<BoxFuture<'_, Infallible>> {
        let share = self.train.min_share;
        let process = child.id().filter(|_| share < 1.0)?;
        Some(Box::pin(make_way(self.rollout.activity(), process, share)))
    }

    /// What is wanted of a run now.
    pub(super) async fn state(&self, id: &str) -> Result<Option<RunState>, RunsError> {
        let id = id.to_owned();
        self.with_store(move |store| Ok(store.get::<Run>(&id)?.map(|run| run.state))).await
    }

    /// The journal of a run, where it was left.
    async fn journal(&self, id: &str) -> Result<Journal, RunsError> {
        let id = id.to_owned();
        self.with_store(move |store: &Store| {
            let last = Query { newest_first: true, limit: 200, ..Query::by("run", &id) };
            Ok(Journal::after(&id, &store.list_readable::<RunEvent>(&last)?.rows))
        })
        .await
    }

    /// Keeps an event. One that cannot be kept is no reason to end a run.
    pub(super) async fn keep(&self, event: RunEvent) {
        let kept = self.with_store(move |store| Ok(journal::keep(store, &event)?)).await;
        if let Err(error) = kept {
            warn!(%error, "An event of a run is not kept.");
        }
    }

    /// Ends a run that could not be done. Before its first step nothing was learned from its pairs, which are new again then.
    async fn give_up(&self, id: &str, journal: &Journal, reason: &str) -> Result<(), RunsError> {
        if !journal.has_steps() {
            let run = id.to_owned();
            self.with_store(move |store| give_back(store, &run)).await?;
        }
        self.fail(id, reason, false).await
    }

    /// Ends a run without an adapter, if it is still wanted; `refused`: the gate said so.
    pub(super) async fn fail(&self, id: &str, reason: &str, refused: bool) -> Result<(), RunsError> {
        warn!(run.id = %id, "A run failed: {reason}");
        self.keep(Journal::new(id).say(EventLevel::Error, format!("The run failed: {reason}"))).await;
        let reason = reason.to_owned();
        let set = move |run: &mut Run| (run.error, run.refused, run.adapter) = (Some(reason), refused, None);
        self.over(id, RunState::Failed, set).await
    }

    /// Ends a run, if it is still wanted.
    pub(super) async fn over(
        &self,
        id: &str,
        state: RunState,
        set: impl FnOnce(&mut Run) + Send + 'static,
    ) -> Result<(), RunsError> {
        let id = id.to_owned();
        counter!("reground_runs_total", "outcome" => super::error::word(state)).increment(1);
        self.with_store(move |store| {
            Ok(store.write(|rows| {
                rows.update::<Run>(&id, |run| {
                    if matches!(run.state, RunState::Queued | RunState::Running) {
                        run.state = state;
                        run.finished_ms = Some(id::now_ms());
                        set(run);
                    }
                })
                .map(drop)
            })?)
        })
        .await
    }
}

/// Makes the pairs that a run was the first to take what they were, and the run one that has no data yet. If the server dies before the
/// run's end is written, it begins anew.
fn give_back(store: &Store, run: &str) -> Result<(), RunsError> {
    let taken = store.list_readable::<Pair>(&Query::by("run", run))?.rows;
    Ok(store.write(|rows| {
        for pair in &taken {
            // One that was deleted just now needs nothing.
            let Some(mut pair) = rows.get::<Pair>(&pair.data.id)? else { continue };
            pair.runs.retain(|id| id != run);
            if pair.state == PairState::Used && pair.runs.is_empty() {
                pair.state = if pair.reviews.is_empty() { PairState::New } else { PairState::Accepted };
            }
            rows.put(&pair)?;
        }
        rows.update::<Run>(run, |run| (run.dataset_digest, run.pairs) = (None, 0)).map(drop)
    })?)
}
