//! Keys and values of prompts that were read, kept for the next prompt that begins the same.
//!
//! A prefix is known by the digest of everything that its keys and values depend on: the adapter's weights, the tokens, and
//! the pictures that image tokens stand for. So it is never another generation's, and an adapter that is unloaded and comes
//! back finds what it read before, if no other took its room. Every eighth token of a prompt has such a [`Mark`], so that what two prompts
//! share is found by looking marks up, the longest first. Rows are copied in and out: a kept prefix belongs to nobody's
//! answer, and an answer's memory to nobody else.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Result;
use metrics::{counter, gauge};
use reground_learner::model::KeyValues;

use super::features::Digest;

const HITS: &str = "reground_prefix_cache_hits_total";
const MISSES: &str = "reground_prefix_cache_misses_total";
const TOKENS: &str = "reground_prefix_cache_hit_tokens_total";
const BYTES: &str = "reground_prefix_cache_bytes";

/// Tokens between two marks.
const BLOCK: usize = 8;
/// A mark in its entry and in the index, roughly.
const MARK_BYTES: usize = 160;

/// Digest of an adapter's weights. Not a generation's id: an adapter that is unloaded may come back with other weights under the
/// same name.
pub(super) type Weights = blake3::Hash;

/// The base, which has no adapter.
pub(super) fn base() -> Weights {
    blake3::hash(b"")
}

/// Names a prefix of a prompt: everything that its keys and values depend on.
pub(super) type Mark = blake3::Hash;

/// Marks of a prompt, one for every [`BLOCK`] tokens. `pictures` are the prompt's, with the number of image tokens of each.
pub(super) fn marks(weights: Weights, prompt: &[u32], image_token: u32, pictures: &[(Digest, usize)]) -> Vec<Mark> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(weights.as_bytes());
    let mut pictures = pictures.iter();
    // Image tokens that still belong to the picture whose digest went in last.
    let mut left = 0;
    let mut marks = Vec::with_capacity(prompt.len() / BLOCK);
    for (place, &token) in (1..).zip(prompt) {
        if token == image_token {
            if left == 0
                && let Some((digest, rows)) = pictures.next()
            {
                hasher.update(b"p").update(digest.as_bytes());
                left = *rows;
            }
            left = left.saturating_sub(1);
        }
        hasher.update(b"t").update(&token.to_le_bytes());
        if place % BLOCK == 0 {
            marks.push(hasher.finalize());
        }
    }
    marks
}

/// Tokens that two prompts begin with alike, by their marks.
pub(super) fn shared(a: &[Mark], b: &[Mark]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count() * BLOCK
}

/// The prompts last read, up to a number of bytes.
pub(super) struct PrefixCache {
    limit: usize,
    bytes_per_token: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<u64, Entry>,
    /// The entries that begin with a mark's tokens.
    index: HashMap<Mark, BTreeSet<u64>>,
    bytes: usize,
    /// Counts entries and uses: names the former, and tells which of them was not used for longest.
    clock: u64,
    /// Tokens that were found.
    #[cfg(test)]
    found: usize,
}

struct Entry {
    marks: Vec<Mark>,
    rows: Arc<KeyValues>,
    bytes: usize,
    used: u64,
}

impl PrefixCache {
    /// A cache of at most `limit` bytes, of which a token's keys and values take `bytes_per_token`; 0 keeps nothing.
    pub(super) fn new(limit: usize, bytes_per_token: usize) -> Self {
        Self { limit, bytes_per_token, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it keeps anything at all.
    pub(super) fn is_on(&self) -> bool {
        self.limit > 0
    }

    /// Bytes of a prompt with these marks, and whether it is ever kept.
    fn size(&self, marks: &[Mark]) -> (usize, bool) {
        let bytes = marks.len() * (BLOCK * self.bytes_per_token + MARK_BYTES);
        (bytes, !marks.is_empty() && bytes <= self.limit)
    }

    /// Whether a prompt with these marks will be kept once it was read.
    pub(super) fn takes(&self, marks: &[Mark]) -> bool {
        self.size(marks).1
    }

    /// The most tokens of a prompt with these marks that are kept, fewer than `below`, and the entry whose first rows they
    /// are; counted as a hit or a miss.
    pub(super) fn get(&self, marks: &[Mark], below: usize) -> Option<(usize, Arc<KeyValues>)> {
        if !self.is_on() {
            return None;
        }
        let mut state = self.state();
        let usable = marks.len().min(below.saturating_sub(1) / BLOCK);
        let found = (1..=usable).rev().find_map(|count| {
            let number = *state.index.get(&marks[count - 1])?.last()?;
            Some((count * BLOCK, number))
        });
        let Some((tokens, number)) = found else {
            counter!(MISSES).increment(1);
            return None;
        };
        counter!(HITS).increment(1);
        counter!(TOKENS).increment(tokens as u64);
        let now = state.tick();
        #[cfg(test)]
        {
            state.found += tokens;
        }
        let entry = state.entries.get_mut(&number)?;
        entry.used = now;
        Some((tokens, entry.rows.clone()))
    }

    /// Keeps the rows of a prompt that was read; what was not used for longest makes room.
    ///
    /// # Errors
    /// A failed copy.
    pub(super) fn put(&self, marks: &[Mark], rows: &KeyValues) -> Result<()> {
        let (bytes, is_taken) = self.size(marks);
        let mut state = self.state();
        if !is_taken || marks.last().is_none_or(|last| state.index.contains_key(last)) {
            return Ok(());
        }
        // Before the copy is made, which takes the memory.
        state.make_room(self.limit - bytes);
        drop(state);
        let tokens = marks.len() * BLOCK;
        let rows = Arc::new(rows.fork(tokens, tokens)?);
        let mut state = self.state();
        state.make_room(self.limit - bytes);
        let number = state.tick();
        for mark in marks {
            state.index.entry(*mark).or_default().insert(number);
        }
        state.entries.insert(number, Entry { marks: marks.to_vec(), rows, bytes, used: number });
        state.bytes += bytes;
        state.show();
        Ok(())
    }

    /// Bytes that are taken.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Tokens that were found so far.
    #[cfg(test)]
    pub(super) fn found(&self) -> usize {
        self.state().found
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Removes what was not used for longest until at most `bytes` are left.
    fn make_room(&mut self, bytes: usize) {
        while self.bytes > bytes {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(number, _)| *number);
            let Some(oldest) = oldest else { return };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, number: u64) {
        let Some(entry) = self.entries.remove(&number) else { return };
        for mark in &entry.marks {
            if let Some(numbers) = self.index.get_mut(mark) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    self.index.remove(mark);
                }
            }
        }
        self.bytes -= entry.bytes;
        self.show();
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point; a cache is far below 2^53 bytes")]
    fn show(&self) {
        gauge!(BYTES).set(self.bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use reground_learner::bpo::policy::Group;
    use reground_learner::model::{Adapters, Model, Packed};

    use super::*;
    use crate::engine::source::golden;

    const IMAGE: u32 = 9;
    /// Of one token, whatever the model's really are.
    const ROW: usize = 100;

    fn picture(name: &str) -> Digest {
        blake3::hash(name.as_bytes())
    }

    fn text(tokens: u32) -> Vec<u32> {
        (10..10 + tokens).collect()
    }

    /// Keys and values of a prompt of this length.
    fn rows(tokens: u32) -> KeyValues {
        let model = Model::load(&golden("model"), DType::F32, &Device::Cpu).unwrap();
        let decoder = model.decoder();
        let group = Group { prompt: text(tokens).into(), features: None, answers: Vec::new() };
        let packed = Packed::new([&group]).unwrap();
        let mut cache = KeyValues::new(decoder.config(), 100, DType::F32, &Device::Cpu).unwrap();
        decoder.prefill(&model.embed(&packed).unwrap(), &packed, &Adapters::none(), &mut [&mut cache]).unwrap();
        cache
    }

    fn cache_of(entries_of_16: usize) -> PrefixCache {
        PrefixCache::new(entries_of_16 * (16 * ROW + 2 * MARK_BYTES), ROW)
    }

    #[test]
    fn a_mark_depends_on_all_before_it() {
        let prompt = [&[1, 2], [IMAGE; 6].as_slice(), &[3; 8], &[IMAGE; 2], &[4; 6]].concat();
        let pictures = [(picture("a"), 6), (picture("b"), 2)];
        let whole = marks(base(), &prompt, IMAGE, &pictures);
        assert_eq!(whole.len(), 3);
        let common = |prompt: &[u32], pictures: &[(Digest, usize)]| {
            shared(&whole, &marks(base(), prompt, IMAGE, pictures)) / BLOCK
        };
        assert_eq!(common(&prompt[..23], &pictures), 2, "a block that is not full has no mark");
        assert_eq!(common(&prompt, &[(picture("a"), 6), (picture("c"), 2)]), 2, "another second picture");
        assert_eq!(common(&prompt, &[(picture("c"), 6), (picture("b"), 2)]), 0, "another first picture");
        assert_eq!(common(&prompt, &[(picture("b"), 6), (picture("a"), 2)]), 0, "they changed places");
        let mut other = prompt.clone();
        other[9] = 5;
        assert_eq!(common(&other, &pictures), 1);
        assert_eq!(
            shared(&whole, &marks(blake3::hash(b"an adapter"), &prompt, IMAGE, &pictures)),
            0,
            "another generation"
        );
        // One picture of two rows is not two pictures of one row.
        let split = marks(base(), &[IMAGE; 8], IMAGE, &[(picture("a"), 4), (picture("a"), 4)]);
        assert_eq!(shared(&split, &marks(base(), &[IMAGE; 8], IMAGE, &[(picture("a"), 8)])), 0);
    }

    #[test]
    fn the_longest_beginning_is_found_and_never_the_whole_prompt() {
        let cache = cache_of(10);
        let rows = rows(40);
        let of = |prompt: &[u32]| marks(base(), prompt, IMAGE, &[]);
        cache.put(&of(&text(40)[..16]), &rows).unwrap();
        cache.put(&of(&text(40)), &rows).unwrap();
        let tokens = |prompt: &[u32], below| cache.get(&of(prompt), below).map(|(tokens, _)| tokens);
        assert_eq!(tokens(&text(40), 40), Some(32), "the last row must be read: its hidden state is needed");
        assert_eq!(tokens(&text(40), 41), Some(40));
        let mut other = text(40);
        other[20] = 1;
        assert_eq!(tokens(&other, 40), Some(16));
        other[0] = 1;
        assert_eq!(tokens(&other, 40), None);
        assert_eq!(tokens(&text(7), 7), None);
        let (tokens, kept) = cache.get(&of(&text(40)), 40).unwrap();
        assert!(kept.len() >= tokens);
    }

    #[test]
    fn what_was_not_used_for_longest_makes_room() {
        let cache = cache_of(2);
        let rows = rows(40);
        let prompt = |first: u32| (first..first + 16).collect::<Vec<u32>>();
        let of = |first| marks(base(), &prompt(first), IMAGE, &[]);
        let is_kept = |first| cache.get(&of(first), 17).is_some();
        cache.put(&of(100), &rows).unwrap();
        cache.put(&of(200), &rows).unwrap();
        assert!(is_kept(100));
        cache.put(&of(300), &rows).unwrap();
        assert!(is_kept(100) && !is_kept(200) && is_kept(300));
        let full = cache.bytes();
        cache.put(&of(300), &rows).unwrap();
        assert_eq!(cache.bytes(), full, "what is kept is not kept twice");
        let long = marks(base(), &text(24), IMAGE, &[]);
        cache.put(&long, &rows).unwrap();
        assert!(!is_kept(100) && !is_kept(300), "a long one takes the room of both");
        cache.put(&marks(base(), &text(40), IMAGE, &[]), &rows).unwrap();
        assert_eq!(cache.get(&long, 25).map(|(tokens, _)| tokens), Some(24), "what never fits drives nobody out");
        let state = cache.state();
        assert_eq!(state.index.len(), state.entries.values().map(|entry| entry.marks.len()).sum::<usize>());
    }

    #[test]
    fn a_shared_beginning_outlives_one_of_those_that_share_it() {
        let cache = cache_of(4);
        let rows = rows(40);
        let prompt = |end: u32| [text(16), vec![end; 8]].concat();
        let of = |end| marks(base(), &prompt(end), IMAGE, &[]);
        for end in [1, 2] {
            cache.put(&of(end), &rows).unwrap();
        }
        let newest = *cache.state().entries.keys().max().unwrap();
        cache.state().remove(newest);
        assert_eq!(cache.get(&of(3), 24).map(|(tokens, _)| tokens), Some(16));
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let cache = PrefixCache::new(0, ROW);
        let of = marks(base(), &text(16), IMAGE, &[]);
        cache.put(&of, &rows(40)).unwrap();
        assert!(cache.get(&of, 17).is_none() && !cache.is_on());
    }
}
