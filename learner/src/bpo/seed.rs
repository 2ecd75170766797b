//! Randomness without a state to save: every random choice of a run is a function of the run's seed and of what it is for.
//!
//! A resumed run then makes the same choices as an uninterrupted one by construction; the position in the data is the only
//! "random state" that a checkpoint holds.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a random choice is for; choices for different purposes never share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Order of the data; counters: epoch.
    Order,
    /// LoRA dropout; counters: optimiser step, forward pass within it.
    Dropout,
    /// Held-out split; name: the image's digest, or the conversation of a pair without one.
    Split,
    /// Distorted images of pairs that name no seed; name: the pair's id.
    Distortion,
    /// First values of a new adapter; name: the tensor's.
    Adapter,
}

/// 64 bits from the run's seed, a purpose, counters and a name.
pub fn derive(seed: u64, purpose: Purpose, counters: &[u64], name: &str) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("reground 2025 run randomness");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&[purpose as u8, counters.len() as u8]);
    for counter in counters {
        hasher.update(&counter.to_le_bytes());
    }
    hasher.update(name.as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

/// A generator for one purpose.
pub fn rng(seed: u64, purpose: Purpose, counters: &[u64], name: &str) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(derive(seed, purpose, counters, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_question_counts() {
        let all = [
            derive(1, Purpose::Order, &[1], ""),
            derive(2, Purpose::Order, &[1], ""),
            derive(1, Purpose::Dropout, &[1], ""),
            derive(1, Purpose::Order, &[2], ""),
            derive(1, Purpose::Order, &[1, 0], ""),
            derive(1, Purpose::Order, &[1], "a"),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{at}");
        }
        assert_eq!(all[0], derive(1, Purpose::Order, &[1], ""));
    }
}
