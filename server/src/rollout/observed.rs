//! How a generation's answers went: the last ones, in memory.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::sample::Sample;

/// Answers that are remembered of each generation.
const REMEMBERED: usize = 1024;

/// How the last answers of a generation went.
#[derive(Debug, Default)]
pub struct Observed {
    answers: Mutex<VecDeque<Observation>>,
}

/// How one answer went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// When it ended, milliseconds since 1970.
    pub at_ms: u64,
    /// Whether it failed through no fault of the caller; `None`: the caller left.
    pub failed: Option<bool>,
    /// From its place in the engine to the first token.
    pub first_token: Option<Duration>,
    /// From there to the next one, in the mean.
    pub per_token: Option<Duration>,
}

/// How answers went, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Behaviour {
    /// Share of them that failed.
    pub failures: Sample,
    /// Natural logarithm of the seconds to the first token: a difference of these means is the logarithm of a factor, and one slow
    /// answer among many does not decide it.
    pub first_token: Sample,
    /// Natural logarithm of the seconds per token after it.
    pub per_token: Sample,
}

impl Observed {
    /// One more answer has ended.
    pub fn note(&self, observation: Observation) {
        let mut answers = self.lock();
        if answers.len() == REMEMBERED {
            answers.pop_front();
        }
        answers.push_back(observation);
    }

    /// How all of the last answers went.
    #[must_use]
    pub fn all(&self) -> Behaviour {
        self.of(|_| true)
    }

    /// How those of the last answers went that ended later than then, milliseconds since 1970. What ended within that very millisecond
    /// began before it.
    #[must_use]
    pub fn after(&self, ms: u64) -> Behaviour {
        self.of(|answer| answer.at_ms > ms)
    }

    fn of(&self, counts: impl Fn(&Observation) -> bool) -> Behaviour {
        let mut behaviour = Behaviour::default();
        for answer in self.lock().iter().filter(|answer| counts(answer)) {
            if let Some(failed) = answer.failed {
                behaviour.failures.add(f64::from(u8::from(failed)));
            }
            let logarithm =
                |time: Option<Duration>| time.map(|time| time.max(Duration::from_micros(1)).as_secs_f64().ln());
            logarithm(answer.first_token).into_iter().for_each(|value| behaviour.first_token.add(value));
            logarithm(answer.per_token).into_iter().for_each(|value| behaviour.per_token.add(value));
        }
        behaviour
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Observation>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(at_ms: u64, failed: Option<bool>) -> Observation {
        Observation { at_ms, failed, first_token: Some(Duration::from_millis(100)), per_token: None }
    }

    #[test]
    fn the_last_answers_count_and_who_left_is_no_failure() {
        let observed = Observed::default();
        assert_eq!(observed.all(), Behaviour::default());
        observed.note(answer(1, Some(true)));
        observed.note(answer(2, Some(false)));
        observed.note(answer(3, None));
        let all = observed.all();
        assert_eq!((all.failures.count(), all.failures.mean(), all.per_token.count()), (2, 0.5, 0));
        assert_eq!((all.first_token.count(), observed.after(1).failures.mean()), (3, 0.0));
        assert!((all.first_token.mean() - 0.1_f64.ln()).abs() < 1e-9);
        (0..2000).for_each(|at| observed.note(answer(at, Some(false))));
        assert_eq!(observed.all().failures.count(), REMEMBERED as u64);
    }
}
