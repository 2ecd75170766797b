//! A share of the live queries, answered a second time by another generation, for the counters alone.
//!
//! Nothing of it is returned or recorded, and it takes only what live queries leave: a bounded queue, one answer at a time, in a
//! place that nobody waits for, in front of the live generation, the canary and the shadow itself. Whoever needs one of them ends the
//! answer at its next token.
//!
//! # Layout
//! - [`Shadow`]: which queries are answered again, and what was seen so far.
//! - `case`: a query and its live answer, until they are compared. `worker`: the second answer.
//! - [`Comparison`]: how the two generations differ.

mod case;
mod comparison;
mod worker;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::counter;
use rand::Rng;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(super) use self::case::Case;
pub use self::comparison::{Comparison, Side};
use crate::engine::{Generate, GenerationId};
use crate::images::Pixels;
use crate::rollout::Generations;

/// Live answers that wait to be compared; what does not fit is counted and dropped.
const QUEUE: usize = 16;

/// Answers a share of the live queries a second time.
pub struct Shadow {
    generations: Arc<Generations>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// To the task, while there is one.
    queue: Option<mpsc::Sender<Case>>,
    comparison: Comparison,
}

/// The task that answers. Dropping it ends the task at its next step.
pub struct ShadowTask {
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl Shadow {
    /// A shadow that answers nothing until it is started.
    pub(super) fn new(generations: Arc<Generations>) -> Self {
        Self { generations, state: Mutex::default() }
    }

    /// Starts the task that answers.
    #[must_use]
    pub fn start(self: &Arc<Self>) -> ShadowTask {
        comparison::describe();
        let (queue, cases) = mpsc::channel(QUEUE);
        self.state().queue = Some(queue);
        let (stop, me) = (CancellationToken::new(), self.clone());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = me.work(cases) => {}
                () = stopped.cancelled() => me.state().queue = None,
            }
        });
        ShadowTask { stop: stop.drop_guard(), task }
    }

    /// What was seen of the shadow that the route has; `None` if it has none.
    #[must_use]
    pub fn comparison(&self) -> Option<Comparison> {
        let route = self.generations.route();
        let shadow = route.shadow?.generation;
        let comparison = self.state().comparison.clone();
        Some(if comparison.is_of(&shadow, &route.live) { comparison } else { Comparison::new(shadow, route.live) })
    }

    /// What a query that `answering` answers will be compared by, if it is among those that are answered again.
    pub(super) fn case(&self, answering: &GenerationId, request: &Generate, stop: &[String]) -> Option<Case> {
        let route = self.generations.route();
        let shadow = route.shadow.filter(|_| *answering == route.live)?;
        let queue = self.state().queue.clone()?;
        let drawn = rand::rng().random_range(0..100) < shadow.percent;
        // A case waits for long, and live queries need the room.
        if drawn && request.pixels().any(Pixels::are_scarce) {
            counter!(comparison::OUTCOMES, "outcome" => "dropped").increment(1);
            return None;
        }
        drawn.then(|| Case::new(shadow.generation, route.live, request.clone(), stop.to_vec(), queue))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ShadowTask {
    /// Ends the task and waits until it has.
    pub async fn stop(self) {
        drop(self.stop);
        if self.task.await.is_err() {
            tracing::error!("The shadow panicked; nothing was compared since");
        }
    }
}
