//! What happens to the adapter of a run that has finished.

use std::io;
use std::path::Path;

use reground_learner::gate::GateReport;
use reground_learner::gate::run::REPORT;
use reground_learner::store::id;
use reground_learner::store::rows::{AdapterRow, AdapterState, EventLevel, Run, RunState};
use tracing::{info, warn};

use super::RunsError;
use super::journal::Journal;
use super::runs::Shared;
use crate::config::AfterGate;
use crate::engine::GenerationId;
use crate::rollout::{By, Origin, RolloutError};

/// Who makes what a run makes.
const ITSELF: &str = "reground";

impl Shared {
    /// Reads the gate's verdict. An adapter that passed is taken in and goes where `[rollout]` says; one that did not stays in
    /// the run's directory, from where nothing is ever served.
    pub(super) async fn conclude(&self, run: &Run, journal: &Journal) -> Result<(), RunsError> {
        // Cancelled in the last moment: nothing of it goes live.
        if self.state(&run.id).await? != Some(RunState::Running) {
            return Ok(());
        }
        let directory = self.store.run_directory(&run.id);
        let report = {
            let path = directory.join(REPORT);
            tokio::task::spawn_blocking(move || read(&path)).await.map_err(io::Error::other)?
        };
        let report = match report {
            Ok(report) => report,
            Err(error) => {
                return self.fail(&run.id, &format!("the gate's verdict cannot be read: {error}"), false).await;
            }
        };
        if self.base.digest.as_ref().is_some_and(|served| *served != report.base_digest) {
            let why = "it was trained and measured on another model than is served now";
            return self.fail(&run.id, why, false).await;
        }
        if !report.passed {
            let why = report.reasons().join("; ");
            self.note(run, id::new("ad"), AdapterState::Refused, report).await?;
            return self.fail(&run.id, &format!("the gate did not pass: {why}"), true).await;
        }
        let adapter = self.take_in(run).await?;
        if !self.decide(&run.id, &adapter).await? {
            self.rollout.remove(&adapter).await?;
            return Ok(());
        }
        self.note(run, adapter.clone(), AdapterState::Passed, report).await?;
        let (level, told) = self.roll_out(run, &adapter).await?;
        self.keep(journal.say(level, told)).await;
        self.over(&run.id, RunState::Succeeded, |_| ()).await
    }

    /// Writes down that a run's adapter goes live, after which the run can be neither cancelled nor paused. `false`: it was
    /// just now, and nothing of it may go live.
    pub(super) async fn decide(&self, id: &str, adapter: &str) -> Result<bool, RunsError> {
        let (id, adapter) = (id.to_owned(), adapter.to_owned());
        self.with_store(move |store| {
            Ok(store.write(|rows| {
                let running = |run: &Run| run.state == RunState::Running;
                let Some(mut run) = rows.get::<Run>(&id)?.filter(running) else { return Ok(false) };
                run.adapter = Some(adapter);
                rows.put(&run)?;
                Ok(true)
            })?)
        })
        .await
    }

    /// The adapter's id; it is taken in unless it was before the server stopped.
    async fn take_in(&self, run: &Run) -> Result<String, RunsError> {
        let taken = self.rollout.adapters().await?;
        if let Some(manifest) = taken.into_iter().find(|manifest| manifest.run.as_ref() == Some(&run.id)) {
            return Ok(manifest.id);
        }
        let origin = Origin {
            by: ITSELF.to_owned(),
            base: self.base.source.clone(),
            base_digest: None,
            parent: (run.parent != *GenerationId::base().as_str()).then(|| run.parent.clone()),
            run: Some(run.id.clone()),
            dataset_digest: run.dataset_digest.clone(),
        };
        let directory = self.store.run_directory(&run.id).join("adapter");
        Ok(self.rollout.import(directory, origin).await?.id)
    }

    /// Keeps what the gate said.
    async fn note(&self, run: &Run, id: String, state: AdapterState, report: GateReport) -> Result<(), RunsError> {
        let row = AdapterRow {
            id,
            created_ms: id::now_ms(),
            run: Some(run.id.clone()),
            parent: run.parent.clone(),
            base_digest: report.base_digest.clone(),
            dataset_digest: run.dataset_digest.clone(),
            state,
            gate: Some(report),
        };
        self.with_store(move |store| Ok(store.write(|rows| rows.put(&row))?)).await
    }

    /// Puts the adapter where `[rollout]` says, if what the run continued is still live; what came of it.
    async fn roll_out(&self, run: &Run, adapter: &str) -> Result<(EventLevel, String), RunsError> {
        let (id, parent) = (GenerationId::from(adapter), GenerationId::from(run.parent.as_str()));
        // The server stopped, or the disk failed, before that was written to the run; somebody may have taken it back since.
        if self.rollout.changes(usize::MAX).await?.iter().any(|change| change.after.uses(&id)) {
            return Ok((EventLevel::Info, format!("Adapter {adapter} was put before callers already.")));
        }
        let (canary, shadow) = (self.after.canary_percent, self.after.shadow_percent);
        let (done, told) = match self.after.after_gate {
            AfterGate::Hold => {
                return Ok((EventLevel::Info, format!("Adapter {adapter} is kept, and waits to be activated.")));
            }
            AfterGate::Activate => {
                (self.rollout.activate(&id, Some(&parent), By::Itself).await, format!("Adapter {adapter} is live."))
            }
            AfterGate::Canary => {
                let told = format!("Adapter {adapter} answers {canary} percent of the callers.");
                (self.rollout.canary(&id, canary, Some(&parent), By::Itself).await, told)
            }
            AfterGate::Shadow => {
                let told =
                    format!("Adapter {adapter} answers {shadow} percent of the queries a second time, as a shadow.");
                (self.rollout.shadow(&id, shadow, Some(&parent), By::Itself).await, told)
            }
        };
        Ok(match done {
            Ok(_) => (EventLevel::Info, told),
            Err(error) => {
                if let RolloutError::Stale { .. } | RolloutError::Pinned(_) = error {
                    info!(run.id = %run.id, %error, "An adapter is kept and not put before callers.");
                } else {
                    warn!(run.id = %run.id, %error, "An adapter that passed the gate does not go live.");
                }
                (EventLevel::Warn, format!("Adapter {adapter} is kept and not put before callers: {error}"))
            }
        })
    }
}

fn read(path: &Path) -> io::Result<GateReport> {
    serde_json::from_slice(&fs_err::read(path)?).map_err(io::Error::other)
}
