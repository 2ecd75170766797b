//! Seeded streams of random numbers.
//!
//! Everything in the pocket is a pure function of (seed, purpose, index): image 17 of the test set is the same whether
//! sixteen images were drawn before it or none, on one thread or two, before or after a resume.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// The generator that every drawing and sampling function of the pocket takes.
pub type Stream = ChaCha8Rng;

/// The stream for item `index` of `purpose` under `seed`. Different arguments give unrelated streams.
pub fn stream(seed: u64, purpose: &str, index: u64) -> Stream {
    let mut hasher = blake3::Hasher::new_derive_key("reground pocket random stream v1");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&index.to_le_bytes());
    hasher.update(purpose.as_bytes());
    Stream::from_seed(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngCore;

    #[test]
    fn a_stream_repeats_and_differs_from_its_neighbours() {
        let first = |seed, purpose, index| stream(seed, purpose, index).next_u64();
        assert_eq!(first(1, "a", 2), first(1, "a", 2));
        assert_ne!(first(1, "a", 2), first(1, "a", 3));
        assert_ne!(first(1, "a", 2), first(2, "a", 2));
        assert_ne!(first(1, "a", 2), first(1, "b", 2));
    }
}
