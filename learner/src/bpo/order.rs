//! Which pairs each optimiser step sees: a shuffle per epoch, with pairs of like length in one batch.

use rand::seq::SliceRandom;

use super::seed::{self, Purpose};

/// The order of a run's data. A pure function of seed, lengths and step, so a checkpoint stores the step and nothing else.
#[derive(Clone, Debug)]
pub struct Order {
    seed: u64,
    /// Tokens of each example.
    lengths: Vec<usize>,
    batch: usize,
    bucket_batches: usize,
    /// The epoch last asked for, as batches.
    epoch: Option<(u64, Vec<Vec<usize>>)>,
}

impl Order {
    /// The order of examples with these token counts, `batch` to a step, sorted by length within windows of
    /// `bucket_batches` batches.
    pub fn new(seed: u64, lengths: Vec<usize>, batch: usize, bucket_batches: usize) -> Self {
        Self { seed, lengths, batch: batch.max(1), bucket_batches: bucket_batches.max(1), epoch: None }
    }

    /// Optimiser steps in one pass over the data; the last batch of a pass may be smaller.
    pub fn steps_per_epoch(&self) -> u64 {
        self.lengths.len().div_ceil(self.batch) as u64
    }

    /// Steps of a run of `epochs` passes, at most `max_steps` unless that is 0.
    pub fn total_steps(&self, epochs: f64, max_steps: u64) -> u64 {
        let steps = (epochs * self.steps_per_epoch() as f64).ceil() as u64;
        if max_steps == 0 { steps } else { steps.min(max_steps) }
    }

    /// The examples of optimiser step `step` (from 0), longest first, so that the first forward pass is the largest and a
    /// lack of memory shows at once.
    pub fn batch(&mut self, step: u64) -> &[usize] {
        let per_epoch = self.steps_per_epoch().max(1);
        let epoch = step / per_epoch;
        if self.epoch.as_ref().is_none_or(|(cached, _)| *cached != epoch) {
            self.epoch = Some((epoch, self.batches(epoch)));
        }
        let batches = self.epoch.as_ref().map_or(&[][..], |(_, batches)| batches.as_slice());
        batches.get((step % per_epoch) as usize).map_or(&[], Vec::as_slice)
    }

    fn batches(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut rng = seed::rng(self.seed, Purpose::Order, &[epoch], "");
        let mut indices = (0..self.lengths.len()).collect::<Vec<_>>();
        indices.shuffle(&mut rng);
        let mut batches = Vec::new();
        for window in indices.chunks_mut(self.batch * self.bucket_batches) {
            // Ties are broken by index, so that the order does not depend on the sort's insides.
            window.sort_by_key(|index| (std::cmp::Reverse(self.lengths[*index]), *index));
            batches.extend(window.chunks(self.batch).map(<[usize]>::to_vec));
        }
        batches.shuffle(&mut rng);
        batches
    }
}

/// Cuts a batch into forward passes of at most `pairs` examples and `tokens` tokens (0: no limit); an example over the
/// limit goes alone.
pub fn micro_batches(
    batch: &[usize],
    lengths: impl Fn(usize) -> usize,
    pairs: usize,
    tokens: usize,
) -> Vec<Vec<usize>> {
    let mut micros: Vec<Vec<usize>> = Vec::new();
    let mut sum = 0;
    for index in batch {
        let length = lengths(*index);
        match micros.last_mut() {
            Some(last) if last.len() < pairs && (tokens == 0 || sum + length <= tokens) => {
                last.push(*index);
                sum += length;
            }
            _ => {
                micros.push(vec![*index]);
                sum = length;
            }
        }
    }
    micros
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_epoch_is_every_example_once(
            lengths in prop::collection::vec(1..500usize, 1..80), batch in 1..10usize, window in 1..5usize, seed: u64,
        ) {
            let mut order = Order::new(seed, lengths.clone(), batch, window);
            for epoch in 0..2 {
                let mut seen = Vec::new();
                for step in 0..order.steps_per_epoch() {
                    let batch = order.batch(epoch * order.steps_per_epoch() + step).to_vec();
                    prop_assert!(!batch.is_empty());
                    prop_assert!(batch.windows(2).all(|pair| lengths[pair[0]] >= lengths[pair[1]]));
                    seen.extend(batch);
                }
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            }
        }

        #[test]
        fn any_step_can_be_asked_for_first(lengths in prop::collection::vec(1..500usize, 1..60), step in 0..40u64) {
            let mut walked = Order::new(3, lengths.clone(), 4, 3);
            for before in 0..step {
                walked.batch(before);
            }
            let mut fresh = Order::new(3, lengths, 4, 3);
            prop_assert_eq!(walked.batch(step), fresh.batch(step));
        }

        #[test]
        fn micro_batches_keep_order_and_limits(lengths in prop::collection::vec(1..100usize, 1..40), pairs in 1..9usize, tokens in 1..300usize) {
            let batch = (0..lengths.len()).collect::<Vec<_>>();
            let micros = micro_batches(&batch, |index| lengths[index], pairs, tokens);
            prop_assert_eq!(micros.concat(), batch);
            for micro in micros {
                let sum = micro.iter().map(|index| lengths[*index]).sum::<usize>();
                prop_assert!(micro.len() <= pairs && (sum <= tokens || micro.len() == 1));
            }
        }
    }

    #[test]
    fn buckets_hold_like_lengths_and_epochs_differ() {
        let lengths = (0..64).map(|index| 1 + (index * 37) % 64).collect::<Vec<_>>();
        let mut order = Order::new(0, lengths.clone(), 8, 8);
        let first = order.batch(0).to_vec();
        let spread = lengths[first[0]] - lengths[first[7]];
        assert_eq!(spread, 7, "sorted over the whole epoch, a batch spans 8 consecutive lengths");
        assert_ne!(
            (0..8).map(|s| order.batch(s).to_vec()).collect::<Vec<_>>(),
            (8..16).map(|s| order.batch(s).to_vec()).collect::<Vec<_>>()
        );
        assert_eq!(order.total_steps(2.0, 0), 16);
        assert_eq!(order.total_steps(0.3, 0), 3);
        assert_eq!(order.total_steps(2.0, 5), 5);
    }
}
