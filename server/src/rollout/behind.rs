//! Background work behind all live queries, whichever generation does it.

use std::pin::Pin;

use futures::future::select_all;

use super::generations::Generations;
use crate::admission::BackgroundPermit;

/// A place in front of everything that live queries go to, which none of them wants. For work that something else than these
/// generations does, on the same machine.
#[derive(Debug)]
#[must_use = "dropping it gives the places away"]
pub struct Behind {
    places: Vec<BackgroundPermit>,
}

impl Generations {
    /// Waits until neither in front of the live generation nor in front of the canary a live query wants the place.
    pub async fn behind_live(&self) -> Behind {
        let route = self.route();
        let canary = route.canary.as_ref().map(|canary| &canary.generation);
        let mut places = Vec::new();
        // In the same order each time: who has the first waits for the second, never the other way round.
        for id in std::iter::once(&route.live).chain(canary) {
            if let Some(lease) = self.get(id) {
                let admission = lease.admission.clone();
                // A lease would keep the generation loaded while this waits.
                drop(lease);
                places.push(admission.background().await);
            }
        }
        Behind { places }
    }
}

impl Behind {
    /// The same with one place more.
    pub fn and(mut self, place: BackgroundPermit) -> Self {
        self.places.push(place);
        self
    }

    /// Ready once a live query wants a place.
    pub async fn preempted(&self) {
        type Preempted<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
        if self.places.is_empty() {
            return std::future::pending().await;
        }
        select_all(self.places.iter().map(|place| Box::pin(place.preempted()) as Preempted<'_>)).await;
    }
}
