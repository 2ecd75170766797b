//! Threads for batches on the CPU.
//!
//! The matrices of a small model are too small to share: two workers with a thread each finish two batches sooner than two
//! threads finish them one after the other. So work is cut into as many parts as there are threads, and each part runs
//! where every product uses that one thread. A single part gets all threads.

use std::sync::{Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::error::ModelError;

/// A budget of threads.
pub struct Workers {
    narrow: Vec<ThreadPool>,
    wide: ThreadPool,
}

impl Workers {
    /// `threads` threads; 0 means one for each core. Use 1 for a model on a GPU.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(threads: usize) -> Result<Self, ModelError> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let pool = |threads| {
            ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .map_err(|error| ModelError::Io(std::io::Error::other(error)))
        };
        Ok(Self { narrow: (0..threads).map(|_| pool(1)).collect::<Result<_, _>>()?, wide: pool(threads)? })
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.narrow.len()
    }

    /// Cuts items into at most [`Workers::count`] parts of about the same total weight: each item, heaviest first, goes to
    /// the lightest part. Deterministic; within a part items keep their order.
    pub fn share(&self, weights: &[usize]) -> Vec<Vec<usize>> {
        let parts = self.count().min(weights.len()).max(1);
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by_key(|item| std::cmp::Reverse(weights[*item]));
        let mut shares = vec![(0_usize, Vec::new()); parts];
        for item in order {
            if let Some((total, share)) = shares.iter_mut().min_by_key(|(total, _)| *total) {
                *total += weights[item];
                share.push(item);
            }
        }
        shares
            .into_iter()
            .map(|(_, mut share)| {
                share.sort_unstable();
                share
            })
            .collect()
    }

    /// Runs `work` on each job and returns the results in the order of the jobs.
    pub fn map<J: Send, R: Send>(&self, jobs: Vec<J>, work: impl Fn(J) -> R + Sync) -> Vec<R> {
        if jobs.len() <= 1 {
            return jobs.into_iter().map(|job| self.wide.install(|| work(job))).collect();
        }
        let mut slots: Vec<Mutex<Option<R>>> = Vec::new();
        slots.resize_with(jobs.len(), Mutex::default);
        let jobs = Mutex::new(jobs.into_iter().zip(&slots));
        // Whoever is free takes the next job, so that nobody waits for the slowest of a round.
        let take = || jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
        self.on_each(&self.narrow, &|| {
            while let Some((job, slot)) = take() {
                let result = work(job);
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            }
        });
        // A job that panicked has ended this call by now, so every slot is filled.
        slots.into_iter().filter_map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    /// Runs `task` once on every one of `pools`, all at the same time; a panic in one is passed on.
    fn on_each(&self, pools: &[ThreadPool], task: &(impl Fn() + Sync)) {
        if let Some((pool, rest)) = pools.split_first() {
            pool.in_place_scope(|scope| {
                scope.spawn(|_| task());
                self.on_each(rest, task);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_complete() {
        let workers = Workers::new(2).unwrap();
        let shares = workers.share(&[5, 1, 1, 1, 4, 2]);
        assert_eq!(shares.len(), 2);
        let mut all: Vec<usize> = shares.concat();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 5]);
        assert_eq!(workers.share(&[3]), [vec![0]]);
        assert_eq!(workers.share(&[]), [Vec::<usize>::new()]);
    }

    #[test]
    fn results_keep_the_order_of_jobs() {
        let workers = Workers::new(2).unwrap();
        assert_eq!(workers.map((0..7).collect(), |job| job * job), [0, 1, 4, 9, 16, 25, 36]);
        assert_eq!(workers.map(vec![3], |job| job + 1), [4]);
        assert!(workers.map(Vec::<u8>::new(), |job| job).is_empty());
    }

    #[test]
    fn jobs_run_side_by_side_and_a_panic_is_passed_on() {
        let workers = Workers::new(3).unwrap();
        // Each job waits for the two others.
        let barrier = std::sync::Barrier::new(3);
        let leaders = workers.map(vec![(); 3], |()| barrier.wait().is_leader());
        assert_eq!(leaders.iter().filter(|leader| **leader).count(), 1);
        let panicking = || workers.map(vec![1, 0, 2], |job| 6 / job);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panicking)).is_err());
        assert_eq!(workers.map(vec![1, 2], |job| 6 / job), [6, 3]);
    }
}
