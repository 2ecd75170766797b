//! Who is inside and who comes next.
//!
//! One lock guards all of it, and is held for a few map operations only. Nothing that runs foreign code (waking a task,
//! dropping a place that comes back here) happens under it: what a change calls for is collected and done after.
//!
//! Between two changes it holds, where live and background places are not apart, that
//! - background places are at most `parallel`, live and background ones together at most `parallel + look_ahead`;
//! - if something live waits, all places are taken;
//! - of the background places, as many were told to leave (or all there are) as live requests, waiting or inside, find no
//!   place among the `parallel`;
//! - if background work waits, `parallel` places are taken.
//!
//! Where they are apart, each kind has its own limit and waits only when that is reached.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::queue::{FairQueue, Position};
use super::service_time::ServiceTime;
use super::{AdmissionError, Snapshot};
use crate::config::AdmissionConfig;

/// The places inside one generation and the queue in front of them.
pub(super) struct Places {
    /// Places in which the engine computes.
    parallel: usize,
    /// Those and the ones in which a live request is made ready.
    inside: usize,
    /// Whether background work has places of its own.
    apart: bool,
    queue: usize,
    queue_per_key: usize,
    state: Mutex<State>,
}

struct State {
    /// Places that live requests hold.
    live: usize,
    /// Places that background work holds, oldest first.
    background: BTreeMap<u64, Background>,
    queue: FairQueue<oneshot::Sender<Place>>,
    background_queue: VecDeque<(u64, oneshot::Sender<Place>, CancellationToken)>,
    next_background: u64,
    service_time: ServiceTime,
}

struct Background {
    preempt: CancellationToken,
    /// The token is cancelled after the lock is released, so it cannot tell under the lock.
    told: bool,
}

/// Who holds a place.
#[derive(Clone, Copy, Debug)]
enum Holder {
    Live,
    Background(u64),
}

/// A place inside; dropping it passes it on.
pub(super) struct Place {
    /// `None`: nothing to pass on.
    places: Option<Arc<Places>>,
    holder: Holder,
}

/// A place in the queue; dropping it gives it up, and with it a place inside that was granted and not yet taken.
pub(super) struct Ticket {
    places: Arc<Places>,
    lane: Lane,
    granted: oneshot::Receiver<Place>,
}

enum Lane {
    Live(Position),
    Background(u64),
}

/// What a change calls for, once the lock is released.
#[derive(Default)]
struct Calls {
    grants: Vec<(Holder, oneshot::Sender<Place>)>,
    preempt: Vec<CancellationToken>,
}

impl Places {
    pub(super) fn new(config: &AdmissionConfig, parallel: usize, look_ahead: usize, apart: bool) -> Self {
        let parallel = parallel.max(1);
        Self {
            parallel,
            inside: parallel + look_ahead,
            apart,
            queue: config.queue,
            queue_per_key: config.queue_per_key,
            state: Mutex::new(State {
                live: 0,
                background: BTreeMap::new(),
                queue: FairQueue::new(),
                background_queue: VecDeque::new(),
                next_background: 0,
                service_time: ServiceTime::default(),
            }),
        }
    }

    /// Every change of the state is complete before something can panic, so a poisoned lock holds a sound state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a live request. It may have its place already when this returns.
    pub(super) fn join(self: &Arc<Self>, key: &str) -> Result<Ticket, AdmissionError> {
        let (place, granted) = oneshot::channel();
        let mut state = self.lock();
        if !self.has_room(&state) {
            let of_key = state.queue.len_of(key);
            let limit_reached = if state.queue.len() >= self.queue {
                Some(state.queue.len())
            } else {
                (of_key >= self.queue_per_key).then_some(of_key)
            };
            if let Some(waiting) = limit_reached {
                let retry_after = state.service_time.until_served(state.queue.len(), self.inside);
                return Err(AdmissionError::Full { waiting, retry_after });
            }
        }
        let position = state.queue.push(key, place);
        let calls = self.settle(&mut state);
        drop(state);
        self.make(calls);
        Ok(Ticket { places: Arc::clone(self), lane: Lane::Live(position), granted })
    }

    /// Queues background work; the token tells it to leave again.
    pub(super) fn join_background(self: &Arc<Self>) -> (Ticket, CancellationToken) {
        let (place, granted) = oneshot::channel();
        let preempt = CancellationToken::new();
        let mut state = self.lock();
        let id = state.next_background;
        state.next_background += 1;
        state.background_queue.push_back((id, place, preempt.clone()));
        let calls = self.settle(&mut state);
        drop(state);
        self.make(calls);
        (Ticket { places: Arc::clone(self), lane: Lane::Background(id), granted }, preempt)
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        Snapshot { waiting: state.queue.len(), running: state.live, background: state.background.len() }
    }

    fn release(self: &Arc<Self>, holder: Holder) {
        let mut state = self.lock();
        state.leave(holder);
        let calls = self.settle(&mut state);
        drop(state);
        self.make(calls);
    }

    /// Whether a live request finds a place.
    fn has_room(&self, state: &State) -> bool {
        let taken = if self.apart { state.live } else { state.taken() };
        taken < self.inside
    }

    /// Whether background work that no live request goes before finds a place.
    fn has_room_behind(&self, state: &State) -> bool {
        let taken = if self.apart { state.background.len() } else { state.taken() };
        taken < self.parallel
    }

    /// Gives free places to who is next, then asks background work for as many as are still wanted.
    fn settle(&self, state: &mut State) -> Calls {
        let mut calls = Calls::default();
        while self.has_room(state)
            && let Some(sender) = state.queue.pop()
        {
            state.live += 1;
            calls.grants.push((Holder::Live, sender));
        }
        while self.has_room_behind(state)
            && let Some((id, sender, preempt)) = state.background_queue.pop_front()
        {
            state.background.insert(id, Background { preempt, told: false });
            calls.grants.push((Holder::Background(id), sender));
        }
        if self.apart {
            return calls;
        }
        let leaving = state.background.values().filter(|background| background.told).count();
        let wanted = (state.taken() + state.queue.len()).saturating_sub(self.parallel + leaving);
        // The newest first: it has the least work to lose.
        for background in state.background.values_mut().rev().filter(|background| !background.told).take(wanted) {
            background.told = true;
            calls.preempt.push(background.preempt.clone());
        }
        calls
    }

    /// Wakes whoever has to know. A grant that finds its receiver gone (dropped between the change and this) is passed on
    /// in a loop: through `Place`'s drop, a row of them would recurse.
    fn make(self: &Arc<Self>, mut calls: Calls) {
        loop {
            for token in calls.preempt.drain(..) {
                token.cancel();
            }
            let refused: Vec<Holder> = calls
                .grants
                .drain(..)
                .filter_map(|(holder, sender)| {
                    let place = Place { places: Some(Arc::clone(self)), holder };
                    sender.send(place).err().map(Place::take_back)
                })
                .collect();
            if refused.is_empty() {
                return;
            }
            let mut state = self.lock();
            for holder in refused {
                state.leave(holder);
            }
            calls = self.settle(&mut state);
        }
    }
}

impl State {
    fn taken(&self) -> usize {
        self.live + self.background.len()
    }

    fn leave(&mut self, holder: Holder) {
        match holder {
            Holder::Live => self.live -= 1,
            Holder::Background(id) => drop(self.background.remove(&id)),
        }
    }
}

impl Place {
    /// A live request held its place this long.
    pub(super) fn observe(&self, held: Duration) {
        if let Some(places) = &self.places {
            places.lock().service_time.observe(held);
        }
    }

    fn take_back(mut self) -> Holder {
        self.places = None;
        self.holder
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(places) = self.places.take() {
            places.release(self.holder);
        }
    }
}

impl Ticket {
    /// Waits for the place; `None` if the queue forgot this ticket.
    pub(super) async fn place(&mut self) -> Option<Place> {
        (&mut self.granted).await.ok()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Nobody's turn comes by this: whoever waits does so because all places are taken. Bound to a name, so that the
        // sender (which wakes) goes after the lock.
        let _sender = match &self.lane {
            Lane::Live(position) => self.places.lock().queue.remove(position),
            Lane::Background(id) => {
                let mut state = self.places.lock();
                let index = state.background_queue.iter().position(|(other, ..)| other == id);
                index.and_then(|index| state.background_queue.remove(index)).map(|(_, sender, _)| sender)
            }
        };
    }
}
