//! The bounded, fair queue in front of each generation.

use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use crate::config::AdmissionConfig;

/// The queue in front of one generation.
pub struct Admission {}

/// A place inside the engine; dropping it lets the next request in.
pub struct Permit {}

/// Why a request did not get a place.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AdmissionError {
    /// Too many wait.
    #[error("{waiting} requests are waiting, which is the limit")]
    Full {
        /// How many.
        waiting: usize,
        /// When a place is likely.
        retry_after: Duration,
    },
    /// The deadline passed in the queue.
    #[error("the deadline passed in the queue")]
    Deadline,
}

impl Admission {
    /// A queue that lets `parallel` requests through at once.
    #[must_use]
    pub fn new(_config: &AdmissionConfig, _parallel: usize) -> Self {
        Self {}
    }

    /// Waits for a place. Dropping the future gives the place in the queue up.
    ///
    /// # Errors
    /// The queue is full, or the deadline passed.
    pub async fn enter(&self, _key: &str, _deadline: Instant) -> Result<Permit, AdmissionError> {
        Ok(Permit {})
    }
}
