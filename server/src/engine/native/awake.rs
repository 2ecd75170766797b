//! Keeps the other threads awake for as long as a step takes.
//!
//! A step is hundreds of products of a tenth of a millisecond. To wake a thread takes about as long, so one that falls asleep
//! between two products is of no use.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::Yield;

/// Does `work` on this thread of a pool, while the pool's other threads look for parts of it without rest.
pub(super) fn with_others_awake<T>(work: impl FnOnce() -> T) -> T {
    let Some(here) = rayon::current_thread_index() else { return work() };
    let is_done = AtomicBool::new(false);
    rayon::in_place_scope(|scope| {
        // A task for each thread, that no other one takes: this thread would never come back from it.
        scope.spawn_broadcast(|_, context| {
            while context.index() != here && !is_done.load(Ordering::Relaxed) {
                if rayon::yield_now() != Some(Yield::Executed) {
                    std::thread::yield_now();
                }
            }
        });
        let _done = Done(&is_done);
        work()
    })
}

/// Lets the others go, also after a panic.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rayon::prelude::*;

    use super::*;

    #[test]
    fn work_is_shared_and_ends_also_after_a_panic() {
        assert_eq!(with_others_awake(|| 1), 1, "outside a pool");
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                for round in 0..200_usize {
                    let sum: usize = with_others_awake(|| (0..1000_usize).into_par_iter().map(|at| at * round).sum());
                    assert_eq!(sum, round * 499_500);
                }
                let panicked = catch_unwind(AssertUnwindSafe(|| with_others_awake(|| panic!("on purpose"))));
                assert!(panicked.is_err());
                assert_eq!(with_others_awake(|| 2), 2);
            });
        }
    }
}
