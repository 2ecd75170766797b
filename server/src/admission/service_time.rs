//! How long a place is held, for `Retry-After`.

use std::time::Duration;

/// How much of the average the newest observation is: it forgets what was more than about ten requests ago.
const WEIGHT: f64 = 0.2;
/// `Retry-After` has whole seconds, so less than one cannot be said.
const SHORTEST: f64 = 1.0;
/// The estimate assumes that nobody gives up; the further it looks ahead, the more wrong that is.
const LONGEST: f64 = 60.0;

/// Exponentially weighted moving average of the time that live requests hold a place.
#[derive(Debug, Default)]
pub(super) struct ServiceTime {
    /// Seconds; `None` until the first request is done.
    average: Option<f64>,
}

impl ServiceTime {
    /// A request held its place this long.
    pub(super) fn observe(&mut self, held: Duration) {
        let held = held.as_secs_f64();
        self.average = Some(self.average.map_or(held, |average| average + WEIGHT * (held - average)));
    }

    /// When `waiting` requests are likely to have got one of `parallel` places: average × waiting ÷ parallel, rounded up
    /// to whole seconds, from 1 s to 60 s.
    pub(super) fn until_served(&self, waiting: usize, parallel: usize) -> Duration {
        let seconds = self.average.unwrap_or(0.0) * waiting as f64 / parallel.max(1) as f64;
        Duration::from_secs_f64(seconds.ceil().clamp(SHORTEST, LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_observed_means_the_shortest_wait() {
        assert_eq!(ServiceTime::default().until_served(1000, 1), Duration::from_secs(1));
    }

    #[test]
    fn the_wait_grows_with_the_queue_and_shrinks_with_the_places() {
        let mut time = ServiceTime::default();
        time.observe(Duration::from_millis(2500));
        assert_eq!(time.until_served(4, 1), Duration::from_secs(10));
        assert_eq!(time.until_served(4, 4), Duration::from_secs(3), "2.5 s, rounded up");
        assert_eq!(time.until_served(0, 4), Duration::from_secs(1));
        assert_eq!(time.until_served(1000, 4), Duration::from_secs(60));
    }

    #[test]
    fn the_average_moves_a_fifth_of_the_way() {
        let mut time = ServiceTime::default();
        time.observe(Duration::from_secs(10));
        time.observe(Duration::from_secs(20));
        assert_eq!(time.until_served(1, 1), Duration::from_secs(12));
    }
}
