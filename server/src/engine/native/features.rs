//! What the vision tower made of images, kept for the next question about them.
//!
//! The tower is frozen, so one cache serves every generation. The key is a digest of the picture's pixels; how they are
//! prepared is the same for all of them, because a cache belongs to one loaded model.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;
use image::DynamicImage;
use metrics::{counter, gauge};

const HITS: &str = "reground_vision_cache_hits_total";
const MISSES: &str = "reground_vision_cache_misses_total";
const BYTES: &str = "reground_vision_cache_bytes";

/// A picture's digest: its size, its colour type and its pixels.
pub(super) type Digest = blake3::Hash;

pub(super) fn digest(image: &DynamicImage) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{}x{} {:?} ", image.width(), image.height(), image.color()).as_bytes());
    hasher.update(image.as_bytes());
    hasher.finalize()
}

fn bytes_of(features: &Tensor) -> usize {
    features.elem_count() * features.dtype().size_in_bytes()
}

/// The features of the pictures last asked about, each `[image tokens, hidden]`, up to a number of bytes.
pub(super) struct FeatureCache {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Digest, Entry>,
    bytes: usize,
    /// Counts uses, so that the entry not used for longest is known.
    clock: u64,
}

struct Entry {
    features: Tensor,
    used: u64,
}

impl FeatureCache {
    /// A cache of at most `limit` bytes; 0 keeps nothing.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A picture's features if they are kept; counted as a hit or a miss.
    pub(super) fn get(&self, digest: &Digest) -> Option<Tensor> {
        let found = self.peek(digest);
        counter!(if found.is_some() { HITS } else { MISSES }).increment(1);
        found
    }

    /// As [`FeatureCache::get`], not counted: for who has missed already and looks again.
    pub(super) fn peek(&self, digest: &Digest) -> Option<Tensor> {
        let mut state = self.state();
        state.clock += 1;
        let now = state.clock;
        state.entries.get_mut(digest).map(|entry| {
            entry.used = now;
            entry.features.clone()
        })
    }

    /// Keeps a picture's features; what was not used for longest makes room.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point; a cache is far below 2^53 bytes")]
    pub(super) fn put(&self, digest: Digest, features: Tensor) {
        let bytes = bytes_of(&features);
        let mut state = self.state();
        if bytes > self.limit || state.entries.contains_key(&digest) {
            return;
        }
        while state.bytes + bytes > self.limit {
            let oldest = state.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(digest, _)| *digest);
            let Some(gone) = oldest.and_then(|digest| state.entries.remove(&digest)) else { break };
            state.bytes -= bytes_of(&gone.features);
        }
        state.bytes += bytes;
        state.clock += 1;
        let used = state.clock;
        state.entries.insert(digest, Entry { features, used });
        gauge!(BYTES).set(state.bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    /// Features of `rows` × 4 values: 16 bytes a row.
    fn features(rows: usize) -> Tensor {
        Tensor::zeros((rows, 4), DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_one_not_used_for_longest_makes_room() {
        let cache = FeatureCache::new(64);
        let key = |name: &str| blake3::hash(name.as_bytes());
        cache.put(key("a"), features(2));
        cache.put(key("b"), features(2));
        assert!(cache.get(&key("a")).is_some());
        cache.put(key("c"), features(2));
        assert!(cache.get(&key("b")).is_none());
        assert!(cache.get(&key("a")).is_some() && cache.get(&key("c")).is_some());
        cache.put(key("large"), features(5));
        assert!(cache.get(&key("large")).is_none(), "more than the whole cache");
        assert_eq!(cache.state().bytes, 64);
        let none = FeatureCache::new(0);
        none.put(key("a"), features(1));
        assert!(none.get(&key("a")).is_none());
    }

    #[test]
    fn a_digest_knows_shape_and_colour() {
        let images = [
            DynamicImage::new_rgb8(2, 3),
            DynamicImage::new_rgb8(3, 2),
            DynamicImage::new_luma8(6, 3),
            DynamicImage::new_luma16(3, 3),
        ];
        let digests: std::collections::HashSet<_> = images.iter().map(digest).collect();
        assert_eq!(digests.len(), images.len());
        assert_eq!(digest(&images[0]), digest(&images[0].clone()));
    }
}
