//! Why not, as HTTP says it.

use crate::api::error::{ApiError, code};
use crate::rollout::{LibraryError, ProbeError, RolloutError};

impl From<RolloutError> for ApiError {
    fn from(error: RolloutError) -> Self {
        let message = error.to_string();
        match error {
            RolloutError::Stale { .. } => Self::conflict(message).at("expected_generation"),
            RolloutError::NoPrevious { .. }
            | RolloutError::AlreadyLive(_)
            | RolloutError::NotLive { .. }
            | RolloutError::NotOnTrial { .. }
            | RolloutError::Pinned(_)
            | RolloutError::OneAtATime
            | RolloutError::NotWatched(_)
            | RolloutError::InUse(_)
            | RolloutError::Continued { .. } => Self::conflict(message),
            RolloutError::Library(LibraryError::Unknown(_)) => Self::not_found(code::ADAPTER_NOT_FOUND, message),
            RolloutError::Library(LibraryError::Changed { .. }) => Self::bad_request(code::ADAPTER_CHANGED, message),
            RolloutError::Library(LibraryError::OtherBase { .. }) => Self::bad_request(code::ADAPTER_BASE, message),
            RolloutError::Library(LibraryError::Invalid(_) | LibraryError::TooLarge { .. }) => {
                Self::bad_request(code::INVALID_ADAPTER, message)
            }
            RolloutError::Probe(ProbeError::Inert | ProbeError::NotFinite) => {
                Self::bad_request(code::INVALID_ADAPTER, message)
            }
            RolloutError::Probe(ProbeError::Engine(error)) => error.into(),
            RolloutError::Load(error) => error.into(),
            RolloutError::Broken => Self::internal(message),
            RolloutError::Gate(_) | RolloutError::Probe(ProbeError::Admission(_) | ProbeError::Deadline) => {
                Self::unavailable(code::DEADLINE, message, 5)
            }
            RolloutError::Library(LibraryError::Io(_)) | RolloutError::Ledger(_) => {
                Self::unavailable(code::STORAGE, message, 5)
            }
        }
    }
}
