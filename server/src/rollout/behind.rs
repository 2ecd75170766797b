//! Background work behind all live queries, whichever generation or model does it.

use std::pin::Pin;
use std::sync::Arc;

use futures::future::select_all;

use super::generations::Generations;
use crate::admission::{Admission, BackgroundPermit};

/// Places in front of what live queries go to, which none of them wants.
#[derive(Debug, Default)]
#[must_use = "dropping it gives the places away"]
pub struct Behind {
    places: Vec<BackgroundPermit>,
}

impl Generations {
    /// Waits for a place in front of the live generation, of the canary and of what is to answer, none of which a live query wants.
    pub async fn behind_live(&self, answering: &Arc<Admission>) -> Behind {
        let mut queues = self.live_queues();
        if !queues.iter().any(|queue| Arc::ptr_eq(queue, answering)) {
            queues.push(answering.clone());
        }
        Behind::of(&queues).await
    }

    /// The queues that live queries wait in, each once. Not the leases: those would keep a generation loaded.
    fn live_queues(&self) -> Vec<Arc<Admission>> {
        let route = self.route();
        let canary = route.canary.as_ref().map(|canary| &canary.generation);
        let mut queues: Vec<Arc<Admission>> = Vec::new();
        for lease in std::iter::once(&route.live).chain(canary).filter_map(|id| self.get(id)) {
            if !queues.iter().any(|queue| Arc::ptr_eq(queue, &lease.admission)) {
                queues.push(lease.admission);
            }
        }
        queues
    }
}

impl Behind {
    /// A place in each of these queues. Who waits for the next one with a place that a live query wants would hold that up, so it begins
    /// anew.
    async fn of(queues: &[Arc<Admission>]) -> Self {
        'anew: loop {
            let mut behind = Self::default();
            for queue in queues {
                tokio::select! {
                    place = queue.background() => behind.places.push(place),
                    () = behind.preempted() => continue 'anew,
                }
            }
            return behind;
        }
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
