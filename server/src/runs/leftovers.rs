//! What goes when a run is over: its copy of the data, so that what is deleted from the store is gone from the disk.

use std::io;
use std::path::Path;

use fs_err as fs;
use reground_learner::bpo::files;
use reground_learner::store::rows::{Run, RunState};
use reground_learner::store::{Query, Store};
use tracing::warn;

use super::settings::BLOBS;
use super::{RunsError, dataset};

/// Files that hold answers, pictures or what was computed of each, and states of a training that goes on no more.
const DATA: &[&str] = &[BLOBS, dataset::FILE, "reference.safetensors", "reference-held-out.safetensors", "checkpoints"];

/// States that are an end.
pub(super) fn is_over(state: RunState) -> bool {
    matches!(state, RunState::Succeeded | RunState::Failed | RunState::Cancelled)
}

/// Removes the data of a run that is over. Its settings, adapter, verdict, metrics and report stay.
pub(super) fn remove(directory: &Path) {
    for name in DATA {
        let path = directory.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%error, "Data of a run that is over stay.");
            }
            _ => {}
        }
    }
    if let Err(error) = files::remove_unfinished(directory) {
        warn!(%error, "Unfinished files of a run that is over stay.");
    }
}

/// Removes the data of every run that is over: the server may have stopped between an end and its cleaning.
///
/// # Errors
/// The store failed.
pub(super) fn sweep(store: &Store) -> Result<(), RunsError> {
    for state in ["succeeded", "failed", "cancelled"] {
        for run in store.list_readable::<Run>(&Query::by("state", state))?.rows {
            remove(&store.run_directory(&run.id));
        }
    }
    Ok(())
}
