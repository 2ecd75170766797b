//! What one holds inside; dropping it passes the place on.

use std::fmt;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::activity::Present;
use super::places::Place;

/// A live request's place inside the engine; dropping it lets the next one in.
#[must_use = "dropping it gives the place away"]
pub struct Permit {
    place: Place,
    since: Instant,
    /// Held for its `Drop`.
    _present: Present,
}

/// Background work's place inside the engine; dropping it lets the next one in. A live request may want it back:
/// see [`BackgroundPermit::preempted`].
#[must_use = "dropping it gives the place away"]
pub struct BackgroundPermit {
    /// Held for its `Drop`.
    _place: Place,
    preempted: CancellationToken,
}

impl Permit {
    pub(super) fn new(place: Place, present: Present) -> Self {
        Self { place, since: Instant::now(), _present: present }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // Before the place itself goes, so that whoever is refused next hears of it.
        self.place.observe(self.since.elapsed());
    }
}

impl BackgroundPermit {
    pub(super) fn new(place: Place, preempted: CancellationToken) -> Self {
        Self { _place: place, preempted }
    }

    /// Ready once a live request waits for this place. It keeps waiting until the permit is dropped, so the holder stops
    /// at its next step. Stays ready.
    pub async fn preempted(&self) {
        self.preempted.cancelled().await;
    }

    /// Whether a live request waits for this place.
    #[must_use]
    pub fn is_preempted(&self) -> bool {
        self.preempted.is_cancelled()
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("since", &self.since).finish_non_exhaustive()
    }
}

impl fmt::Debug for BackgroundPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackgroundPermit").field("preempted", &self.is_preempted()).finish_non_exhaustive()
    }
}
