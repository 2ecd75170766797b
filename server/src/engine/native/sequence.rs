//! One answer under way.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use reground_learner::bpo::policy::Group;
use reground_learner::model::{ImageInput, KeyValues, Lora, Model, ModelError, Packed};
use tracing::warn;

use super::features::{Digest, FeatureCache};
use super::prefixes::{Mark, PrefixCache, shared};
use crate::engine::sampler::Sampler;
use crate::engine::{EngineError, Event, EventSender, Finish, Place};

/// Who answers, how, and to whom.
pub(super) struct Task {
    /// The generation's adapter; `None` for the base.
    pub(super) adapter: Option<Arc<Lora>>,
    /// Whether live answers go before it.
    pub(super) is_behind: bool,
    pub(super) sampler: Sampler,
    /// What is to be scored, where no answer is to be found.
    pub(super) forced: Vec<u32>,
    pub(super) events: EventSender,
    pub(super) place: Place,
}

/// Rows of an answer that is scored which are read at once: their logits take memory.
const SCORED: usize = 64;

/// What is asked.
pub(super) struct Prompt {
    pub(super) ids: Arc<[u32]>,
    pub(super) pictures: Vec<Picture>,
    /// By what its beginnings are known; empty where none are kept.
    pub(super) marks: Vec<Mark>,
}

/// A picture of the prompt.
pub(super) enum Picture {
    /// Its features are there, `[image tokens, hidden]`.
    Seen(Tensor),
    /// The vision tower has yet to look at it.
    New {
        digest: Digest,
        input: ImageInput,
        /// Features of the tiles that it has seen.
        tiles: Vec<Tensor>,
    },
}

impl Picture {
    /// Looks at the next tile, or takes the features that another sequence has made meanwhile.
    fn look(&mut self, model: &Model, cache: &FeatureCache) -> std::result::Result<(), ModelError> {
        let Self::New { digest, input, tiles } = self else { return Ok(()) };
        if tiles.is_empty()
            && let Some(features) = cache.peek(digest)
        {
            *self = Self::Seen(features);
            return Ok(());
        }
        let next = std::slice::from_ref(&input.tiles[tiles.len()]);
        tiles.push(model.family().encode(&model.family().pixels(next)?)?);
        if tiles.len() == input.tiles.len() {
            let rows = Tensor::cat(&tiles[..], 0)?;
            cache.put(*digest, rows.clone());
            *self = Self::Seen(rows);
        }
        Ok(())
    }
}

/// An answer under way: its prompt is being read, or its tokens are being chosen.
pub(super) struct Sequence {
    task: Task,
    prompt: Prompt,
    /// Embeddings of what is to be read, `[tokens, hidden]`, until it was read.
    embeddings: Option<Tensor>,
    /// There while the sequence is admitted.
    cache: Option<KeyValues>,
    /// Tokens that were chosen.
    said: Vec<u32>,
    /// Of those, how many are read like a part of the prompt, because the cache that held them was given up.
    repeated: usize,
    /// Tokens that may still come.
    left: usize,
    is_started: bool,
}

impl Sequence {
    pub(super) fn new(mut task: Task, prompt: Prompt, left: usize) -> Self {
        task.forced.truncate(left);
        Self { task, prompt, embeddings: None, cache: None, said: Vec::new(), repeated: 0, left, is_started: false }
    }

    /// Tokens that its cache must have room for.
    pub(super) fn capacity(&self) -> usize {
        self.prompt.ids.len() + self.said.len() + self.left
    }

    /// Gives it its cache.
    pub(super) fn admit(&mut self, model: &Model) -> Result<()> {
        let decoder = model.decoder();
        self.cache = Some(KeyValues::new(decoder.config(), self.capacity(), decoder.dtype(), decoder.device())?);
        Ok(())
    }

    /// Takes its cache away. Admitted again, it reads what it has said like a part of its prompt and goes on from there.
    pub(super) fn give_up_cache(&mut self) {
        (self.cache, self.embeddings) = (None, None);
        self.repeated = self.said.len();
    }

    /// Tokens that its cache has room for; 0 while it is not admitted.
    pub(super) fn held(&self) -> usize {
        self.cache.as_ref().map_or(0, KeyValues::capacity)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.task.events.is_cancelled()
    }

    pub(super) fn is_behind(&self) -> bool {
        self.task.is_behind
    }

    pub(super) fn adapter(&self) -> Option<&Arc<Lora>> {
        self.task.adapter.as_ref()
    }

    /// Whether the vision tower has yet to look at one of its pictures.
    pub(super) fn is_blind(&self) -> bool {
        self.prompt.pictures.iter().any(|picture| matches!(picture, Picture::New { .. }))
    }

    /// Looks at the next tile of its pictures.
    pub(super) fn look(&mut self, model: &Model, cache: &FeatureCache) -> std::result::Result<(), ModelError> {
        match self.prompt.pictures.iter_mut().find(|picture| matches!(picture, Picture::New { .. })) {
            Some(picture) => picture.look(model, cache),
            None => Ok(()),
        }
    }

    /// What follows the prompt and is read like a part of it: an answer that is scored, whose last token nothing follows, or what it
    /// has said before it lost its cache.
    fn known(&self) -> &[u32] {
        match self.task.forced.split_last() {
            Some((_, read)) => read,
            None => &self.said[..self.repeated],
        }
    }

    /// Rows of the prompt, and of what is known to follow it.
    fn to_read(&self) -> usize {
        self.prompt.ids.len() + self.known().len()
    }

    /// The row from which the next token follows.
    fn deciding(&self) -> usize {
        (self.prompt.ids.len() + self.said.len()).saturating_sub(1)
    }

    /// Rows that its cache holds.
    pub(super) fn length(&self) -> usize {
        self.cache.as_ref().map_or(0, KeyValues::len)
    }

    /// Rows that are not read yet.
    pub(super) fn unread(&self) -> usize {
        self.to_read().saturating_sub(self.length())
    }

    /// Rows that are read next, `most` of them at most.
    pub(super) fn next_piece(&self, most: usize) -> usize {
        self.unread().min(most).min((self.deciding() + SCORED).saturating_sub(self.length()))
    }

    /// How many of the last `rows` rows tokens of its answer follow from.
    pub(super) fn decided_by(&self, rows: usize) -> usize {
        self.length().saturating_sub(self.deciding()).min(rows)
    }

    /// Whether another one, which is being read, will soon have left much of what this one has yet to begin with.
    pub(super) fn awaits(&self, other: &Self, prefixes: &PrefixCache) -> bool {
        let marks = &other.prompt.marks;
        self.length() == 0
            && !other.is_blind()
            && shared(&self.prompt.marks, marks) > self.to_read() / 2
            && prefixes.takes(marks)
    }

    /// Copies what is kept of the beginning of its prompt, if nothing of it is read yet. Without the copy it is read.
    pub(super) fn recall(&mut self, prefixes: &PrefixCache) {
        if self.length() > 0 {
            return;
        }
        if let Some((tokens, rows)) = prefixes.get(&self.prompt.marks, self.deciding() + 1) {
            match rows.fork(tokens, self.capacity()) {
                Ok(cache) => self.cache = Some(cache),
                Err(error) => warn!(%error, "A prompt whose beginning is kept is read again."),
            }
        }
    }

    /// Keeps the rows of its prompt for others.
    pub(super) fn remember(&self, prefixes: &PrefixCache) {
        if let Some(cache) = &self.cache
            && let Err(error) = prefixes.put(&self.prompt.marks, cache)
        {
            warn!(%error, "A prompt is not kept.");
        }
    }

    /// Embeddings of the next `rows` rows, `[rows, hidden]`.
    pub(super) fn next_rows(&mut self, model: &Model, rows: usize) -> std::result::Result<Tensor, ModelError> {
        let embeddings = match self.embeddings.take() {
            Some(embeddings) => embeddings,
            None => {
                let features: Vec<&Tensor> = self
                    .prompt
                    .pictures
                    .iter()
                    .filter_map(|picture| match picture {
                        Picture::Seen(rows) => Some(rows),
                        Picture::New { .. } => None,
                    })
                    .collect();
                let features = if features.is_empty() { None } else { Some(Tensor::cat(&features, 0)?) };
                let group = Group { prompt: self.prompt.ids.clone(), features, answers: Vec::new() };
                let mut embeddings = model.embed(&Packed::new([&group])?)?;
                if !self.known().is_empty() {
                    // An image token in an answer stands for no picture.
                    let known = Group { prompt: self.known().into(), features: None, answers: Vec::new() };
                    let known = model.decoder().embed(&Packed::new([&known])?, None)?;
                    embeddings = Tensor::cat(&[embeddings, known], 0)?;
                }
                embeddings
            }
        };
        self.embeddings = (rows < self.unread()).then(|| embeddings.clone());
        Ok(embeddings.narrow(0, self.length(), rows)?)
    }

    /// Its cache; an error before it was admitted.
    pub(super) fn cache(&mut self) -> Result<&mut KeyValues> {
        self.cache.as_mut().ok_or_else(|| candle_core::Error::Msg("a sequence without a cache".into()))
    }

    /// The token that the next step reads.
    pub(super) fn last(&self) -> u32 {
        self.said.last().copied().unwrap_or_default()
    }

    /// Whether this answer makes the engine panic.
    #[cfg(test)]
    pub(super) fn is_lethal(&self) -> bool {
        self.task.sampler.seed() == crate::engine::sampler::LETHAL_SEED
    }

    /// The prompt was read: reports that the first time, and whether this is it.
    pub(super) fn start(&mut self) -> bool {
        let is_first = !std::mem::replace(&mut self.is_started, true);
        if is_first {
            self.task.events.send(Event::Started { prompt_tokens: self.prompt.ids.len() });
        }
        is_first
    }

    /// Chooses the next token from its logits, `[vocabulary]`, and says how the answer ended if it did.
    pub(super) fn choose(&mut self, logits: &[f32], ends_turn: impl Fn(u32) -> bool) -> Option<Event> {
        if self.left == 0 {
            return Some(Event::Finished(Finish::Length));
        }
        let token = match self.task.sampler.next(logits) {
            Ok(token) => token,
            Err(error) => return Some(Event::Failed(error)),
        };
        let id = token.id;
        self.said.push(id);
        self.left -= 1;
        self.task.events.send(Event::Token(token));
        if ends_turn(id) {
            return Some(Event::Finished(Finish::Stop));
        }
        (self.left == 0).then_some(Event::Finished(Finish::Length))
    }

    /// It has left: its place is free before its caller knows, who may ask again at once.
    pub(super) fn end(self, event: Event) {
        let Self { task: Task { events, place, .. }, .. } = self;
        drop(place);
        events.send(event);
    }

    pub(super) fn fail(self, error: EngineError) {
        self.end(Event::Failed(error));
    }
}
