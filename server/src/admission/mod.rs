//! The bounded, fair queue in front of an engine with one batch, or in front of each generation of one without.
//!
//! What is behind it answers a fixed number of requests at once, and can have a few more handed over ahead, whose preparation
//! then costs the engine no time. The others wait here: round-robin between API keys, first
//! come first served within one, never more than the configured number, never past their deadline. Whoever stops waiting
//! just drops the future.
//!
//! Background work (bootstrapping) goes through its own lane: it gets a place that no live request wants, and is told to
//! leave as soon as one does. An engine that pauses it by itself has places for it apart from those of live requests, and
//! it is never told to leave.
//!
//! # Layout
//! - [`Admission`]: the two ways in, [`Admission::enter`] and [`Admission::background`].
//! - [`activity`]: whether anybody is being answered, over all queues.
//! - [`permit`]: what one holds inside; dropping it passes the place on.
//! - [`places`]: who is inside and who comes next.
//! - [`queue`]: the order between keys.
//! - [`service_time`]: how long a place is held, for `Retry-After`.

mod activity;
mod permit;
mod places;
mod queue;
mod service_time;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use crate::config::AdmissionConfig;
use places::Places;

pub use activity::Activity;
pub use permit::{BackgroundPermit, Permit};

/// The queue in front of one generation, or of all.
pub struct Admission {
    places: Arc<Places>,
    activity: Activity,
}

/// Why a request did not get a place.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AdmissionError {
    /// Too many wait, in all or of this key.
    #[error("{waiting} requests are waiting, which is the limit")]
    Full {
        /// How many: of all keys, or of this one if its own limit was reached.
        waiting: usize,
        /// When a place is likely: whole seconds, from 1 to 60.
        retry_after: Duration,
    },
    /// The deadline passed in the queue.
    #[error("the deadline passed in the queue")]
    Deadline,
}

/// How full it is behind the queue at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Live requests in the queue.
    pub waiting: usize,
    /// Live requests inside, those ahead of their turn included.
    pub running: usize,
    /// Background work inside, also what was told to leave and has not yet.
    pub background: usize,
}

impl Admission {
    /// A queue in front of an engine that computes `parallel` answers (at least one) at once and takes `look_ahead` live
    /// requests more, which wait inside for their turn. Background work gets no place ahead. With `apart` as many places
    /// as `parallel` are for background work alone, which then takes none from live requests.
    #[must_use]
    pub fn new(config: &AdmissionConfig, parallel: usize, look_ahead: usize, apart: bool) -> Self {
        Self { places: Arc::new(Places::new(config, parallel, look_ahead, apart)), activity: Activity::default() }
    }

    /// The same queue, whose live requests count in `activity`.
    #[must_use]
    pub fn counted_in(self, activity: Activity) -> Self {
        Self { activity, ..self }
    }

    /// Waits for a place; `key` is whom the request counts for. Dropping the future gives the place in the queue up.
    ///
    /// # Errors
    /// The queue is full, or the deadline passed.
    pub async fn enter(&self, key: &str, deadline: Instant) -> Result<Permit, AdmissionError> {
        let present = self.activity.enter();
        loop {
            if Instant::now() >= deadline {
                return Err(AdmissionError::Deadline);
            }
            let mut ticket = self.places.join(key)?;
            match timeout_at(deadline, ticket.place()).await {
                Ok(Some(place)) => return Ok(Permit::new(place, present)),
                // Only a queue that went away forgets a ticket, and `self` holds it: this arm replaces a panic.
                Ok(None) => {}
                Err(_elapsed) => return Err(AdmissionError::Deadline),
            }
        }
    }

    /// Waits until a place in which the engine computes is free and no live request wants it. Among background work it is first come first served.
    /// Dropping the future gives the place in the lane up.
    pub async fn background(&self) -> BackgroundPermit {
        loop {
            let (mut ticket, preempted) = self.places.join_background();
            if let Some(place) = ticket.place().await {
                return BackgroundPermit::new(place, preempted);
            }
        }
    }

    /// How full it is now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.places.snapshot()
    }
}
