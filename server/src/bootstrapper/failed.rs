//! Records that failed, and when it is their turn again.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// Pause before the third try; each further one doubles it. The second comes with the next pass.
const FIRST: Duration = Duration::from_secs(10);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(600);

/// Records that failed, and when it is their turn again. Without it a few records that always fail would keep the model busy,
/// and those behind them waiting. It is forgotten with the process.
#[derive(Default)]
pub(super) struct Failed {
    records: HashMap<String, Failures>,
}

struct Failures {
    count: u32,
    last: Instant,
}

impl Failures {
    fn pause(&self) -> Duration {
        match self.count {
            0 | 1 => Duration::ZERO,
            count => FIRST.saturating_mul(1 << (count - 2).min(16)).min(LONGEST),
        }
    }
}

impl Failed {
    /// Whether a record has failed.
    pub(super) fn contains(&self, id: &str) -> bool {
        self.records.contains_key(id)
    }

    /// A record failed.
    pub(super) fn add(&mut self, id: String, now: Instant) {
        let failures = self.records.entry(id).or_insert(Failures { count: 0, last: now });
        (failures.count, failures.last) = (failures.count.saturating_add(1), now);
    }

    /// A record waits no longer.
    pub(super) fn remove(&mut self, id: &str) {
        self.records.remove(id);
    }

    /// Ids of those whose turn it is: who failed least first, then the oldest.
    pub(super) fn due(&self, now: Instant) -> Vec<String> {
        let due = self
            .records
            .iter()
            .filter(|(_, failures)| now.saturating_duration_since(failures.last) >= failures.pause());
        let mut due: Vec<_> = due.map(|(id, failures)| (failures.count, id)).collect();
        due.sort_unstable();
        due.into_iter().map(|(_, id)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_often_waits_longer_and_comes_last() {
        let mut failed = Failed::default();
        let now = Instant::now();
        failed.add("a".into(), now);
        assert_eq!(failed.due(now), ["a"], "the second try comes with the next pass");
        failed.add("a".into(), now);
        failed.add("b".into(), now);
        assert_eq!(failed.due(now), ["b"]);
        assert_eq!(failed.due(now + FIRST), ["b", "a"]);
        for _ in 0..100 {
            failed.add("a".into(), now);
        }
        failed.remove("b");
        assert!(failed.contains("a") && !failed.contains("b"));
        assert!(failed.due(now + LONGEST - FIRST).is_empty());
        assert_eq!(failed.due(now + LONGEST), ["a"]);
    }
}
