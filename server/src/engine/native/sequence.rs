//! One answer under way.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use reground_learner::bpo::policy::Group;
use reground_learner::model::{ImageInput, KeyValues, Lora, Model, ModelError, Packed};

use super::features::{Digest, FeatureCache, Features};
use crate::engine::sampler::Sampler;
use crate::engine::{EngineError, Event, EventSender, Finish, Place};

/// Who answers, how, and to whom.
pub(super) struct Task {
    /// The generation's adapter; `None` for the base.
    pub(super) adapter: Option<Arc<Lora>>,
    pub(super) sampler: Sampler,
    pub(super) events: EventSender,
    pub(super) place: Place,
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
            *self = Self::Seen(features.rows);
            return Ok(());
        }
        tiles.push(model.family().encode(&input.pixels.narrow(0, tiles.len(), 1)?)?);
        if tiles.len() == input.pixels.dim(0)? {
            let rows = Tensor::cat(&tiles[..], 0)?;
            cache.put(*digest, Features { grid: input.grid, rows: rows.clone() });
            *self = Self::Seen(rows);
        }
        Ok(())
    }
}

/// An answer under way: its prompt is being read, or its tokens are being chosen.
pub(super) struct Sequence {
    task: Task,
    prompt: Arc<[u32]>,
    pictures: Vec<Picture>,
    /// Of the prompt, `[tokens, hidden]`, until it was read.
    embeddings: Option<Tensor>,
    /// There once the sequence was admitted.
    cache: Option<KeyValues>,
    /// Tokens that may still come.
    left: usize,
    last: u32,
}

impl Sequence {
    pub(super) fn new(task: Task, prompt: Arc<[u32]>, pictures: Vec<Picture>, left: usize) -> Self {
        Self { task, prompt, pictures, embeddings: None, cache: None, left, last: 0 }
    }

    /// Tokens that its cache must have room for.
    pub(super) fn capacity(&self) -> usize {
        self.prompt.len() + self.left
    }

    /// Gives it its cache.
    pub(super) fn admit(&mut self, model: &Model) -> Result<()> {
        let decoder = model.decoder();
        self.cache = Some(KeyValues::new(decoder.config(), self.capacity(), decoder.dtype(), decoder.device())?);
        Ok(())
    }

    /// Tokens that its cache has room for; 0 before it was admitted.
    pub(super) fn held(&self) -> usize {
        self.cache.as_ref().map_or(0, KeyValues::capacity)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.task.events.is_cancelled()
    }

    pub(super) fn adapter(&self) -> Option<&Arc<Lora>> {
        self.task.adapter.as_ref()
    }

    /// Whether the vision tower has yet to look at one of its pictures.
    pub(super) fn is_blind(&self) -> bool {
        self.pictures.iter().any(|picture| matches!(picture, Picture::New { .. }))
    }

    /// Looks at the next tile of its pictures.
    pub(super) fn look(&mut self, model: &Model, cache: &FeatureCache) -> std::result::Result<(), ModelError> {
        match self.pictures.iter_mut().find(|picture| matches!(picture, Picture::New { .. })) {
            Some(picture) => picture.look(model, cache),
            None => Ok(()),
        }
    }

    /// Rows of the prompt that are not read yet.
    pub(super) fn unread(&self) -> usize {
        self.prompt.len() - self.cache.as_ref().map_or(0, KeyValues::len).min(self.prompt.len())
    }

    /// Embeddings of the next `rows` rows of the prompt, `[rows, hidden]`.
    pub(super) fn next_rows(&mut self, model: &Model, rows: usize) -> std::result::Result<Tensor, ModelError> {
        let start = self.prompt.len() - self.unread();
        let embeddings = match self.embeddings.clone() {
            Some(embeddings) => embeddings,
            None => {
                let features: Vec<&Tensor> = self
                    .pictures
                    .iter()
                    .filter_map(|picture| match picture {
                        Picture::Seen(rows) => Some(rows),
                        Picture::New { .. } => None,
                    })
                    .collect();
                let features = if features.is_empty() { None } else { Some(Tensor::cat(&features, 0)?) };
                let group = Group { prompt: self.prompt.clone(), features, answers: Vec::new() };
                let embeddings = model.embed(&Packed::new([&group])?)?;
                self.embeddings = Some(embeddings.clone());
                embeddings
            }
        };
        Ok(embeddings.narrow(0, start, rows)?)
    }

    /// Its cache; an error before it was admitted.
    pub(super) fn cache(&mut self) -> Result<&mut KeyValues> {
        self.cache.as_mut().ok_or_else(|| candle_core::Error::Msg("a sequence without a cache".into()))
    }

    /// The token that the next step reads.
    pub(super) fn last(&self) -> u32 {
        self.last
    }

    /// Whether this answer makes the engine panic.
    #[cfg(test)]
    pub(super) fn is_lethal(&self) -> bool {
        self.task.sampler.seed() == crate::engine::sampler::LETHAL_SEED
    }

    /// The prompt was read: reports that and lets go of what was needed to read it.
    pub(super) fn start(&mut self) {
        self.embeddings = None;
        self.pictures = Vec::new();
        self.task.events.send(Event::Started { prompt_tokens: self.prompt.len() });
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
        self.last = token.id;
        self.left -= 1;
        self.task.events.send(Event::Token(token));
        if ends_turn(self.last) {
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
