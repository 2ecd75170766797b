//! What a set of paired blocks says, and how sure.

use std::fmt;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::side::Block;

/// Resamples behind each interval.
const RESAMPLES: usize = 2000;

/// Blocks of both sides that ran one after the other, the same number of each.
pub(crate) struct Round {
    pub(crate) bare: [Block; 2],
    pub(crate) endpoint: [Block; 2],
}

/// The blocks of the bare side.
pub(crate) fn bare<'a>(rounds: &[&'a Round]) -> Vec<&'a Block> {
    rounds.iter().flat_map(|round| &round.bare).collect()
}

/// The blocks of the endpoint.
pub(crate) fn endpoint<'a>(rounds: &[&'a Round]) -> Vec<&'a Block> {
    rounds.iter().flat_map(|round| &round.endpoint).collect()
}

/// What the requests of some blocks waited.
pub(crate) fn latencies<'a>(blocks: &[&'a Block]) -> Vec<&'a Duration> {
    blocks.iter().flat_map(|block| &block.latencies).collect()
}

/// What of it was neither in the engine nor in the queue in front of it.
pub(crate) fn added<'a>(blocks: &[&'a Block]) -> Vec<&'a Duration> {
    blocks.iter().flat_map(|block| &block.added).collect()
}

/// A figure and its interval.
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl fmt::Display for Estimate {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (between, figure) in [("", self.value), (" [", self.low), (", ", self.high)] {
            to.write_str(between)?;
            fmt::Display::fmt(&figure, to)?;
        }
        to.write_str("]")
    }
}

/// Requests a second of some blocks.
pub(crate) fn rate(blocks: &[&Block]) -> f64 {
    let requests: usize = blocks.iter().map(|block| block.latencies.len()).sum();
    let elapsed: Duration = blocks.iter().map(|block| block.elapsed).sum();
    requests as f64 / elapsed.as_secs_f64()
}

/// Requests a second of the endpoint over those of the bare engine: the median over the rounds, because whatever else the
/// machine does now and then falls on one side of a round.
pub(crate) fn ratio(rounds: &[&Round]) -> f64 {
    let of = |blocks: &[Block; 2]| rate(&blocks.iter().collect::<Vec<_>>());
    let mut ratios: Vec<f64> = rounds.iter().map(|round| of(&round.endpoint) / of(&round.bare)).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let middle = ratios.len() / 2;
    if ratios.len() % 2 == 1 { ratios[middle] } else { f64::midpoint(ratios[middle - 1], ratios[middle]) }
}

/// A percentile by nearest rank: milliseconds.
pub(crate) fn percentile(mut times: Vec<&Duration>, percent: usize) -> f64 {
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100);
    times[rank - 1].as_secs_f64() * 1000.0
}

/// The figure over all rounds, and the middle 95 % of what it is over rounds drawn again with replacement. Machines drift, so
/// a round is drawn whole, with both of its sides.
pub(crate) fn estimate(rounds: &[Round], figure: impl Fn(&[&Round]) -> f64) -> Estimate {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut drawn: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let draw: Vec<_> = rounds.iter().map(|_| &rounds[random.random_range(0..rounds.len())]).collect();
            figure(&draw)
        })
        .collect();
    drawn.sort_unstable_by(f64::total_cmp);
    let all: Vec<_> = rounds.iter().collect();
    Estimate { value: figure(&all), low: drawn[RESAMPLES / 40], high: drawn[RESAMPLES - 1 - RESAMPLES / 40] }
}
