//! Why nothing was changed.

use reground_learner::store::StoreError;
use thiserror::Error;

use super::generations::LoadError;
use super::library::LibraryError;
use super::probe::ProbeError;
use crate::admission::AdmissionError;
use crate::engine::GenerationId;

/// Why nothing was changed.
#[derive(Debug, Error)]
pub enum RolloutError {
    /// The caller's view is out of date.
    #[error("`expected_generation` is `{expected}`, but `{live}` is live; nothing was changed")]
    Stale {
        /// What the caller took for live.
        expected: GenerationId,
        /// What is.
        live: GenerationId,
    },
    /// There is nothing to go back to.
    #[error("there is nothing to roll back to: `{live}` is live and no generation was before it")]
    NoPrevious {
        /// What is live.
        live: GenerationId,
    },
    /// It is what it would become.
    #[error("generation `{0}` is live already")]
    AlreadyLive(GenerationId),
    /// Only what is live can be pinned.
    #[error("`{id}` cannot be pinned: `{live}` is live; activate it first")]
    NotLive {
        /// What was to be pinned.
        id: GenerationId,
        /// What is live.
        live: GenerationId,
    },
    /// Another generation is on trial.
    #[error("`{id}` is not on trial, `{on_trial}` is; nothing was changed")]
    NotOnTrial {
        /// Whose trial was to end.
        id: GenerationId,
        /// What is on trial.
        on_trial: GenerationId,
    },
    /// What is live stays until a person says otherwise.
    #[error("`{0}` is pinned, so that nothing takes its place by itself")]
    Pinned(GenerationId),
    /// Nothing can be tried where one generation at a time is loaded.
    #[error("`rollout.strategy` is `recreate`: there is no place for a second generation beside the live one")]
    OneAtATime,
    /// What was watched is not what it was.
    #[error("`{0}` is not watched any more; nothing was changed")]
    NotWatched(GenerationId),
    /// The adapter is needed.
    #[error("adapter `{0}` is live, previous, canary or shadow and cannot be removed")]
    InUse(GenerationId),
    /// A run goes on from the adapter.
    #[error("job `{run}` is not over and continues adapter `{id}`; wait for its end, or cancel it")]
    Continued {
        /// The adapter.
        id: GenerationId,
        /// The run.
        run: String,
    },
    /// The adapter is not there, or is not what was taken in.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The adapter cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The adapter was loaded and is not fit for traffic.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// Callers could not be made to wait.
    #[error("callers could not be made to wait for the change: {0}")]
    Gate(#[from] AdmissionError),
    /// The change could not be made durable. What the disk took of it is undone once it can be written; a server that dies before
    /// that may find it made.
    #[error("the change could not be written down, so it was not made: {0}")]
    Ledger(StoreError),
    /// A bug: the change panicked.
    #[error("the change broke; the log says more")]
    Broken,
}
