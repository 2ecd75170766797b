//! How an answer went, for whoever watches its generation.

use std::sync::Arc;

use reground_learner::store::id;
use tokio::time::Instant;

use super::{AnswerError, Timing};
use crate::rollout::{Observation, Observed};

/// How an answer goes, from its place in the engine on: how long it waited says how much is asked, not how good a generation is. What is
/// known of it is noted when this is dropped.
pub(super) struct Account {
    observed: Arc<Observed>,
    admitted: Instant,
    first: Option<Instant>,
    last: Instant,
    tokens: u32,
    failed: Option<bool>,
}

impl Account {
    /// An answer of the generation that is observed so has got its place.
    pub(super) fn open(observed: Arc<Observed>) -> Self {
        let now = Instant::now();
        Self { observed, admitted: now, first: None, last: now, tokens: 0, failed: None }
    }

    /// The engine made a token.
    pub(super) fn token(&mut self, at: Instant) {
        self.last = at;
        self.first.get_or_insert(self.last);
        self.tokens += 1;
    }

    /// Where the time went of an answer that was asked for at `began` and whose last event the engine reported at `last`.
    pub(super) fn timing(&self, began: Instant, last: Instant) -> Timing {
        Timing { queued: self.admitted - began, engine: last.saturating_duration_since(self.admitted) }
    }

    /// The answer is complete.
    pub(super) fn ended(&mut self) {
        self.failed = Some(false);
    }

    /// The answer broke off, or never began. A deadline counts only if hardly any of the time for it went by in the queue.
    pub(super) fn broke_off(&mut self, error: &AnswerError) {
        let waited = match error {
            AnswerError::Deadline { after } => after.saturating_sub(self.admitted.elapsed()) > *after / 10,
            _ => false,
        };
        self.failed = (error.is_failure() && !waited).then_some(true);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let per_token = match (self.first, self.tokens.checked_sub(1)) {
            (Some(first), Some(more)) if more > 0 => Some((self.last - first) / more),
            _ => None,
        };
        self.observed.note(Observation {
            at_ms: id::now_ms(),
            failed: self.failed,
            first_token: self.first.map(|first| first - self.admitted),
            per_token,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_deadline_that_went_by_in_the_queue_is_no_failure_of_what_answers() {
        let observed = Arc::new(Observed::default());
        let past = |queued: u64, inside: u64| {
            let mut account = Account::open(observed.clone());
            account.admitted = Instant::now().checked_sub(Duration::from_secs(inside)).unwrap();
            account.broke_off(&AnswerError::Deadline { after: Duration::from_secs(queued + inside) });
            drop(account);
            observed.all().failures.count()
        };
        assert_eq!((past(29, 1), past(10, 20), past(1, 29), past(0, 30)), (0, 0, 1, 2));
    }
}
